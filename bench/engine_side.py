"""The half of ``engine_step.py`` in the engine-core process: attaches, measures and detaches the collector.

vLLM loads it as a plugin. The front end calls the functions that it adds to the engine core as utilities: between two
steps, on the engine's own thread.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm import patches
from rltop.collectors.vllm.agent import Agent
from rltop.collectors.vllm.workers.one_rank import METHODS

SETTLE_S = 10.0

UTILITIES = ("bench_attach", "bench_cpu", "bench_detach")


def register() -> None:
    """Entry point of ``vllm.general_plugins``, which vLLM calls in each of its processes."""
    from vllm.v1.engine.core import EngineCore

    for name in UTILITIES:
        setattr(EngineCore, name, globals()[name])
    patches.install_in_workers(lambda: METHODS, ErrorBoundary())


class StepTimer:
    """Measures the time that hooks add to the methods of a step, with a timer inside and one outside of each hook.

    Create it before the hooks are installed, call ``close`` after that, and ``undo`` after the hooks are removed.
    """

    def __init__(self, engine: Any, running: int) -> None:
        self.costs: list[float] = []
        """Microseconds of the engine's thread per step that emitted tokens of at least ``running`` requests."""
        self.own: list[float] = []
        """Microseconds of the timing itself in the same steps, measured on the method without a hook."""
        self._running = running
        self._own = 0.0
        self._spent = 0.0
        scheduler = engine.scheduler
        self._owners = [(scheduler, "schedule"), (scheduler, "update_from_output"), (engine, "step_fn")]
        self._shadowed = [vars(owner).get(method) for owner, method in self._owners]
        self._inner = [_Span(getattr(owner, method)) for owner, method in self._owners]
        for (owner, method), span in zip(self._owners, self._inner, strict=True):
            setattr(owner, method, span.call)
        self._bare = [vars(owner)[method] for owner, method in self._owners]

    def close(self) -> None:
        """Install the outer timers, around the hooks."""
        notes = (None, None, self._stepped)
        for (owner, method), span, bare, note in zip(self._owners, self._inner, self._bare, notes, strict=True):
            hooked = vars(owner)[method]
            setattr(owner, method, self._around(hooked, span, note, free=hooked is bare))

    def undo(self) -> None:
        """Remove both timers."""
        for (owner, method), shadowed in zip(self._owners, self._shadowed, strict=True):
            if shadowed is None:
                delattr(owner, method)
            else:
                setattr(owner, method, shadowed)

    def _around(
        self, hooked: Callable[..., Any], span: _Span, note: Callable[[Any], None] | None, *, free: bool
    ) -> Any:
        """Time a method; ``free``: it has no hook, and is only called for ``note``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = hooked(*args, **kwargs)
            spent = time.perf_counter() - span.ended + span.began - began
            if free:
                self._own = spent
            else:
                self._spent += spent
            if note is not None:
                note(result)
            return result

        return timed

    def _stepped(self, result: Any) -> None:
        outputs, _ = result
        if outputs and sum(len(of_client.outputs) for of_client in outputs.values()) >= self._running:
            self.costs.append(self._spent * 1e6)
            self.own.append(self._own * 1e6)
        self._spent = 0.0


class _Span:
    """A method of the host, and the start and end of its last call."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.began = self.ended = 0.0

        def call(*args: Any, **kwargs: Any) -> Any:
            self.began = time.perf_counter()
            result = original(*args, **kwargs)
            self.ended = time.perf_counter()
            return result

        self.call = functools.wraps(original)(call)


class Cpu(NamedTuple):
    """CPU seconds of the collector's own thread, and of ZeroMQ's threads."""

    sender: float
    zeromq: float


class Attached:
    """The collector as in production, and the threads that it started."""

    def __init__(self, engine: Any, rundir: RunDir, timer: StepTimer | None) -> None:
        before = _threads()
        self.timer = timer
        self.agent = Agent(engine, rundir, ErrorBoundary())
        if timer is not None:
            timer.close()
        _wait(lambda: len(_threads() - before) >= 3)  # the sender's and two of ZeroMQ's
        python = {thread.native_id for thread in threading.enumerate()}
        self._threads = _threads() - before
        self._sender = self._threads & python
        _wait(lambda: self._sent("state") >= 2)  # the first one, and one to a hub that has registered the engine

    def cpu(self) -> Cpu:
        """CPU seconds of its threads, after all output of the engine has been processed.

        Excludes work on the engine's own thread (see ``StepTimer``) and the start.
        """
        self._drain()
        sender = sum(map(_cpu_of_thread, self._sender))
        return Cpu(sender, sum(map(_cpu_of_thread, self._threads - self._sender)))

    def counts(self) -> list[float]:
        """Rollouts offered, sent and dropped, after all output of the engine has been processed."""
        self._drain()
        rollouts = self.agent.sender.health().counts["rollouts"]
        return [rollouts.offered, rollouts.sent, rollouts.dropped]

    def _sent(self, kind: str) -> int:
        count = self.agent.sender.health().counts.get(kind)
        return 0 if count is None else count.sent

    def _drain(self) -> None:
        tap, sender = self.agent.tap, self.agent.sender
        _wait(
            lambda: tap.processed == tap.enqueued and not any(kind.queued for kind in sender.health().counts.values())
        )


_attached: list[Attached] = []


def bench_attach(engine: Any, rundir: str, running: int) -> None:
    """Attach the collector; time its hooks unless ``running`` is 0."""
    timer = StepTimer(engine, running) if running else None
    _attached.append(Attached(engine, RunDir(Path(rundir)), timer))


def bench_cpu(_engine: Any) -> list[float]:
    """CPU seconds so far of the engine core's process, of its workers and of the collector's threads (``Cpu``)."""
    children = sum(_cpu_of_process(child.pid) for child in multiprocessing.active_children() if child.pid)
    return [time.process_time(), children, *(_attached[0].cpu() if _attached else (0.0, 0.0))]


def bench_detach(_engine: Any) -> list[list[float]]:
    """Detach the collector as at the end of an engine. Returns its rollout counts and the times of ``StepTimer``."""
    attached = _attached.pop()
    counts = attached.counts()
    attached.agent.close()
    if attached.timer is None:
        return [counts, [], []]
    attached.timer.undo()
    return [counts, attached.timer.costs, attached.timer.own]


def _cpu_of_process(pid: int) -> float:
    """CPU seconds of a process, by the clock id of ``clock_getcpuclockid``."""
    return time.clock_gettime((~pid << 3) | 2)


def _cpu_of_thread(thread: int) -> float:
    """CPU seconds of any thread, by the clock id of ``pthread_getcpuclockid``."""
    return time.clock_gettime((~thread << 3) | 6)


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}  # noqa: PTH208 - names, not paths


def _wait(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError("the collector did not drain its queues")
        time.sleep(0.005)
