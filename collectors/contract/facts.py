"""Facts that an engine or a trainer states about itself, as text: the same value is always the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_FACTS = 64
MAX_CHARS = 200
"""Bounds on what a trainer may state: facts are for a table, not for a log."""


def as_text(value: Any) -> str | None:
    """``float32`` for a dtype of torch or numpy, ``on`` and ``off`` for a truth value, ``0.7`` for a number.

    None, which no fact is, stays None.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, type):
        return value.__name__
    return " ".join(str(value).split()).removeprefix("torch.")


def stated(facts: Mapping[Any, Any]) -> dict[str, str | None]:
    """A person's facts as text; None takes one back.

    Raises:
        ValueError: too many, a name that is no identifier, or a value that is no fact: not finite, empty, or too long.
    """
    if len(facts) > MAX_FACTS:
        raise ValueError(f"{len(facts)} facts; at most {MAX_FACTS}")
    found: dict[str, str | None] = {}
    for name, value in facts.items():
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_CHARS:
            raise ValueError(f"fact {str(name)[:MAX_CHARS]!r}: expected a name like temperature or head_dtype")
        text = as_text(value)
        wrong = isinstance(value, float) and not math.isfinite(value)
        if wrong or (text is not None and not 0 < len(text) <= MAX_CHARS):
            raise ValueError(
                f"fact {name}: {str(value)[:40]!r}; expected a finite number or 1 to {MAX_CHARS} characters"
            )
        found[name] = text
    return found
