"""False alarm rate of the diagnosis checks at every step of simulated healthy runs.

    .venv/bin/python -m bench.diagnosis_null [--runs 40] [--steps 60]

The settings vary between runs: temperature, lag, engines, answer length, old logprobs, and how far an update moves the
weights. The policies are simulated (``tests/support/simulated.py``); seeds are fixed.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.checks.run_all import run_all
from tests.support.simulated import Policy


def policy(number: int) -> Policy:
    """The healthy run that ``number`` seeds."""
    rng = np.random.default_rng(number)
    low, move = int(rng.choice([6, 10, 30])), float(rng.choice([0.02, 0.05, 0.1, 0.2]))
    return Policy(
        seed=1000 + number,
        heat=float(rng.choice([0.6, 0.7, 0.85, 1.0, 1.2])),
        engines=int(rng.choice([1, 2, 3, 4])),
        lag=int(rng.choice([0, 1, 2, 4])) if move < 0.1 else 1,
        move=move,
        size=(low, 2 * low),
        matched=int(rng.choice([0, 16, 64])),
    )


def main() -> None:
    """Run the checks and print the alarms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    asked, findings, steps_with, runs_with = 0, 0, 0, 0
    alarms: Counter[str] = Counter()
    for number in range(arguments.runs):
        run = policy(number)
        before = sum(alarms.values())
        for case in run.cases(arguments.steps):
            found = run_all(case)
            own = [f"{one.test} {one.outcome}" for one in found if BY_NAME[one.test].alarms(one.outcome)]
            alarms.update(own)
            asked, findings, steps_with = asked + 1, findings + len(found), steps_with + bool(own)
        if sum(alarms.values()) > before:
            runs_with += 1
            print(f"alarms in run {number}: {run}", flush=True)
    print(f"{asked} steps of {arguments.runs} healthy runs, {findings} findings: {steps_with} steps with an alarm, in")
    print(f"{runs_with} runs; by test: {dict(alarms)}")


if __name__ == "__main__":
    main()
