"""The trainer's connection to the demo's engines: sends tickets and weights, receives groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import zmq
from safetensors.torch import save_file
from torch import Tensor

from rltop.backend.demo import messages
from rltop.backend.demo.jobs import GROUPS

SETTLE_S = 30.0
"""How long the trainer waits at the end for engines to load the last weights."""


class EnginePool:
    """All engines of the run. One thread.

    Args:
        socket: endpoint to bind.
        engines: ids of the expected engines.
        weights: directory where weights are published.
        on_ready: called when an engine has booted.
    """

    def __init__(
        self, socket: str, engines: list[str], weights: Path, on_ready: Callable[[messages.Ready], None]
    ) -> None:
        self._engines = engines
        self._directory = weights
        self._on_ready = on_ready
        self._ready: set[str] = set()
        self._groups: dict[int, messages.Group] = {}
        self._loading: dict[int, set[str]] = {}
        self.updates: list[messages.Updated] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(socket)

    def wait_ready(self) -> None:
        """Block until every engine has booted."""
        while self._ready != set(self._engines):
            self._receive(None)

    def grant(self, step: int) -> None:
        """Send out the tickets of ``step``, round-robin over the engines."""
        tickets = range(step * GROUPS, (step + 1) * GROUPS)
        for index, engine in enumerate(self._engines):
            self._send(engine, messages.Grant(list(tickets[index :: len(self._engines)])))

    def collect(self, step: int, last: int) -> list[messages.Group]:
        """Block until all groups of steps ``step`` to ``last`` have arrived; returns those of ``step`` by ticket."""
        while not all(ticket in self._groups for ticket in range(step * GROUPS, (last + 1) * GROUPS)):
            self._receive(None)
        return [self._groups.pop(ticket) for ticket in range(step * GROUPS, (step + 1) * GROUPS)]

    def publish(self, version: int, weights: dict[str, Tensor], steps: Iterable[int]) -> None:
        """Send the tickets of ``steps``, then have every engine load ``weights`` as ``version``.

        Both are sent together, so that the update meets the new requests in flight. Does not wait; the weights file is
        deleted when all engines have loaded it.
        """
        path = self._path(version)
        save_file(weights, path)
        self._loading[version] = set(self._engines)
        for step in steps:
            self.grant(step)
        for engine in self._engines:
            self._send(engine, messages.Update(version, str(path)))

    def settle(self) -> None:
        """Wait, for a bounded time, until every engine has loaded the published weights."""
        while self._loading and self._receive(SETTLE_S):
            pass

    def take_updates(self) -> list[messages.Updated]:
        """The updates that engines reported since the last call."""
        while self._receive(0.0):
            pass
        taken, self.updates = self.updates, []
        return taken

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def _send(self, engine: str, message: messages.ToEngine) -> None:
        self._socket.send_multipart([engine.encode(), messages.encode(message)])

    def _receive(self, timeout_s: float | None) -> bool:
        """Process one message; False if none arrived in time (None: wait for one)."""
        if not self._socket.poll(None if timeout_s is None else int(timeout_s * 1000)):
            return False
        message = messages.to_trainer.decode(self._socket.recv_multipart()[1])
        match message:
            case messages.Ready():
                self._ready.add(message.engine)
                self._on_ready(message)
            case messages.Group():
                self._groups[message.ticket] = message
            case messages.Updated():
                self.updates.append(message)
                waiting = self._loading[message.version]
                waiting.discard(message.engine)
                if not waiting:
                    del self._loading[message.version]
                    self._path(message.version).unlink()
        return True

    def _path(self, version: int) -> Path:
        return self._directory / f"v{version}.safetensors"
