"""What can go wrong with a store: kills, a disk that takes no more, a file that goes away, a clock that jumps."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.store import store as stores
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.retention import LIMITS
from rltop.backend.store.store import Store, set_aside
from rltop.backend.store.write import Writer
from rltop.backend.util.clock import SteadyClock
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from tests.backend.hub.test_hub_process import close_step, collector, see
from tests.support import pictures, stored
from tests.support.harness import ended
from tests.support.hub_core import Hub
from tests.support.receiver import run_directory, wait_until
from tests.support.store_load import child_of, kill_often, start_hub

RETRY_S = 0.02


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path, "run", "hub-1", pictures.START, retry_s=RETRY_S)
    yield made
    made.end()


def frame(number: int) -> api.Frame:
    return api.Frame("hub-1", number, pictures.START + number, steps=[stored.step(number)])


def trouble(store: Store) -> str:
    """What keeps it from storing, as far as its writer has reported by now."""
    _ = store.unstored
    return store._error


def settled(store: Store) -> bool:
    return not store.unstored and store.is_settled


def writer_of(store: Store) -> int:
    assert store._process is not None
    return store._process.pid


def told(store: Store) -> str:
    return " | ".join(text for _, _, text in store.take_events())


def steps(directory: Path) -> list[int]:
    return list(stored.picture(directory).steps)


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_ten_kills_lose_no_step_that_was_shown_and_none_that_was_sent(rundir: RunDir) -> None:
    witness, closed = kill_often(rundir, 10, seed=1, longest_s=0.6, steps_per_s=50)
    assert len(witness.shown) > 50
    assert closed > len(witness.shown)


def test_a_new_hub_continues_from_the_store_and_reports_unmeasured_steps() -> None:
    first = Hub("hub-1")
    for number in range(3):
        first.send("trainer/0", wire.StepClosed(number, 0, 1, number))
        first.later(1.0)
    past, last = first.picture, first.picture.events[-1].number
    second = Hub("hub-2", past=past)
    assert list(second.steps) == [0, 1, 2]
    assert [event.number for event in second.picture.events] == list(range(last + 1))
    second.source("trainer/0").seq = 50  # its messages went nowhere meanwhile
    second.send("trainer/0", wire.StepClosed(5, 0, 1, 5))
    second.later(1.0)
    assert list(second.steps) == [0, 1, 2, 5]
    assert any("steps 3 to 4 were not measured" in text for text in second.texts)
    assert second.counters["missing_steps"] == 2
    assert second.steps[5].partial  # the rows of its beginning may have gone to nobody
    second.send("trainer/0", wire.StepClosed(6, 0, 1, 6))
    second.later(1.0)
    assert not second.steps[6].partial
    numbers = [event.number for event in second.picture.events]
    assert numbers == list(range(len(numbers)))


def test_an_open_step_is_not_reported_as_unmeasured() -> None:
    first = Hub("hub-1")
    first.send("trainer/0", wire.StepClosed(2, 0, 1, 2))
    first.later(1.0)
    second = Hub("hub-2", past=first.picture)
    second.send("trainer/0", wire.StepClosed(4, 0, 2, 4))  # the other rank's word is not here yet
    second.send("trainer/0", wire.StepClosed(5, 0, 2, 5))
    second.send("trainer/1", wire.StepClosed(5, 1, 2, 5))
    second.later(1.0)
    assert list(second.steps) == [2, 5]
    assert any("step 3 was not measured" in text for text in second.texts)
    assert second.counters["missing_steps"] == 1


def test_a_lost_message_of_the_trainer_makes_its_step_partial() -> None:
    hub = Hub()
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, 0))
    hub.later(1.0)
    hub.source("trainer/0").seq += 1
    hub.send("trainer/0", wire.StepClosed(1, 0, 1, 1))
    hub.later(1.0)
    assert [step.partial for step in hub.steps.values()] == [False, True]


def test_engines_of_the_previous_hub_are_silent_until_they_report() -> None:
    first = Hub("hub-1")
    for engine in ("e0", "e1"):
        first.engine(engine)
    first.later()
    second = Hub("hub-2", past=first.picture)
    second.engine("e1")
    second.later()
    assert {e: shown.health for e, shown in second.picture.engines.items()} == {"e0": "silent", "e1": "live"}


# --- a disk that takes no more --------------------------------------------------------------------------------------


def test_frames_that_waited_for_a_full_disk_are_stored_once_there_is_room(store: Store, tmp_path: Path) -> None:
    store.start()
    writer = writer_of(store)
    store.put(frame(1))
    wait_until(lambda: store.settle(0) == 0)
    _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for number in range(2, 200):
        store.put(frame(number))
    wait_until(lambda: trouble(store))
    assert store.settle(0) > 0
    store.put(frame(200))
    assert "history is not stored" in told(store)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: store.settle(0) == 0)
    assert "history is being stored again" in told(store)
    store.end()
    assert steps(tmp_path) == list(range(1, 201))


def test_frames_beyond_the_memory_bound_are_dropped_oldest_first_and_counted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MAX_WAITING", 10)
    (tmp_path / NAME).mkdir()  # no file can be there
    store.start()
    wait_until(lambda: trouble(store))
    for number in range(1, 31):
        store.put(frame(number))
    (tmp_path / NAME).rmdir()
    wait_until(lambda: store.settle(0) == 0)
    assert "10 frames had waited; 20 earlier frames were dropped" in told(store)
    store.end()
    assert steps(tmp_path) == list(range(21, 31))


def test_a_removed_store_is_created_again(store: Store, tmp_path: Path) -> None:
    store.start()
    store.put(frame(1))
    wait_until(lambda: store.settle(0) == 0)
    for path in tmp_path.iterdir():
        path.unlink()
    store.put(frame(2))
    wait_until(lambda: store.settle(0) == 0 and (tmp_path / NAME).exists())
    assert "was removed or replaced" in told(store)
    store.end()
    assert steps(tmp_path) == [2]


def test_a_damaged_store_is_set_aside_and_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"not a database at all" * 1000)
    assert store.past() is None
    store.start()
    store.put(frame(1))
    wait_until(lambda: store.settle(0) == 0)
    assert "damaged" in told(store)
    store.end()
    assert steps(tmp_path) == [1]
    (aside,) = tmp_path.glob("store-damaged-*")
    assert aside.read_bytes().startswith(b"not a database")


def test_a_frame_that_cannot_be_written_does_not_block_others(store: Store, tmp_path: Path) -> None:
    store.start()
    store.put(api.Frame("hub-1", 1, pictures.START, steps=[api.Step(0, object(), None, False, {})]))  # type: ignore[arg-type]
    assert "not stored" in told(store)
    store.put(api.Frame("hub-1", 2, pictures.START + 2, steps=[api.Step(2**63, 1.0, None, False, {})]))
    wait_until(lambda: store.settle(0) == 0 and trouble(store))
    store.put(frame(3))
    wait_until(lambda: settled(store))
    assert told(store).count("1 earlier frames were dropped") == 2
    store.end()
    assert steps(tmp_path) == [3]


def test_retention_is_applied_while_frames_keep_arriving(store: Store, tmp_path: Path) -> None:
    body = {"step": 0, "body": b""}
    writer = Writer(tmp_path / NAME, "run", "hub-0", pictures.START)
    writer.write([frame(0)], [[("taken", body)] * (LIMITS.taken + 500)])
    writer.close()
    store.start()
    numbers = itertools.count(1)
    with Reader(tmp_path) as reader:
        while reader.execute("SELECT count(*) FROM taken").fetchone()[0] > LIMITS.taken:
            store.put(frame(next(numbers)))  # one always waits before the writer would rest
            store.settle(0.05)


def test_a_writer_that_is_killed_is_replaced_and_nothing_is_lost(store: Store, tmp_path: Path) -> None:
    store.start()
    store.put(frame(1))
    wait_until(lambda: store.settle(0) == 0)
    writer = writer_of(store)
    os.kill(writer, signal.SIGSTOP)
    store.put(frame(2))
    os.kill(writer, signal.SIGKILL)
    wait_until(lambda: settled(store))
    assert writer_of(store) != writer
    said = told(store)
    assert "the writer ended with exit code -9" in said
    assert "history is being stored again: 1 frames had waited" in said
    store.end()
    assert steps(tmp_path) == [1, 2]


KILLED_HUB = """
import os, signal, sys
from pathlib import Path
from rltop.backend import api
from rltop.backend.store.store import Store
store = Store(Path(sys.argv[1]), "run", "hub-0", 1000.0)
store.start()
store.put(api.Frame("hub-0", 1, 1001.0, steps=[api.Step(1, 1001.0, None, False, {})]))
assert store.settle(60) == 0
os.kill(store._process.pid, signal.SIGSTOP)
store.put(api.Frame("hub-0", 2, 1002.0, steps=[api.Step(2, 1002.0, None, False, {})]))
print(store._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_hub_waits_for_the_commits_of_a_killed_hubs_writer(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_HUB, str(tmp_path)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    writer = int(killed.stdout)
    assert steps(tmp_path) == [1]
    store.start()
    assert "the previous writer has not exited yet" in told(store)
    past = threading.Thread(target=lambda: found.append(store.past()))
    found: list[api.Snapshot | None] = []
    past.start()
    os.kill(writer, signal.SIGCONT)
    past.join()
    assert found[0] is not None
    assert list(found[0].steps) == [1, 2]
    store.put(frame(3))
    wait_until(lambda: settled(store))
    store.end()
    assert steps(tmp_path) == [1, 2, 3]


def test_a_store_that_is_set_aside_is_renamed(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    stored.store(tmp_path, stored.frames(3))
    aside = set_aside(tmp_path)
    assert aside is not None
    assert not (tmp_path / NAME).exists()
    with Reader(aside) as reader:
        assert len(reader.snapshot().steps) == 3


def test_a_live_hub_on_a_full_disk_reports_it_and_recovers(rundir: RunDir) -> None:
    hub = start_hub(rundir)
    try:
        with Client(rundir) as client, collector(rundir, "trainer/0") as trainer:
            close_step(trainer, 0)
            see(client, lambda v: 0 in v.steps)
            writer = child_of(hub)
            _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            close_step(trainer, 1)
            see(client, lambda v: 1 in v.steps and v.counters.get("unstored"))
            see(client, lambda v: any("history is not stored" in event.text for event in v.events))
            resource.prlimit(writer, resource.RLIMIT_FSIZE, (hard, hard))
            see(client, lambda v: any("stored again" in event.text for event in v.events))
            close_step(trainer, 2)
            see(client, lambda v: 2 in v.steps and not v.counters["unstored"])
            client.stop_hub()
        assert ended(hub) == 0
    finally:
        hub.kill()
        hub.wait()
    assert steps(rundir.path) == [0, 1, 2]


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_the_hubs_clock_is_steady_while_the_machines_jumps() -> None:
    wall, steady = 1000.0, 50.0
    clock = SteadyClock(lambda: wall, lambda: steady)
    wall, steady = 1010.0, 60.0
    assert (clock(), clock.take_jumps()) == (1010.0, [])
    wall, steady = 4611.0, 61.0
    ((severity, kind, text),) = clock.take_jumps()
    assert (clock(), severity, kind) == (1011.0, "warn", "clock")
    assert "jumped forward by 3600 s" in text
    assert clock.take_jumps() == []
    wall = 1011.0
    ((_, _, text),) = clock.take_jumps()
    assert "jumped back by 3600 s" in text


def test_a_clock_behind_the_store_is_reported_and_the_order_is_kept(tmp_path: Path) -> None:
    stored.store(tmp_path, [frame(number) for number in range(1, 4)])
    late = Store(tmp_path, "run", "hub-2", pictures.START - 7200)
    assert late.past() is not None
    assert "behind the last stored frame" in told(late)
    late.start()
    late.put(api.Frame("hub-2", 1, pictures.START - 7000, steps=[stored.step(4)]))
    late.end()
    assert steps(tmp_path) == [1, 2, 3, 4]
