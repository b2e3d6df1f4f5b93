"""Wrong diagnoses and false alarms over simulated runs with every fault that can be simulated.

    .venv/bin/python -m bench.stress [--runs 400] [--first 0] [--only raw top-p]

The number of a run seeds its fault and its setting: vocabulary, temperature, lengths, engines, lag, size of updates,
whether old logprobs, entropies and facts are passed. The policies are exact (``tests/support/exact.py``), the hub is
the real one. This bench finds errors in the checks; accuracy is measured on real runs (``bench/diagnosis.py``).
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
from tests.support.exact import RIGHT, Run, Setting, Wrong
from tests.support.hub_core import Hub

OnMessage = Callable[[wire.DataBody, wire.Arrays], object]

ONSETS = (0, 7)
STEPS, LONG = 20, 32
EVERY = 5
"""Steps between two diagnoses."""

STEP_TOKENS = 2_500
"""Approximate tokens per step."""


@dataclass(frozen=True)
class Kind:
    """One fault.

    Attributes:
        name: of the fault in this bench. codes: the cause codes that count as right.
        wrong: the deviation, given the setting and a random number in [0, 1].
        fits: whether the fault can occur in the setting.
        steps: length of a run with the fault.
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
class DiagnosedRun:
    """The verdicts on one run.

    Attributes:
        kind, setting, wrong: of the run.
        steps, verdicts: the diagnosed steps and the verdict at each.
    """

    kind: Kind
    setting: Setting
    wrong: Wrong
    steps: Sequence[int]
    verdicts: Sequence[Verdict]

    @property
    def last(self) -> str:
        """Cause code of the last verdict; ``-`` if healthy, ``?`` if undecided."""
        return code_of(self.verdicts[-1])

    @property
    def alarms(self) -> list[int]:
        """Indices of fault verdicts before the onset."""
        onset = self.wrong.at if self.kind.codes else self.setting.steps
        verdicts = zip(self.steps, self.verdicts, strict=True)
        return [n for n, (step, verdict) in enumerate(verdicts) if step < onset and verdict.verdict == FAULT]

    @property
    def names(self) -> list[str]:
        """Cause codes of the fault verdicts from the onset on."""
        verdicts = zip(self.steps, self.verdicts, strict=True)
        return [code_of(verdict) for step, verdict in verdicts if step >= self.wrong.at and verdict.verdict == FAULT]

    def is_right(self, verdict: Verdict) -> bool:
        """Whether the verdict names the fault."""
        code = code_of(verdict)
        if code in self.kind.codes:
            return True
        named = {cause.code for cause in verdict.causes}
        return any({code, *self.kind.codes} <= pair <= named for pair in INSEPARABLE)

    @property
    def outcome(self) -> str:
        """``right`` if the fault is the first cause, ``wrong`` if another one is named for certain, else ``open``."""
        last = self.verdicts[-1]
        if not self.kind.codes:
            return "wrong" if self.alarms else "right"
        return "right" if self.is_right(last) else "wrong" if last.verdict == FAULT else "open"


def code_of(verdict: Verdict) -> str:
    """The code of the first cause; ``-`` if healthy, ``?`` if undecided."""
    if verdict.verdict == HEALTHY:
        return "-"
    return verdict.causes[0].code if verdict.causes else "?"


def draw(number: int, kinds: Sequence[Kind]) -> tuple[Kind, Setting, Wrong]:
    """The run that ``number`` seeds."""
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
        groups=int(np.clip(STEP_TOKENS / mean / size, 4, 96 / size)),
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


class ForwardingHub(Hub):
    """A hub that passes a copy of each message to ``on_message``."""

    def __init__(self, on_message: OnMessage) -> None:
        super().__init__()
        self._on_message = on_message

    def send(self, source: str, body: wire.DataBody, arrays: wire.Arrays | None = None) -> list[Effect]:
        self._on_message(body, arrays or {})
        return super().send(source, body, arrays)


def diagnose_run(
    kind: Kind, setting: Setting, wrong: Wrong, every: int = EVERY, on_message: OnMessage | None = None
) -> DiagnosedRun:
    """Simulate a run and diagnose it every ``every`` steps, just before the onset and at the end."""
    steps, verdicts = [], []
    for step, hub in enumerate(Run(setting, wrong).hubs(ForwardingHub(on_message) if on_message else Hub())):
        if step % every == every - 1 or step in (wrong.at - 1, setting.steps - 1):
            steps.append(step)
            verdicts.append(diagnose(hub.state.frames.diagnosis_input()))
    return DiagnosedRun(kind, setting, wrong, steps, verdicts)


def describe(run: DiagnosedRun) -> str:
    """One line: the fault and the settings that differ from the default."""
    default, setting = Setting(), run.setting
    differs = {
        name: value
        for name in setting.__dataclass_fields__
        if (value := getattr(setting, name)) != getattr(default, name)
    }
    wrong = {
        name: value
        for name in RIGHT.__dataclass_fields__
        if (value := getattr(run.wrong, name)) != getattr(RIGHT, name)
    }
    return f"{run.kind.name} {wrong} in {differs}"


def findings(verdict: Verdict) -> str:
    """One line: the causes with their confidence, and the findings that alarm."""
    causes = ", ".join(f"{cause.code} {cause.confidence:.2f}" for cause in verdict.causes[:5])
    shown = "; ".join(
        f"{f.test} {f.outcome} {f.detail} {f.engine or ''} {f.p:.0e}" for f in verdict.findings if f.p < 1
    )
    return f"{verdict.verdict} [{causes}] by {shown}"


def table(runs: Sequence[DiagnosedRun]) -> Iterator[str]:
    """A row per fault: runs with a right, wrong or no diagnosis, and the wrong codes."""
    yield "| fault | runs | right | wrong | open | diagnosed as | other codes before the end |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for kind in KINDS:
        own = [run for run in runs if run.kind is kind]
        counted = Counter(run.outcome for run in own)
        if not own:
            continue
        mistaken = Counter(run.last for run in own if run.outcome == "wrong")
        passing = Counter(name for run in own for name in set(run.names) - set(kind.codes) if run.outcome != "wrong")
        cells = (
            kind.name,
            len(own),
            counted["right"],
            counted["wrong"],
            counted["open"],
            _few(mistaken),
            _few(passing),
        )
        yield "| " + " | ".join(map(str, cells)) + " |"
    early = sum(bool(run.alarms) for run in runs if run.kind.codes)
    yield ""
    yield f"alarms before the onset in {early} of {sum(bool(run.kind.codes and run.wrong.at) for run in runs)} runs"


def _few(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common(5))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10 * len(KINDS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(BY_NAME), choices=list(BY_NAME))
    parser.add_argument("--quiet", action="store_true", help="print only the table")
    given = parser.parse_args()
    warm()
    runs = []
    for number in range(given.first, given.first + given.runs):
        began = time.perf_counter()
        run = diagnose_run(*draw(number, [BY_NAME[name] for name in given.only]))
        runs.append(run)
        if not given.quiet and (run.outcome != "right" or run.alarms):
            print(f"{number} {run.outcome} {run.last}: {describe(run)} ({time.perf_counter() - began:.0f} s)")
            print(f"    {findings(run.verdicts[run.alarms[0] if run.alarms else -1])}", flush=True)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
