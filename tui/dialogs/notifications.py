"""For the person on call: which probe would tell a cause, and how an alarm reaches the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import Alarm, summary_line
from rltop.backend.api.verdict import Cause
from rltop.collectors.contract.probes import BY_NAME, SWITCH, Probe
from rltop.tui.dialogs.confirm_dialog import ConfirmPlain

SILENCE_S = 1800.0
"""How long the key for it silences an alarm."""

_OSC_777 = ("foot", "rxvt", "vte")
"""Terminals that take OSC 777 and not OSC 9."""


def probe_of(cause: Cause, view: Snapshot) -> Probe:
    """The probe that would tell, if it can be started from here. Raises ``ValueError``, which says why not."""
    if not cause.probe:
        raise ValueError(f"{cause.id}: no probe is needed to tell it from others")
    probe = BY_NAME.get(cause.probe)
    if probe is None:
        raise ValueError(f"{cause.probe}: rltop can't start this one; a person does it")
    if probe.by == SWITCH:
        raise ValueError(f"{probe.name}: switch the flag on one engine for a time (6, then t, w, f)")
    live = sum(engine.health == "live" for engine in view.engines.values())
    if live < probe.engines:
        raise ValueError(f"{probe.name} takes {probe.engines} live engines; there are {live}")
    return probe


def probe_question(probe: Probe, view: Snapshot) -> ConfirmPlain:
    """Whether to start it, with what it costs and may break."""
    engines = ", ".join(engine.id for engine in view.engines.values() if engine.health == "live")
    facts = [
        ("reaches", engines), ("does", probe.summary), ("tells", probe.isolates), ("cost", probe.cost),
        ("risk", probe.risk), ("needs", probe.needs), ("takes", probe.takes),
    ]  # fmt: skip
    return ConfirmPlain(f"Start probe {probe.name} ({probe.code}) ?", [f for f in facts if f[1]], "start")


def notification(alarm: Alarm, run: str, environ: Mapping[str, str] = os.environ) -> str:
    """What makes the terminal show a desktop notification: OSC 9, or OSC 777; passed on by tmux where it may."""
    said = "".join(c if c.isprintable() and c != ";" else " " for c in f"rltop {run}: {alarm.id} {summary_line(alarm)}")
    terminal = f"{environ.get('TERM', '')} {environ.get('TERM_PROGRAM', '')}".lower()
    old = any(name in terminal for name in _OSC_777) or "VTE_VERSION" in environ
    sequence = f"\x1b]777;notify;rltop;{said}\x07" if old else f"\x1b]9;{said}\x07"
    if "TMUX" in environ:
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence
