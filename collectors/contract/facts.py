"""Converts facts about an engine or a trainer to text, so that equal values give equal text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_FACTS = 64
MAX_CHARS = 200
"""Bounds on a trainer's facts, which are shown in a table."""


def as_text(value: Any) -> str | None:
    """The text of a fact: ``float32`` for a dtype of torch or numpy, ``on`` or ``off`` for a bool, ``0.7`` for a number.

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
        ValueError: more than ``MAX_FACTS``, a name that is not an identifier, or a value that is not finite, empty or
            longer than ``MAX_CHARS``.
    """
    if len(facts) > MAX_FACTS:
        raise ValueError(f"{len(facts)} facts; at most {MAX_FACTS}")
    texts: dict[str, str | None] = {}
    for name, value in facts.items():
        if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_CHARS:
            raise ValueError(f"fact {str(name)[:MAX_CHARS]!r}: expected a name like temperature or head_dtype")
        text = as_text(value)
        wrong = isinstance(value, float) and not math.isfinite(value)
        if wrong or (text is not None and not 0 < len(text) <= MAX_CHARS):
            raise ValueError(
                f"fact {name}: {str(value)[:40]!r}; expected a finite number or 1 to {MAX_CHARS} characters"
            )
        texts[name] = text
    return texts
