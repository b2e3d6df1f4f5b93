"""The situations that monitors of RL runs were compared by, in simulated runs of many settings: is each named, when?

    .venv/bin/python -m bench.situations [--seeds 2] [--only top-p] [--peers DIR]

A fault comes in the middle of a run whose policies are exact (``tests/exact.py``), at several temperatures, lengths of
answers and sizes of the vocabulary, with the trainer's old logprobs and without. With ``--peers`` martingale is given
the same records (``bench/diagnosis_peers.py``), of one run each.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from bench.stress import Kind, Told, tell
from rltop.backend.api.verdict import FAULT
from rltop.backend.summary.strata import warm
from tests.exact import RIGHT, Setting, Wrong

AT, STEPS = 10, 24
CALM_STEPS = 40


@dataclass(frozen=True)
class Situation:
    """One of them.

    Attributes:
        kind: what is wrong, and the codes that name it.
        heats: temperatures of sampling that it is tried at.
        facts: whether engines and trainer say what they compute with.
    """

    kind: Kind
    heats: tuple[float, ...] = (0.7, 1.0)
    facts: bool = True


def _kind(name: str, codes: tuple[str, ...], wrong: Wrong, steps: int = STEPS) -> Kind:
    return Kind(name, codes, lambda _, __: replace(wrong, at=AT), steps=steps)


SITUATIONS: tuple[Situation, ...] = (
    Situation(_kind("healthy", (), RIGHT, CALM_STEPS)),
    Situation(_kind("raw logprobs, declared", ("A1",), Wrong(raw=True)), (0.5, 0.7, 1.3)),
    Situation(_kind("raw logprobs, not declared", ("A1",), Wrong(raw=True)), (0.5, 0.7, 1.3), facts=False),
    Situation(_kind("stale replica, version shows it", ("B6",), Wrong(engine="e1", stuck=True))),
    Situation(_kind("stale replica, version hides it", ("B6",), Wrong(engine="e1", stuck=True, lies=True))),
    Situation(_kind("top-p 0.9 in rollout logprobs", ("A4",), Wrong(top_p=0.9)), (0.7, 1.0, 1.3)),
    Situation(_kind("top-p 0.9, not declared", ("A5",), Wrong(raw=True, top_p=0.9)), (1.0,)),
    Situation(_kind("off by one", ("A12",), Wrong(shift=1))),
    Situation(_kind("entropy collapse", ("J1",), Wrong(sharpens=0.08), 2 * STEPS)),
)  # fmt: skip

USUAL = Setting(lag=1, facts=True)
SHAPES: tuple[Setting, ...] = (
    USUAL,
    replace(USUAL, shortest=3, longest=10, groups=16, vocabulary=64),
    replace(USUAL, shortest=80, longest=400, groups=4, size=6, vocabulary=4096, contexts=96),
    replace(USUAL, lag=0, old="none", move=0.08),
    replace(USUAL, lag=2, old="all", dtype="bfloat16"),
)
"""Lengths and vocabularies; and with the trainer's old logprobs of some rows, of none (on-policy), of all."""


def settings(situation: Situation, seeds: int) -> Iterator[Setting]:
    """All that a situation is tried in."""
    steps = situation.kind.steps
    for number, (shape, heat, seed) in enumerate(product(SHAPES, situation.heats, range(seeds))):
        yield replace(shape, heat=heat, seed=100 * number + seed, steps=steps, facts=situation.facts)


def row(situation: Situation, told: Sequence[Told]) -> str:
    """Of the table: how often right, when told."""
    right = sum(one.outcome == "right" for one in told)
    alarms, looked = sum(len(one.alarms) for one in told), sum(_calm(one) for one in told)
    delays = [delay for one in told if (delay := _delay(one)) is not None]
    late = f"{statistics.median(delays):g} ({max(delays)})" if delays else "-"
    others = Counter(one.last for one in told if one.outcome != "right")
    instead = ", ".join(f"{name} {count}x" for name, count in others.items()) or "-"
    code = situation.kind.codes[0] if situation.kind.codes else "healthy"
    cells = (situation.kind.name, code, f"{right} of {len(told)}", late, instead, f"{alarms} in {looked}")
    return f"| {' | '.join(cells)} |"


def _calm(told: Told) -> int:
    onset = told.wrong.at if told.kind.codes else told.setting.steps
    return sum(step < onset for step in told.steps)


def _delay(told: Told) -> int | None:
    """Steps from the onset to the first verdict of fault."""
    since = zip(told.steps, told.verdicts, strict=True)
    return next((step - told.wrong.at for step, v in since if step >= told.wrong.at and v.verdict == FAULT), None)


HEAD = (
    "| situation | cause | correct at end | reported after steps (worst) | instead | alarms before, in steps |",
    "| --- | --- | --- | --- | --- | --- |",
)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="names, or parts of them")
    parser.add_argument("--peers", type=Path, help="where martingale is installed")
    given = parser.parse_args()
    warm()
    chosen = [one for one in SITUATIONS if not given.only or any(text in one.kind.name for text in given.only)]
    print("\n".join(HEAD))
    for situation in chosen:
        wrong = situation.kind.wrong(USUAL, 0.0)
        runs = [tell(situation.kind, setting, wrong, every=1) for setting in settings(situation, given.seeds)]
        print(row(situation, runs), flush=True)
    if given.peers is not None:
        print("\n".join(["", *beside(chosen, given.peers)]))


def beside(chosen: Sequence[Situation], peers: Path) -> Iterator[str]:
    """A table of what martingale says of one run each."""
    from bench.diagnosis_peers import Flight, flown

    yield "| situation | cause | rltop | martingale's alarms, before and since | martingale's doctor |"
    yield "| --- | --- | --- | --- | --- |"
    for situation in chosen:
        setting = next(iter(settings(replace(situation, heats=situation.heats[-1:]), 1)))
        with flown(peers) as workspace:
            flight = Flight(workspace)
            run = tell(situation.kind, setting, situation.kind.wrong(setting, 0.0), heard=flight.hear)
            counted = [Counter(k for step, k in flight.alarms if (step >= AT) is since) for since in (False, True)]
            told = "; ".join(", ".join(f"{kind} {n}x" for kind, n in one.items()) or "-" for one in counted)
            code = situation.kind.codes[0] if situation.kind.codes else "healthy"
            yield f"| {situation.kind.name} | {code} | {run.last} | {told} | {'; '.join(flight.doctor()) or '-'} |"


if __name__ == "__main__":
    main()
