"""Checks of rules that hold exactly: copies, records, joins and masks. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rltop.backend import api
from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import NO_LOGPROBS, certain, first_step, run_and_engines, unknown
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import SUM
from rltop.backend.evidence.sequential import RECOVERY_STEPS
from rltop.backend.join import copies as kinds
from rltop.backend.join import reasons, violations

WINDOW = RECOVERY_STEPS
"""Latest steps that the current state is read from, and clean steps after which a violation has ended."""

MANY = 0.1
"""Share of sequences from which a single step is enough for a fault."""

REPEATS = 3
"""Violating steps, with fewer than ``WINDOW`` clean ones between two, from which any share is a fault."""

BROKEN_STEPS = 20
"""Steps without one after which an engine is no longer considered to compute NaN: a single one is a fault."""

MISPLACED = "misplaced logprobs"
"""The fact of an engine whose collector could not tell the logprobs of some tokens."""

Count = Callable[[api.Step], int]


class Episode(NamedTuple):
    """A fault: ``seen`` of ``total`` sequences of the latest steps, since step ``since``."""

    seen: int
    total: int
    since: int


def _violating(steps: Sequence[api.Step], count: Count, window: int = WINDOW) -> list[api.Step]:
    """The violating steps of the latest episode, newest first; a step that lost messages says nothing."""
    found, clean = [], 0
    for step in reversed(steps):
        if count(step):
            found.append(step)
            clean = 0
        elif step.joins or step.unjoined:
            clean += 1
        if clean >= window:
            break
    return found


def _episode(steps: Sequence[api.Step], count: Count, total: Count) -> Episode | None:
    """The fault if many sequences violate now, or any share does again and again."""
    late = steps[-WINDOW:]
    seen, of = sum(map(count, late)), sum(map(total, late))
    violating = _violating(steps, count)
    if not violating:
        return None
    now = seen >= max(2, MANY * of) and _persists([count(step) > 0 for step in late if total(step)])
    again = sum(not step.lost for step in violating) >= REPEATS
    return Episode(seen, of, violating[-1].step) if now or again else None


def _persists(seen: Sequence[bool]) -> bool:
    """Whether what many sequences of the latest steps have is the current state: in the newest of them, or in several.

    A single step, such as an evaluation, is one verdict long and raises no alarm.
    """
    return bool(seen) and (seen[-1] or sum(seen) > 1)


def copies(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``copies``: how the trainer's copies of rollout logprobs differ from the originals, by engine."""
    steps = evidence.input.steps
    late: dict[str, Counter[str]] = {}
    for step in steps[-WINDOW:]:
        for engine, found in step.copies.items():
            late.setdefault(engine, Counter()).update(found)
    if not late:
        yield unknown("copies", "no rows were joined with rollouts in the latest steps")
        return
    odd = passed = 0
    for engine, found in sorted(late.items()):
        for kind, count in sorted(found.items()):
            if kind in _PLAIN or (kind in _BY_CHANCE and _explained(found, kind)):
                continue
            episode = _episode(steps, _of_copies(engine, kind), _of_copies(engine))
            if episode is None:
                passed += count
                continue
            odd += 1
            outcome = next((o for o in _COPY_OUTCOMES if kind.startswith(o)), "changed")
            text = f"{episode.seen} of {episode.total} copies of {engine}'s logprobs: {kinds.describe(kind)}"
            share = episode.seen / episode.total
            yield certain("copies", outcome, episode.since, engine, episode.seen, text, kind, value=share)
    if not odd:
        compared = Counter[str]()
        for found in late.values():
            compared.update(kind for kind in found.elements() if kind not in kinds.OF_ENGINE)
        text = "the trainer's copies equal the engines' logprobs"
        text += f", but for {passed} in one earlier step or two" if passed else ""
        yield certain("copies", "equal", None, None, sum(compared.values()), text, "")


def _explained(found: Counter[str], kind: str) -> bool:
    """Whether a rule that holds for more copies explains these: they were matched with another rollout."""
    return any(count > found[kind] for other, count in found.items() if other not in _PLAIN | _BY_CHANCE)


def _of_copies(engine: str, kind: str | None = None) -> Count:
    """Number of an engine's copies in a step, of one kind or of any."""

    def count(step: api.Step) -> int:
        found = step.copies.get(engine, {})
        return sum(found.values()) if kind is None else found.get(kind, 0)

    return count


_PLAIN = kinds.FINE | kinds.OF_ENGINE
_BY_CHANCE = kinds.WITHOUT_RULE | {kinds.OTHER_ROW}
_COPY_OUTCOMES = (
    "shifted", "zero_filled", "padded", "clamped", "cast", "other_row", "likeliest", "scaled", "recomputed", "changed",
    "unrecorded",
)  # fmt: skip


def record(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``record``: engines that record no valid logprobs, and fillers among rollout logprobs."""
    engines = sorted({engine for step in evidence.input.steps for engine in (*step.copies, *step.violations)})
    broken = [finding for engine in engines for finding in _records(evidence, engine)]
    yield from broken
    for engine, arrays in run_and_engines(evidence):
        finding = _fillers(engine, arrays)
        if not broken or finding.outcome != "clean":
            yield finding


def _records(evidence: EvidenceByEngine, engine: str) -> Iterator[Finding]:
    """Records of an engine that are no logprobs of a model.

    NaN also replaces logprobs that the collector finds at another token; the engine then states how many.
    """
    steps, total = evidence.input.steps, _of_copies(engine)
    known = evidence.input.engines.get(engine)
    misplaced = known is not None and MISPLACED in known.fingerprint
    for kind in (kinds.UNIFORM,) if misplaced else (kinds.BROKEN, kinds.UNIFORM):
        count = _of_copies(engine, kind)
        if kind == kinds.BROKEN:
            count = count if any(map(count, steps[-BROKEN_STEPS:])) else _arrived_broken(engine)
            violating = _violating(steps, count, BROKEN_STEPS)
            latest = [step for step in steps if violating and step.step >= violating[-1].step]
            seen, of = sum(map(count, latest)), sum(map(total, latest))
            episode = Episode(seen, of, violating[-1].step) if violating else None
        else:
            episode = _episode(steps, count, total)
        if episode is not None:
            total_seen = max(episode.total, episode.seen)
            text = f"{episode.seen} of {total_seen} rollouts of {engine}: {kinds.describe(kind)}"
            share = episode.seen / total_seen
            yield certain("record", kind, episode.since, engine, episode.seen, text, kind, value=share)


def _arrived_broken(engine: str) -> Count:
    """Number of an engine's rollouts with NaN or infinity that arrived until a step closed, trained on or not."""
    return lambda step: step.violations.get(engine, {}).get(violations.BROKEN_RECORD, 0)


def _fillers(engine: str | None, arrays: EvidenceArrays) -> Finding:
    late = arrays.sums[-WINDOW:].sum(axis=0)
    n, zero, filled = (float(late[x]) for x in (SUM.valid, SUM.suspect_zero, SUM.filler))
    if not n + filled:
        return unknown("record", NO_LOGPROBS, engine)
    outcome, count = ("fillers", filled) if filled > zero else ("zeros", zero)
    column = SUM.filler if outcome == "fillers" else SUM.suspect_zero
    since = first_step(arrays, arrays.sums[:, column] > 0)
    many = count >= max(3, MIN_FILLERS * (n + filled))
    if not many and not (outcome == "fillers" and _repeats(arrays)):
        text = f"{int(zero)} suspect zeros and {int(filled)} fillers in {int(n + filled)} tokens"
        return certain("record", "clean", None, engine, int(n), text, "")
    kind = "tokens have no valid logprob on one side"
    if outcome == "zeros":
        kind = "rollout logprobs are 0.0 where the trainer logprob is far below"
    text = f"{int(count)} of {int(n + filled)} {kind}"
    return certain("record", outcome, since, engine, int(n), text, "", value=count / (n + filled))


def _repeats(arrays: EvidenceArrays) -> bool:
    """Whether each of the latest steps has a filler."""
    late = arrays.sums[-REPEATS:, SUM.filler]
    return late.size == REPEATS and bool((late > 0).all())


MIN_FILLERS = 1e-2
"""Share of tokens below which zeros are no fault: rounding turns a p near 1 into 0.0."""


def join(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``join``: rows without a rollout, by reason, rows that were joined in an unusual way, and broken rules."""
    steps = evidence.input.steps
    rows = sum(map(_rows, steps[-WINDOW:]))
    if not rows:
        yield unknown("join", "no rows in the latest steps")
        return
    unusual = [*_violations(steps), *_unusual(steps)]
    yield from unusual
    if not unusual:
        joined = sum(sum(step.joins.values()) for step in steps[-WINDOW:])
        yield certain("join", "joined", None, None, rows, f"{joined} of {rows} rows were joined with rollouts", "")


def _rows(step: api.Step) -> int:
    return sum(step.unjoined.values()) + sum(step.joins.values())


def _unusual(steps: Sequence[api.Step]) -> Iterator[Finding]:
    """Reasons of rows that were not joined, and unusual ways of those that were."""
    late = steps[-WINDOW:]
    detailed = any(kind in violations.PROMPTS for step in late for of in step.violations.values() for kind in of)
    unjoined = {name for step in late for name in step.unjoined}
    ways = {name for step in late for name in step.joins} & set(_WAYS)
    for name in sorted(unjoined | ways):
        if name == reasons.OTHER_PROMPT and detailed:
            continue

        def count(step: api.Step, name: str = name) -> int:
            return step.unjoined.get(name, 0) + step.joins.get(name, 0)

        episode = _episode(steps, count, _rows)
        if episode is None or (name not in _EXACT and episode.seen < max(2, MANY * episode.total)):
            continue
        outcome = _WAYS.get(name) or _UNJOINED.get(name, "unjoined")
        # A stored run may have names of another version.
        text = f"{episode.seen} of {episode.total} rows: {_SENTENCES.get(name, name)}"
        share = episode.seen / episode.total
        yield certain("join", outcome, episode.since, None, episode.total, text, name, value=share)


def _violations(steps: Sequence[api.Step]) -> Iterator[Finding]:
    """Rules that rows of an engine break, each with the most frequent way in which they do."""
    for engine in sorted({engine for step in steps[-WINDOW:] for engine in step.violations}):
        for outcome, names in _RULES.items():

            def count(step: api.Step, engine: str = engine, names: frozenset[str] = names) -> int:
                return sum(n for kind, n in step.violations.get(engine, {}).items() if kind in names)

            episode = _episode(steps, count, _of_copies(engine))
            if episode is None:
                continue
            found = Counter[str]()
            for step in steps[-WINDOW:]:
                found.update(step.violations.get(engine, {}))
            kind = max(names, key=lambda name: (found[name], name))
            text = f"{episode.seen} of {episode.total} rows of {engine}: {violations.describe(kind)}"
            share = episode.seen / max(episode.total, 1)
            yield certain("join", outcome, episode.since, engine, episode.total, text, kind, value=share)


_RULES = {
    "end_lost": frozenset({violations.END_LOST}),
    "other_prompt": violations.PROMPTS,
    "other_version": frozenset({violations.OTHER_VERSION}),
}
_EXACT = frozenset({reasons.RETOKENISED, reasons.OTHER_PROMPT})
"""Reasons and ways that break a rule, but for overlong rows, of ``mask``; nothing is known of the others."""
_UNJOINED = {reasons.RETOKENISED: "retokenised"}
_WAYS = {reasons.OTHER_PROMPT: "other_prompt", reasons.TRUNCATED: "cut"}
_SENTENCES = {named.name: named.sentence for named in (*reasons.REASONS, *reasons.WAYS)}


def _overlong(step: api.Step) -> int:
    return step.unjoined.get(reasons.OVERLONG, 0)


def mask(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``mask``: trained tokens that are in no rollout."""
    arrays, steps = evidence.run, evidence.input.steps
    overlong = sum(map(_overlong, steps[-WINDOW:]))
    episode = _episode(steps, _overlong, _rows)
    if not arrays.steps or not (evidence.engines or overlong):
        yield unknown("mask", "no rollouts joined yet")
        return
    late = arrays.sums[-WINDOW:]
    lone, n = (
        float(late[:, SUM.unsampled].sum()),
        float(late[:, SUM.valid].sum() + late[:, SUM.filler].sum()),
    )
    share = lone / max(n, 1)
    if lone >= 3 and share > MANY:
        since = first_step(arrays, arrays.sums[:, SUM.unsampled] > 0)
        text = f"{int(lone)} of {int(n)} tokens in the loss are in no rollout"
        text += f"; {overlong} rows continue after the end of their rollout" if overlong else ""
        yield certain("mask", "unsampled", since, None, int(n), text, "", value=share)
    elif episode is not None:
        text = f"{episode.seen} of {episode.total} rows: {_SENTENCES[reasons.OVERLONG]}"
        share = episode.seen / episode.total
        yield certain("mask", "unsampled", episode.since, None, int(n), text, "", value=share)
    else:
        text = f"{int(n - lone)} of {int(n)} tokens in the loss were sampled"
        yield certain("mask", "sampled", None, None, int(n), text, "")
