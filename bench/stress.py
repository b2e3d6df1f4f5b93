"""Simulated runs of all kinds with all faults that can be simulated: which are named wrongly, or told though healthy?

    .venv/bin/python -m bench.stress [--runs 400] [--first 0] [--only raw top-p] [--without facts]

Each run has a number, from which its fault and its setting are drawn: vocabulary, temperature, lengths, engines, lag,
size of updates, whether old logprobs, entropies and facts are passed. The policies are exact (``tests/exact.py``), the
hub is the real one. It is a place to find mistakes of reasoning in; what counts are real runs (``bench/diagnosis.py``).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.diagnosis import INSEPARABLE
from rltop.backend.api.verdict import FAULT, HEALTHY, Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.hub.outputs import Effect
from rltop.backend.summary.strata import warm
from rltop.collectors.contract import wire
from tests.exact import RIGHT, Run, Setting, Wrong
from tests.hub_core import Hub

ONSETS = (0, 7)
STEPS, LONG = 20, 32
EVERY = 5
"""Every so many steps a verdict is asked for."""

BUDGET = 2_500
"""Tokens of a step, about."""


@dataclass(frozen=True)
class Kind:
    """One fault.

    Attributes:
        name: what it is called here. codes: any of which names it rightly.
        wrong: what is wrong, by the setting and by a number from 0 to 1.
        fits: whether the setting can have it.
        steps: of a run with it.
    """

    name: str
    codes: tuple[str, ...]
    wrong: Callable[[Setting, float], Wrong]
    fits: Callable[[Setting], bool] = lambda _: True
    steps: int = STEPS


def _heated(setting: Setting) -> bool:
    return bool(abs(np.log(setting.heat)) > 0.1)


def _plain(setting: Setting) -> bool:
    return setting.heat == 1


KINDS: tuple[Kind, ...] = (
    Kind("healthy", (), lambda _, __: RIGHT, steps=LONG),
    Kind("raw", ("A1",), lambda _, __: Wrong(raw=True), _heated),
    Kind("trainer-heat", ("A2",), lambda _, __: Wrong(trainer_heat=1.0), _heated),
    Kind("scaled", ("A3",), lambda _, __: Wrong(scaled=True), lambda s: s.heat < 0.9),
    Kind("silent-heat", ("A5",), lambda _, __: Wrong(raw=True, trainer_heat=1.0), _heated),
    Kind("top-p", ("A4",), lambda _, u: Wrong(top_p=0.8 + 0.15 * u)),
    Kind("top-k", ("A4",), lambda s, u: Wrong(top_k=2 + int(u * min(s.vocabulary / 4, 20)))),
    Kind("min-p", ("A4",), lambda _, u: Wrong(min_p=0.05 + 0.15 * u)),
    Kind("top-p-raw", ("A5",), lambda _, u: Wrong(raw=True, top_p=0.8 + 0.15 * u), _plain),
    Kind("trainer-filters", ("I6", "A1"), lambda _, __: Wrong(raw=True, top_p=0.8, trainer_top_p=0.8), _plain),
    Kind("penalty", ("A7",), lambda _, u: Wrong(penalty=0.3 + u)),
    Kind("shifted", ("A12",), lambda _, __: Wrong(shift=1), lambda s: s.longest > 2),
    Kind("zeros", ("A13",), lambda _, u: Wrong(zeros=1 + int(2 * u)), lambda s: s.longest < 100),
    Kind("unmasked", ("I5",), lambda _, __: Wrong(unmasked=True), lambda s: s.longest < 100),
    Kind("rounded", ("D1",), lambda _, u: Wrong(noise=0.02 + 0.02 * u), lambda s: s.facts and s.dtype == "float32"),
    Kind("stale-replica", ("B6",), lambda _, __: Wrong(engine="e1", stuck=True), lambda s: s.engines > 1),
    Kind("lying-replica", ("B6",), lambda _, __: Wrong(engine="e1", stuck=True, lies=True), lambda s: s.engines > 1),
    Kind("never-updated", ("B2",), lambda _, __: Wrong(stuck=True, lies=True)),
    Kind("stopped", ("B2",), lambda _, __: Wrong(stuck=True)),
    Kind("partial", ("B3",), lambda _, u: Wrong(kept=0.05 + 0.15 * u)),
    Kind("stale-prefix", ("C1",), lambda _, u: Wrong(stale_prefix=0.3 + 0.4 * u), lambda s: s.longest > 8),
    Kind("old", ("B1",), lambda _, u: Wrong(lag=5 + int(4 * u))),
    Kind("dropout", ("I1",), lambda _, u: Wrong(dropout=0.2 + 0.4 * u)),
    Kind("collapse", ("J1",), lambda _, u: Wrong(sharpens=0.04 + 0.06 * u), steps=LONG),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}

LENGTHS = ((1, 1), (1, 4), (4, 16), (12, 48), (12, 48), (40, 300), (300, 4096))


@dataclass(frozen=True)
class Told:
    """What was told of one run.

    Attributes:
        kind, setting, wrong: the run.
        steps, verdicts: as of which step.
    """

    kind: Kind
    setting: Setting
    wrong: Wrong
    steps: Sequence[int]
    verdicts: Sequence[Verdict]

    @property
    def last(self) -> str:
        """What it comes to at the end: a code, ``-`` of a healthy verdict, ``?`` of none."""
        return said(self.verdicts[-1])

    @property
    def alarms(self) -> list[int]:
        """Indices of verdicts of fault before there was one."""
        onset = self.wrong.at if self.kind.codes else self.setting.steps
        told = zip(self.steps, self.verdicts, strict=True)
        return [n for n, (step, verdict) in enumerate(told) if step < onset and verdict.verdict == FAULT]

    @property
    def names(self) -> list[str]:
        """What was told since the onset, of verdicts of fault."""
        told = zip(self.steps, self.verdicts, strict=True)
        return [said(verdict) for step, verdict in told if step >= self.wrong.at and verdict.verdict == FAULT]

    def is_right(self, verdict: Verdict) -> bool:
        """Whether it names the fault."""
        code = said(verdict)
        if code in self.kind.codes:
            return True
        with_it = {cause.code for cause in verdict.causes}
        return any({code, *self.kind.codes} <= pair <= with_it for pair in INSEPARABLE)

    @property
    def outcome(self) -> str:
        """``right``, ``wrong``, or ``open`` where nothing is told at the end."""
        last = self.verdicts[-1]
        if not self.kind.codes:
            return "wrong" if self.alarms else "right"
        return "open" if last.verdict != FAULT else "right" if self.is_right(last) else "wrong"


def said(verdict: Verdict) -> str:
    """The first cause's code, ``-`` or ``?``."""
    if verdict.verdict == HEALTHY:
        return "-"
    return verdict.causes[0].code if verdict.verdict == FAULT and verdict.causes else "?"


def drawn(number: int, kinds: Sequence[Kind]) -> tuple[Kind, Setting, Wrong]:
    """The run of a number."""
    rng = np.random.default_rng((11, number))
    kind = kinds[number % len(kinds)]
    while True:
        setting = _setting(rng, number, kind)
        if kind.fits(setting):
            break
    wrong = kind.wrong(setting, float(rng.random()))
    return kind, setting, replace(wrong, at=int(rng.choice(ONSETS)))


def _setting(rng: np.random.Generator, number: int, kind: Kind) -> Setting:
    shortest, longest = LENGTHS[rng.integers(len(LENGTHS))]
    vocabulary = int(rng.choice([16, 64, 64, 512, 512, 512, 4096, 32000]))
    size = int(rng.choice([4, 8, 16]))
    mean = (longest - shortest + 1) / np.log((longest + 1) / shortest)
    return Setting(
        seed=number,
        steps=kind.steps,
        vocabulary=vocabulary,
        contexts={4096: 64, 32000: 16}.get(vocabulary, 128),
        heat=float(rng.choice([0.3, 0.5, 0.7, 0.85, 1.0, 1.0, 1.2, 1.5])),
        engines=int(rng.integers(1, 5)),
        lag=int(rng.choice([0, 1, 1, 2, 4])),
        ragged=bool(rng.random() < 0.3),
        groups=int(np.clip(BUDGET / mean / size, 4, 96 / size)),
        size=size,
        shortest=shortest,
        longest=longest,
        move=float(rng.choice([0.02, 0.05, 0.1])),
        coherent=float(rng.choice([0.0, 0.3, 0.7])),
        old=str(rng.choice(["all", "some", "none"])),
        entropy=bool(rng.random() < 0.85),
        facts=bool(rng.random() < 0.5),
        dtype=str(rng.choice(["float32", "bfloat16"])),
    )


class Listening(Hub):
    """A hub whose messages somebody else hears too."""

    def __init__(self, heard: Callable[[wire.DataBody, wire.Arrays], object]) -> None:
        super().__init__()
        self._heard = heard

    def send(self, source: str, body: wire.DataBody, arrays: wire.Arrays | None = None) -> list[Effect]:
        self._heard(body, arrays or {})
        return super().send(source, body, arrays)


def tell(
    kind: Kind,
    setting: Setting,
    wrong: Wrong,
    every: int = EVERY,
    heard: Callable[[wire.DataBody, wire.Arrays], object] | None = None,
) -> Told:
    """Run it, and ask for a verdict every so many steps, before the onset and at the end."""
    steps, verdicts = [], []
    for step, hub in enumerate(Run(setting, wrong).hubs(Listening(heard) if heard else Hub())):
        if step % every == every - 1 or step in (wrong.at - 1, setting.steps - 1):
            steps.append(step)
            verdicts.append(diagnose(hub.state.frames.diagnosis_input()))
    return Told(kind, setting, wrong, steps, verdicts)


def about(told: Told) -> str:
    """One line."""
    usual, setting = Setting(), told.setting
    differs = {
        name: value
        for name in setting.__dataclass_fields__
        if (value := getattr(setting, name)) != getattr(usual, name)
    }
    wrong = {
        name: value
        for name in RIGHT.__dataclass_fields__
        if (value := getattr(told.wrong, name)) != getattr(RIGHT, name)
    }
    return f"{told.kind.name} {wrong} in {differs}"


def findings(verdict: Verdict) -> str:
    """What alarms, and the causes with their shares."""
    causes = ", ".join(f"{cause.code} {cause.confidence:.2f}" for cause in verdict.causes[:5])
    shown = "; ".join(
        f"{f.test} {f.outcome} {f.detail} {f.engine or ''} {f.p:.0e}" for f in verdict.findings if f.p < 1
    )
    return f"{verdict.verdict} [{causes}] by {shown}"


def table(told: Sequence[Told]) -> Iterator[str]:
    """By fault: how many are named right, wrongly, not told; and what they are taken for."""
    yield "| fault | runs | right | wrong | open | taken for | named otherwise on the way |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for kind in KINDS:
        own = [one for one in told if one.kind is kind]
        counted = Counter(one.outcome for one in own)
        if not own:
            continue
        for_ = Counter(one.last for one in own if one.outcome == "wrong")
        way = Counter(name for one in own for name in set(one.names) - set(kind.codes) if one.outcome != "wrong")
        cells = (kind.name, len(own), counted["right"], counted["wrong"], counted["open"], _few(for_), _few(way))
        yield "| " + " | ".join(map(str, cells)) + " |"
    early = sum(bool(one.alarms) for one in told if one.kind.codes)
    yield ""
    yield f"alarms before the onset in {early} of {sum(bool(one.kind.codes and one.wrong.at) for one in told)} runs"


def _few(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common(5))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10 * len(KINDS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(BY_NAME), choices=list(BY_NAME))
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    given = parser.parse_args()
    warm()
    told = []
    for number in range(given.first, given.first + given.runs):
        began = time.perf_counter()
        one = tell(*drawn(number, [BY_NAME[name] for name in given.only]))
        told.append(one)
        if not given.quiet and (one.outcome != "right" or one.alarms):
            print(f"{number} {one.outcome} {one.last}: {about(one)} ({time.perf_counter() - began:.0f} s)")
            print(f"    {findings(one.verdicts[one.alarms[0] if one.alarms else -1])}", flush=True)
    print("\n".join(table(told)))


if __name__ == "__main__":
    main()
