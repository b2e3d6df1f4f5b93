"""A hub on a disk that is really full, a directory that really can't be written, a wall clock that really jumps.

A full disk takes a small file system of its own, which only root may mount; elsewhere that test is skipped, and
``test_store_faults`` holds the same with a limit on the size of files. Modes bind root too where it has no right to
pass over them, so those tests run under any user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.store.read import NAME
from rltop.collectors.contract.rundir import RunDir
from tests.backend.hub.test_hub_process import close_step, collector, see
from tests.support import stored
from tests.support.harness import ended
from tests.support.receiver import run_directory

DISK_BYTES = 3 << 20

HUB = ("-m", "rltop.backend.hub")

SHIFTED_HUB = (
    "-c",
    "import sys, time, pathlib; real = time.time; shift = pathlib.Path(sys.argv.pop(1)); "
    "time.time = lambda: real() + float(shift.read_text()); "
    "import runpy; runpy.run_module('rltop.backend.hub', run_name='__main__', alter_sys=True)",
)
"""A hub whose wall clock is off by what stands in a file."""


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@pytest.fixture
def small_disk(rundir: RunDir) -> Iterator[RunDir]:
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700"]
    made = subprocess.run(["mount", *options, "none", rundir.path], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield rundir
    finally:
        subprocess.run(["umount", "-l", rundir.path], check=True)


@contextlib.contextmanager
def hub(rundir: RunDir, *how: str, command: tuple[str, ...] = HUB) -> Iterator[subprocess.Popen[bytes]]:
    """A hub of its own process, started by ``how``; the run may go on without it."""
    process = subprocess.Popen([*how, sys.executable, *command, str(rundir.path)], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def bound_by_modes() -> list[str]:
    """What a command is put behind for the modes of files to bind it."""
    if os.getuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("modes do not bind root, and there is no setpriv")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def tells(text: str) -> Callable[[api.Snapshot], bool]:
    return lambda shown: any(text in event.text for event in shown.events)


def shows(step: int) -> Callable[[api.Snapshot], bool]:
    return lambda shown: step in shown.steps


def set_clock(shift: Path, by: str) -> None:
    """Let the hub's wall clock be off by so many seconds; the file is never there in part."""
    shift.with_suffix(".new").write_text(by)
    shift.with_suffix(".new").replace(shift)


def fill(directory: Path) -> Path:
    """Take all the room there is."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_hub_on_a_full_disk_reports_it_shows_the_run_and_recovers(small_disk: RunDir) -> None:
    with hub(small_disk) as process, Client(small_disk) as client, collector(small_disk, "trainer/0") as trainer:
        close_step(trainer, 0)
        see(client, lambda v: 0 in v.steps)
        ballast = fill(small_disk.path)
        number = 0
        while not client.view or not client.view.counters.get("unstored"):  # the log beside the file has some room
            number += 1
            close_step(trainer, number)
            see(client, shows(number))
        see(client, tells("history is not stored: database or disk is full"))
        close_step(trainer, number + 1)
        see(client, lambda v: number + 1 in v.steps)  # the live view goes on
        ballast.unlink()
        see(client, tells("history is being stored again"))
        close_step(trainer, number + 2)
        see(client, lambda v: number + 2 in v.steps and not v.counters["unstored"])
        client.stop_hub()
        assert ended(process) == 0
    assert list(stored.picture(small_disk.path).steps) == list(range(number + 3))


def test_a_hub_with_a_read_only_store_reports_it_shows_the_run_and_recovers(rundir: RunDir) -> None:
    stored.store(rundir.path, stored.frames(3))
    (rundir.path / NAME).chmod(0o400)
    with (
        hub(rundir, *bound_by_modes()) as process,
        Client(rundir) as client,
        collector(rundir, "trainer/0") as trainer,
    ):
        close_step(trainer, 10)
        see(client, lambda v: {2, 10} <= v.steps.keys() and v.counters.get("unstored"))
        see(client, tells("history is not stored: attempt to write a readonly database"))
        (rundir.path / NAME).chmod(0o600)
        see(client, tells("history is being stored again"))
        see(client, lambda v: not v.counters["unstored"])
        client.stop_hub()
        assert ended(process) == 0
    assert list(stored.picture(rundir.path).steps) == [0, 1, 2, 10]


def test_a_hub_whose_directory_becomes_read_only_continues_and_recovers(rundir: RunDir) -> None:
    with (
        hub(rundir, *bound_by_modes()) as process,
        Client(rundir) as client,
        collector(rundir, "trainer/0") as trainer,
    ):
        close_step(trainer, 0)
        see(client, lambda v: 0 in v.steps and not v.counters.get("unstored"))
        for path in rundir.path.glob(NAME + "*"):
            path.unlink()
        rundir.path.chmod(0o500)
        try:
            close_step(trainer, 1)
            see(client, lambda v: 1 in v.steps and v.counters.get("unstored"))
            see(client, tells("history is not stored"))
        finally:
            rundir.path.chmod(0o700)
        see(client, tells("history is being stored again"))
        close_step(trainer, 2)
        see(client, lambda v: 2 in v.steps and not v.counters["unstored"])
        client.stop_hub()
        assert ended(process) == 0
    assert list(stored.picture(rundir.path).steps) == [1, 2]


def test_a_hub_without_write_access_to_its_directory_exits_with_the_reason(rundir: RunDir) -> None:
    rundir.path.chmod(0o500)
    try:
        with hub(rundir, *bound_by_modes()) as process:
            _, told = process.communicate()
    finally:
        rundir.path.chmod(0o700)
    assert process.returncode == 2
    assert f"{rundir.path}: can't be used as a run directory" in told.decode()
    assert "Permission denied" in told.decode()
    assert "Traceback" not in told.decode()


def test_a_jump_of_the_wall_clock_is_reported_and_loses_nothing(rundir: RunDir, tmp_path: Path) -> None:
    shift = tmp_path / "shift"
    set_clock(shift, "0")
    with (
        hub(rundir, command=(*SHIFTED_HUB, str(shift))) as process,
        Client(rundir) as client,
        collector(rundir, "trainer/0") as trainer,
    ):
        for number, by in enumerate(("0", "7200", "-7200")):
            set_clock(shift, by)
            close_step(trainer, number)
            see(client, shows(number))
            see(client, lambda v: not v.counters.get("unstored"))
        see(client, tells("the machine's clock jumped forward by 7200 s"))
        see(client, tells("the machine's clock jumped back by 14400 s"))
        shown = see(client, lambda v: True)
        closed = [step.closed for step in shown.steps.values()]
        assert closed == sorted(closed)
        assert closed[-1] - closed[0] < 3600
        client.stop_hub()
        assert ended(process) == 0
    assert list(stored.picture(rundir.path).steps) == [0, 1, 2]
    with hub(rundir, command=(*SHIFTED_HUB, str(shift))), Client(rundir) as client:  # which begins in the past
        see(client, tells("behind the last stored frame"))
        assert list(see(client, lambda v: bool(v.steps)).steps) == [0, 1, 2]
