"""The flags of the workers on duck-typed engines: all ranks or none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm import patches
from rltop.collectors.vllm.fingerprint import fingerprint
from rltop.collectors.vllm.workers import lm_head
from rltop.collectors.vllm.workers.one_rank import METHODS
from tests.collectors.vllm.test_engine_switches import Desk, Kinds, in_flight
from tests.support.engine_doubles import BFLOAT16, FLOAT32, EngineCore, Executor, Outputs, Torch, Worker, output


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))
    monkeypatch.setitem(sys.modules, "torch", Torch)


def runners(engine: EngineCore) -> list[Any]:
    return [worker.model_runner for worker in engine.model_executor.workers]


def modes(engine: EngineCore) -> list[list[str]]:
    return [
        [
            runner.sampler.logprobs_mode,
            runner.sampler.topk_topp_sampler.logprobs_mode,
            runner.prompt_logprobs_worker.logprobs_mode,
            runner.model_config.logprobs_mode,
            runner.sampler.topk_topp_sampler.forward(),
        ]
        for runner in runners(engine)
    ]


def test_workers_without_the_collector_get_no_call_that_could_fail() -> None:
    """A call that failed on one rank would leave the answers of the others for vLLM's next call."""

    class Strict(Executor):
        def collective_rpc(self, method: Any, args: tuple[Any, ...] = ()) -> list[Any]:
            assert method is hasattr
            return super().collective_rpc(method, args)

    engine = EngineCore()
    engine.model_executor = Strict([Worker(), SimpleNamespace()])
    desk = Desk(engine)
    assert (
        desk.board.core.workers.fault
        == "AttributeError: the collector is not loaded in every worker: no rltop_read_flags"
    )
    desk.send("logprobs_mode", "processed")
    assert desk.boundary() == []
    assert fingerprint(engine)["max_num_batched_tokens"] == "64"


class OutOfStep(Executor):
    """As vLLM's after a call that failed on the first rank: the second's answer to it is still in its queue."""

    behind: Any = None

    def collective_rpc(self, method: Any, args: tuple[Any, ...] = ()) -> list[Any]:
        first, second = super().collective_rpc(method, args)
        self.behind, second = second, self.behind
        if isinstance(second, Exception):
            raise second
        return [first, second]


@pytest.mark.parametrize("left", [None, RuntimeError("Worker failed with error 'no such file'")])
def test_ranks_with_answers_of_earlier_calls_are_not_switched(left: Any) -> None:
    desk = Desk()
    desk.engine.model_executor = OutOfStep(desk.engine.model_executor.workers)
    desk.engine.model_executor.behind = left
    desk.send("logprobs_mode", "processed")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "a call failed on a rank" in update.reason
    assert modes(desk.engine) == RAW
    desk.send("prefix_caching", "off", "cache")
    assert desk.boundary()[0].new == "off"


RAW = [["raw_logprobs"] * 4 + ["fused"]] * 2
PROCESSED = [["processed_logprobs"] * 4 + ["native"]] * 2


def test_logprobs_mode_changes_every_object_and_the_sampling_path_on_every_rank() -> None:
    desk = Desk()
    in_flight(desk.engine, "a")
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([output("a", [1])])})
    assert modes(desk.engine) == RAW
    desk.send("logprobs_mode", "processed")
    (update,) = desk.boundary()
    assert (update.state, update.old, update.new, update.lost_requests) == ("applied", "raw", "processed", 0)
    assert modes(desk.engine) == PROCESSED
    assert (desk.engine.batch_queue_size, len(desk.engine.batch_queue)) == (2, 0)
    assert desk.tap.flag_epoch == 1
    assert desk.board.core.workers.facts()["sampling_path"] == "forward_native"
    desk.send("logprobs_mode", "raw", "back")
    assert desk.boundary()[0].new == "raw"
    assert modes(desk.engine) == RAW


def test_logprobs_mode_launched_processed_stays_on_the_native_path() -> None:
    engine = EngineCore()
    for runner in runners(engine):
        part = runner.sampler.topk_topp_sampler
        part.forward = part.forward_native
        for holder in (runner.sampler, part, runner.prompt_logprobs_worker, runner.model_config):
            holder.logprobs_mode = "processed_logprobs"
    desk = Desk(engine)
    desk.send("logprobs_mode", "raw")
    assert (desk.boundary()[0].old, modes(engine)) == ("processed", [["raw_logprobs"] * 4 + ["native"]] * 2)


def test_a_sampler_without_a_part_of_its_own_is_switched_too() -> None:
    engine = EngineCore()
    for runner in runners(engine):
        del runner.sampler.topk_topp_sampler
    desk = Desk(engine)
    desk.send("logprobs_mode", "processed")
    assert desk.boundary()[0].new == "processed"
    assert {runner.sampler.logprobs_mode for runner in runners(engine)} == {"processed_logprobs"}


class Stuck:
    """A rank's sampler that takes no new mode."""

    def __init__(self) -> None:
        vars(self)["logprobs_mode"] = "raw_logprobs"

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("out of order")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_failing_rank_restores_all(rank: int) -> None:
    engine = EngineCore()
    stuck = type("Sampler", (Stuck,), {})()
    runners(engine)[rank].sampler = stuck
    desk = Desk(engine)
    desk.send("logprobs_mode", "processed")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert f"rank {rank}: RuntimeError: out of order" in update.reason
    assert {runner.sampler.logprobs_mode for runner in runners(engine)} == {"raw_logprobs"}
    assert {runner.model_config.logprobs_mode for runner in runners(engine)} == {"raw_logprobs"}
    assert desk.board.states()["logprobs_mode"].value == "raw"
    assert desk.tap.flag_epoch == 0


def test_a_rank_that_ignores_the_switch_restores_all() -> None:
    engine = EngineCore()
    deaf = engine.model_executor.workers[1]
    deaf.rltop_write_flag = lambda name, value, extra: deaf.rltop_read_flags()[name] | {"error": ""}
    desk = Desk(engine)
    desk.send("logprobs_mode", "processed")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "not all ranks have the new value" in update.reason
    assert modes(engine) == RAW


def head_dtypes(engine: EngineCore) -> list[Any]:
    return [runner.model.logits_processor.head_dtype for runner in runners(engine)]


def test_lm_head_fp32_is_verified_and_reverted() -> None:
    desk = Desk()
    assert desk.board.core.workers.facts()["head_dtype"] == "bfloat16"
    desk.send("lm_head_fp32", "on")
    (update,) = desk.boundary()
    assert (update.state, update.old, update.new, update.reason) == ("applied", "off", "on", "")
    assert head_dtypes(desk.engine) == [FLOAT32, FLOAT32]
    facts = desk.board.core.workers.facts()
    assert (facts["head_dtype"], facts["lm_head_fp32 bound"]) == ("float32", "yes")
    desk.send("lm_head_fp32", "off", "back")
    assert desk.boundary()[0].new == "off"
    assert head_dtypes(desk.engine) == [BFLOAT16, BFLOAT16]


def staged(first: Any) -> EngineCore:
    """Two stages of a pipeline, the first of them ``first``'s runner without a head."""
    engine = EngineCore()
    engine.model_executor = Executor([first, Worker()])
    for runner, last in zip(runners(engine), (False, True), strict=True):
        runner.vllm_config.parallel_config = SimpleNamespace(pipeline_parallel_size=2)
        runner.is_last_pp_rank = last
    engine.vllm_config.parallel_config.pipeline_parallel_size = 2
    first.model_runner.model.lm_head = SimpleNamespace()
    return engine


@pytest.mark.parametrize("with_sampler", [False, True])
def test_a_stage_without_head_and_sampler_is_skipped(with_sampler: bool) -> None:
    """V2's runner has no sampler there, V1's one that it never calls."""
    first = Worker()
    if not with_sampler:
        first.model_runner.sampler = None
    engine = staged(first)
    desk = Desk(engine)
    states = desk.board.states()
    assert [(states[name].value, states[name].reason) for name in ("logprobs_mode", "lm_head_fp32")] == [
        ("raw", ""), ("off", "")
    ]  # fmt: skip
    desk.send("logprobs_mode", "processed")
    assert desk.boundary()[0].new == "processed"
    desk.send("lm_head_fp32", "on", "head")
    assert desk.boundary()[0].new == "on"
    last = runners(engine)[1]
    assert (last.sampler.logprobs_mode, last.model.logits_processor.head_dtype) == ("processed_logprobs", FLOAT32)
    assert first.model_runner.model.logits_processor.head_dtype is BFLOAT16
    assert first.model_runner.model_config.logprobs_mode == "raw_logprobs"
    facts = desk.board.core.workers.facts()
    assert (facts["logprobs_mode"], facts["head_dtype"]) == ("processed_logprobs", "float32")


def test_ranks_of_the_last_stage_that_differ_are_mixed() -> None:
    engine = staged(Worker())
    other = Worker()
    other.model_runner.vllm_config.parallel_config = SimpleNamespace(pipeline_parallel_size=2)
    other.model_runner.is_last_pp_rank = True
    for holder in (other.model_runner.sampler, other.model_runner.sampler.topk_topp_sampler,
                   other.model_runner.prompt_logprobs_worker, other.model_runner.model_config):  # fmt: skip
        holder.logprobs_mode = "processed_logprobs"
    other.model_runner.sampler.topk_topp_sampler.forward = other.model_runner.sampler.topk_topp_sampler.forward_native
    engine.model_executor.workers.append(other)
    desk = Desk(engine)
    assert desk.board.states()["logprobs_mode"].value == "mixed"
    assert "raw, processed" in desk.board.states()["logprobs_mode"].reason


def test_a_head_of_a_language_model_within_another_is_found() -> None:
    engine = EngineCore()
    for runner in runners(engine):
        runner.model = SimpleNamespace(language_model=runner.model)
    desk = Desk(engine)
    desk.send("lm_head_fp32", "on")
    assert desk.boundary()[0].new == "on"
    assert runners(engine)[1].model.language_model.logits_processor.head_dtype is FLOAT32


@pytest.mark.parametrize("rank", [0, 1])
def test_a_head_that_ignores_the_setting_is_not_shown_as_fixed(rank: int) -> None:
    desk = Desk()
    runners(desk.engine)[rank].model.logits_processor.deaf = True
    desk.send("lm_head_fp32", "on")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert f"rank {rank}: RuntimeError: not bound" in update.reason
    assert head_dtypes(desk.engine) == [BFLOAT16, BFLOAT16]
    assert desk.board.states()["lm_head_fp32"].value == "off"


def test_on_a_float32_model_the_head_reports_no_effect() -> None:
    engine = EngineCore()
    engine.model_executor = Executor([Worker(FLOAT32)])
    desk = Desk(engine)
    desk.send("lm_head_fp32", "on")
    (update,) = desk.boundary()
    assert (update.state, update.new, update.reason) == ("applied", "on", "no effect: the model is float32")


def test_a_head_launched_in_float32_reports_no_effect() -> None:
    engine = EngineCore()
    for runner in runners(engine):
        runner.model.logits_processor.head_dtype = FLOAT32
    desk = Desk(engine)
    assert desk.board.core.workers.facts()["lm_head_fp32 bound"] == "no override"
    assert desk.board.core.workers.facts()["head_dtype"] == "float32"
    desk.send("lm_head_fp32", "on")
    assert desk.boundary()[0].reason == "no effect: started with a float32 head"


def test_free_memory_of_a_gpu_includes_the_unused_cache_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        memory_reserved=lambda _: 70, memory_allocated=lambda _: 50, mem_get_info=lambda _: (100, 1000)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert lm_head.free_bytes(SimpleNamespace(type="cuda")) == 120
    assert (lm_head.free_bytes(SimpleNamespace(type="cpu")) or 0) > 1 << 20
    assert lm_head.free_bytes(SimpleNamespace(type="tpu")) is None


def test_worker_methods_are_installed_once_and_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    base = type("WorkerBase", (), {})
    monkeypatch.setitem(sys.modules, patches.WORKER_MODULE, SimpleNamespace(WorkerBase=base))
    patches.install_in_workers(lambda: METHODS, ErrorBoundary())
    patches.install_in_workers(lambda: METHODS, ErrorBoundary())
    assert all(getattr(base, name) is method for name, method in METHODS.items())
    patches.uninstall()
    assert not set(METHODS) & set(vars(base))
