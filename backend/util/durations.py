"""Durations as people type and read them."""

from __future__ import annotations

import re

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def span(seconds: float) -> str:
    """A duration as people type it, in its two largest units.

    >>> span(90), span(600), span(4000), span(0.5), span(86_400)
    ('1m30s', '10m', '1h6m', '0.5s', '1d')
    """
    if seconds < UNITS["m"]:
        return f"{round(max(seconds, 0.0), 1):g}s"
    left, parts = round(seconds), []
    for unit, size in UNITS.items():
        count, left = divmod(left, size)
        parts.append(f"{count}{unit}")
    first = next(place for place, part in enumerate(parts) if part[0] != "0")
    return "".join(part for part in parts[first : first + 2] if part[0] != "0")


def seconds_of(text: str) -> float:
    """The seconds in ``90s``, ``10m``, ``1h30m``. Raises ``ValueError``, which says what can be typed."""
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise ValueError(f"{text!r} is no duration; type 90s, 10m, 1h or 1h30m")
    return sum(float(count) * UNITS[unit] for count, unit in re.findall(r"([\d.]+)([dhms])", text))
