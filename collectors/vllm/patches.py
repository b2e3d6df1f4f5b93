"""Patches vLLM: the only file that names the vLLM methods that the collector wraps.

A patch wraps a method and never replaces its code. vLLM's exceptions pass unchanged. The collector's hook runs inside
the error boundary, after the original and with its arguments; hooks in ``REPLACE_ARGUMENTS`` run before it. If a patch
point is missing or has other parameters, one capability is lost and reported; nothing else changes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary

MODULE = "vllm.v1.engine.core"
"""The module of the engine core, loaded in every process that runs or starts an engine."""

CLIENT_MODULE = "vllm.v1.engine.core_client"

LOOPS = ("EngineCoreProc", "DPEngineCoreProc")
"""Classes that define ``run_busy_loop`` (the data-parallel one overrides it). It is entered once the engine is complete."""

WORKER_MODULE = "vllm.v1.worker.worker_base"

Hook = Callable[..., Any]
"""Called after the original: ``hook(result, *args, **kwargs)``, with its arguments. See also ``REPLACE_ARGUMENTS``."""

FAILED = " failed"
"""Suffix of a patch point's name; its hook is called if the original raised: ``hook(error, *args, **kwargs)``."""

Attach = Callable[[Any], Callable[[], None]]
"""Called with a complete engine core; returns a function to call when the engine ends."""


class HostFailure(BaseException):
    """Carries an exception of vLLM's own code through the error boundary back to vLLM, if a hook called that code."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class PatchPoint:
    """One method of a live engine that the collector wraps.

    Attributes:
        name: of the capability, and of the place in the error boundary's counts.
        path: attribute path from the engine core to the object with the method; empty for the engine core itself.
        method: its name.
        parameters: leading parameters that it must have, so that the hook interprets its arguments correctly.
        provides: what the collector gets from it.
        verified: vLLM versions in which the method was read.
    """

    name: str
    path: tuple[str, ...]
    method: str
    parameters: tuple[str, ...]
    provides: str
    verified: str


BOUNDARY = PatchPoint(
    "boundary",
    (),
    "_handle_client_request",
    ("request_type", "request"),
    "the step boundary where switches run; also reached while the engine is idle or paused",
    "0.18.1 0.26.0 0.32.0",
)

RPC = PatchPoint(
    "rpc",
    (),
    "collective_rpc",
    ("method",),
    "weight updates: whether one is in progress, how many were finished",
    "0.32.0",
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
    "who paused generation; `rltop pause` and `rltop resume` need it",
    "0.18.1 0.26.0 0.32.0",
)

UPDATE = PatchPoint(
    "update",
    ("scheduler",),
    "update_from_output",
    ("scheduler_output", "model_runner_output"),
    "tokens, logprobs and versions of a whole batch at once, instead of from each request's outputs",
    "0.18.1 0.26.0 0.32.0",
)

SCHEDULE = PatchPoint(
    "schedule",
    ("scheduler",),
    "schedule",
    (),
    "first scheduling of a request: time, step, cache lookup",
    "0.18.1 0.26.0 0.32.0",
)

STEP = PatchPoint(
    "step", (), "step_fn", (), "tokens, logprobs and versions: the outputs of every step", "0.18.1 0.26.0 0.32.0"
)

PATCH_POINTS: tuple[PatchPoint, ...] = (
    STEP,
    UPDATE,
    SCHEDULE,
    PatchPoint("add", ("scheduler",), "add_request", ("request",), "prompts and sampling parameters", "0.18.1 0.32.0"),
    PatchPoint(
        "finish",
        ("scheduler",),
        "finish_requests",
        ("request_ids", "finished_status"),
        "aborted requests, which do not appear in the outputs of a step",
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

REPLACE_ARGUMENTS = frozenset({PAUSING.name})
"""Patch points whose hook runs before the original, ``hook(*args, **kwargs)``, and returns the arguments to pass instead,
or None to keep the caller's."""

EVERY_STEP = frozenset({STEP.name, UPDATE.name, SCHEDULE.name})
"""Patch points on the hot path, called in every engine step. Their hooks call no vLLM code."""

_classes: list[tuple[Any, str, Any]] = []

ESSENTIAL = ("step", "add")
"""Without these no rollouts are published."""


def wrap(
    original: Callable[..., Any], place: str, hook: Hook, guard: ErrorBoundary, on_failure: Hook | None = None
) -> Callable[..., Any]:
    """Return ``original`` followed by ``hook``, or by ``on_failure`` if it raised.

    Result and exceptions are the original's. ``functools.wraps`` is needed: vLLM converts the arguments of utility
    calls according to the signature of the method.
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

    return _with_off_check(wrapped, place, guard)


def wrap_arguments(original: Callable[..., Any], place: str, hook: Hook, guard: ErrorBoundary) -> Callable[..., Any]:
    """Return ``original`` called with the arguments that ``hook`` returns, or the caller's if it returns None or fails."""

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen = guard.run(place, functools.partial(hook, **kwargs) if kwargs else hook, *args)
        return original(*args, **kwargs) if chosen is None else original(*chosen)

    return _with_off_check(wrapped, place, guard)


def _with_off_check(wrapped: Callable[..., Any], place: str, guard: ErrorBoundary) -> Callable[..., Any]:
    """Attach a function that returns whether the hook was switched off; see ``why_unusable``."""
    wrapped.rltop_is_off = functools.partial(guard.is_off, place)  # type: ignore[attr-defined] # our own attribute
    return wrapped


def is_patched(owner: Any, method: str) -> bool:
    """Whether this object's method is wrapped by the collector."""
    return hasattr(vars(owner).get(method), "__wrapped__")


def why_unusable(point: PatchPoint, owner: Any) -> str:
    """Why ``point`` can't be used on ``owner``; empty if it can."""
    method = getattr(owner, point.method, None)
    if not callable(method):
        return f"{point.method} is missing"
    parameters = _parameters_of(method)
    if parameters is None:
        return f"{point.method} has no signature"
    if parameters[: len(point.parameters)] != point.parameters:
        return f"{point.method} takes {parameters}, not {point.parameters}"
    is_off = getattr(method, "rltop_is_off", None)
    if is_off is not None and is_off():
        return f"the collector's hook of {point.method} failed {MAX_FAULTS} times and is off"
    return ""


_parameters: weakref.WeakKeyDictionary[Callable[..., Any], tuple[str, ...]] = weakref.WeakKeyDictionary()
"""Cache by function: every engine state needs them, and inspecting one takes as long as the rest of the state."""


def _parameters_of(method: Callable[..., Any]) -> tuple[str, ...] | None:
    """Parameter names without a bound ``self``; None if the signature can't be read."""
    function = getattr(method, "__func__", method)  # a bound method is a new object on each access
    try:
        found = _parameters.get(function)
        if found is None:
            found = _parameters[function] = tuple(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return None
    return found


def why_steps_unseen(engine: Any) -> str:
    """Why the outputs of engine steps are no longer recorded; empty if they are."""
    if is_patched(engine.scheduler, UPDATE.method):
        return why_unusable(UPDATE, engine.scheduler)
    return why_unusable(STEP, engine)


class InstalledPatches:
    """The patches of one live engine: installed by ``__init__``, removed by ``undo``.

    ``missing`` maps the name of each patch point that could not be used to the reason.
    """

    def __init__(self, engine: Any, hooks: dict[str, Hook], guard: ErrorBoundary) -> None:
        self.missing: dict[str, str] = {}
        self._undo: list[Callable[[], None]] = []
        for point in PATCH_POINTS:
            if point.name not in hooks:
                continue
            owner = engine
            for name in point.path:
                owner = getattr(owner, name, None)
            if fault := why_unusable(point, owner):
                self.missing[point.name] = f"{fault} (unavailable: {point.provides})"
                continue
            self._install(owner, point.method, _wrapped(getattr(owner, point.method), point.name, hooks, guard))

    def _install(self, owner: Any, method: str, wrapped: Callable[..., Any]) -> None:
        """Shadow the method on the instance; the class, and other engines, stay as they are."""
        self._undo.append(functools.partial(restore, owner, method, vars(owner).get(method)))
        setattr(owner, method, wrapped)

    def undo(self) -> None:
        """Leave the engine as it was found."""
        while self._undo:
            self._undo.pop()()


def _wrapped(
    original: Callable[..., Any], name: str, hooks: dict[str, Hook], guard: ErrorBoundary
) -> Callable[..., Any]:
    if name in REPLACE_ARGUMENTS:
        return wrap_arguments(original, name, hooks[name], guard)
    if name in EVERY_STEP:
        return _with_off_check(guard.after(name, original, hooks[name]), name, guard)
    return wrap(original, name, hooks[name], guard, hooks.get(name + FAILED))


def restore(owner: Any, method: str, previous: Any) -> None:
    """Restore an attribute of an instance or class; ``previous`` None: it had none of its own."""
    if previous is None:
        delattr(owner, method)
    else:
        setattr(owner, method, previous)


def install(attach: Attach, guard: ErrorBoundary) -> list[str]:
    """Call ``attach`` for every engine that starts in this process. Idempotent.

    Wrapping ``EngineCore.__init__`` would be too late: vLLM loads plugins inside it.

    Returns:
        The methods that could not be patched, one message each.
    """
    module = importlib.import_module(MODULE)
    problems = [
        f"{MODULE}.{name}.run_busy_loop is missing"
        for name in LOOPS
        if not _wrap_class(getattr(module, name, None), "run_busy_loop", _loop, attach, guard)
    ]
    client = getattr(importlib.import_module(CLIENT_MODULE), "InprocClient", None)
    if not _wrap_class(client, "__init__", _inproc, attach, guard):
        problems.append(f"{CLIENT_MODULE}.InprocClient is missing")
    return problems


def install_in_workers(methods: dict[str, Callable[..., Any]]) -> None:
    """Add methods to the worker class of this process, for the engine core to call by name. Idempotent.

    vLLM loads plugins in each worker's process before it creates the worker.
    """
    owner = importlib.import_module(WORKER_MODULE).WorkerBase
    for name, method in methods.items():
        if name not in vars(owner):
            setattr(owner, name, method)
            _classes.append((owner, name, None))


def uninstall() -> None:
    """Undo ``install`` and ``install_in_workers``, for engines and workers that have not started yet."""
    while _classes:
        restore(*_classes.pop())


def _wrap_class(owner: Any, method: str, make: Callable[..., Any], attach: Attach, guard: ErrorBoundary) -> bool:
    original = vars(owner).get(method) if owner is not None else None
    if original is None:
        return False
    if (owner, method) not in [(o, m) for o, m, _ in _classes]:
        setattr(owner, method, make(original, attach, guard))
        _classes.append((owner, method, original))
    return True


def _loop(original: Callable[..., Any], attach: Attach, guard: ErrorBoundary) -> Callable[..., Any]:
    """Also encloses ``fault_tolerant_wrapper``: runs once per engine, however often the loop is re-entered."""

    @functools.wraps(original)
    def run_busy_loop(engine: Any, *args: Any, **kwargs: Any) -> Any:
        detach = guard.run("attach", attach, engine)
        try:
            return original(engine, *args, **kwargs)
        finally:
            if detach is not None:
                guard.run("detach", detach)

    return run_busy_loop


def _inproc(original: Callable[..., Any], attach: Attach, guard: ErrorBoundary) -> Callable[..., Any]:
    """The in-process engine has no loop. It lives as long as its client; the agent must not keep it alive."""

    @functools.wraps(original)
    def __init__(client: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(client, *args, **kwargs)
        detach = guard.run("attach", attach, client.engine_core)
        if detach is not None:
            weakref.finalize(client, guard.run, "detach", detach)

    return __init__
