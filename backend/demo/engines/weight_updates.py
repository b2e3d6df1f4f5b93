"""Weight updates of a vLLM engine, and the version that sampled each token, for vLLM with and without versions.

vLLM 0.32 has a version label and reports per token which version sampled it. vLLM 0.26 has the same weight-transfer API
without the label: an update then carries its version in addition to its file, where a collector can read it, and
``TokenVersions`` tracks the tokens of every request at each update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class EngineWeights(Protocol):
    """The weights of one engine. Call only while it is paused or has no requests yet."""

    async def load(self, path: str, version: int) -> None:
        """Load ``path``, a safetensors file, as ``version``."""

    async def set_version(self, version: int) -> None:
        """Set the version without loading weights."""


def weights_of(engine: Any) -> EngineWeights:
    """For ``engine``, an ``AsyncLLM``, by the API that it has."""
    return Labelled(engine) if hasattr(engine, "update_weight_version") else Unlabelled(engine)


class Labelled:
    """vLLM with a version label (0.32)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def load(self, path: str, version: int) -> None:
        """As ``EngineWeights``."""
        await _transfer(self._engine, {"path": path}, str(version))

    async def set_version(self, version: int) -> None:
        """As ``EngineWeights``."""
        await self._engine.update_weight_version(str(version))


class Unlabelled:
    """vLLM without a label (0.26): every version is set by an update, also the first."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def load(self, path: str, version: int) -> None:
        """As ``EngineWeights``."""
        await _transfer(self._engine, {"path": path, "version": version})

    async def set_version(self, version: int) -> None:
        """Send an update without a file."""
        await _transfer(self._engine, {"version": version})


async def _transfer(engine: Any, info: dict[str, Any], *label: str) -> None:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    await engine.start_weight_update()
    await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
    await engine.finish_weight_update(*label)


class TokenVersions:
    """The version that sampled each token, tracked by the client that sends the updates.

    An update pauses the engine between two steps and delivers the sampled tokens, so a request's tokens before the
    engine resumes are of older weights, and those after it of the new ones.
    """

    def __init__(self) -> None:
        self._version = 0
        self._starts: dict[str, list[tuple[int, int]]] = {}

    def start(self, request: str) -> None:
        """A request starts."""
        self._starts[request] = [(0, self._version)]

    def update(self, version: int, sizes: Mapping[str, int]) -> None:
        """The weights are now ``version``; ``sizes`` has the token count of each open request."""
        self._version = version
        for request, size in sizes.items():
            self._starts[request].append((size, version))

    def finish(self, request: str, size: int) -> list[int]:
        """The version of each of a finished request's ``size`` tokens."""
        starts = self._starts.pop(request)
        ends = [start for start, _ in starts[1:]] + [size]
        return [version for (start, version), end in zip(starts, ends, strict=True) for _ in range(start, end)]
