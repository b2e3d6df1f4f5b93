"""For the person on call: which remedy a cause offers as a switch of ours, and how an alarm reaches the terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from rltop.backend.diagnosis.alarm import Alarm, about
from rltop.backend.diagnosis.verdict import Cause
from rltop.backend.view import Snapshot
from rltop.tui.confirm import Place, Wish, places
from rltop.tui.targets import Target, targets

SILENCE_S = 1800.0
"""How long the key for it silences an alarm."""

_OSC_777 = ("foot", "rxvt", "vte")
"""Terminals that take OSC 777 and not OSC 9."""


def remedy_of(cause: Cause, view: Snapshot) -> tuple[Target, Wish]:
    """What the cause's order would switch, and to what.

    Raises:
        ValueError: it has none, or it can't be given now; says why.
    """
    if not cause.command:
        raise ValueError(f"{cause.id}: no switch of rltop's cures this; {cause.remedy}")
    words = shlex.split(cause.command)[1:]
    engines = tuple(word for before, word in pairwise(words) if before == "--engine")
    if words[0] == "set":
        subject, word = words[1], words[2]
    else:
        subject, word = "", words[0]
    found = [
        target
        for target in targets(view)
        if target.engine == (engines[0] if len(engines) == 1 else None)
        and (target.subject.name == subject or any(c.word == word and c.verb != "set" for c in target.subject.choices))
    ]
    if not found:
        raise ValueError(f"`{cause.command}` can't be given from here")
    target = found[0]
    if target.refusal:
        raise ValueError(f"{target.where}: {target.refusal}")
    choice = next((choice for choice in target.choices if choice.word == word), None)
    if choice is None or target.value == word:
        raise ValueError(f"{subject or word} is {target.now} on {', '.join(engines) or 'all engines'} already")
    if len(engines) > 1:
        live = tuple(engine for engine in engines if engine in target.engines)
        return replace(target, engines=live), Wish(choice, Place(", ".join(live), live))
    return target, Wish(choice, places(target)[0])


def notification(alarm: Alarm, run: str, environ: Mapping[str, str] = os.environ) -> str:
    """What makes the terminal show a desktop notification: OSC 9, or OSC 777; passed on by tmux where it may."""
    said = "".join(c if c.isprintable() and c != ";" else " " for c in f"rltop {run}: {alarm.id} {about(alarm)}")
    terminal = f"{environ.get('TERM', '')} {environ.get('TERM_PROGRAM', '')}".lower()
    old = any(name in terminal for name in _OSC_777) or "VTE_VERSION" in environ
    sequence = f"\x1b]777;notify;rltop;{said}\x07" if old else f"\x1b]9;{said}\x07"
    if "TMUX" in environ:
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence
