"""Handles messages from collectors: data by the type of its body, control messages, and the health of sources. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rltop.backend.commands.transitions import HubClosure
from rltop.backend.hub.components import Components
from rltop.backend.hub.outputs import Effect, SendControl, identity, send_to
from rltop.backend.ingest.sources import Arrival, Source
from rltop.collectors.contract import wire

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
            wire.Health: self._health,
            wire.Passed: lambda *_: None,
        }

    # --- data -----------------------------------------------------------------------------------------------------

    def data(self, frames: list[bytes], now: float) -> list[Effect]:
        """Handle a data message, as received."""
        hub = self._hub
        hub.log.count("messages")
        hub.log.count("bytes", sum(len(frame) for frame in frames))
        try:
            envelope, body, arrays = wire.decode_data(frames)
        except wire.WireError as error:
            hub.log.invalid(str(error), now)
            return []
        is_current = isinstance(body, wire.TRANSIENT)
        queued = envelope, wire.Passed() if is_current else body, arrays
        arrival = hub.sources.receive(envelope, now, queued, sum(array.nbytes for array in arrays.values()))
        effects = self._arrived(arrival, now)
        if is_current:  # about the current state, so valid in any order
            self._handle(envelope, body, arrays, now)
        for ready_envelope, ready_body, ready_arrays in arrival.ready:
            self._handle(ready_envelope, ready_body, ready_arrays, now)
            hub.acknowledgements.message_taken(ready_envelope, ready_body)
        return hub.after_audit(effects, now)

    def _handle(self, envelope: wire.Envelope, body: wire.DataBody, arrays: wire.Arrays, now: float) -> None:
        try:
            _check_source(envelope, body)
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
        hub.trainer.rows(body)
        hub.engines.set_trainer_version(hub.trainer.version)
        hub.steps.add_rows(envelope.epoch, body, arrays, now)

    def _step_closed(self, envelope: wire.Envelope, body: wire.StepClosed, _: wire.Arrays, now: float) -> None:
        hub = self._hub
        hub.trainer.closed(body)
        hub.probes.weights.add_trainer_digests(body)
        hub.engines.set_trainer_version(hub.trainer.version)
        hub.steps.close_rank(envelope.epoch, body, now)

    def _trainer_facts(self, _envelope: wire.Envelope, body: wire.TrainerFacts, _: wire.Arrays, _now: float) -> None:
        self._hub.trainer.facts(body)

    def _probe_report(self, envelope: wire.Envelope, body: wire.ProbeReport, arrays: wire.Arrays, _now: float) -> None:
        self._hub.probes.add_report(body, arrays, envelope.epoch)

    def _health(self, envelope: wire.Envelope, health: wire.Health, _: wire.Arrays, now: float) -> None:
        hub = self._hub
        source = hub.sources.get(envelope.source)
        assert source is not None
        for place, faults in health.faults.items():
            if faults > source.faults.get(place, 0):
                text = f"{source.name}: {faults} faults in {place} were contained; the run is not affected"
                hub.log.emit(now, "error", "fault", text, engine=_engine(source))
        source.faults = health.faults
        if source.is_trainer:
            if any(counts.dropped for counts in health.counts.values()):
                hub.unmeasured.messages_lost()
            hub.trainer.set_counters(source.name, health, now)
        else:
            hub.engines.set_counters(source.name, health, now)

    def _arrived(self, arrival: Arrival, now: float) -> list[Effect]:
        """Process what the arrival of a message says about its source, whatever its content."""
        hub, source, change = self._hub, arrival.source, arrival.change
        if change:
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

    def control(self, sender: str, frame: bytes, now: float) -> list[Effect]:
        """Handle a control message from the collector with identity ``sender``."""
        hub = self._hub
        try:
            message = wire.decode_to_hub(frame)
        except wire.WireError as error:
            hub.log.invalid(f"{sender}: {error}", now)
            return []
        source, _, epoch = sender.rpartition("#")
        if isinstance(message, wire.CommandUpdate):
            if message.engine == source:
                hub.commands.apply_update(message, now)
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
        hub.sources.registered(message, now)
        welcome = SendControl(identity(message.source, message.epoch), wire.Welcome(hub.snapshot.epoch))
        return [welcome, *hub.deliver(hub.commands.unacknowledged(message.source))]

    def undelivered(self, receiver: str, frame: bytes, now: float) -> list[Effect]:
        """Handle that a control message could not be delivered."""
        hub = self._hub
        name = receiver.rpartition("#")[0]
        message = wire.decode_to_collector(frame)
        if isinstance(message, wire.Command):
            hub.commands.not_delivered(name, message.id, now)
        elif isinstance(message, wire.Resend) and (source := hub.sources.get(name)):
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


def _engine(source: Source) -> str | None:
    return None if source.is_trainer else source.name


def _check_source(envelope: wire.Envelope, body: wire.DataBody) -> None:
    """Raise ``WireError`` if the message is about another source than its sender."""
    if isinstance(body, wire.Sequences | wire.StepClosed | wire.TrainerFacts):
        named = [f"trainer/{body.rank}"]
    elif isinstance(body, wire.EngineState):
        named = [body.engine, *(update.engine for update in body.commands)]
    else:
        named = [body.engine] if isinstance(body, wire.Rollouts | wire.ProbeReport) else []
    if others := set(named) - {envelope.source}:
        raise wire.WireError(f"the message is about another source: {', '.join(sorted(others))}")
