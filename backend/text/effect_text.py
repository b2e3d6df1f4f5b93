"""The effect of a command as lines of text and as JSON, for the command line and the dashboard. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend import api
from rltop.backend.effects.estimate import FIGURES

_TITLES = {figure.name: figure.title for figure in FIGURES}
_HEADS = ("", "unit", "before", "after", "difference", "95 % interval", "N", "verdict")
_RIGHT = (2, 3, 4)
_DROPPED = (6, 1, 3, 2)
_WORDS = 36  # width up to which a verdict is shown in full if there is not enough space
_CAUTION = f"A 95 % interval misses the true value 1 time in 20: with {len(FIGURES)} rows, in about every third switch."


def as_json(effect: api.Effect) -> dict[str, Any]:
    """The report of ``rltop effect --json``: the fields of ``api.Effect``; unknown is None, never NaN."""
    built: dict[str, Any] = msgspec.to_builtins(effect)
    return built


def lines(effect: api.Effect, width: int | None = None) -> list[str]:
    """The switch, the window, other changes, and a table with one line per figure.

    With a control group, a second line has the difference in differences, which decides the verdict. A table wider than
    ``width`` loses columns, the least important first.
    """
    table = _table([cells for row in effect.rows for cells in _cells(row, effect)], width)
    return [*_preface(effect), "", *table, "", _CAUTION]


def _preface(effect: api.Effect) -> list[str]:
    switch = f"{effect.flag} {effect.old or '?'} → {effect.new or '?'} on {', '.join(effect.engines)}"
    reverted = f", reverting {effect.reverts}" if effect.reverts else ""
    control = f"compared with {', '.join(effect.against)}"
    if not effect.against:
        control = "no control group: every engine was switched, or no other one has tokens on both sides"
    window = "no step on either side yet"
    if effect.first_step is not None:
        window = f"steps {effect.first_step} to {effect.last_step}"
        if effect.mixed:
            window += f"; {effect.mixed} excluded, with tokens from before and after"
    found = [
        f"command {effect.command}: {switch}{reverted}",
        control,
        f"{window}; {'ended: ' + effect.ended if effect.ended else 'the window is open'}",
    ]
    return found + [f"confounder: {words}" for words in effect.confounds]


def _cells(row: api.EffectRow, effect: api.Effect) -> list[tuple[str, ...]]:
    every = "steps" if row.every == "step" else f"x {row.every}"
    counts = f"{row.before}/{row.after} {every}, {_short(row.samples_before)}/{_short(row.samples_after)} {row.samples}"
    first = (_TITLES.get(row.figure, row.figure), row.unit, *_numbers(row.own), counts, verdict(row))
    if row.against is None:
        return [first]
    names = ", ".join(effect.against) if len(effect.against) < 4 else f"{len(effect.against)} others"
    _, _, difference, interval = _numbers(row.against)
    return [first, (f"  against {names}", "", "", "", difference, interval, "", "")]


def _numbers(found: api.EffectEstimate | None) -> tuple[str, str, str, str]:
    if found is None:
        return "-", "-", "-", "-"
    interval = f"{found.low:+.3g} to {found.high:+.3g}"
    return f"{found.before:.4g}", f"{found.after:.4g}", f"{found.difference:+.3g}", interval


def verdict(row: api.EffectRow) -> str:
    """The verdict on a figure as text."""
    match row.verdict:
        case "none":
            return "no effect"
        case "not_yet":
            return f"not yet: about {_more(row)}" if row.more else f"not yet: {row.reason}"
        case "unclear":
            return f"inconclusive: {row.reason}"
        case "unknown":
            return f"not measured: {row.reason}"
        case "confounded":
            return "confounded"
    return row.verdict


def _more(row: api.EffectRow) -> str:
    if row.every == "step":
        return f"{row.more} more step{'s' if row.more != 1 else ''}"
    return f"{(row.more or 0) * float(row.every.split()[0]):.0f} more seconds"


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"


def _table(rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    widths = [max(len(row[i]) for row in (_HEADS, *rows)) for i in range(len(_HEADS))]
    shown = list(range(len(_HEADS)))
    for column in _DROPPED:
        if width is None or sum(min(widths[i], _WORDS) + 2 for i in shown) - 2 <= width:
            break
        shown.remove(column)
    found = []
    for row in (_HEADS, *rows):
        padded = (row[i].rjust(widths[i]) if i in _RIGHT else row[i].ljust(widths[i]) for i in shown)
        found.append("  ".join(padded).rstrip()[:width])
    return found
