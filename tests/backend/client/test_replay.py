"""Replay, recording and export of a stored run: bit-identical to the live run."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.client.replay import MAX_IDLE_S, SAMPLE, Replay
from rltop.backend.exporters.kinds import SUMMARIES
from rltop.backend.exporters.recording import record
from rltop.backend.exporters.tables import KINDS, ExportError, export
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.row_mapping import SampleRow, sample_row
from rltop.backend.store.schema import StoreError
from rltop.backend.store.write import Writer
from rltop.backend.text import status
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.app import RltopApp
from rltop.tui.cli import main as cli
from tests.backend.hub.test_hub_process import collector, see
from tests.backend.hub.test_steps import World
from tests.support import pictures, stored
from tests.support.harness import ended
from tests.support.hub_messages import rollouts, sequences
from tests.support.receiver import run_directory
from tests.support.screens import screen_text, settle
from tests.support.store_load import start_hub
from tests.support.stored import bits

SECRET = 987_654_321
TEXT = "what the model wrote"
"""Unique in the store: a token id, and a marker next to it."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


def rltop(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def sampled(directory: Path, steps: int = 3) -> Path:
    """A store with sequences and tokens."""
    writer = Writer(directory / NAME, "run", "h", pictures.START)
    for number, frame in enumerate(stored.frames(steps)):
        body = msgspec.msgpack.encode(
            {"ids": SECRET.to_bytes(4, "little") * 500, "rollout": b"\0\0\0\xbf", "engine": "e0"}
        )
        kept = [SampleRow(number, "worst", "e0", 500, 0.5, body)]
        kept += [
            SampleRow(
                number,
                "abs_diff",
                "e0",
                500,
                float((number * 37 + place * 11) % 101),
                msgspec.msgpack.encode({"id": place, "text": TEXT}),
            )
            for place in range(32)
        ]
        writer.write([frame], [[("sample", sample_row(one)) for one in kept]])
    writer.close()
    return directory / NAME


# --- replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_keeps_the_runs_pace_and_ends_with_its_snapshot(tmp_path: Path) -> None:
    made = list(stored.frames(40, every_s=2.0))
    clock = Clock()
    replay = Replay(Reader(stored.store(tmp_path, made)), speed=4.0, clock=clock)
    assert replay.state == "replay"
    assert replay.poll()
    assert list(replay.view.steps) == [0]
    clock.now += 1.1  # 4.4 s of the run
    replay.poll()
    assert list(replay.view.steps) == [0, 1, 2]
    assert not replay.poll()
    clock.now += 100.0
    replay.poll()
    assert replay.ended
    assert "step 39 of 39, ended" in replay.progress
    shown = stored.live(made)
    assert bits([replay.view.steps, replay.view.events, replay.view.changes, replay.view.counters]) == bits(
        [shown.steps, shown.events, shown.changes, shown.counters]
    )
    replay.ask(api.AskSet("q", "prefix_caching", "off"))
    assert "replay" in str(replay.answers["q"].error)
    replay.close()


def test_a_replay_starts_at_a_step_or_at_the_end(tmp_path: Path) -> None:
    made = list(stored.frames(40))
    path = stored.store(tmp_path, made)
    replay = Replay(Reader(path), from_step=17)
    assert list(replay.view.steps) == list(range(17))
    replay.poll()
    assert max(replay.view.steps) == 17
    replay.close()
    ended = Replay(Reader(path), speed=math.inf)
    assert ended.ended
    assert bits(ended.view.steps) == bits(stored.live(made).steps)
    ended.close()
    with pytest.raises(ValueError, match="no step 40"), Reader(path) as reader:
        Replay(reader, from_step=40)


def test_long_silences_are_shortened_and_clock_resets_are_followed(tmp_path: Path) -> None:
    times = [0.0, 1.0, 86_400.0, 500.0, 501.0]
    made = [
        api.Frame("h", n + 1, pictures.START + at, steps=[stored.step(n)]) for n, at in enumerate(times)
    ]  # fmt: skip
    clock = Clock()
    replay = Replay(Reader(stored.store(tmp_path, made)), clock=clock)
    waited = []
    for number in range(len(times)):
        start = clock.now
        while number not in replay.view.steps:
            replay.poll()
            clock.now += 0.25
        waited.append(clock.now - start)
    assert max(waited) <= MAX_IDLE_S + 1.0
    replay.close()


async def test_every_view_shows_a_replay(tmp_path: Path) -> None:
    replay = Replay(Reader(stored.store(tmp_path, stored.frames(40))), speed=math.inf)
    app = RltopApp(replay, replay.view.run, notice=lambda: replay.progress)
    async with app.run_test(size=(120, 36)) as pilot:
        await settle(app, pilot)
        assert "replay  step 39 of 39, ended" in screen_text(app)
        for key in ("2", "1"):
            await pilot.press(key)
            await settle(app, pilot)
            assert "reconnecting" not in screen_text(app)
    replay.close()


def test_a_replay_is_bit_identical_to_the_live_hub(rundir: RunDir, tmp_path: Path) -> None:
    hub = start_hub(rundir)
    try:
        with Client(rundir) as client, collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as e0:
            for number in range(3):
                world = World(number)
                written = [one for one in world.written if one.engine == "e0"]
                e0.send(*rollouts(written))
                rows, arrays = sequences(world.trained, policy_version=world.policy)
                trainer.send(msgspec.structs.replace(rows, step=number), arrays)
                trainer.send(wire.StepClosed(number, 0, 1, number, {"loss": 1 / 3, "grad_norm": math.nan}))
            see(client, lambda v: 2 in v.steps)
            trainer.sender.close(5)
            shown = see(client, lambda v: v.trainer.health == "gone" and "e0" in v.engines)
            live = status.as_json(shown)
            assert record(rundir.path, tmp_path / "run.rltop") > 0  # while the run is live
        hub.terminate()
        assert ended(hub) == 0
    finally:
        hub.kill()
        hub.wait()
    kept = stored.picture(rundir.path)
    for part in ("steps", "changes", "trainer"):
        assert bits(getattr(kept, part)) == bits(getattr(shown, part)), part
    for place in (str(rundir.path), str(tmp_path / "run.rltop")):
        again = rltop("replay", place, "--json")
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout)["steps"] == json.loads(json.dumps(live))["steps"]
    assert [path.name for path in rundir.path.glob("store*")] == [NAME]  # no leftovers


# --- record ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.rltop", "run.rltop.gz"])
def test_a_recording_has_no_tokens_unless_requested(tmp_path: Path, name: str) -> None:
    source = sampled(tmp_path)
    plain, full = tmp_path / f"plain-{name}", tmp_path / f"full-{name}"
    for to, with_text in ((plain, False), (full, True)):
        record(source, to, with_text=with_text)
        assert bits(stored.picture(to).steps) == bits(stored.picture(source).steps)
    with Reader(plain) as reader:
        assert reader.samples("worst", 0, 2) == []
    with Reader(full) as reader:
        assert len(reader.samples("worst", 0, 2)) == 3
    content = gzip.decompress(plain.read_bytes()) if name.endswith(".gz") else plain.read_bytes()
    assert TEXT.encode() in source.read_bytes()
    assert TEXT.encode() not in content  # not in free pages either
    with pytest.raises(FileExistsError):
        record(source, plain)
    record(source, plain, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, plain.name, full.name}


def test_invalid_recordings_and_replays_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing was recorded"):
        record(tmp_path / "nothing", tmp_path / "to")
    stored.store(tmp_path, stored.frames(2))
    with pytest.raises(OSError, match="nowhere"):
        record(tmp_path, tmp_path / "nowhere" / "to")
    missing = rltop("replay", str(tmp_path / "nothing"))
    assert (missing.exit_code, "no run named" in missing.stderr) == (1, True)
    assert rltop("replay").exit_code == 2
    both = rltop("record", str(tmp_path), "--to", str(tmp_path / NAME))
    assert "--force overwrites it" in both.stderr


# --- export ---------------------------------------------------------------------------------------------------------


def test_exported_steps_are_bit_identical(tmp_path: Path) -> None:
    made = list(stored.frames(25))
    steps = list(stored.live(made).steps.values())
    with Reader(stored.store(tmp_path, made)) as reader:
        assert export(reader, "steps", tmp_path / "steps.csv") == 25
        assert export(reader, "steps", tmp_path / "steps.jsonl") == 25
        assert export(reader, "steps", tmp_path / "steps.parquet") == 25
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, step in zip(rows, steps, strict=True):
        for name, value in step.values.items():
            assert row[name] == ("" if value is None else repr(value))
        assert row["trainer/grad_norm"] == repr(step.trainer["grad_norm"])
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["kl_k3"] for line in lines] == [step.values["kl_k3"] for step in steps]
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "steps.parquet").to_pylist()
    assert bits([row["kl_k3"] for row in table]) == bits([step.values["kl_k3"] for step in steps])
    assert bits([row["trainer/grad_norm"] for row in table]) == bits([step.trainer["grad_norm"] for step in steps])


@pytest.mark.parametrize("end", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("what", SUMMARIES)
def test_everything_is_exported_in_every_format(tmp_path: Path, what: str, end: str) -> None:
    if end == ".parquet":
        pytest.importorskip("pyarrow")
    sampled(tmp_path)
    to = tmp_path / f"out{end}"
    done = rltop("export", str(tmp_path), "--what", what, "--to", str(to))
    assert done.exit_code == 0, done.output
    assert f"{to}: " in done.stdout
    assert to.stat().st_size > 50
    again = rltop("export", str(tmp_path), "--what", what, "--to", str(to))
    assert (again.exit_code, "--force" in again.stderr) == (1, True)


def test_stored_sequences_are_readable_in_an_export(tmp_path: Path) -> None:
    with Reader(sampled(tmp_path)) as reader:
        export(reader, "sequences", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    body = json.loads(next(row for row in rows if row["kind"] == "worst")["body"])
    assert (body["ids"][:2], body["rollout"], body["engine"]) == ([SECRET, SECRET], [-0.5], "e0")


def test_a_failed_export_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with Reader(stored.store(tmp_path, stored.frames(2))) as reader:
        with pytest.raises(ExportError, match="no sequences are stored"):
            export(reader, "sequences", tmp_path / "out.csv")
        with pytest.raises(ExportError, match=r"\.csv, \.jsonl, \.parquet"):
            export(reader, "steps", tmp_path / "out.xlsx")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert [kind.name for kind in KINDS] == list(SUMMARIES)


def test_the_worst_tokens_of_a_range_of_steps(tmp_path: Path) -> None:
    sampled(tmp_path, steps=30)
    with sqlite3.connect(tmp_path / NAME) as connection:
        every = connection.execute(
            "SELECT value FROM sample WHERE kind = 'abs_diff' AND step BETWEEN 5 AND 20"
        ).fetchall()
    connection.close()
    with Reader(tmp_path) as reader:
        found = reader.samples("abs_diff", 5, 20)
    assert [row["value"] for row in found] == sorted((value for (value,) in every), reverse=True)[:20]
    assert all("id" in row["body"] for row in found)


# --- the recorded run that comes along ------------------------------------------------------------------------------


def test_the_sample_is_a_real_run_with_switches_and_a_fault() -> None:
    assert SAMPLE.stat().st_size < 3_000_000
    with Reader(SAMPLE) as reader:
        picture = reader.snapshot()
        hosts = {engine.vllm_version for engine in picture.engines.values()}
    assert hosts == {"0.32.0"}
    assert list(picture.steps) == list(range(len(picture.steps)))
    assert len(picture.steps) >= 40
    switches = [change for change in picture.changes.values() if change.state == "applied"]
    assert {change.flag for change in switches} >= {"prefix_caching", "async_scheduling", "logprobs_mode"}
    assert {change.lost_requests for change in switches} == {0}
    raw = next(c.step for c in switches if (c.flag, c.new) == ("logprobs_mode", "raw"))
    back = next(c.step for c in switches if (c.flag, c.new) == ("logprobs_mode", "processed"))
    assert raw is not None
    assert back is not None
    gap = {number: step.values["backend_abs_diff_mean"] or 0.0 for number, step in picture.steps.items()}
    assert max(gap[number] for number in range(raw)) < 1e-5  # correct rollout logprobs
    assert min(gap[number] for number in range(raw + 4, back)) > 1e-3  # wrong rollout logprobs
    assert max(gap[number] for number in range(back + 4, 60)) < 1e-5
    assert rltop("replay", "--sample", "--json").exit_code == 0


def test_the_store_answers_questions_about_samples_like_the_hub(rundir: RunDir) -> None:
    hub = start_hub(rundir)
    live: dict[tuple[str, str | None], bytes] = {}
    questions = [(kind, engine) for kind in ("sample", "worst", "abs_diff", "k3") for engine in (None, "e0")]
    try:
        with Client(rundir) as client, collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as e0:
            world = World(5)
            e0.send(*rollouts([one for one in world.written if one.engine == "e0"]))
            trainer.send(*sequences(world.trained, policy_version=world.policy))
            trainer.send(wire.StepClosed(0, 0, 1, 1))
            see(client, lambda v: 0 in v.steps)
            for kind, engine in questions:
                found = client.samples(api.AskSamples(api.new_id(), 0, kind, engine))
                live[kind, engine] = bits([found.sequences, found.tokens, found.of_sequences, found.of_tokens])
                assert found.sequences or found.tokens
            shape = bits(client._answer(api.AskMismatch("m", 0, 0)).mismatch)
        hub.terminate()
        assert ended(hub) == 0
    finally:
        hub.kill()
        hub.wait()
    replay = Replay(Reader(rundir.path), speed=math.inf)
    for kind, engine in questions:
        replay.ask(api.AskSamples("q", None, kind, engine))
        again = replay.answers["q"].samples
        assert again is not None
        assert bits([again.sequences, again.tokens, again.of_sequences, again.of_tokens]) == live[kind, engine], kind
    replay.ask(api.AskMismatch("q", 0, None))
    assert bits(replay.answers["q"].mismatch) == shape
    replay.ask(api.AskSamples("q", 7, "worst"))
    assert "no sample of step 7 is stored" in str(replay.answers["q"].error)
    replay.close()
