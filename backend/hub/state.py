"""The state of a hub: messages, questions and ticks go in; frames and effects come out. Pure: no I/O, threads, clocks.

``components`` creates or resumes the parts, ``messages`` and ``questions`` handle input by its type, ``frames`` builds
the output for viewers and the store, ``event_log`` numbers the events. This module runs the periodic work.
"""

from __future__ import annotations

from collections.abc import Callable

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.hub.access import Access, Caller
from rltop.backend.hub.components import Components
from rltop.backend.hub.frames import FrameBuilder
from rltop.backend.hub.messages import MessageHandlers
from rltop.backend.hub.outputs import Audit, Effect, SendControl, identity
from rltop.backend.hub.peers import Peer
from rltop.backend.hub.questions import QuestionHandlers
from rltop.backend.store.aggregates import StoredAggregates


class HubState:
    """Everything that a hub knows about its run.

    Args:
        run: the run's name.
        epoch: id of this hub process.
        now: wall clock that never steps back, seconds; every method takes the current time.
        new_id: makes ids of commands.
        ready: whether rows can be measured without waiting for the compiler.
        past, stored: snapshot and aggregates of the run so far, which this hub continues.
        access: decides who may command; None: everybody.

    Attributes:
        frames: builds frames, and what is stored with them.
        log: events and counters.
    """

    def __init__(
        self,
        run: str,
        epoch: str,
        now: float,
        new_id: Callable[[], str],
        ready: Callable[[], bool] = lambda: True,
        past: api.Snapshot | None = None,
        stored: StoredAggregates | None = None,
        access: Access | None = None,
    ) -> None:
        hub = self._hub = Components(run, epoch, now, new_id, ready, past, stored or StoredAggregates())
        self.frames, self.log = FrameBuilder(hub), hub.log
        self._messages = MessageHandlers(hub)
        self._questions = QuestionHandlers(hub, self.frames, access)

    @property
    def snapshot(self) -> api.Snapshot:
        """What viewers have after the latest frame."""
        return self._hub.snapshot

    @property
    def unfinished(self) -> bool:
        """Whether the last tick left rows that can be measured: tick again before handling any data."""
        return self._hub.steps.unfinished

    # --- input ----------------------------------------------------------------------------------------------------

    def restore(self, lines: list[audit.AuditLine], bad: int, now: float) -> list[Effect]:
        """Load the audit log that earlier hubs of this run wrote, of which ``bad`` lines can't be read."""
        self._hub.commands.restore(lines, now)
        self._hub.probes.restore(lines)
        if bad:
            self.log.emit(now, "warn", "audit", f"{bad} lines of the audit log can't be read; a kill may tear one")
        return self._hub.after_audit([], now)

    def data(self, frames: list[bytes], now: float, peer: Peer | None = None) -> list[Effect]:
        """Handle a data message, as received. Malformed ones are counted and reported, never fatal."""
        return self._messages.data(frames, now, peer.pid if peer else None)

    def control(self, sender: str, frame: bytes, now: float, peer: Peer | None = None) -> list[Effect]:
        """Handle a control message from the collector with identity ``sender``."""
        return self._messages.control(sender, frame, now, peer.pid if peer else None)

    def session(self, receiver: str) -> str:
        """The session of the collector with this identity; empty if it has stated none."""
        name, _, epoch = receiver.rpartition("#")
        return self._hub.processes.session(name, epoch)

    def undelivered(self, receiver: str, frame: bytes, now: float) -> list[Effect]:
        """Handle that a control message could not be delivered."""
        return self._messages.undelivered(receiver, frame, now)

    def ask(
        self, viewer: bytes, frame: bytes, now: float, peer: Peer | None = None, proof: bytes = b""
    ) -> list[Effect]:
        """Answer a viewer's question. ``peer``: its process, if known; ``proof``: of the control key, if any."""
        return self._questions.ask(Caller(viewer, peer, proof), frame, now)

    def note(self, now: float, severity: str, kind: str, text: str) -> None:
        """Add an event of the hub's process."""
        self.log.emit(now, severity, kind, text)

    # --- output ---------------------------------------------------------------------------------------------------

    def next_frame(self, now: float, *, heartbeat: bool = False) -> api.Frame | None:
        """See ``FrameBuilder.next_frame``."""
        return self.frames.next_frame(now, heartbeat=heartbeat)

    # --- time and disk --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Run all periodic work: call several times a second, and again while ``unfinished``."""
        hub = self._hub
        effects = [*self._messages.admit(now), *self._messages.disconnect(now)]
        effects += [effect for source in hub.sources for effect in self._messages.request_resend(source, now)]
        hub.steps.behind = hub.sources.behind(now)
        self._finish_steps(now)
        self._messages.mark_silent(now)
        hub.commands.tick(now)
        self.log.report_losses(now)
        self.log.report_skew(hub.engines.skew(), now)
        self._compare_facts(now)
        self._check_refits(now)
        hub.trainer.set_health(hub.sources.trainer_health())
        self.log.counters["evicted_rollouts"] = hub.index.evicted
        self.log.counters["version_conflicts"] = hub.versions.conflicts
        self.log.counters["late_rows"] = hub.steps.late_rows
        self.log.counters["settled_early"] = hub.steps.settled_early
        return hub.after_audit([*self._finish_probes(now), *effects], now)

    def diagnose(self, now: float) -> None:
        """Diagnose the run if that is due, and report alarms. Call after every tick."""
        if event := self._hub.alarms.diagnose_if_due(self.frames.diagnosis_input, now):
            self.log.emit(now, event.severity, "alarm", event.text, engine=event.engine)

    def stored(self) -> list[Effect]:
        """Acknowledge settled messages to collectors; everything handed to the store is on disk."""
        if self._hub.renewal:
            return []  # the next hub needs what this one did not use
        acknowledged = self._hub.acknowledgements.take_acknowledged()
        known = ((self._hub.sources.get(name), message) for name, message in acknowledged)
        return [SendControl(identity(source.wire_name, message.epoch), message) for source, message in known if source]

    def aggregates_not_stored(self) -> None:
        """The store did not accept the aggregates of the latest frame."""
        self._hub.acknowledgements.not_stored()

    def _finish_steps(self, now: float) -> None:
        hub = self._hub
        done = hub.steps.tick(now, hub.sources.data_until(now))
        for number, error in hub.steps.take_faults():
            self.log.count("faults")
            self.log.fault(f"step {number}, which is not measured", 1, repr(error), now)
        for place, step in enumerate(done):
            self._report_unmeasured(step.step, [*hub.steps.open, *(later.step for later in done[place + 1 :])], now)
            self._step_done(step, now)

    def _step_done(self, step: api.Step, now: float) -> None:
        hub, log = self._hub, self.log
        self.frames.add_step(step)
        log.last_step = step.step
        hub.alarms.step_closed(step.step)
        hub.continuity.measured(step.step, hub.steps.lives)
        log.count("unjoined_rows", sum(step.unjoined.values()))
        for engine, values in step.engines.items():
            hub.engines.set_gap(engine, values["logp_abs_diff_mean"])
        for line in hub.joins.notices(step):
            log.emit(now, "warn", "join", line)
        for name, line in hub.versions.take_notices():
            log.emit(now, "warn", "version", line, engine=name)
        if step.partial:
            missing = f"{step.missing_rows} rows" if step.missing_rows else "ranks or rows"
            log.emit(now, "warn", "step", f"step {step.step} is partial: {missing} are missing")

    def _report_unmeasured(self, step: int, still_open: list[int], now: float) -> None:
        """Report the steps before ``step``, and before those still open, that were not measured."""
        for first, last, reason in self._hub.unmeasured.step_done(step, still_open):
            steps = f"step {first} was" if first == last else f"steps {first} to {last} were"
            self.log.count("missing_steps", last - first + 1)
            self.log.emit(now, "warn", "gap", f"{steps} not measured: {reason}")

    def _compare_facts(self, now: float) -> None:
        hub = self._hub
        if hub.fingerprints.due(now):
            engines = hub.engines.facts(hub.fingerprints.sampled.facts)
            marks, changes = hub.fingerprints.compare(engines, hub.trainer.stated, now)
            hub.engines.set_differences(marks)
            for change in changes:
                self.log.emit(now, change.severity, "facts", change.text)

    def _check_refits(self, now: float) -> None:
        """Publish what the refit guard says of engines; a fault, its end and its change are events."""
        hub = self._hub
        for engine, check in hub.refits.tick(now, self.log.last_step).items():
            before = hub.engines.set_refit(engine, check)
            if check.is_faulty and (before is None or before.verdict != check.verdict):
                self.log.emit(now, "error", "refit", f"refit {check.verdict}: {check.text}", engine=engine)
            elif before is not None and before.is_faulty and not check.is_faulty:
                self.log.emit(now, "info", "refit", f"refit {check.verdict}: {check.text}", engine=engine)

    def _finish_probes(self, now: float) -> list[Effect]:
        """Publish the results of probes that ended; new ones also go to the audit log."""
        hub = self._hub
        changes = {command: hub.commands.changes_of(command) for command in hub.probes.open}
        known = hub.snapshot.probes.keys()
        lines: list[Effect] = []
        for result in hub.probes.finish(changes, hub.snapshot, now):
            self.frames.add_probe(result)
            if result.command in changes and result.command not in known:  # not read from the log
                self.log.emit(now, "info", "probe", f"{result.probe}: {result.verdict}. {result.text}", probe=result)
                lines.append(Audit(audit.measured(result, now, hub.snapshot.epoch)))
        return lines
