"""What the core's thread hands to the I/O thread: a queue, and a socket that wakes the reader once for all in it.

Through a socket alone every frame would give the interpreter's lock away on both sides, and beside a core that computes
in Python each costs the I/O thread up to 5 ms.
"""

from __future__ import annotations

from collections import deque

import zmq

ADDRESS = "inproc://handover"


class Handover:
    """Messages as lists of frames, in order. One thread puts, another takes.

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
        """On the thread that puts, before it does."""
        self._rope = self._context.socket(zmq.PAIR)
        self._rope.linger = 0
        self._rope.connect(ADDRESS)

    def put(self, *frames: bytes) -> None:
        """Hand over a message."""
        self._waiting.append(list(frames))
        if not self._rung:  # else the reader has not begun to take, and will find this too
            self._rung = True
            self._rope.send(b"")

    def end(self) -> None:
        """Nothing more is put."""
        self._rope.close(1000)

    def take(self) -> list[list[bytes]]:
        """All that waits."""
        if self.bell.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            self.bell.recv()
        self._rung = False  # before the first is taken: what is put from here on rings again
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken
