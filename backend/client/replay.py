"""Replays a stored run with the interface of ``client.live.Client`` that views use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from rltop.backend import api
from rltop.backend.api.attribution import Attribution
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.store import aggregates
from rltop.backend.store import step_details as store_samples
from rltop.backend.store.read import Reader
from rltop.backend.store.stored_diagnosis import diagnosis_input

SAMPLE = Path(__file__).parent.parent / "store" / "sample" / "sort.rltop.gz"
"""A recorded demo run that ships with the package; ``docs/history.md`` describes it."""

SAMPLE_SPEED = 30.0
"""Default replay speed of the sample, which lasted minutes."""

MAX_IDLE_S = 3.0
"""Longer silences, such as the time without a hub, are shortened to this at any speed."""

BATCH = 500
"""Most frames per poll, so that a high speed does not block the keys."""


class Replay:
    """Plays the frames of a store at the pace of the run. One thread.

    Args:
        reader: the store; closed by ``close``.
        speed: seconds of the run per second; infinite shows the end at once.
        from_step: start with the snapshot before this step; None: from the beginning.
        clock: monotonic seconds.

    Attributes:
        view: the current snapshot.
        answers: to questions; an error where the store has no answer.

    Raises:
        ValueError: neither this step nor a later one is stored.
    """

    state = "replay"
    age_s = 0.0

    def __init__(
        self,
        reader: Reader,
        *,
        speed: float = 1.0,
        from_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self.speed = speed
        self._clock = clock
        self.answers: dict[str, api.Answer] = {}
        start = 0
        if from_step is not None:
            frame = reader.frame_of_step(from_step)
            if frame is None:
                raise ValueError(f"no step {from_step} or later is stored in {reader.path}")
            start = frame - 1
        elif speed == float("inf"):
            start = reader.last_frame()
        self.view = reader.snapshot(start)
        self._frames = reader.frames(start)
        self._next = next(self._frames, None)
        self._last_step = reader.execute("SELECT max(step) FROM step").fetchone()[0]
        self._at = self._next.time if self._next else 0.0  # on the run's clock
        self._seen = clock()

    @property
    def ended(self) -> bool:
        """Whether the last stored frame has been shown."""
        return self._next is None

    @property
    def progress(self) -> str:
        """Position and speed, for the status line of a screen."""
        last = "no steps" if self._last_step is None else f"step {max(self.view.steps, default=0)} of {self._last_step}"
        return f"{last}, ended" if self.ended else f"{last}, {self.speed:g}x speed"

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Apply the frames that are due; does not wait. True if ``view`` changed."""
        del timeout_s
        now = self._clock()
        self._at += (now - self._seen) * self.speed
        self._seen = now
        changed = False
        for _ in range(BATCH):
            frame = self._next
            if frame is None:
                break
            # Shorten silences, and follow a clock that was set back; never exceed the speed otherwise.
            if frame.time - self._at > MAX_IDLE_S * self.speed or frame.time < self.view.time - 1.0:
                self._at = max(frame.time - MAX_IDLE_S * self.speed, min(frame.time, self._at))
            if frame.time > self._at:
                break
            self._apply(frame)
            self._next = next(self._frames, None)
            changed = True
        return changed

    def _apply(self, frame: api.Frame) -> None:
        self.view.seq = frame.seq - 1  # old frames are downsampled, so numbers are missing
        self.view.apply(msgspec.structs.replace(frame, epoch=self.view.epoch))

    def ask(self, question: api.Question) -> None:
        """Answer from the store; other questions get an error."""
        newest = max(self.view.steps, default=-1)
        try:
            if isinstance(question, api.AskSamples):
                step = newest if question.step is None else question.step
                samples = store_samples.samples(self._reader, step, question.kind, question.engine, question.limit)
                answer = api.Answer(question.id, samples=samples)
            elif isinstance(question, api.AskMismatch):
                last = newest if question.last is None else min(question.last, newest)
                answer = api.Answer(question.id, mismatch=store_samples.mismatch(self._reader, question.first, last))
            elif isinstance(question, api.AskPast):
                answer = api.Answer(question.id, past=self._reader.past(question.step, self.view.seq))
            elif isinstance(question, api.AskDiagnosis):
                step = newest if question.step is None else min(question.step, newest)
                verdict = diagnose(diagnosis_input(self._reader, step if step >= 0 else None))
                answer = api.Answer(question.id, diagnosis=verdict)
            elif isinstance(question, api.AskEffect):
                answer = aggregates.effect(self._reader, question, self.view)
            elif isinstance(question, api.AskAttribution):
                answer = api.Answer(question.id, attribution=aggregates.attributed(self._reader, question, self.view))
            else:
                raise ValueError("this is a replay: it shows stored data only and can't change the run")
        except ValueError as problem:
            answer = api.Answer(question.id, error=str(problem))
        self.answers[question.id] = answer

    def effect(self, command: str = "") -> api.Effect:
        """As ``Client.effect``. Raises ``ValueError``: no such command, or it changed nothing."""
        answer = aggregates.effect(self._reader, api.AskEffect("", command), self.view)
        if answer.effect is None:
            raise ValueError(answer.error)
        return answer.effect

    def attribution(self, steps: int = 20) -> Attribution:
        """As ``Client.attribution``. Raises ``ValueError``: no data is stored."""
        return aggregates.attributed(self._reader, api.AskAttribution("", steps), self.view)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        self._reader.close()
