"""The migration's figure from reports of demos: clip rate, KL, entropy, reward and gap, one plot each, in one SVG.

    python -m bench.migration_figure OUT.svg RUN.json UNCURED.json REFERENCE.json...

Reports are those of ``rltop demo --fault v1-defaults --json FILE``: RUN is switched while it trains, UNCURED not, and
references are switched after their first step. ``docs/parity.md`` has the commands. Prints means between the switches.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rltop.backend.report.svg import HEIGHT, WIDTH, Floats, PlotLine, PlotMark, svg

FIGURES = {
    "version-matched gap, mean |d|, nats": ("backend_abs_diff_mean",),
    "clipped tokens, share": ("clip_frac_low", "clip_frac_high"),
    "KL(rollout, trainer), k3, nats": ("kl_k3",),
    "entropy, nats": ("entropy",),
    "reward": ("reward_mean",),
}
"""Title of a plot, and the metrics that are added up."""

SMOOTHED = 5
"""Steps of the running mean."""

SETTLED = 2
"""Steps after a switch that are left out of the means: their tokens were sampled before it."""

Report = dict[str, Any]


def column(report: Report, names: tuple[str, ...]) -> Floats:
    """The sum of some metrics [steps], NaN where one is unknown."""
    rows = [[step[name] for name in names] for step in report["steps"]]
    found: Floats = np.array(rows, float).sum(1)
    return found


def smooth(values: Floats) -> Floats:
    """The mean of each value and the ``SMOOTHED - 1`` before it [n]."""
    return np.array([values[max(0, end - SMOOTHED) : end].mean() for end in range(1, len(values) + 1)])


def switches(report: Report) -> dict[int, str]:
    """The switches that were applied, by step."""
    found = re.compile(r"(\w+) \w+ → (\w+) applied")
    texts = ((event["step"], found.match(event["text"])) for event in report["events"] if event["step"] is not None)
    return {step: " ".join(match.groups()) for step, match in texts if match}


def lines(names: tuple[str, ...], reports: dict[str, Report]) -> list[PlotLine]:
    return [PlotLine(label, smooth(column(report, names))) for label, report in reports.items()]


def picture(reports: dict[str, Report], marks: list[PlotMark]) -> str:
    """All plots below each other."""
    steps = np.array([step["step"] for step in reports["switched"]["steps"]], float)
    plots = [svg(title, steps, lines(names, reports), marks) for title, names in FIGURES.items()]
    placed = [plot.replace("<svg ", f'<svg y="{place * HEIGHT}" ', 1) for place, plot in enumerate(plots)]
    size = f'width="{WIDTH}" height="{HEIGHT * len(plots)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(placed)}</svg>\n'


def means(reports: dict[str, Report], edges: list[int]) -> list[str]:
    """A table of the means between switches."""
    rows = ["| run | steps | " + " | ".join(FIGURES) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for label, report in reports.items():
        columns = [column(report, names) for names in FIGURES.values()]
        for first, end in zip([0, *(edge + SETTLED for edge in edges)], [*edges, len(columns[0])], strict=True):
            values = " | ".join(f"{one[first:end].mean():.4f}" for one in columns)
            rows.append(f"| {label} | {first} to {end - 1} | {values} |")
    return rows


def main(out: Path, run: Path, uncured: Path, *references: Path) -> None:
    read = {"switched": run, "not switched": uncured} | {f"reference {n}": one for n, one in enumerate(references, 1)}
    reports: dict[str, Report] = {label: json.loads(path.read_text()) for label, path in read.items()}
    done = switches(reports["switched"])
    marks = [PlotMark(step, label, "switch") for step, label in done.items()]
    out.write_text(picture(reports, marks))
    print("\n".join(means(reports, [step + 1 for step in done])))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
