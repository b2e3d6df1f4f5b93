"""Which policy version sampled each token, in the numbers of the trainer. Pure.

In order of precedence: what the engine states (vLLM's weight label, or the framework in the engine); what the trainer
states for its rows; the engine's count of weight updates. A count starts at 0 when the collector attaches and steps by
1, so it is a version only after it is aligned with rows that state theirs.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract import wire

if TYPE_CHECKING:
    from rltop.backend.join.batch import Batch, Span
    from rltop.backend.join.records import Hit

UNKNOWN = wire.UNKNOWN_VERSION

RECENT_SPANS = 64
"""Spans of an engine process that its count is aligned by; an offset needs the majority of their tokens."""

RECENT_STEPS = 64
"""Steps of the trainer, and differences between versions, that the unit of its versions is learned from."""

MAX_LIVES = 1024
"""Engine processes whose alignment is remembered."""

Life = tuple[str, str]
"""Engine, and epoch of its process."""

FARTHEST = 2**62 - 1
"""The limit of ``wire.Version``. Arrays may hold versions farther from 0; they count as this far."""

Versions = NDArray[np.int64]
N = TypeVar("N", int, NDArray[np.int64])


def is_stated(source: str) -> bool:
    """Whether a ``version_source`` means that the engine or its framework states the version, and it is not counted."""
    return source not in ("inferred", "unknown")


@dataclass(frozen=True, slots=True)
class VersionScale:
    """How the versions of a batch are read.

    Attributes:
        unit: by how much the trainer's version rises per update.
        offsets: by engine process, the version at count 0; None if its count is not aligned. Absent: 0.
    """

    unit: int = 1
    offsets: Mapping[Life, int | None] = field(default_factory=dict)

    def of_counts(self, life: Life, counts: Versions) -> Versions:
        """Versions of counted updates [n], ``UNKNOWN_VERSION`` where they are not known."""
        offset = self.offsets.get(life, 0)
        if offset is None:
            return np.full(counts.size, UNKNOWN)
        versions = counts * self.unit + offset
        return np.where((counts == UNKNOWN) | (versions < 0), UNKNOWN, versions)

    def lags(self, now: int, versions: Versions) -> Versions:
        """Updates between each known version [n] and the trainer's version ``now``."""
        return _nearest(_apart(now, versions), self.unit)


@dataclass(frozen=True, slots=True)
class TokenVersions:
    """Version per token [tokens], and whether it comes from a count of updates [tokens]."""

    version: Versions
    inferred: NDArray[np.bool_]


def token_versions(batch: Batch) -> TokenVersions:
    """The policy version that sampled each token, ``UNKNOWN_VERSION`` where nothing says it."""
    versions = stated_by_trainer(batch)
    inferred = np.zeros(batch.tokens, bool)
    for span, hit, own in _engine_versions(batch):
        here = slice(span.token, span.token + own.size)
        if is_stated(hit.record.rollout.version_source):
            np.copyto(versions[here], own, where=own != UNKNOWN)
            continue
        counted = batch.scale.of_counts((hit.record.engine, hit.record.life), own)
        inferred[here] = (versions[here] == UNKNOWN) & (counted != UNKNOWN)
        np.copyto(versions[here], counted, where=inferred[here])
    return TokenVersions(versions, inferred)


def stated_by_trainer(batch: Batch) -> Versions:
    """A copy of the trainer's ``rollout_versions`` [tokens], ``UNKNOWN_VERSION`` where it states none."""
    given = batch.arrays.get("rollout_versions")
    return np.full(batch.tokens, UNKNOWN, np.int64) if given is None else given.astype(np.int64)


def _engine_versions(batch: Batch) -> Iterator[tuple[Span, Hit, Versions]]:
    """Each joined span with its rollout and the engine's version or count per token."""
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is not None:
            yield span, hit, hit.record.versions[hit.offset : hit.offset + span.end - span.start]


@dataclass(slots=True)
class _Counted:
    """What is known of one engine process that counts updates.

    ``spans``: how often the trainer stated a version for tokens of a count, by (count, version), of recent spans.
    ``highest``: the highest offset at which no token was sampled by weights from after the step that trained on it; 0
    at most; None if the process appeared while the trainer was running, so that its count says nothing by itself.
    """

    highest: int | None
    spans: deque[Counter[tuple[int, int]]] = field(default_factory=lambda: deque(maxlen=RECENT_SPANS))

    def offset(self, unit: int) -> int | None:
        """The version at count 0."""
        votes: Counter[int] = Counter()
        for span in self.spans:
            for (count, version), tokens in span.items():
                votes[version - count * unit] += tokens
        if not votes:
            return self.highest
        ((offset, tokens),) = votes.most_common(1)
        return offset if 2 * tokens > votes.total() else None


def _apart(now: int, versions: Versions) -> Versions:
    """``now - versions`` [n]; arrays may hold versions beyond the range of ``now``, with which it passes 64 bits."""
    apart: Versions = now - np.clip(versions, -FARTHEST, FARTHEST)
    return apart


def _nearest(apart: N, unit: int) -> N:
    """``apart / unit`` rounded to the nearest integer, half to even; exact, as floats above 2^53 are not."""
    whole, rest = divmod(apart, unit)
    nearest: N = whole + ((rest > unit - rest) | ((rest == unit - rest) & (whole % 2 == 1)))
    return nearest


class VersionUnit:
    """By how much the trainer's version rises per update: stated, or learned from its steps."""

    def __init__(self) -> None:
        self._stated = 1
        self._of_step: OrderedDict[int, int] = OrderedDict()  # version that the step starts from
        self._apart: deque[int] = deque(maxlen=RECENT_STEPS)  # differences to versions that were stated for tokens

    @property
    def moved(self) -> bool:
        """Whether the trainer's version has been seen to change."""
        return len(set(self._of_step.values())) > 1

    def observe(self, step: int, version: int | None, stated: int = 1) -> None:
        """The trainer starts ``step`` from ``version``, and states a unit (1: none, or updates)."""
        self._stated = stated
        if version is not None:
            self._of_step[step] = version
            self._of_step.move_to_end(step)
            if len(self._of_step) > RECENT_STEPS:
                self._of_step.popitem(last=False)

    def observe_tokens(self, now: int, versions: Versions) -> None:
        """Rows that are trained on at version ``now`` state these versions."""
        self._apart.extend(np.unique(_apart(now, versions[versions != UNKNOWN]))[:RECENT_STEPS].tolist())

    def restart(self) -> None:
        """The trainer restarted, perhaps from an earlier version."""
        self._of_step.clear()
        self._apart.clear()

    @property
    def value(self) -> int:
        """The unit: what most steps rise by, if all differences between stated versions are multiples of it, else 1."""
        if self._stated > 1:
            return self._stated
        steps = sorted(self._of_step.items())
        rises = [(b[1] - a[1], b[0] - a[0]) for a, b in itertools.pairwise(steps) if b[1] > a[1]]
        units = Counter(rise // apart for rise, apart in rises if rise % apart == 0)
        unit, times = units.most_common(1)[0] if units else (1, 1)
        if 2 * times <= len(rises) or any(apart % unit for apart in self._apart):
            return 1
        return unit


class VersionAlignment:
    """Learns from trained rows how the counts of engines and the versions of the trainer relate.

    Attributes:
        unit: of the trainer's versions.
        conflicts: tokens for which engine and trainer stated different versions.
    """

    def __init__(self) -> None:
        self.unit = VersionUnit()
        self.conflicts = 0
        self._counted: OrderedDict[Life, _Counted] = OrderedDict()
        self._in_conflict: dict[Life, str] = {}  # with the notice that was not taken yet

    def began(self, engine: str, life: str) -> None:
        """A process of the engine is seen for the first time."""
        self._counted[engine, life] = _Counted(None if self.unit.moved else 0)
        if len(self._counted) > MAX_LIVES:
            self._counted.popitem(last=False)

    def trainer_restarted(self) -> None:
        """The trainer restarted, perhaps from an earlier version: counts are aligned again."""
        self.unit.restart()
        for counted in self._counted.values():
            counted.spans.clear()
            counted.highest = None if counted.highest is None else 0

    def scale(self, batch: Batch) -> VersionScale:
        """Learn from a joined batch; return how its versions are read."""
        stated, now = stated_by_trainer(batch), batch.body.policy_version
        lives: set[Life] = set()
        for span, hit, own in _engine_versions(batch):
            trainer = stated[span.token : span.token + own.size]
            life = hit.record.engine, hit.record.life
            if is_stated(hit.record.rollout.version_source):
                self._compare(life, own, trainer)
                continue
            lives.add(life)
            self._learn(life, own, trainer, now)
        if now is not None:
            self.unit.observe_tokens(now, stated)
        unit = self.unit.value
        return VersionScale(unit, {life: self._of(life).offset(unit) for life in lives})

    def version(self, life: Life, version: int | None, source: str) -> int | None:
        """A version that an engine reports, in the numbers of the trainer; None if it is not known."""
        if version is None or is_stated(source):
            return version
        offset = self._of(life).offset(unit := self.unit.value)
        return None if offset is None or version * unit + offset < 0 else version * unit + offset

    def lag(self, now: int | None, version: int | None) -> int | None:
        """Updates between a version and the trainer's."""
        if now is None or version is None:
            return None
        return _nearest(now - version, self.unit.value)

    def take_notices(self) -> list[tuple[str, str]]:
        """Return engines that newly state other versions than the trainer, each with one line about it."""
        new = [(engine, text) for (engine, _), text in self._in_conflict.items() if text]
        self._in_conflict = dict.fromkeys(self._in_conflict, "")
        return new

    def _of(self, life: Life) -> _Counted:
        if life not in self._counted:
            self.began(*life)
        return self._counted[life]

    def _learn(self, life: Life, counts: Versions, stated: Versions, now: int | None) -> None:
        counted = self._of(life)
        both = (counts != UNKNOWN) & (stated != UNKNOWN)
        if both.any():
            counted.spans.append(Counter(zip(counts[both].tolist(), stated[both].tolist(), strict=True)))
        if now is not None and counted.highest is not None and counts.size:
            counted.highest = min(counted.highest, now - int(counts.max()) * self.unit.value)

    def _compare(self, life: Life, own: Versions, stated: Versions) -> None:
        """Compare stated versions; the trainer may state one version of a sequence that several versions sampled."""
        known = own[own != UNKNOWN]
        if not known.size:
            return
        other = (stated != UNKNOWN) & ((stated < known.min()) | (stated > known.max()))
        if count := int(np.count_nonzero(other)):
            self.conflicts += count
            engine, theirs = life[0], int(stated[other][0])
            self._in_conflict.setdefault(
                life,
                f"{engine} states policy version {known[0]} for tokens of which the trainer states {theirs}; rltop "
                "uses the engine's. One of them may count from another start or in another unit",
            )
