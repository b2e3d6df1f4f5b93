"""Answers questions of viewers, by type of question. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rltop.backend import api
from rltop.backend.commands.validation import RejectedError
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.hub.access import Access, Caller, NotAuthorisedError, authored
from rltop.backend.hub.components import Components
from rltop.backend.hub.frames import FrameBuilder
from rltop.backend.hub.outputs import AnswerFromStore, Audit, Effect, Reply, Stop

QuestionHandler = Callable[[bytes, Any, float], list[Effect]]
"""Answers a question: identity of the viewer, question, time."""


class QuestionHandlers:
    """Answers the questions of viewers from memory, or has the store answer them."""

    def __init__(self, hub: Components, frames: FrameBuilder, access: Access | None) -> None:
        self._hub = hub
        self._access = access
        self._frames = frames
        self._handlers: dict[type[api.Question], QuestionHandler] = {
            api.AskChallenge: self._challenge,
            api.AskSnapshot: self._snapshot,
            api.AskEffect: self._effect,
            api.AskAttribution: self._attribution,
            api.AskDiagnosis: self._diagnosis,
            api.AskSamples: self._samples,
            api.AskMismatch: self._mismatch,
            api.AskPast: self._past,
            api.AskAcknowledge: self._alarm,
            api.AskSilence: self._alarm,
            api.AskSet: self._command,
            api.AskAct: self._command,
            api.AskKeep: self._command,
            api.AskUndo: self._command,
            api.AskProbe: self._command,
            api.AskStop: self._stop,
        }

    def ask(self, caller: Caller, frame: bytes, now: float) -> list[Effect]:
        """Answer a question, as received."""
        viewer = caller.viewer
        try:
            question = api.decode_question(frame)
        except ValueError as error:
            self._hub.log.invalid(f"a viewer: {error}", now)
            refusal = api.refusal(frame, error)
            return [Reply(viewer, refusal)] if refusal else []
        if isinstance(question, api.AskControl) and self._access is not None:
            try:
                self._access.check(caller, frame)
            except NotAuthorisedError as error:
                self._hub.log.refused(f"{_described(question)} from {_process(caller)}: {error}", now)
                return [_error(viewer, question, error)]
            question = authored(question, caller.peer)
        return self._handlers[type(question)](viewer, question, now)

    def _challenge(self, viewer: bytes, question: api.AskChallenge, _now: float) -> list[Effect]:
        challenge = "" if self._access is None else self._access.challenge(viewer)
        return [Reply(viewer, api.Answer(question.id, challenge=challenge))]

    # --- the run --------------------------------------------------------------------------------------------------

    def _snapshot(self, viewer: bytes, question: api.AskSnapshot, _now: float) -> list[Effect]:
        return [Reply(viewer, api.Answer(question.id, snapshot=self._hub.snapshot))]

    def _effect(self, viewer: bytes, question: api.AskEffect, _now: float) -> list[Effect]:
        hub = self._hub
        return [Reply(viewer, hub.effects.answer(question, hub.snapshot.changes, hub.steps.cells))]

    def _attribution(self, viewer: bytes, question: api.AskAttribution, _now: float) -> list[Effect]:
        return [Reply(viewer, api.Answer(question.id, attribution=self._hub.steps.attribution(question.steps)))]

    def _diagnosis(self, viewer: bytes, question: api.AskDiagnosis, now: float) -> list[Effect]:
        verdict = self._hub.alarms.verdict(now) if question.step is None else None
        try:
            if verdict is None:
                data = self._frames.diagnosis_input()
                verdict = diagnose(data if question.step is None else data.up_to(question.step))
        except ValueError as error:
            return [_error(viewer, question, error)]
        return [Reply(viewer, api.Answer(question.id, diagnosis=verdict))]

    def _samples(self, viewer: bytes, question: api.AskSamples, _now: float) -> list[Effect]:
        samples = self._hub.steps.samples
        try:
            found = samples.answer(question.step, question.kind, question.engine, question.limit)
            answer = api.Answer(question.id, samples=found)
        except ValueError as error:
            answer = api.Answer(question.id, error=str(error))
        in_memory = bool(samples) if question.step is None else samples.of_step(question.step) is not None
        return [Reply(viewer, answer) if in_memory else AnswerFromStore(viewer, question, answer)]

    def _mismatch(self, viewer: bytes, question: api.AskMismatch, _now: float) -> list[Effect]:
        shapes = self._hub.steps.shapes
        try:
            answer = api.Answer(question.id, mismatch=shapes.answer(question.first, question.last))
        except ValueError as error:
            answer = api.Answer(question.id, error=str(error))
        reaches_back = self._hub.last_stored_step >= (question.first or 0)
        in_memory = not reaches_back or shapes.is_full(question.first, question.last)
        return [Reply(viewer, answer) if in_memory else AnswerFromStore(viewer, question, answer)]

    def _past(self, viewer: bytes, question: api.AskPast, _now: float) -> list[Effect]:
        error = "past engine states are only in the store, and this hub has none"
        return [AnswerFromStore(viewer, question, api.Answer(question.id, error=error))]

    # --- requests that change something ---------------------------------------------------------------------------

    def _alarm(self, viewer: bytes, question: api.AskAlarm, now: float) -> list[Effect]:
        hub = self._hub
        try:
            alarm, event, line = hub.alarms.answer(question, now, hub.log.last_step)
        except ValueError as error:
            return [_error(viewer, question, error)]
        hub.log.emit(now, event.severity, "alarm", event.text)
        return [Audit(line), Reply(viewer, api.Answer(question.id, alarm=alarm))]

    def _command(self, viewer: bytes, question: api.AskCommand, now: float) -> list[Effect]:
        hub = self._hub
        repeated = hub.commands.is_known(question.id)
        try:
            command, orders = hub.commands.request(question, now, hub.log.last_step)
        except RejectedError as error:
            return [_error(viewer, question, error)]
        if isinstance(question, api.AskProbe) and not repeated:
            engines = [change.engine for change in hub.commands.changes_of(command)]
            hub.probes.start(command, question.probe, engines, hub.probe_inputs.take_chosen())
        reply = Reply(viewer, api.Answer(question.id, command=command))
        return hub.after_audit([reply, *hub.deliver(orders)], now)

    def _stop(self, viewer: bytes, question: api.AskStop, _now: float) -> list[Effect]:
        return [Reply(viewer, api.Answer(question.id)), Stop()]


def _error(viewer: bytes, question: api.Question, error: Exception) -> Reply:
    return Reply(viewer, api.Answer(question.id, error=str(error)))


def _described(question: api.AskControl) -> str:
    """The request in a few words."""
    return str(type(question).__struct_config__.tag)


def _process(caller: Caller) -> str:
    peer = caller.peer
    if peer is None:
        return "an unknown process"
    return f"{peer.user}@{peer.host}" + ("" if peer.pid is None else f", process {peer.pid}")
