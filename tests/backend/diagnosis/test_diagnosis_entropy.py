"""When a fall of entropy is told: fast ones soon, learning and the luck of prompts never."""

from __future__ import annotations

import numpy as np
import pytest

from rltop.backend import api
from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.checks.trends import FALL, FALL_STEPS, GROUPED, entropy
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE
from rltop.backend.evidence.series import Stretch

ROWS, TOKENS = 64, 15
PROMPTS = 0.1
"""Deviation of the logarithm of a step's entropy, by its prompts: as in the demo at temperature 1."""


def told(levels: list[float], error: float = PROMPTS) -> Finding:
    """What the test says of a run with these entropies, each of 64 sequences that err as much as those of prompts."""
    stretches = []
    for step, level in enumerate(levels):
        own = Evidence()
        spread = (error / GROUPED * level * ROWS * TOKENS) ** 2
        n, s = ROWS * TOKENS, level * ROWS * TOKENS
        own.moments[FIGURE.entropy] = ROWS, n, s, ROWS * TOKENS**2, s * s / ROWS + spread, s * TOKENS
        stretches.append(Stretch(step, step, {"e0": own}))
    steps = [api.Step(step, float(step), step, False, {}) for step in range(len(levels))]
    (found,) = entropy(EvidenceByEngine(DiagnosisInput("run", steps, evidence=stretches)))
    return found


def course(rate: float, steps: int, wobble: float, seed: int, calm: int = 0) -> list[float]:
    """Entropies that fall by a share a step, after some that do not."""
    noise = np.random.default_rng(seed).normal(size=steps) * wobble
    return [float(x) for x in np.exp(-rate * np.maximum(np.arange(steps) - calm, 0) + noise)]


@pytest.mark.parametrize(("rate", "within"), [(0.2, 6), (0.15, 8), (0.1, 16)])
def test_the_faster_a_fall_the_sooner_it_is_told(rate: float, within: int) -> None:
    for seed in range(10):
        found = told(course(rate, 10 + within, PROMPTS / 2, seed, calm=9))
        assert found.outcome == "collapsed"
        assert found.since_step is not None and 2 <= found.since_step <= 9 + within


def test_a_fall_from_the_first_step_on_is_told_after_six() -> None:
    assert told(course(0.2, FALL_STEPS[0], PROMPTS / 2, 3)).outcome == "collapsed"
    assert told(course(0.2, FALL_STEPS[0] - 1, PROMPTS / 2, 3)).outcome == UNKNOWN


@pytest.mark.parametrize("wobble", [PROMPTS, 2 * PROMPTS])
def test_learning_and_the_luck_of_prompts_are_no_collapse(wobble: float) -> None:
    for seed in range(40):
        levels = course(0.04, 40, wobble, seed)
        assert {told(levels[:n], wobble).outcome for n in range(FALL_STEPS[0], 41, 2)} <= {
            "steady",
            "falling",
            "rising",
        }


def test_a_fall_stands_until_it_is_made_up_for() -> None:
    fallen = course(0.2, 14, 0.02, 1)
    stays, back = [*fallen, *[fallen[-1]] * 20], [*fallen, *[1.0] * 20]
    assert told(stays).outcome == "collapsed"
    assert told(back).outcome == "steady"


def test_a_slow_fall_is_never_called_fast() -> None:
    assert told(course(FALL * 0.9, 30, 0.0, 1), 1e-6).outcome == "falling"
    assert told(course(FALL * 1.1, 30, 0.0, 1), 1e-6).outcome == "collapsed"
