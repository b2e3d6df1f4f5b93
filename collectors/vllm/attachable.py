"""The engines of this process, dormant or attached: attaches and detaches their agents while they run.

A dormant engine costs nothing per step: this module holds a weak reference to it, a thread blocks in ``accept``
(``listener``), and a file says that the process is here (``contract.engine_processes``). On request the agent is made
on the engine's own thread at its next step boundary. Standard library only until then.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rltop.collectors.contract import engine_processes
from rltop.collectors.contract.attach import ATTACH, DETACH, AttachError
from rltop.collectors.contract.engine_processes import ATTACHED, DORMANT, LOADING
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm import patches
from rltop.collectors.vllm.engine_name import engine_id
from rltop.collectors.vllm.in_process import repeats_another
from rltop.collectors.vllm.listener import reason_of
from rltop.collectors.vllm.presence import Presence

if TYPE_CHECKING:
    from rltop.collectors.vllm.agent import Agent

T = TypeVar("T")

AGENT = "rltop.collectors.vllm.agent"

MAX_TIMEOUT_S = 600.0
"""Longest time that a request may wait for a step boundary."""

ENDS_WITH_COLLECTOR = frozenset({"update_clears_cache"})
"""Flags that only the collector's patches implement: they are at their launch value once it is detached."""

log = logging.getLogger("rltop")

PENDING = "pending"
"""State of a request that waits for a step boundary."""

Answer = dict[str, Any]
"""About one engine: ``engine``, ``state`` (``attached``, ``dormant``, ``pending``), ``in_flight``, ``notes``; ``error``
if it was refused for this one only."""

Wait = Callable[[float], Answer]
"""Waits that many seconds for the result of a request."""


class _Job:
    """Something to do at an engine's next step boundary, and its result."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._call = call
        self._done = threading.Event()
        self._answer: Answer = {}
        self._error: Exception | None = None

    def run(self) -> None:
        """On the engine's thread. Never raises."""
        try:
            self._answer = self._call()
        except Exception as error:  # noqa: BLE001 - becomes the answer
            self._error = error

    def finish(self) -> None:
        """Let ``wait`` return."""
        self._done.set()

    def wait(self, timeout_s: float) -> Answer | None:
        """The result; None if the engine reached no boundary in time: then it runs at the next one.

        Raises whatever the call raised.
        """
        if not self._done.wait(timeout_s):
            return None
        if self._error is not None:
            raise self._error
        return self._answer


class AttachableEngine:
    """One engine of this process, and its agent while it is attached.

    Args:
        engine: complete.
        guard: contains the collectors' faults.
        changed: called after a request was executed, on the engine's thread.

    Attributes:
        id: of the engine.
        agent: None while it is dormant. Written on the engine's thread only.
    """

    def __init__(self, engine: Any, guard: ErrorBoundary, changed: Callable[[], None]) -> None:
        self.id = engine_id(engine)
        self.agent: Agent | None = None
        self._engine = weakref.ref(engine)
        self._guard = guard
        self._changed = changed
        self._at_launch: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._is_hooked = False
        self._finishing: threading.Thread | None = None

    @property
    def run(self) -> str:
        """Path of the run directory that it reports to; empty while it is dormant."""
        agent = self.agent
        return "" if agent is None else str(agent.sender.rundir.path)

    # --- the listener's thread --------------------------------------------------------------------------------------

    def begin_attach(self, rundir: RunDir) -> Wait:
        """Attach at the next step boundary.

        Raises:
            AttachError: it is attached to another run, or can't be attached.
        """
        if self.run and self.run != str(rundir.path):
            raise AttachError(f"{self.id} reports to the run in {self.run}; `rltop detach` it first")
        importlib.import_module(AGENT)  # here, not on the engine's thread
        self._wait_finished()
        return self._at_boundary(functools.partial(self.attach, rundir))

    def begin_detach(self, *, keep: bool) -> Wait:
        """Detach at the next step boundary, and send what is queued.

        Its result raises AttachError if it would leave a change of rltop in place without its timer.
        """
        wait = self._at_boundary(functools.partial(self.detach, keep=keep))

        def finished(timeout_s: float) -> Answer:
            answer = wait(timeout_s)
            self._wait_finished()
            return answer

        return finished

    def _wait_finished(self) -> None:
        if self._finishing is not None:
            self._finishing.join()

    def _at_boundary(self, call: Callable[[], Answer]) -> Wait:
        """Run ``call`` at the next boundary, instead of an earlier request that still waits for one."""
        job = _Job(call)
        self._schedule(job)
        return lambda timeout_s: job.wait(timeout_s) or {"engine": self.id, "state": PENDING}

    def _schedule(self, job: _Job) -> None:
        engine = self._engine()
        if engine is None:
            raise AttachError(f"{self.id} has ended")
        if reason := patches.why_no_wake(engine):
            raise AttachError(f"no step boundary on this vLLM: {reason}")
        with self._lock:
            self._job, is_hooked, self._is_hooked = job, self._is_hooked, True
        if not is_hooked:
            patches.at_next_boundary(engine, self._on_boundary)

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def _on_boundary(self) -> None:
        with self._lock:
            job, self._job, self._is_hooked = self._job, None, False
        if job is not None:
            job.run()
            self._guard.run("presence", self._changed)
            job.finish()

    def attach(self, rundir: RunDir) -> Answer:
        """Make the agent."""
        engine = self._engine()
        if self.agent is None:
            from rltop.collectors.vllm.agent import Agent

            self.agent = Agent(engine, rundir, self._guard)
            self._at_launch = self._at_launch or self.agent.flag_values()
        in_flight = len(getattr(getattr(engine, "scheduler", None), "requests", ()))
        return {"engine": self.id, "state": ATTACHED, "in_flight": in_flight}

    def detach(self, *, keep: bool) -> Answer:
        """Remove the agent's patches; another thread sends what is queued and disconnects."""
        agent = self.agent
        if agent is None:
            return {"engine": self.id, "state": DORMANT, "notes": ["it was not attached"]}
        if agent.is_pausing():
            raise AttachError(f"{self.id} is paused by rltop, and its collector has to resume it: `rltop resume` first")
        changed = self._switched(agent)
        if changed and not keep:
            advice = "switch back first (`rltop undo`, `rltop set`), or leave it so with --keep"
            raise AttachError(f"{self.id} is switched: {', '.join(changed)}; {advice}")
        agent.release("the collector was detached")
        self.agent = None
        self._finishing = threading.Thread(target=agent.finish, name="rltop-detach", daemon=True)
        self._finishing.start()
        return {"engine": self.id, "state": DORMANT, "notes": [f"left as it is: {change}" for change in changed]}

    def _switched(self, agent: Agent) -> list[str]:
        """The flags that are not at their launch value and would stay so."""
        now = agent.flag_values()
        return [
            f"{name} is {now.get(name)} (at launch {was})"
            for name, was in self._at_launch.items()
            if now.get(name) != was and name not in ENDS_WITH_COLLECTOR
        ]

    def end(self) -> None:
        """The engine has ended."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.close()


class AttachableProcess:
    """The engines of this process.

    Args:
        guard: contains the collectors' faults.
        rundir: where engines report from their start; None: they start dormant.
        is_reachable: whether the process writes its record and listens for requests.
    """

    def __init__(self, guard: ErrorBoundary, rundir: RunDir | None, *, is_reachable: bool) -> None:
        self._guard = guard
        self._rundir = rundir
        self._presence = Presence(self.handle, guard, is_wanted=is_reachable)
        self._engines: list[AttachableEngine] = []
        _processes.add(self)

    def after_fork(self) -> None:
        """In the child: the threads and the engines are the parent's."""
        self._presence.after_fork()
        self._engines = []

    def install(self) -> None:
        """Follow every engine that starts in this process, and prepare its workers."""
        patches.install(self.begin, self._guard, self.loading, self.failed)
        patches.install_in_workers(_worker_methods, self._guard)

    # --- the engine's thread ----------------------------------------------------------------------------------------

    def loading(self) -> None:
        """An engine begins to load. No thread is started: executors may fork their workers."""
        if not self._engines:
            self._show(LOADING, "" if self._rundir is None else str(self._rundir.path))

    def failed(self) -> None:
        """An engine could not be loaded."""
        if not self._engines:
            self._presence.end()

    def begin(self, engine: Any) -> Callable[[], None]:
        """An engine is ready. Returns what to call at its end."""
        if repeats_another(engine):
            log.info("rltop: this rank repeats the requests of its replica's first rank, which reports them")
            return lambda: None
        one = AttachableEngine(engine, self._guard, self._changed)
        if self._rundir is not None:
            self._guard.run("attach", one.attach, self._rundir)
        self._engines.append(one)
        self._guard.run("presence", self._changed)
        return functools.partial(self._end, one)

    def attach_all(self, rundir: RunDir) -> dict[str, str]:
        """Attach the dormant engines; see ``attach_engines_here``."""
        for one in self._engines:
            if not one.run:
                self._guard.run("attach", one.attach, rundir)
        self._guard.run("presence", self._changed)
        return {one.id: one.run for one in self._engines}

    def _end(self, one: AttachableEngine) -> None:
        if one not in self._engines:
            return  # in a forked child
        self._engines.remove(one)
        if self._engines:
            self._changed()
        else:
            self._presence.end()
        one.end()

    def _changed(self) -> None:
        """Engines came, went, or changed their state."""
        if self._engines:
            run = next((one.run for one in self._engines if one.run), "")
            self._show(ATTACHED if run else DORMANT, run)

    def _show(self, state: str, run: str) -> None:
        names = tuple(one.id for one in self._engines)
        version = str(getattr(sys.modules.get("vllm"), "__version__", ""))
        record = engine_processes.this_process(state, names, version, run)
        self._presence.show(record, listens=state != LOADING)

    # --- the listener's thread --------------------------------------------------------------------------------------

    def handle(self, message: Answer) -> Answer:
        """Answer a request of ``contract.attach``.

        Raises:
            AttachError, RunDirError, OSError: it is malformed, or refused.
        """
        begin, timeout_s = _request(message)
        if not self._engines:
            raise AttachError("the engine has ended")
        return {"ok": True, "engines": _answers(list(self._engines), begin, time.monotonic() + timeout_s)}


def _worker_methods() -> dict[str, Callable[..., Any]]:
    from rltop.collectors.vllm.workers.one_rank import METHODS  # here: a process without workers loads nothing

    return METHODS


Begin = Callable[[AttachableEngine], Wait]


def _answers(engines: list[AttachableEngine], begin: Begin, until: float) -> list[Answer]:
    """Begin a request on all engines, then wait for all: until ``until``, by the monotonic clock, in total.

    Raises:
        Exception: the first refusal, if every engine refused.
    """
    begun = [_attempt(functools.partial(begin, one)) for one in engines]
    results = [one if isinstance(one, Exception) else _attempt(functools.partial(_until, one, until)) for one in begun]
    refusals = [result for result in results if isinstance(result, Exception)]
    if len(refusals) == len(results):
        raise refusals[0]
    pairs = zip(engines, results, strict=True)
    return [{"engine": one.id, "error": reason_of(r)} if isinstance(r, Exception) else r for one, r in pairs]


def _attempt(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - becomes the answer
        return error


def _until(wait: Wait, until: float) -> Answer:
    return wait(max(until - time.monotonic(), 0.0))


def _request(message: Answer) -> tuple[Begin, float]:
    """What a message asks of an engine, and the seconds that all of them may take."""
    timeout_s, run, keep = message.get("timeout_s"), message.get("run"), message.get("keep", False)
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise AttachError(f"timeout_s {timeout_s!r}; expected more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds")
    if message.get("do") == ATTACH:
        if not isinstance(run, str) or not Path(run).is_absolute():
            raise AttachError(f"run {run!r}; expected the absolute path of a run directory")
        rundir = RunDir(Path(run))
        rundir.check()
        return lambda one: one.begin_attach(rundir), timeout_s
    if message.get("do") == DETACH:
        if not isinstance(keep, bool):
            raise AttachError(f"keep {keep!r}; expected true or false")
        return lambda one: one.begin_detach(keep=keep), timeout_s
    raise AttachError(f"unknown request {message.get('do')!r}; this version knows {ATTACH} and {DETACH}")


_processes: weakref.WeakSet[AttachableProcess] = weakref.WeakSet()


def attach_engines_here(rundir: RunDir) -> dict[str, str]:
    """Attach the dormant engines inside this process. Call it from the thread that runs their steps, between two steps.

    Returns:
        The path of the run directory that each engine reports to, by its id; empty if it could not be attached.
    """
    return {name: run for process in list(_processes) for name, run in process.attach_all(rundir).items()}


def _after_fork() -> None:
    for process in list(_processes):
        process.after_fork()


os.register_at_fork(after_in_child=_after_fork)
