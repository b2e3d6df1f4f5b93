"""Worker methods that load weights in the order of calls of known frameworks, for engines on the CPU.

These are doubles with the frameworks' names and calls of vLLM, as read in the sources that the sections name (August
2026); ``published_workers`` runs the frameworks' own classes where they work without CUDA. Tensors come from a file
instead of another process. vLLM's CPU build packs linear layers, so what a framework loads directly needs a layerwise
reload around it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rltop.collectors import weights_updated


class Extension:
    """Mixed into vLLM's worker by ``worker_extension_cls``."""

    model_runner: Any

    # --- OpenRLHF 0.11, trainer/ray/vllm_worker_wrap.py: one call per parameter ---------------------------------------

    def update_weight(self, name: str, path: str, first: bool, last: bool) -> None:
        if first:
            initialize_layerwise_reload(self.model_runner.model)
        self.model_runner.model.load_weights(weights=[(name, load_file(path)[name])])
        if last:
            self._finalize()

    # --- PipelineRL, vllm1.py: one call within pause(keep) and resume, one load per tensor; version in JSON ---

    def receive_weight_update(self, request: dict[str, Any]) -> None:
        initialize_layerwise_reload(self.model_runner.model)
        for name, tensor in load_file(request["path"]).items():
            self.model_runner.model.load_weights([(name, tensor)])
        self._finalize()

    # --- verl 0.9, workers/rollout/vllm_rollout/utils.py, and NeMo-RL, generation/vllm/vllm_backend.py: one call,
    # a load per bucket, then all is processed. NeMo-RL returns False after a failure instead of raising ----

    def update_weights_from_ipc(self, path: str) -> None:
        initialize_layerwise_reload(self.model_runner.model)
        tensors = list(load_file(path).items())
        for start in range(0, len(tensors), 7):
            self.model_runner.model.load_weights(tensors[start : start + 7])
        self._finalize()

    update_weights_via_ipc_zmq = update_weights_from_ipc

    # --- prime-rl, inference/vllm/worker/filesystem.py: one layerwise reload; the path has the version

    def update_weights_from_path(self, path: str) -> None:
        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            yield from load_file(f"{path}/model.safetensors").items()

        initialize_layerwise_reload(self.model_runner.model)
        self.model_runner.model.load_weights(weights())
        self._finalize()

    # --- SkyRL 0.3, inference_servers/new_inference_worker_wrap.py: start, chunks, finish under names of its own ------

    def skyrl_start_weight_update(self, is_checkpoint_format: bool = True) -> None:
        self.checkpoint_format = is_checkpoint_format
        if is_checkpoint_format:
            initialize_layerwise_reload(self.model_runner.model)

    def update_weights_ipc(self, path: str, names: list[str]) -> None:
        model, tensors = self.model_runner.model, load_file(path)
        if self.checkpoint_format:
            model.load_weights(weights=[(name, tensors[name]) for name in names])
        else:
            with torch.no_grad():  # a layerwise reload leaves parameters that require a gradient
                for name in names:
                    model.get_parameter(name).copy_(tensors[name])

    def skyrl_finish_weight_update(self) -> None:
        if self.checkpoint_format:
            self._finalize()

    # --- others -------------------------------------------------------------------------------------------------------

    def load_and_state(self, path: str, version: int) -> None:
        self.update_weights_from_ipc(path)
        weights_updated(version)

    def load_half_and_fail(self, path: str) -> None:
        names = [name for name in load_file(path) if "norm" in name]
        self.model_runner.model.load_weights([(name, load_file(path)[name]) for name in names])
        raise RuntimeError("the sender disappeared")

    def load_and_fail_on(self, rank: int, path: str) -> None:
        self.update_weights_from_ipc(path)
        if torch.distributed.get_rank() == rank:
            raise RuntimeError(f"the sender of rank {rank} disappeared")

    def copy_data(self, path: str, name: str) -> None:
        self.model_runner.model.get_parameter(name).data.copy_(load_file(path)[name])

    def nothing(self) -> None: ...

    def _finalize(self) -> None:
        finalize_layerwise_reload(self.model_runner.model, self.model_runner.model_config)
