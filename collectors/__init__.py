"""Collectors: the part of rltop that runs inside engines and trainers. They never block or raise into their host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.collectors.trainer.collector import TrainerCollector
    from rltop.collectors.vllm.weight_journal import weights_updated

__all__ = ["TrainerCollector", "weights_updated"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name == "TrainerCollector":  # imported on first use: engines that load the plugin don't need it
        from rltop.collectors.trainer.collector import TrainerCollector

        return TrainerCollector
    if name == "weights_updated":
        from rltop.collectors.vllm.weight_journal import weights_updated

        return weights_updated
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
