"""Statistics of a step's join: ways, reasons, reuse and copies, and notices when something unusual appears."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.backend import api
from rltop.backend.join import copies, violations
from rltop.backend.join.batch import Batch
from rltop.backend.join.reasons import OTHER_PROMPT, OVERLONG, REASONS, RETOKENISED, WAYS, ReasonEntry

REMEMBERED_STEPS = 8
"""Steps after which a notice is repeated if it reappears."""

NOTABLE_REASONS = tuple(reason for reason in REASONS if reason.name in (RETOKENISED, OVERLONG))
NOTABLE_WAYS = tuple(way for way in WAYS if way.name == OTHER_PROMPT)
"""Reasons and ways of rows whose prompt or completion differs from the engine's."""

Copies = dict[str, dict[str, int]]
"""Number of spans by engine and kind (``copies.KINDS``)."""


@dataclass(slots=True)
class JoinStats:
    """Counts over the batches of one step's first update. The order of batches does not matter."""

    ways: Counter[str] = field(default_factory=Counter)
    unjoined: Counter[str] = field(default_factory=Counter)
    copies: dict[str, Counter[str]] = field(default_factory=dict)
    violations: dict[str, Counter[str]] = field(default_factory=dict)
    reused: int = 0

    def count(self, batch: Batch, kinds: Mapping[int, str], prompts: Mapping[int, str]) -> None:
        """Add a batch whose join is final, with the kinds of its spans' copies and prompts."""
        self.ways += batch.ways()
        self.unjoined += batch.unjoined()
        self.reused += batch.reused()
        _add(self.copies, copies.by_engine(batch, kinds))
        _add(self.violations, violations.find(batch, prompts))

    def count_broken(self, broken: Mapping[str, int]) -> None:
        """Add rollouts that arrived with NaN or infinity, by engine."""
        for engine, count in broken.items():
            self.violations.setdefault(engine, Counter())[violations.BROKEN_RECORD] += count


def _add(total: dict[str, Counter[str]], found: dict[str, Counter[str]]) -> None:
    for engine, kinds in found.items():
        total.setdefault(engine, Counter()).update(kinds)


def by_engine(found: dict[str, Counter[str]]) -> Copies:
    """As in ``api.Step.copies`` and ``api.Step.violations``."""
    return {engine: dict(sorted(kinds.items())) for engine, kinds in sorted(found.items())}


class JoinWatch:
    """Detects kinds of copies, ways and reasons that appear and that a healthy run does not have."""

    def __init__(self) -> None:
        self._steps = 0
        self._seen: dict[tuple[str, str], int] = {}

    def notices(self, step: api.Step) -> list[str]:
        """One line per kind of copy that is new on an engine, and per new reason and way."""
        self._steps += 1
        new: dict[str, list[str]] = {}
        for engine, kinds in step.copies.items():
            for kind in kinds.keys() - copies.FINE:
                if self._is_new(engine, kind):
                    new.setdefault(kind, []).append(engine)
        lines = [_copies_line(kind, sorted(engines), step.copies) for kind, engines in sorted(new.items())]
        for named, counts in ((NOTABLE_REASONS, step.unjoined), (NOTABLE_WAYS, step.joins)):
            present = [one for one in named if one.name in counts]
            lines += [_reason_line(counts[one.name], one) for one in present if self._is_new("", one.name)]
        return lines

    def _is_new(self, engine: str, name: str) -> bool:
        before = self._seen.get((engine, name), -REMEMBERED_STEPS)
        self._seen[engine, name] = self._steps
        return self._steps - before > REMEMBERED_STEPS


def _reason_line(count: int, named: ReasonEntry) -> str:
    return f"{count} sequences {named.name}: {named.sentence}"


def _copies_line(kind: str, engines: list[str], found: Copies) -> str:
    of_kind = sum(found[engine][kind] for engine in engines)
    of_all = sum(sum(found[engine].values()) for engine in engines)
    return copies.sentence(kind, of_kind, of_all, ", ".join(engines))


def as_json(step: api.Step) -> dict[str, Any]:
    """The join of a step as plain values."""
    return {
        "joined": step.joins,
        "unjoined": step.unjoined,
        "reused": step.reused,
        "unused_rollouts": step.unused,
        "copies": step.copies,
        "violations": step.violations,
    }


def as_text(step: api.Step) -> list[str]:
    """The join of a step as lines of text, each reason with its explanation."""
    joined = sum(step.joins.values())
    lines = [f"{joined} of {joined + sum(step.unjoined.values())} sequences found among the rollouts"]
    ways = ", ".join(f"{count} {way}" for way, count in sorted(step.joins.items()))
    lines[0] += f" ({ways})" if ways else ""
    if step.reused:
        lines.append(f"{step.reused} were also trained on in an earlier step")
    missed = [(step.unjoined.get(reason.name), reason) for reason in REASONS]
    lines += [f"{count} {reason.name}: {reason.sentence}" for count, reason in missed if count]
    if step.unused:
        unused = ", ".join(f"{engine} {count}" for engine, count in sorted(step.unused.items()))
        lines.append(f"rollouts that were never trained on: {unused}")
    for kind in sorted({kind for kinds in step.copies.values() for kind in kinds}):
        engines = sorted(engine for engine, kinds in step.copies.items() if kind in kinds)
        if kind != copies.EQUAL:
            lines.append(_copies_line(kind, engines, step.copies))
    for kind in sorted({kind for kinds in step.violations.values() for kind in kinds}):
        of_kind = {engine: kinds[kind] for engine, kinds in step.violations.items() if kind in kinds}
        lines.append(f"{sum(of_kind.values())} rows of {', '.join(of_kind)}: {violations.describe(kind)}")
    if every := sum(sum(kinds.values()) for kinds in step.copies.values()):
        equal = sum(kinds.get(copies.EQUAL, 0) for kinds in step.copies.values())
        lines.append(f"{equal} of {every} copies of the rollout logprobs are equal to the engine's")
    return lines
