"""A TRL script as a user writes it, on the CPU; run as a process: ``python -m tests.support.trl_live MODEL OUT [URL]``.

With URL in server mode, else in colocate mode. It trains until a file ``stop`` exists in OUT. While a file ``stale``
exists, weight syncs do nothing: a fault inside TRL, which believes that they happened. OUT gets TRL's log, one JSON
object per line.

On the CPU two things differ from a GPU, and nothing else: vLLM keeps linear layers unpacked, so that TRL's own sync can
load into them (colocate), and TRL's client sends a file instead of using NCCL (server).
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import rltop.integrations.trl
from tests.support.trl_runs import trainer

ROWS = 32
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def keep_layers_unpacked() -> None:
    """Compute linear layers with torch; of TRL, only launch options that a machine without a compiler needs."""
    import torch
    import trl.generation.vllm_generation as host
    from vllm.model_executor.layers import utils

    def unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = unpacked
    host.LLM = functools.partial(host.LLM, enforce_eager=True, block_size=32, dtype="float32")


def send_files(directory: Path) -> None:
    """TRL's HTTP calls in TRL's order, with a file instead of NCCL."""
    from safetensors.torch import save_file
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(client: Any, device: Any = 0) -> None:
        client._post(f"{client.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    def update_named_params(client: Any, metadata: Any, named_params: Iterator[tuple[str, Any]]) -> None:
        path = directory / "weights.safetensors"
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in named_params}, path)
        client._start_weight_update()
        client._post(f"{client.base_url}/update_weights", json={"update_info": {"path": str(path)}})
        client._finish_weight_update()

    VLLMClient.init_communicator = init_communicator
    VLLMClient.update_named_params = update_named_params


def break_syncs(made: Any, stale: Path) -> None:
    """The fault. In server mode the sync fails to send, in colocate mode to load."""
    generation = made.vllm_generation
    named_params = generation._iter_named_params

    def none_if_stale() -> Iterator[tuple[str, Any]]:
        return iter(()) if stale.exists() else named_params()

    generation._iter_named_params = none_if_stale


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Writes TRL's log, and ends training on request."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        with (self._directory / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": state.global_step - 1, **logs}) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= (self._directory / "stop").exists()


def main(model: Path, directory: Path, url: str | None = None) -> None:
    server = {"vllm_mode": "server", "vllm_server_base_url": url} if url else {}
    if url:
        send_files(directory)
    else:
        keep_layers_unpacked()
    made, _ = trainer(
        model, directory, per_device_train_batch_size=ROWS, num_generations=4, max_steps=1000, learning_rate=1e-3,
        vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=100.0, **server,
    )  # fmt: skip
    rltop.integrations.trl.watch(made, run="trl")
    break_syncs(made, directory / "stale")
    made.add_callback(Reporter(directory))
    made.train()


if __name__ == "__main__":
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR"} | ENGINE
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
