"""What a store has of steps that are read: asked of the hub, one question at a time. Pure but for the asking."""

from __future__ import annotations

import math
import uuid

from rltop.backend.api import Answer, AskPast, PastState, Snapshot, Step
from rltop.tui.model.fleet_table import Row, at_step, now
from rltop.tui.model.step_columns import StepColumns

KEPT = 64
"""Answers that are kept; a cursor goes to and fro."""

PATIENCE_S = 5.0
"""A question that is not answered by then is given up, and another may be asked."""


class PastEngines:
    """Answers by step.

    A cursor that moves on while a question is on its way waits for it, so a key held down asks no more than the hub
    answers.
    """

    def __init__(self) -> None:
        self._epoch = ""
        self._found: dict[int, PastState | None] = {}
        self._asked: tuple[str, int, float] | None = None

    def of(self, step: int) -> PastState | None:
        """What is known of the run at that step, so far."""
        return self._found.get(step)

    def step(self, history: StepColumns, cursor: int | None) -> Step | None:
        """The step that is read (None: the latest), with all that is known of it; None before the first."""
        place = history.index(math.inf if cursor is None else cursor)
        if place is None:
            return None
        step, past = history.steps[place], None if cursor is None else self.of(cursor)
        return step if past is None or step.engines else past.step

    def fleet(self, view: Snapshot, history: StepColumns, cursor: int | None) -> list[Row]:
        """The engines as they are, or as of the step that is read."""
        step = self.step(history, cursor)
        if cursor is None or step is None:
            return now(view.engines.values())
        return at_step(view, step, self.of(cursor))

    def question(self, view: Snapshot, step: int | None, at: float) -> AskPast | None:
        """What to ask now that ``step`` is read (None: the latest)."""
        if view.epoch != self._epoch:
            self._epoch, self._found, self._asked = view.epoch, {}, None
        if self._asked is not None and at - self._asked[2] > PATIENCE_S:
            self._asked = None
        if step is None or step in self._found or self._asked is not None:
            return None
        question = AskPast(uuid.uuid4().hex, step)
        self._asked = question.id, step, at
        return question

    def take(self, answers: dict[str, Answer]) -> bool:
        """Take the answer if it has come. Whether there is something new to show."""
        if self._asked is None or self._asked[0] not in answers:
            return False
        self._keep(self._asked[1], answers.pop(self._asked[0]).past)
        return True

    def _keep(self, step: int, past: PastState | None) -> None:
        self._asked = None
        self._found[step] = past
        while len(self._found) > KEPT:
            del self._found[next(iter(self._found))]
