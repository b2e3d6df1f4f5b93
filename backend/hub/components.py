"""The components of ``HubState``, created empty or resumed from a store. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from rltop.backend import api
from rltop.backend.alarms.monitor import AlarmWatch
from rltop.backend.commands import audit
from rltop.backend.commands.lifecycle import CommandLifecycle, DeliverCommand
from rltop.backend.commands.messages import describe
from rltop.backend.effects.flag_epochs import EffectHistory
from rltop.backend.fleet.agreement import Fingerprints
from rltop.backend.fleet.engines import Engines, TrainerRanks
from rltop.backend.hub.event_log import EventLog
from rltop.backend.hub.outputs import Audit, Effect, send_to
from rltop.backend.ingest.acknowledgement import Acknowledgements
from rltop.backend.ingest.processes import SenderProcesses
from rltop.backend.ingest.sources import ReceivedMark, Sources, is_trainer
from rltop.backend.join.index import RolloutIndex
from rltop.backend.join.stats import JoinWatch
from rltop.backend.join.versions import VersionAlignment
from rltop.backend.probes.inputs import InputChooser
from rltop.backend.probes.refit_guard import RefitChecks
from rltop.backend.probes.running import RunningProbes
from rltop.backend.steps.continuity import RunContinuity
from rltop.backend.steps.provenance import StoredSteps, uses
from rltop.backend.steps.steps import Steps
from rltop.backend.steps.unmeasured import Holes
from rltop.backend.store.aggregates import StoredAggregates

RESUME_ENGINES_S = 3600.0
"""Engines of the previous hub are shown as silent until they report, unless that hub ended longer ago than this."""


class Components:
    """The parts of a hub's state that message handlers, questions and ticks share.

    Args: see ``HubState``.

    Attributes:
        last_stored_step: last step that an earlier hub measured, -1 if there is none.
        renewal: why another run begins in this run's directory; empty if none does. Nothing is taken any more then.
    """

    def __init__(
        self,
        run: str,
        epoch: str,
        now: float,
        new_id: Callable[[], str],
        ready: Callable[[], bool],
        past: api.Snapshot | None,
        stored: StoredAggregates,
    ) -> None:
        self.snapshot = api.Snapshot(run, epoch, 0, now, now)
        self.log = EventLog()
        self.index = RolloutIndex()
        self.index.expect(uses(stored.resumed.provenance))
        lives = {step: provenance.lives for step, provenance in stored.resumed.provenance}
        self.versions = VersionAlignment()
        self.steps = Steps(self.index, ready, StoredSteps(lives), self.versions)
        pids = {} if past is None else {name: engine.pid for name, engine in past.engines.items()}
        self.sources = Sources(_expected(stored.resumed.marks, past), now, pids)
        self.processes = SenderProcesses()
        self.steps.behind = self.sources.behind(now)
        self.acknowledgements = Acknowledgements(self.index.needed, self.steps.is_open)
        self.engines = Engines(self.versions)
        self.trainer = TrainerRanks()
        self.probe_inputs = InputChooser(self.engines, lambda: self.steps.samples.answer(None, "sample"))
        self.commands = CommandLifecycle(new_id, self.engines, now, self.probe_inputs.choose)
        self.probes = RunningProbes()
        self.refits = RefitChecks()
        self.fingerprints = Fingerprints()
        self.effects = EffectHistory(stored.marks)
        self.joins = JoinWatch()
        self.unmeasured = Holes()
        self.alarms = AlarmWatch(epoch, past.alarms.values() if past is not None else ())
        self.last_stored_step = -1
        self.renewal = ""
        trained = max(lives, default=None)
        self.continuity = RunContinuity(
            () if past is None else past.steps,
            None if trained is None else lives[trained],
            None if past is None else past.trainer.facts,
        )
        if past is not None:
            self._resume(past, now)
        self._load_aggregates(stored)

    def _resume(self, past: api.Snapshot, now: float) -> None:
        """Continue from the snapshot of an earlier hub. Commands that were open come from the audit log."""
        shown = self.snapshot
        shown.steps, shown.events, shown.alarms = past.steps, past.events, past.alarms
        shown.changes = {key: change for key, change in past.changes.items() if change.state in api.TERMINAL}
        if now - past.time < RESUME_ENGINES_S:
            shown.engines = {name: _silent_unless_exited(engine) for name, engine in past.engines.items()}
        self.log.resume(past)
        self.unmeasured = Holes(self.log.last_step)
        self.last_stored_step = max(past.steps, default=-1)
        self.steps.resume(past.steps)
        self.log.emit(now, "info", "hub", f"a new hub continues from {len(past.steps)} stored steps")

    def _load_aggregates(self, stored: StoredAggregates) -> None:
        self.effects.throughput.restore(stored.samples)
        for step in stored.steps:
            self.steps.cells.put(step.step, step.closed, step.cells)
        for number, parts in stored.parts:
            self.steps.parts.put_parts(number, parts)
        for stretch in stored.series:
            self.steps.series.put(stretch.last, stretch.engines)

    # --- used by several handlers ---------------------------------------------------------------------------------

    def messages_lost(self, source: str, lost: int) -> None:
        """Account for messages of a source that will not arrive."""
        self.log.messages_lost(source, lost)
        self.steps.messages_lost(source, lost)
        if is_trainer(source):
            self.unmeasured.messages_lost()

    def deliver(self, orders: list[DeliverCommand]) -> list[Effect]:
        """Send commands to their engines."""
        effects: list[Effect] = []
        for order in orders:
            source = self.sources.get(order.engine)
            assert source is not None  # only engines that have reported are live
            effects.append(send_to(source, order.command))
        return effects

    def after_audit(self, effects: list[Effect], now: float) -> list[Effect]:
        """Put the audit lines of command events before ``effects``, so that they are on disk first; emit the events."""
        lines: list[Effect] = []
        for event in self.commands.take_events():
            shown = describe(event)
            self.log.emit(now, shown.severity, "flag", shown.text, engine=shown.engine)
            lines += [Audit(line) for line in audit.lines_of(event, now, self.snapshot.epoch)]
        return [*lines, *effects]


def _silent_unless_exited(engine: api.Engine) -> api.Engine:
    return engine if engine.health == "gone" else msgspec.structs.replace(engine, health="silent")


def _expected(marks: Mapping[str, ReceivedMark], past: api.Snapshot | None) -> dict[str, ReceivedMark]:
    """The marks of collectors that had not disconnected; only these resend."""
    known = {} if past is None else past.engines
    return {name: mark for name, mark in marks.items() if name not in known or known[name].health != "gone"}
