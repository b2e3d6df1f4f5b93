"""Cells: what is kept of a step per engine and flag epoch, against sums made one token at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import FIGURES, Cell, Cells, EpochKey
from rltop.backend.join.batch import Batch
from rltop.backend.join.index import RolloutIndex
from tests.support.hub_messages import Trained, Written, rollouts, sequences


@dataclass
class Plain:
    """Per place and figure: (n, s) of every sequence."""

    found: dict[tuple[EpochKey, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def cell(self, place: EpochKey) -> Cell:
        rows = []
        for figure in FIGURES:
            pairs = [(n, s) for n, s in self.found[place, figure] if n]
            moments = [(1, n, s, n * n, s * s, n * s) for n, s in pairs]
            rows.append([math.fsum(column) for column in zip(*moments, strict=True)] if moments else [0.0] * 6)
        return np.array(rows)


def step(seed: int, rows: int) -> tuple[dict[EpochKey, Cell], Plain]:
    rng = np.random.default_rng(seed)
    index, plain, trained = RolloutIndex(), Plain(), []
    for number in range(rows):
        engine, life, size = f"e{number % 2}", f"life-{number % 3}", int(rng.integers(1, 9))
        rollout = [float(np.float32(x)) for x in -rng.exponential(1, size)]
        trainer = [float(np.float32(x + rng.normal(0, 0.3))) for x in rollout]
        if rng.random() < 0.2:
            trainer[0] = math.nan
        entropy = [float(np.float32(x)) for x in rng.exponential(1, size)]
        gain = float(rng.choice([-1.0, 0.0, 1.0]))
        cut = int(rng.integers(0, size + 1))
        epochs = [4 if at < cut else 5 for at in range(size)]
        times = (10.0, 11.0, 11.0 + float(rng.random()))
        aborted = bool(rng.random() < 0.2)
        tokens = [number, *range(size - 1)]
        written = Written(
            [7, number], tokens, rollout, [3] * size, engine, epochs=epochs, times=times,
            finish_reason="abort" if aborted else "stop",
        )  # fmt: skip
        if number % 5 != 4:
            index.add(*rollouts([written]), life)
        trained.append(
            Trained(tokens, [1] * size, rollout, trainer, [7, number], 0.5 * number,
                    {"entropy": entropy, "advantages": [gain] * size})
        )  # fmt: skip
        if number % 5 == 4:
            continue
        for epoch in set(epochs):
            place = EpochKey(engine, life, epoch)
            own = [at for at in range(size) if epochs[at] == epoch]
            valid = [at for at in own if math.isfinite(trainer[at])]
            d = {at: trainer[at] - rollout[at] for at in valid}
            clip = {at: float((gain < 0 and d[at] < math.log(0.8)) or (gain > 0 and d[at] > math.log(1.2))) for at in d}

            def note(figure: str, values: list[float], place: EpochKey = place) -> None:
                plain.found[place, figure].append((len(values), math.fsum(values)))

            note("gap", [abs(x) for x in d.values()])
            note("k3", [math.exp(x) - 1 - x for x in d.values()])
            note("ratio", [math.exp(x) for x in d.values()])
            note("clip", list(clip.values()))
            note("entropy", [entropy[at] for at in own])
            note("lag", [9.0 - 3.0 for _ in own])
            if len(set(epochs)) == 1:
                note("reward", [0.5 * number])
                note("prompt", [2.0])
                note("latency", [] if aborted else [times[2] - times[0]])
                note("token_time", [] if aborted else [(times[2] - times[1]) / size])
    batch = Batch(*sequences(trained, policy_version=9, clip_low=0.8, clip_high=1.2))
    batch.join(index, strict=True)
    return epoch_sums.measure_cells(batch), plain


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 24))
def test_a_cell_holds_the_sums_of_its_engine_and_flag_epoch(seed: int, rows: int) -> None:
    found, plain = step(seed, rows)
    assert set(found) == {place for place, _ in plain.found}
    for place, cell in found.items():
        assert cell == pytest.approx(plain.cell(place), rel=1e-5, abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(-5, 5)), min_size=2, max_size=20))
def test_the_variance_of_a_mean_is_clustered_by_sequence(pairs: list[tuple[int, float]]) -> None:
    cell = epoch_sums.empty()
    cell[0] = np.sum([(1, n, s, n * n, s * s, n * s) for n, s in pairs], axis=0)
    n = np.array([n for n, _ in pairs], float)
    s = np.array([s for _, s in pairs])
    centred = s - n * s.sum() / n.sum()
    expected = (centred**2).sum() / n.sum() ** 2 * len(pairs) / (len(pairs) - 1)
    assert epoch_sums.variance(cell, FIGURES[0]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_an_empty_cell_has_no_mean_and_one_sequence_no_variance() -> None:
    cell = epoch_sums.empty()
    assert epoch_sums.mean(cell, "gap") is None
    cell[0] = (1, 2, 3, 4, 9, 6)
    assert epoch_sums.mean(cell, "gap") == 1.5
    assert epoch_sums.variance(cell, "gap") is None


def test_the_oldest_steps_are_dropped_beyond_the_byte_limit() -> None:
    kept = Cells(total_bytes=7 * epoch_sums.CELL_BYTES, steps=0)
    for number in range(4):
        kept.put(number, float(number), {EpochKey(engine, "a", 0): epoch_sums.empty() for engine in ("e0", "e1")})
    assert [step.step for step in kept.steps()] == [2, 3]
    kept.put(2, 9.0, {EpochKey("e0", "b", 0): epoch_sums.empty()})
    assert [(step.step, len(step.cells)) for step in kept.steps()] == [(3, 2), (2, 1)]
