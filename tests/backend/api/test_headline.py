"""A picture of a long run stays small: old steps keep what is followed over a run, and the store has all of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api, metrics
from rltop.backend.api.downsample import HEADLINE, WHOLE_STEPS, headline
from rltop.backend.parity.compare import METRICS
from rltop.backend.store.read import Reader
from rltop.backend.text import status
from rltop.tui.model.charts import CHARTS
from tests.support import stored
from tests.support.stored import bits

BATCH = 150
"""Steps to a frame, so that few frames make a long run."""


def picture(frames: list[list[api.Step]]) -> api.Snapshot:
    made = api.Snapshot("run", "h", 0, 0.0, 0.0)
    for number, steps in enumerate(frames, 1):
        made.apply(api.Frame("h", number, float(number), steps=steps))
    return made


def test_metrics_charted_over_a_run_are_in_the_headline() -> None:
    assert set(HEADLINE) <= set(metrics.BY_NAME)
    assert len(set(HEADLINE)) == len(HEADLINE)
    drawn = {name for chart in CHARTS for series in chart.series for name in (series.metric, series.noise) if name}
    assert drawn <= set(HEADLINE)
    assert {judged.metric for judged in METRICS} <= set(HEADLINE)
    assert set(status.STEP_METRICS) <= set(HEADLINE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, BATCH)), min_size=1, max_size=8))
def test_the_newest_steps_are_complete_and_the_others_keep_their_headline(stretches: list[tuple[int, int]]) -> None:
    one = stored.step(0)
    steps = [[msgspec.structs.replace(one, step=first + n) for n in range(size)] for first, size in stretches]
    shown = picture(steps).steps
    arrived = [step.step for steps_ in steps for step in steps_]
    order = list(dict.fromkeys(reversed(arrived)))[::-1]
    assert list(shown) == order
    for place, step in enumerate(reversed(shown.values())):
        whole = msgspec.structs.replace(one, step=step.step)
        assert bits(step) == bits(whole if place < WHOLE_STEPS else headline(whole))


def test_a_headline_is_small_and_keeps_the_join_statistics() -> None:
    whole = stored.step(1)
    old = headline(whole)
    assert len(api.encode(api.Frame("h", 1, 0.0, steps=[old]))) < 1000
    assert old.values == {name: whole.values[name] for name in HEADLINE}
    assert (old.step, old.closed, old.policy_version, old.partial) == (
        whole.step, whole.closed, whole.policy_version, whole.partial,
    )  # fmt: skip
    assert (old.unjoined, old.joins, old.copies) == (whole.unjoined, whole.joins, whole.copies)
    assert headline(old) is old


def test_the_store_has_every_step_complete_and_restores_the_live_snapshot(tmp_path: Path) -> None:
    steps = [stored.step(number) for number in (*range(WHOLE_STEPS + 20), *range(200, 240))]  # the trainer went back
    made = [api.Frame("hub-1", number, float(number), steps=[step]) for number, step in enumerate(steps, 1)]
    path = stored.store(tmp_path, made)
    live = stored.live(made)
    shown = stored.picture(path)
    assert list(shown.steps) == list(live.steps)
    assert bits(shown.steps) == bits(live.steps)
    with Reader(path) as reader:
        kept = {step.step: step for step in reader.steps()}
    assert bits([kept[step] for step in sorted(kept)]) == bits(
        [next(made for made in reversed(steps) if made.step == step) for step in sorted(kept)]
    )
