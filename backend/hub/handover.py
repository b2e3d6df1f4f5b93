"""Passes messages from the core's thread to the I/O thread: a queue, and a socket that wakes the reader.

Sent through a socket, every frame would release the GIL on both sides, and beside a core that computes in Python it
takes the I/O thread up to 5 ms to get it back. So the socket carries one wake-up for all that is queued.
"""

from __future__ import annotations

from collections import deque

import zmq

ADDRESS = "inproc://handover"


class Handover:
    """An ordered queue of messages, each a list of frames. One thread puts, another takes.

    Args:
        context: of both threads.

    Attributes:
        bell: to be polled by the reader's thread, which also closes it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.bell = context.socket(zmq.PAIR)
        self.bell.bind(ADDRESS)
        self._context = context
        self._waiting: deque[list[bytes]] = deque()
        self._rung = False

    def begin(self) -> None:
        """Connect; called once, on the thread that puts."""
        self._rope = self._context.socket(zmq.PAIR)
        self._rope.linger = 0
        self._rope.connect(ADDRESS)

    def put(self, *frames: bytes) -> None:
        """Queue a message, and wake the reader."""
        self._waiting.append(list(frames))
        if not self._rung:  # else the reader has not begun to take, and will find this too
            self._rung = True
            self._rope.send(b"")

    def end(self) -> None:
        """Disconnect; nothing may be put afterwards."""
        self._rope.close(1000)

    def take(self) -> list[list[bytes]]:
        """Return all queued messages."""
        if int(self.bell.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.bell.recv()
        self._rung = False  # before the first is taken: what is put from here on rings again
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken
