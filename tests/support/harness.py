"""Waits for live processes by their progress, and stands in for the hub.

The stand-in is a real PULL and ROUTER pair on a run directory, drained by a thread of its own.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import zmq

from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir

if TYPE_CHECKING:
    from rltop.backend.client.live import Client
from rltop.collectors.transport.error_boundary import ErrorBoundary

T = TypeVar("T")

ME = pwd.getpwuid(os.getuid()).pw_name
"""Whom a hub names as the author of what this process requests."""

STALL_S = 120.0
"""How long nothing may move before a wait fails. Only a failing test waits that long."""

IDLE_CPUS = 0.05
"""Processes that use less than this share of a CPU do not count as moving: heartbeats and polls take that much."""

LOOK_S = 5.0

PATIENT_S = 600.0
"""For calls that ask for a timeout: only one that hangs reaches it."""

POLL_S = 0.01


class Patience:
    """Fails a wait once nothing has moved for ``STALL_S``, however long it has lasted.

    Args:
        what: what is waited for.
        progress: changes while there is progress. The CPU time of this process and its descendants counts as well.
    """

    def __init__(self, what: str, progress: Callable[[], object] = lambda: None) -> None:
        self._what, self._progress = what, progress
        self._moved = self._looked = time.monotonic()
        self._cpu, self._seen = cpu_s(), progress()

    def check(self) -> None:
        """Call again and again while waiting."""
        now = time.monotonic()
        if now < self._looked + LOOK_S:
            return
        cpu, seen = cpu_s(), self._progress()
        if seen != self._seen or abs(cpu - self._cpu) > IDLE_CPUS * (now - self._looked):
            self._moved = now
        self._looked, self._cpu, self._seen = now, cpu, seen
        assert now < self._moved + STALL_S, f"nothing has moved for {STALL_S:.0f} s: {self._what}"


def wait_for(
    probe: Callable[[], T | None], what: str, *, progress: Callable[[], object] = lambda: None, poll_s: float = POLL_S
) -> T:
    """Wait for the first true answer of ``probe``; fails where nothing moves any more, naming ``what``."""
    patience = Patience(what, progress)
    while not (found := probe()):
        patience.check()
        time.sleep(poll_s)
    return found


async def until(condition: Callable[[], object], what: str, *, poll_s: float = POLL_S) -> None:
    """Wait for the condition while the event loop runs."""
    patience = Patience(what)
    while not condition():
        patience.check()
        await asyncio.sleep(poll_s)


def wait_shown(client: Client, condition: Callable[[Client], object], what: str = "the client shows it") -> None:
    """Poll the client until the condition holds."""
    wait_for(lambda: client.wait(lambda c: bool(condition(c)), 10 * POLL_S), what, poll_s=0.0)


def ended(process: subprocess.Popen[Any]) -> int:
    """Wait for the end of a process; its exit code."""
    wait_for(lambda: process.poll() is not None, f"{process.args!r} ends")
    return process.wait()


def cpu_s() -> float:
    """CPU seconds of this process, its descendants, and those of their children that have ended."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended in between
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = sum(map(int, fields[11:15]))
    mine = [os.getpid()]
    for pid in mine:  # grows as it goes
        mine += children.get(pid, [])
    return sum(used.get(pid, 0) for pid in mine) / os.sysconf("SC_CLK_TCK")


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
        wait_for(self._ready.is_set, "the stand-in listens")
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
        self._thread.join()

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
        timeout: float = PATIENT_S,
        *,
        strict: bool = False,
    ) -> None:
        """Send a command; its updates arrive in ``updates``."""
        wait_for(lambda: self.knows(source), f"{source} registers")
        self.send(source, wire.Command(id, flag, value, time.time() + timeout, strict=strict))

    def send(self, source: str, message: wire.Body) -> None:
        """Send any message to a collector that has registered."""
        self._outbox.append((source, message))

    def closed(self, id: str) -> wire.CommandUpdate:  # noqa: A002
        """How the command ended."""
        ends = {"applied", "refused", "timed_out"}
        return wait_for(
            lambda: next((u for u in list(self.updates) if u.id == id and u.state in ends), None), f"{id} ends"
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
            router.send_multipart([peer, wire.encode(wire.Welcome("hub"))])
        elif isinstance(message, wire.CommandUpdate):
            # Updates of pending commands are sent again after every answer to ``Register``.
            if message.state != "accepted" or message not in self.updates:
                self.updates.append(message)
        else:
            self.byes.append(message)
            router.send_multipart([peer, wire.encode(wire.ByeAck(message.epoch))])


def switch_off(guard: ErrorBoundary, place: str) -> None:
    """Let a place of the error boundary fail until it is off."""
    while not guard.is_off(place):
        guard.run(place, "".index, "not in it")
