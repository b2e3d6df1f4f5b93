"""The catalogue as text: the page ``docs/metrics.md``, and the explanation of a single metric. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rltop.backend import metrics
from rltop.backend.metrics import elsewhere
from rltop.backend.metrics.absent import ABSENT
from rltop.backend.metrics.metric import Metric
from rltop.backend.summary import environments
from rltop.backend.summary.dimensions import DIMENSIONS


def unit_of(metric: Metric) -> str:
    """The unit in words, never empty."""
    return metric.unit or "the trainer's own"


def as_json(metric: Metric) -> dict[str, Any]:
    """One entry as plain values."""
    limits = metric.thresholds
    family = next(family for family in metrics.FAMILIES if metric in family.metrics)
    return {
        "name": metric.name,
        "unit": unit_of(metric),
        "level": metric.level,
        "formula": metric.formula,
        "reading": metric.reading,
        "needs": metric.needs or None,
        "source": metric.source,
        "bad": metric.bad,
        "thresholds": {"amber": limits.amber, "red": limits.red, "source": limits.source} if limits else None,
        "aliases": [elsewhere.label(entry) for entry in elsewhere.of_metric(metric.name)],
        "per_engine": metric.name in metrics.PER_ENGINE,
        "family": family.title,
    }


def explain(metric: Metric) -> list[tuple[str, str]]:
    """Explains a metric, as (label, text) lines for a panel."""
    lines = [
        ("unit", f"{unit_of(metric)}, per {metric.level}"),
        ("formula", metric.formula),
        ("source", metric.source),
    ]
    if metric.reading:
        lines.append(("reading", metric.reading))
    if metric.needs:
        lines.append(("requires", metric.needs))
    if metric.bad != "none":
        lines.append(("bad", metric.bad))
    if limits := metric.thresholds:
        lines += [("amber", f"{limits.amber:g}"), ("red", f"{limits.red:g}"), ("source of the limits", limits.source)]
    lines += [("elsewhere", elsewhere.label(entry)) for entry in elsewhere.of_metric(metric.name)]
    return lines


_COUNTS = (
    ("backend_", ("backend_tokens",)),
    ("stale_backend_", ("stale_backend_tokens",)),
    ("lag0_", ("lag0_tokens",)),
    ("noise_", ("backend_tokens", "lag0_tokens")),
)
"""By prefix of the name: metrics whose first non-zero value is the number of tokens behind it."""

_OF_LEVEL = {"token": "tokens", "sequence": "sequences", "request": "requests"}


def count(metric: Metric, values: metrics.Values) -> tuple[float, str] | None:
    """Number and unit of the items behind a metric, in a step or an engine's part of it; None if not stored."""
    if metric.name.startswith(("clip_frac_", "noise_clip_frac_")):  # cover all updates, per token or per sequence
        return None
    if of := next((names for start, names in _COUNTS if metric.name.startswith(start)), None):
        found, unit = next((n for name in of if (n := values.get(name))), None), "tokens"
    else:
        unit = _OF_LEVEL.get(metric.level, "")
        found = values.get(unit)
    return None if found is None else (found, unit)


def page() -> str:
    """``docs/metrics.md``: conventions, every metric by question, thresholds, names elsewhere, and strata."""
    conventions = (metrics.__doc__ or "").split("\n\n")[1].removeprefix("Conventions. ").replace("``", "`")
    lines = [
        "# Metrics",
        "",
        "Generated from the tables in [`backend/metrics/`](../backend/metrics) that the hub and `rltop compute` use:",
        "`python -m rltop.backend.metrics > docs/metrics.md`. `rltop metrics NAME` prints one entry.",
        "",
        conventions,
        "",
    ]
    heads = ("metric", "unit", "level", "formula", "source", "per engine", "reading")
    for family in metrics.FAMILIES:
        rows = [
            (
                f"`{m.name}`",
                m.unit or "-",
                m.level,
                m.formula,
                m.source,
                "yes" if m.name in metrics.PER_ENGINE else "no",
                " ".join(filter(None, (m.reading, m.needs and f"Requires {m.needs}."))),
            )
            for m in family.metrics
        ]
        lines += [
            f"## {family.title}",
            "",
            *([family.question, ""] if family.question else []),
            *_table(heads, rows),
            "",
        ]
    limits = [
        (f"`{m.name}`", m.bad, f"{m.thresholds.amber:g}", f"{m.thresholds.red:g}", m.thresholds.source)
        for m in metrics.METRICS
        if m.thresholds
    ]
    strata = [(f"`{d.name}`", d.help, str(len(d.strata)), f"{d.strata[0]} ... {d.strata[-1]}") for d in DIMENSIONS]
    help_ = "environment or task of the sequence, as the trainer names it; those with the most tokens"
    strata.append(
        (f"`{environments.NAME}`", help_, str(environments.MAX_ENVIRONMENTS), f"*name* ... {environments.OTHER}")
    )
    return "\n".join(
        [
            *lines,
            "## Thresholds",
            "",
            "Starting points, since models differ. If *bad* is *away from* a value, thresholds are distances from it. "
            "A run whose logprobs are invalid, or whose k3, ESS or mean ratio stay red without a reason, is never "
            "healthy: [`diagnosis.md`](diagnosis.md).",
            "",
            *_table(("metric", "bad", "amber", "red", "source"), limits),
            "",
            *_names(),
            "## Metrics that are not computed",
            "",
            *_table(("name", "why", "instead"), [(f"`{a.name}`", a.why, a.instead) for a in ABSENT]),
            "",
            "## Dimensions of the gap",
            "",
            "Each stratum has its tokens, its sequences, and d, |d|, k3 and ratio with standard errors clustered by",
            "sequence. Engine, flag epoch and prompt group are further dimensions. Strata of probability also have the",
            "sum of |d| over the sum of 1 - p.",
            "",
            *_table(("dimension", "meaning", "strata", "from ... to"), strata),
            "",
        ]
    )


def _names() -> list[str]:
    """The keys of each framework, one table per framework."""
    lines = [
        "## Names in other frameworks",
        "",
        "`rltop metrics KEY` looks a key up. Where *differs* is empty, the same arrays give the same value. *old*: the",
        "framework compares old with rollout logprobs where the metric compares the trainer's; the two are equal until",
        "the weights change. *Read in* is the place in the framework's source that computes the key.",
        "",
    ]
    for framework in dict.fromkeys(source.framework for source, _ in elsewhere.ENTRIES):
        rows = [
            (f"`{key.key}`", f"`{key.metric}`", key.when, key.differs, "yes" if source.old else "", source.averaged,
             f"{source.version}: `{source.place}`")
            for source, key in elsewhere.ENTRIES
            if source.framework == framework
        ]  # fmt: skip
        lines += [f"### {framework}", "", *_table(_KEY_HEADS, rows), ""]
    return lines


_KEY_HEADS = ("key", "metric", "when", "differs", "old", "averaged", "read in")


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    rule = tuple("---" for _ in heads)
    escaped = (tuple(cell.replace("|", "\\|") for cell in row) for row in rows)
    return ["| " + " | ".join(row) + " |" for row in (heads, rule, *escaped)]
