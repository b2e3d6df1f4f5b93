"""Preconditions of switches: the tables are complete, and every precondition has a refusal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.contract import preconditions
from rltop.collectors.contract.flags import BY_NAME, FLAGS, PREEMPTION
from rltop.collectors.contract.wire import FlagState
from rltop.collectors.vllm.control import engine_checks, switchboard
from rltop.collectors.vllm.control.flag_controls import CONTROLS
from rltop.collectors.vllm.control.switchboard import Switchboard
from rltop.collectors.vllm.engine_core import CoreAccess, FlagControl
from rltop.collectors.vllm.workers import rank_checks
from rltop.collectors.vllm.workers.one_rank import PARTS
from tests.collectors.vllm.test_engine_switches import Desk, Kinds
from tests.support.engine_doubles import (
    EngineCore,
    Executor,
    KVCacheCoordinatorNoPrefixCache,
    PauseState,
    Scheduler,
    Torch,
    launched,
    request,
)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))
    monkeypatch.setitem(sys.modules, "torch", Torch)


PREFIX, ASYNC, LOGPROBS, HEAD, UPDATE, *_ = BY_NAME
STRICT = "strict"
"""Stands for the strict form of ``ASYNC``."""

# --- the tables ---------------------------------------------------------------------------------------------------


def test_every_flag_has_exactly_one_control() -> None:
    assert list(CONTROLS) == list(BY_NAME)
    assert set(PARTS) <= set(BY_NAME)


def test_every_flag_is_complete() -> None:
    for flag in FLAGS:
        assert flag.launch_args.keys() <= set(flag.values)
        assert all((flag.summary, flag.effect, flag.cost, flag.read_from, flag.switched_by, flag.launch))
        assert bool(flag.strict) == bool(flag.strict_preconditions)
        assert len({*flag.preconditions, *flag.strict_preconditions}) == len(
            flag.preconditions + flag.strict_preconditions
        )


def test_every_precondition_has_exactly_one_check_and_is_used() -> None:
    asked = {need for flag in FLAGS for need in flag.preconditions + flag.strict_preconditions}
    assert asked == set(preconditions.BY_NAME)
    assert len(preconditions.BY_NAME) == len(preconditions.PRECONDITIONS)
    assert not set(engine_checks.CHECKS) & set(rank_checks.CHECKS)
    assert set(engine_checks.CHECKS) | set(rank_checks.CHECKS) == set(preconditions.BY_NAME)
    assert set(PREEMPTION) <= set(engine_checks.CHECKS)


def test_a_flag_checks_that_workers_answer_before_it_queries_them() -> None:
    for flag in FLAGS:
        names = flag.preconditions + flag.strict_preconditions
        of_workers = [names.index(name) for name in names if name in rank_checks.CHECKS]
        assert all(names.index("workers_answer") < place for place in of_workers), flag.name
        assert bool(of_workers) == (flag.name in PARTS)


def test_a_sixth_flag_is_one_entry_and_one_control(monkeypatch: pytest.MonkeyPatch) -> None:
    sixth = dataclasses.replace(BY_NAME[PREFIX], name="quiet", values=("off", "on"), preconditions=("boundary",))

    def write(core: CoreAccess, value: str, _strict: bool) -> None:
        core.engine.quiet = value

    monkeypatch.setattr(switchboard, "FLAGS", (*FLAGS, sixth))
    monkeypatch.setitem(CONTROLS, "quiet", FlagControl(lambda core: getattr(core.engine, "quiet", "off"), write))
    board = Switchboard(EngineCore())
    assert board.states()["quiet"] == FlagState("off", True)
    board.flip("quiet", "on")
    assert board.states()["quiet"] == FlagState("on", True)


# --- refusals -----------------------------------------------------------------------------------------------------

Change = Callable[[EngineCore], None]


def runners(engine: EngineCore) -> list[Any]:
    return [worker.model_runner for worker in engine.model_executor.workers]


def each(change: Callable[[Any], None]) -> Change:
    def on_engine(engine: EngineCore) -> None:
        for runner in runners(engine):
            change(runner)

    return on_engine


def put(path: str, value: Any) -> Change:
    """Set what ``path`` names on the model runner of every rank."""

    def change(runner: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            runner = getattr(runner, owner)
        setattr(runner, name, value)

    return each(change)


def config(path: str, value: Any) -> Change:
    """Set what ``path`` names in the engine's configuration."""

    def change(engine: EngineCore) -> None:
        owner: Any = engine.vllm_config
        *owners, name = path.split(".")
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, value)

    return change


def launched_sync(engine: EngineCore) -> None:
    engine.scheduler = Scheduler()


def no_queue(engine: EngineCore) -> None:
    engine.batch_queue = None


def coordinator(name: str) -> Change:
    def change(engine: EngineCore) -> None:
        engine.scheduler.kv_cache_manager.coordinator = type(name, (), {})()

    return change


def launched_uncached(engine: EngineCore) -> None:
    engine.scheduler.kv_cache_manager.coordinator = KVCacheCoordinatorNoPrefixCache()
    engine.scheduler.kv_cache_manager.enable_caching = False


def uncached_pool(engine: EngineCore) -> None:
    engine.scheduler.kv_cache_manager.block_pool.enable_caching = False


def unhashed(engine: EngineCore) -> None:
    del engine.request_block_hasher


def old_pool(engine: EngineCore) -> None:
    del engine.scheduler.kv_cache_manager.block_pool.blocks


def ahead(engine: EngineCore) -> None:
    engine.scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec.non_causal = True


def connected(engine: EngineCore) -> None:
    engine.scheduler.connector = SimpleNamespace()


def drafting(engine: EngineCore) -> None:
    engine.check_for_draft_tokens = True  # type: ignore[attr-defined]


def waiting(**changes: Any) -> Change:
    """One request under way that is not like others."""

    def change(engine: EngineCore) -> None:
        one = request("a", list(range(80)), seed=7)
        vars(one).update(changes)
        engine.scheduler.add_request(one)
        engine.scheduler.running.append(one)

    return change


def no_steps(engine: EngineCore) -> None:
    vars(engine)["step_fn"] = None


def finishing_in_a_pause(engine: EngineCore) -> None:
    waiting()(engine)
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)


def seeded_on_cpu(engine: EngineCore) -> None:
    config("device_config.device_type", "cpu")(engine)
    waiting()(engine)


def seeded_beyond_the_threshold(engine: EngineCore) -> None:
    config("device_config.device_type", "cpu")(engine)
    config("scheduler_config.max_num_batched_tokens", 1000)(engine)
    config("scheduler_config.long_prefill_token_threshold", 79)(engine)
    waiting()(engine)


def two_stages(engine: EngineCore) -> None:
    engine.vllm_config.parallel_config.pipeline_parallel_size = 2
    engine.batch_queue_size = 3


def in_lockstep(engine: EngineCore) -> None:
    engine.dp_group = object()  # type: ignore[attr-defined]


def own_scheduler(engine: EngineCore) -> None:
    engine.scheduler.__class__ = type("CarefulScheduler", (type(engine.scheduler),), {})


def wrapped_scheduler(engine: EngineCore) -> None:
    """Something on the instance hides a method in which the two classes differ."""
    engine.scheduler.__class__ = type("AsyncScheduler", (Scheduler,), {"schedule": Scheduler.schedule})
    engine.scheduler.schedule = lambda: None


def no_workers(engine: EngineCore) -> None:
    engine.model_executor = Executor([])


def unplugged_workers(engine: EngineCore) -> None:
    engine.model_executor = Executor([SimpleNamespace()])


def no_runner(engine: EngineCore) -> None:
    for worker in engine.model_executor.workers:
        worker.model_runner = None


def differing(engine: EngineCore) -> None:
    first = runners(engine)[0]
    first.sampler = type("Sampler", (), {"logprobs_mode": "processed_logprobs"})()
    first.prompt_logprobs_worker.logprobs_mode = first.model_config.logprobs_mode = "processed_logprobs"


def differing_runners(engine: EngineCore) -> None:
    runners(engine)[1].use_async_scheduling = False


def bare_batch(runner: Any) -> None:
    del runner.input_batch.prev_req_id_to_index


def headless(runner: Any) -> None:
    del runner.model.lm_head


def gathered_head(runner: Any) -> None:
    runner.model.logits_processor = SimpleNamespace(head_dtype=runner.model_config.dtype)


def huge(runner: Any) -> None:
    runner.model.lm_head.weight.numel = lambda: 1 << 60


def no_native(runner: Any) -> None:
    def forward_hip() -> str:
        return "fused"

    runner.sampler.topk_topp_sampler = SimpleNamespace(logprobs_mode="raw_logprobs", forward=forward_hip)


def logits_mode(runner: Any) -> None:
    part = runner.sampler.topk_topp_sampler
    part.forward = part.forward_native
    for holder in (runner.sampler, part, runner.prompt_logprobs_worker, runner.model_config):
        holder.logprobs_mode = "processed_logits"


def in_lockstep_of_a_launcher(engine: EngineCore) -> None:
    vars(launched(engine, ranks=2)).pop("input_queue")


def other_boundary(engine: EngineCore) -> None:
    vars(engine)["_handle_client_request"] = lambda message: "another vLLM"


def old_pauses(engine: EngineCore) -> None:
    vars(engine)["pause_scheduler"] = lambda: "paused"


REFUSALS: list[tuple[str, str, Change, str]] = [
    *(("boundary", flag, in_lockstep_of_a_launcher, "2 ranks of an external launcher") for flag in BY_NAME),
    *(("boundary", flag, other_boundary, "no step boundary") for flag in BY_NAME),
    *(("sees_steps", flag, no_steps, "step_fn is missing") for flag in BY_NAME),
    *(("no_connector", flag, connected, "SimpleNamespace") for flag in (PREFIX, ASYNC, UPDATE)),
    ("causal", PREFIX, ahead, "look ahead"),
    ("causal", PREFIX, config("model_config.is_encoder_decoder", True), "encoder-decoder"),
    ("launched_caching", PREFIX, launched_uncached, "NoPrefixCache"),
    ("launched_caching", PREFIX, uncached_pool, "pool"),
    ("launched_caching", PREFIX, unhashed, "hasher"),
    ("one_kind_of_cache", PREFIX, coordinator("HybridKVCacheCoordinator"), "HybridKVCacheCoordinator"),
    ("one_kind_of_cache", STRICT, coordinator("HybridKVCacheCoordinator"), "HybridKVCacheCoordinator"),
    ("evictable_blocks", PREFIX, old_pool, "no blocks"),
    ("launched_async", ASYNC, launched_sync, "the scheduler is a Scheduler"),
    ("batch_queue", ASYNC, no_queue, "queue"),
    *(
        ("no_speculation", flag, config("speculative_config", SimpleNamespace(method="eagle3")), "eagle3")
        for flag in (ASYNC, LOGPROBS, HEAD)
    ),
    ("no_drafts", ASYNC, drafting, "drafts"),
    ("depth_to_spare", ASYNC, config("parallel_config.pipeline_parallel_size", 2), "depth 2"),
    ("none_waits_with_kv", STRICT, waiting(status="WAITING_FOR_REMOTE_KVS"), "1 request"),
    ("none_waits_with_kv", STRICT, waiting(status="WAITING_FOR_STREAMING_REQ", num_computed_tokens=7), "1 request"),
    ("none_finishes_in_pause", STRICT, finishing_in_a_pause, "1 request"),
    ("preemption_keeps_tokens", STRICT, waiting(discard_latest_async_tokens=False), "drops the next token"),
    ("seeds_survive", STRICT, seeded_on_cpu, "1 request with seeds"),
    ("seeds_survive", STRICT, seeded_beyond_the_threshold, "1 request with seeds"),
    ("one_stage", STRICT, two_stages, "2"),
    ("no_lockstep", STRICT, in_lockstep, "EngineCore"),
    ("known_scheduler", STRICT, own_scheduler, "CarefulScheduler"),
    ("known_scheduler", STRICT, wrapped_scheduler, "schedule"),
    ("generates", STRICT, config("model_config.runner_type", "pooling"), "pooling"),
    ("no_structured_output", STRICT, waiting(structured_output_request=object()), "1 request"),
    *(("workers_answer", flag, no_workers, "no worker answered") for flag in (STRICT, LOGPROBS, HEAD)),
    *(("workers_answer", flag, unplugged_workers, "AttributeError") for flag in (STRICT, LOGPROBS, HEAD)),
    *(("ranks_agree", flag, differing, "processed, raw") for flag in (LOGPROBS, HEAD)),
    ("ranks_agree", STRICT, differing_runners, "on, off"),
    ("known_runner", STRICT, each(bare_batch), "prev_req_id_to_index"),
    ("sampler_mode", LOGPROBS, no_runner, "no logprobs_mode"),
    ("sampler_mode", LOGPROBS, put("sampler", None), "no logprobs_mode"),
    ("plain_sampler", LOGPROBS, put("sampler", SimpleNamespace(logprobs_mode="raw_logprobs")), "SimpleNamespace"),
    ("returns_logprobs", LOGPROBS, put("sampler.logprobs_mode", "processed_logprobs"), "mixed"),
    ("returns_logprobs", LOGPROBS, each(logits_mode), "processed_logits"),
    ("no_rejection_sampler", LOGPROBS, put("rejection_sampler", SimpleNamespace()), "SimpleNamespace"),
    ("no_mask_replay", LOGPROBS, put("model_config.return_sampling_mask", True), "sampling masks"),
    ("native_sampling", LOGPROBS, each(no_native), "forward_hip"),
    ("no_lora", HEAD, config("lora_config", SimpleNamespace()), "LoRA"),
    ("weights_present", HEAD, put("model_config.enable_sleep_mode", True), "sleep mode"),
    ("known_head", HEAD, put("model.logits_processor", None), "no known logits processor"),
    ("known_head", HEAD, put("model.logits_processor.logits_as_input", True), "no known head"),
    ("known_head", HEAD, each(headless), "no known head"),
    ("plain_head", HEAD, put("model.lm_head.base_layer", object()), "LoRA"),
    ("plain_head", HEAD, put("model.lm_head.quant_method", SimpleNamespace(apply=None)), "SimpleNamespace"),
    ("provable_head", HEAD, each(gathered_head), "one piece"),
    ("head_memory", HEAD, each(huge), "MiB needed"),
    ("head_memory", HEAD, put("model.lm_head.weight.device.type", "tpu"), "can't be read"),
    ("sees_updates", UPDATE, old_pauses, "pausing"),
    ("no_sleep_mode", UPDATE, config("model_config.enable_sleep_mode", True), "sleep mode"),
    ("text_only", UPDATE, config("model_config.is_multimodal_model", True), "inputs other than text"),
]


def test_every_precondition_has_a_refusal() -> None:
    assert {need for need, *_ in REFUSALS} == set(preconditions.BY_NAME)


@pytest.mark.parametrize(
    ("need", "flag", "change", "said"), REFUSALS, ids=lambda value: value if type(value) is str else ""
)
def test_a_violated_precondition_refuses_the_switch_with_its_reason(
    need: str, flag: str, change: Change, said: str
) -> None:
    strict, name = flag == STRICT, ASYNC if flag == STRICT else flag
    engine = EngineCore()
    change(engine)
    desk = Desk(engine)
    reason = desk.board.switches[name].obstacle(strict)
    before, after = (
        preconditions.BY_NAME[need].reason.split("{}") if "{}" in preconditions.BY_NAME[need].reason else (reason, "")
    )
    assert reason.startswith(before)
    assert after in reason
    assert said in reason
    assert (BY_NAME[name].launch in reason) == preconditions.BY_NAME[need].relaunch
    state = desk.board.states()[name]
    if not strict:
        assert (state.switchable, state.reason) == (False, reason)
    value = next(value for value in BY_NAME[name].values if value != state.value)
    (update,) = desk.send(name, value, strict=strict)
    assert (update.state, update.reason) == ("refused", reason)
    assert "input_queue" not in vars(desk.engine) or desk.engine.input_queue.empty()
    assert desk.board.states()[name] == state


def test_the_update_policy_needs_patched_pauses() -> None:
    desk = Desk()
    desk.taps.undo()
    assert "does not observe calls of pause_scheduler" in desk.board.states()[UPDATE].reason


def test_the_engine_double_violates_no_precondition() -> None:
    desk = Desk()
    assert [state.reason for state in desk.board.states().values()] == [""] * len(FLAGS)
    assert desk.board.switches[ASYNC].obstacle(strict=True) == ""


def test_only_a_flag_with_a_strict_form_can_be_switched_strictly() -> None:
    for flag in FLAGS:
        assert (Desk().board.switches[flag.name].obstacle(strict=True) == "") == bool(flag.strict)


def test_without_workers_the_other_flags_are_still_switchable() -> None:
    engine = EngineCore()
    no_workers(engine)
    states = Switchboard(engine).states()
    assert (states[PREFIX].switchable, states[LOGPROBS].switchable, states[LOGPROBS].value) == (True, False, None)
    assert (states[ASYNC].switchable, states[ASYNC].value) == (True, "on")


def test_a_check_of_an_unknown_precondition_or_a_second_check_is_an_error() -> None:
    check = preconditions.registry(dict(engine_checks.CHECKS))
    with pytest.raises(ValueError, match="'no_such': no such precondition"):
        check("no_such")
    with pytest.raises(ValueError, match="'boundary': defined twice"):
        check("boundary")
