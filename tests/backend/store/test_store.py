"""The store's file: what goes in comes out to the bit, other programs can read it, and a long run stays bounded."""

from __future__ import annotations

import gzip
import math
import shutil
import sqlite3
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.downsample import EXTREMES
from rltop.backend.metrics import BY_NAME
from rltop.backend.store import row_mapping as store_rows
from rltop.backend.store import schema as store_schema
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.retention import Limits
from rltop.backend.store.schema import StoreError
from rltop.backend.store.write import Writer
from rltop.backend.util.filesystems import NETWORK, is_network, kind_of
from tests.support import pictures, stored
from tests.support.stored import bits

NUMBER = st.none() | st.floats() | st.integers(-(2**63), 2**64 - 1).map(float)


@given(
    st.dictionaries(st.sampled_from(sorted(BY_NAME)), NUMBER),
    st.dictionaries(st.sampled_from(["loss", "lr", "naïve", "a b", 'x"y']), st.floats()),
    st.none() | st.integers(1 - 2**62, 2**62 - 1),
)
def test_a_step_is_read_back_bit_for_bit(
    values: dict[str, float | None], scalars: dict[str, float], version: int | None
) -> None:
    step = api.Step(3, 1.5, version, True, values, unjoined={"no rollout": 2}, trainer=scalars)
    row = store_rows.step_row(step, {name: f"trainer/{name}" for name in ("loss", "a b", 'x"y')})
    with sqlite3.connect(":memory:") as connection:
        kinds = ("REAL" if name in BY_NAME or name.startswith("trainer/") else "" for name in row)
        names = ", ".join(f"{store_schema.quoted(name)} {kind}" for name, kind in zip(row, kinds, strict=True))
        connection.execute(f"CREATE TABLE t ({names})")
        connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
        found = connection.execute("SELECT * FROM t").fetchone()
    connection.close()
    assert bits(store_rows.step_of(tuple(row), found, {})) == bits(step)


def test_the_snapshot_equals_the_viewers(tmp_path: Path) -> None:
    made = list(stored.frames(120))
    path = stored.store(tmp_path, made)
    shown, kept = stored.live(made), stored.picture(path)
    for part in ("steps", "events", "changes", "trainer", "counters", "run", "started"):
        assert bits(getattr(kept, part)) == bits(getattr(shown, part)), part
    assert bits(kept.engines) == bits(shown.engines)  # the last state of each is stored at the latest when it closes
    assert list(kept.steps) == list(shown.steps)
    assert list(kept.changes) == list(shown.changes)


def test_a_snapshot_of_any_frame_equals_the_viewers_then(tmp_path: Path) -> None:
    made = list(stored.frames(60))
    path = stored.store(tmp_path, made)
    for until in (1, 17, 59):
        then = stored.picture(path, until)
        shown = stored.live(made[:until])
        assert bits([then.steps, then.events, then.changes]) == bits([shown.steps, shown.events, shown.changes])


def test_the_frames_rebuild_the_same_snapshot(tmp_path: Path) -> None:
    made = list(stored.frames(50))
    path = stored.store(tmp_path, made)
    again = api.Snapshot("run", "", 0, pictures.START, pictures.START)
    with Reader(path) as reader:
        for frame in reader.frames():
            again.apply(frame)
    shown = stored.live(made)
    assert bits([again.steps, again.events, again.changes]) == bits([shown.steps, shown.events, shown.changes])
    assert bits([again.engines, again.trainer, again.counters]) == bits([shown.engines, shown.trainer, shown.counters])


def test_a_repeated_step_replaces_the_first(tmp_path: Path) -> None:
    first, again = stored.step(0), stored.step(0, seed=9)
    made = [api.Frame("h", 1, 1.0, steps=[first, stored.step(1)]), api.Frame("h", 2, 2.0, steps=[again])]
    kept = stored.picture(stored.store(tmp_path, made))
    assert bits(list(kept.steps.values())) == bits([stored.step(1), again])  # in order of arrival


def test_repeated_changes_of_old_commands_are_stored_once(tmp_path: Path) -> None:
    asked = pictures.change("e0", "prefix_caching", "off", "requested", command="c1")
    done = pictures.applied("e0", "prefix_caching", "off", command="c1")
    stored.store(tmp_path, [api.Frame("h1", n, float(n), changes=[c]) for n, c in ((1, asked), (2, done))], epoch="h1")
    path = stored.store(tmp_path, [api.Frame("h2", 1, 3.0, changes=[done])], epoch="h2")
    with Reader(path) as reader:
        assert reader.execute("SELECT state FROM change ORDER BY id").fetchall() == [("requested",), ("applied",)]
        assert bits(list(reader.snapshot().changes.values())) == bits([done])
        assert [life.epoch for life in reader.lives()] == ["h1", "h2"]


def test_engines_are_stored_once_a_second_and_at_once_when_they_change(tmp_path: Path) -> None:
    made = []
    for number in range(101):  # 10 s at 10 Hz
        flags = pictures.flags("on" if number < 55 else "off")
        shown = {"e0": pictures.engine("e0", step=number, flags=flags)}
        made.append(api.Frame("h", number + 1, pictures.START + number / 10, shown))
    with Reader(stored.store(tmp_path, made)) as reader:
        steps = [engine.step for engine in reader.engine_rows()]
        assert len(steps) in range(11, 15)
        assert {0, 55, 100} <= set(steps)
        assert reader.execute("SELECT count(*) FROM engine_facts").fetchone() == (2,)


def test_other_programs_find_every_metric_by_its_name(tmp_path: Path) -> None:
    path = stored.store(tmp_path, stored.frames(20))
    with sqlite3.connect(path) as connection:
        found = connection.execute('SELECT step, kl_k3, "trainer/lr" FROM step ORDER BY step').fetchall()
        flags = connection.execute("SELECT facts ->> '$.flags.prefix_caching[0]' FROM engine_facts").fetchall()
    connection.close()
    expected = [stored.step(number) for number in range(20)]
    assert found == [(s.step, s.values["kl_k3"], s.trainer["lr"]) for s in expected]
    assert set(flags) == {("on",)}


def test_the_newest_values_of_one_metric_are_read(tmp_path: Path) -> None:
    with Reader(stored.store(tmp_path, stored.frames(30))) as reader:
        newest = [(n, stored.step(n).values["entropy"]) for n in range(25, 30)]
        assert reader.series("entropy", last=5) == newest  # -0.0 is 0.0 in its column
        assert "trainer/grad_norm" in reader.metrics()
        with pytest.raises(KeyError):
            reader.series("step; DROP TABLE step")


def test_a_directory_is_copied_with_cp_also_after_a_kill(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    made = list(stored.frames(40))
    writer = Writer(run / NAME, "run", "h", pictures.START)
    writer.write(made)  # and then nothing more, as if killed: all of it may be in the log beside the file
    subprocess.run(["cp", "-r", str(run), str(tmp_path / "copy")], check=True)
    writer.abandon()
    assert bits(stored.picture(tmp_path / "copy").steps) == bits(stored.live(made).steps)


def test_a_store_is_read_from_gzip_and_from_a_read_only_directory(tmp_path: Path) -> None:
    path = stored.store(tmp_path, stored.frames(5))
    packed = tmp_path / "run.rltop.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert bits(stored.picture(packed).steps) == bits(stored.picture(path).steps)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000])
def test_a_file_that_is_not_a_store_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(StoreError, match=NAME):
        Reader(tmp_path)
    with pytest.raises(StoreError, match="nothing was recorded"):
        Reader(tmp_path / "elsewhere")


def test_another_programs_database_and_a_newer_store_are_left_alone(tmp_path: Path) -> None:
    for name, pragma in (("other", "user_version = 7"), ("newer", f"application_id = {store_schema.APPLICATION_ID}")):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute("CREATE TABLE t (x)")
            connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA user_version = 7")
        connection.close()
        before = (tmp_path / name).read_bytes()
        for opened in (lambda path: Writer(path, "run", "h", 0.0), Reader):
            with pytest.raises(StoreError, match="another program" if name == "other" else "newer rltop"):
                opened(tmp_path / name)
        with sqlite3.connect(tmp_path / name) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
        connection.close()
        assert len(before) > 0


def test_an_older_store_is_migrated_or_left_unchanged() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    old = (store_schema.StoreTable("step", "", (store_schema.StoreColumn("id", "INTEGER PRIMARY KEY", ""),)),)
    store_schema.prepare(connection, tables=old, version=1)
    connection.execute("INSERT INTO step VALUES (5)")
    broken = {1: ("ALTER TABLE step ADD COLUMN b", "ALTER TABLE nothing ADD COLUMN c")}
    with pytest.raises(sqlite3.OperationalError):
        store_schema.prepare(connection, migrations=broken, version=2)
    assert (store_schema.open_version(connection), store_schema.columns(connection, "step")) == (1, ["id"])
    moves = {1: ("ALTER TABLE step ADD COLUMN b",), 2: ("UPDATE step SET b = id + 1",)}
    store_schema.prepare(connection, migrations=moves, version=3)
    assert store_schema.open_version(connection) == 3
    assert connection.execute("SELECT * FROM step").fetchall() == [(5, 6)]
    connection.close()
    assert set(store_schema.MIGRATIONS) == set(range(1, store_schema.VERSION))


# --- long runs --------------------------------------------------------------------------------------------------


def plain(number: int, **figures: float) -> api.Step:
    values: dict[str, float | None] = {"kl_k3": 0.01, "reward_mean": number / 1e4, "entropy": 1.0, **figures}
    return api.Step(number, float(number), number, partial=False, values=values, engines={"e0": {"kl_k3": 0.0}})


def test_the_old_part_of_a_run_is_downsampled_and_keeps_its_extremes(tmp_path: Path) -> None:
    limits = Limits(steps=1000, coarse_steps=6000, step_engines=500, engines=200, events=50, frames=2000)
    spikes = {1234: 9.0, 1300: 8.0, 5000: 7.0}
    writer = Writer(tmp_path / NAME, "run", "h", 0.0, limits=limits)
    for start in range(0, 10_000, 500):
        steps = [
            plain(n, **({"kl_k3": spikes[n]} if n in spikes else {})) for n in range(start, start + 500)
        ]  # fmt: skip
        made = []
        for step in steps:
            engine = pictures.engine("e0", waiting=7000 if step.step == 77 else step.step % 5)
            event = pictures.event(step.step, "e", "warn" if step.step == 44 else "info")
            made.append(api.Frame("h", step.step + 1, step.closed, {"e0": engine}, steps=[step], events=[event]))
        writer.write(made)
        for _ in range(14):
            writer.maintain()
    for _ in range(100):
        writer.maintain()
    writer.close()
    with Reader(tmp_path) as reader:
        kept = {number for (number,) in reader.execute("SELECT step FROM step")}
        assert set(range(9000, 10_000)) <= kept
        assert set(spikes) - {1300} <= kept  # in a bucket of 4096 the greatest stays; 1300 was only its second
        assert {0, 4095} <= kept
        assert len(kept) < 1300
        assert len(kept & set(range(4096))) < 20
        (engines,) = reader.execute("SELECT count(*) FROM step_engine").fetchone()
        assert engines < 700
        (rows,) = reader.execute("SELECT count(*) FROM engine").fetchone()
        assert rows < 200 + 10_000 / 60 * 6
        assert reader.execute("SELECT max(waiting) FROM engine").fetchone() == (7000,)
        assert reader.execute("SELECT count(*) FROM event WHERE number = 44").fetchone() == (1,)
        assert reader.execute("SELECT count(*) FROM event").fetchone()[0] <= 52
        picture = reader.snapshot()
        assert picture.steps[1234].values["kl_k3"] == 9.0
        assert set(picture.steps) <= kept
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_snapshot_of_a_long_run_is_bounded_and_has_its_extremes(tmp_path: Path) -> None:
    made = (
        api.Frame("h", n + 1, float(n), steps=[plain(n, kl_k3=5.0 if n == 3000 else n % 7 / 100)])
        for n in range(20_000)
    )
    picture = stored.picture(stored.store(tmp_path, made))
    assert len(picture.steps) < 4000 + 16_000 / 256 * 10
    assert set(range(16_000, 20_000)) <= set(picture.steps)
    assert picture.steps[3000].values["kl_k3"] == 5.0
    assert list(picture.steps) == sorted(picture.steps)


def test_headline_metrics_exist() -> None:
    assert set(EXTREMES) <= set(BY_NAME)


# --- where it lies -------------------------------------------------------------------------------------------------

MOUNTS = """
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /home/a\\040b rw - nfs4 server:/export rw
41 22 0:36 / /mnt rw shared:2 master:1 - tmpfs tmpfs rw
42 41 0:37 / /mnt rw - fuse.sshfs host:/ rw
"""


@pytest.mark.parametrize(
    ("place", "kind"), [("/var", "ext4"), ("/home/a b/run", "nfs4"), ("/mnt/x", "fuse.sshfs"), ("/mntx", "ext4")]
)
def test_the_kind_of_file_system_is_read_from_the_mounts(place: str, kind: str) -> None:
    assert kind_of(Path(place), MOUNTS) == kind
    assert (kind in NETWORK) == (kind != "ext4")


def test_the_local_disk_is_not_a_network_file_system(tmp_path: Path) -> None:
    assert kind_of(Path("/proc")) == "proc"
    assert not is_network(tmp_path)


def test_without_a_log_the_store_is_one_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path / NAME, "run", "h", 0.0, wal=False)
    writer.write(list(stored.frames(3)))
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_size] == [NAME]
    assert len(stored.picture(tmp_path).steps) == 3
    writer.close()


def test_numbers_that_no_column_can_hold_are_stored(tmp_path: Path) -> None:
    engine = pictures.engine("e0", tokens=2**64 - 1, kv_usage=math.inf)
    made = [api.Frame("h", 1, 1.0, {"e0": engine})]
    assert bits(stored.picture(stored.store(tmp_path, made)).engines["e0"]) == bits(engine)


def test_unknown_fields_of_later_versions_are_ignored(tmp_path: Path) -> None:
    path = stored.store(tmp_path, [api.Frame("h", 1, 1.0, steps=[stored.step(0)])])
    with sqlite3.connect(path) as connection:
        (rest,) = connection.execute("SELECT rest FROM step").fetchone()
        more = msgspec.msgpack.decode(rest) | {"invented_later": [1, 2]}
        connection.execute("UPDATE step SET rest = ?", (msgspec.msgpack.encode(more),))
    connection.close()
    assert bits(stored.picture(path).steps[0]) == bits(stored.step(0))
    shutil.rmtree(tmp_path)
