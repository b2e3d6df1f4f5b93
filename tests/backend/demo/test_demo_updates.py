"""Weight updates of the demo's engines and the versions of their tokens, on vLLM with and without a version label."""

from __future__ import annotations

import asyncio
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo import jobs, messages
from rltop.backend.demo.engines import engine_process
from rltop.backend.demo.engines.engine_process import TicketServer, as_answer, take_gpu
from rltop.backend.demo.engines.weight_updates import Labelled, TokenVersions, Unlabelled, weights_of
from rltop.backend.demo.faults import BY_NAME

TRANSFER = ("start_weight_update", "update_weights", "finish_weight_update")


class Unlabelling:
    """An ``AsyncLLM`` from before 0.32 that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in (*TRANSFER, "pause_generation", "resume_generation"):
            raise AttributeError(name)

        async def call(*arguments: Any, **named: Any) -> None:
            self.calls.append((name, *arguments, *named.values()))

        return call


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ModuleType("base")
    base.WeightTransferUpdateRequest = lambda update_info: update_info  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", base)


def transfer(info: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [("start_weight_update",), ("update_weights", info), ("finish_weight_update",)]


def test_the_version_label_is_used_if_vllm_has_it() -> None:
    assert isinstance(weights_of(SimpleNamespace(update_weight_version=None)), Labelled)
    assert isinstance(weights_of(Unlabelling()), Unlabelled)


def test_without_a_label_version_0_is_set_by_an_update_without_weights() -> None:
    engine = Unlabelling()
    asyncio.run(weights_of(engine).set_version(0))
    assert engine.calls == transfer({"version": 0})


@pytest.mark.parametrize(
    ("fault", "between", "version"),
    [
        ("", transfer({"path": "file", "version": 3}), 3),
        ("stale-replica", [], 0),
        ("lying-replica", transfer({"version": 3}), 3),
    ],
)
def test_without_a_label_an_update_has_the_version_of_the_fault(
    fault: str, between: list[tuple[Any, ...]], version: int
) -> None:
    engine, sent = Unlabelling(), []

    async def send(message: Any) -> None:
        sent.append(message)

    rollouts = TicketServer(engine, jobs.EngineJob("e1", "model", "socket", 0, 1.0, BY_NAME[fault].on("e1")), send)
    rollouts._versions.start("t0-0")
    asyncio.run(rollouts.update(messages.Update(3, "file")))
    assert engine.calls[1:-1] == between
    rollouts._versions.start("t1-0")
    assert rollouts._versions.finish("t1-0", 2) == [version, version]
    assert rollouts._versions.finish("t0-0", 2) == [0, 0]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 9), st.integers(0, 9))
def test_each_token_has_the_version_that_sampled_it(grown: list[int], last: int, late: int) -> None:
    versions = TokenVersions()
    versions.start("early")
    wanted: list[int] = []
    for version, tokens in enumerate(grown):
        wanted += [version] * tokens
        versions.update(version + 1, {"early": len(wanted)})
    versions.start("late")
    wanted += [len(grown)] * last
    assert versions.finish("early", len(wanted)) == wanted
    assert versions.finish("late", late) == [len(grown)] * late


def test_versions_of_vllm_take_precedence_over_tracked_ones() -> None:
    entries = [{7: SimpleNamespace(logprob=-0.5)}, {8: SimpleNamespace(logprob=-0.25)}]
    plain = SimpleNamespace(token_ids=(7, 8), logprobs=entries)
    assert as_answer(plain, [1, 2]) == messages.SampledAnswer([7, 8], [-0.5, -0.25], [1, 2])
    spans = [SimpleNamespace(version="4", start=0, end=2)]
    assert as_answer(SimpleNamespace(**vars(plain), weight_versions=spans), [1, 2]).versions == [4, 4]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_engines_take_a_fixed_share_of_a_gpu_and_nothing_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool
) -> None:
    platforms = ModuleType("platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: on_cpu)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    wanted = {"kv_cache_memory_bytes": engine_process.KV_BYTES, "gpu_memory_utilization": engine_process.GPU_SHARE}
    assert engine_process._gpu_share() == ({} if on_cpu else wanted)


@pytest.mark.parametrize(
    ("gpus", "told", "seen"), [(2, None, ["0", "1", "0"]), (1, None, [None] * 3), (2, "1", ["1"] * 3)]
)
def test_engines_take_turns_over_the_gpus_unless_they_are_told_which(
    monkeypatch: pytest.MonkeyPatch, gpus: int, told: str | None, seen: list[str | None]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    found = []
    for name in ("e0", "e1", "e2"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if told is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        take_gpu(name)
        found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert found == seen
