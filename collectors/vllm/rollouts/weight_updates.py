"""The weight updates of one engine as a state machine: begin, end, count and version. Pure.

An update is seen by its effect, whatever the call is called. vLLM's start and finish bracket one (``STARTED``). Without
them, loads in a row are parts of one update (``LOADING``): it ends when every parameter is loaded, when the caller
resumes generation, or ``QUIET_S`` after the last part. ``docs/protocols/weight-update.md`` has the transition table.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal, NamedTuple

QUIET_S = 2.0
"""Seconds without a part that end an update which no call, no pause and no complete model ends."""


class State(enum.Enum):
    """Whether an update is in progress, and whether a call announced its end."""

    CLOSED = "closed"
    STARTED = "started"
    LOADING = "loading"


class Moment(NamedTuple):
    """When something happened.

    Attributes:
        step: engine steps scheduled before it.
        seconds: monotonic clock.
        paused: the caller has paused generation.
    """

    step: int
    seconds: float
    paused: bool = False


class Part(NamedTuple):
    """Weights that were loaded by one call, or between two steps.

    Attributes:
        whole: with it, the update has loaded every parameter on every rank.
        repeats: it has a tensor that this update had loaded before.
        version: the version that the call states; None if it states none.
        alone: known to be a complete update by itself.
    """

    whole: bool = False
    repeats: bool = False
    version: int | None = None
    alone: bool = False


Source = Literal["engine", "stated", "inferred", "unknown"]


class PolicyVersion(NamedTuple):
    """A version of the weights, and its source: ``stated`` by the framework, or ``inferred`` by counting updates."""

    number: int
    source: Source


class WeightUpdates:
    """The updates of one engine. Events on the engine's thread; attributes and questions from any thread.

    Attributes:
        state: of the current update.
        count: updates so far. An update counts when its first part is loaded or, if it was started, when it finishes.
        version: of the weights; None before the first update or statement.
        before: the version before the last update.
        mixed: describes the last steps that ran between the parts of an update; empty if there were none.
        mixed_steps: how many there were in all.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.state = State.CLOSED
        self.count = 0
        self.version: PolicyVersion | None = None
        self.before: PolicyVersion | None = None
        self.mixed = ""
        self.mixed_steps = 0
        self._on_change = on_change
        self._last: Moment | None = None  # of the last part; None: no part of an unbracketed update to continue
        self._draft = False
        self._stated: int | None = None  # by a part of a started update
        self._unnamed = False  # the version of the last update is a count
        self._has_statement = False  # versions follow the last statement, not the count
        self._failure = ""
        self._mending = False  # an update is in progress that ends ``_failure``
        self._again = False  # the last update failed after it had been counted
        self._announced = -1  # step at which a version was stated before any load was seen

    # --- questions ------------------------------------------------------------------------------------------------

    def is_open(self, now: Moment) -> bool:
        """Whether further parts are expected: nothing may be switched."""
        if self.state is State.STARTED or self._last is None:
            return self.state is State.STARTED
        recent = now.seconds - self._last.seconds < QUIET_S
        if self.state is State.LOADING:
            return now.paused or recent
        return now.paused and self._last.paused and recent  # frameworks may process the weights before they resume

    def torn(self, now: Moment) -> str:
        """Why the weights are neither the old nor the new ones; empty unless the last update failed."""
        return "" if self._mending and not self.is_open(now) else self._failure

    # --- events ---------------------------------------------------------------------------------------------------

    def started(self, draft: bool = False) -> None:
        """A call announced parts, and the end of the update; ``draft``: of the speculative model, not the policy."""
        self.state, self._draft = State.STARTED, draft
        self._last, self._stated = None, None

    def loaded(self, part: Part, now: Moment) -> None:
        """Weights were loaded."""
        if self._draft:
            return
        if self.state is State.STARTED:
            self._note_steps(now)
            self._stated = part.version if part.version is not None else self._stated
            self._last = now
            return
        if self._announced == now.step or self._continues(part, now):
            self._note_steps(now)
            if part.version is not None:
                self._name(part.version)
        else:
            self._commit(part.version)
        self._last, self._announced = None if part.alone else now, -1
        self._enter(State.CLOSED if part.whole or part.alone else State.LOADING)

    def finished(self, now: Moment) -> None:
        """A call announced the end of the update."""
        if self._draft:
            self.abandoned()
            return
        self._note_steps(now)
        if self.state is not State.LOADING:
            self._commit(self._stated)
        self._forget()
        self._enter(State.CLOSED)

    def resumed(self) -> None:
        """The caller resumed generation: an update inside the pause is over."""
        if self._last is not None and self._last.paused:
            self._last = self._last._replace(paused=False)
            if self.state is State.LOADING:
                self.state, self._failure, self._mending = State.CLOSED, "", False

    def failed(self, reason: str, part: Part, now: Moment) -> None:
        """A part failed after it may have loaded some weights: the update is over, and what is loaded stays."""
        counted = self.state is State.LOADING and self._continues(part, now)
        draft = self._draft
        self.abandoned()
        if not draft:
            self._again = self._again or counted
            self._failure, self._mending = reason, False
            self._on_change()

    def abandoned(self) -> None:
        """An update failed before it loaded anything."""
        self.state = State.CLOSED
        self._forget()

    def stated(self, version: int, now: Moment) -> None:
        """The framework stated the version of the weights in use, or of the update in progress.

        If the last update has a version already, this one was not seen, or is about to be.
        """
        if self.state is State.STARTED:
            self._stated = version
        elif self._unnamed:
            self._name(version)
        elif self.version != PolicyVersion(version, "stated"):
            self._commit(version)
            self._last, self._announced = None, now.step
            self._enter(State.CLOSED)

    # --- parts of both --------------------------------------------------------------------------------------------

    def _continues(self, part: Part, now: Moment) -> bool:
        """Whether a part belongs to the last update: a tensor that comes again after a step belongs to the next one."""
        if self._last is None or part.alone:
            return False
        return not part.repeats or (self.state is State.LOADING and now.step == self._last.step)

    def _note_steps(self, now: Moment) -> None:
        """Report steps between two parts: their tokens are of weights partly old and partly new."""
        steps = now.step - self._last.step if self._last is not None else 0
        if steps:
            self.mixed_steps += steps
            number = self.count + (self.state is State.STARTED)
            self.mixed = f"{steps} engine steps ran between the parts of update {number}; {self.mixed_steps} in all"

    def _commit(self, version: int | None) -> None:
        """Count an update; a retry of one that was counted and failed is the same update."""
        self.count += not self._again
        self.before = self.version
        if version is not None:
            self._name(version)
        elif not self._again or self.version is None:
            following = self.version.number + 1 if self.version and self._has_statement else self.count
            self.version, self._unnamed = PolicyVersion(following, "inferred"), True
        self._again = False

    def _name(self, version: int) -> None:
        self.version, self._unnamed, self._has_statement = PolicyVersion(version, "stated"), False, True

    def _enter(self, state: State) -> None:
        """Weights were loaded without a failure; if parts may be missing, an earlier failure is not over yet."""
        self.state, self._stated, self._mending = state, None, state is State.LOADING
        if state is State.CLOSED:
            self._failure = ""
        self._on_change()

    def _forget(self) -> None:
        """No later part continues this update."""
        self._last, self._stated, self._draft = None, None, False
