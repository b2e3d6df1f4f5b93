"""Appearance: palette, signs that accompany every colour, short number formats, rows of text.

Colours are 256-colour approximations of the Okabe-Ito palette, safe for colour-blind readers on dark and light
backgrounds; the background is the terminal's own. Each costs 11 bytes on the wire, a true colour 19.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

PLAIN = Style()
FAINT = Style(color="color(244)")
STRONG = Style(bold=True)
HEAD = Style(color="color(250)", underline=True)
CURSOR = Style(reverse=True)
GOOD = Style(color="color(36)")
WARN = Style(color="color(214)")
BAD = Style(color="color(202)", bold=True)
MARK = Style(color="color(175)")
ALARM = Style(reverse=True, bold=True)
SERIES = (Style(color="color(74)"), Style(color="color(214)"), Style(color="color(36)"))
"""Lines of a plot, in order."""

SEVERITY = {"info": ("·", PLAIN), "warn": ("▲", WARN), "error": ("✖", BAD)}
"""Sign and style of an event, by severity."""

OUTCOME = {
    "requested": ("○", FAINT),
    "accepted": ("◔", PLAIN),
    "draining": ("◑", PLAIN),
    "applied": ("✔", GOOD),
    "refused": ("✖", BAD),
    "timed_out": ("▲", WARN),
    "superseded": ("·", FAINT),
}
"""Sign and style of a flag change, by state."""

UNKNOWN = "-"
"""Text of an unknown value. Never 0, never blank."""

Part = tuple[str, Style]


def clean(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells: cut with an ellipsis or padded; control characters become '?'.

    A cut clause keeps its negation: ``scheduling is not supported`` never becomes ``scheduling is…``. Names and reasons
    come from other machines: an escape sequence in them must not reach the terminal.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    if _cells(text) <= width:
        return text + " " * (width - _cells(text))
    tail = "…" * (width > 0)
    if (negation := _cut_negation(text, width - 1)) and len(negation) + 3 <= width:
        tail = f"…{negation}…"
    return set_cell_size(text, max(width - len(tail), 0)) + tail


_NEGATION = re.compile(r"\b(?:not|no|never|neither|without|cannot|none|\w+n't)\b", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[,;:.()]")


def _cut_negation(text: str, kept: int) -> str:
    """The negation that a cut after ``kept`` characters removes from the clause that it cuts; empty for none."""
    found = _NEGATION.search(text, max(text.rfind(" ", 0, max(kept, 0)), 0))
    if found is None or found.end() <= kept or _CLAUSE_END.search(text, max(kept, 0), found.start()):
        return ""
    return found.group()


def row(parts: Iterable[Part], width: int) -> Strip:
    """One line of ``width`` cells; parts that do not fit are cut."""
    segments, used = [], 0
    for text, style in parts:
        if used >= width:
            break
        segment = Segment(clean(text, min(_cells(text), width - used)), style)
        segments.append(segment)
        used += segment.cell_length
    segments += [Segment(" " * (width - used), PLAIN)] if used < width else []
    return Strip(segments, width).simplify()


def length(parts: Iterable[Part]) -> int:
    """Cells that the parts need."""
    return sum(_cells(text) for text, _ in parts)


def _cells(text: str) -> int:
    return len(text) if text.isascii() else Segment(text).cell_length


def figure(value: float | None, digits: int = 3) -> str:
    """A number in ``digits`` significant digits (one fewer below 0.01) and few characters: 0.0123, 4.1e-4, 12.3k."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.{max(digits - 2, 0)}e}".replace("e-0", "e-")
    if size < 1000:
        decimals = max(digits - 1 - math.floor(math.log10(size)), 0)
        return f"{value:.{min(decimals, max(digits + 1, 4))}f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G")):
        if size < limit * 0.9995:
            return figure(value / (limit / 1e3), digits) + unit
    return f"{value:.0e}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage: 4.2%, 100%."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f}%"


def whole(value: int | None) -> str:
    """An integer, or unknown."""
    return UNKNOWN if value is None else str(value)


def duration(seconds: float) -> str:
    """A duration in at most 4 characters: 8s, 12m, 3.5h, 4d."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f}s"
    if seconds < 6000:
        return f"{seconds / 60:.0f}m"
    if seconds < 36_000:
        return f"{seconds / 3600:.1f}h"
    return f"{seconds / 3600:.0f}h" if seconds < 360_000 else f"{seconds / 86_400:.0f}d"


def clock(seconds: float) -> str:
    """Time left, with seconds below one hour: 0:07, 9:32, 1:02h, 3d."""
    left = max(round(seconds), 0)
    if left < 3600:
        return f"{left // 60}:{left % 60:02d}"
    return f"{left // 3600}:{left // 60 % 60:02d}h" if left < 172_800 else f"{left // 86_400}d"


def flag_label(flag: str, value: str | None, *, short: bool = False) -> str:
    """The short name of a switch: ``pc-`` is prefix_caching off, ``lm=raw`` logprobs_mode raw (``lm=r`` if short)."""
    initials = "".join(word[0] for word in flag.split("_") if word)
    return initials + {"on": "+", "off": "-", None: "?"}.get(value, f"={(value or '')[: 1 if short else None]}")


def wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken at blanks."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines
