"""False alarms at every step of simulated healthy runs: findings of the checks, and verdicts of fault.

    .venv/bin/python -m bench.diagnosis_null [--runs 40] [--steps 60] [--paces 96]

The settings vary between runs: temperature, lag, engines, answer length, old logprobs, and how far an update moves the
weights. The policies are simulated (``tests/support/simulated.py``); seeds are fixed. Further runs go through the hub
(``tests/support/exact.py``) at 0.05 to 60 s a step, with engines that report their version once a second, with lags of
0 to 12 versions, and with engines whose tokens are older than those of the others.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from rltop.backend.api.verdict import FAULT
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.checks.run_all import run_all
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.summary.strata import warm
from tests.support.exact import Run, Setting
from tests.support.simulated import Policy

PACES = (0.05, 0.7, 5.0, 60.0)
"""Seconds of a step."""


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


def paced(number: int) -> Setting:
    """The healthy run of a certain pace that ``number`` seeds: paces, and numbers of engines, alternate."""
    rng = np.random.default_rng((7, number))
    engines = 1 + number // len(PACES) % 4
    return Setting(
        seed=number,
        steps=32,
        engines=engines,
        lag=int(rng.choice([0, 1, 2, 8, 12])),
        uneven=int(rng.choice([0, 4])) if engines > 1 else 0,
        old=str(rng.choice(["some", "none"])),
        step_s=PACES[number % len(PACES)],
        reports=True,
        move=0.03,
        size=4,
    )


def false_verdicts(setting: Setting) -> list[int]:
    """The steps of a healthy run with a verdict of fault."""
    verdicts = (diagnose(hub.state.frames.diagnosis_input()) for hub in Run(setting).hubs())
    return [step for step, verdict in enumerate(verdicts) if verdict.verdict == FAULT]


def main() -> None:
    """Run the checks and print the alarms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--paces", type=int, default=96)
    arguments = parser.parse_args()
    asked, findings, steps_with, runs_with, faults = 0, 0, 0, 0, 0
    alarms: Counter[str] = Counter()
    for number in range(arguments.runs):
        run = policy(number)
        before = sum(alarms.values())
        for case in run.cases(arguments.steps):
            found = run_all(case)
            own = [f"{one.test} {one.outcome}" for one in found if BY_NAME[one.test].alarms(one.outcome)]
            alarms.update(own)
            asked, findings, steps_with = asked + 1, findings + len(found), steps_with + bool(own)
            faults += diagnose(case).verdict == FAULT
        if sum(alarms.values()) > before:
            runs_with += 1
            print(f"alarms in run {number}: {run}", flush=True)
    print(f"{asked} steps of {arguments.runs} healthy runs, {findings} findings: {steps_with} steps with an alarm, in")
    print(f"{runs_with} runs; by test: {dict(alarms)}; {faults} verdicts of fault")
    warm()
    wrong = {number: at for number in range(arguments.paces) if (at := false_verdicts(paced(number)))}
    many = sum(paced(number).steps for number in range(arguments.paces))
    print(f"{sum(map(len, wrong.values()))} verdicts of fault in {many} steps of {arguments.paces} runs of all paces")
    for number, of_run in wrong.items():
        print(f"verdicts of fault from step {of_run[0]} in run {number}: {paced(number)}")


if __name__ == "__main__":
    main()
