"""The table of docs/faults.md: metrics of the recorded runs for tuning."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from rltop.backend.api import Step
from tests.support.tapes import replay

FIGURES: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward_mean", ".2f"),
    ("entropy", "entropy", ".2f"),
    ("NLL - entropy", "nll_minus_entropy", "+.3f"),
    ("mean ratio", "ratio_mean", ".3f"),
    ("abs gap", "logp_abs_diff_mean", ".3f"),
    ("k3", "kl_k3", ".1e"),
    ("ESS", "ess", ".2f"),
    ("lag", "lag_mean", ".1f"),
    ("matched ratio", "backend_ratio_mean", ".3f"),
    ("matched d", "backend_diff_mean", "+.3f"),
    ("matched abs", "backend_abs_diff_mean", ".1e"),
    ("matched max", "backend_abs_diff_max", ".1e"),
    ("joined", "joined_fraction", ".2f"),
)
"""Heading, metric and format. A cell is the median over the steps with the fault."""


def rows(out: Path) -> Iterator[str]:
    """The Markdown table, with a row per recorded run for tuning, ordered by name."""
    headings = ["run", "code", "steps", *(heading for heading, _, _ in FIGURES), "grad norm", "k3 by engine"]
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for path in sorted(out.glob("*/run.json")):
        run = json.loads(path.read_text())
        if run["part"] == "tune":
            steps = [step for number, step in replay(path.parent / "tape.xz").steps.items() if number >= run["onset"]]
            yield row(run["name"], run["code"], steps)


def row(name: str, code: str, steps: list[Step]) -> str:
    """One row: medians over ``steps``."""
    cells = [f"`{name}`", code or "-", f"{min(s.step for s in steps)}-{max(s.step for s in steps)}"]
    cells += [_median([step.values.get(metric) for step in steps], spec) for _, metric, spec in FIGURES]
    cells.append(_median([step.trainer.get("grad_norm") for step in steps], ".2f"))
    engines = sorted({engine for step in steps for engine in step.engines})
    by_engine = [[step.engines[engine]["kl_k3"] for step in steps if engine in step.engines] for engine in engines]
    return f"| {' | '.join([*cells, ', '.join(_median(values, '.1e') for values in by_engine)])} |"


def _median(values: list[float | None], spec: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.median(known), spec) if known else "-"
