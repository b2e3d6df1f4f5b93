"""What a switch did, told from made-up steps whose truth is known: sides, comparisons, verdicts, confounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.effects.estimate import FIGURES, MIN_SIDE, SPEED, WINDOW, SwitchMark, effect
from rltop.backend.effects.throughput import SpeedSample
from rltop.backend.summary.kernel import MOMENT
from rltop.backend.text import effect_text

LIFE = "life"
NORMAL = {
    "gap": (0.02, 0.002), "k3": (0.002, 2e-4), "ratio": (1.0, 0.002), "clip": (0.05, 0.004), "entropy": (0.5, 0.01),
    "lag": (1.0, 0.05), "prompt": (50.0, 1.0), "temperature": (1.0, 0.0), "latency": (2.0, 0.05),
    "token_time": (0.02, 5e-4),
}  # fmt: skip
"""Level and noise per step of a healthy run."""


class Run:
    """Steps of a healthy run, engine by engine; ``noise`` overrides that of ``NORMAL``."""

    def __init__(
        self, seed: int = 0, engines: tuple[str, ...] = ("e0", "e1"), noise: Mapping[str, float] | None = None
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = noise or {}
        self.engines = engines
        self.steps: list[StepCells] = []
        self.samples: dict[str, list[SpeedSample]] = {engine: [] for engine in engines}
        self.epochs = dict.fromkeys(engines, 0)
        self.lives = dict.fromkeys(engines, LIFE)

    def go(self, count: int, shifts: Mapping[str, Mapping[str, float]] | None = None) -> Run:
        """``count`` steps, with figures moved by ``shifts[engine][figure]``."""
        for _ in range(count):
            number = len(self.steps)
            found = {}
            for engine in self.engines:
                moved = (shifts or {}).get(engine, {})
                place = EpochKey(engine, self.lives[engine], self.epochs[engine])
                found[place] = self.cell(moved)
                speed = 1000.0 + moved.get(SPEED, 0.0) + self.rng.normal(0, 10)
                self.samples[engine].append(
                    SpeedSample(5.0 * number + 2, place.life, place.epoch, 4.0, round(4 * speed))
                )
            self.steps.append(StepCells(number, 5.0 * number, found))
        return self

    def cell(self, moved: Mapping[str, float], tokens: int = 400) -> epoch_sums.Cell:
        cell = epoch_sums.empty()
        for figure, (level, usual) in NORMAL.items():
            value = level + moved.get(figure, 0.0) + self.rng.normal(0, 1) * self.noise.get(figure, usual)
            cell[epoch_sums.ROW[figure], :3] = (20, tokens, tokens * value)
        return cell

    def switch(self, *engines: str, mixed: bool = True) -> Run:
        """A flag epoch begins on these engines, in the middle of a step if ``mixed``."""
        if mixed:
            found = {}
            for engine in self.engines:
                for epoch in range(self.epochs[engine], self.epochs[engine] + 1 + (engine in engines)):
                    found[EpochKey(engine, self.lives[engine], epoch)] = self.cell({"gap": 99.0})
            self.steps.append(StepCells(len(self.steps), 5.0 * len(self.steps), found))
        for engine in engines:
            self.epochs[engine] += 1
        return self

    def effect(self, *engines: str, epoch: int = 1) -> api.Effect:
        changes = [
            api.Change("c1", engine, "logprobs_mode", "raw", "applied", 0.0, old="processed", new="raw")
            for engine in engines
        ]
        marks = {engine: SwitchMark(LIFE, epoch) for engine in engines}
        present = {engine: (self.lives[engine], self.epochs[engine]) for engine in self.engines}
        return effect(changes, marks, self.steps, self.samples, present)


def row(found: api.Effect, figure: str) -> api.EffectRow:
    return next(row for row in found.rows if row.figure == figure)


def moved(found: api.Effect) -> dict[str, str]:
    return {row.figure: row.verdict for row in found.rows if row.verdict in ("up", "down")}


SHIFTS = {"gap": 0.02, "ratio": 0.05, "clip": -0.03, SPEED: -200.0, "latency": 0.5}
SIGNS = {"gap": "up", "ratio": "up", "clip": "down", SPEED: "down", "latency": "up"}


def test_a_fleet_switch_has_levels_before_and_after() -> None:
    run = Run().go(20).switch("e0", "e1").go(20, {"e0": SHIFTS, "e1": SHIFTS})
    found = run.effect("e0", "e1")
    assert {figure: moved(found).get(figure) for figure in SHIFTS} == SIGNS
    assert (found.engines, found.against) == (["e0", "e1"], [])
    assert (found.first_step, found.last_step, found.mixed) == (0, 40, 1)
    assert found.ended == ""
    for figure, shift in SHIFTS.items():
        told = row(found, figure)
        assert told.own is not None
        assert told.against is None
        assert told.own.low <= shift <= told.own.high
        assert told.own.after - told.own.before == pytest.approx(told.own.difference)
        assert told.own.before == pytest.approx(NORMAL.get(figure, (1000.0, 0))[0], rel=0.15)
        assert (told.before, told.after) == (20, 20)
    assert (row(found, "gap").samples_before, row(found, "gap").samples) == (20 * 800, "tokens")


def test_a_change_of_all_engines_is_no_effect_of_a_canary() -> None:
    shared = {"e0": {"gap": 0.05}, "e1": {"gap": 0.05, "ratio": 0.04}}
    found = Run().go(20).switch("e1").go(20, shared).effect("e1")
    assert found.against == ["e0"]
    gap, ratio = row(found, "gap"), row(found, "ratio")
    assert gap.own is not None
    assert gap.against is not None
    assert gap.own.low > 0
    assert gap.against.low < 0 < gap.against.high
    assert gap.verdict != "up"
    assert ratio.verdict == "up"


def test_an_engine_switched_by_the_same_command_is_no_control() -> None:
    run = Run(engines=("e0", "e1", "e2")).go(10)
    run.switch("e1", "e2").go(10, {"e1": {"ratio": 0.05}})
    assert run.effect("e1").against == ["e0"]


def test_a_control_engine_switched_earlier_or_later_is_compared_within_its_own_epoch() -> None:
    run = Run(engines=("e0", "e1", "e2")).go(8).switch("e0").go(10, {"e0": {"ratio": 0.3}})
    run.switch("e1").go(10, {"e0": {"ratio": 0.3}, "e1": {"ratio": 0.05}})
    run.switch("e2").go(10, {"e0": {"ratio": 0.3}, "e1": {"ratio": 0.05}, "e2": {"ratio": 0.3}})
    found = run.effect("e1")
    assert found.against == ["e0", "e2"]
    ratio = row(found, "ratio")
    assert ratio.against is not None
    assert ratio.against.low <= 0.05 <= ratio.against.high
    assert ratio.against.high - ratio.against.low < 0.02


def test_the_window_ends_at_the_next_switch() -> None:
    run = Run().go(12).switch("e0", "e1").go(9).switch("e0", "e1").go(30, {"e0": SHIFTS, "e1": SHIFTS})
    found = run.effect("e0", "e1")
    assert found.ended == "engine e0 was switched again"
    assert found.last_step == 12 + 9
    assert not {"gap", "ratio", "clip"} & set(moved(found))
    later = run.effect("e0", "e1", epoch=2)
    assert (later.first_step, later.ended) == (13, "")
    assert {"gap", "ratio", "clip"} <= set(moved(later))


def test_a_restarted_engine_ends_the_window() -> None:
    run = Run().go(12).switch("e0").go(8)
    run.lives["e0"], run.epochs["e0"] = "another", 0
    found = run.go(20, {"e0": SHIFTS}).effect("e0")
    assert found.ended == "engine e0 restarted"
    assert row(found, "gap").after == 8
    assert "gap" not in moved(found)


def test_at_most_a_window_of_steps_is_used() -> None:
    found = Run().go(WINDOW + 30).switch("e0", "e1").go(WINDOW + 30).effect("e0", "e1")
    assert (found.first_step, found.last_step) == (30, 30 + 2 * WINDOW)
    assert (row(found, "gap").before, row(found, "gap").after) == (WINDOW, WINDOW)


@pytest.mark.parametrize("after", [0, 1, MIN_SIDE - 1])
def test_too_few_steps_after_are_not_yet(after: int) -> None:
    told = row(Run().go(20).switch("e0", "e1").go(after).effect("e0", "e1"), "ratio")
    assert told.verdict == "not_yet"
    assert told.more == MIN_SIDE - after
    assert told.own is None


def test_too_few_steps_before_stay_inconclusive() -> None:
    told = row(Run().go(MIN_SIDE - 1).switch("e0", "e1").go(20).effect("e0", "e1"), "ratio")
    assert (told.verdict, told.more) == ("unclear", None)
    assert "before" in told.reason
    told = row(Run().switch("e0", "e1", mixed=False).go(20).effect("e0", "e1"), "ratio")
    assert told.verdict == "unknown"


def test_a_noisy_figure_is_not_yet_and_the_requested_steps_suffice() -> None:
    asked = enough = 0
    for seed in range(20):
        run = Run(seed, noise={"ratio": 0.012}).go(WINDOW).switch("e0").go(8)
        told = row(run.effect("e0"), "ratio")
        if told.verdict != "not_yet" or told.more is None:
            continue
        asked += 1
        assert 1 <= told.more <= WINDOW - 8
        run.go(told.more)
        enough += row(run.effect("e0"), "ratio").verdict in ("none", "up", "down")
    assert asked >= 5
    assert enough >= 0.5 * asked  # the noise itself is known only so well


def test_no_steps_are_requested_if_a_whole_window_would_not_suffice() -> None:
    run = Run(1, noise={"ratio": 0.2}).go(WINDOW).switch("e0").go(20)
    told = row(run.effect("e0"), "ratio")
    assert (told.verdict, told.more) == ("unclear", None)
    assert "too noisy" in told.reason


@pytest.mark.parametrize(
    ("shift", "word", "touched", "untouched"),
    [
        ({"lag": 1.0}, "policy lag", {"gap", "k3", "clip"}, {"ratio", "entropy", SPEED}),
        ({"prompt": 20.0}, "prompt length", {"gap", "ratio", SPEED}, set()),
        ({"temperature": -0.3}, "temperature", {"gap", "ratio", "entropy"}, set()),
    ],
)
@pytest.mark.parametrize("canary", [False, True])
def test_another_change_at_the_switch_confounds_it(
    shift: dict[str, float], word: str, touched: set[str], untouched: set[str], canary: bool
) -> None:
    engines = ("e1",) if canary else ("e0", "e1")
    run = Run().go(20).switch(*engines).go(20, dict.fromkeys(engines, SHIFTS | shift))
    found = run.effect(*engines)
    assert word in "".join(found.confounds)
    verdicts = {row.figure: row.verdict for row in found.rows}
    assert {verdicts[figure] for figure in touched} == {"confounded"}
    assert "confounded" not in {verdicts[figure] for figure in untouched}
    assert word in row(found, "gap").reason


def test_a_lag_that_grows_on_all_engines_does_not_confound_a_canary() -> None:
    both = {"e0": {"lag": 1.0}, "e1": {"lag": 1.0, "ratio": 0.05}}
    found = Run().go(20).switch("e1").go(20, both).effect("e1")
    assert found.confounds == []
    assert row(found, "ratio").verdict == "up"


def test_a_figure_without_observations_is_unknown() -> None:
    run = Run().go(20).switch("e0").go(20)
    for step in run.steps:
        for cell in step.cells.values():
            cell[epoch_sums.ROW["entropy"]] = 0.0
    told = row(run.effect("e0"), "entropy")
    assert (told.own, told.against, told.verdict) == (None, None, "unknown")
    assert "before" in told.reason


def test_a_command_before_the_first_step_has_no_numbers() -> None:
    found = Run().effect("e0", epoch=0)
    assert {row.verdict for row in found.rows} == {"unknown"}
    assert found.first_step is None
    assert "no step on either side" in "\n".join(effect_text.lines(found))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1e3]), data=st.data())
def test_neither_the_order_of_engines_nor_the_unit_matters(seed: int, scale: float, data: st.DataObject) -> None:
    names = ("e0", "e1", "e2", "e3")
    run = Run(seed, names).go(9).switch("e1", "e3").go(9, {"e1": SHIFTS, "e3": SHIFTS})
    base = run.effect("e1", "e3")
    turned = data.draw(st.permutations(names))
    for n, step in enumerate(run.steps):
        order = sorted(step.cells, key=lambda place: turned.index(place.engine))
        scaled = {place: step.cells[place].copy() for place in order}
        for cell in scaled.values():
            cell[epoch_sums.ROW["entropy"], MOMENT.s] *= scale
        run.steps[n] = StepCells(step.step, step.closed, scaled)
    run.samples = {engine: run.samples[engine] for engine in turned}
    other = run.effect("e3", "e1")
    for before, after in zip(base.rows, other.rows, strict=True):
        factor = scale if before.figure == "entropy" else 1.0
        for one, two in ((before.own, after.own), (before.against, after.against)):
            assert one is not None
            assert two is not None
            assert (two.difference, two.low, two.high) == pytest.approx(
                (factor * one.difference, factor * one.low, factor * one.high), rel=1e-3, abs=1e-6 * factor
            )
    assert {row.verdict for row in base.rows if row.figure != "entropy"} == {
        row.verdict for row in other.rows if row.figure != "entropy"
    }


def test_no_number_is_ever_nan() -> None:
    for run in (Run().go(7).switch("e0").go(7), Run().go(3).switch("e0"), Run()):
        for step in run.steps:
            for cell in step.cells.values():
                cell[:, :3] *= np.array([1.0, 0.0, 0.0]) if step.step % 3 == 0 else 1.0
        _check(effect_text.as_json(run.effect("e0")))


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)
    elif isinstance(value, float):
        assert math.isfinite(value)


def test_every_figure_has_a_line_and_a_verdict() -> None:
    found = Run().go(20).switch("e1").go(20, {"e1": SHIFTS | {"lag": 1.0}}).effect("e1")
    text = "\n".join(effect_text.lines(found))
    for figure in FIGURES:
        assert figure.title in text
    assert "logprobs_mode processed → raw on e1" in text
    assert "compared with e0" in text
    assert "confounder: policy lag changed by +" in text
    assert text.count("against e0") == len(FIGURES)
    assert "20/20 steps, 8000/8000 tokens" in text
    short = "\n".join(effect_text.lines(Run().go(20).switch("e1").go(2).effect("e1")))
    assert "not yet: about 3 more steps" in short
    assert "not yet: about 15 more seconds" in short


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_a_narrow_table_keeps_the_most_important_columns(width: int) -> None:
    found = Run().go(20).switch("e1").go(20, {"e1": SHIFTS}).effect("e1")
    table = effect_text.lines(found, width)[4:-2]
    assert max(map(len, table)) <= width
    assert len(table) == 1 + 2 * len(FIGURES)
    if width >= 80:
        assert "difference" in table[0]
        assert "verdict" in table[0]
        assert sum(line.endswith(" up") for line in table) == list(moved(found).values()).count("up")
