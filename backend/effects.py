"""The hub's memory for effects: which switch began which flag epoch, and how fast engines are. Pure, bounded."""

from __future__ import annotations

from collections.abc import Mapping

from rltop.backend import view
from rltop.backend.cells import Cells
from rltop.backend.effect import Mark, effect
from rltop.backend.pace import Pace


class Effects:
    """Answers ``view.AskEffect``.

    Attributes:
        pace: of the engines, to be told of every state.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._marks: dict[str, Mark] = {}

    def closed(self, change: view.Change, life: str, flag_epoch: int | None) -> None:
        """A change is closed by the engine's process of this life, which says what flag epoch it began, if any."""
        if change.state == "applied" and flag_epoch is not None:
            self._marks[view.change_key(change)] = Mark(life, flag_epoch)
        while len(self._marks) > view.MAX_CHANGES:
            del self._marks[next(iter(self._marks))]

    def answer(self, question: view.AskEffect, changes: Mapping[str, view.Change], cells: Cells) -> view.Answer:
        """What a command did, or why that can't be said."""
        chosen = self._choose(question.command, list(changes.values()))
        if isinstance(chosen, str):
            return view.Answer(question.id, error=chosen)
        marks = {change.engine: self._marks[view.change_key(change)] for change in chosen}
        found = effect(chosen, marks, cells.steps(), self.pace.samples(), self.pace.present())
        return view.Answer(question.id, effect=found)

    def _choose(self, command: str, known: list[view.Change]) -> list[view.Change] | str:
        """The command on each engine that it switched, or why there is none to tell of."""
        if not command:
            command = next((c.command for c in reversed(known) if view.change_key(c) in self._marks), "")
            if not command:
                return "no command has switched anything yet"
        chosen = [change for change in known if change.command.startswith(command)]
        if not chosen:
            return f"no command {command!r}"
        if len(ids := list(dict.fromkeys(change.command for change in chosen))) > 1:
            return f"{command!r} is the start of several commands: {', '.join(ids)}"
        switched = [change for change in chosen if view.change_key(change) in self._marks]
        return switched or f"command {ids[0]} switched nothing: {'; '.join(map(_end, chosen))}"


def _end(change: view.Change) -> str:
    return f"{change.engine} {change.state}" + (f" ({change.reason})" if change.reason else "")
