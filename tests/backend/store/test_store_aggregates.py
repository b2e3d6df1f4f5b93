"""What effects and attribution are reckoned from outlives its hub, and a replay answers from it as the hub would."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from rltop.backend import api
from rltop.backend.client.replay import Replay
from rltop.backend.exporters.recording import record
from rltop.backend.store import aggregates, schema
from rltop.backend.store.aggregates import StoredAggregates
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.retention import Limits, Retention
from rltop.backend.store.store import Store
from rltop.backend.store.write import Writer
from rltop.backend.summary.dimensions import STRATA
from rltop.tui.cli import main as cli
from tests.backend.effects.test_hub_effect import World
from tests.support import pictures
from tests.support.hub_core import Hub
from tests.support.hub_messages import Source
from tests.support.stored import bits


class Stored(World):
    """A world whose frames are stored as a hub's are; ``frames`` says how many by each step."""

    def __init__(self, directory: Path) -> None:
        self.writer = Writer(directory / NAME, "run", "hub-1", pictures.START)
        super().__init__()

    def states(self) -> None:
        super().states()
        for frame in self.hub.frames:
            self.writer.write([frame], [list(aggregates.aggregate_rows(self.hub.state.frames.aggregates(frame)))])
        self.hub.frames.clear()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path)
    made.go(12)
    made.switch("e1")
    made.go(12)
    made.hub.later(0.1)
    made.states()
    yield made
    made.writer.abandon()


def attribution(hub: Hub, steps: int) -> bytes:
    return bits(hub.ask(api.AskAttribution("a", steps))[0].attribution)


def loaded(directory: Path) -> StoredAggregates:
    with Reader(directory) as reader:
        return aggregates.load(reader)


def test_the_next_hub_estimates_the_effect_of_an_earlier_switch(world: Stored, tmp_path: Path) -> None:
    before = world.effect()
    past = Store(tmp_path, "run", "hub-2", world.hub.now)
    picture, found = past.past(), past.aggregates()
    assert picture is not None
    world.hub = hub = Hub("hub-2", past=picture, stored=found)
    world.states()
    hub.later(0.1)
    after = world.effect()
    assert bits([row for row in after.rows if row.figure != "speed"]) == bits(
        [row for row in before.rows if row.figure != "speed"]
    )
    speed, then = (next(row for row in of.rows if row.figure == "speed") for of in (after, before))
    assert (speed.verdict, speed.before) == (then.verdict, then.before)
    assert then.after - speed.after <= 1  # the stretch of time that was under way
    world.go(3)
    assert world.effect().last_step == 26


def test_the_next_hub_has_the_attribution_of_earlier_steps(world: Stored, tmp_path: Path) -> None:
    then = attribution(world.hub, 20)
    hub = Hub("hub-2", past=world.hub.picture, stored=loaded(tmp_path))
    assert attribution(hub, 20) == then


def test_a_replay_answers_as_the_hub_would_have_at_that_step(world: Stored, tmp_path: Path) -> None:
    replay = Replay(Reader(tmp_path), speed=math.inf)
    replay.ask(api.AskAttribution("a", 20))
    assert bits(replay.answers["a"].attribution) == attribution(world.hub, 20)
    replay.ask(api.AskEffect("e"))
    found = replay.answers["e"].effect
    assert found is not None
    live = world.effect()
    assert (found.command, found.first_step, found.last_step, found.ended) == (live.command, 0, 23, "")
    assert bits([row for row in found.rows if row.figure != "speed"]) == bits(
        [row for row in live.rows if row.figure != "speed"]
    )
    replay.close()

    early = Replay(Reader(tmp_path), from_step=18)
    early.ask(api.AskEffect("e"))
    effect = early.answers["e"].effect
    assert effect is not None
    assert effect.last_step == 17
    early.ask(api.AskAttribution("a", 5))
    attributed = early.answers["a"].attribution
    assert attributed is not None
    assert attributed.steps == [13, 14, 15, 16, 17]
    early.close()

    first = Replay(Reader(tmp_path), from_step=0)
    for question in (api.AskEffect("e"), api.AskAttribution("a", 5)):
        first.ask(question)
    assert "no command has switched anything" in str(first.answers["e"].error)
    assert "no attribution data is stored" in str(first.answers["a"].error)
    first.close()


def test_sums_of_other_strata_are_skipped(world: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(loaded(tmp_path).parts) == 24
    monkeypatch.setattr(aggregates, "STRATA", STRATA + 1)
    assert loaded(tmp_path).parts == []


def test_a_repeated_step_is_loaded_as_it_was_last(world: Stored, tmp_path: Path) -> None:
    world.hub.sources["trainer/0"] = Source("trainer/0", "life-2")
    world.step = 20
    world.go(2)
    world.states()
    found = loaded(tmp_path)
    assert [step.step for step in found.steps] == [*range(20), 22, 23, 20, 21]
    assert [step for step, _ in found.parts][-4:] == [22, 23, 20, 21]
    assert attribution(Hub("hub-2", stored=found), 4) == attribution(world.hub, 4)


def test_old_sums_are_dropped_and_the_rest_can_be_read(world: Stored, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / NAME, isolation_level=None) as connection:
        count = {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("cell", "pace", "strata")}
        (size,) = connection.execute("SELECT avg(length(body)) + 60 FROM strata").fetchone()
        retention = Retention(connection, Limits(cells=10, paces=4, strata_bytes=int(8 * size)))
        for _ in range(40):
            retention.apply_some()
        left = {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in count}
    connection.close()
    assert (left["cell"], left["pace"]) == (10, 4)
    assert 6 <= left["strata"] <= 10
    assert all(left[table] < count[table] for table in count)
    found = loaded(tmp_path)
    assert [step.step for step in found.steps] == list(range(19, 24))
    assert set(found.marks) == set(loaded(tmp_path).marks)


def test_a_migrated_store_has_the_tables_of_a_new_one() -> None:
    def made(connection: sqlite3.Connection) -> set[str]:
        return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}

    def plain(statements: set[str]) -> set[str]:
        return {statement.replace('"', "") for statement in statements}

    old, new = (sqlite3.connect(":memory:", isolation_level=None) for _ in range(2))
    later = ("shape", "evidence", "strata", "cell", "mark", "pace", "alarm", "source", "taken")
    schema.prepare(old, tables=tuple(t for t in schema.TABLES if t.name not in later), version=1)
    schema.prepare(old)
    schema.prepare(new)
    assert plain(made(old)) == plain(made(new))
    old.close()
    new.close()


def test_a_part_is_read_back_bit_for_bit(world: Stored, tmp_path: Path) -> None:
    (step, of) = loaded(tmp_path).parts[-1]
    kept = (
        world.hub.state.frames.aggregates(
            api.Frame("", 0, 0.0, steps=[msgspec.structs.replace(world.hub.steps[23], step=step)])
        )
        .steps[0]
        .parts
    )
    assert of.keys() == kept.keys()
    for engine, part in of.items():
        then = kept[engine]
        assert part.old == then.old
        for ours, theirs in (
            (part.strata.rows, then.strata.rows), (part.strata.moments, then.strata.moments),
            (part.matched.moments, then.matched.moments), (part.lag_regression.sums, then.lag_regression.sums),
            (part.lag_regression.products, then.lag_regression.products), (part.groups.keys, then.groups.keys),
            (part.groups.moments, then.groups.moments), (part.groups.rewards, then.groups.rewards),
        ):  # fmt: skip
            assert ours.tobytes() == theirs.tobytes()


def test_the_command_line_reads_an_ended_run_and_a_file(world: Stored, tmp_path: Path) -> None:
    world.writer.close()
    assert record(tmp_path, tmp_path / "run.rltop") > 0
    live = world.effect()
    tmp_path.chmod(0o700)
    for place in (str(tmp_path), str(tmp_path / "run.rltop")):
        effect = CliRunner().invoke(cli.main, ["effect", "--run", place, "--json"])
        assert effect.exit_code == 0, effect.output
        found = json.loads(effect.stdout)
        assert (found["command"], found["last_step"]) == (live.command, live.last_step)
        attribution = CliRunner().invoke(cli.main, ["attribution", place, "--steps", "5", "--json"])
        assert attribution.exit_code == 0, attribution.output
        assert json.loads(attribution.stdout)["steps"] == [19, 20, 21, 22, 23]
    missing = CliRunner().invoke(cli.main, ["effect", "nothing", "--run", str(tmp_path)])
    assert (missing.exit_code, "no command 'nothing'" in missing.stderr) == (1, True)
