"""The worker's half of the demo's weight updates: a backend for vLLM's weight-transfer API that reads a file.

vLLM 0.26 and 0.32 have backends for GPUs only, but the name of a backend is free and the registry is public. This one
reads a safetensors file, normally in /dev/shm, and serves CPUs as well. Importing the module registers it; vLLM imports
it in every worker because ``worker_extension_cls`` names ``WorkerExtension``.

On the CPU a loaded linear layer is packed for oneDNN and its ``weight`` is left empty, so new weights must go through
vLLM's layerwise reload, which unpacks, loads and packs again.
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
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc] # vLLM's base has no types here
    """``path``: a safetensors file with the whole model, under the names of its checkpoint; empty: all stays as it is.

    ``version``: what it is, for whoever watches the calls of a vLLM that keeps no label itself.
    """

    path: str = ""
    version: int | None = None


class FileWeightTransfer(WeightTransferEngine):  # type: ignore[misc] # vLLM's base has no types here
    """Loads whole checkpoints from a file between two steps of a paused engine."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to prepare."""

    def start_weight_update(self) -> None:
        """Nothing: ``receive_weights`` has all of an update in hand."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load the file. Overridden because the base synchronises an accelerator also where none is."""
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
        """Nothing, as at the start."""

    def shutdown(self) -> None:
        """Nothing is held."""

    @staticmethod
    def trainer_send_weights(iterator: Iterator[tuple[str, torch.Tensor]], trainer_args: dict[str, str]) -> None:
        """Write the file ``trainer_args["path"]``: the trainer's half, which vLLM 0.26 wants a backend to have."""
        save_file(dict(iterator), trainer_args["path"])


def _pack_tied_head(model: Any) -> None:
    """Pack a head that shares the embedding's weight: layerwise reload (0.32) forgets it and keeps the old head."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


class WorkerExtension:
    """Mixed into vLLM's worker by ``worker_extension_cls``; importing its module registered the backend."""

    model_runner: Any

    def rltop_demo_slow_down(self, seconds: float) -> None:
        """Have every pass of the model take so much longer, as beside a neighbour that takes the machine's time."""
        execute = self.model_runner.execute_model

        def slowly(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return execute(*arguments, **named)

        self.model_runner.execute_model = slowly


WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransfer)
