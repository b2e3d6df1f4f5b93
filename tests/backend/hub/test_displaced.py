"""A hub whose files are removed starts again in their place, and its collectors find it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rltop.backend.client.live import Client
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import wait_for, wait_shown
from tests.support.hub_messages import engine_state
from tests.support.receiver import run_directory


def remove_all(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def remove_sockets(path: Path) -> None:
    for file in path.glob("*.sock"):
        file.unlink()


def remove_lock(path: Path) -> None:
    (path / "hub.lock").unlink()


@pytest.mark.parametrize("remove", [remove_all, remove_sockets, remove_lock])
def test_a_hub_whose_files_are_removed_starts_again_and_the_engines_come_to_it(remove: Callable[[Path], None]) -> None:
    with run_directory() as rundir:
        process = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)])
        try:
            first = hub_of(rundir)
            sender = Sender[Message](rundir, "e0", "engine", lambda _, items: items)

            def report() -> None:
                sender.offer("state", 100, (engine_state("e0"), {}))

            sender._periodic = report
            sender.start()
            with Client(rundir) as client:
                wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)
            remove(rundir.path)
            wait_for(lambda: rundir.info.exists() and hub_of(rundir) != first, "another hub")
            assert process.poll() is None  # the same process
            with Client(rundir) as client:
                wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)
            sender.close(5)
        finally:
            process.terminate()
            process.wait()


def hub_of(rundir: RunDir) -> float:
    """When the hub of the run started."""
    wait_for(rundir.info.exists, "hub.json")
    info = wait_for(lambda: find_hub(rundir), "a hub")
    return info.started
