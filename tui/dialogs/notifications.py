"""Alarms on the terminal (bell, desktop notification), and the dialog that starts a probe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from textual.app import App

from rltop.backend.alarms.notified import NotificationHistory
from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import CLEARED, Alarm, summary_line
from rltop.backend.api.verdict import Cause
from rltop.collectors.contract.probes import BY_NAME, SWITCH, Probe
from rltop.tui.dialogs.confirm_dialog import ConfirmPlain
from rltop.tui.widgets.terminal import send

SILENCE_S = 1800.0
"""Seconds for which the key silences an alarm."""

_OSC_777 = ("foot", "rxvt", "vte")
"""Terminals that support OSC 777 and not OSC 9."""


def probe_of(cause: Cause, snapshot: Snapshot) -> Probe:
    """The probe that confirms the cause. Raises ``ValueError`` with the reason if it can't be started from here."""
    if not cause.probe:
        raise ValueError(f"{cause.id}: no probe is needed to confirm it")
    probe = BY_NAME.get(cause.probe)
    if probe is None:
        raise ValueError(f"{cause.probe}: rltop can't start this one; do it by hand")
    if probe.by == SWITCH:
        raise ValueError(f"{probe.name}: switch the flag on one engine for a time (Control view, then t, w, f)")
    live = sum(engine.health == "live" for engine in snapshot.engines.values())
    if live < probe.engines:
        raise ValueError(f"{probe.name} takes {probe.engines} live engines; there are {live}")
    return probe


def probe_question(probe: Probe, snapshot: Snapshot) -> ConfirmPlain:
    """The dialog before a probe, with its cost and risk."""
    engines = ", ".join(engine.id for engine in snapshot.engines.values() if engine.health == "live")
    facts = [
        ("reaches", engines), ("does", probe.summary), ("isolates", probe.isolates), ("cost", probe.cost),
        ("risk", probe.risk), ("requires", probe.needs), ("takes", probe.takes),
    ]  # fmt: skip
    return ConfirmPlain(f"Start probe {probe.name} ({probe.code}) ?", [f for f in facts if f[1]], "start")


def notification(alarm: Alarm, run: str, environ: Mapping[str, str] = os.environ) -> str:
    """The control sequence of a desktop notification: OSC 9 or OSC 777, wrapped for tmux."""
    text = "".join(c if c.isprintable() and c != ";" else " " for c in f"rltop {run}: {alarm.id} {summary_line(alarm)}")
    terminal = f"{environ.get('TERM', '')} {environ.get('TERM_PROGRAM', '')}".lower()
    old = any(name in terminal for name in _OSC_777) or "VTE_VERSION" in environ
    sequence = f"\x1b]777;notify;rltop;{text}\x07" if old else f"\x1b]9;{text}\x07"
    if "TMUX" in environ:
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence


class AlarmBell:
    """Rings the terminal's bell and sends a desktop notification, once per change of an alarm.

    Args:
        app: owns the terminal.
        run: name of the run.
        enabled: otherwise alarms are only followed.
    """

    def __init__(self, app: App[Any], run: str, *, enabled: bool) -> None:
        self._app = app
        self._run = run
        self._enabled = enabled
        self._notified = NotificationHistory()

    def update(self, snapshot: Snapshot) -> None:
        """Notify about every new change except clearing."""
        for change in self._notified.new_changes(snapshot.alarms.values(), snapshot.time):
            if self._enabled and change.what != CLEARED:
                self._app.bell()
                send(self._app, notification(change.alarm, self._run))
