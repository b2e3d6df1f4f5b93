"""No process of the demo outlives it, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltop.backend.demo.children import Child, end_all, group_members
from tests.support.receiver import wait_until


class Starter:
    """Starts children and ends the leftovers of a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []

    def start(self, manners: str) -> Child:
        child = Child(manners, "tests.support.demo_child", manners, {}, self.directory / f"{manners}.log", piped=True)
        self.children.append(child)
        return child


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    made = Starter(tmp_path)
    yield made
    for child in made.children:
        child.signal(signal.SIGKILL, group=True)
    end_all([child for child in made.children if not child.is_gone()], grace_s=0.2)


def read_line(child: Child) -> bytes:
    """The second line it prints; the first is known."""
    found: list[bytes] = []

    def both() -> bool:
        found.extend(child.lines())
        return len(found) == 2

    wait_until(both)
    assert found[0] == b"first line"
    return found[1]


def test_ending_a_child_ends_its_children(starter: Starter) -> None:
    child = starter.start("polite")
    grandchild = int(read_line(child).split()[1])
    assert sorted(group_members(child.pid)) == sorted([child.pid, grandchild])
    assert end_all([child], grace_s=0.2) == []
    assert child.exit_code == -signal.SIGTERM
    assert group_members(child.pid) == []


def test_a_child_that_ignores_sigterm_is_killed(starter: Starter) -> None:
    child = starter.start("stubborn")
    read_line(child)
    assert end_all([child], grace_s=0.2) == []
    assert child.exit_code == -signal.SIGKILL
    assert group_members(child.pid) == []


def test_a_failed_child_is_reported_with_its_log_and_its_children_are_ended(starter: Starter) -> None:
    child = starter.start("failing")
    read_line(child)
    wait_until(lambda: child.exit_code is not None)
    assert "failing ended with exit code 1" in child.failure()
    assert "something that is named" in child.failure()
    assert not child.is_gone()  # its own child lives on
    assert end_all([child], grace_s=0.2) == []
    assert group_members(child.pid) == []


PARENT = """
import sys, time
from pathlib import Path
from rltop.backend.demo.children import Child
child = Child("orphan", "tests.support.demo_child", "polite", {}, Path(sys.argv[1]), piped=True)
lines = []
while len(lines) < 2:
    lines += child.lines()
print(child.pid, flush=True)
time.sleep(600)
"""


def kill_a_parent(tmp_path: Path) -> int:
    """Start a parent with a child, kill the parent, and return the child's process id."""
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    return child


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    child = kill_a_parent(tmp_path)
    wait_until(lambda: not group_members(child))
