"""Patches vLLM: the only file that names the vLLM methods that the collector wraps.

A patch wraps a method and never replaces its code. vLLM's exceptions pass unchanged. The collector's hook runs inside
the error boundary, after the original and with its arguments; hooks in ``REPLACE_ARGUMENTS`` run before it. If a patch
point is missing or has other parameters, one capability is lost and reported; nothing else changes.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary
from rltop.collectors.transport.on_import import when_imported

MODULE = "vllm.v1.engine.core"
"""The module of the engine core, loaded in every process that runs or starts an engine."""

CLIENT_MODULE = "vllm.v1.engine.core_client"

LOOPS = ("EngineCoreProc", "DPEngineCoreProc")
"""Classes that define ``run_busy_loop`` (the second overrides it). It is entered when the engine is complete."""

EXECUTOR_MODULE = "vllm.v1.executor.abstract"
"""Its ``Executor`` is created only where an engine core runs, after the plugins and before the weights are loaded."""

WORKER_MODULE = "vllm.v1.worker.worker_base"

Hook = Callable[..., Any]
"""Called after the original: ``hook(result, *args, **kwargs)``, with its arguments. See also ``REPLACE_ARGUMENTS``."""

FAILED = " failed"
"""Suffix of a patch point's name; its hook is called if the original raised: ``hook(error, *args, **kwargs)``."""

AFTER = " after"
"""Suffix of ``CALLERS_STEP``; its hook is called after the step."""

Attach = Callable[[Any], Callable[[], None]]
"""Called with a complete engine core; returns a function to call when the engine ends."""

Loading = Callable[[], None]
"""Called when this process begins to load an engine, or could not load it."""


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

CALLERS_STEP = PatchPoint(
    "caller's step",
    (),
    "step_fn",
    (),
    "the step boundary of an engine inside its caller's process, before each step that the caller requests",
    "0.32.0",
)

REJECT = PatchPoint(
    "reject",
    (),
    "_reject_add_while_paused",
    ("request",),
    "requests that a paused engine rejects before they reach its scheduler; vLLM before 0.33 queues them",
    "0.33.0",
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
    CALLERS_STEP,
    REJECT,
)

REPLACE_ARGUMENTS = frozenset({PAUSING.name})
"""Patch points whose hook runs before the original, ``hook(*args, **kwargs)``, and returns the arguments to pass
instead, or None to keep the caller's."""

EVERY_STEP = frozenset({STEP.name, UPDATE.name, SCHEDULE.name})
"""Patch points on the hot path, called in every engine step. Their hooks call no vLLM code."""

_classes: list[tuple[Any, str, Any]] = []
_waiting: list[Callable[[], None]] = []
"""What ``install`` did, and cancels what it will do once vLLM's modules are imported."""

log = logging.getLogger("rltop")

ESSENTIAL = ("step", "add")
"""Without these no rollouts are published."""


def wrap(
    original: Callable[..., Any], place: str, hook: Hook, guard: ErrorBoundary, on_failure: Hook | None = None
) -> Callable[..., Any]:
    """Return ``original`` followed by ``hook``, or by ``on_failure`` if it raised.

    Result and exceptions are the original's. ``functools.wraps`` is needed: vLLM converts the arguments of utility
    calls according to the signature of the method.
    """

    def idle() -> None:
        nonlocal hook, on_failure
        hook, on_failure = _no_hook, None

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

    wrapped.rltop_idle = idle  # type: ignore[attr-defined] # our own attribute
    return _with_off_check(wrapped, place, guard)


def wrap_arguments(original: Callable[..., Any], place: str, hook: Hook, guard: ErrorBoundary) -> Callable[..., Any]:
    """Return ``original`` with the arguments that ``hook`` returns, or the caller's if it returns None or fails."""

    def idle() -> None:
        nonlocal hook
        hook = _no_hook

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen = guard.run(place, functools.partial(hook, **kwargs) if kwargs else hook, *args)
        return original(*args, **kwargs) if chosen is None else original(*chosen)

    wrapped.rltop_idle = idle  # type: ignore[attr-defined] # our own attribute
    return _with_off_check(wrapped, place, guard)


def wrap_callers_step(
    engine: Any, original: Callable[..., Any], place: str, hooks: dict[str, Hook], guard: ErrorBoundary
) -> Callable[..., Any]:
    """Return ``original``, a step of an engine inside its caller's process, with a hook before and after it.

    The hook before it may run steps ahead of the caller's (``run_step``). Their outputs are held, and the caller's next
    calls return them, one step for each call.
    """
    before, after = hooks[place], hooks.get(place + AFTER)
    held: deque[tuple[Any, bool]] = deque()

    def run_ahead() -> None:
        outputs, executed = original()
        engine.post_step(model_executed=executed)
        held.append((outputs, False))  # False: the caller calls ``post_step`` as well

    def idle() -> None:
        nonlocal before, after
        before, after = _no_hook, None

    @functools.wraps(original)
    def wrapped() -> Any:
        try:
            guard.run(place, before)
        except HostFailure as failure:
            raise failure.error from failure.error.__cause__
        result = held.popleft() if held else original()
        if after is not None:
            guard.run(place, after)
        return result

    wrapped.rltop_run_ahead = run_ahead  # type: ignore[attr-defined] # our own attributes
    wrapped.rltop_held = held  # type: ignore[attr-defined]
    inner_is_off = getattr(original, "rltop_is_off", lambda: False)
    wrapped.rltop_idle = idle  # type: ignore[attr-defined]
    wrapped.rltop_is_off = lambda: guard.is_off(place) or inner_is_off()  # type: ignore[attr-defined]
    return wrapped


def run_step(engine: Any) -> None:
    """Run one step of the engine. Its outputs go the usual way to the front end."""
    step = getattr(engine, "_process_engine_step", None) or engine.step_fn.rltop_run_ahead
    step()


def _no_hook(*_args: Any, **_kwargs: Any) -> None:
    """Takes the place of a hook whose wrapper can't be removed."""


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
        self._undo: list[Callable[[], object]] = []
        for point in PATCH_POINTS:
            if point.name not in hooks:
                continue
            owner = engine
            for name in point.path:
                owner = getattr(owner, name, None)
            if fault := why_unusable(point, owner):
                self.missing[point.name] = f"{fault} (unavailable: {point.provides})"
                continue
            original = getattr(owner, point.method)
            if point is CALLERS_STEP:
                wrapped = wrap_callers_step(engine, original, point.name, hooks, guard)
            else:
                wrapped = _wrapped(original, point.name, hooks, guard)
            self._install(owner, point.method, wrapped)

    def _install(self, owner: Any, method: str, wrapped: Callable[..., Any]) -> None:
        """Shadow the method on the instance; the class, and other engines, stay as they are."""
        self._undo.append(functools.partial(remove, owner, method, wrapped, vars(owner).get(method)))
        setattr(owner, method, wrapped)

    def undo(self) -> None:
        """Leave the engine as it was found. A method that was wrapped again since keeps an idle wrapper of ours."""
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


def remove(owner: Any, method: str, wrapped: Any, previous: Any) -> bool:
    """Remove our wrapper of a method. If another tool has wrapped it since, ours stays inside and does nothing.

    Returns:
        Whether the method is ``previous`` again.
    """
    wrapped.rltop_idle()
    if vars(owner).get(method) is not wrapped:
        return False
    restore(owner, method, previous)
    return True


def at_next_boundary(engine: Any, call: Callable[[], None]) -> None:
    """Run ``call`` once, on the engine's thread, at its next step boundary. From any thread; ``call`` must not raise.

    The hook shadows a method of the instance and removes itself, so an engine without one pays nothing. A busy loop is
    woken, even if it is idle or paused; an engine inside its caller's process reaches the boundary before its next
    step, once its caller has taken the outputs of steps that were run ahead.
    """
    point = _boundary_of(engine)
    previous, original = vars(engine).get(point.method), getattr(engine, point.method)

    def idle() -> None:
        nonlocal call
        call = _no_hook

    def hook() -> bool:
        due = call
        is_removed = remove(engine, point.method, hooked, previous)
        due()
        return is_removed

    @functools.wraps(original)
    def after_message(*message: Any, **kwargs: Any) -> Any:
        result = original(*message, **kwargs)
        hook()
        return result

    @functools.wraps(original)
    def before_step() -> Any:
        if getattr(original, "rltop_held", None):
            return original()
        return getattr(engine, point.method)() if hook() else original()

    hooked: Any = after_message if point is BOUNDARY else before_step
    hooked.rltop_idle = idle
    setattr(engine, point.method, hooked)
    if point is BOUNDARY:
        wake(engine)


def _boundary_of(engine: Any) -> PatchPoint:
    return BOUNDARY if hasattr(engine, "input_queue") else CALLERS_STEP


def why_no_wake(engine: Any) -> str:
    """Why ``at_next_boundary`` can't be used on this engine; empty if it can."""
    return why_unusable(_boundary_of(engine), engine)


def wake(engine: Any) -> None:
    """Put a message on the input queue, on which an idle or paused busy loop blocks. From any thread.

    WAKEUP does not exist in vLLM 0.18; an abort of no request works in every version.
    """
    kinds = sys.modules["vllm.v1.engine"].EngineCoreRequestType
    message: tuple[Any, Any] = (kinds.WAKEUP, None) if hasattr(kinds, "WAKEUP") else (kinds.ABORT, [])
    engine.input_queue.put_nowait(message)


def _ignore() -> None:
    """For callers that don't follow engines that load."""


def install(attach: Attach, guard: ErrorBoundary, loading: Loading = _ignore, failed: Loading = _ignore) -> None:
    """Call ``attach`` for every engine that starts in this process, and ``loading`` before. Idempotent.

    ``failed`` is called if an engine inside its caller's process could not be loaded; other processes then end.
    Wrapping ``EngineCore.__init__`` would be too late: vLLM loads plugins inside it. Nothing of vLLM is imported: a
    process that loads no engine, such as the one in which vLLM inspects a model's class, would pay 0.7 s for it.
    """

    def loops() -> None:
        for name in LOOPS:
            owner = getattr(sys.modules[MODULE], name, None)
            if not _wrap_class(owner, "run_busy_loop", _loop, attach, guard):
                _log_missing(f"{MODULE}.{name}.run_busy_loop")

    def executor() -> None:
        _wrap_class(getattr(sys.modules[EXECUTOR_MODULE], "Executor", None), "__init__", _executor, loading, guard)

    def client() -> None:
        owner = getattr(sys.modules[CLIENT_MODULE], "InprocClient", None)
        if not _wrap_class(owner, "__init__", functools.partial(_inproc, failed=failed), attach, guard):
            _log_missing(f"{CLIENT_MODULE}.InprocClient")

    for module, call in ((MODULE, loops), (EXECUTOR_MODULE, executor), (CLIENT_MODULE, client)):
        _waiting.append(when_imported(module, guard, call))


def _log_missing(name: str) -> None:
    log.warning("rltop: %s is missing; engines of this kind are not observed", name)


def install_in_workers(methods: Callable[[], dict[str, Callable[..., Any]]], guard: ErrorBoundary) -> None:
    """Add methods to the worker class of this process, for the engine core to call by name. Idempotent.

    vLLM loads plugins in each worker's process before it creates the worker.
    """

    def add() -> None:
        owner = sys.modules[WORKER_MODULE].WorkerBase
        for name, method in methods().items():
            if name not in vars(owner):
                setattr(owner, name, method)
                _classes.append((owner, name, None))

    _waiting.append(when_imported(WORKER_MODULE, guard, add))


def uninstall() -> None:
    """Undo ``install`` and ``install_in_workers``, for engines and workers that have not started yet."""
    while _waiting:
        _waiting.pop()()
    while _classes:
        restore(*_classes.pop())


def _wrap_class(
    owner: Any, method: str, make: Callable[..., Any], attach: Attach | Loading, guard: ErrorBoundary
) -> bool:
    original = vars(owner).get(method) if owner is not None else None
    if original is None:
        return False
    if (owner, method) not in [(o, m) for o, m, _ in _classes]:
        setattr(owner, method, make(original, attach, guard))
        _classes.append((owner, method, original))
    return True


def _executor(original: Callable[..., Any], loading: Loading, guard: ErrorBoundary) -> Callable[..., Any]:
    @functools.wraps(original)
    def __init__(executor: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        guard.run("loading", loading)
        original(executor, *args, **kwargs)

    return __init__


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


def _inproc(original: Callable[..., Any], attach: Attach, guard: ErrorBoundary, failed: Loading) -> Callable[..., Any]:
    """The in-process engine has no loop. It lives as long as its client; the agent must not keep it alive."""

    @functools.wraps(original)
    def __init__(client: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            original(client, *args, **kwargs)
        except BaseException:
            guard.run("loading", failed)
            raise
        detach = guard.run("attach", attach, client.engine_core)
        if detach is not None:
            weakref.finalize(client, guard.run, "detach", detach)

    return __init__
