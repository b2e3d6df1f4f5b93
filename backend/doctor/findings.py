"""What a doctor reports: findings, grouped by section."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "note", "problem"]


class Finding(msgspec.Struct, frozen=True):
    """One statement about an installation or a run.

    Attributes:
        section: heading under which it is shown.
        level: ``ok``; ``note`` (worth knowing, nothing is wrong); ``problem`` (something does not work).
        text: one sentence.
        advice: what to do; empty if there is nothing to do.
    """

    section: str
    level: Level
    text: str
    advice: str = ""


def problems(findings: list[Finding]) -> list[Finding]:
    """The findings that are problems."""
    return [finding for finding in findings if finding.level == "problem"]
