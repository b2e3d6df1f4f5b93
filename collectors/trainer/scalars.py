"""Checks of the single values that a trainer passes. Each names its argument in an ``ArgumentError``."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping
from typing import Any

from rltop.collectors.contract.checked import ArgumentError, is_text, named, shown
from rltop.collectors.trainer.arrays import Argument, inspect

MAX_COUNT = 2**53
"""Largest step, update or version."""

MAX_SECONDS = 1e6
"""Longest time that is waited for."""

_DIGEST = re.compile(r"\w+(:[0-9a-f]{16}){1,2}")


@named
def count(name: str, value: Any, least: int = 0) -> int:
    """An integer from ``least`` that the wire carries."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        number = -1
    if not least <= number <= MAX_COUNT:
        raise ArgumentError(f"{name}: {shown(value)}; expected a whole number from {least}")
    return number


def version(value: Any) -> int | None:
    """A policy version, or None."""
    return None if value is None else count("policy_version", value)


@named
def number(name: str, value: Any) -> float | None:
    """A number, or None."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{name}: {shown(value)}; expected a number") from None


@named
def bound(name: str, value: Any, low: float, high: float) -> float | None:
    """A bound of the ratio, or None."""
    found = number(name, value)
    if found is not None and not low <= found <= high:
        raise ArgumentError(f"{name}: {shown(value)}; expected a bound of the ratio itself, from {low:g} to {high:g}")
    return found


@named
def seconds(name: str, value: Any) -> float:
    """A time to wait."""
    found = number(name, value)
    if found is None or math.isnan(found):
        raise ArgumentError(f"{name}: {shown(value)}; expected a number of seconds")
    return min(max(found, 0.0), MAX_SECONDS)


@named
def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ArgumentError(f"{name}: {shown(value)}; expected True or False")
    return bool(value)


@named
def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name}: {shown(value)}; expected one of {', '.join(choices)}")
    return value


@named
def path(name: str, value: Any) -> str:
    """A path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or "\0" in text:
        raise ArgumentError(f"{name}: {shown(value)}; expected a path")
    return text


@named
def items(name: str, values: Any) -> list[tuple[str, Any]]:
    """The items of a mapping whose keys are strings; none for None."""
    if values is None:
        return []
    if not isinstance(values, Mapping):
        raise ArgumentError(f"{name}: {shown(values)}; expected a dict")
    found = list(values.items())
    for key, _ in found:
        if not is_text(key):
            raise ArgumentError(f"{name}: name {shown(key)}; expected a string")
    return found


@named
def digest(name: str, value: Any) -> str:
    """The digest of one weight."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ArgumentError(f"{name}: {shown(value)}; expected a digest from digests.weight_digests")
    return value


@named
def metric(name: str, value: Any) -> Argument:
    """A single number, on any device."""
    scalar = inspect(name, value)
    if scalar.ragged or math.prod(scalar.shape) != 1:
        raise ArgumentError(f"{name}: {scalar.describe()}; expected a single number")
    return scalar
