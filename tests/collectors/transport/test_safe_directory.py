"""Collectors and viewers connect only where no other user could act as the hub, and leave a replaced directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.client.live import Client
from rltop.collectors.contract.rundir import RunDir, RunDirError, distrusted
from rltop.collectors.transport.sender import Message, Sender
from tests.support.hub_messages import engine_state
from tests.support.receiver import Receiver, wait_until

ROOT = os.getuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can give a directory to another user")
OTHER = 12345


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def made(path: Path, mode: int, owner: int | None = None) -> Path:
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


def test_a_private_directory_in_a_private_one_is_used(place: Path) -> None:
    RunDir(made(place / "run", 0o700)).check()


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o777, 0o1777])
def test_a_run_directory_that_others_can_enter_is_refused(place: Path, mode: int) -> None:
    with pytest.raises(RunDirError, match="mode 0700"):
        RunDir(made(place / "run", mode)).check()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o773])
def test_a_parent_that_others_can_write_to_is_refused(place: Path, mode: int, depth: int) -> None:
    path = made(place / "planted", mode)
    for name in range(depth - 1):
        path = made(path / str(name), 0o700)
    with pytest.raises(RunDirError, match="planted can be written by others"):
        RunDir(made(path / "run", 0o700)).check()


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_parent_of_another_user_is_refused(place: Path, mode: int) -> None:
    planted = made(place / "planted", mode, OTHER)
    with pytest.raises(RunDirError, match=f"planted belongs to user {OTHER}"):
        RunDir(made(planted / "run", 0o700)).check()


def test_a_link_in_place_of_the_run_directory_is_refused(place: Path) -> None:
    private = made(place / "private", 0o700)
    (place / "run").symlink_to(private)
    with pytest.raises(RunDirError, match="directory of yours"):
        RunDir(place / "run").check()


def test_a_link_to_a_place_that_others_can_write_to_is_refused(place: Path) -> None:
    made(made(place / "planted", 0o777) / "home", 0o700)
    (place / "home").symlink_to(place / "planted" / "home")
    run = RunDir(made(place / "planted" / "home" / "run", 0o700))
    with pytest.raises(RunDirError, match="planted can be written by others"):
        RunDir(place / "home" / run.run).check()


@given(st.lists(st.sampled_from([0o700, 0o755, 0o711, 0o1777, 0o777, 0o722]), max_size=4))
def test_exactly_the_parts_that_others_can_write_to_are_named(modes: list[int]) -> None:
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as root:
        path, unsafe = Path(root), []
        for number, mode in enumerate(modes):
            path = made(path / str(number), mode)
            if mode in (0o777, 0o722):
                unsafe.append(path)
        assert [part for part, _ in distrusted(path)] == unsafe


def test_a_viewer_does_not_connect_to_a_planted_directory(place: Path) -> None:
    planted = made(place / "planted", 0o777)
    with pytest.raises(RunDirError):
        Client(RunDir(made(planted / "run", 0o700)))


def sender_of(rundir: RunDir) -> Sender[Message]:
    sender = Sender[Message](rundir, "e0", "engine", lambda _, items: items)
    sender.start()
    return sender


def test_a_sender_connects_once_the_directory_is_safe_and_not_before(place: Path) -> None:
    rundir = RunDir(made(place / "run", 0o777))
    with Receiver(rundir) as receiver:
        sender = sender_of(rundir)
        sender.offer("state", 100, (engine_state("e0"), {}))
        wait_until(lambda: sender._unsafe)
        assert receiver.messages == []
        assert receiver.control == []
        rundir.path.chmod(0o700)
        wait_until(lambda: receiver.messages)
        sender.close(5)


def test_a_sender_leaves_a_directory_that_was_removed_for_the_one_in_its_place(place: Path) -> None:
    rundir = RunDir(made(place / "run", 0o700))
    with Receiver(rundir) as old:
        sender = sender_of(rundir)
        sender.offer("state", 100, (engine_state("e0"), {}))
        wait_until(lambda: old.messages)
        rundir.path.rename(place / "moved")  # the old sockets stay connected
        made(rundir.path, 0o700)
        with Receiver(rundir) as new:
            wait_until(lambda: new.control)
            sender.offer("state", 100, (engine_state("e0", step=7), {}))
            wait_until(lambda: new.messages)
            sender.close(5)
