"""A real engine started without prefix caching and without async scheduling: refused, and nothing changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rltop.backend.client.live import Client
from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.contract.launch import ensure_hub, find_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import HubStandIn, wait_shown
from tests.support.live_engine import ENVIRONMENT, ON_CPU, LiveEngine, result
from tests.support.receiver import run_directory
from tests.support.switchboard import ENGINE, check_equal, fresh, prompt

pytestmark = [pytest.mark.engine if ON_CPU else pytest.mark.gpu, pytest.mark.own_engine]

REQUESTS = 32
REFUSED = (("prefix_caching", "started with prefix caching off"), ("async_scheduling", "started"))


@pytest.fixture(scope="module")
def launched() -> Iterator[tuple[RunDir, LiveEngine]]:
    """The engine, and where its hub is to be."""
    with run_directory() as rundir, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(rundir.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        engine = LiveEngine(enable_prefix_caching=False, async_scheduling=False)
        try:
            yield rundir, engine
        finally:
            if engine.llm is not None:
                engine.close()
            if info := find_hub(rundir):
                os.kill(info.pid, signal.SIGKILL)


def test_a_flag_not_enabled_at_launch_is_refused_with_the_launch_option(
    launched: tuple[RunDir, LiveEngine],
) -> None:
    rundir, engine = launched
    with HubStandIn(rundir) as hub:
        names = [f"plain{i}" for i in range(REQUESTS)]
        running = [engine.generate(name, prompt(1, 100), 80, seed=i) for i, name in enumerate(names)]
        engine.wait_running(names)
        before = fresh(hub)
        for flag, reason in REFUSED:
            for number, (value, strict) in enumerate((("on", False), ("off", False), ("off", True))):
                hub.command(ENGINE, flag, value, f"{flag}{number}", strict=strict and bool(BY_NAME[flag].strict))
                update = hub.closed(f"{flag}{number}")
                assert (update.state, reason in update.reason) == ("refused", True), update
                assert BY_NAME[flag].launch in update.reason
        after = fresh(hub)
        assert (after.flags, after.flag_epoch) == (before.flags, before.flag_epoch)
        shown = {name: (state.value, state.switchable, state.detail) for name, state in after.flags.items()}
        assert shown["prefix_caching"] == shown["async_scheduling"] == ("off", False, "")
        assert shown["logprobs_mode"] == ("raw", True, "")
        for name, work in zip(names, running, strict=True):
            assert check_equal(hub, name, result(work)).size == 80
        assert hub.health()[-1].faults == {}


def test_the_command_line_says_why_the_engine_refused_and_fails(launched: tuple[RunDir, LiveEngine]) -> None:
    rundir, engine = launched
    ensure_hub(rundir)
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view is not None and ENGINE in c.view.engines)
        before = client.snapshot().engines[ENGINE]
        for flag, reason in REFUSED:
            line = [sys.executable, "-m", "rltop.tui.cli.main", "set", flag, "on", "--run", str(rundir.path)]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert done.stdout.startswith(f"{ENGINE}: ")
            assert all(part in done.stdout for part in (flag, "refused", reason, BY_NAME[flag].launch)), done.stdout
        after = client.snapshot().engines[ENGINE]
        assert (after.flags, after.flag_epoch, after.faults) == (before.flags, before.flag_epoch, {})
        engine.close()
        wait_shown(client, lambda c: c.view is not None and c.view.engines[ENGINE].health == "gone")
