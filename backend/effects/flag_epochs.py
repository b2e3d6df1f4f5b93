"""Tracks the flag epochs that switches began and the engines' throughput, to estimate effects. Pure, bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rltop.backend import api
from rltop.backend.effects.epoch_sums import Cells, StepCells
from rltop.backend.effects.estimate import SwitchMark, effect
from rltop.backend.effects.throughput import SpeedSample, Throughput
from rltop.collectors.contract import wire


class EffectHistory:
    """Answers ``api.AskEffect``.

    Args:
        marks: restored from the store.

    Attributes:
        throughput: of the engines.
        marks: the flag epoch that a command began on an engine, by ``api.change_key``.
    """

    def __init__(self, marks: Mapping[str, SwitchMark] = MappingProxyType({})) -> None:
        self.throughput = Throughput()
        self.marks = dict(marks)
        self._new_marks: list[str] = []

    def record_state(self, envelope: wire.Envelope, state: wire.EngineState, now: float) -> None:
        """Record an engine state, which repeats the commands that its process closed."""
        self.throughput.record(envelope, state, now)
        for update in state.commands:
            if update.state == "applied" and update.flag_epoch is not None:
                self._mark(f"{update.id}@{update.engine}", SwitchMark(envelope.epoch, update.flag_epoch))
        while len(self.marks) > api.MAX_CHANGES:
            del self.marks[next(iter(self.marks))]

    def _mark(self, key: str, mark: SwitchMark) -> None:
        if self.marks.get(key) != mark:
            self.marks[key] = mark
            self._new_marks.append(key)

    def take_new_marks(self) -> list[tuple[str, SwitchMark]]:
        """The marks that are new since the last call."""
        new, self._new_marks = self._new_marks, []
        return [(key, self.marks[key]) for key in new if key in self.marks]

    def answer(self, question: api.AskEffect, changes: Mapping[str, api.Change], cells: Cells) -> api.Answer:
        """The effect of a command, or the error that prevents an estimate."""
        chosen = self.choose(question.command, list(changes.values()))
        if isinstance(chosen, str):
            return api.Answer(question.id, error=chosen)
        return self.answer_for(question, chosen, cells.steps(), self.throughput.samples(), self.throughput.present())

    def answer_for(
        self,
        question: api.AskEffect,
        chosen: Sequence[api.Change],
        steps: Sequence[StepCells],
        samples: Mapping[str, Sequence[SpeedSample]],
        present: Mapping[str, tuple[str, int]],
    ) -> api.Answer:
        """The effect of a chosen command, from the arguments of ``estimate.effect``."""
        marks = {change.engine: self.marks[api.change_key(change)] for change in chosen}
        return api.Answer(question.id, effect=effect(chosen, marks, steps, samples, present))

    def choose(self, command: str, known: list[api.Change]) -> list[api.Change] | str:
        """The changes of a command on each engine that it switched, or the reason why there is none."""
        if not command:
            command = next((c.command for c in reversed(known) if api.change_key(c) in self.marks), "")
            if not command:
                return "no command has switched anything yet"
        chosen = [change for change in known if change.command.startswith(command)]
        if not chosen:
            return f"no command {command!r}; `rltop audit` lists the commands"
        if len(ids := list(dict.fromkeys(change.command for change in chosen))) > 1:
            return f"{command!r} is ambiguous: {', '.join(ids)}"
        switched = [change for change in chosen if api.change_key(change) in self.marks]
        return switched or f"command {ids[0]} switched nothing: {'; '.join(map(_end, chosen))}"


def _end(change: api.Change) -> str:
    return f"{change.engine} {change.state}" + (f" ({change.reason})" if change.reason else "")
