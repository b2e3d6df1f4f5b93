"""Weight updates in flight from a trainer with its own GPU, by vLLM's weight-transfer API over NCCL.

    python -m bench.gpu_updates [--by file] [--updates N] [--out DIR]

The engine is on the first GPU, the trainer's weights on the second. Requests run while the engine is paused, receives
every tensor and resumes. Checks: the version of every token against the tokens at the front end when the engine
resumed; tokens and logprobs against the front end's; a digest of the engine's weights against the trainer's of the same
version, and of the version before. ``--by file`` moves the weights by the demo's file backend, also on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tests.support.harness import HubStandIn
from tests.support.live_engine import DEVICE, ENVIRONMENT, MODEL, ON_CPU, LiveEngine
from tests.support.parallel import beside_trainer, digest, moved, tensors_of
from tests.support.switchboard import ENGINE, arrived, check_same, fresh, prompt, switch

REQUESTS = 48
LENGTH, TOKENS = (512, 440) if ON_CPU else (4096, 2400)
"""Length of the context and of each answer. The digest of a larger model takes as long as some hundred steps."""

APART = 60
"""Tokens per request between two updates."""

SETTLED_S = 0.3
"""After this long without a token, the front end has everything that was sampled before a pause."""


class ByFile:
    """The demo's backend: a safetensors file."""

    def __init__(self, folder: Path) -> None:
        from vllm.config import WeightTransferConfig

        self._path = folder / "update.safetensors"
        self.launch: dict[str, Any] = {
            "worker_extension_cls": "rltop.backend.demo.engines.weight_transfer.WorkerExtension",
            "weight_transfer_config": WeightTransferConfig(backend="rltop_file"),
        }

    def meet(self, engine: LiveEngine) -> None:
        """Nothing to agree on."""
        _init(engine, {}).result(120)

    def send(self, engine: LiveEngine, tensors: Mapping[str, Any]) -> None:
        """Write the file, and have it read."""
        from safetensors.torch import save_file

        save_file(dict(tensors), str(self._path))
        _update(engine, {"path": str(self._path)}).result(120)


class ByNccl:
    """vLLM's own backend: a broadcast from the trainer's GPU."""

    def __init__(self, packed: bool) -> None:
        from vllm.config import WeightTransferConfig

        self._packed = packed
        self.launch: dict[str, Any] = {"weight_transfer_config": WeightTransferConfig(backend="nccl")}
        self._group: Any = None

    def meet(self, engine: LiveEngine) -> None:
        """Trainer and worker make a group of two; each waits for the other."""
        import torch
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        where = {"master_address": "127.0.0.1", "master_port": _free_port(), "world_size": 2}
        waiting = _init(engine, where | {"rank_offset": 1})
        torch.cuda.set_device(1)
        self._group = NCCLWeightTransferEngine.trainer_init(where)
        waiting.result(120)

    def send(self, engine: LiveEngine, tensors: Mapping[str, Any]) -> None:
        """Broadcast all tensors while the worker receives them."""
        import torch
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        about = {
            "names": list(tensors),
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "packed": self._packed,
        }
        waiting = _update(engine, about)
        how = {"group": self._group, "packed": self._packed}
        NCCLWeightTransferEngine.trainer_send_weights(iter(tensors.items()), how)
        torch.cuda.synchronize()
        waiting.result(120)


Way = ByFile | ByNccl


def _init(engine: LiveEngine, info: dict[str, Any]) -> Future[None]:
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    return engine.start(engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info)))


def _update(engine: LiveEngine, info: dict[str, Any]) -> Future[None]:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    return engine.start(engine.llm.update_weights(WeightTransferUpdateRequest(update_info=info)))


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settle(engine: LiveEngine, names: list[str]) -> dict[str, int]:
    """How many tokens of each request the front end has, once no more come."""
    sizes, since = {name: len(engine.progress[name]) for name in names}, time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        time.sleep(0.02)
        now = {name: len(engine.progress[name]) for name in names}
        if now != sizes:
            sizes, since = now, time.monotonic()
    return sizes


def go(engine: LiveEngine, hub: HubStandIn, way: Way, updates: int) -> list[dict[str, Any]]:
    """All updates under one batch of requests; a row for each, and one for the tokens."""
    place = "cuda:1" if isinstance(way, ByNccl) else "cpu"
    held = {name: tensor.to(place) for name, tensor in tensors_of(MODEL).items()}
    way.meet(engine)
    first = fresh(hub).policy_version
    names = [f"u{i}" for i in range(REQUESTS)]
    running = {name: engine.generate(name, prompt(i), TOKENS, seed=None) for i, name in enumerate(names)}
    marks: list[tuple[int | None, dict[str, int]]] = [(first, dict.fromkeys(names, 0))]
    rows = []
    for number in range(updates):
        engine.wait_running(names, APART * (number + 1))
        before, held = held, moved(held, number)
        began = time.perf_counter()
        engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))
        paused = time.perf_counter()
        engine.run(engine.llm.start_weight_update())
        way.send(engine, held)
        engine.run(engine.llm.finish_weight_update())
        loaded = time.perf_counter()
        sizes = settle(engine, names)
        version = fresh(hub).policy_version
        marks.append((version, sizes))
        engine.run(engine.llm.resume_generation())
        report = digest(hub, ENGINE)
        right, wrong = beside_trainer(report, held), beside_trainer(report, before)
        assert (report.policy_version, right.verdict, wrong.verdict) == (version, "agree", "not_the_trainer"), right
        rows.append(
            row(
                f"update {number + 1}", right.verdict, "; ".join(right.notes), version=version,
                in_flight=[sum(size < TOKENS for size in sizes.values())] * 2,
                ms=round((loaded - paused) * 1e3, 1), pause_ms=round((paused - began) * 1e3, 1),
            )
        )  # fmt: skip
    rows.append(judge(hub, running, marks))
    return rows


def judge(
    hub: HubStandIn, running: Mapping[str, Any], marks: list[tuple[int | None, dict[str, int]]]
) -> dict[str, Any]:
    """Every token's version, as the collector has it, against what the front end had when the engine resumed."""
    tokens = wrong = 0
    for name, work in running.items():
        found = arrived(hub, name)
        rollout = check_same(found, work.result(120))
        assert rollout.size == TOKENS
        starts = [run.start for run in rollout.runs] + [TOKENS]
        ours = [run.version for run, start, end in zip(rollout.runs, starts, starts[1:], strict=False)
                for _ in range(start, end)]  # fmt: skip
        ends = [sizes[name] for _, sizes in marks[1:]] + [TOKENS]
        expected = [v for (v, sizes), end in zip(marks, ends, strict=True) for _ in range(sizes[name], end)]
        tokens += TOKENS
        wrong += sum(a != b for a, b in zip(ours, expected, strict=True))
    assert not wrong, f"{wrong} of {tokens} tokens have another version than the front end saw"
    versions = [version for version, _ in marks]
    assert len(set(versions)) == len(versions), versions
    return row("versions of tokens", "right", f"{tokens - wrong} of {tokens}, of versions {versions}", lost=0)


def row(switched: str, outcome: str, says: str, **figures: Any) -> dict[str, Any]:
    """As ``gpu_suite.Suite.add`` makes them."""
    return {"size": "one", "part": "updates", "switch": switched, "outcome": outcome, "says": says} | figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=("nccl", "file"), default="nccl")
    parser.add_argument("--one-by-one", action="store_true", help="a broadcast for each tensor")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with HubStandIn() as hub, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        os.environ |= ENVIRONMENT | {"RLTOP_HUB": str(hub.rundir.path), "RLTOP_ENGINE": ENGINE}
        way: Way = ByNccl(not given.one_by_one) if given.by == "nccl" else ByFile(Path(folder))
        engine = LiveEngine(**way.launch, max_model_len=LENGTH)
        try:
            facts = fresh(hub).fingerprint
            head = f"updates by {given.by}, {DEVICE}: vLLM {facts.get('vllm_version')}, {facts.get('model_runner')}"
            print(head, flush=True)
            switch(hub, "logprobs_mode", "processed", "updates")
            rows = go(engine, hub, way, given.updates)
            for one in rows:
                print(one, flush=True)
                one |= {
                    "size": f"{given.by}{', one by one' if given.one_by_one else ''}",
                    "runner": facts.get("model_runner", "?"),
                }
            if given.out is not None:
                (given.out / "rows.json").write_text(json.dumps({"head": head, "rows": rows}, indent=1) + "\n")
            faults = hub.health()[-1].faults
            print(f"faults {faults}")
        finally:
            engine.close()
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
