"""Where the collector touches vLLM: the only file that names vLLM objects to patch.

Every seam wraps, none pastes: the host's exceptions pass unchanged, and what is ours runs behind the guard, after the
original and with its arguments; one goes before it and steers (``STEERS``). A seam that is missing or looks different
costs one capability, which then says so; nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.transport.error_boundary import MAX_FAULTS, Guard

MODULE = "vllm.v1.engine.core"
"""The module of the engine core; loaded wherever vLLM runs or starts an engine."""

CLIENT_MODULE = "vllm.v1.engine.core_client"

LOOPS = ("EngineCoreProc", "DPEngineCoreProc")
"""Classes with a ``run_busy_loop`` of their own: the data-parallel one overrides it. Entered once, engine complete."""

WORKER_MODULE = "vllm.v1.worker.worker_base"

Hook = Callable[..., Any]
"""Runs after the original: ``hook(result, *args, **kwargs)``, with the original's arguments; see also ``STEERS``."""

FAILED = " failed"
"""A hook of this ending after a seam's name runs where the original raised: ``hook(error, *args, **kwargs)``."""

Attach = Callable[[Any], Callable[[], None]]
"""Called with a complete engine core; returns what to do when the engine ends."""


class HostFailure(BaseException):
    """Carries an exception of the host's own code, met while we ran it, past the guard and back to the host."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class PatchPoint:
    """One method of a live engine that we listen to.

    Attributes:
        name: of the capability, and of the place in the guard's counts.
        path: from the engine core to the object that has the method; empty for the engine core itself.
        method: its name.
        parameters: the leading parameters it must have for our reading of its arguments to be right.
        why: what is lost without it.
        seen: versions of vLLM it was read in.
    """

    name: str
    path: tuple[str, ...]
    method: str
    parameters: tuple[str, ...]
    why: str
    seen: str


BOUNDARY = PatchPoint(
    "boundary",
    (),
    "_handle_client_request",
    ("request_type", "request"),
    "the step boundary where switches run; reached when idle or paused too",
    "0.18.1 0.26.0 0.32.0",
)

RPC = PatchPoint(
    "rpc", (), "collective_rpc", ("method",), "weight updates: when one is open, how many there were", "0.32.0"
)

PAUSING = PatchPoint(
    "pausing",
    (),
    "pause_scheduler",
    ("mode", "clear_cache"),
    "update_clears_cache: whether a pause may clear the cache",
    "0.18.1 0.26.0 0.32.0",
)

PAUSE = PatchPoint(
    "pause",
    ("scheduler",),
    "set_pause_state",
    ("pause_state",),
    "whose pause it is: without it generation is not paused or resumed from here",
    "0.18.1 0.26.0 0.32.0",
)

UPDATE = PatchPoint(
    "update",
    ("scheduler",),
    "update_from_output",
    ("scheduler_output", "model_runner_output"),
    "tokens, logprobs, versions: of a whole batch at once; else they are read from each request's outputs",
    "0.18.1 0.26.0 0.32.0",
)

SCHEDULE = PatchPoint(
    "schedule",
    ("scheduler",),
    "schedule",
    (),
    "first scheduling: time, step, cache lookup",
    "0.18.1 0.26.0 0.32.0",
)

STEP = PatchPoint(
    "step", (), "step_fn", (), "tokens, logprobs, versions: the outputs of every step", "0.18.1 0.26.0 0.32.0"
)

SEAMS: tuple[PatchPoint, ...] = (
    STEP,
    UPDATE,
    SCHEDULE,
    PatchPoint("add", ("scheduler",), "add_request", ("request",), "prompts and sampling parameters", "0.18.1 0.32.0"),
    PatchPoint(
        "finish",
        ("scheduler",),
        "finish_requests",
        ("request_ids", "finished_status"),
        "aborted requests: they bypass the outputs of the step",
        "0.26.0 0.32.0",
    ),
    RPC,
    PatchPoint(
        "reset",
        ("scheduler",),
        "reset_prefix_cache",
        ("reset_running_requests",),
        "how often the prefix cache was reset",
        "0.18.1 0.26.0 0.32.0",
    ),
    PAUSING,
    PAUSE,
    BOUNDARY,
)

STEERS = frozenset({PAUSING.name})
"""Seams whose hook runs before the original, ``hook(*args, **kwargs)``, and answers with the arguments to use instead,
or None for the caller's."""

EVERY_STEP = frozenset({STEP.name, UPDATE.name, SCHEDULE.name})
"""Seams that are passed in every step of the engine. Their hooks run no code of the host."""

_classes: list[tuple[Any, str, Any]] = []

ESSENTIAL = ("step", "add")
"""Without these there is nothing to publish."""


def wrap(
    original: Callable[..., Any], place: str, hook: Hook, guard: Guard, on_failure: Hook | None = None
) -> Callable[..., Any]:
    """``original`` followed by ``hook``, or by ``on_failure`` where it raised.

    The result and the host's exceptions are the original's. ``functools.wraps`` matters: vLLM converts the arguments of
    utility calls by the signature of what it calls.
    """

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            result = original(*args, **kwargs)
        except Exception as error:
            if on_failure is not None:
                guard.run(place, functools.partial(on_failure, **kwargs) if kwargs else on_failure, error, *args)
            raise
        try:
            guard.run(place, functools.partial(hook, **kwargs) if kwargs else hook, result, *args)
        except HostFailure as failure:
            raise failure.error from failure.error.__cause__
        return result

    return _marked(wrapped, place, guard)


def steer(original: Callable[..., Any], place: str, hook: Hook, guard: Guard) -> Callable[..., Any]:
    """``original`` with the arguments that ``hook`` answers, or with its own where that is None or failed."""

    @functools.wraps(original)
    def steered(*args: Any, **kwargs: Any) -> Any:
        chosen = guard.run(place, functools.partial(hook, **kwargs) if kwargs else hook, *args)
        return original(*args, **kwargs) if chosen is None else original(*chosen)

    return _marked(steered, place, guard)


def _marked(tapped: Callable[..., Any], place: str, guard: Guard) -> Callable[..., Any]:
    """With what tells whether its hook still runs; see ``fault_of``."""
    tapped.rltop_is_off = functools.partial(guard.is_off, place)  # type: ignore[attr-defined] # a mark of ours
    return tapped


def is_tapped(owner: Any, method: str) -> bool:
    """Whether a method of this very object is one of ours."""
    return hasattr(vars(owner).get(method), "__wrapped__")


def fault_of(seam: PatchPoint, owner: Any) -> str:
    """Why ``seam`` can't be used on ``owner``; empty if it can."""
    method = getattr(owner, seam.method, None)
    if not callable(method):
        return f"{seam.method} is not there"
    parameters = _parameters_of(method)
    if parameters is None:
        return f"{seam.method} has no signature"
    if parameters[: len(seam.parameters)] != seam.parameters:
        return f"{seam.method} takes {parameters}, not {seam.parameters}"
    is_off = getattr(method, "rltop_is_off", None)
    if is_off is not None and is_off():
        return f"the collector failed {MAX_FAULTS} times at {seam.method}, and listens no more"
    return ""


_parameters: weakref.WeakKeyDictionary[Callable[..., Any], tuple[str, ...]] = weakref.WeakKeyDictionary()
"""Of functions that were asked for: every state of an engine asks, and to inspect one takes as long as all the rest."""


def _parameters_of(method: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names, without a bound ``self``; None where it does not tell."""
    function = getattr(method, "__func__", method)  # a bound method is made anew for everyone who asks
    try:
        found = _parameters.get(function)
        if found is None:
            found = _parameters[function] = tuple(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return None
    return found


def unseen(engine: Any) -> str:
    """Why it is not seen any more what the engine's steps put out; empty if it is."""
    if is_tapped(engine.scheduler, UPDATE.method):
        return fault_of(UPDATE, engine.scheduler)
    return fault_of(STEP, engine)


class InstalledPatches:
    """The seams of one live engine: put in by ``__init__``, taken out by ``undo``.

    ``missing`` maps the name of each seam that could not be used to the reason.
    """

    def __init__(self, engine: Any, hooks: dict[str, Hook], guard: Guard) -> None:
        self.missing: dict[str, str] = {}
        self._undo: list[Callable[[], None]] = []
        for seam in SEAMS:
            if seam.name not in hooks:
                continue
            owner = engine
            for name in seam.path:
                owner = getattr(owner, name, None)
            if fault := fault_of(seam, owner):
                self.missing[seam.name] = f"{fault} (lost: {seam.why})"
                continue
            self._put(owner, seam.method, _made(getattr(owner, seam.method), seam.name, hooks, guard))

    def _put(self, owner: Any, method: str, wrapped: Callable[..., Any]) -> None:
        """Shadow the method on the instance; the class, and other engines, stay as they are."""
        self._undo.append(functools.partial(restore, owner, method, vars(owner).get(method)))
        setattr(owner, method, wrapped)

    def undo(self) -> None:
        """Leave the engine as it was found."""
        while self._undo:
            self._undo.pop()()


def _made(original: Callable[..., Any], name: str, hooks: dict[str, Hook], guard: Guard) -> Callable[..., Any]:
    if name in STEERS:
        return steer(original, name, hooks[name], guard)
    if name in EVERY_STEP:
        return _marked(guard.after(name, original, hooks[name]), name, guard)
    return wrap(original, name, hooks[name], guard, hooks.get(name + FAILED))


def restore(owner: Any, method: str, previous: Any) -> None:
    """Put back what an instance or a class had of its own; None: nothing."""
    if previous is None:
        delattr(owner, method)
    else:
        setattr(owner, method, previous)


def install(attach: Attach, guard: Guard) -> list[str]:
    """Have ``attach`` called for every engine that starts in this process. Idempotent; returns what could not be done.

    Wrapping ``EngineCore.__init__`` would be too late: vLLM loads plugins inside it.
    """
    module = importlib.import_module(MODULE)
    problems = [
        f"{MODULE}.{name}.run_busy_loop is not there"
        for name in LOOPS
        if not _wrap_class(getattr(module, name, None), "run_busy_loop", _loop, attach, guard)
    ]
    client = getattr(importlib.import_module(CLIENT_MODULE), "InprocClient", None)
    if not _wrap_class(client, "__init__", _inproc, attach, guard):
        problems.append(f"{CLIENT_MODULE}.InprocClient is not there")
    return problems


def install_in_workers(methods: dict[str, Callable[..., Any]]) -> None:
    """Give every worker of this process methods of ours, that its engine core calls by name. Idempotent.

    vLLM loads plugins in each worker's process before it makes the worker.
    """
    owner = importlib.import_module(WORKER_MODULE).WorkerBase
    for name, method in methods.items():
        if name not in vars(owner):
            setattr(owner, name, method)
            _classes.append((owner, name, None))


def uninstall() -> None:
    """Undo ``install`` and ``install_in_workers`` for what has not started yet."""
    while _classes:
        restore(*_classes.pop())


def _wrap_class(owner: Any, method: str, make: Callable[..., Any], attach: Attach, guard: Guard) -> bool:
    original = vars(owner).get(method) if owner is not None else None
    if original is None:
        return False
    if (owner, method) not in [(o, m) for o, m, _ in _classes]:
        setattr(owner, method, make(original, attach, guard))
        _classes.append((owner, method, original))
    return True


def _loop(original: Callable[..., Any], attach: Attach, guard: Guard) -> Callable[..., Any]:
    """Around ``fault_tolerant_wrapper`` too, so once per engine however often the loop is re-entered."""

    @functools.wraps(original)
    def run_busy_loop(engine: Any, *args: Any, **kwargs: Any) -> Any:
        detach = guard.run("attach", attach, engine)
        try:
            return original(engine, *args, **kwargs)
        finally:
            if detach is not None:
                guard.run("detach", detach)

    return run_busy_loop


def _inproc(original: Callable[..., Any], attach: Attach, guard: Guard) -> Callable[..., Any]:
    """The in-process engine has no loop: it lives as long as the client that builds it, and must not outlive it."""

    @functools.wraps(original)
    def __init__(client: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(client, *args, **kwargs)
        detach = guard.run("attach", attach, client.engine_core)
        if detach is not None:
            weakref.finalize(client, guard.run, "detach", detach)

    return __init__
