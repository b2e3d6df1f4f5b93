"""Collectors: the part of rltop that runs inside engines and trainers. They never block or raise into their host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.collectors.trainer.collector import TrainerCollector

__all__ = ["TrainerCollector"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name == "TrainerCollector":  # imported on first use: engines that load the plugin don't need it
        from rltop.collectors.trainer.collector import TrainerCollector

        return TrainerCollector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
