"""The trainer's side of the demo's engines: tickets out, groups in, weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import zmq
from safetensors.torch import save_file
from torch import Tensor

from rltop.backend.demo import messages
from rltop.backend.demo.jobs import GROUPS

SETTLE_S = 30.0
"""How long the last weights may take to arrive everywhere before the trainer ends without knowing."""


class EnginePool:
    """Talks to all engines from the trainer's one thread.

    Args:
        socket: endpoint to bind.
        engines: ids of the engines that will come.
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
            self._hear(None)

    def grant(self, step: int) -> None:
        """Hand out the tickets of ``step``, in turn over the engines."""
        tickets = range(step * GROUPS, (step + 1) * GROUPS)
        for index, engine in enumerate(self._engines):
            self._say(engine, messages.Grant(list(tickets[index :: len(self._engines)])))

    def collect(self, step: int, last: int) -> list[messages.Group]:
        """Block until all groups of the steps from ``step`` to ``last`` are there; ``step``'s, by their tickets."""
        while not all(ticket in self._groups for ticket in range(step * GROUPS, (last + 1) * GROUPS)):
            self._hear(None)
        return [self._groups.pop(ticket) for ticket in range(step * GROUPS, (step + 1) * GROUPS)]

    def publish(self, version: int, weights: dict[str, Tensor], steps: Iterable[int]) -> None:
        """Have every engine load ``weights`` as ``version``, and hand out the tickets of ``steps`` just before.

        Tickets and weights leave together, so that the update meets the new requests in flight. Returns at once; the
        weights' file goes when all engines have it.
        """
        path = self._path(version)
        save_file(weights, path)
        self._loading[version] = set(self._engines)
        for step in steps:
            self.grant(step)
        for engine in self._engines:
            self._say(engine, messages.Update(version, str(path)))

    def settle(self) -> None:
        """Wait, for a bounded time, until every engine has what was published."""
        while self._loading and self._hear(SETTLE_S):
            pass

    def take_updates(self) -> list[messages.Updated]:
        """The updates that engines have reported since the last call."""
        while self._hear(0.0):
            pass
        taken, self.updates = self.updates, []
        return taken

    def close(self) -> None:
        """Leave the engines."""
        self._context.destroy(linger=0)

    def _say(self, engine: str, message: messages.ToEngine) -> None:
        self._socket.send_multipart([engine.encode(), messages.encode(message)])

    def _hear(self, timeout_s: float | None) -> bool:
        """Take in one message; False if none came in time (None: wait for one)."""
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
