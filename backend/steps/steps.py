"""Assembles training steps: rows and closes of ranks go in, a measured ``api.Step`` comes out. Pure.

A step closes when all ranks have closed it, or ``PARTIAL_S`` after the first did (marked partial). If rollouts are
missing, it waits ``GRACE_S`` for them, and until every engine has sent data after that (longer while messages are
resent). Then it is measured, and is done; later rows are counted. ``docs/protocols/step.md`` has the states and
transitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rltop.backend import api, metrics
from rltop.backend.api.attribution import Attribution
from rltop.backend.effects.epoch_sums import Cell, Cells, EpochKey, measure_cells
from rltop.backend.evidence import evidence
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.series import EvidenceSeries
from rltop.backend.gaps.attribute import StepParts
from rltop.backend.gaps.mismatch import GapShapes
from rltop.backend.gaps.sampling import SampledSteps, StepSamples
from rltop.backend.ingest.sources import is_trainer
from rltop.backend.join.batch import Batch
from rltop.backend.join.index import RolloutIndex
from rltop.backend.join.stats import JoinStats, by_engine
from rltop.backend.join.versions import VersionAlignment
from rltop.backend.measure.measure import UNKNOWN_ENGINE, BatchRuns, measure
from rltop.backend.steps.provenance import OpenProvenance, StepProvenance, StoredSteps
from rltop.backend.summary import Summary
from rltop.collectors.contract import wire

PARTIAL_S = 60.0
"""How long a step waits for its other ranks after the first has closed it, or after a later step is done."""

GRACE_S = 2.0
"""How long a closed step waits for rollouts: engines publish within a fraction of a second of finishing. An engine that
has sent data after that time has sent its earlier rollouts; those of another may still be in transit."""

RESENT_S = 30.0
"""The longest wait for rollouts, also for resent ones."""

PART_TOKENS = 1 << 16
ROW_TOKENS = 400
"""Tokens measured in one tick, about two messages, so that a hub answers commands in between; and the cost of a row, in
tokens."""

MAX_OPEN = 64
MAX_OPEN_RESENT = 2048
MAX_WAITING_BYTES = 1 << 30
"""Bounds on open steps (more while messages are resent), and on the bytes of rows that wait for rollouts; beyond them
the oldest are settled early and counted."""

T = TypeVar("T")

MAX_DONE = 20_000
"""Steps remembered as done; rows of an older one would open it again."""


@dataclass(slots=True)
class Assembly:
    """A step being assembled.

    Attributes:
        resent: it began while messages were being resent.
        epochs: the epoch of each rank that it is from.
        ranks: those that have closed it.
        waiting: batches that wait for rollouts.
        parts, cells, evidence, joined, samples: what the absorbed batches add up to.
        rows: rows of the first update received, by rank. received: of all updates.
        sent: rows of all updates that a rank reports to have sent.
        provenance: the rollouts that its rows were joined with.
        lost: messages, by source, that may have belonged to it.
        deadline: when it closes as partial. closed: when it closed.
        partial: ranks are missing.
    """

    step: int
    resent: bool = False
    epochs: dict[int, str] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)
    world_size: int = 1
    policy_version: int | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    waiting: list[Batch] = field(default_factory=list)
    parts: dict[str, Summary] = field(default_factory=dict)
    cells: dict[EpochKey, Cell] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    joined: JoinStats = field(default_factory=JoinStats)
    samples: StepSamples = field(default_factory=StepSamples)
    rows: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)
    sent: dict[int, int] = field(default_factory=dict)
    provenance: OpenProvenance = field(default_factory=OpenProvenance)
    lost: Counter[str] = field(default_factory=Counter)
    deadline: float | None = None
    closed: float | None = None
    partial: bool = False

    def absorb(self, batch: Batch) -> None:
        """Measure a batch and add it up; its arrays are not kept."""
        runs = BatchRuns(batch)
        for engine, part in measure(batch, runs).items():
            self.parts[engine] = self.parts[engine] + part if engine in self.parts else part
        for engine, own in evidence.of(batch, runs).items():
            self.evidence[engine] = self.evidence[engine] + own if engine in self.evidence else own
        for place, cell in measure_cells(batch).items():
            self.cells[place] = self.cells[place] + cell if place in self.cells else cell
        if batch.is_first:
            self.joined.count(batch, runs.copies, runs.prompts)
            self.samples.add_batch(batch)
        self.provenance.add(batch)

    @property
    def missing_rows(self) -> int:
        """Rows that ranks report to have sent and that did not arrive."""
        return sum(max(rows - self.received[rank], 0) for rank, rows in self.sent.items())

    @property
    def may_lack_rows(self) -> bool:
        """Messages of a rank were lost, and not every rank reports how many rows it sent."""
        return any(is_trainer(source) for source in self.lost) and len(self.sent) < self.world_size

    def close(self, now: float, *, partial: bool) -> None:
        """No more rows are expected."""
        if self.closed is None:
            self.closed, self.partial = now, self.partial or partial

    def result(self, unused: Counter[str], before: Sequence[metrics.Scalars]) -> api.Step:
        """Return the measured step; ``unused`` counts old unused rollouts by engine, ``before`` has earlier scalars."""
        engines = metrics.of_engines({e: p for e, p in sorted(self.parts.items()) if e != UNKNOWN_ENGINE})
        values = metrics.values(sum(self.parts.values(), Summary()), engines, self.scalars, before)
        assert self.closed is not None
        return api.Step(
            self.step,
            self.closed,
            self.policy_version,
            self.partial or self.missing_rows > 0 or self.may_lack_rows,
            values,
            engines,
            dict(self.joined.unjoined),
            self.scalars,
            joins=dict(self.joined.ways),
            reused=self.joined.reused,
            unused=dict(unused),
            copies=by_engine(self.joined.copies),
            missing_rows=self.missing_rows,
            lost=dict(self.lost),
            violations=by_engine(self.joined.violations),
        )


class Steps:
    """Assembles and measures all steps.

    Args:
        index: the rollouts.
        ready: whether rows can be measured without waiting for the compiler; until then they wait here.
        stored: steps that an earlier hub stored; messages about them may be resent.
        versions: aligns the versions of engines and trainer.

    Attributes:
        late_rows: rows that arrived after their step was measured.
        settled_early: batches that were settled before their rollouts arrived, for want of room.
        cells, parts, samples, shapes, series: of the steps that are done.
        provenance: of the steps that are done, until it is taken.
        behind: earlier messages are still being resent.
        unfinished: the last tick left rows that can be measured.
    """

    def __init__(
        self,
        index: RolloutIndex,
        ready: Callable[[], bool] = lambda: True,
        stored: StoredSteps | None = None,
        versions: VersionAlignment | None = None,
    ) -> None:
        self.late_rows = 0
        self.settled_early = 0
        self.cells = Cells()
        self.parts = StepParts()
        self._scalars: dict[int, metrics.Scalars] = {}
        self.samples = SampledSteps()
        self.shapes = GapShapes()
        self.series = EvidenceSeries()
        self._index = index
        self._ready = ready
        self._open: dict[int, Assembly] = {}
        self._done: dict[int, None] = {}
        self._settled: list[api.Step] = []  # measured early, for want of room
        self._faults: list[tuple[int, Exception]] = []
        self._next_lost: Counter[str] = Counter()
        self._stored = stored or StoredSteps()
        self._versions = versions or VersionAlignment()
        self._lives: dict[int, str] = {}  # epoch of every rank
        self.provenance: dict[int, StepProvenance] = {}
        self.behind = False
        self.unfinished = False
        self._budget = 0  # tokens that this tick may still measure
        self._unseen = False  # rows wait that were not tried yet: later rows must not overtake them

    @property
    def open(self) -> list[int]:
        """Numbers of the steps that have messages and are not done."""
        return list(self._open)

    @property
    def lives(self) -> dict[int, str]:
        """Epoch of the latest process of every rank that sent rows or closed a step."""
        return dict(self._lives)

    def is_open(self, step: int) -> bool:
        """Whether the step has messages and is not done."""
        return step in self._open

    def resume(self, past: Mapping[int, api.Step]) -> None:
        """Continue after the steps that an earlier hub measured."""
        self._scalars = {number: past[number].trainer for number in sorted(past)[-metrics.TRAILING :]}

    def new_epoch(self) -> None:
        """The trainer restarted, perhaps from an earlier step: steps may come again."""
        self._done.clear()
        self._versions.trainer_restarted()

    def messages_lost(self, source: str, messages: int) -> None:
        """Messages of a source were lost (0: unknown how many): open steps and the next one may lack rows."""
        for assembly in self._open.values():
            assembly.lost[source] += messages
        self._next_lost[source] += messages

    def add_rows(self, epoch: str, body: wire.Sequences, arrays: wire.Arrays, now: float) -> None:
        """Add rows of a step, from the rank's process ``epoch``. Raises ``WireError`` if they are malformed."""
        if self._stored.has(body.step, body.rank, epoch):
            return
        batch = Batch(body, arrays)
        if body.step in self._done:
            self.late_rows += batch.rows if batch.is_first else 0
            return
        assembly = self._assembly(body.step, body.rank, epoch, now)
        assembly.received[body.rank] += batch.rows
        if batch.is_first:
            self._versions.unit.observe(body.step, body.policy_version, body.version_unit)
            batch.first = assembly.rows[body.rank]
            assembly.rows[body.rank] += batch.rows
        if not batch.is_first and not self.behind:  # only contributes clip rates: not worth waiting for
            batch.join(self._index, strict=False)
            self._measure(assembly, batch)
        elif self._joins_now() and not self._unseen and batch.join(self._index, strict=True):
            self._measure(assembly, batch)
        else:
            self._unseen |= not self._joins_now()
            assembly.waiting.append(batch)
            self._make_room()

    def close_rank(self, epoch: str, body: wire.StepClosed, now: float) -> None:
        """A rank has sent all its rows of a step."""
        if body.step in self._done or self._stored.has(body.step, body.rank, epoch):
            return
        assembly = self._assembly(body.step, body.rank, epoch, now)
        assembly.ranks.add(body.rank)
        if body.rows is not None:
            assembly.sent[body.rank] = body.rows
        assembly.world_size = max(body.world_size, 1)
        if body.policy_version is not None:
            assembly.policy_version = body.policy_version
            self._versions.unit.observe(body.step + 1, body.policy_version, body.version_unit)
        # Of scalars of one name the lowest rank's is used, whichever rank closes first.
        assembly.scalars = (
            {**assembly.scalars, **body.metrics} if body.rank == 0 else {**body.metrics, **assembly.scalars}
        )
        if assembly.deadline is None:
            assembly.deadline = now + PARTIAL_S
        if len(assembly.ranks) >= assembly.world_size:
            assembly.close(now, partial=False)

    def trainer_gone(self, now: float) -> None:
        """All ranks disconnected: close the steps they left open."""
        for assembly in self._open.values():
            assembly.close(now, partial=True)

    def tick(self, now: float, data_until: float | None = None) -> list[api.Step]:
        """Join waiting batches, within the budget of a tick; return the steps that are done.

        Args:
            now: seconds.
            data_until: time up to which every live engine has sent data; None: ``now``.
        """
        settled, self._settled = self._settled, []
        joins_now, data_until = self._joins_now(), now if data_until is None else data_until
        self.unfinished, self._budget = False, PART_TOKENS
        for assembly in list(self._open.values()):
            if (done := self._contained(assembly, self._advance, now, data_until)) is not None:
                settled.append(done)
            if self._budget <= 0:
                self.unfinished = True
                break
        self._unseen &= self.unfinished or not joins_now
        return settled

    def _joins_now(self) -> bool:
        """Whether rows are joined as they arrive."""
        return self._ready() and not self.behind

    def attribution(self, steps: int) -> Attribution:
        """Break the gap of the last ``steps`` steps down by source."""
        return self.parts.attribution(steps, self.cells.steps())

    def _assembly(self, step: int, rank: int, epoch: str, now: float) -> Assembly:
        assembly = self._open.get(step)
        if assembly is None or assembly.epochs.get(rank, epoch) != epoch:  # a restarted trainer repeats the step
            assembly = self._open[step] = Assembly(step, resent=self.behind)
            if len(self._open) > (MAX_OPEN_RESENT if self.behind else MAX_OPEN):
                oldest = next(iter(self._open.values()))
                oldest.close(now, partial=True)
                if (done := self._contained(oldest, self._finish, now)) is not None:
                    self._settled.append(done)
            assembly.lost.update(self._next_lost)
        assembly.epochs[rank] = self._lives[rank] = epoch
        self._next_lost.clear()
        return assembly

    def _advance(self, assembly: Assembly, now: float, data_until: float) -> api.Step | None:
        if assembly.deadline is not None and now >= assembly.deadline:
            assembly.close(now, partial=True)
        late = self.behind and (assembly.closed is None or now < assembly.closed + RESENT_S)
        if assembly.waiting and (late or not self._ready()):  # all wait: none may overtake an earlier one
            return None
        waiting = []
        for batch in assembly.waiting:
            if self._budget > 0 and batch.join(self._index, strict=True):
                self._absorb(assembly, batch)
            else:
                waiting.append(batch)
        assembly.waiting = waiting
        if assembly.closed is None:
            return None
        if waiting and data_until < assembly.closed + GRACE_S and now < assembly.closed + RESENT_S:
            return None
        while assembly.waiting and self._budget > 0:
            self._settle(assembly, assembly.waiting.pop(0))
        return None if assembly.waiting else self._finish(assembly, now)

    def _measure(self, assembly: Assembly, batch: Batch) -> None:
        batch.scale = self._versions.scale(batch)
        assembly.absorb(batch)

    def _absorb(self, assembly: Assembly, batch: Batch) -> None:
        self._measure(assembly, batch)
        self._budget -= batch.tokens + ROW_TOKENS * batch.rows

    def _settle(self, assembly: Assembly, batch: Batch) -> None:
        """Absorb a batch with the nearest rollouts there are."""
        batch.join(self._index, strict=False)
        self._absorb(assembly, batch)

    def _contained(self, assembly: Assembly, work: Callable[..., T], *args: Any) -> T | None:
        """Return ``work(assembly, *args)``; if it raises, give the step up: the others go on."""
        try:
            return work(assembly, *args)
        except Exception as error:  # noqa: BLE001 - whatever it is, only this step suffers
            self._remove(assembly)
            self._faults.append((assembly.step, error))
            return None

    def take_faults(self) -> list[tuple[int, Exception]]:
        """Return the steps that were given up since the last call, and why."""
        faults, self._faults = self._faults, []
        return faults

    def _remove(self, assembly: Assembly) -> None:
        """The step takes no more messages."""
        self._open.pop(assembly.step, None)
        self._done[assembly.step] = None
        if len(self._done) > MAX_DONE:
            del self._done[next(iter(self._done))]

    def _finish(self, assembly: Assembly, now: float) -> api.Step:
        for batch in assembly.waiting:
            self._settle(assembly, batch)
        self._remove(assembly)
        for other in self._open.values():  # a step that no rank closes must not stay open
            if other.step < assembly.step and other.deadline is None:
                other.deadline = now + PARTIAL_S
        before = [self._scalars[number] for number in sorted(self._scalars) if number < assembly.step]
        in_turn = bool(assembly.parts) and not assembly.resent  # else rollouts arrived long before their step
        assembly.joined.count_broken(self._index.take_broken())
        step = assembly.result(self._index.step_done(assembly.provenance.records, in_turn=in_turn), before)
        self.provenance[step.step] = assembly.provenance.result(self._lives)
        self._scalars[step.step] = step.trainer
        while len(self._scalars) > metrics.TRAILING:
            del self._scalars[min(self._scalars)]
        self.cells.put(step.step, step.closed, assembly.cells)
        self.parts.put(step.step, assembly.parts)
        self.samples.put(step.step, assembly.samples)
        self.shapes.put(step.step, assembly.parts)
        known = {e: own for e, own in assembly.evidence.items() if not own.is_empty}
        self.series.put(step.step, {e: evidence.with_strata(own, assembly.parts[e]) for e, own in known.items()})
        return step

    def _make_room(self) -> None:
        batches = [(a, b) for a in self._open.values() for b in a.waiting]
        size = sum(batch.nbytes for _, batch in batches)
        for assembly, batch in batches:
            if size <= MAX_WAITING_BYTES:
                break
            assembly.waiting.remove(batch)
            size -= batch.nbytes
            self._contained(assembly, self._settle, batch)
            self.settled_early += 1
