"""How the demo moves a vLLM engine to new weights, and which version sampled which token, on the vLLM that is there.

vLLM 0.32 puts a label on an engine's weights and tells of every token the label it was sampled under. vLLM 0.26 has the
same weight-transfer API without a label: there each update names its version beside its file, where whoever watches the
calls can read it, and ``VersionMarks`` keeps what every request had when an update came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class EngineWeights(Protocol):
    """Of one engine. To be called while it is paused, or before it has taken work."""

    async def begin(self) -> None:
        """Say that the weights it was started with are version 0."""

    async def load(self, path: str, version: int) -> None:
        """Load ``path``, a safetensors file, as ``version``."""

    async def claim(self, version: int) -> None:
        """Say that this is ``version`` and load nothing."""


def weights_of(engine: Any) -> EngineWeights:
    """By what ``engine``, an ``AsyncLLM``, has."""
    return Labelled(engine) if hasattr(engine, "update_weight_version") else Unlabelled(engine)


class Labelled:
    """vLLM that labels its weights (0.32)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def begin(self) -> None:
        """As ``EngineWeights``."""
        await self.claim(0)

    async def load(self, path: str, version: int) -> None:
        """As ``EngineWeights``."""
        await _transfer(self._engine, {"path": path}, str(version))

    async def claim(self, version: int) -> None:
        """As ``EngineWeights``."""
        await self._engine.update_weight_version(str(version))


class Unlabelled:
    """vLLM without labels (0.26): a version is known by the update that brought it, also the first."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def begin(self) -> None:
        """As ``EngineWeights``."""
        await self.claim(0)

    async def load(self, path: str, version: int) -> None:
        """As ``EngineWeights``."""
        await _transfer(self._engine, {"path": path, "version": version})

    async def claim(self, version: int) -> None:
        """An update that brings nothing."""
        await _transfer(self._engine, {"version": version})


async def _transfer(engine: Any, info: dict[str, Any], *label: str) -> None:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    await engine.start_weight_update()
    await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
    await engine.finish_weight_update(*label)


class VersionMarks:
    """Which version sampled which token, as far as the one who makes the updates can tell.

    An update pauses the engine between two steps and lets go what was sampled, so that what a request has before the
    engine resumes is of older weights, and what it gets then is of the new ones.
    """

    def __init__(self) -> None:
        self._version = 0
        self._starts: dict[str, list[tuple[int, int]]] = {}

    def open(self, request: str) -> None:
        """A request begins."""
        self._starts[request] = [(0, self._version)]

    def move(self, version: int, sizes: Mapping[str, int]) -> None:
        """The weights are of ``version`` now; ``sizes`` has the tokens of each open request."""
        self._version = version
        for request, size in sizes.items():
            self._starts[request].append((size, version))

    def close(self, request: str, size: int) -> list[int]:
        """The version of each of the ``size`` tokens that the request ended with."""
        starts = self._starts.pop(request)
        ends = [start for start, _ in starts[1:]] + [size]
        return [version for (start, version), end in zip(starts, ends, strict=True) for _ in range(start, end)]
