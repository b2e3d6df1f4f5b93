"""Every metric against the oracle, through ``compute``: the same code that measures a step of the hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import metrics
from rltop.backend.measure import arrays as compute
from rltop.backend.summary import Summary
from tests.support.metric_oracle import Row, Step, finite, quantiles, shift

ELSEWHERE = {
    "joined_fraction", "prefix_hit_rate", "aborted", "aborted_frac", "failed_frac", "truncated_frac", "spanning_frac",
    "lag_p95", "response_len_p95", "ratio_mean_z", "shift_probe", "requests", "gap_jump_position", "engine_z",
    "repetition_frac", "grad_norm_z",
    *(f"logp_{kind}_p{q}" for kind in ("diff", "abs_diff") for q in (50, 95, 99)),
}  # fmt: skip
"""Metrics that the oracle leaves to tests of their own, here or with the hub."""

LOOSE = {"std", "se", "pearson", "slope", "lag0", "lag", "p"}
"""Last words of the names of differences of sums, which lose digits."""

SPECIAL = np.array([0.0, -0.0, -1e-13, -40.0, -90.0, 3.0, -1e38, math.nan, math.inf, -math.inf])


def dense(rows: Sequence[Row], step: Step, rng: np.random.Generator) -> dict[str, Any]:
    """The rows as a trainer has them: padded, with holes, and rubbish wherever the mask is 0."""
    width = max(row.trainer.size for row in rows) * 2 + 1
    mask = np.zeros((len(rows), width), bool)
    for line, row in zip(mask, rows, strict=True):
        line[np.sort(rng.choice(width, row.trainer.size, replace=False))] = True

    def spread(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
        whole = np.full(mask.shape, fill)
        for line, chosen, part in zip(whole, mask, parts, strict=True):
            line[chosen] = part
        return whole

    arrays: dict[str, Any] = {
        "mask": mask,
        "trainer_logprobs": spread([row.trainer for row in rows], math.nan),
        "rollout_logprobs": spread([row.rollout for row in rows], 7.0),
    }
    for name, attribute, fill in (
        ("old_logprobs", "old", math.nan),
        ("rollout_versions", "versions", -1.0),
        ("old_version", "old_versions", -1.0),
        ("entropy", "entropy", 9.0),
        ("weights", "weights", 5.0),
    ):
        parts = [getattr(row, attribute) for row in rows]
        if all(part is not None for part in parts):
            arrays[name] = spread(parts, fill)
    for name, attribute in (("advantages", "advantage"), ("rewards", "reward")):
        if all(getattr(row, attribute) is not None for row in rows):
            arrays[name] = np.array([getattr(row, attribute) for row in rows])
    if all(row.prompt is not None for row in rows):
        arrays["prompt_ids"] = np.array([[row.prompt, 5] for row in rows])
        arrays["token_ids"] = np.zeros(mask.shape, np.int64)
        # A row's prompt is what stands before its first trained token: let that differ by the prompt alone.
        first = mask.argmax(axis=1)
        for name in [name for name, array in arrays.items() if np.shape(array) == mask.shape]:
            arrays[name] = np.stack([np.roll(line, -at) for line, at in zip(arrays[name], first, strict=True)])
    if step.version is not None:
        arrays["policy_version"] = step.version
    if step.clip is not None:
        arrays |= {"clip_low": step.clip[0], "clip_high": step.clip[1]}
    arrays |= {"ratio_base": step.base, "objective": "gspo" if step.gspo else "ppo"}
    return arrays


def make(
    seed: int, lengths: Sequence[int], noise: float, odd: float, *, full: bool, gspo: bool = False
) -> tuple[Step, dict[str, Any]]:
    """Rows of these lengths: logprobs with noise between them, a share of odd ones, and with everything else known."""
    rng = np.random.default_rng(seed)
    rows = []
    span = int(rng.integers(1, 7))  # of lags: a line is told from 3 on
    for length in lengths:
        rollout = -rng.exponential(rng.choice([0.7, 4.0]), length)
        trainer = np.minimum(rollout + rng.laplace(0, noise, length), 0.0)
        for column in (rollout, trainer):
            strange = rng.random(length) < odd
            column[strange] = rng.choice(SPECIAL, int(strange.sum()))
        row = Row(trainer, rollout)
        if full:
            row.old = trainer + rng.normal(0, noise / 2, length)
            row.old[rng.random(length) < 0.2] = math.nan
            row.versions = np.where(rng.random(length) < 0.1, -1.0, np.sort(rng.integers(6 - span, 7, length)))
            row.old_versions = np.where(rng.random(length) < 0.1, -1.0, np.full(length, 6.0))
            row.entropy = rng.exponential(1, length)
            row.advantage = float(rng.choice([-1.5, 0.0, 0.75]))
            row.reward = float(rng.integers(0, 3))
            row.prompt = int(rng.integers(0, 4))
            row.weights = rng.choice([0.0, 0.5, 1.0, 2.0], length) * rng.choice([0.0, 1.0], p=[0.2, 0.8])
        rows.append(row)
    base = str(rng.choice(["rollout", "old", "current"])) if full else "rollout"
    step = Step(rows, 6 if full else None, (0.9, 1.2) if full else None, gspo, base=base)
    return step, dense(rows, step, rng)


def assert_agree(step: Step, ours: dict[str, float | None]) -> None:
    theirs = step.values()
    assert theirs.keys() <= metrics.BY_NAME.keys()
    size = max([abs(value) for value in theirs.values() if value is not None], default=0.0)
    for name in metrics.BY_NAME.keys() - ELSEWHERE:
        expected, got = theirs.get(name), ours[name]
        if expected is None:
            absent = got is None or (got == 0 and name.endswith(("tokens", "se", "std")))
            assert absent or name in {"probs_pearson", "surprisal_slope", "len_scaling_slope"}, (name, got)
            continue
        loose = name.rsplit("_", 1)[-1] in LOOSE
        rel, floor = (1e-6, 1e-7 * max(1.0, math.sqrt(size))) if loose else (1e-9, 1e-12 * max(1.0, size))
        assert got == pytest.approx(expected, rel=rel, abs=floor), name


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), lengths, st.sampled_from([1e-7, 1e-3, 0.05, 1.0, 8.0]), st.booleans(), st.booleans())
def test_a_step_has_every_metric_of_the_oracle(
    seed: int, lengths: list[int], noise: float, full: bool, gspo: bool
) -> None:
    step, arrays = make(seed, lengths, noise, 0.0, full=full, gspo=gspo)
    assert_agree(step, compute.values(arrays))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), lengths, st.sampled_from([0.02, 0.3, 1.0]))
def test_extreme_and_invalid_logprobs_are_counted_and_excluded(seed: int, lengths: list[int], odd: float) -> None:
    step, arrays = make(seed, lengths, 0.05, odd, full=False)
    ours = compute.values(arrays)
    assert all(value is None or math.isfinite(value) for value in ours.values())
    theirs = step.values()
    for name in ("invalid_frac", "nan_logprob_frac", "inf_logprob_frac", "zero_logprob_frac", "positive_logprob_frac",
                 "clamped_frac", "tokens", "kl_k1", "kl_k3", "ratio_mean", "kl_k3_rev", "ess", "js", "tv", "ratio_max",
                 "token_mult_prob_error", "extreme_frac_tau5", "chi2_token", "probs_diff_max"):  # fmt: skip
        if theirs[name] is None:
            assert ours[name] is None, name
        else:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-7, abs=1e-9), name
    if ours["kl_k3"] is not None:
        assert ours["kl_k1"] is not None and ours["ratio_mean"] is not None
        assert ours["kl_k3"] - ours["kl_k1"] == pytest.approx(ours["ratio_mean"] - 1, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 1_000, 100_000])
@pytest.mark.parametrize("rows", [1, 7])
def test_any_row_length_gives_the_same_values(size: int, rows: int) -> None:
    step, arrays = make(size, [max(size // rows, 1)] * rows, 0.03, 0.001, full=True)
    for row in step.rows:  # 1e38 in a sum leaves no digits to compare
        for column in (row.trainer, row.rollout):
            column[np.abs(column) > 100] = -3.0
    arrays = dense(step.rows, step, np.random.default_rng(0))
    assert_agree(step, compute.values(arrays))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), lengths, st.sampled_from([1e-6, 0.05, 5.0]))
def test_quantiles_are_within_one_percent_of_the_order_statistics(seed: int, lengths: list[int], noise: float) -> None:
    step, arrays = make(seed, lengths, noise, 0.0, full=False)
    ours = compute.values(arrays)
    trainer = np.concatenate([row.trainer for row in step.rows])
    rollout = np.concatenate([row.rollout for row in step.rows])
    d = np.sort(np.subtract(*finite(trainer, rollout)))
    for name, expected in quantiles(trainer, rollout).items():
        values = np.sort(np.abs(d)) if "abs" in name else d
        rank = int(name.rsplit("_p", 1)[1]) / 100 * (values.size - 1)
        near = max(abs(values[math.floor(rank)]), abs(values[math.ceil(rank)]))
        assert ours[name] == pytest.approx(expected, abs=0.01 * near + 1e-12), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-1, 0, 1]))
def test_a_shift_by_one_is_found(seed: int, by: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(6):
        whole = -rng.exponential(1, 52)
        rows.append(Row(whole[1:51] + rng.normal(0, 0.01, 50), whole[1 + by : 51 + by]))
    arrays = {
        "trainer_logprobs": np.stack([row.trainer for row in rows]),
        "rollout_logprobs": np.stack([row.rollout for row in rows]),
        "mask": np.ones((6, 50)),
    }
    assert compute.values(arrays)["shift_probe"] == shift(rows) == by


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), lengths, st.sampled_from([1e-3, 0.05, 1.0]), st.booleans(), st.integers(0, 12))
def test_summaries_of_parts_add_up_to_every_metric_of_the_whole(
    seed: int, lengths: list[int], noise: float, gspo: bool, cut: int
) -> None:
    step, arrays = make(seed, lengths, noise, 0.0, full=True, gspo=gspo)
    first = min(max(cut, 1), len(step.rows))
    parts = [
        {name: array[at] if np.ndim(array) else array for name, array in arrays.items()}
        for at in (slice(first), slice(first, None))
    ]
    summaries = [compute.summary(part) for part in parts if len(part["mask"])]
    merged, whole = metrics.values(sum(summaries, Summary())), compute.values(arrays)
    size = max(abs(value) for value in whole.values() if value is not None)
    for name, expected in whole.items():
        got = merged[name]
        if expected is None or got is None:
            assert got == expected, name
        else:
            loose = name.rsplit("_", 1)[-1] in LOOSE or name == "ratio_mean_z"
            rel, floor = (1e-5, 1e-7 * max(1.0, math.sqrt(size))) if loose else (1e-9, 1e-12 * max(1.0, size))
            assert got == pytest.approx(expected, rel=rel, abs=floor), name


def test_no_tokens_give_counts_alone() -> None:
    arrays = {name: np.full((2, 3), -1.0) for name in ("trainer_logprobs", "rollout_logprobs")}
    ours = compute.values(arrays | {"mask": np.zeros((2, 3))})
    assert {name for name, value in ours.items() if value} == {"sequences"}


def test_the_oracle_has_every_metric() -> None:
    step, _ = make(4, [30] * 12 + [20] * 3, 1.0, 0.0, full=True)  # far enough apart for the error mask
    step.base = "rollout"
    assert step.values().keys() == metrics.BY_NAME.keys() - ELSEWHERE
