"""Versions of this process, as a collector states them to the hub."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys

MODULES = ("torch", "vllm", "zmq", "numpy")
"""Modules whose versions matter; one that the host has not loaded is not stated, and not loaded for that."""


def software() -> dict[str, str]:
    """Versions of rltop, Python and the loaded modules by name. Thread-safe, never raises."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in MODULES}
    known = {"rltop": _rltop(), "python": platform.python_version()}
    return known | {name: str(version)[:80] for name, version in loaded.items() if version is not None}


@functools.cache
def _rltop() -> str:
    try:
        return importlib.metadata.version("rltop")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"
