"""The flags of the workers and of weight updates on duck-typed engines: every refusal, all ranks or none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.flags import BY_NAME
from rltop.collectors.vllm import head, seams
from rltop.collectors.vllm.switches import Board
from rltop.collectors.vllm.worker import METHODS
from tests.engine_doubles import BFLOAT16, FLOAT32, EngineCore, Executor, Outputs, Torch, Worker, output
from tests.test_engine_switches import Desk, Kinds, in_flight, refusal


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


RAW = [["raw_logprobs"] * 4 + ["fused"]] * 2
PROCESSED = [["processed_logprobs"] * 4 + ["native"]] * 2


def test_logprobs_mode_changes_every_holder_and_the_sampling_path_on_every_rank() -> None:
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
    assert desk.tap.epoch == 1
    assert desk.board.workers.facts()["sampling_path"] == "forward_native"
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
def test_one_rank_that_fails_takes_all_back(rank: int) -> None:
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
    assert desk.tap.epoch == 0


def test_a_rank_that_ignores_the_switch_is_noticed_and_all_go_back() -> None:
    engine = EngineCore()
    deaf = engine.model_executor.workers[1]
    deaf.rltop_write_flag = lambda name, value: deaf.rltop_read_flags()[name] | {"error": ""}
    desk = Desk(engine)
    desk.send("logprobs_mode", "processed")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "did not all take it" in update.reason
    assert modes(engine) == RAW


def each(change: Callable[[Any], None]) -> Callable[[EngineCore], None]:
    def on_engine(engine: EngineCore) -> None:
        for runner in runners(engine):
            change(runner)

    return on_engine


def launched(**config: Any) -> Callable[[EngineCore], None]:
    return lambda engine: vars(engine.vllm_config).update(config)


def put(path: str, value: Any) -> Callable[[EngineCore], None]:
    """Set what ``path`` names on the model runner of every rank."""

    def change(runner: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            runner = getattr(runner, owner)
        setattr(runner, name, value)

    return each(change)


def pipeline(engine: EngineCore) -> None:
    engine.vllm_config.parallel_config.pipeline_parallel_size = 2


def in_process(engine: EngineCore) -> None:
    engine.model_executor = Executor([])


def unplugged(engine: EngineCore) -> None:
    engine.model_executor = Executor([SimpleNamespace(model_runner=None)])


def differing(engine: EngineCore) -> None:
    first = runners(engine)[0]
    first.sampler = type("Sampler", (), {"logprobs_mode": "processed_logprobs"})()
    first.prompt_logprobs_worker.logprobs_mode = first.model_config.logprobs_mode = "processed_logprobs"


def headless(runner: Any) -> None:
    del runner.model.lm_head


def old_head(runner: Any) -> None:
    del runner.model.logits_processor.head_dtype


def huge(runner: Any) -> None:
    runner.model.lm_head.weight.numel = lambda: 1 << 60


def no_native(runner: Any) -> None:
    def forward_hip() -> str:
        return "fused"

    runner.sampler.topk_topp_sampler = SimpleNamespace(logprobs_mode="raw_logprobs", forward=forward_hip)


REFUSALS: list[tuple[str, Callable[[EngineCore], None], str]] = [
    ("logprobs_mode", launched(speculative_config=object()), "speculative"),
    ("logprobs_mode", put("rejection_sampler", object()), "speculative"),
    ("logprobs_mode", pipeline, "pipeline"),
    ("logprobs_mode", in_process, "no worker answered"),
    ("logprobs_mode", unplugged, "AttributeError"),
    ("logprobs_mode", differing, "ranks differ: processed, raw"),
    ("logprobs_mode", put("sampler", None), "no logprobs_mode"),
    ("logprobs_mode", put("sampler", SimpleNamespace(logprobs_mode="raw_logprobs")), "SimpleNamespace"),
    ("logprobs_mode", put("sampler.logprobs_mode", "processed_logprobs"), "mixed"),
    ("logprobs_mode", put("model_config.return_sampling_mask", True), "sampling masks"),
    ("logprobs_mode", each(no_native), "no native one"),
    ("lm_head_fp32", launched(speculative_config=object()), "speculative"),
    ("lm_head_fp32", launched(lora_config=object()), "LoRA"),
    ("lm_head_fp32", put("model.lm_head.base_layer", object()), "LoRA"),
    ("lm_head_fp32", pipeline, "pipeline"),
    ("lm_head_fp32", put("model.lm_head.quant_method", object()), "quantised (object)"),
    ("lm_head_fp32", put("model.logits_processor", None), "no logits processor"),
    ("lm_head_fp32", put("model.logits_processor.logits_as_input", True), "no head that we know"),
    ("lm_head_fp32", each(headless), "no head that we know"),
    ("lm_head_fp32", each(old_head), "knows no head_dtype"),
    ("lm_head_fp32", each(huge), "too little memory"),
    ("lm_head_fp32", put("model.lm_head.weight.device.type", "tpu"), "can't be read"),
    ("lm_head_fp32", put("model_config.enable_sleep_mode", True), "sleep mode"),
]


@pytest.mark.parametrize(("flag", "change", "reason"), REFUSALS, ids=lambda value: value if type(value) is str else "")
def test_what_a_worker_switch_does_not_cover_is_refused_with_the_way_out(
    flag: str, change: Callable[[EngineCore], None], reason: str
) -> None:
    engine = EngineCore()
    change(engine)
    said = refusal(engine, flag)
    assert reason in said
    assert BY_NAME[flag].launch in said


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits"])
def test_logits_modes_are_shown_and_refused(mode: str) -> None:
    engine = EngineCore()
    for runner in runners(engine):
        part = runner.sampler.topk_topp_sampler
        part.forward = part.forward_native
        for holder in (runner.sampler, part, runner.prompt_logprobs_worker, runner.model_config):
            holder.logprobs_mode = mode
    assert Desk(engine).board.states()["logprobs_mode"].value == mode
    assert f"returns {mode}" in refusal(engine, "logprobs_mode")


def test_an_engine_in_its_callers_process_refuses_every_flag() -> None:
    class InProcess:
        def __init__(self) -> None:
            vars(self).update(vars(EngineCore()))

    engine = InProcess()
    states = Board(engine).states()
    assert list(states) == list(BY_NAME)
    assert all("VLLM_ENABLE_V1_MULTIPROCESSING" in state.reason for state in states.values())


def head_dtypes(engine: EngineCore) -> list[Any]:
    return [runner.model.logits_processor.head_dtype for runner in runners(engine)]


def test_lm_head_fp32_is_an_override_that_is_seen_bound_and_goes_back() -> None:
    desk = Desk()
    assert desk.board.workers.facts()["head_dtype"] == "bfloat16"
    desk.send("lm_head_fp32", "on")
    (update,) = desk.boundary()
    assert (update.state, update.old, update.new, update.reason) == ("applied", "off", "on", "")
    assert head_dtypes(desk.engine) == [FLOAT32, FLOAT32]
    facts = desk.board.workers.facts()
    assert (facts["head_dtype"], facts["lm_head_fp32 bound"]) == ("float32", "yes")
    desk.send("lm_head_fp32", "off", "back")
    assert desk.boundary()[0].new == "off"
    assert head_dtypes(desk.engine) == [BFLOAT16, BFLOAT16]


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


def test_on_a_float32_model_the_head_is_switched_and_said_to_change_nothing() -> None:
    engine = EngineCore()
    engine.model_executor = Executor([Worker(FLOAT32)])
    desk = Desk(engine)
    desk.send("lm_head_fp32", "on")
    (update,) = desk.boundary()
    assert (update.state, update.new, update.reason) == ("applied", "on", "no effect: the model is float32")


def test_a_head_launched_in_float32_is_said_to_be_so() -> None:
    engine = EngineCore()
    put("model.logits_processor.head_dtype", FLOAT32)(engine)
    desk = Desk(engine)
    assert desk.board.workers.facts()["lm_head_fp32 bound"] == "no override"
    assert desk.board.workers.facts()["head_dtype"] == "float32"
    desk.send("lm_head_fp32", "on")
    assert desk.boundary()[0].reason == "no effect: started with a float32 head"


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        memory_reserved=lambda _: 70, memory_allocated=lambda _: 50, mem_get_info=lambda _: (100, 1000)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert head.free_bytes(SimpleNamespace(type="cuda")) == 120
    assert (head.free_bytes(SimpleNamespace(type="cpu")) or 0) > 1 << 20
    assert head.free_bytes(SimpleNamespace(type="tpu")) is None


def test_every_worker_gets_the_methods_once_and_loses_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    base = type("WorkerBase", (), {})
    monkeypatch.setitem(sys.modules, seams.WORKER_MODULE, SimpleNamespace(WorkerBase=base))
    seams.install_in_workers(METHODS)
    seams.install_in_workers(METHODS)
    assert all(getattr(base, name) is method for name, method in METHODS.items())
    seams.uninstall()
    assert not set(METHODS) & set(vars(base))
