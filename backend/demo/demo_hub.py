"""The demo and the hub of its run: one without a past, and none left behind."""

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
"""How long a hub, which leads a session of its own, may take to end after it was told to."""

POLL_S = 0.05


class RunInUseError(RuntimeError):
    """Engines of somebody else are live on this run."""


def fresh_hub(rundir: RunDir) -> tuple[HubInfo, bool]:
    """A hub of ``rundir`` that has seen no steps, and whether it was started here.

    A hub that an earlier run left behind is ended first, and what it stored is set aside: its steps would be mixed with
    the new ones.

    Raises:
        RunInUseError: live engines are attached to it.
        LaunchError: no hub could be started.
    """
    found = find_hub(rundir)
    if found is not None:
        if not _has_past(rundir):
            return found, False
        stop_hub(rundir, found)
    if find_hub(rundir) is None and has_steps(rundir.path):
        set_aside(rundir.path)
    return ensure_hub(rundir), True


def stop_hub(rundir: RunDir, hub: HubInfo) -> None:
    """End this hub of the run, and wait until its process is gone. One that died or was replaced is left alone."""
    if find_hub(rundir) != hub:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(hub.pid, number)
        deadline = time.monotonic() + STOP_S
        while group_members(hub.pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _has_past(rundir: RunDir) -> bool:
    with Client(rundir) as client:
        picture = client.snapshot()
    live = [engine.id for engine in picture.engines.values() if engine.health == "live"]
    if live:
        raise RunInUseError(
            f"run {rundir.run!r} is in use by engines {', '.join(live)}; choose another name with --run"
        )
    return bool(picture.steps or picture.engines)
