"""Passes messages from the worker thread to the I/O thread: a queue, and a socket that wakes the reader.

If each frame were sent through a socket, both sides would release the GIL for each, and beside a busy worker thread the
I/O thread waits up to 5 ms to get it back. So the socket carries one wake-up for all queued messages.
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
        bell: for the reader's poller; the reader closes it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.bell = context.socket(zmq.PAIR)
        self.bell.bind(ADDRESS)
        self._context = context
        self._queue: deque[list[bytes]] = deque()
        self._rung = False

    def begin(self) -> None:
        """Connect. Called once, on the thread that puts."""
        self._ringer = self._context.socket(zmq.PAIR)
        self._ringer.linger = 0
        self._ringer.connect(ADDRESS)

    def put(self, *frames: bytes) -> None:
        """Queue a message, and wake the reader."""
        self._queue.append(list(frames))
        if not self._rung:  # else the reader has not begun to take, and will find this message too
            self._rung = True
            self._ringer.send(b"")

    def end(self) -> None:
        """Disconnect; nothing may be put afterwards."""
        self._ringer.close(1000)

    def take(self) -> list[list[bytes]]:
        """Return all queued messages."""
        if int(self.bell.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self.bell.recv()
        self._rung = False  # before the first is taken: a later put rings again
        messages = []
        while self._queue:
            messages.append(self._queue.popleft())
        return messages
