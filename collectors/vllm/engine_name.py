"""The id of an engine, as the hub and its users see it. Standard library only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from rltop.collectors.vllm.in_process import launcher_place


def engine_id(engine: Any, environ: Mapping[str, str] = os.environ) -> str:
    """``RLTOP_ENGINE``, else ``<short host>-<pid>``; with ``/dp<rank>`` if several data-parallel ranks share the name.

    vLLM makes the ranks of a dense model independent (``data_parallel_size`` reads 1 again) but keeps their index, and
    the coordinator, which exists only with several ranks. The replicas of an external launcher count as such ranks.
    """
    parallel = engine.vllm_config.parallel_config
    name = environ.get("RLTOP_ENGINE") or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
    if place := launcher_place(engine, environ):
        return f"{name}/dp{place.replica}" if place.replicas > 1 else name
    rank = getattr(engine, "engine_index", None) or getattr(parallel, "data_parallel_index", 0) or 0
    several = getattr(parallel, "data_parallel_size", 1) > 1 or getattr(engine, "has_coordinator", False)
    return f"{name}/dp{rank}" if rank or several else name
