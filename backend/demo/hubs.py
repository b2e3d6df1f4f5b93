"""The demo and the hub of its run: one without a past, and none left behind."""

from __future__ import annotations

import contextlib

from rltop.backend.client import Client, HubUnreachable
from rltop.collectors.launch import HubInfo, ensure_hub, find_hub
from rltop.collectors.rundir import RunDir


class RunInUseError(RuntimeError):
    """Engines of somebody else are live on this run."""


def fresh_hub(rundir: RunDir) -> tuple[HubInfo, bool]:
    """A hub of ``rundir`` that has seen no steps, and whether it was started here.

    A hub that an earlier run left behind is ended first: its steps would be mixed with the new ones.

    Raises:
        RunInUseError: live engines are attached to it.
        LaunchError: no hub could be started.
    """
    found = find_hub(rundir)
    if found is not None and not _has_past(rundir):
        return found, False
    stop_hub(rundir)
    return ensure_hub(rundir), True


def stop_hub(rundir: RunDir) -> None:
    """End the run's hub, if there is one."""
    if find_hub(rundir) is not None:
        with Client(rundir) as client, contextlib.suppress(HubUnreachable):
            client.stop_hub()


def _has_past(rundir: RunDir) -> bool:
    with Client(rundir) as client:
        picture = client.snapshot()
    live = [engine.id for engine in picture.engines.values() if engine.health == "live"]
    if live:
        raise RunInUseError(
            f"run {rundir.run!r} is in use by engines {', '.join(live)}; choose another name with --run"
        )
    return bool(picture.steps or picture.engines)
