"""The versions that workers of PipelineRL and prime-rl are given are stated to the engine collector."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator

import pytest

from rltop.collectors.vllm.weight_journal import JOURNAL
from rltop.integrations import engine

SOURCES = {
    "pipelinerl/vllm1.py": (
        "class WorkerExtension:\n    def receive_weight_update(self, request_json): self.got = request_json"
    ),
    "prime_rl/inference/vllm/worker/filesystem.py": (
        "class FileSystemWeightUpdateWorker:\n"
        "    def update_weights_from_path(self, weight_path): self.got = weight_path"
    ),
    "prime_rl/inference/vllm/worker/nccl.py": (
        "class NCCLWeightUpdateWorker:\n    def update_weights_from_path(self, weight_dir): self.got = weight_dir"
    ),
}
"""The methods with the parameters that the frameworks' sources have; ``test_catalogue`` compares those."""


@pytest.fixture(scope="module")
def frameworks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("frameworks")
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipelinerl", "prime_rl")]:
        del sys.modules[name]


@pytest.mark.usefixtures("frameworks")
@pytest.mark.parametrize(
    ("module", "owner", "method", "argument", "version"),
    [
        ("pipelinerl.vllm1", "WorkerExtension", "receive_weight_update", json.dumps({"version": 4096}), 4096),
        ("prime_rl.inference.vllm.worker.filesystem", "FileSystemWeightUpdateWorker", "update_weights_from_path",
         "/runs/broadcasts/step_12", 12),
        ("prime_rl.inference.vllm.worker.nccl", "NCCLWeightUpdateWorker", "update_weights_from_path",
         "/runs/broadcasts/step_13", 13),
    ],
)  # fmt: skip
def test_the_version_of_an_update_is_stated(module: str, owner: str, method: str, argument: str, version: int) -> None:
    engine.register()
    engine.register()
    worker = getattr(importlib.import_module(module), owner)()
    before = JOURNAL.statement()
    getattr(worker, method)(argument)
    assert worker.got == argument
    assert JOURNAL.statement() == before._replace(number=before.number + 1, version=version)


@pytest.mark.usefixtures("frameworks")
@pytest.mark.parametrize("argument", ["not json", json.dumps([1]), json.dumps({"version": None})])
def test_an_update_without_a_version_passes_as_before(argument: str) -> None:
    engine.register()
    worker = importlib.import_module("pipelinerl.vllm1").WorkerExtension()
    before = JOURNAL.statement()
    worker.receive_weight_update(argument)
    assert worker.got == argument
    assert JOURNAL.statement() == before
