"""Answers from the store what the hub no longer holds, or an earlier hub measured.

On a thread of its own: a disk may be slow, and a thousand steps take a while to add up.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.store import step_details
from rltop.backend.store.read import Reader
from rltop.backend.store.schema import StoreError

MAX_WAITING = 64
"""Questions that may wait; what comes beyond them is answered from memory alone."""

END_S = 1.0
"""How long the end of the hub waits for a question that is being answered."""

Detail = api.AskSamples | api.AskMismatch | api.AskPast
_Item = tuple[bytes, Detail, api.Answer]


class StoreLookup(threading.Thread):
    """Reads the store at ``path``; ``reply`` is called with viewer and answer, on this thread."""

    def __init__(self, path: Path, reply: Callable[[bytes, api.Answer], None]) -> None:
        super().__init__(name="rltop-recall", daemon=True)
        self._path = path
        self._reply = reply
        self._waiting: queue.Queue[_Item | None] = queue.Queue(MAX_WAITING)

    def put(self, viewer: bytes, question: Detail, otherwise: api.Answer) -> None:
        """Answer a question, with ``otherwise`` where the store can't. From one thread; the first starts this one."""
        if self.ident is None:
            self.start()
        try:
            self._waiting.put_nowait((viewer, question, otherwise))
        except queue.Full:
            self._reply(viewer, otherwise)

    def end(self) -> None:
        """Leave what waits."""
        if self.ident is None:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        self.join(END_S)

    def run(self) -> None:
        """See ``threading.Thread``."""
        while (item := self._waiting.get()) is not None:
            viewer, question, otherwise = item
            self._reply(viewer, _answer(self._path, question, otherwise))


def _answer(path: Path, question: Detail, otherwise: api.Answer) -> api.Answer:
    try:
        with Reader(path) as reader:
            if isinstance(question, api.AskMismatch):
                return api.Answer(question.id, mismatch=step_details.mismatch(reader, question.first, question.last))
            if isinstance(question, api.AskPast):
                return api.Answer(question.id, past=reader.past(question.step))
            found = step_details.answer(reader, question.step, question.kind, question.engine, question.limit)
            return api.Answer(question.id, samples=found)
    except (StoreError, sqlite3.Error, OSError, msgspec.MsgspecError):  # the store's own thread tells of it
        return otherwise
    except ValueError as error:
        return api.Answer(question.id, error=str(error))
