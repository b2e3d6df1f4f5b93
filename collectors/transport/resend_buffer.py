"""The resend buffer: sent messages without acknowledgement, kept as far as memory allows, to resend on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.collectors.contract import wire

MESSAGE_BYTES = 400
"""Estimated memory of a message in addition to its frames."""

Frame = bytes | memoryview

_PASSED: list[Frame] = wire.encode_body(wire.Passed(), {})


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message as it was sent: its number, the sender's wall clock (seconds), and its frames without the envelope."""

    seq: int
    time: float
    frames: list[Frame]
    nbytes: int


class ResendBuffer:
    """The messages from ``oldest`` up to ``next_seq``, by number. For one thread.

    Attributes:
        next_seq: number of the next new message.
        oldest: number of the oldest message in the buffer; ``next_seq`` if it is empty.
        nbytes: estimated memory of the messages.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self.oldest = 0
        self.nbytes = 0
        self._messages: dict[int, SentMessage] = {}
        self._resend_seq = 0  # the next message to resend; ``next_seq`` if there is none

    @property
    def next_resend(self) -> SentMessage | None:
        """The next message to resend. It goes before any new message, because hubs process messages in order."""
        return self._messages.get(self._resend_seq)

    def append(self, time: float, frames: Sequence[Frame], *, transient: bool = False) -> None:
        """Add message ``next_seq``, sent at ``time``. Of a ``transient`` message only the number is kept."""
        own = _PASSED if transient else [_owned(frame) for frame in frames]
        nbytes = MESSAGE_BYTES + (0 if transient else sum(map(len, own)))
        self._messages[self.next_seq] = SentMessage(self.next_seq, time, own, nbytes)
        self.nbytes += nbytes
        if self._resend_seq == self.next_seq:
            self._resend_seq += 1
        self.next_seq += 1

    def rewind(self, seq: int) -> None:
        """Resend from ``seq``, or from the oldest message in the buffer if that is later."""
        self._resend_seq = min(max(seq, self.oldest), self.next_seq)

    def mark_resent(self) -> None:
        """``next_resend`` was sent."""
        self._resend_seq += 1

    def acknowledge(self, seq: int) -> None:
        """Remove the messages up to ``seq``: no hub will ask for them."""
        while self.oldest <= seq and self.oldest < self.next_seq:
            self._remove_oldest()

    def shrink(self, nbytes: int) -> None:
        """Remove the oldest messages until at most ``nbytes`` are used."""
        while self.nbytes > nbytes and self.oldest < self.next_seq:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        self.nbytes -= self._messages.pop(self.oldest).nbytes
        self.oldest += 1
        self._resend_seq = max(self._resend_seq, self.oldest)


def _owned(frame: Frame) -> Frame:
    """The frame; a copy if it is a view of a part of an array, which may be much larger."""
    if isinstance(frame, memoryview) and getattr(frame.obj, "base", None) is not None:
        return bytes(frame)
    return frame
