"""Replays a stored run with the interface of ``client.live.Client`` that views use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from rltop.backend import api
from rltop.backend.api.attribution import Attribution
from rltop.backend.api.samples import Samples
from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.store import aggregates
from rltop.backend.store import step_details as store_samples
from rltop.backend.store.read import Reader, evaluating
from rltop.backend.store.schema import StoreError, Unavailable
from rltop.backend.store.stored_diagnosis import diagnosis_input

SAMPLE = Path(__file__).parent.parent / "store" / "sample" / "sort.rltop.gz"
"""A recorded demo run that ships with the package; ``docs/history.md`` describes it."""

LEAD_STEPS = 6
"""Steps before the first alarm at which the sample starts: healthy at first, and the fault comes within seconds."""

MAX_IDLE_S = 3.0
"""Longer silences, such as the time without a hub, are shortened to this at any speed."""

BATCH = 500
"""Most frames per poll, so that a high speed does not block the keys."""


def before_first_alarm(reader: Reader) -> int | None:
    """The step some steps before the first fault that raised an alarm; None if there is none."""
    first = next(iter(reader.snapshot().alarms.values()), None)
    if first is None:
        return None
    since = first.raised_step if first.since_step is None else first.since_step
    return max(since - LEAD_STEPS, 0)


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
        Unavailable: neither this step nor a later one is stored.
        StoreError: the store is damaged.
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
        self._damage = ""
        with evaluating(reader.path):
            self._start(from_step)
        self._at = self._next.time if self._next else 0.0  # on the run's clock
        self._seen = clock()

    def _start(self, from_step: int | None) -> None:
        reader, start = self._reader, 0
        if from_step is not None:
            frame = reader.frame_of_step(from_step)
            if frame is None:
                raise Unavailable(f"no step {from_step} or later is stored in {reader.path}")
            start = frame - 1
        elif self.speed == float("inf"):
            start = reader.last_frame()
        self.view = reader.snapshot(start)
        self._frames = reader.frames(start)
        self._next = next(self._frames, None)
        self._last_step = reader.execute("SELECT max(step) FROM step").fetchone()[0]

    @property
    def ended(self) -> bool:
        """Whether the last stored frame has been shown."""
        return self._next is None

    @property
    def progress(self) -> str:
        """Position and speed, or why the replay ended early, for the status line of a screen."""
        if self._damage:
            return self._damage
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
            self._show(frame)
            changed = True
        return changed

    def _show(self, frame: api.Frame) -> None:
        """Apply a frame and read the next one; the replay ends at a damaged one."""
        self._next = None
        try:
            with evaluating(self._reader.path):
                self._apply(frame)
                self._next = next(self._frames, None)
        except StoreError as error:
            self._damage = str(error)

    def _apply(self, frame: api.Frame) -> None:
        self.view.seq = frame.seq - 1  # old frames are downsampled, so numbers are missing
        self.view.apply(msgspec.structs.replace(frame, epoch=self.view.epoch))

    def ask(self, question: api.Question) -> None:
        """Answer from the store; other questions get an error."""
        try:
            with evaluating(self._reader.path):
                self.answers[question.id] = self._answer(question)
        except ValueError as problem:
            self.answers[question.id] = api.Answer(question.id, error=str(problem))

    def _answer(self, question: api.Question) -> api.Answer:
        newest = max(self.view.steps, default=-1)
        if isinstance(question, api.AskSamples):
            step = newest if question.step is None else question.step
            samples = store_samples.samples(self._reader, step, question.kind, question.engine, question.limit)
            return api.Answer(question.id, samples=samples)
        if isinstance(question, api.AskMismatch):
            last = newest if question.last is None else min(question.last, newest)
            return api.Answer(question.id, mismatch=store_samples.mismatch(self._reader, question.first, last))
        if isinstance(question, api.AskPast):
            return api.Answer(question.id, past=self._reader.past(question.step, self.view.seq))
        if isinstance(question, api.AskDiagnosis):
            step = newest if question.step is None else min(question.step, newest)
            verdict = diagnose(diagnosis_input(self._reader, step if step >= 0 else None))
            return api.Answer(question.id, diagnosis=verdict)
        if isinstance(question, api.AskEffect):
            return aggregates.effect(self._reader, question, self.view)
        if isinstance(question, api.AskAttribution):
            return api.Answer(question.id, attribution=aggregates.attributed(self._reader, question, self.view))
        raise Unavailable("this is a replay: it shows stored data only and can't change the run")

    def effect(self, command: str = "") -> api.Effect:
        """As ``Client.effect``. Raises ``Unavailable``: no such command, or it changed nothing; ``StoreError``."""
        with evaluating(self._reader.path):
            answer = aggregates.effect(self._reader, api.AskEffect("", command), self.view)
        if answer.effect is None:
            raise Unavailable(answer.error)
        return answer.effect

    def attribution(self, steps: int = 20) -> Attribution:
        """As ``Client.attribution``. Raises ``Unavailable``: no data is stored; ``StoreError``."""
        with evaluating(self._reader.path):
            return aggregates.attributed(self._reader, api.AskAttribution("", steps), self.view)

    def snapshot(self, timeout_s: float = 0.0) -> api.Snapshot:
        """The current snapshot; as ``Client.snapshot``, without waiting."""
        del timeout_s
        return self.view

    def diagnosis(self, step: int | None = None) -> Verdict:
        """As ``Client.diagnosis``. Raises ``StoreError``; ``Unavailable``: there is no such step."""
        with evaluating(self._reader.path):
            return diagnose(diagnosis_input(self._reader, step))

    def samples(self, question: api.AskSamples) -> Samples:
        """As ``Client.samples``. Raises ``StoreError``; ``Unavailable``: there are none."""
        with evaluating(self._reader.path):
            found = self._answer(question).samples
        assert found is not None
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._frames.close()
        self._reader.close()
