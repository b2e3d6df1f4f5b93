"""Retains the messages that no hub has acknowledged, within a byte bound, to resend them on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.collectors.contract import wire

MESSAGE_BYTES = 400
"""Approximate size of a retained message without its frames."""

Frame = bytes | memoryview

_PASSED: list[Frame] = wire.encode_body(wire.Passed(), {})


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message as it was sent: number, wall clock of sending, frames after the envelope."""

    seq: int
    time: float
    frames: list[Frame]
    nbytes: int


class ResendBuffer:
    """The retained messages ``oldest`` to ``next_seq - 1``, and a cursor for resending. One thread.

    Attributes:
        next_seq: number of the next new message.
        oldest: of the retained messages; ``next_seq`` if there is none.
        nbytes: size of the retained messages.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self.oldest = 0
        self.nbytes = 0
        self._retained: dict[int, SentMessage] = {}
        self._cursor = 0  # next message to resend; ``next_seq`` if none is due

    @property
    def due(self) -> SentMessage | None:
        """The next message to resend, if any: before new ones, since a hub takes messages in order."""
        return self._retained.get(self._cursor)

    def retain(self, time: float, frames: Sequence[Frame], *, transient: bool = False) -> None:
        """Retain message ``next_seq``, sent at ``time``; of a ``transient`` one only the number."""
        own = _PASSED if transient else [_owned(frame) for frame in frames]
        nbytes = MESSAGE_BYTES + (0 if transient else sum(map(len, own)))
        self._retained[self.next_seq] = SentMessage(self.next_seq, time, own, nbytes)
        self.nbytes += nbytes
        if self._cursor == self.next_seq:
            self._cursor += 1
        self.next_seq += 1

    def rewind(self, seq: int) -> None:
        """Resend from ``seq`` on, or from the oldest retained message."""
        self._cursor = min(max(seq, self.oldest), self.next_seq)

    def resent(self) -> None:
        """The due message was sent."""
        self._cursor += 1

    def release(self, seq: int) -> None:
        """Release the messages up to ``seq``: they are acknowledged."""
        while self.oldest <= seq and self.oldest < self.next_seq:
            self._drop()

    def fit(self, nbytes: int) -> None:
        """Drop the oldest messages until the rest takes at most ``nbytes``."""
        while self.nbytes > nbytes and self.oldest < self.next_seq:
            self._drop()

    def _drop(self) -> None:
        self.nbytes -= self._retained.pop(self.oldest).nbytes
        self.oldest += 1
        self._cursor = max(self._cursor, self.oldest)


def _owned(frame: Frame) -> Frame:
    """Return the frame, or a copy if it is a view of an array that may be much larger."""
    if isinstance(frame, memoryview) and getattr(frame.obj, "base", None) is not None:
        return bytes(frame)
    return frame
