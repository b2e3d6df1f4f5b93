"""Losses and advantages against the plain formulas, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo.options import OBJECTIVES as NAMES
from rltop.backend.demo.rl.objective import OBJECTIVES, SPREAD_FLOOR, Objective, group_advantages

reals = st.floats(-2, 2, width=32)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """New and rollout logprobs of rows of unequal length, and advantages."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    new = [draw(st.lists(reals, min_size=size, max_size=size)) for size in sizes]
    rollout = [draw(st.lists(reals, min_size=size, max_size=size)) for size in sizes]
    return new, rollout, draw(st.lists(reals, min_size=len(sizes), max_size=len(sizes)))


def padded(rows: list[list[float]], fill: float = 7.0) -> Any:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)


def clipped_gain(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, min(max(ratio, low), high) * advantage)


@given(batches())
def test_ppo_is_the_mean_over_tokens_of_the_clipped_gain(
    batch: tuple[list[list[float]], list[list[float]], list[float]],
) -> None:
    new, rollout, advantages = batch
    gains = [
        clipped_gain(math.exp(n - r), advantage, 0.8, 1.28)
        for row_new, row_rollout, advantage in zip(new, rollout, advantages, strict=True)
        for n, r in zip(row_new, row_rollout, strict=True)
    ]
    mask = padded([[1.0] * len(row) for row in new], 0.0)
    loss = Objective("ppo", 0.8, 1.28).loss(
        padded(new), padded(rollout, -7.0), torch.tensor(advantages, dtype=torch.float64), mask
    )
    assert float(loss) == pytest.approx(-sum(gains) / len(gains), abs=1e-9)


@given(batches())
def test_gspo_clips_the_geometric_mean_ratio_of_each_sequence(
    batch: tuple[list[list[float]], list[list[float]], list[float]],
) -> None:
    new, rollout, advantages = batch
    gains = []
    for row_new, row_rollout, advantage in zip(new, rollout, advantages, strict=True):
        mean_d = sum(n - r for n, r in zip(row_new, row_rollout, strict=True)) / len(row_new)
        gains.append(clipped_gain(math.exp(mean_d), advantage, 0.95, 1.07))
    mask = padded([[1.0] * len(row) for row in new], 0.0)
    loss = Objective("gspo", 0.95, 1.07).loss(
        padded(new), padded(rollout, -7.0), torch.tensor(advantages, dtype=torch.float64), mask
    )
    assert float(loss) == pytest.approx(-sum(gains) / len(gains), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_at_equal_policies_the_gradient_follows_the_advantage(name: str) -> None:
    new = torch.zeros(2, 3, requires_grad=True)
    OBJECTIVES[name].loss(new, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2, 3)).backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([[-1.0] * 3, [1.0] * 3]) / 6)


@pytest.mark.parametrize("name", NAMES)
def test_beyond_the_bound_a_gain_gives_no_gradient_and_a_loss_does(name: str) -> None:
    objective = OBJECTIVES[name]
    far = math.log(objective.clip_high) + 0.1
    new = torch.full((2, 3), far, requires_grad=True)
    objective.loss(new, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2, 3)).backward()
    assert new.grad is not None
    assert not new.grad[0].any()
    assert (new.grad[1] > 0).all()


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=4))
def test_advantages_are_standard_scores_within_the_group(rewards: list[list[float]]) -> None:
    found = group_advantages(torch.tensor(rewards, dtype=torch.float64))
    for row, advantages in zip(rewards, found.tolist(), strict=True):
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((reward - mean) ** 2 for reward in row) / len(row))
        expected = [(reward - mean) / (spread + SPREAD_FLOOR) for reward in row]
        assert advantages == pytest.approx(expected, abs=1e-6)


def test_a_group_of_equal_rewards_has_zero_advantage() -> None:
    assert not group_advantages(torch.full((2, 8), 0.75)).any()


def test_every_objective_of_the_options_exists() -> None:
    assert set(OBJECTIVES) == set(NAMES)
