"""Where the gap lies: sums by stratum and the spread of d, against one token at a time; merged, bounded, asked for."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.profiles import Mismatch
from rltop.backend.gaps.mismatch import DIMENSIONS, EDGES, GapShape, GapShapes
from rltop.backend.measure.intervals import estimate
from rltop.backend.summary import Summary
from rltop.backend.summary.dimensions import POSITION, PROBABILITY
from rltop.backend.summary.kernel import PROB_EDGES
from tests.backend.hub.test_steps import World
from tests.support.hub_core import Hub


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=40)
def test_bins_and_means_match_a_token_by_token_oracle(seed: int, broken: bool) -> None:
    world, hub = World(seed, broken=broken), Hub()
    world.play(hub)
    hub.settle()
    found = told(hub)
    gaps: dict[str, list[float]] = defaultdict(list)
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    for row in world.rows:
        engine = row.engine or ""
        for place, (trainer, rollout, version) in enumerate(zip(row.trainer, row.rollout, row.versions, strict=True)):
            d = trainer - rollout
            if not math.isfinite(d):
                continue
            gaps[engine].append(d)
            assert version is not None
            lag = world.policy - version
            labels = {"lag": "ahead" if lag < 0 else str(lag), "position": position_label(place)}
            labels["probability"] = PROBABILITY.strata[sum(math.exp(rollout) >= edge for edge in PROB_EDGES)]
            held = max(-20.0, min(20.0, d))
            for name, label in labels.items():
                for column, value in enumerate((1.0, d, abs(d), math.expm1(held) - held)):
                    sums[engine, name, label][column] += value
    for engine, counts in found.bins.items():
        assert sum(counts) == len(gaps[engine])
        middle = len(EDGES) - 1
        for size in range(1, middle + 1):  # a d within 0.8 % of an edge may fall on its other side
            for sign, beyond in ((1, counts[middle + size :]), (-1, counts[: middle - size + 1])):
                low, high = (sum(sign * d >= EDGES[size - 1] * near for d in gaps[engine]) for near in (1.01, 0.99))
                assert low <= sum(beyond) <= high
    for profile in found.profiles:
        for engine, rows in profile.engines.items():
            for label, (n, *means) in zip(profile.labels, rows, strict=True):
                if profile.dimension == "prefix":
                    continue
                expected = sums[engine, profile.dimension, label]
                assert n == expected[0]
                if n:
                    assert means == pytest.approx([total / n for total in expected[1:]], rel=1e-5, abs=1e-7)
    assert found.tokens == sum(len(row.rollout) for row in world.rows)
    finite = [math.isfinite(t - r) for row in world.rows for t, r in zip(row.trainer, row.rollout, strict=True)]
    assert found.invalid == finite.count(False)


def position_label(place: int) -> str:
    for label in POSITION.strata:
        low, _, end = label.removesuffix("+").partition("-")
        if int(low) <= place <= (math.inf if label.endswith("+") else int(end or low)):
            return label
    raise AssertionError(place)


def test_every_dimension_is_answered_in_the_order_of_its_strata() -> None:
    world, hub = World(3), Hub()
    world.play(hub)
    hub.settle()
    assert [(p.dimension, tuple(p.labels)) for p in told(hub).profiles] == [(d.name, d.strata) for d in DIMENSIONS]


def asked(hub: Hub, first: int | None = None, last: int | None = None) -> api.Answer:
    answer, _ = hub.ask(api.AskMismatch("q", first, last))
    return api.decode_answer(api.encode(answer))


def told(hub: Hub, first: int | None = None, last: int | None = None) -> Mismatch:
    found = asked(hub, first, last).mismatch
    assert found is not None
    return found


def test_a_viewer_gets_means_by_engine_and_stratum() -> None:
    world, hub = World(3), Hub()
    assert asked(hub).error == "no step with sequences is kept in that range"
    world.play(hub)
    hub.settle()
    found = told(hub)
    assert (found.first, found.last, found.steps) == (0, 0, 1)
    assert found.tokens == hub.steps[0].values["tokens"]
    assert sum(map(sum, found.bins.values())) == found.tokens
    for profile in found.profiles:
        assert set(profile.engines) <= {"", "e0", "e1"}
        for engine in ("e0", "e1"):
            strata = profile.engines[engine]
            assert len(strata) == len(profile.labels)
            tokens = sum(n for n, *_ in strata)
            mean = sum(n * size for n, _, size, _ in strata) / tokens
            assert mean == pytest.approx(hub.steps[0].engines[engine]["logp_abs_diff_mean"], rel=1e-6)
            for (n, _, size, _), spread in zip(strata, profile.spreads[engine], strict=True):
                assert (spread is None) == (n == 0)
                if spread is not None:
                    assert spread[0] <= n and estimate((spread[0], n, n * size, *spread[1:])).mean == size
    lags, attributed = found.profiles[0], hub.ask(api.AskAttribution("a"))[0].attribution
    assert lags.dimension == "lag" and attributed is not None
    for stratum in attributed.strata:  # the same intervals, asked for in another way
        if stratum.dimension == "lag" and stratum.engine == "e0":
            at = lags.labels.index(stratum.label)
            spread, (n, _, size, _) = lags.spreads["e0"][at], lags.engines["e0"][at]
            assert spread is not None
            assert estimate((spread[0], n, n * size, *spread[1:])).high == pytest.approx(stratum.abs_diff.high)
    assert asked(hub, 5, 9).mismatch is None


def test_steps_are_bounded_and_a_repeated_step_replaces_itself() -> None:
    one = {"e0": Summary(tokens=5)}
    size = 500 + GapShape().bins.nbytes + GapShape().sums.nbytes
    kept = GapShapes(total_bytes=10 * size)
    for step in range(30):
        kept.put(step, one)
    kept.put(29, {"e0": Summary(tokens=7)})
    assert kept.nbytes == 10 * size
    assert (kept.answer(None, None).first, kept.answer(None, None).tokens) == (20, 52)
    assert kept.answer(25, 26).tokens == 10
    with pytest.raises(ValueError, match="no step"):
        kept.answer(3, 9)
