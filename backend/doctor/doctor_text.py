"""Findings as text of at most 80 columns, and as plain values. Pure."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

from rltop.backend.doctor.findings import Finding, problems

WIDTH = 80
_MARKS = {"ok": "  ok    ", "note": "  note  ", "problem": "  FAIL  "}
_INDENT = " " * len(_MARKS["ok"])


def as_text(findings: list[Finding]) -> str:
    """One block per section, in the order of the findings, and a last line with the number of problems."""
    blocks = [
        "\n".join([section, *map(_lines, group)]) for section, group in groupby(findings, lambda one: one.section)
    ]
    count = len(problems(findings))
    return "\n\n".join([*blocks, f"{count} problem{'s' * (count != 1)} found" if count else "no problem found"])


def _lines(finding: Finding) -> str:
    lines = _wrapped(finding.text, _MARKS[finding.level], _INDENT)
    return "\n".join([lines, _wrapped(finding.advice, f"{_INDENT}-> ", f"{_INDENT}   ")] if finding.advice else [lines])


def _wrapped(text: str, first: str, rest: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    return {
        "problems": len(problems(findings)),
        "findings": [
            {"section": one.section, "level": one.level, "text": one.text, "advice": one.advice} for one in findings
        ],
    }
