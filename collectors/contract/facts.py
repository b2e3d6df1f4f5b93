"""Converts facts about an engine or a trainer to text, so that equal values give equal text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rltop.collectors.contract.checked import ArgumentError, is_text, named, shown

MAX_FACTS = 64
MAX_CHARS = 200
"""Bounds on a trainer's facts, which are shown in a table."""


def as_text(value: Any) -> str | None:
    """The text of a fact: ``float32`` for a torch or numpy dtype, ``on`` or ``off`` for a bool, ``0.7`` for a number.

    None, the absence of a fact, stays None.
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


def checked_facts(facts: Mapping[Any, Any]) -> dict[str, str | None]:
    """Convert a caller's facts to text; None removes a fact.

    Raises:
        ArgumentError: more than ``MAX_FACTS``, a name that is not an identifier, or a value that is not finite, empty,
            longer than ``MAX_CHARS`` or can't be encoded.
    """
    if len(facts) > MAX_FACTS:
        raise ArgumentError(f"facts: {len(facts)}; at most {MAX_FACTS}")
    for name in facts:
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_CHARS:
            raise ArgumentError(f"fact {shown(name)}: expected a name like temperature or head_dtype")
    return {name: _checked(f"fact {name}", value) for name, value in facts.items()}


@named
def _checked(name: str, value: Any) -> str | None:
    text = as_text(value)
    wrong = isinstance(value, float) and not math.isfinite(value)
    if wrong or (text is not None and not (0 < len(text) <= MAX_CHARS and is_text(text))):
        raise ArgumentError(f"{name}: {shown(value)}; expected a finite number or 1 to {MAX_CHARS} characters")
    return text
