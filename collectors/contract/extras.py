"""What needs more than a light installation of rltop, by the missing module: the extra to install."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Extra:
    """An extra of the distribution. ``purpose``: what it is for, as the subject of a sentence."""

    name: str
    purpose: str

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install 'rltop[{self.name}]'"


HUB, TUI = Extra("hub", "measuring"), Extra("tui", "the dashboard")

EXTRAS = {"numba": HUB, "textual": TUI, "rich": TUI}
"""By top-level module. ``rich`` comes with ``textual``."""


def missing(module: str | None) -> str:
    """One line that says which extra has ``module``; empty if none has it."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    return "" if extra is None else f"{extra.purpose} needs {module}, which is not installed here: {extra.command}"


def is_installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None
