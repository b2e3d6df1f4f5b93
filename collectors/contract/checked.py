"""Checks of what a host passes: whatever an argument's own code raises becomes an error that names the argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_SHOWN = 80
"""Characters of a value in a message."""


class ArgumentError(ValueError):
    """An argument is wrong; the message begins with its name."""


def named(check: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """Let ``check``, whose first argument is the name of what it checks, raise only ``ArgumentError``.

    A host may pass any object, and reading one may run its code. ``MemoryError`` passes: the argument is not at fault.
    """

    @functools.wraps(check)
    def checked(name: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return check(name, *args, **kwargs)
        except (ArgumentError, MemoryError):
            raise
        except Exception as error:
            raise ArgumentError(f"{name}: it can't be read: {shown(error)}") from error

    return checked


def shown(value: Any) -> str:
    """A value for messages; its type, if its own code can't print it."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - its code is the host's
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode, as messages do."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
