"""The version of the weights that the arguments of an update call carry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rltop.collectors.vllm.weight_journal import label_version

VERSION_KEYS = ("weight_version", "policy_version", "version", "step")
"""Keys of ``update_info`` that may hold the caller's version number."""

VARIABLE = "RLTOP_VERSION_ARGUMENT"
"""Environment variable with the name of the argument that carries the version, or its position counted from 0."""


def version_in(args: Any, kwargs: Any, environ: Mapping[str, str] = os.environ) -> int | None:
    """The version in a call's arguments; None if there is none.

    The argument named by ``VARIABLE`` may be an integer, or a label or path that ends in one. It is looked up by
    keyword, by position, and within arguments that are dictionaries.
    """
    named, args = environ.get(VARIABLE, ""), args or ()
    if named.isdecimal():
        return label_version(args[int(named)]) if int(named) < len(args) else None
    if named:
        found = (box[named] for box in boxes(args, kwargs) if named in box)
        return label_version(next(found, None))
    info = kwargs.get("update_info") if isinstance(kwargs, dict) else None
    stated = (info[key] for key in VERSION_KEYS if key in info) if isinstance(info, dict) else ()
    return next((label_version(value) for value in stated if isinstance(value, int | str)), None)


def boxes(args: Any, kwargs: Any) -> list[dict[str, Any]]:
    """The keyword arguments, and all arguments that are dictionaries."""
    named = kwargs if isinstance(kwargs, dict) else {}
    return [named, *(value for value in (*args, *named.values()) if isinstance(value, dict))]
