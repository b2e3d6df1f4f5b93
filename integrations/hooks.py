"""Hooks: the functions of a framework that an adapter observes. Installs and removes them.

A ``Hook`` names a function, the parameters that the adapter reads, and the capability that depends on it. A hook that
does not fit the installed version of the framework costs one warning and that capability; nothing else changes. The
observers run inside an error boundary: a fault of theirs never reaches the framework.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.transport.error_boundary import ErrorBoundary

log = logging.getLogger("rltop")


@dataclass(frozen=True)
class Hook:
    """One function of a framework that an adapter observes.

    Attributes:
        name: of the place in the error boundary's counts, and of the hook in warnings.
        owner: where the function is looked up when the framework calls it: ``package.module`` or
            ``package.module:Class`` (imported on installation), or ``.path``, an attribute path from the root object;
            ``.`` is the root object itself.
        function: its name.
        parameters: names of parameters that it must have, in any order. Observers read arguments by these names.
        provides: what the adapter gets from it.
        verified: versions of the framework in which the function was read.
    """

    name: str
    owner: str
    function: str
    parameters: tuple[str, ...]
    provides: str
    verified: str


@dataclass
class Call:
    """One call of an observed function.

    Attributes:
        arguments: by parameter name, defaults included; ``self`` too if the hook is on a class. What ``**kwargs``
            collected is included by name.
        result: what the function returned; None before it ran. Observers may change the object, never replace it.
    """

    arguments: dict[str, Any]
    result: Any = None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


Observer = Callable[[Call], object]


class Hooks:
    """Hooks of one adapter in this process: installed by ``add``, removed by ``undo``.

    Args:
        guard: the adapter's error boundary.
        root: the object that owners like ``.path`` start from.

    Attributes:
        missing: why a hook could not be installed, by its name.
    """

    def __init__(self, guard: ErrorBoundary, root: Any = None) -> None:
        self.missing: dict[str, str] = {}
        self._guard = guard
        self._root = root
        self._active = True
        self._undo: list[Callable[[], None]] = []

    def add(self, hook: Hook, *, before: Observer | None = None, after: Observer | None = None) -> bool:
        """Call ``before`` and ``after`` around each call of the function. False, with a warning, if it does not fit.

        The function may be a coroutine function. ``after`` is not called if the function raises.
        """
        reason = self._guard.run(hook.name, self._try, hook, before, after)
        if reason != "":
            self.missing[hook.name] = reason or f"{hook.function} can't be wrapped"
            log.warning("rltop: %s: %s (unavailable: %s)", hook.name, self.missing[hook.name], hook.provides)
        return reason == ""

    def undo(self) -> None:
        """Restore every function; idempotent. A function that was wrapped again since keeps an idle wrapper."""
        self._active = False
        while self._undo:
            self._undo.pop()()

    def _try(self, hook: Hook, before: Observer | None, after: Observer | None) -> str:
        """Install one hook; why it does not fit, or empty."""
        try:
            owner = _resolve(hook.owner, self._root)
        except (ImportError, AttributeError) as error:
            return str(error)
        if reason := why_unusable(owner, hook):
            return reason
        self._install(owner, hook, before, after)
        return ""

    def _install(self, owner: Any, hook: Hook, before: Observer | None, after: Observer | None) -> None:
        previous = vars(owner).get(hook.function)
        kind = type(previous) if isinstance(previous, staticmethod | classmethod) else None
        original = previous.__func__ if kind is not None else getattr(owner, hook.function)
        wrapped = self._wrapped(original, hook.name, before, after)
        installed = wrapped if kind is None else kind(wrapped)
        setattr(owner, hook.function, installed)
        self._undo.append(functools.partial(_restore, owner, hook.function, installed, previous))

    def _wrapped(
        self, original: Callable[..., Any], place: str, before: Observer | None, after: Observer | None
    ) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
            if not self._active:
                return None
            call = self._guard.run(place, _call, signature, args, kwargs)
            if call is not None and before is not None:
                self._guard.run(place, before, call)
            return call

        def end(call: Call | None, result: Any) -> Any:
            if call is not None and after is not None:
                call.result = result
                self._guard.run(place, after, call)
            return result

        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
                call = begin(args, kwargs)
                return end(call, await original(*args, **kwargs))

            return wrapped_async

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            call = begin(args, kwargs)
            return end(call, original(*args, **kwargs))

        return wrapped


def _resolve(path: str, root: Any) -> Any:
    """The owner of a hook. Raises ``ImportError`` or ``AttributeError``, naming the part that is missing."""
    if path.startswith("."):
        owner, names = root, path[1:]
    else:
        module, _, names = path.partition(":")
        owner = importlib.import_module(module)
    for name in filter(None, names.split(".")):
        owner = getattr(owner, name)
    return owner


def why_unusable(owner: Any, hook: Hook) -> str:
    """Why the function of ``owner`` does not fit the hook; empty if it does."""
    function = getattr(owner, hook.function, None)
    if not callable(function):
        return f"{hook.function} is missing"
    try:
        found = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return f"{hook.function} has no signature"
    absent = [name for name in hook.parameters if name not in found]
    return f"{hook.function} takes {found}, without {', '.join(absent)}" if absent else ""


def _call(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
    return Call(arguments)


def _restore(owner: Any, name: str, installed: Any, previous: Any) -> None:
    """Restore an attribute; ``previous`` None: the owner had none of its own."""
    if vars(owner).get(name) is not installed:
        return
    if previous is None:
        delattr(owner, name)
    else:
        setattr(owner, name, previous)
