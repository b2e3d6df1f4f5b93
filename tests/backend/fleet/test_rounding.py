"""The version-matched gap of a step, and the floor that rounding explains."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api import Step, Trainer
from rltop.backend.fleet.rounding import EIGHT_BITS, FINEST, FLOAT32, SIXTEEN_BITS, WIDER, gap_floor, matched_gap
from tests.support import pictures

GAPS = st.floats(1e-9, 10.0)


def step(number: int, **values: float | None) -> Step:
    return Step(number, float(number), number, partial=False, values=values)


@given(GAPS | st.none(), GAPS | st.none())
def test_old_logprobs_go_before_tokens_of_lag_0(backend: float | None, lag0: float | None) -> None:
    expected = lag0 if backend is None else backend
    assert matched_gap({"backend_abs_diff_mean": backend, "lag0_abs_diff_mean": lag0}) == expected


@given(st.lists(st.tuples(GAPS, st.integers(1, 400)), min_size=1, max_size=20))
def test_the_floor_is_a_multiple_of_the_first_gap_within_the_bound_of_the_dtypes(
    steps: list[tuple[float, int]],
) -> None:
    run = [step(n, backend_abs_diff_mean=gap, backend_tokens=float(size)) for n, (gap, size) in enumerate(steps)]
    floor = gap_floor(run, [], Trainer(facts={"dtype": "float32"}))
    total = size = 0.0
    for gap, tokens in steps:
        if size < 500:
            total, size = total + gap * tokens, size + tokens
    assert floor == pytest.approx(min(FLOAT32, max(WIDER * total / size, FINEST * FLOAT32)))


@pytest.mark.parametrize(
    ("engine", "trainer", "bound"),
    [
        ({"dtype": "float32"}, {"dtype": "float32"}, FLOAT32),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}, SIXTEEN_BITS),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}, FLOAT32),
        ({"dtype": "bfloat16", "quantization": "fp8"}, {"dtype": "bfloat16"}, EIGHT_BITS),
        ({}, {}, SIXTEEN_BITS),
    ],
)
def test_a_fault_from_the_first_step_is_not_its_own_floor(
    engine: dict[str, str], trainer: dict[str, str], bound: float
) -> None:
    run = [step(n, lag0_abs_diff_mean=3.0, lag0_tokens=1000.0) for n in range(3)]
    engines = [msgspec.structs.replace(pictures.engine(), fingerprint=engine, flags={})]
    assert gap_floor(run, engines, Trainer(facts=trainer)) == bound


def test_without_version_matched_tokens_there_is_no_floor() -> None:
    assert gap_floor([step(0, logp_abs_diff_mean=0.1)], [], Trainer()) is None
    assert not math.isfinite(gap_floor([], [], Trainer()) or math.nan)
