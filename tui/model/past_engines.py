"""Stored engine states of earlier steps, requested from the hub one at a time."""

from __future__ import annotations

import math
import uuid

from rltop.backend.api import Answer, AskPast, PastState, Snapshot, Step
from rltop.tui.model.fleet_table import Row, at_step, now
from rltop.tui.model.step_columns import StepColumns

MAX_CACHED = 64
"""Answers in the cache; a cursor often moves back and forth."""

TIMEOUT_S = 5.0
"""A question without an answer is given up after this time, and the next may be sent."""


class PastEngines:
    """Cache of stored states by step.

    At most one question is in flight, so a key held down asks no faster than the hub answers.
    """

    def __init__(self) -> None:
        self._epoch = ""
        self._states: dict[int, PastState | None] = {}
        self._asked: tuple[str, int, float] | None = None

    def cached(self, step: int) -> PastState | None:
        """The stored state at that step, if it has arrived."""
        return self._states.get(step)

    def step(self, history: StepColumns, cursor: int | None) -> Step | None:
        """The step under the cursor (None: the latest) with all its known values; None before the first step."""
        index = history.index(math.inf if cursor is None else cursor)
        if index is None:
            return None
        step, past = history.steps[index], None if cursor is None else self.cached(cursor)
        return step if past is None or step.engines else past.step

    def fleet(self, snapshot: Snapshot, history: StepColumns, cursor: int | None) -> list[Row]:
        """The engines now, or at the step under the cursor."""
        step = self.step(history, cursor)
        if cursor is None or step is None:
            return now(snapshot)
        return at_step(snapshot, step, self.cached(cursor))

    def question(self, snapshot: Snapshot, step: int | None, at: float) -> AskPast | None:
        """The question to send while the cursor is on ``step`` (None: the latest); None if none is due."""
        if snapshot.epoch != self._epoch:
            self._epoch, self._states, self._asked = snapshot.epoch, {}, None
        if self._asked is not None and at - self._asked[2] > TIMEOUT_S:
            self._asked = None
        if step is None or step in self._states or self._asked is not None:
            return None
        question = AskPast(uuid.uuid4().hex, step)
        self._asked = question.id, step, at
        return question

    def take_answers(self, answers: dict[str, Answer]) -> bool:
        """Remove the answer from ``answers`` if it has arrived; True if there is something new to draw."""
        if self._asked is None or self._asked[0] not in answers:
            return False
        self._cache(self._asked[1], answers.pop(self._asked[0]).past)
        return True

    def _cache(self, step: int, past: PastState | None) -> None:
        self._asked = None
        self._states[step] = past
        while len(self._states) > MAX_CACHED:
            del self._states[next(iter(self._states))]
