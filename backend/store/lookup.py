"""Answers questions from the store about steps that the hub does not have in memory.

On a thread of its own: a disk may be slow, and adding up a thousand steps takes a while.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from rltop.backend import api
from rltop.backend.store import step_details
from rltop.backend.store.read import Reader, evaluating
from rltop.backend.store.schema import StoreError, Unavailable

MAX_WAITING = 64
"""Questions that may wait; further ones are answered from memory alone."""

END_TIMEOUT_S = 1.0
"""How long a hub that ends waits for a question that is being answered."""

Detail = api.AskSamples | api.AskMismatch | api.AskPast
_Item = tuple[bytes, Detail, api.Answer]


class StoreLookup(threading.Thread):
    """Reads the store at ``path``; ``reply`` is called with viewer and answer, on this thread."""

    def __init__(self, path: Path, reply: Callable[[bytes, api.Answer], None]) -> None:
        super().__init__(name="rltop-lookup", daemon=True)
        self._path = path
        self._reply = reply
        self._waiting: queue.Queue[_Item | None] = queue.Queue(MAX_WAITING)

    def put(self, viewer: bytes, question: Detail, fallback: api.Answer) -> None:
        """Queue a question; ``fallback`` is the answer if the store has none. To be called from one thread."""
        if self.ident is None:
            self.start()
        try:
            self._waiting.put_nowait((viewer, question, fallback))
        except queue.Full:
            self._reply(viewer, fallback)

    def end(self) -> None:
        """Drop waiting questions, and end."""
        if self.ident is None:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        self.join(END_TIMEOUT_S)

    def run(self) -> None:
        """See ``threading.Thread``."""
        while (item := self._waiting.get()) is not None:
            viewer, question, fallback = item
            self._reply(viewer, _answer(self._path, question, fallback))


def _answer(path: Path, question: Detail, fallback: api.Answer) -> api.Answer:
    try:
        with evaluating(path), Reader(path) as reader:
            if isinstance(question, api.AskMismatch):
                return api.Answer(question.id, mismatch=step_details.mismatch(reader, question.first, question.last))
            if isinstance(question, api.AskPast):
                return api.Answer(question.id, past=reader.past(question.step))
            samples = step_details.samples(reader, question.step, question.kind, question.engine, question.limit)
            return api.Answer(question.id, samples=samples)
    except (StoreError, OSError):  # the store's writer reports it
        return fallback
    except Unavailable as error:
        return api.Answer(question.id, error=str(error))
