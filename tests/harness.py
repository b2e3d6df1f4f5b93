"""Stands where the hub does: a real PULL and ROUTER pair on a run directory, drained by a thread of its own."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import zmq

from rltop.collectors import wire
from rltop.collectors.rundir import RunDir

T = TypeVar("T")


def wait_for(probe: Callable[[], T | None], what: str, timeout: float = 30.0) -> T:
    """The first true answer of ``probe``; fails after ``timeout`` seconds, naming ``what``."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout} s: {what}")


class HubStandIn:
    """Collects what collectors send, answers ``Bye``, and sends commands.

    Args:
        rundir: where it listens; None: in a directory of its own, which goes with it.

    Attributes:
        rundir: where it listens.
        messages: every data message so far, in order of arrival.
        updates: every ``CommandUpdate`` so far.
        byes: sources that said goodbye.
    """

    def __init__(self, rundir: RunDir | None = None) -> None:
        self._own = rundir is None
        self.rundir = rundir or RunDir(Path(tempfile.mkdtemp(prefix="rl", dir="/tmp")))
        self.messages: list[tuple[wire.Envelope, wire.DataBody, wire.Arrays]] = []
        self.updates: list[wire.CommandUpdate] = []
        self.byes: list[wire.Bye] = []
        self._peers: dict[str, bytes] = {}
        self._outbox: list[tuple[str, wire.Body]] = []
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._own:
            shutil.rmtree(self.rundir.path)

    def close(self) -> None:
        """Leave the place to another hub; what came so far stays."""
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def rollouts(self) -> dict[str, tuple[wire.Rollout, list[int], list[int], list[float]]]:
        """By request id: the rollout, its prompt, its tokens, its logprobs. Fails if one came twice."""
        found: dict[str, tuple[wire.Rollout, list[int], list[int], list[float]]] = {}
        for _, body, arrays in list(self.messages):
            if not isinstance(body, wire.Rollouts):
                continue
            prompts = tokens = 0
            for rollout in body.rollouts:
                assert rollout.request_id not in found, f"{rollout.request_id} came twice"
                found[rollout.request_id] = (
                    rollout,
                    arrays["prompt_ids"][prompts : prompts + rollout.prompt_size].tolist(),
                    arrays["token_ids"][tokens : tokens + rollout.size].tolist(),
                    arrays["logprobs"][tokens : tokens + rollout.size].tolist(),
                )
                prompts += rollout.prompt_size
                tokens += rollout.size
            assert (prompts, tokens) == (arrays["prompt_ids"].size, arrays["token_ids"].size)
        return found

    def states(self) -> list[wire.EngineState]:
        """Every engine state so far."""
        return [body for _, body, _ in list(self.messages) if isinstance(body, wire.EngineState)]

    def health(self) -> list[wire.Health]:
        """Every health record so far."""
        return [body for _, body, _ in list(self.messages) if isinstance(body, wire.Health)]

    def knows(self, source: str) -> bool:
        """Whether the collector has registered."""
        return source in self._peers

    def command(
        self,
        source: str,
        flag: str,
        value: str,
        id: str,  # noqa: A002
        timeout: float = 30.0,
        *,
        strict: bool = False,
    ) -> None:
        """Send a command; its updates arrive in ``updates``."""
        wait_for(lambda: self.knows(source), f"{source} registers")
        self.send(source, wire.Command(id, flag, value, time.time() + timeout, strict=strict))

    def send(self, source: str, message: wire.Body) -> None:
        """Send any message to a collector that has registered."""
        self._outbox.append((source, message))

    def closed(self, id: str, timeout: float = 30.0) -> wire.CommandUpdate:  # noqa: A002
        """How the command ended."""
        ends = {"applied", "refused", "timed_out"}
        return wait_for(
            lambda: next((u for u in list(self.updates) if u.id == id and u.state in ends), None), f"{id} ends", timeout
        )

    def _serve(self) -> None:
        context = zmq.Context()
        pull, router = context.socket(zmq.PULL), context.socket(zmq.ROUTER)
        try:
            pull.bind(self.rundir.ingest)
            router.bind(self.rundir.control)
            self._ready.set()
            poller = zmq.Poller()
            poller.register(pull, zmq.POLLIN)
            poller.register(router, zmq.POLLIN)
            while not self._stop.is_set():
                ready = dict(poller.poll(10))
                if pull in ready:
                    self.messages.append(wire.decode_data(pull.recv_multipart()))
                if router in ready:
                    self._hear(router, *router.recv_multipart())
                while self._outbox:
                    source, message = self._outbox.pop(0)
                    router.send_multipart([self._peers[source], wire.encode(message)])
        finally:
            pull.close(0)
            router.close(0)
            context.term()

    def _hear(self, router: zmq.Socket[bytes], peer: bytes, frame: bytes) -> None:
        message = wire.decode_to_hub(frame)
        if isinstance(message, wire.Register):
            self._peers[message.source] = peer
        elif isinstance(message, wire.CommandUpdate):
            self.updates.append(message)
        else:
            self.byes.append(message)
            router.send_multipart([peer, wire.encode(wire.ByeAck(message.epoch))])
