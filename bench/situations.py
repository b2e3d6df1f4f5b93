"""Accuracy and delay of the diagnosis on simulated runs of common faults, in many settings.

    .venv/bin/python -m bench.situations [--seeds 2] [--only top-p] [--peers DIR]

A fault starts in the middle of a run with exact policies (``tests/support/exact.py``), at several temperatures, answer
lengths and vocabulary sizes, with and without old logprobs. With ``--peers`` martingale gets the same messages
(``bench/diagnosis_peers.py``), of one run per situation.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from bench.stress import DiagnosedRun, Kind, diagnose_run
from rltop.backend.api.verdict import FAULT
from rltop.backend.summary.strata import warm
from tests.support.exact import RIGHT, Setting, Wrong

AT, STEPS = 10, 24
HEALTHY_STEPS = 40


@dataclass(frozen=True)
class Situation:
    """A fault and the settings to try it in.

    Attributes:
        kind: the fault and the cause codes that count as right.
        heats: sampling temperatures.
        facts: whether engines and trainer declare their configuration.
    """

    kind: Kind
    heats: tuple[float, ...] = (0.7, 1.0)
    facts: bool = True


def _kind(name: str, codes: tuple[str, ...], wrong: Wrong, steps: int = STEPS) -> Kind:
    return Kind(name, codes, lambda _, __: replace(wrong, at=AT), steps=steps)


SITUATIONS: tuple[Situation, ...] = (
    Situation(_kind("healthy", (), RIGHT, HEALTHY_STEPS)),
    Situation(_kind("raw logprobs, declared", ("A1",), Wrong(raw=True)), (0.5, 0.7, 1.3)),
    Situation(_kind("raw logprobs, not declared", ("A1",), Wrong(raw=True)), (0.5, 0.7, 1.3), facts=False),
    Situation(_kind("stale replica, version shows it", ("B6",), Wrong(engine="e1", stuck=True))),
    Situation(_kind("stale replica, version hides it", ("B6",), Wrong(engine="e1", stuck=True, lies=True))),
    Situation(_kind("top-p 0.9 in rollout logprobs", ("A4",), Wrong(top_p=0.9)), (0.7, 1.0, 1.3)),
    Situation(_kind("top-p 0.9, not declared", ("A5",), Wrong(raw=True, top_p=0.9)), (1.0,)),
    Situation(_kind("off by one", ("A12",), Wrong(shift=1))),
    Situation(_kind("entropy collapse", ("J1",), Wrong(sharpens=0.08), 2 * STEPS)),
)  # fmt: skip

DEFAULT = Setting(lag=1, facts=True)
SHAPES: tuple[Setting, ...] = (
    DEFAULT,
    replace(DEFAULT, shortest=3, longest=10, groups=16, vocabulary=64),
    replace(DEFAULT, shortest=80, longest=400, groups=4, size=6, vocabulary=4096, contexts=96),
    replace(DEFAULT, lag=0, old="none", move=0.08),
    replace(DEFAULT, lag=2, old="all", dtype="bfloat16"),
)
"""Lengths, vocabularies, and old logprobs of some rows, of none (on-policy) and of all."""


def settings(situation: Situation, seeds: int) -> Iterator[Setting]:
    """All settings of a situation."""
    steps = situation.kind.steps
    for number, (shape, heat, seed) in enumerate(product(SHAPES, situation.heats, range(seeds))):
        yield replace(shape, heat=heat, seed=100 * number + seed, steps=steps, facts=situation.facts)


def row(situation: Situation, runs: Sequence[DiagnosedRun]) -> str:
    """A row of the table: how often the diagnosis was right, and how late."""
    right = sum(run.outcome == "right" for run in runs)
    alarms, steps = sum(len(run.alarms) for run in runs), sum(_steps_before_onset(run) for run in runs)
    delays = [delay for run in runs if (delay := _delay(run)) is not None]
    late = f"{statistics.median(delays):g} ({max(delays)})" if delays else "-"
    others = Counter(run.last for run in runs if run.outcome != "right")
    instead = ", ".join(f"{name} {count}x" for name, count in others.items()) or "-"
    code = situation.kind.codes[0] if situation.kind.codes else "healthy"
    cells = (situation.kind.name, code, f"{right} of {len(runs)}", late, instead, f"{alarms} in {steps}")
    return f"| {' | '.join(cells)} |"


def _steps_before_onset(run: DiagnosedRun) -> int:
    onset = run.wrong.at if run.kind.codes else run.setting.steps
    return sum(step < onset for step in run.steps)


def _delay(run: DiagnosedRun) -> int | None:
    """Steps from the onset to the first fault verdict."""
    verdicts, onset = zip(run.steps, run.verdicts, strict=True), run.wrong.at
    return next((step - onset for step, v in verdicts if step >= onset and v.verdict == FAULT), None)


HEAD = (
    "| situation | cause | correct at end | reported after steps (worst) | instead | alarms before, in steps |",
    "| --- | --- | --- | --- | --- | --- |",
)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="names, or parts of names")
    parser.add_argument("--peers", type=Path, help="directory with an installed martingale")
    given = parser.parse_args()
    warm()
    chosen = [one for one in SITUATIONS if not given.only or any(text in one.kind.name for text in given.only)]
    print("\n".join(HEAD))
    for situation in chosen:
        wrong = situation.kind.wrong(DEFAULT, 0.0)
        runs = [diagnose_run(situation.kind, setting, wrong, every=1) for setting in settings(situation, given.seeds)]
        print(row(situation, runs), flush=True)
    if given.peers is not None:
        print("\n".join(["", *peer_table(chosen, given.peers)]))


def peer_table(chosen: Sequence[Situation], peers: Path) -> Iterator[str]:
    """A table of martingale's results, on one run per situation."""
    from bench.diagnosis_peers import PeerRun, peer_workspace

    yield "| situation | cause | rltop | martingale's alarms, before and since | martingale's doctor |"
    yield "| --- | --- | --- | --- | --- |"
    for situation in chosen:
        setting = next(iter(settings(replace(situation, heats=situation.heats[-1:]), 1)))
        with peer_workspace(peers) as workspace:
            peer = PeerRun(workspace)
            run = diagnose_run(situation.kind, setting, situation.kind.wrong(setting, 0.0), on_message=peer.on_message)
            counts = [Counter(kind for step, kind in peer.alarms if (step >= AT) is since) for since in (False, True)]
            alarms = "; ".join(", ".join(f"{kind} {n}x" for kind, n in one.items()) or "-" for one in counts)
            code = situation.kind.codes[0] if situation.kind.codes else "healthy"
            yield f"| {situation.kind.name} | {code} | {run.last} | {alarms} | {'; '.join(peer.doctor()) or '-'} |"


if __name__ == "__main__":
    main()
