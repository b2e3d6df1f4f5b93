"""Where a gap begins, and which engine stands out."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import metrics
from rltop.backend.measure import arrays as compute
from rltop.backend.metrics.location_metrics import COMPARED, JUMP, JUMP_TOKENS, MIN_ENGINES, engine_z
from rltop.backend.summary import Summary
from rltop.backend.summary.dimensions import POSITIONS

figures = st.none() | st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
fleets = st.dictionaries(
    st.sampled_from([f"e{n}" for n in range(9)]), st.fixed_dictionaries(dict.fromkeys(COMPARED, figures)), max_size=9
)


def jump(d: np.ndarray) -> float | None:
    """By the rows' own means, stretch by stretch. ``d`` [rows, tokens]."""
    means = {}
    for first, end in zip(POSITIONS, (*POSITIONS[1:], None), strict=True):
        part = np.abs(d[:, first:end])
        if part.size >= JUMP_TOKENS:
            means[first] = float(part.mean())
    middle = statistics.median(means.values()) if means else 0.0
    return next((float(first) for first, mean in means.items() if mean > JUMP * middle), None)


@pytest.mark.parametrize("at", [None, 1, 97, 128, 250])
def test_the_position_of_a_jump_is_found_to_its_bin(at: int | None) -> None:
    rng = np.random.default_rng(0)
    d = rng.laplace(0, 0.01, (40, 300))
    if at is not None:
        d[:, at:] *= 1 if at == 1 else 30
        d[:, 1] *= 30 if at == 1 else 1
    arrays = {"trainer_logprobs": -2.0 + d, "rollout_logprobs": np.full(d.shape, -2.0), "mask": np.ones(d.shape)}
    found = compute.values(arrays)["gap_jump_position"]
    assert found == jump(d)
    if at in (None, 97):  # after 97 more than half of the stretches are as they were; one holds both kinds
        assert (found is None) == (at is None)
    if found is not None and at is not None:
        stretch = POSITIONS[POSITIONS.index(int(found)) + 1] - found
        assert abs(found - at) < stretch


def test_too_few_tokens_give_no_position() -> None:
    row = np.full((1, JUMP_TOKENS - 1), -1.0)
    assert (
        compute.values({"trainer_logprobs": row, "rollout_logprobs": row * 2, "mask": row})["gap_jump_position"] is None
    )


@given(fleets)
def test_the_z_score_of_an_engine_is_that_of_its_most_deviating_metric(
    fleet: dict[str, dict[str, float | None]],
) -> None:
    found = engine_z(fleet)
    assert found.keys() == fleet.keys()
    for engine, own in fleet.items():
        sizes = []
        for figure in COMPARED:
            known = [value for other in fleet.values() if (value := other[figure]) is not None]
            value = own[figure]
            if value is None or len(known) < MIN_ENGINES:
                continue
            middle = statistics.median(known)
            spread = 1.4826 * statistics.median(abs(other - middle) for other in known)
            if spread > 1e-9 * abs(middle):
                sizes.append(abs(value - middle) / spread)
        z = found[engine]
        assert (z is None) == (not sizes)
        if z is not None:
            assert abs(z) == pytest.approx(max(sizes))


def test_one_bad_replica_stands_out_and_defines_the_fleet_value() -> None:
    rng = np.random.default_rng(1)
    parts = {}
    for n in range(8):
        d = rng.laplace(0, 0.08 if n == 5 else 0.01, (30, 50))
        arrays = {"trainer_logprobs": -1.0 + d, "rollout_logprobs": np.full(d.shape, -1.0), "mask": np.ones(d.shape)}
        parts[f"e{n}"] = compute.summary(arrays)
    engines = metrics.of_engines(parts)
    assert set(engines["e0"]) == set(metrics.PER_ENGINE)
    z = {engine: values["engine_z"] for engine, values in engines.items()}
    assert z["e5"] is not None and z["e5"] > 8
    assert all(value is not None and abs(value) < z["e5"] / 4 for engine, value in z.items() if engine != "e5")
    assert metrics.values(sum(parts.values(), Summary()), engines)["engine_z"] == z["e5"]


def test_equal_or_too_few_engines_have_no_z_score() -> None:
    same = {f"e{n}": dict.fromkeys(COMPARED, 1 + n * 1e-15) for n in range(6)}
    assert set(engine_z(same).values()) == {None}
    few = {f"e{n}": dict.fromkeys(COMPARED, math.exp(n)) for n in range(MIN_ENGINES - 1)}
    assert set(engine_z(few).values()) == {None}
    assert metrics.values(Summary())["engine_z"] is None
