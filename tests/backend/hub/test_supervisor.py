"""A supervised hub is started again when it dies, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltop.backend.client.live import Client
from rltop.backend.hub import supervisor
from rltop.backend.hub.supervisor import MAX_EARLY_DEATHS, MAX_PAUSE_S, Supervisor
from rltop.collectors.contract.launch import HubInfo, ensure_hub, find_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import ended, wait_for, wait_shown
from tests.support.receiver import run_directory


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@pytest.fixture
def supervised(rundir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rltop.backend.hub", "--supervise", str(rundir.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: find_hub(rundir), "the hub is ready")
        yield process
        process.terminate()


def another_hub(rundir: RunDir, first: HubInfo) -> HubInfo:
    def found() -> HubInfo | None:
        hub = find_hub(rundir)
        return hub if hub is not None and hub.epoch != first.epoch else None

    return wait_for(found, "another hub")


def hub_of(rundir: RunDir) -> HubInfo:
    hub = find_hub(rundir)
    assert hub is not None
    return hub


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_hub_that_dies_is_started_again_and_says_so(
    rundir: RunDir, supervised: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    first = hub_of(rundir)
    assert first.supervisor == supervised.pid
    os.kill(first.pid, number)
    second = another_hub(rundir, first)
    assert second.pid != first.pid and second.supervisor == supervised.pid
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view and any(f"was killed by {number.name}" in e.text for e in c.view.events))
        os.kill(second.pid, number)
        third = another_hub(rundir, second)
        wait_shown(client, lambda c: c.view is not None and c.view.epoch == third.epoch)


def test_a_hub_that_is_stopped_stays_so(rundir: RunDir, supervised: subprocess.Popen[bytes]) -> None:
    with Client(rundir) as client:
        client.stop_hub()
    assert ended(supervised) == 0 and find_hub(rundir) is None


def test_a_hub_that_gets_the_signal_to_end_stays_so(rundir: RunDir, supervised: subprocess.Popen[bytes]) -> None:
    os.kill(hub_of(rundir).pid, signal.SIGTERM)
    assert ended(supervised) == 0 and find_hub(rundir) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_supervisor_is_that_of_its_hub(
    rundir: RunDir, supervised: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    supervised.send_signal(number)
    assert ended(supervised) == 0 and find_hub(rundir) is None


def test_a_run_that_has_a_hub_gets_no_second_one(rundir: RunDir, supervised: subprocess.Popen[bytes]) -> None:
    command = [sys.executable, "-m", "rltop.backend.hub", "--supervise", str(rundir.path)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert hub_of(rundir).supervisor == supervised.pid


def test_a_directory_that_can_not_be_used_is_not_tried_again(rundir: RunDir) -> None:
    rundir.path.chmod(0o755)
    command = [sys.executable, "-m", "rltop.backend.hub", "--supervise", str(rundir.path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stderr.count("mode 0700") == 1


def test_a_starter_may_ask_for_supervision(rundir: RunDir) -> None:
    first = ensure_hub(rundir, timeout_s=120.0, supervise=True)
    assert first.supervisor and ensure_hub(rundir) == first
    os.kill(first.pid, signal.SIGKILL)
    second = another_hub(rundir, first)
    assert second.supervisor == first.supervisor
    with Client(rundir) as client:
        client.stop_hub()
    wait_for(lambda: not Path(f"/proc/{first.supervisor}").exists() or _is_zombie(first.supervisor), "it ends")


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_others_start_hubs_without_one(rundir: RunDir) -> None:
    """A trainer that starts a hub starts nothing that starts processes later."""
    hub = ensure_hub(rundir, timeout_s=120.0)
    try:
        assert hub.supervisor == 0
    finally:
        os.kill(hub.pid, signal.SIGTERM)
        wait_for(lambda: find_hub(rundir) is None, "it ends")


def test_a_hub_that_dies_at_once_again_and_again_is_given_up(rundir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    pauses: list[float] = []
    dying = (sys.executable, "-c", "import sys; sys.exit(7)")
    assert Supervisor(rundir, dying, clock=lambda: 0.0, sleep=pauses.append).run() == 7
    assert len(pauses) == MAX_EARLY_DEATHS - 1
    assert pauses == sorted(pauses) and max(pauses) <= MAX_PAUSE_S
    assert "not started again" in caplog.text


def test_a_hub_that_dies_now_and_then_is_never_given_up(rundir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SETTLED_S", 0.0)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 2 * MAX_EARLY_DEATHS:
            made.stop()

    made = Supervisor(rundir, (sys.executable, "-c", "import sys; sys.exit(1)"), sleep=pause)
    assert made.run() == 0
    assert set(pauses) == {supervisor.PAUSE_S}
