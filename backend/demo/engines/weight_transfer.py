"""A backend for vLLM's weight-transfer API that reads a file; it runs in the engine's workers.

vLLM 0.26 and 0.32 have backends for GPUs only, but their registry is public. This one reads a safetensors file,
normally in /dev/shm, and works on CPUs too. Importing the module registers it; vLLM imports it in every worker because
``worker_extension_cls`` names ``WorkerExtension``.

On the CPU a linear layer is packed for oneDNN and its ``weight`` is emptied, so new weights must go through vLLM's
layerwise reload, which unpacks, loads and packs the layer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "rltop_file"
"""Name of the backend in ``WeightTransferConfig``."""


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc] # vLLM's base has no types here
    """No parameters."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc] # vLLM's base has no types here
    """An update.

    Attributes:
        path: a safetensors file with the whole model under its checkpoint names; empty: nothing is loaded.
        version: version of the weights, for collectors of a vLLM that has no label itself.
    """

    path: str = ""
    version: int | None = None


class FileWeightTransfer(WeightTransferEngine):  # type: ignore[misc] # vLLM's base has no types here
    """Loads whole checkpoints from a file while the engine is paused."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to prepare."""

    def start_weight_update(self) -> None:
        """Nothing to do: ``receive_weights`` has the whole update."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the file. Overridden because the base class synchronises an accelerator even if there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Unpack the layers, load the file, pack them again."""
        if not update_info.path:
            return
        initialize_layerwise_reload(self.model)
        self.model.load_weights(load_file(update_info.path).items())
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _pack_tied_head(self.model)

    def finish_weight_update(self) -> None:
        """Nothing to do."""

    def shutdown(self) -> None:
        """Nothing to release."""

    @staticmethod
    def trainer_send_weights(iterator: Iterator[tuple[str, torch.Tensor]], trainer_args: dict[str, str]) -> None:
        """Write the file ``trainer_args["path"]``: the trainer's side, which vLLM 0.26 requires of a backend."""
        save_file(dict(iterator), trainer_args["path"])


def _pack_tied_head(model: Any) -> None:
    """Pack a head that shares the embedding's weight: layerwise reload (0.32) skips it and keeps the old head."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


class WorkerExtension:
    """Mixed into vLLM's worker by ``worker_extension_cls``."""

    model_runner: Any

    def rltop_demo_slow_down(self, seconds: float) -> None:
        """Delay every forward pass by ``seconds``, as on a contended machine."""
        execute = self.model_runner.execute_model

        def delayed(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return execute(*args, **kwargs)

        self.model_runner.execute_model = delayed


WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransfer)
