"""Finding and starting the real hub of a run, from any number of processes at once."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rltop.collectors import TrainerCollector
from rltop.collectors.contract import launch
from rltop.collectors.contract.launch import HubInfo, LaunchError, ensure_hub, find_hub, list_runs
from rltop.collectors.contract.rundir import RunDir, RunDirError
from tests.support.receiver import run_directory, wait_until


@contextlib.contextmanager
def hubs_ended(rundir: RunDir) -> Iterator[None]:
    """Ends the hub of ``rundir`` afterwards."""
    try:
        yield
    finally:
        if info := find_hub(rundir):
            end(rundir, info, signal.SIGTERM)


def end(rundir: RunDir, info: HubInfo, number: signal.Signals) -> None:
    os.kill(info.pid, number)
    wait_until(lambda: not launch._is_held(rundir.lock))


def test_a_hub_is_started_once_and_found_afterwards() -> None:
    with run_directory() as rundir, hubs_ended(rundir):
        assert find_hub(rundir) is None
        info = ensure_hub(rundir)
        assert find_hub(rundir) == ensure_hub(rundir) == info
        assert os.getsid(info.pid) == info.pid != os.getsid(0)
        assert Path(f"/proc/{info.pid}/cwd").resolve() == Path("/")
        assert stat.S_IMODE(rundir.path.stat().st_mode) == 0o700
        assert list_runs(rundir.path.parent / "absent") == []


def test_runs_are_listed_with_the_hub_that_lives() -> None:
    with run_directory() as home:
        dead, live = RunDir(home.path / "dead"), RunDir(home.path / "live")
        dead.create()
        dead.lock.touch()
        (home.path / "something-else").mkdir()
        with hubs_ended(live):
            info = ensure_hub(live)
            assert list_runs(home.path) == [(dead, None), (live, info)]


def test_a_killed_hub_is_replaced_only_on_request() -> None:
    with run_directory() as rundir, hubs_ended(rundir):
        first = ensure_hub(rundir)
        end(rundir, first, signal.SIGKILL)
        assert rundir.info.exists()  # it had no time to tidy up
        assert find_hub(rundir) is None
        second = ensure_hub(rundir)
        assert second.epoch != first.epoch
        assert second.pid != first.pid


RANK = """
import sys
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.launch import find_hub
sys.stdin.readline()  # both at once
with TrainerCollector(hub=sys.argv[1], rank=0, world_size=2) as trainer:
    trainer.step(0)
    print(find_hub(trainer.rundir).pid, flush=True)
    sys.stdin.readline()
"""


def test_ranks_that_come_at_the_same_time_make_one_hub() -> None:
    with run_directory() as rundir, hubs_ended(rundir):
        command = [sys.executable, "-c", RANK, str(rundir.path)]
        ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        try:
            for _ in range(2):
                for rank in ranks:
                    assert rank.stdin is not None
                    rank.stdin.write("go\n")
                    rank.stdin.flush()
            answers = [rank.communicate()[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        info = find_hub(rundir)  # it outlived those who started it
        assert info is not None
        assert [int(answer) for answer in answers] == [info.pid] * 3
        assert [rank.returncode for rank in ranks] == [0, 0, 0]


def test_a_collector_does_not_restart_its_hub_and_the_trainer_continues(caplog: pytest.LogCaptureFixture) -> None:
    with run_directory() as rundir, hubs_ended(rundir), caplog.at_level(logging.WARNING, "rltop"):
        trainer = TrainerCollector(hub=str(rundir.path))
        info = find_hub(rundir)
        assert info is not None
        trainer.step(0)
        wait_until(lambda: trainer._sender.health().counts["step"].sent == 1)
        end(rundir, info, signal.SIGKILL)
        offered = 1

        def queued() -> bool:
            nonlocal offered
            trainer.step(offered)
            offered += 1
            return trainer._sender.health().counts["step"].queued > 10

        wait_until(queued)
        assert not trainer.close(timeout=0.2)
        assert find_hub(rundir) is None
        assert trainer._sender.health().counts["step"].offered == offered
        assert caplog.records == []


def test_rank_0_without_a_hub_warns_once_and_trains(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_directory() as rundir, caplog.at_level(logging.WARNING, "rltop"):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        trainer = TrainerCollector(hub=str(rundir.path))
        trainer.step(0)
        assert not trainer.close(timeout=0.1)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "training continues without a hub" in caplog.text
        assert "exit code 1" in caplog.text


def test_only_rank_0_starts_a_hub_and_only_if_it_may() -> None:
    with run_directory() as rundir:
        for collector in (
            TrainerCollector(hub=str(rundir.path), rank=1, world_size=2),
            TrainerCollector(hub=str(rundir.path), start_hub=False),
        ):
            assert not collector.close(timeout=0.05)
        assert not rundir.lock.exists()


def test_a_hub_that_exits_is_reported_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_directory() as rundir:
        script = rundir.path / "python"
        script.write_text("#!/bin/sh\necho what went wrong\nexit 3\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))
        with pytest.raises(LaunchError, match=r"exit code 3; the end of .*hub\.log:\nwhat went wrong"):
            ensure_hub(rundir)


def test_a_hub_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_directory() as rundir:
        script = rundir.path / "python"
        script.write_text(f"#!/bin/sh\necho $$ > {rundir.path}/pid\nexec sleep 600\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))
        with pytest.raises(LaunchError, match="not ready in time and was killed"):
            ensure_hub(rundir, timeout_s=1.0)
        pid = int((rundir.path / "pid").read_text())
        assert not Path(f"/proc/{pid}").exists()


def test_another_process_that_starts_for_too_long_is_an_error() -> None:
    with run_directory() as rundir:
        rundir.create()
        with launch._locked(rundir.path / "start.lock", 0.0), pytest.raises(LaunchError, match="still starting"):
            ensure_hub(rundir, timeout_s=0.1)


def test_a_directory_that_others_can_enter_is_refused() -> None:
    with run_directory() as rundir:
        rundir.path.chmod(0o755)
        with pytest.raises(RunDirError, match="0700"):
            ensure_hub(rundir)


def test_an_unreadable_hub_file_means_no_hub() -> None:
    with run_directory() as rundir:
        rundir.lock.touch()
        with launch._locked(rundir.lock, 0.0):
            for text in ("", "{", "[]", '{"pid": 1}'):
                rundir.info.write_text(text)
                assert find_hub(rundir) is None
            rundir.info.write_text('{"pid": 1, "host": "h", "started": 1.5, "epoch": "e", "proto": 1, "more": []}')
            assert find_hub(rundir) == HubInfo(1, "h", 1.5, "e", 1)
        assert find_hub(rundir) is None


def open_files(pid: int) -> set[Path]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we looked
            found.add(file.readlink())
    return found


def test_a_reader_does_not_keep_a_hub_from_its_lock() -> None:
    with run_directory() as rundir, hubs_ended(rundir), rundir.lock.open("wb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        command = [sys.executable, "-m", "rltop.backend.hub", str(rundir.path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as hub:
            try:
                wait_until(lambda: rundir.lock in open_files(hub.pid))
                fcntl.flock(looking, fcntl.LOCK_UN)
                wait_until(lambda: find_hub(rundir))
            finally:
                hub.terminate()


def test_the_file_of_a_killed_hub_is_not_used_for_the_next_one() -> None:
    with run_directory() as rundir, hubs_ended(rundir):
        rundir.info.write_bytes(msgspec.json.encode(HubInfo(1, "h", 0.0, "of a killed hub", 1)))
        assert ensure_hub(rundir).epoch != "of a killed hub"
