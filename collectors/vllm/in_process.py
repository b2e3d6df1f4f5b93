"""Engines inside their caller's process: ``LLM`` with VLLM_ENABLE_V1_MULTIPROCESSING=0 or an external launcher.

Such an engine has no loop and no input queue: its caller's thread runs a step for each call of ``LLMEngine.step``. The
step boundary is before each of those steps, so a command waits while the caller does other work, such as training.

With an external launcher (torchrun) each rank is a process with an engine of its own. Ranks that share one model, by
tensor or pipeline parallelism, schedule the same requests independently and have to decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

LAUNCHED = "ExecutorWithExternalLauncher"
"""The executor of engines that an external launcher starts, or its base."""


class LauncherPlace(NamedTuple):
    """The place of an engine among the ranks of an external launcher.

    Attributes:
        replica: index of the model replica that the engine's rank belongs to.
        replicas: number of replicas.
        rank: rank of the engine in its replica; all ranks of a replica process the same requests.
    """

    replica: int
    replicas: int
    rank: int


def is_in_process(engine: Any) -> bool:
    """Whether the engine's steps are run by its caller's thread. From any thread."""
    return not hasattr(engine, "input_queue")


def launcher_place(engine: Any, environ: Mapping[str, str] = os.environ) -> LauncherPlace | None:
    """Where an external launcher placed the engine; None if another executor runs it."""
    if not any(base.__name__ == LAUNCHED for base in type(engine.model_executor).__mro__):
        return None
    parallel = engine.vllm_config.parallel_config
    size = max(_ranks_in_lockstep(engine) // parallel.data_parallel_size, 1)
    rank = int(environ.get("RANK", "0"))
    return LauncherPlace(rank // size, int(environ.get("WORLD_SIZE", "1")) // size, rank % size)


def repeats_another(engine: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the engine processes the same requests as the first rank of its replica, which reports them."""
    place = launcher_place(engine, environ)
    return place is not None and place.rank > 0


def why_no_switch(engine: Any) -> str:
    """Why an engine inside its caller's process must not be switched; empty if it may be."""
    if launcher_place(engine) is not None and (ranks := _ranks_in_lockstep(engine)) > 1:
        return f"{ranks} ranks of an external launcher schedule in lockstep, and a switch would separate them"
    return ""


def _ranks_in_lockstep(engine: Any) -> int:
    """Ranks that have to step together; vLLM counts data-parallel ranks in ``world_size`` with an external launcher."""
    return int(getattr(engine.vllm_config.parallel_config, "world_size", 1))
