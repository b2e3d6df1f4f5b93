"""What a sender sent and nobody acknowledged: kept as far as there is room, to be sent again when a hub asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.collectors.contract import wire

MESSAGE_BYTES = 400
"""What a kept message takes beside its frames, roughly."""

Frame = bytes | memoryview

_PASSED: list[Frame] = wire.encode_body(wire.Passed(), {})


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message as it was sent: its number, the sender's wall clock then, and its frames after the envelope."""

    seq: int
    time: float
    frames: list[Frame]
    nbytes: int


class ResendBuffer:
    """The messages from ``oldest`` up to ``next_seq``, by number. One thread.

    Attributes:
        next_seq: number of the next new message.
        oldest: of the messages that are kept; ``next_seq`` if none is.
        nbytes: that they take.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self.oldest = 0
        self.nbytes = 0
        self._kept: dict[int, SentMessage] = {}
        self._again = 0  # next to be sent again; ``next_seq`` when nothing is

    @property
    def due(self) -> SentMessage | None:
        """What is to be sent again next: before anything new, since a hub takes messages in order."""
        return self._kept.get(self._again)

    def keep(self, time: float, frames: Sequence[Frame], *, passing: bool = False) -> None:
        """Message ``next_seq`` was sent at ``time``. Of a ``passing`` one only the number is kept."""
        own = _PASSED if passing else [_owned(frame) for frame in frames]
        nbytes = MESSAGE_BYTES + (0 if passing else sum(map(len, own)))
        self._kept[self.next_seq] = SentMessage(self.next_seq, time, own, nbytes)
        self.nbytes += nbytes
        if self._again == self.next_seq:
            self._again += 1
        self.next_seq += 1

    def rewind(self, seq: int) -> None:
        """Send again from ``seq`` on, or from the oldest that is kept."""
        self._again = min(max(seq, self.oldest), self.next_seq)

    def sent_again(self) -> None:
        """What was due is sent."""
        self._again += 1

    def release(self, seq: int) -> None:
        """Nobody will ask for messages up to ``seq``."""
        while self.oldest <= seq and self.oldest < self.next_seq:
            self._drop()

    def fit(self, nbytes: int) -> None:
        """Let the oldest go until what is kept takes ``nbytes`` at most."""
        while self.nbytes > nbytes and self.oldest < self.next_seq:
            self._drop()

    def _drop(self) -> None:
        self.nbytes -= self._kept.pop(self.oldest).nbytes
        self.oldest += 1
        self._again = max(self._again, self.oldest)


def _owned(frame: Frame) -> Frame:
    """The frame, or a copy where it is a window on an array that may be much larger."""
    if isinstance(frame, memoryview) and getattr(frame.obj, "base", None) is not None:
        return bytes(frame)
    return frame
