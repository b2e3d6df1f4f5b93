"""The gap by environment: means and intervals per name, bounded, as a hub, its store and a replay show them."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.client.replay import Replay
from rltop.backend.store import aggregates
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.write import Writer
from rltop.backend.summary.environments import MAX_ENVIRONMENTS, OTHER, Environments
from rltop.backend.summary.kernel import FIGURE, MOMENT, RUN
from rltop.collectors.contract import wire
from rltop.tui.views.gap_table import gap_rows
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences

ROWS = (("math", 0.1, 4), ("code", 0.3, 2), ("math", 0.2, 6), ("", 0.5, 1), ("code", -0.3, 2))
"""Environment, gap and tokens of each sequence."""


def trained(hub: Hub, step: int, rows: Sequence[tuple[str, float, int]] = ROWS) -> None:
    """A step with these sequences, from two engines, in two messages."""
    hub.engine("e0")
    hub.engine("e1")
    written = [
        Written([step, number, 7], [number + 3] * size, [-1.0 - at for at in range(size)], [0] * size, f"e{number % 2}")
        for number, (_, _, size) in enumerate(rows)
    ]
    for engine in ("e0", "e1"):
        hub.send(engine, *rollouts([one for one in written if one.engine == engine], engine))
    made = [
        Trained(one.tokens, [1] * len(one.tokens), one.logprobs, [x + gap for x in one.logprobs], one.prompt)
        for one, (_, gap, _) in zip(written, rows, strict=True)
    ]
    for part in (slice(2), slice(2, None)):
        names = [name for name, _, _ in rows[part]]
        hub.send("trainer/0", *sequences(made[part], step=step, environments=names))
    hub.send("trainer/0", wire.StepClosed(step, 0, 1, rows=len(rows)))
    hub.settle()
    hub.settle()


def by_environment(answer: api.Answer) -> dict[str, tuple[int, int, float]]:
    assert answer.attribution is not None
    return {
        one.label: (one.tokens, one.sequences, one.abs_diff.mean)
        for one in answer.attribution.strata
        if one.dimension == "environment"
    }


def assert_shown(attribution: api.Answer, mismatch: api.Answer, steps: int) -> None:
    """The figures of ``ROWS`` in so many steps, the environment with the most tokens first."""
    expected = {"math": (10, 2, (4 * 0.1 + 6 * 0.2) / 10), "code": (4, 2, 0.3), "unknown": (1, 1, 0.5)}
    found = by_environment(attribution)
    assert list(found) == list(expected)
    assert mismatch.mismatch is not None
    shown = {row.place: row for row in gap_rows(mismatch.mismatch) if row.is_environment}
    for name, (tokens, sequences_, size) in expected.items():
        assert found[name][:2] == (tokens * steps, sequences_ * steps)
        assert found[name][2] == pytest.approx(size, rel=1e-5)
        assert shown[name].tokens == tokens * steps
        assert shown[name].size("all") == pytest.approx(size, rel=1e-5)


def test_a_hub_shows_the_gap_by_environment() -> None:
    hub = Hub()
    for step in range(3):
        trained(hub, step)
    answers = [hub.ask(question)[0] for question in (api.AskAttribution("a", 3), api.AskMismatch("m"))]
    assert_shown(answers[0], answers[1], 3)


def test_a_run_without_environments_has_no_such_dimension() -> None:
    hub = Hub()
    hub.engine("e0")
    hub.send("trainer/0", *sequences([Trained([1, 2], [1, 1], [-1.0, -1.0], [-1.1, -1.1])]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, rows=1))
    hub.settle()
    hub.settle()
    mismatch = hub.ask(api.AskMismatch("m"))[0].mismatch
    assert mismatch is not None
    assert "environment" not in [profile.dimension for profile in mismatch.profiles]
    assert not by_environment(hub.ask(api.AskAttribution("a", 1))[0])


def stored(directory: Path) -> Path:
    hub = Hub()
    for step in range(2):
        trained(hub, step)
    writer = Writer(directory / NAME, "run", "hub-1", 1000.0)
    for frame in hub.frames:
        writer.write([frame], [list(aggregates.aggregate_rows(hub.state.frames.aggregates(frame)))])
    writer.close()
    return directory


def replayed(directory: Path) -> list[api.Answer]:
    with Reader(directory) as reader:
        replay = Replay(reader, speed=float("inf"))
        while not replay.ended:
            replay.poll()
        for question in (api.AskAttribution("a", 5), api.AskMismatch("m")):
            replay.ask(question)
        return [replay.answers["a"], replay.answers["m"]]


def test_a_store_keeps_the_gap_by_environment(tmp_path: Path) -> None:
    directory = stored(tmp_path)
    attribution, mismatch = replayed(directory)
    assert_shown(attribution, mismatch, 2)
    with Reader(directory) as reader:
        hub = Hub("hub-2", stored=aggregates.load(reader))
    assert by_environment(hub.ask(api.AskAttribution("a", 5))[0])["math"][:2] == (20, 4)


def test_a_store_of_the_version_before_is_read_without_environments(tmp_path: Path) -> None:
    directory = stored(tmp_path)
    connection = sqlite3.connect(directory / NAME)
    connection.execute("ALTER TABLE shape DROP COLUMN environments")
    connection.execute("PRAGMA user_version = 5")
    connection.commit()
    connection.close()
    _, mismatch = replayed(directory)
    assert mismatch.mismatch is not None
    assert mismatch.mismatch.tokens == 30
    assert [row.place for row in gap_rows(mismatch.mismatch)] == ["fleet", "e0", "e1"]


names = st.sampled_from(["", "unknown", OTHER, *(f"env-{number}" for number in range(60))])
sums = st.tuples(names, st.integers(0, 9), st.integers(-20, 20))


def of(rows: Sequence[tuple[str, int, int]]) -> Environments:
    columns = np.zeros((len(rows), len(RUN)))
    for column, (_, n, total) in zip(columns, rows, strict=True):
        column[RUN.n], column[RUN.d] = n, total if n else 0
    return Environments.of([name for name, _, _ in rows], columns)


@given(st.lists(sums, max_size=100), st.lists(sums, max_size=100))
def test_sums_add_up_and_their_number_is_bounded(
    first: list[tuple[str, int, int]], second: list[tuple[str, int, int]]
) -> None:
    both = of(first) + of(second)
    rows = [(name or "unknown", n, total) for name, n, total in first + second if n]
    assert len(both.moments) <= MAX_ENVIRONMENTS + 1
    for column, expected in ((MOMENT.n, sum(n for _, n, _ in rows)), (MOMENT.s, sum(total for _, _, total in rows))):
        assert math.fsum(own[FIGURE.d, column] for own in both.moments.values()) == expected
    if len({name for name, _, _ in rows} - {OTHER}) <= MAX_ENVIRONMENTS:
        for name, own in both.moments.items():
            mine = [(n, total) for other, n, total in rows if other == name]
            assert own[FIGURE.d].tolist() == [
                len(mine), sum(n for n, _ in mine), sum(s for _, s in mine), sum(n * n for n, _ in mine),
                sum(s * s for _, s in mine), sum(n * s for n, s in mine),
            ]  # fmt: skip
    counts = [own[FIGURE.d, MOMENT.n] for name, own in both.moments.items() if name != OTHER]
    assert counts == sorted(counts, reverse=True)
