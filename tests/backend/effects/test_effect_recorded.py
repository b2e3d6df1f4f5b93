"""Effects in real recorded runs: nothing where nothing happened, and a real raw/processed switch every time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest

from rltop.backend import api
from rltop.backend.effects.estimate import FIGURES, MIN_SIDE
from tests.support.placebo import HEALTHY, SWITCHES, imagine, judged, placebos
from tests.support.recordings import DATA, Recording, load

SWITCHED = tuple(sorted(path.stem for path in DATA.glob("switch-*.npz")))
SOON = 12
"""Steps after which a raw/processed switch must have been found."""


@pytest.fixture(scope="module")
def answers() -> list[api.Effect]:
    """What is told of imaginary switches, half on the whole fleet, half on one engine."""
    runs: Mapping[str, Recording] = {name: load(name) for name in HEALTHY}
    return [imagine(runs[placebo.run], placebo) for placebo in placebos(runs)]


def test_recordings_are_real_runs_of_some_length() -> None:
    assert len(HEALTHY) >= 2
    assert len(SWITCHED) >= 3
    for name in (*HEALTHY, *SWITCHED):
        run = load(name)
        assert len(run.steps) >= 100
        assert sorted(run.samples) == ["e0", "e1"]
    assert not any(load(name).commands for name in HEALTHY)


def test_intervals_of_placebo_switches_cover_zero_nine_times_in_ten(answers: list[api.Effect]) -> None:
    held: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        for row in answer.rows:
            if estimate := judged(answer, row):
                held[row.figure].append(estimate.low <= 0 <= estimate.high)
    assert set(held) == {figure.name for figure in FIGURES}
    shares = {figure: sum(found) / len(found) for figure, found in held.items()}
    assert {figure: share for figure, share in shares.items() if not 0.90 <= share <= 0.99} == {}
    assert len(held["ratio"]) == SWITCHES


def test_a_healthy_run_is_hardly_ever_called_confounded(answers: list[api.Effect]) -> None:
    assert sum(bool(answer.confounds) for answer in answers) <= 0.03 * SWITCHES


@pytest.mark.parametrize("name", SWITCHED)
def test_a_real_logprobs_mode_switch_is_always_found(name: str) -> None:
    run = load(name)
    found = 0
    for command in run.commands:
        (to,) = {change.wanted for change in run.changes.values() if change.command == command}
        for after in (SOON, None):
            answer = run.effect(command, after)
            assert answer.confounds == []
            ratio = next(row for row in answer.rows if row.figure == "ratio")
            if ratio.after < MIN_SIDE:  # the recording stops there
                assert (ratio.verdict, command) == ("not_yet", run.commands[-1])
                continue
            assert ratio.verdict == {"raw": "up", "processed": "down"}[to], (command, after, ratio)
            estimate = judged(answer, ratio)
            assert estimate is not None
            assert 0.01 < abs(estimate.difference) < 0.08
            found += 1
    assert found >= 4
