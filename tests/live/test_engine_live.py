"""The collector on a real engine: what the front end returned is what arrives, and the switches switch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltop.collectors.contract import wire
from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.vllm.control.engine_checks import is_async
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ENVIRONMENT, MODEL, ON_CPU, LiveEngine, result
from tests.support.switchboard import ENGINE, Walk, arrived, by_epoch, check_equal, fresh, prompt, switch, table, told

pytestmark = [pytest.mark.engine if ON_CPU else pytest.mark.gpu, pytest.mark.own_engine]

exact = pytest.mark.skipif(not ON_CPU, reason="holds to the last digit in float32 alone; the walk judges the rest")

IN_FLIGHT = 40


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def engine(hub: HubStandIn) -> Iterator[LiveEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(hub.rundir.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        engine = LiveEngine()
        yield engine
        engine.close()
    wait_for(lambda: [bye for bye in hub.byes if bye.source == ENGINE], "the collector says goodbye")


def test_finished_rollouts_arrive_with_the_tokens_and_logprobs_the_front_end_returned(
    engine: LiveEngine, hub: HubStandIn
) -> None:
    running = {f"plain{i}": engine.generate(f"plain{i}", prompt(i), 10 + i, seed=i) for i in range(12)}
    for i, (name, work) in enumerate(running.items()):
        rollout = check_equal(hub, name, result(work))
        assert rollout.size == 10 + i
        assert rollout.has_logprobs
        assert rollout.sampling == {"temperature": 1.0, "seed": float(i)}
        assert rollout.arrived <= rollout.scheduled < rollout.finished
        assert rollout.first_step >= 0


def test_a_request_without_logprobs_is_published_and_counted(engine: LiveEngine, hub: HubStandIn) -> None:
    output = result(engine.generate("bare", prompt(0), 8, seed=1, logprobs=None))
    rollout, _, tokens, logprobs = arrived(hub, "bare")
    assert not rollout.has_logprobs
    assert tokens == list(output.outputs[0].token_ids)
    assert all(value != value for value in logprobs)
    wait_for(lambda: hub.states()[-1].without_logprobs == 1, "the count of requests without logprobs")


def test_aborted_requests_arrive_with_what_the_core_has(engine: LiveEngine, hub: HubStandIn) -> None:
    names = [f"cut{i}" for i in range(6)]
    running = [engine.generate(name, prompt(i), 400, seed=i) for i, name in enumerate(names)]
    engine.wait_running(names)
    for work in running:
        work.cancel()
    for name in names:
        rollout, _, tokens, logprobs = arrived(hub, name)
        seen = engine.progress[name]
        assert rollout.finish_reason == "abort"
        assert tokens[: len(seen)] == seen
        assert rollout.size == len(tokens) == len(logprobs) < 400
    wait_for(lambda: hub.states()[-1].aborted >= 6, "the count of aborted requests")


def test_prefix_caching_switches_with_requests_in_flight(engine: LiveEngine, hub: HubStandIn) -> None:
    names = [f"hold{i}" for i in range(IN_FLIGHT)]
    held = [engine.generate(name, prompt(i), 240, seed=i) for i, name in enumerate(names)]
    engine.wait_running(names)
    shared = prompt(99, 100)
    result(engine.generate("warm", shared, 2, seed=0))
    hit = result(engine.generate("hit", shared, 2, seed=0))
    assert hit.num_cached_tokens == 96
    off = switch(hub, "prefix_caching", "off", "pc")
    assert off.in_flight is not None
    assert off.in_flight >= 32
    cold = [engine.generate(f"cold{i}", shared, 2, seed=i) for i in range(4)]
    for i, work in enumerate(cold):
        rollout = check_equal(hub, f"cold{i}", result(work))
        assert rollout.scheduled >= off.time
        assert rollout.lookup_off
        assert rollout.cached_tokens == 0
    on = switch(hub, "prefix_caching", "on", "pc")
    assert on.in_flight is not None
    assert on.in_flight >= 32
    again = result(engine.generate("again", shared, 2, seed=0))
    assert again.num_cached_tokens == 0  # what was cached before the switch is never hit
    rollout = check_equal(hub, "hit2", result(engine.generate("hit2", shared, 2, seed=0)))
    assert rollout.cached_tokens == 96
    assert not rollout.lookup_off
    epochs = set()
    for name, work in zip(names, held, strict=True):
        rollout = check_equal(hub, name, result(work))
        assert rollout.size == 240
        epochs.add(tuple(run.flag_epoch for run in rollout.runs))
    first = hub.states()[0].flag_epoch
    assert any(len(of_one) >= 2 for of_one in epochs), (epochs, first)
    assert hub.states()[-1].flags["prefix_caching"] == wire.FlagState("on", True)


@exact
def test_async_scheduling_switches_in_flight_and_no_seeded_token_changes(engine: LiveEngine, hub: HubStandIn) -> None:
    def batch(tag: str) -> list[Any]:
        return [engine.generate(f"{tag}{i}", prompt(i), 160, seed=1000 + i) for i in range(IN_FLIGHT)]

    before = [told(result(work))[0] for work in batch("before")]
    running = batch("during")
    engine.wait_running([f"during{i}" for i in range(IN_FLIGHT)])
    off = switch(hub, "async_scheduling", "off", "as")
    assert off.in_flight == IN_FLIGHT
    during = [told(result(work))[0] for work in running]
    slow = [told(result(work))[0] for work in batch("slow")]
    running = batch("back")
    engine.wait_running([f"back{i}" for i in range(IN_FLIGHT)])
    on = switch(hub, "async_scheduling", "on", "as")
    assert on.in_flight == IN_FLIGHT
    back = [told(result(work))[0] for work in running]
    assert before == during == slow == back
    for i in range(IN_FLIGHT):
        rollout, _, tokens, _ = arrived(hub, f"during{i}")
        assert tokens == before[i]
        assert len(rollout.runs) == 2
        assert rollout.runs[1].flag_epoch == rollout.runs[0].flag_epoch + 1


def test_a_command_for_an_idle_engine_runs_and_one_for_the_present_value_changes_nothing(
    engine: LiveEngine, hub: HubStandIn
) -> None:
    wait_for(lambda: hub.states() and hub.states()[-1].running == 0, "an idle engine")
    switch(hub, "async_scheduling", "off", "idle")
    switch(hub, "async_scheduling", "on", "idle")
    epoch = wait_for(lambda: hub.states()[-1], "a state").flag_epoch
    again = switch(hub, "async_scheduling", "on", "again")
    assert again.reason == "already on"
    hub.command(ENGINE, "async_scheduling", "on", again.id)  # the same command once more: answered, not executed
    wait_for(lambda: len([u for u in hub.updates if u.id == again.id and u.state == "applied"]) == 2, "an answer")
    shown = wait_for(lambda: hub.states()[-1], "a state")
    assert [u.id for u in shown.commands].count(again.id) == 1
    assert shown.flag_epoch == epoch


@exact
def test_logprobs_mode_switches_in_flight_and_the_ratio_says_which_it_was(engine: LiveEngine, hub: HubStandIn) -> None:
    names = [f"warm7-{i}" for i in range(IN_FLIGHT)]
    running = [engine.generate(name, prompt(i), 300, seed=i, temperature=0.7) for i, name in enumerate(names)]
    engine.wait_running(names, 40)
    update = switch(hub, "logprobs_mode", "processed", "lm")
    assert update.old == "raw"
    assert update.in_flight == IN_FLIGHT
    for name, work in zip(names, running, strict=True):
        assert check_equal(hub, name, result(work)).size == 300
    raw, processed = (values for _, values in sorted(by_epoch([arrived(hub, name) for name in names], 0.7).items()))
    error = processed.std() / processed.size**0.5
    assert abs(raw.mean() - 1) > 10 * raw.std() / raw.size**0.5
    assert abs(processed.mean() - 1) <= max(3 * error, 1e-5), (processed.mean(), error)
    assert min(raw.size, processed.size) > 1000
    assert fresh(hub).fingerprint["logprobs_mode"] == "processed_logprobs"
    back = switch(hub, "logprobs_mode", "raw", "lm")
    assert back.old == "processed"
    check_equal(hub, "raw7", result(engine.generate("raw7", prompt(1), 200, seed=1, temperature=0.7)))
    (again,) = by_epoch([arrived(hub, "raw7")], 1.0).values()
    assert np.abs(again - 1).max() < 1e-3  # raw: the model's own distribution, whatever the temperature


@exact
def test_a_float32_head_on_a_float32_model_reports_no_effect(engine: LiveEngine, hub: HubStandIn) -> None:
    def batch(tag: str) -> list[Any]:
        return [engine.generate(f"{tag}{i}", prompt(i), 160, seed=2000 + i) for i in range(IN_FLIGHT)]

    before = [told(result(work)) for work in batch("head")]
    running = batch("fp32")
    engine.wait_running([f"fp32{i}" for i in range(IN_FLIGHT)])
    on = switch(hub, "lm_head_fp32", "on", "lh")
    assert (on.old, on.in_flight, on.reason) == ("off", IN_FLIGHT, "no effect: the model is float32")
    facts = fresh(hub).fingerprint
    assert (facts["head_dtype"], facts["lm_head_fp32 bound"]) == ("float32", "yes")
    off = switch(hub, "lm_head_fp32", "off", "lh")
    assert off.in_flight is not None
    assert off.in_flight >= 32
    assert [told(result(work))[0] for work in running] == [tokens for tokens, _ in before]
    assert fresh(hub).fingerprint["lm_head_fp32 bound"] == "no override"


@exact
def test_strict_off_keeps_every_request_whole_and_every_logprob_right(engine: LiveEngine, hub: HubStandIn) -> None:
    names = [f"strict{i}" for i in range(IN_FLIGHT)]
    running = [engine.generate(name, prompt(i), 200, seed=None) for i, name in enumerate(names)]
    engine.wait_running(names, 20)
    forms = (("off", True), ("on", False), ("off", False), ("off", True), ("on", False))
    for number, (value, strict) in enumerate(forms):
        update = switch(hub, "async_scheduling", value, f"st{number}", strict=strict)
        assert update.in_flight == IN_FLIGHT
        assert fresh(hub).flags["async_scheduling"].detail == update.detail
        engine.wait_running(names, 40 + 20 * number)
    for name, work in zip(names, running, strict=True):
        assert check_equal(hub, name, result(work)).size == 200
    by = by_epoch([arrived(hub, name) for name in names], 1.0)
    assert len(by) == 1 + len(forms)
    assert max(np.abs(ratio - 1).max() for ratio in by.values()) < 1e-3


@exact
def test_seeded_requests_that_would_be_recomputed_in_chunks_keep_strict_from_being_done(
    engine: LiveEngine, hub: HubStandIn
) -> None:
    names = [f"long{i}" for i in range(IN_FLIGHT)]
    running = [engine.generate(name, prompt(i, 400), 100, seed=i) for i, name in enumerate(names)]
    engine.wait_running(names, 20)
    hub.command(ENGINE, "async_scheduling", "off", "too-long", strict=True)
    refused = hub.closed("too-long")
    assert (refused.state, "in chunks" in refused.reason) == ("refused", True)
    assert fresh(hub).flags["async_scheduling"].value == "on"
    for name, work in zip(names, running, strict=True):
        assert check_equal(hub, name, result(work)).size == 100


@pytest.mark.skipif(not ON_CPU, reason="needs a backend of vLLM's weight-transfer API")
def test_a_switch_waits_for_an_open_weight_update_and_versions_are_per_token(
    engine: LiveEngine, hub: HubStandIn
) -> None:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    names = [f"over{i}" for i in range(IN_FLIGHT)]
    running = [engine.generate(name, prompt(i), 120, seed=i) for i, name in enumerate(names)]
    engine.wait_running(names)
    engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))  # preempts all, drops what was in flight
    engine.run(engine.llm.start_weight_update())
    hub.command(ENGINE, "prefix_caching", "off", "late", timeout=1.0)
    assert hub.closed("late").state == "timed_out"
    hub.command(ENGINE, "prefix_caching", "off", "patient")
    wait_for(lambda: [u for u in hub.updates if u.id == "patient" and u.state == "draining"], "it says it waits")
    assert hub.states()[-1].flags["prefix_caching"].value == "on"
    earlier = hub.states()[-1].weight_updates
    update = WeightTransferUpdateRequest(update_info={"path": str(Path(MODEL) / "model.safetensors")})
    engine.run(engine.llm.update_weights(update))
    engine.run(engine.llm.finish_weight_update("step-7"))
    patient = hub.closed("patient")
    assert (patient.state, patient.in_flight, patient.lost_requests) == ("applied", IN_FLIGHT, 0)
    state = wait_for(lambda: next((s for s in hub.states() if s.policy_version == 7), None), "the new version")
    assert (state.version_source, state.weight_label, state.weight_updates) == ("engine", "step-7", earlier + 1)
    wait_for(lambda: hub.states()[-1].paused, "the pause")
    engine.run(engine.llm.resume_generation())
    for name, work in zip(names, running, strict=True):
        output = result(work)
        rollout = check_equal(hub, name, output)
        versions = [(span.start, span.version) for span in output.outputs[0].weight_versions]
        assert [(run.start, "default" if run.version is None else f"step-{run.version}") for run in rollout.runs] == (
            versions
        )
        assert rollout.size == 120
    switch(hub, "prefix_caching", "on", "end")


def test_an_engine_started_without_async_scheduling_is_recognised_by_its_scheduler(engine: LiveEngine) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    assert is_async(AsyncScheduler)
    assert not is_async(Scheduler)


def test_every_flag_in_any_order_with_requests_in_flight(engine: LiveEngine, hub: HubStandIn) -> None:
    rows = Walk(engine, hub).run()
    print(table(rows))
    assert {row.flag for row in rows} == set(BY_NAME)
    assert sum(len(row.milliseconds) for row in rows) == 20 * len(BY_NAME)


def test_a_failed_update_is_reported_and_blocks_nothing(engine: LiveEngine, hub: HubStandIn, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="collective_rpc method failed"):
        engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path)}))
    torn = fresh(hub)
    assert "reload_weights failed" in torn.fingerprint["weights torn"]
    assert not torn.update_open
    switch(hub, "prefix_caching", "off", "torn")
    switch(hub, "prefix_caching", "on", "torn")
    engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(MODEL)}))
    assert "weights torn" not in fresh(hub).fingerprint
    assert check_equal(hub, "mended", result(engine.generate("mended", prompt(1), 20, seed=1))).size == 20


def test_nothing_was_lost_and_nothing_failed(engine: LiveEngine, hub: HubStandIn) -> None:
    counts = wait_for(lambda: hub.health()[-1:], "health")[0]
    assert counts.faults == {}
    assert counts.counts["rollouts"].dropped == 0
    facts = hub.states()[-1].fingerprint
    assert facts["vllm_version"].startswith("0.")
    assert not ON_CPU or facts["scheduler"] == "AsyncScheduler (async restored by rltop's demo on this platform)"
    assert facts["batch_queue"] == "2"
    assert not ON_CPU or facts["default_sampling"] == "vLLM's own"
    assert facts["attention_backend"]
    assert facts["tokens read from"] == "batches"
    assert not [name for name in facts if name.startswith("missing")]
