"""Steps of the trainer: rows and closes come in, a measured ``view.Step`` goes out. Pure.

A step closes when all ranks have closed it, or ``PARTIAL_S`` after the first did (marked partial). If rollouts are
missing it waits ``GRACE_S`` for them, and until every engine was heard after that (longer while one sends again what a
hub before had), is measured, and is done; rows that come later are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from rltop.backend.join.stats import JoinStats
from rltop.backend.measure.measure import UNKNOWN_ENGINE, BatchRuns, measure
from rltop.backend.steps.provenance import OpenProvenance, StepProvenance, StoredSteps
from rltop.backend.summary import Summary
from rltop.collectors.contract import wire

PARTIAL_S = 60.0
"""How long a step waits for its other ranks after the first has closed it (or after a later step was done)."""

GRACE_S = 2.0
"""How long a closed step waits for rollouts: engines publish within a fraction of a second of finishing. What they say
after that time they say after those rollouts: as long as a live one has not spoken, they may be on their way."""

RESENT_S = 30.0
"""The longest that it waits for them, also for those that are being sent again."""

PART_TOKENS = 1 << 16
ROW_TOKENS = 400
"""The tokens measured in one tick, about two messages, so that a hub answers commands in between; and how many tokens a
row costs as much as."""

MAX_OPEN = 64
MAX_OPEN_RESENT = 2048
MAX_WAITING_BYTES = 1 << 30
"""Steps open at a time (while they are sent again: of a fast trainer there are many), and what rows that wait for
rollouts may hold; the oldest are settled early and counted."""

MAX_DONE = 20_000
"""Steps that are remembered as done; rows of one that was done before them open it anew."""


@dataclass(slots=True)
class Assembly:
    """A step being put together; ``epochs`` says which life of each rank it is from, ``rows`` how many it sent.

    ``resent``: it began while messages were sent again. ``came`` are the rows of all updates, ``passed`` how many of
    them a rank says there were; ``lost`` messages, by source, may have been the step's.
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
    came: Counter[int] = field(default_factory=Counter)
    passed: dict[int, int] = field(default_factory=dict)
    taking: OpenProvenance = field(default_factory=OpenProvenance)
    lost: Counter[str] = field(default_factory=Counter)
    deadline: float | None = None
    closed: float | None = None
    partial: bool = False
    """Ranks are missing."""

    def absorb(self, batch: Batch) -> None:
        """Measure a batch and let its arrays go."""
        made = BatchRuns(batch)
        for engine, part in measure(batch, made).items():
            self.parts[engine] = self.parts[engine] + part if engine in self.parts else part
        for engine, own in evidence.of(batch, made).items():
            self.evidence[engine] = self.evidence[engine] + own if engine in self.evidence else own
        for place, cell in measure_cells(batch).items():
            self.cells[place] = self.cells[place] + cell if place in self.cells else cell
        if batch.body.update == 0:
            self.joined.count(batch)
            self.samples.add_batch(batch)
        self.taking.add(batch)

    @property
    def missing_rows(self) -> int:
        """Rows that its ranks passed and that are not here, as far as they say how many there are."""
        return sum(max(rows - self.came[rank], 0) for rank, rows in self.passed.items())

    @property
    def may_lack_rows(self) -> bool:
        """Messages of a rank were lost, and not every rank says how many rows it passed."""
        return any(is_trainer(source) for source in self.lost) and len(self.passed) < self.world_size

    def close(self, now: float, *, partial: bool) -> None:
        """No more rows are expected."""
        if self.closed is None:
            self.closed, self.partial = now, self.partial or partial

    def result(self, unused: Counter[str], before: Sequence[metrics.Scalars]) -> api.Step:
        """The measured step; ``unused`` rollouts by engine were passed over by now, ``before`` has earlier scalars."""
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
            copies=self.joined.copies_by_engine(),
            missing_rows=self.missing_rows,
            lost=dict(self.lost),
        )


class Steps:
    """All open steps.

    Args:
        index: the rollouts. ready: whether rows can be measured without waiting; until then they wait here.
        told: steps that are stored, and may be told again.

    Attributes:
        late_rows: rows that came after their step was measured. settled_early: batches that waited for rollouts until
            there was no room. cells, history, course: of the steps that are done, for effects, attribution and a
            diagnosis. taken: what the steps that are done were made from, until somebody takes it. behind: what was
            sent before is still being sent again. unfinished: the last tick left rows that can be measured by now.
    """

    def __init__(
        self, index: RolloutIndex, ready: Callable[[], bool] = lambda: True, told: StoredSteps | None = None
    ) -> None:
        self.late_rows = 0
        self.settled_early = 0
        self.cells = Cells()
        self.history = StepParts()
        self._scalars: dict[int, metrics.Scalars] = {}
        self.samples = SampledSteps()
        self.shapes = GapShapes()
        self.course = EvidenceSeries()
        self._index = index
        self._ready = ready
        self._open: dict[int, Assembly] = {}
        self._done: dict[int, None] = {}
        self._settled: list[api.Step] = []  # measured before their time, for want of room
        self._next_lost: Counter[str] = Counter()
        self._told = told or StoredSteps()
        self._lives: dict[int, str] = {}  # of every rank
        self.taken: dict[int, StepProvenance] = {}
        self.behind = False
        self.unfinished = False
        self._left = 0  # tokens of this tick's part
        self._unseen = False  # rows wait that nobody looked at yet: those that come later must not overtake them

    @property
    def open(self) -> list[int]:
        """Numbers of the steps that something was heard of and that are not done."""
        return list(self._open)

    def is_open(self, step: int) -> bool:
        """Whether something was heard of the step and it is not done."""
        return step in self._open

    def resume(self, past: Mapping[int, api.Step]) -> None:
        """What an earlier hub measured goes before what comes."""
        self._scalars = {number: past[number].trainer for number in sorted(past)[-metrics.TRAILING :]}

    def new_epoch(self) -> None:
        """The trainer started anew, perhaps from an earlier step: its steps may come again."""
        self._done.clear()

    def lost(self, source: str, messages: int) -> None:
        """So many messages of a source never came (0: nobody knows): open steps may lack rows, and so may the next."""
        for assembly in self._open.values():
            assembly.lost[source] += messages
        self._next_lost[source] += messages

    def rows(self, epoch: str, body: wire.Sequences, arrays: wire.Arrays, now: float) -> None:
        """Rows of a step, from the rank's life ``epoch``. Raises ``WireError`` if they are not well formed."""
        if self._told.knows(body.step, body.rank, epoch):
            return
        batch = Batch(body, arrays)
        if body.step in self._done:
            self.late_rows += batch.rows if body.update == 0 else 0
            return
        assembly = self._assembly(body.step, body.rank, epoch, now)
        assembly.came[body.rank] += batch.rows
        if body.update == 0:
            batch.first = assembly.rows[body.rank]
            assembly.rows[body.rank] += batch.rows
        if body.update and not self.behind:  # gives clip rates only: not worth waiting for
            batch.join(self._index, strict=False)
            assembly.absorb(batch)
        elif self._sees() and not self._unseen and batch.join(self._index, strict=True):
            assembly.absorb(batch)
        else:
            self._unseen |= not self._sees()
            assembly.waiting.append(batch)
            self._make_room()

    def closed(self, epoch: str, body: wire.StepClosed, now: float) -> None:
        """A rank has passed all it had."""
        if body.step in self._done or self._told.knows(body.step, body.rank, epoch):
            return
        assembly = self._assembly(body.step, body.rank, epoch, now)
        assembly.ranks.add(body.rank)
        if body.rows is not None:
            assembly.passed[body.rank] = body.rows
        assembly.world_size = max(body.world_size, 1)
        if body.policy_version is not None:
            assembly.policy_version = body.policy_version
        # One scalar of a name: the lowest rank's, whichever closes first.
        assembly.scalars = (
            {**assembly.scalars, **body.metrics} if body.rank == 0 else {**body.metrics, **assembly.scalars}
        )
        if assembly.deadline is None:
            assembly.deadline = now + PARTIAL_S
        if len(assembly.ranks) >= assembly.world_size:
            assembly.close(now, partial=False)

    def trainer_gone(self, now: float) -> None:
        """The whole trainer said goodbye: what it left open will not be closed by it."""
        for assembly in self._open.values():
            assembly.close(now, partial=True)

    def tick(self, now: float, heard: float | None = None) -> list[api.Step]:
        """Join a part of what can be joined by now; the steps that are done.

        ``heard``: until when every live engine was.
        """
        settled, self._settled = self._settled, []
        seen, heard = self._sees(), now if heard is None else heard
        self.unfinished, self._left = False, PART_TOKENS
        for assembly in list(self._open.values()):
            if (done := self._advance(assembly, now, heard)) is not None:
                settled.append(done)
            if self._left <= 0:
                self.unfinished = True
                break
        self._unseen &= self.unfinished or not seen
        return settled

    def _sees(self) -> bool:
        """Whether rows are looked at when they come."""
        return self._ready() and not self.behind

    def attribution(self, steps: int) -> Attribution:
        """Where the gap of the last ``steps`` steps comes from."""
        return self.history.attribution(steps, self.cells.steps())

    def _assembly(self, step: int, rank: int, epoch: str, now: float) -> Assembly:
        assembly = self._open.get(step)
        if assembly is None or assembly.epochs.get(rank, epoch) != epoch:  # a restarted trainer repeats the step
            assembly = self._open[step] = Assembly(step, resent=self.behind)
            if len(self._open) > (MAX_OPEN_RESENT if self.behind else MAX_OPEN):
                oldest = next(iter(self._open.values()))
                oldest.close(now, partial=True)
                self._settled.append(self._finish(oldest, now))
            assembly.lost.update(self._next_lost)
        assembly.epochs[rank] = self._lives[rank] = epoch
        self._next_lost.clear()
        return assembly

    def _advance(self, assembly: Assembly, now: float, heard: float) -> api.Step | None:
        if assembly.deadline is not None and now >= assembly.deadline:
            assembly.close(now, partial=True)
        late = self.behind and (assembly.closed is None or now < assembly.closed + RESENT_S)
        if assembly.waiting and (late or not self._ready()):  # all wait together: none may overtake an earlier one
            return None
        waiting = []
        for batch in assembly.waiting:
            if self._left > 0 and batch.join(self._index, strict=True):
                self._absorb(assembly, batch)
            else:
                waiting.append(batch)
        assembly.waiting = waiting
        if assembly.closed is None:
            return None
        if waiting and heard < assembly.closed + GRACE_S and now < assembly.closed + RESENT_S:
            return None
        while assembly.waiting and self._left > 0:
            self._settle(assembly, assembly.waiting.pop(0))
        return None if assembly.waiting else self._finish(assembly, now)

    def _absorb(self, assembly: Assembly, batch: Batch) -> None:
        assembly.absorb(batch)
        self._left -= batch.tokens + ROW_TOKENS * batch.rows

    def _settle(self, assembly: Assembly, batch: Batch) -> None:
        """Take the nearest rollouts there are for what no sure one came for."""
        batch.join(self._index, strict=False)
        self._absorb(assembly, batch)

    def _finish(self, assembly: Assembly, now: float) -> api.Step:
        for batch in assembly.waiting:
            self._settle(assembly, batch)
        del self._open[assembly.step]
        self._done[assembly.step] = None
        if len(self._done) > MAX_DONE:
            del self._done[next(iter(self._done))]
        for other in self._open.values():  # an earlier step that nobody closed must not stay for ever
            if other.step < assembly.step and other.deadline is None:
                other.deadline = now + PARTIAL_S
        before = [self._scalars[number] for number in sorted(self._scalars) if number < assembly.step]
        in_turn = bool(assembly.parts) and not assembly.resent  # else rollouts came long before the step after them
        done = assembly.result(self._index.step_done(assembly.taking.records, in_turn=in_turn), before)
        self.taken[done.step] = assembly.taking.result(self._lives)
        self._scalars[done.step] = done.trainer
        while len(self._scalars) > metrics.TRAILING:
            del self._scalars[min(self._scalars)]
        self.cells.put(done.step, done.closed, assembly.cells)
        self.history.put(done.step, assembly.parts)
        self.samples.put(done.step, assembly.samples)
        self.shapes.put(done.step, assembly.parts)
        found = {e: own for e, own in assembly.evidence.items() if not own.is_empty}
        self.course.put(done.step, {e: evidence.with_lags(own, assembly.parts[e].strata) for e, own in found.items()})
        return done

    def _make_room(self) -> None:
        batches = [(a, b) for a in self._open.values() for b in a.waiting]
        held = sum(batch.nbytes for _, batch in batches)
        for assembly, batch in batches:
            if held <= MAX_WAITING_BYTES:
                break
            self._settle(assembly, batch)
            assembly.waiting.remove(batch)
            held -= batch.nbytes
            self.settled_early += 1
