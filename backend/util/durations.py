"""Formats times, and formats and parses durations such as 1h30m."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def time_of_day(moment: float) -> str:
    """Format seconds since 1970 as a local time of day; ``?`` if no clock shows it."""
    return _formatted("%H:%M:%S", time.localtime, moment)


def date_and_time(moment: float) -> str:
    """Format seconds since 1970 as UTC; ``?`` if no clock shows it."""
    return _formatted("%Y-%m-%d %H:%M:%S", time.gmtime, moment)


def _formatted(form: str, calendar: Callable[[float], time.struct_time], moment: float) -> str:
    try:
        return time.strftime(form, calendar(moment))
    except (OverflowError, ValueError, OSError):  # of a damaged file, or of another machine's clock
        return "?"


def span(seconds: float) -> str:
    """Format a duration in its two largest units.

    >>> span(90), span(600), span(4000), span(0.5), span(86_400)
    ('1m30s', '10m', '1h6m', '0.5s', '1d')
    """
    if seconds < UNITS["m"]:
        return f"{round(max(seconds, 0.0), 1):g}s"
    left, parts = round(seconds), []
    for unit, size in UNITS.items():
        count, left = divmod(left, size)
        parts.append(f"{count}{unit}")
    first = next(index for index, part in enumerate(parts) if part[0] != "0")
    return "".join(part for part in parts[first : first + 2] if part[0] != "0")


def seconds_of(text: str) -> float:
    """Parse a duration such as ``90s``, ``10m`` or ``1h30m`` to seconds. Raises ``ValueError`` with a hint."""
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise ValueError(f"{text!r} is not a duration; use 90s, 10m, 1h or 1h30m")
    return sum(float(count) * UNITS[unit] for count, unit in re.findall(r"([\d.]+)([dhms])", text))
