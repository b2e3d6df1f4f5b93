"""Verdicts on runs with mild, local and simultaneous faults, and on healthy runs that look odd; and their calibration.

    .venv/bin/python -m bench.mild_faults [--seeds 3] [--first 0] [--only NAME ...]

The runs are simulated (``tests/support/exact.py``), the hub is the real one. A run is *right* if its last verdict has a
right cause first, *decent* if it is undecided and lists a right cause, *wrong* if a wrong cause is named as the fault,
and *open* otherwise. Healthy runs are diagnosed after every step, and each fault verdict counts as false. Calibration:
of the verdicts whose first cause has a confidence within a range, the share that is right.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rltop.backend.api.verdict import FAULT, HEALTHY, Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.summary.strata import warm
from tests.support.exact import RIGHT, Run, Setting, Wrong
from tests.support.hub_messages import Trained, Written

Edit = Callable[[Run, np.random.Generator, list[Trained], list[Written]], None]
"""Changes the rows of one step and their rollouts in place."""

ONSET = 8
RANGES = ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01))


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        name: of the kind. codes: right causes; empty for a healthy run.
        wrong, setting: of the simulation. edit: of the rows from the onset on.
        engine: the only engine that has the fault; empty for all.
    """

    name: str
    codes: tuple[str, ...] = ()
    wrong: Wrong = RIGHT
    setting: Setting = field(default_factory=Setting)
    edit: Edit | None = None
    engine: str = ""


def _every_nth(share: float, change: Callable[[Trained, Written], None], engine: str = "") -> Edit:
    """Changes this share of the rows; of one engine only if it is named."""

    def edit(_: Run, rng: np.random.Generator, rows: list[Trained], written: list[Written]) -> None:
        for row, rollout in zip(rows, written, strict=True):
            if rng.random() < share and engine in ("", rollout.engine):
                change(row, rollout)

    return edit


def _prompt(row: Trained) -> tuple[int, ...]:
    return tuple(row.prompt or ())


def _late_copy(row: Trained, _: Written) -> None:
    row.rollout = [0.0, *list(row.rollout)[:-1]]


def _lost_end(row: Trained, _: Written) -> None:
    row.ids, row.mask = row.ids[:-1], row.mask[:-1]
    row.rollout, row.trainer = row.rollout[:-1], row.trainer[:-1]
    row.per_token = {name: values[:-1] for name, values in row.per_token.items()}


def _not_a_number(row: Trained, rollout: Written) -> None:
    rollout.logprobs = [float("nan")] * len(rollout.tokens)
    row.rollout = list(rollout.logprobs)


def _clamped(row: Trained, _: Written) -> None:
    row.rollout = [max(value, -3.0) for value in row.rollout]


def _prompt_end(_: Trained, rollout: Written) -> None:
    rollout.prompt = list(rollout.prompt)[4:]


def _other_context(share: float, engine: str = "") -> Edit:
    """The trainer scores this share of the groups in other contexts, as with another template for one environment."""

    def edit(run: Run, rng: np.random.Generator, rows: list[Trained], written: list[Written]) -> None:
        moved = rng.permutation(run.setting.contexts)
        step = _prompt(rows[0])[1]
        for row, rollout in zip(rows, written, strict=True):
            if _prompt(row)[2] < share * run.setting.groups and engine in ("", rollout.engine):
                places = moved[run.places[id(rollout)]]
                row.trainer = run.under(step, places, np.asarray(row.ids))

    return edit


PLAIN = Setting()
COOL = Setting(heat=0.7)
ON_POLICY = Setting(lag=0, old="none")
KINDS: tuple[Kind, ...] = (
    Kind("healthy, fast", setting=Setting(step_s=0.05, reports=True, steps=48)),
    Kind("healthy, slow", setting=Setting(step_s=60.0, reports=True, engines=4)),
    Kind("healthy, heavy lag", setting=Setting(lag=8, uneven=4, engines=4, old="all", steps=40, reports=True)),
    Kind("healthy, ragged lag, fast", setting=Setting(lag=3, ragged=True, step_s=0.3, reports=True, steps=40)),
    Kind("healthy, bfloat16, no facts", setting=Setting(dtype="bfloat16", facts=False, heat=0.8)),
    Kind("healthy, on-policy", setting=ON_POLICY),
    Kind("raw on one engine", ("A1", "A5"), Wrong(raw=True, engine="e1"), COOL, engine="e1"),
    Kind("stale prefix on one engine", ("C1",), Wrong(stale_prefix=0.6, engine="e0"), engine="e0"),
    Kind("part not updated on one engine", ("B3",), Wrong(kept=0.2, engine="e1"), engine="e1"),
    Kind(
        "frozen engine that lies", ("B6",), Wrong(stuck=True, lies=True, engine="e1"), Setting(engines=3), engine="e1"
    ),
    Kind("rounded on one engine", ("D1", "D2", "D3"), Wrong(rounded=True, engine="e1"), engine="e1"),
    Kind("prompt cut on one engine", ("H2",), edit=_every_nth(1, _prompt_end, "e1"), engine="e1"),
    Kind("NaN on one engine", ("K4",), edit=_every_nth(0.3, _not_a_number, "e0"), engine="e0"),
    Kind("late copies in 5 % of rows", ("A12", "R2"), edit=_every_nth(0.05, _late_copy)),
    Kind("lost ends in 20 % of rows", ("H3",), edit=_every_nth(0.2, _lost_end)),
    Kind("clamped copies", ("R2",), edit=_every_nth(1, _clamped)),
    Kind("other contexts in a quarter of the prompts", ("H2", "I3", "I4", "H1", "A10"), edit=_other_context(0.25)),
    Kind("trainer's other heat at 1", ("A2",), Wrong(trainer_heat=1.15)),
    Kind("few contexts not updated", ("B3",), Wrong(kept=0.03), Setting(old="all", steps=30)),
    Kind("never updated, on-policy", ("B2",), Wrong(stuck=True, lies=True), ON_POLICY),
    Kind("stopped, on-policy", ("B2",), Wrong(stuck=True), ON_POLICY),
    Kind("partial, on-policy", ("B3",), Wrong(kept=0.3), ON_POLICY),
    Kind("raw and a frozen engine", ("A1", "A5", "B6"), Wrong(raw=True, lies=True, stuck=True), COOL),
    Kind("raw, and late copies in 10 %", ("A1", "A12", "R2"), Wrong(raw=True), COOL, edit=_every_nth(0.1, _late_copy)),
    Kind("dropout and stale prefix", ("I1", "C1"), Wrong(dropout=0.3, stale_prefix=0.5)),
)


class EditedRun(Run):
    """A simulated run of a kind."""

    def __init__(self, kind: Kind, setting: Setting, wrong: Wrong) -> None:
        super().__init__(setting, wrong)
        self._edit, self._own = kind.edit, np.random.default_rng((23, setting.seed))

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        if self._edit is not None and step >= ONSET:
            by_prompt = {id(rollout): rollout for rollout in written}
            self._edit(self, self._own, rows, _in_order(rows, list(by_prompt.values())))
        return rows, written


def _in_order(rows: Sequence[Trained], written: Sequence[Written]) -> list[Written]:
    """The rollout of each row."""
    of = {(tuple(rollout.prompt), tuple(rollout.tokens)): rollout for rollout in written}
    return [of[_prompt(row), tuple(row.ids)] for row in rows]


def verdicts(kind: Kind, seed: int) -> list[Verdict]:
    """The verdict after every step of a healthy run; of another, before the onset and at the end."""
    setting = replace(kind.setting, seed=seed)
    run = EditedRun(kind, setting, replace(kind.wrong, at=ONSET))
    found = []
    for step, hub in enumerate(run.hubs()):
        if not kind.codes or step in (ONSET - 1, setting.steps - 1):
            found.append(diagnose(hub.state.frames.diagnosis_input()))
    return found


def outcome(kind: Kind, last: Verdict) -> str:
    """See the top of the file."""
    named = [cause.code for cause in last.causes]
    if not kind.codes:
        return "wrong" if last.verdict == FAULT else "right"
    if named and named[0] in kind.codes:
        return "right"
    if last.verdict == FAULT:
        return "wrong"
    return "decent" if set(named) & set(kind.codes) else "open"


def calibration(scored: Sequence[tuple[float, bool]]) -> Iterator[str]:
    """A row per range of confidence."""
    yield "| confidence of the first cause | verdicts | right |"
    yield "| --- | --- | --- |"
    for low, high in RANGES:
        right = [is_right for confidence, is_right in scored if low <= confidence < high]
        yield f"| {low:.0%} to {min(high, 1):.0%} | {len(right)} | {sum(right)} |"


def describe(verdict: Verdict) -> str:
    """One line: the causes with their confidence, onset and engines."""
    causes = (
        f"{cause.code} {cause.confidence:.0%} since {cause.since_step} on {','.join(cause.engines) or 'all'}"
        for cause in verdict.causes[:4]
    )
    return f"{verdict.verdict}: {'; '.join(causes)}"


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[kind.name for kind in KINDS])
    given = parser.parse_args()
    warm()
    rows, scored, healthy, false = [], [], 0, 0
    for kind in (kind for kind in KINDS if kind.name in given.only):
        counted: Counter[str] = Counter()
        for seed in range(given.first, given.first + given.seeds):
            *before, last = verdicts(kind, seed)
            for verdict in before:
                if verdict.verdict == FAULT:
                    print(f"{kind.name}, seed {seed}, false: {describe(verdict)}", flush=True)
            counted[outcome(kind, last)] += 1
            healthy += len(before) + (not kind.codes)
            false += sum(verdict.verdict == FAULT for verdict in before) + (not kind.codes and last.verdict == FAULT)
            if kind.codes and last.causes:
                scored.append((last.causes[0].confidence, last.causes[0].code in kind.codes))
            if (not kind.codes and last.verdict != HEALTHY) or outcome(kind, last) != "right" or kind.engine:
                print(f"{kind.name}, seed {seed}, {outcome(kind, last)}: {describe(last)}", flush=True)
        rows.append(
            f"| {kind.name} | " + " | ".join(str(counted[o]) for o in ("right", "decent", "open", "wrong")) + " |"
        )
    print("\n| run | right | decent | open | wrong |\n| --- | --- | --- | --- | --- |", *rows, sep="\n")
    print(f"\n{false} false fault verdicts of {healthy} on healthy steps\n", *calibration(scored), sep="\n")


if __name__ == "__main__":
    main()
