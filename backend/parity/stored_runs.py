"""Compares stored runs: reads them, computes the verdict, and formats it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rltop.backend import api
from rltop.backend.parity import compare
from rltop.backend.store.read import Reader, evaluating

MAX_SETTINGS = 12
"""Most differing settings that are printed."""

_OWN_FACTS = frozenset({"pid", "host", "policy_version", "weight_label", "prefix cache resets"})
"""Facts that differ between any two runs."""


def compare_stored(references: Sequence[Path], run: Path) -> compare.ParityVerdict:
    """The verdict on stored runs.

    Raises:
        StoreError: a store can't be read.
    """
    pictures = [_picture(path) for path in (*references, run)]
    return compare.parity([p.steps for p in pictures[:-1]], pictures[-1].steps, differing(pictures[:-1], pictures[-1]))


def _picture(path: Path) -> api.Snapshot:
    with evaluating(path), Reader(path) as reader:
        return reader.snapshot()


def facts(picture: api.Snapshot) -> dict[str, set[str]]:
    """Every setting of engines and trainer, with all its values during the run."""
    values_of: dict[str, set[str]] = {}
    for engine in picture.engines.values():
        for name, flag in engine.flags.items():
            values_of.setdefault(f"engine {name}", set()).add(str(flag.value))
        for name, fact in engine.fingerprint.items():
            if name not in engine.flags and name not in _OWN_FACTS:
                values_of.setdefault(f"engine {name}", set()).add(fact)
    for name, fact in picture.trainer.facts.items():
        values_of.setdefault(f"trainer {name}", set()).add(fact)
    for change in picture.changes.values():  # values that were switched during the run
        if change.state == "applied" and change.flag:
            values = {value for value in (change.old, change.new) if value}
            values_of.setdefault(f"engine {change.flag}", set()).update(values)
    return values_of


def differing(references: Sequence[api.Snapshot], run: api.Snapshot) -> list[str]:
    """Settings in which the run differs from its references, one line each."""
    theirs: dict[str, set[str]] = {}
    for picture in references:
        for name, values in facts(picture).items():
            theirs.setdefault(name, set()).update(values)
    ours = facts(run)
    return [
        f"{name}: reference {_or(theirs.get(name))}, run {_or(ours.get(name))}"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]


def _or(values: set[str] | None) -> str:
    return " and ".join(sorted(values)) if values else "-"


_HEADS = (("reference", 11), ("run", 11), ("difference", 12), ("noise", 10), ("detectable", 12))


def as_text(verdict: compare.ParityVerdict) -> str:
    """For people: the verdict, then a table of metrics, notes and differing settings."""
    since = f", since step {verdict.since}" if verdict.since is not None else ""
    which = [metric.label for metric in verdict.metrics if metric.verdict == compare.DIVERGES]
    lines = [
        verdict.verdict + (f" in {', '.join(which)}{since}" if which else ""),
        f"  {verdict.steps} common steps, {verdict.references} reference run{'s' if verdict.references > 1 else ''}",
        "",
        f"  {'metric':<19}{'verdict':<18}" + "".join(f"{head:>{width}}" for head, width in _HEADS) + "  steps",
    ]
    for metric in verdict.metrics:
        figures = (metric.reference, metric.run, metric.difference, metric.noise, metric.detectable)
        shown = "".join(
            f"{_figure(value):>{width}}" for value, width in zip(figures, (11, 11, 12, 10, 12), strict=True)
        )
        span = f"{metric.since}-{metric.until}" if metric.since is not None else str(metric.steps)
        lines.append(f"  {metric.label:<19}{metric.verdict:<18}{shown}  {span}")
    lines += ["", *(f"  {note}" for note in verdict.notes)] if verdict.notes else []
    if verdict.settings:
        more = len(verdict.settings) - MAX_SETTINGS
        lines += ["", "  settings that differ", *(f"    {line}" for line in verdict.settings[:MAX_SETTINGS])]
        lines += [f"    and {more} more (--json)"] if more > 0 else []
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
