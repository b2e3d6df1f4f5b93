"""Of a run of any length a picture holds a bounded number of steps, and every step that stands out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api import downsample
from rltop.backend.api.downsample import BLOCK, EXTREMES, HEADLINE, MAX_STEPS, ROOM


def step(number: int, **values: float | None) -> api.Step:
    return api.Step(number, float(number), number, False, dict(values))


def picture(count: int, spikes: dict[int, float], *, per_frame: int = 1) -> api.Snapshot:
    made = api.Snapshot("run", "h", 0, 0.0, 0.0)
    for first in range(0, count, per_frame):
        steps = [step(n, kl_k3=spikes.get(n, 1 + n % 7 * 1e-3), entropy=None) for n in range(first, first + per_frame)]
        made.apply(api.Frame("h", made.seq + 1, float(first), steps=steps))
    return made


@pytest.mark.parametrize("per_frame", [1, 5, 64])
def test_a_long_run_stays_bounded_and_keeps_its_spikes(per_frame: int) -> None:
    spikes = {3: 9.0, 700: -4.0, 9_999: 5.0, 20_000: 8.0, 39_000: 7.0}
    shown = picture(40_000, spikes, per_frame=per_frame).steps
    assert len(shown) <= MAX_STEPS + per_frame
    assert spikes.keys() <= shown.keys()
    assert {number: shown[number].values["kl_k3"] for number in spikes} == spikes
    assert list(shown) == sorted(shown)
    assert [s.level for s in shown.values()] == sorted((s.level for s in shown.values()), reverse=True)
    newest = range(40_000 // per_frame * per_frame - ROOM[0], 40_000 // per_frame * per_frame)
    assert [shown[number].level for number in newest] == [0] * ROOM[0]
    assert next(iter(shown)) == 0


def test_every_viewer_downsamples_alike_from_any_start() -> None:
    whole = picture(5_000, {})
    early = msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=api.Snapshot)
    for number in range(5_000, 9_000):
        frame = api.Frame("h", number + 1, float(number), steps=[step(number, kl_k3=number % 11)])
        for shown in (whole, early):
            shown.apply(frame)
    assert msgspec.msgpack.encode(whole) == msgspec.msgpack.encode(early)


def test_an_endless_run_is_downsampled_repeatedly() -> None:
    steps: dict[int, api.Step] = {}
    for number in range(0, 400 * BLOCK, BLOCK):
        steps |= {n: step(n, reward_mean=float(n % 97)) for n in range(number, number + BLOCK)}
        downsample.downsample(steps)
        assert len(steps) <= MAX_STEPS
    assert {s.level for s in steps.values()} == {0, 1, 2}
    assert 0 in steps


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(EXTREMES), st.none() | st.floats(allow_nan=False)), min_size=1, max_size=40
    )
)
def test_only_extremes_and_ends_are_kept(found: list[dict[str, float | None]]) -> None:
    steps = [step(number, **values) for number, values in enumerate(found)]
    kept = downsample.representative(steps)
    assert {0, len(steps) - 1} <= kept
    assert len(kept) <= 2 + 2 * len(EXTREMES)
    for name in EXTREMES:
        known = [value for values in found if (value := values.get(name)) is not None]
        held = [value for n in kept if (value := found[n].get(name)) is not None]
        if known:
            assert (min(held), max(held)) == (min(known), max(known))


def test_extremes_are_headline_metrics() -> None:
    assert set(EXTREMES) <= set(HEADLINE)
