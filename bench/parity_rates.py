"""How often `rltop parity` is wrong: on simulated runs, and on recorded ones of one configuration with several seeds.

    .venv/bin/python -m bench.parity_rates [--trials 1000] [--same FILE ...] [--fault FILE ...]

From the root of a checkout. Simulated: runs that differ by noise and by a slow drift of their own, of various sizes
(the test's model is 0.5); *fail* is the share of verdicts *not parity*. Recorded: each run of ``--same`` is judged
against every choice of 1, 2 and 3 others of them, and so is each of ``--fault``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rltop.backend.history.parity import DIVERGES, NOT_PARITY, parity
from rltop.backend.history.read import Reader
from rltop.backend.view import Step
from tests.test_parity import SCALE, run

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


def steps_of(path: Path) -> Steps:
    with Reader(path) as reader:
        return reader.picture().steps


def recorded(same: list[Path], faults: list[Path]) -> None:
    runs = {path.stem: steps_of(path) for path in same}
    for what, judged in (("same", runs), ("fault", {path.stem: steps_of(path) for path in faults})):
        for references in (1, 2, 3):
            verdicts = []
            for name, steps in judged.items():
                for others in itertools.combinations([r for n, r in runs.items() if n != name], references):
                    verdict = parity(list(others), steps)
                    which = [metric.metric for metric in verdict.metrics if metric.verdict == DIVERGES]
                    verdicts.append((name, verdict.verdict == NOT_PARITY, which, verdict.since))
            if verdicts:
                failed = [verdict for verdict in verdicts if verdict[1]]
                print(f"{what}: {references} references: {len(failed)} of {len(verdicts)} fail")
                for name, _, which, since in failed[:6]:
                    print(f"    {name}: {', '.join(which)} since {since}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--same", type=Path, nargs="*", default=[])
    parser.add_argument("--fault", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    if options.same:
        recorded(options.same, options.fault)
    else:
        simulated(options.trials)


if __name__ == "__main__":
    main()
