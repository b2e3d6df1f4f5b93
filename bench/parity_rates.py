"""Error rates of `rltop parity` on simulated runs, and on recorded runs of one configuration with several seeds.

    .venv/bin/python -m bench.parity_rates [--trials 1000] [--runs DIR]

Run it from the root of a checkout. Simulated runs differ by noise and by a slow drift of their own, of various sizes
(the model of the test assumes 0.75); *fail* is the share of verdicts *not parity*. For recorded runs, ``DIR`` has a
directory per run of the demo, as written by ``bench/faults.py record``; their tapes are replayed through the hub's
core. Every run is tested against every choice of 1, 2 and 3 other healthy runs with its objective and temperature;
healthy runs also against only those with the same number of engines, which differ by their seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rltop.backend.api import Step
from rltop.backend.parity.compare import DIVERGES, NOT_PARITY, parity
from tests.backend.exporters.test_parity import SCALE, run
from tests.support.tapes import replay

Steps = Mapping[int, Step]


def simulated(trials: int) -> None:
    for drift in (0.0, 0.5, 1.0):
        for references in (1, 2, 3, 5):
            rng = np.random.default_rng(references)
            wrong = sum(
                parity([run(rng, drift=drift) for _ in range(references)], run(rng, drift=drift)).verdict == NOT_PARITY
                for _ in range(trials)
            )
            print(f"drift {drift}: {references} references: {wrong / trials:.1%} fail", flush=True)
    for size in (0.5, 1.0, 2.0):
        for references in (1, 3):
            rng = np.random.default_rng(references)
            _, noise = SCALE["logp_abs_diff_mean"]
            shift = {"logp_abs_diff_mean": np.where(np.arange(100) >= 50, size * noise, 0.0)}
            found = sum(
                parity([run(rng) for _ in range(references)], run(rng, shift=shift)).verdict == NOT_PARITY
                for _ in range(trials // 2)
            )
            print(f"a gap {size:g} of a step's noise higher from step 50 of 100, {references} references: "
                  f"{found / (trials // 2):.0%} found", flush=True)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """A recorded run; only runs with the same ``like`` are compared."""

    name: str
    fault: str
    like: tuple[str, float]
    engines: int
    steps: Steps


def read(directory: Path) -> list[Recorded]:
    runs = []
    for path in sorted(directory.glob("*/tape.xz")):
        run = json.loads((path.parent / "run.json").read_text())
        like = run["objective"], run["temperature"]
        runs.append(Recorded(path.parent.name, run["fault"], like, run["engines"], replay(path).steps))
    return runs


def verdicts(tested: Recorded, references: list[Recorded], size: int) -> list[tuple[bool, str, int | None]]:
    """For each choice of ``size`` references: whether ``tested`` fails, in which metrics, and since which step."""
    found = []
    for chosen in itertools.combinations([r for r in references if r is not tested and r.like == tested.like], size):
        verdict = parity([reference.steps for reference in chosen], tested.steps)
        labels = ", ".join(metric.label for metric in verdict.metrics if metric.verdict == DIVERGES)
        found.append((verdict.verdict == NOT_PARITY, labels, verdict.since))
    return found


def recorded(directory: Path) -> None:
    runs = read(directory)
    healthy = [one for one in runs if one.fault == "healthy"]
    for same in (True, False):
        for size in (1, 2, 3):
            every = [
                verdict
                for one in healthy
                for verdict in verdicts(one, [r for r in healthy if r.engines == one.engines or not same], size)
            ]
            failed = sorted({labels for fails, labels, _ in every if fails})
            label = "other seeds" if same else "other seeds and engines"
            print(f"{label}, {size} references: {sum(fails for fails, *_ in every)} of {len(every)} fail {failed}")
    for one in runs:
        if one.fault != "healthy":
            print(row_of(one, healthy))


def row_of(tested: Recorded, healthy: list[Recorded]) -> str:
    """A row of the table of faults: shares that fail, the metrics of the longest verdict, the first step."""
    by_size = [verdicts(tested, healthy, size) for size in (1, 2, 3)]
    failed = [(labels, since) for of_size in by_size for fails, labels, since in of_size if fails]
    shares = " | ".join(f"{sum(fails for fails, *_ in of_size)} of {len(of_size)}" for of_size in by_size)
    most = max((labels for labels, _ in failed), key=len, default="")
    first = min((since for _, since in failed if since is not None), default="")
    return f"| {tested.name} | {shares} | {most} | {first} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    if options.runs:
        recorded(options.runs)
    else:
        simulated(options.trials)


if __name__ == "__main__":
    main()
