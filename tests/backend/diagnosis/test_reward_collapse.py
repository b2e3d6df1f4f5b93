"""When a fall of the reward is a collapse, and when an engine is slow: soon if it is, never by the luck of steps."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.causes import BY_ID
from rltop.backend.diagnosis.checks.trends import reward, speed
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import EXTREME, FIGURE
from rltop.backend.evidence.series import Stretch

GROUPS, SIZE = 8, 8


def evidence(engines: list[dict[str, Evidence]]) -> EvidenceByEngine:
    stretches = [Stretch(step, step, own) for step, own in enumerate(engines)]
    steps = [api.Step(step, float(step), step, False, {}) for step in range(len(engines))]
    return EvidenceByEngine(DiagnosisInput("run", steps, evidence=stretches))


def rewarded(rates: list[float], seed: int, *, even: float = 1.0, scale: float = 1.0) -> list[dict[str, Evidence]]:
    """Steps of rewards of 0 or ``scale``, whose prompts differ in difficulty: the more, the smaller ``even``."""
    rng = np.random.default_rng(seed)
    made = []
    for rate in rates:
        level = min(max(rate, 0.01), 0.99)
        groups = rng.beta(even * level, even * (1 - level), GROUPS)
        rewards = scale * rng.binomial(1, np.repeat(groups, SIZE)).astype(float)
        own = Evidence()
        n = rewards.size
        own.moments[FIGURE.reward] = n, n, rewards.sum(), n, (rewards**2).sum(), rewards.sum()
        made.append({"e0": own})
    return made


def of_rewards(made: list[dict[str, Evidence]]) -> Finding:
    (found,) = reward(evidence(made))
    return found


@pytest.mark.parametrize("even", [0.5, 2.0, 20.0])
def test_noisy_rewards_of_healthy_runs_are_no_collapse(even: float) -> None:
    wrong = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rates = np.clip(np.linspace(rng.uniform(0.05, 0.6), rng.uniform(0.4, 0.95), 60), 0, 1)
        made = rewarded(rates.tolist(), seed, even=even, scale=float(rng.choice([1.0, 10.0])))
        wrong += [(seed, step) for step in range(8, 60) if of_rewards(made[: step + 1]).outcome == "collapsed"]
    assert wrong == []


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("steps", [1, 6, 14])
def test_a_collapse_is_found_within_five_steps_of_its_bottom(seed: int, steps: int) -> None:
    rates = [0.55] * 20 + np.linspace(0.55, 0.01, steps + 1)[1:].tolist() + [0.01] * 30
    made = rewarded(rates, seed, even=8.0)
    bottom = 20 + steps
    found = [step for step in range(8, len(rates)) if of_rewards(made[: step + 1]).outcome == "collapsed"]
    assert found and found[0] >= 20
    assert {*range(bottom + 4, len(rates))} <= {*found}  # two verdicts in a row raise an alarm; it stays
    assert 15 <= (of_rewards(made[: bottom + 5]).since_step or 0) <= bottom + 1


def test_a_reward_that_recovers_ends_the_collapse() -> None:
    rates = [0.6] * 20 + [0.01] * 12 + [0.6] * 12
    assert of_rewards(rewarded(rates[:30], 1, even=8.0)).outcome == "collapsed"
    assert of_rewards(rewarded(rates, 1, even=8.0)).outcome != "collapsed"


def test_a_collapse_is_alarming_and_a_cause_of_its_own() -> None:
    assert any("reward collapsed" in need for need in BY_ID["reward-falls"].needs)


def of_speeds(times: NDArray[np.float64]) -> dict[str | None, str]:
    """The outcome of each engine, given its seconds per token by step [steps, engines]."""
    made = []
    for row in times:
        engines = {}
        for number, seconds in enumerate(row):
            engines[f"e{number}"] = Evidence()
            engines[f"e{number}"].extremes[EXTREME.token_time] = seconds
        made.append(engines)
    return {found.engine: found.outcome for found in speed(evidence(made))}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.02, 0.2, 0.35])
@pytest.mark.parametrize("engines", [2, 3])
def test_an_engine_four_times_as_slow_is_found_whatever_steps_vary_by(seed: int, noise: float, engines: int) -> None:
    rng = np.random.default_rng(seed)
    times = 0.022 * np.exp(noise * rng.normal(size=(40, engines)))
    times[8:, 1] *= 85 / 22
    assert of_speeds(times) == {f"e{n}": "slow" if n == 1 else "alike" for n in range(engines)}


@pytest.mark.parametrize("seed", range(30))
def test_engines_that_vary_alike_are_not_slow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = 0.022 * np.exp(rng.uniform(0, 0.5) * rng.normal(size=(60, 3)))
    times[:, 0] *= rng.uniform(1, 1.7)
    for steps in range(4, 60, 3):
        assert set(of_speeds(times[:steps]).values()) <= {"alike", "unknown"}
