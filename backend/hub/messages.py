"""Handles messages from collectors: data by the type of its body, control messages, and the health of sources. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from rltop.backend.commands.transitions import HubClosure
from rltop.backend.hub.components import Components
from rltop.backend.hub.outputs import Effect, Renew, SendControl, identity, send_to
from rltop.backend.ingest.names import renamed
from rltop.backend.ingest.sources import Arrival, Source
from rltop.backend.join.versions import is_stated
from rltop.collectors.contract import wire

SHARED_NAME = (
    "two engines are named {name}: the second is shown as {own}. Give each its own RLTOP_ENGINE, or leave it unset"
)

SECOND_TRAINER = (
    "run {run} has a live trainer already, so a second one was refused and nothing is taken from it. Start it under "
    "another run name (run= or RLTOP_RUN)"
)

DataHandler = Callable[[wire.Envelope, Any, wire.Arrays, float], None]
"""Takes a message: envelope, body, arrays, time. Raises ``WireError`` if its content is invalid."""


class MessageHandlers:
    """Handles the messages of collectors."""

    def __init__(self, hub: Components) -> None:
        self._hub = hub
        self._handlers: dict[type[wire.DataBody], DataHandler] = {
            wire.Rollouts: self._rollouts,
            wire.EngineState: self._engine_state,
            wire.Sequences: self._sequences,
            wire.StepClosed: self._step_closed,
            wire.TrainerFacts: self._trainer_facts,
            wire.ProbeReport: self._probe_report,
            wire.RefitReport: self._refit_report,
            wire.TrainerWeights: self._trainer_weights,
            wire.Health: self._health,
            wire.Passed: lambda *_: None,
        }

    # --- data -----------------------------------------------------------------------------------------------------

    def data(self, frames: list[bytes], now: float, pid: int | None = None) -> list[Effect]:
        """Handle a data message, as received; ``pid``: of its sender, if known."""
        hub = self._hub
        if hub.renewal:
            return []
        hub.log.count("messages")
        hub.log.count("bytes", sum(len(frame) for frame in frames))
        try:
            envelope, body, arrays = wire.decode_data(frames)
        except wire.WireError as error:
            hub.log.invalid(str(error), now)
            return []
        if self._is_forged(envelope.source, envelope.epoch, pid, envelope.session, now):
            return []
        is_current = isinstance(body, wire.TRANSIENT)
        queued = envelope, wire.Passed() if is_current else body, arrays
        stated = body.pid if isinstance(body, wire.EngineState) else None
        arrival = hub.sources.receive(envelope, now, queued, sum(array.nbytes for array in arrays.values()), stated)
        effects = self._report_conflicts(now)
        if arrival is None:
            return hub.after_audit(effects, now)
        effects += self._arrived(arrival, now)
        if is_current:  # about the current state, so valid in any order
            self._handle(arrival.source, envelope, body, arrays, now)
        effects += self._take_ready(arrival, now)
        return hub.after_audit(effects, now)

    def _is_forged(self, source: str, epoch: str, pid: int | None, session: str | None, now: float) -> bool:
        """Whether another process than the one that has this name and epoch sends under them; an event says so."""
        processes = self._hub.processes
        if processes.is_sender(source, epoch, pid, session):
            return False
        known, process = processes.pid(source, epoch), "a second process" if pid is None else f"process {pid}"
        owner = "another process" if known is None or known == pid else f"process {known}"
        self._hub.log.refused(f"{process} sends as {source}, which is {owner}: nothing is taken from it", now)
        return True

    def admit(self, now: float) -> list[Effect]:
        """Take what processes have sent that waited for a name and have one now."""
        effects: list[Effect] = []
        for arrival in self._hub.sources.take_named(now):
            effects += self._arrived(arrival, now)
            effects += self._take_ready(arrival, now)
        return [*effects, *self._report_conflicts(now)]

    def _take_ready(self, arrival: Arrival, now: float) -> list[Effect]:
        for envelope, body, arrays in arrival.ready:
            if arrival.source.resends and isinstance(body, wire.Sequences | wire.StepClosed) and not self._hub.renewal:
                self._hub.renewal = self._hub.continuity.break_at(body.rank, envelope.epoch, body.step) or ""
                if self._hub.renewal:
                    return [Renew(self._hub.renewal, [_frames(*message) for message in arrival.ready])]
            self._handle(arrival.source, envelope, body, arrays, now)
            self._hub.acknowledgements.message_taken(envelope, body)
        return []

    def _report_conflicts(self, now: float) -> list[Effect]:
        """Report processes whose name another live process has; refuse those of trainers."""
        effects: list[Effect] = []
        for process in self._hub.sources.take_conflicts():
            if isinstance(process, Source):
                text = SHARED_NAME.format(name=process.wire_name, own=process.name)
                self._hub.log.emit(now, "warn", "engine", text, engine=process.name)
            else:
                text = SECOND_TRAINER.format(run=self._hub.snapshot.run)
                self._hub.log.emit(now, "error", "trainer", text)
                effects.append(_refusal(process.wire_name, process.epoch, text))
        return effects

    def _handle(
        self, source: Source, envelope: wire.Envelope, body: wire.DataBody, arrays: wire.Arrays, now: float
    ) -> None:
        try:
            _check_source(envelope, body)
            if source.name != envelope.source:
                envelope = msgspec.structs.replace(envelope, source=source.name)
                body = renamed(body, source.name)
            self._handlers[type(body)](envelope, body, arrays, now)
        except wire.WireError as error:
            self._hub.log.invalid(f"{envelope.source}: {error}", now)

    def _rollouts(self, envelope: wire.Envelope, body: wire.Rollouts, arrays: wire.Arrays, _now: float) -> None:
        self._hub.index.add(body, arrays, envelope.epoch, envelope.seq)
        self._hub.probe_inputs.recent.add(body, arrays)
        self._hub.fingerprints.sampled.observe(body)

    def _engine_state(self, envelope: wire.Envelope, body: wire.EngineState, _: wire.Arrays, now: float) -> None:
        self._hub.engines.set_state(envelope, body, now)
        self._hub.effects.record_state(envelope, body, now)
        for update in body.commands:
            self._hub.commands.apply_update(update, now)

    def _sequences(self, envelope: wire.Envelope, body: wire.Sequences, arrays: wire.Arrays, now: float) -> None:
        hub = self._hub
        hub.steps.behind = hub.sources.behind(now)
        hub.trainer.rows(body, arrays)
        hub.engines.set_trainer_version(hub.trainer.version)
        hub.steps.add_rows(envelope.epoch, body, arrays, now)

    def _step_closed(self, envelope: wire.Envelope, body: wire.StepClosed, _: wire.Arrays, now: float) -> None:
        hub = self._hub
        hub.trainer.closed(body)
        hub.probes.weights.add_trainer_digests(body)
        hub.engines.set_trainer_version(hub.trainer.version)
        hub.steps.close_rank(envelope.epoch, body, now)

    def _trainer_facts(self, envelope: wire.Envelope, body: wire.TrainerFacts, _: wire.Arrays, _now: float) -> None:
        self._hub.trainer.facts(body)
        self._hub.continuity.state(envelope.epoch, body.facts)

    def _probe_report(self, envelope: wire.Envelope, body: wire.ProbeReport, arrays: wire.Arrays, _now: float) -> None:
        hub = self._hub
        if (state := hub.engines.state(body.engine)) is not None:
            life = body.engine, envelope.epoch
            version = hub.versions.version(life, body.policy_version, state.version_source)
            body = msgspec.structs.replace(body, policy_version=version)
        hub.probes.add_report(body, arrays, envelope.epoch)

    def _refit_report(self, envelope: wire.Envelope, body: wire.RefitReport, _: wire.Arrays, now: float) -> None:
        hub = self._hub
        version = hub.versions.version((body.engine, envelope.epoch), body.policy_version, body.version_source)
        hub.refits.add_report(body, envelope.epoch, version, is_stated(body.version_source), now, hub.log.last_step)

    def _trainer_weights(
        self, _envelope: wire.Envelope, body: wire.TrainerWeights, _: wire.Arrays, _now: float
    ) -> None:
        self._hub.refits.add_trainer(body)

    def _health(self, envelope: wire.Envelope, health: wire.Health, _: wire.Arrays, now: float) -> None:
        hub = self._hub
        source = hub.sources.get(envelope.source)
        assert source is not None
        for place, faults in health.faults.items():
            if faults > source.faults.get(place, 0):
                text = f"{source.name}: {faults} faults in {place} were contained; the run is not affected"
                hub.log.emit(now, "error", "fault", text, engine=_engine(source))
        if health.unproven > source.unproven:
            text = f"{source.name} refused {health.unproven} messages that were not from its hub"
            hub.log.emit(now, "warn", "refused", text, engine=_engine(source))
        dropped = sum(counts.dropped for counts in health.counts.values())
        if dropped > source.dropped:
            hub.log.records_dropped(source.name, dropped - source.dropped)
        source.faults, source.unproven, source.dropped = health.faults, health.unproven, dropped
        if source.is_trainer:
            if dropped:
                hub.unmeasured.messages_lost()
            hub.trainer.set_counters(source.name, health, now)
        else:
            hub.engines.set_counters(source.name, health, now)

    def _set_software(self, source: Source) -> None:
        fleet = self._hub.trainer if source.is_trainer else self._hub.engines
        fleet.set_software(source.name, self._hub.sources.software_of(source))

    def _arrived(self, arrival: Arrival, now: float) -> list[Effect]:
        """Update the source of a message on its arrival, regardless of its content."""
        hub, source, change = self._hub, arrival.source, arrival.change
        if change:
            self._set_software(source)
            severity = "warn" if change == "restarted" else "info"
            self._emit_about(source, severity, change, now)
        if arrival.is_duplicate:
            hub.log.count("duplicates")
        if arrival.lost:
            hub.messages_lost(source.name, arrival.lost)
        if source.is_trainer and arrival.is_midway:
            hub.steps.messages_lost(source.name, 0)
        if not arrival.is_new_life:
            return self.request_resend(source, now)
        if not source.is_trainer:
            hub.versions.began(source.name, source.epoch)
        if change != "connected":
            self._restarted(source, now)
        return [send_to(source, wire.Welcome(hub.snapshot.epoch)), *self.request_resend(source, now)]

    def _restarted(self, source: Source, now: float) -> None:
        hub = self._hub
        if not source.is_trainer:
            hub.commands.engine_ended(source.name, HubClosure.RESTARTED, now)
            return
        hub.trainer.new_epoch()
        hub.steps.new_epoch()
        hub.unmeasured.new_epoch()

    def request_resend(self, source: Source, now: float) -> list[Effect]:
        """Request missing messages from a source, if a request is due."""
        if (seq := source.resend_due(now)) is None:
            return []
        self._hub.log.count("resends")
        return [send_to(source, wire.Resend(source.epoch, seq))]

    # --- control --------------------------------------------------------------------------------------------------

    def control(self, sender: str, frame: bytes, now: float, pid: int | None = None) -> list[Effect]:
        """Handle a control message from the collector with identity ``sender``; ``pid``: of its process, if known."""
        hub = self._hub
        try:
            message = wire.decode_to_hub(frame)
        except wire.WireError as error:
            hub.log.invalid(f"{sender}: {error}", now)
            return []
        source, _, epoch = sender.rpartition("#")
        session = message.session if isinstance(message, wire.Register) else None
        if self._is_forged(source, epoch, pid, session, now):
            return []
        if isinstance(message, wire.CommandUpdate):
            if message.engine == source:
                known = hub.sources.find(source, epoch)
                name = source if known is None else known.name
                hub.commands.apply_update(msgspec.structs.replace(message, engine=name), now)
            else:
                hub.log.invalid(f"{sender} sent a message of engine {message.engine}", now)
            return hub.after_audit([], now)
        if (message.source, message.epoch) != (source, epoch):
            hub.log.invalid(f"{sender} sent a message of {identity(message.source, message.epoch)}", now)
            return []
        if isinstance(message, wire.Register):
            return self._register(message, now)
        if lost := hub.sources.bye_received(message, now):
            hub.messages_lost(message.source, lost)
        return hub.after_audit(self.disconnect(now), now)

    def _register(self, message: wire.Register, now: float) -> list[Effect]:
        hub = self._hub
        if message.proto != wire.PROTO:
            hub.log.count("invalid")
            return []
        if hub.sources.is_refused(message.source, message.epoch):
            return [_refusal(message.source, message.epoch, SECOND_TRAINER.format(run=hub.snapshot.run))]
        hub.sources.registered(message, now)
        welcome = SendControl(identity(message.source, message.epoch), wire.Welcome(hub.snapshot.epoch))
        known = hub.sources.find(message.source, message.epoch)
        if known is None:
            return [welcome]
        self._set_software(known)
        return [welcome, *hub.deliver(hub.commands.unacknowledged(known.name))]

    def undelivered(self, receiver: str, frame: bytes, now: float) -> list[Effect]:
        """Handle that a control message could not be delivered."""
        hub = self._hub
        name, _, epoch = receiver.rpartition("#")
        source = hub.sources.find(name, epoch)
        message = wire.decode_to_collector(frame)
        if isinstance(message, wire.Proven):
            message = wire.decode_to_collector(message.message)
        if isinstance(message, wire.Command):
            hub.commands.not_delivered(name if source is None else source.name, message.id, now)
        elif isinstance(message, wire.Resend) and source is not None:
            source.requested = -1  # its data arrived before its control socket: request again at the next tick
        return hub.after_audit([], now)

    # --- sources over time ----------------------------------------------------------------------------------------

    def disconnect(self, now: float) -> list[Effect]:
        """Complete the disconnect of sources whose last messages have arrived, or are overdue."""
        hub = self._hub
        effects: list[Effect] = []
        for source, missing in hub.sources.take_disconnected(now):
            if missing:
                hub.messages_lost(source.name, missing)
            hub.engines.set_health(source.name, "gone")
            hub.commands.engine_ended(source.name, HubClosure.DISCONNECTED, now)
            self._emit_about(source, "info", "disconnected", now)
            if source.is_trainer and hub.sources.trainer_health() == "gone":
                hub.steps.trainer_gone(now)
            effects.append(send_to(source, wire.ByeAck(source.epoch)))
        return effects

    def mark_silent(self, now: float) -> None:
        """Mark sources that have stopped sending."""
        for source in self._hub.sources.take_silent(now):
            self._emit_about(source, "warn", "is silent", now)
            self._hub.engines.set_health(source.name, "silent")

    def _emit_about(self, source: Source, severity: str, text: str, now: float) -> None:
        kind = "trainer" if source.is_trainer else "engine"
        self._hub.log.emit(now, severity, kind, f"{source.name} {text}", engine=_engine(source))


def _frames(envelope: wire.Envelope, body: wire.DataBody, arrays: wire.Arrays) -> list[bytes]:
    return [bytes(frame) for frame in wire.encode_data(envelope, body, arrays)]


def _refusal(name: str, epoch: str, reason: str) -> SendControl:
    return SendControl(identity(name, epoch), wire.Refused(epoch, reason))


def _engine(source: Source) -> str | None:
    return None if source.is_trainer else source.name


def _check_source(envelope: wire.Envelope, body: wire.DataBody) -> None:
    """Raise ``WireError`` if the message is about another source than its sender."""
    if isinstance(body, wire.Sequences | wire.StepClosed | wire.TrainerFacts | wire.TrainerWeights):
        named = [f"trainer/{body.rank}"]
    elif isinstance(body, wire.EngineState):
        named = [body.engine, *(update.engine for update in body.commands)]
    else:
        named = [body.engine] if isinstance(body, wire.Rollouts | wire.ProbeReport | wire.RefitReport) else []
    if others := set(named) - {envelope.source}:
        raise wire.WireError(f"the message is about another source: {', '.join(sorted(others))}")
