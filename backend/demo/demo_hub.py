"""Starts a hub without earlier steps for the demo, and stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from rltop.backend.client.live import Client
from rltop.backend.demo.children import group_members
from rltop.backend.store.read import has_steps
from rltop.backend.store.store import set_aside
from rltop.collectors.contract.launch import HubInfo, ensure_hub, find_hub
from rltop.collectors.contract.rundir import RunDir

STOP_S = 10.0
"""How long a hub may take to end after a signal."""

POLL_S = 0.05


class RunInUseError(RuntimeError):
    """Live engines of another run use this run directory."""


def fresh_hub(rundir: RunDir) -> tuple[HubInfo, bool]:
    """A hub of ``rundir`` without steps, and whether it was started here.

    A leftover hub of an earlier run is ended first and its store set aside, so that steps of two runs never mix.

    Raises:
        RunInUseError: live engines are connected to it.
        LaunchError: no hub could be started.
    """
    found = find_hub(rundir)
    if found is not None:
        if not _has_earlier_run(rundir):
            return found, False
        stop_hub(rundir, found)
    if find_hub(rundir) is None and has_steps(rundir.path):
        set_aside(rundir.path)
    return ensure_hub(rundir), True


def stop_hub(rundir: RunDir, hub: HubInfo) -> None:
    """End this hub and wait until its process has ended. Does nothing if it died or was replaced."""
    if find_hub(rundir) != hub:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(hub.pid, number)
        deadline = time.monotonic() + STOP_S
        while group_members(hub.pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _has_earlier_run(rundir: RunDir) -> bool:
    with Client(rundir) as client:
        picture = client.snapshot()
    live = [engine.id for engine in picture.engines.values() if engine.health == "live"]
    if live:
        raise RunInUseError(
            f"run {rundir.run!r} is in use by engines {', '.join(live)}; choose another name with --run"
        )
    return bool(picture.steps or picture.engines)
