"""Effects of each fault: on an engine's launch, requests and updates, and on the trainer's computation and data."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rltop.backend.demo import jobs, messages, supervisor
from rltop.backend.demo.engines import engine_process as demo_engine
from rltop.backend.demo.engines.engine_process import TicketServer
from rltop.backend.demo.faults import BY_NAME, FAULTS, HEALTHY, Fault, as_markdown
from rltop.backend.demo.options import MODEL, DemoOptions
from rltop.backend.demo.rl import policy, task
from rltop.backend.demo.rl.demo_trainer import DemoTrainer, gather, load_model, rollout_logprobs
from rltop.tui.cli.main import main

torch.set_num_threads(1)  # more threads are slower for models of this size

DEMO = Path(__file__).parents[3] / "docs" / "demo.md"


def job(fault: str, engine: str = "e1", **changes: Any) -> jobs.EngineJob:
    on_engine = dataclasses.replace(BY_NAME[fault], **changes).on(engine)
    return jobs.EngineJob(engine, "model", "socket", 0, BY_NAME[fault].temperature, on_engine)


# --- an engine's launch -------------------------------------------------------------------------------------------

LAUNCH: dict[str, Any] = {"dtype": "float32", "hf_overrides": {}, "logprobs_mode": "processed_logprobs"}
RAW = {"logprobs_mode": "raw_logprobs"}
LAUNCHES: dict[str, dict[str, Any]] = {
    "raw-logprobs": RAW,
    "raw-temperature-silent": RAW,
    "top-p-raw": RAW,
    "bf16-engine": {"dtype": "bfloat16"},
    "head-fp32-one-side": {"dtype": "bfloat16", "hf_overrides": {"head_dtype": "float32"}},
    "head-fp32-trainer": {"dtype": "bfloat16"},
    "v1-defaults": RAW | {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("fault", BY_NAME)
def test_engine_launch_options_of_each_fault(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    for module, name in (
        ("vllm.config", "WeightTransferConfig"),
        ("vllm.engine.arg_utils", "AsyncEngineArgs"),
    ):
        fake = ModuleType(module)
        setattr(fake, name, lambda **given: given)
        monkeypatch.setitem(sys.modules, module, fake)
    fake = ModuleType("vllm.v1.engine.async_llm")
    fake.AsyncLLM = SimpleNamespace(from_engine_args=lambda given: given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    sent = demo_engine.boot(job(fault))
    assert {key: sent[key] for key in LAUNCH} == {**LAUNCH, **LAUNCHES.get(fault, {})}


@pytest.mark.parametrize("fault", BY_NAME)
def test_only_the_penalty_fault_changes_the_checkpoint(tmp_path: Path, fault: str) -> None:
    path = supervisor._checkpoint(BY_NAME[fault], tmp_path)
    config = json.loads((path / "generation_config.json").read_text())
    assert config.get("repetition_penalty") == (1.1 if fault == "penalty-default" else None)
    assert (path == MODEL) == (fault != "penalty-default")
    assert sorted(file.name for file in path.iterdir()) == sorted(file.name for file in MODEL.iterdir())


# --- what requests ask for ----------------------------------------------------------------------------------------


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    for module, name, value in (
        ("vllm", "SamplingParams", lambda **given: given),
        ("vllm.sampling_params", "RequestOutputKind", SimpleNamespace(CUMULATIVE="cumulative")),
    ):
        fake = ModuleType(module)
        setattr(fake, name, value)
        monkeypatch.setitem(sys.modules, module, fake)
    return demo_engine._sampling


@pytest.mark.parametrize("fault", BY_NAME)
def test_sampling_parameters_of_each_fault(sampling: Callable[..., dict[str, Any]], fault: str) -> None:
    asked = sampling(job(fault), {}, 0, 0)
    assert asked["top_p"] == (0.9 if fault in ("top-p-processed", "top-p-raw") else 1.0)
    cool = ("raw-logprobs", "trainer-temperature", "raw-temperature-silent", "v1-defaults")
    assert asked["temperature"] == (0.7 if fault in cool else 1.0)


def test_requests_change_with_the_first_ticket_of_the_faults_first_step(
    sampling: Callable[..., dict[str, Any]],
) -> None:
    late = job("top-p-raw", at=3)
    asked = [sampling(late, {}, ticket, 0)["top_p"] for ticket in range(6 * jobs.GROUPS)]
    assert asked == [1.0] * (3 * jobs.GROUPS) + [0.9] * (3 * jobs.GROUPS)


def test_unset_sampling_parameters_come_from_the_checkpoint(sampling: Callable[..., dict[str, Any]]) -> None:
    asked = sampling(job(""), {"repetition_penalty": 1.1, "temperature": 0.3}, 0, 0)
    assert (asked["repetition_penalty"], asked["temperature"]) == (1.1, 1.0)


@pytest.mark.parametrize("fault", [HEALTHY, *FAULTS])
def test_only_cache_faults_salt_requests(fault: Fault) -> None:
    rollouts = TicketServer(SimpleNamespace(), jobs.EngineJob("e1", "model", "socket", 0, 1.0, fault), None)
    asked = [rollouts._prompt(f"t0-{number}", number, [1, 2]) for number in range(jobs.GROUP_SIZE)]
    assert all(prompt["prompt_token_ids"] == [1, 2] for prompt in asked)
    salts = [prompt["cache_salt"] for prompt in asked if "cache_salt" in prompt]
    assert len(set(salts)) == len(salts) == {"stale-prefix": 2, "kept-kv": jobs.GROUP_SIZE}.get(fault.name, 0)


# --- an engine's updates ------------------------------------------------------------------------------------------


class Recorder:
    """An ``AsyncLLM`` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> None:
            self.calls.append((name, *arguments, *named.values()))

        return call


def updated(
    monkeypatch: pytest.MonkeyPatch, engine_job: jobs.EngineJob, version: int = 3
) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """The calls of one update, and the messages to the trainer."""
    base = ModuleType("base")
    base.WeightTransferUpdateRequest = lambda update_info: update_info  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", base)
    recorder, sent = Recorder(), []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(TicketServer(recorder, engine_job, send).update(messages.Update(version, "file")))
    return recorder.calls, sent


LOADED = [("start_weight_update",), ("update_weights", {"path": "file"}), ("finish_weight_update", "3")]
LABELLED = [("update_weight_version", "3")]
UPDATES: dict[tuple[str, str], tuple[bool, list[Any]]] = {
    ("stale-replica", "e1"): (True, []),
    ("lying-replica", "e1"): (True, LABELLED),
    ("never-updated", "e0"): (True, LABELLED),
    ("never-updated", "e1"): (True, LABELLED),
    ("stale-prefix", "e0"): (False, LOADED),
    ("stale-prefix", "e1"): (False, LOADED),
    ("v1-defaults", "e0"): (False, LOADED),
    ("v1-defaults", "e1"): (False, LOADED),
    ("kept-kv", "e0"): (False, LOADED),
    ("kept-kv", "e1"): (False, LOADED),
}


@pytest.mark.parametrize("engine", ["e0", "e1"])
@pytest.mark.parametrize("fault", BY_NAME)
def test_update_calls_of_each_fault(monkeypatch: pytest.MonkeyPatch, fault: str, engine: str) -> None:
    clears, between = UPDATES.get((fault, engine), (True, LOADED))
    calls, sent = updated(monkeypatch, job(fault, engine))
    assert calls == [("pause_generation", "keep", clears), *between, ("resume_generation",)]
    assert [(message.engine, message.version) for message in sent] == [(engine, 3)]


@pytest.mark.parametrize(("version", "loads"), [(3, True), (4, True), (5, False), (6, False)])
def test_the_first_faulty_update_follows_the_faults_first_step(
    monkeypatch: pytest.MonkeyPatch, version: int, loads: bool
) -> None:
    calls, _ = updated(monkeypatch, job("never-updated", at=4), version)
    assert (("update_weights", {"path": "file"}) in calls) == loads


def test_a_slow_engine_is_slowed_once_with_the_first_ticket_of_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, slow = Recorder(), job("slow-engine", at=2)
    monkeypatch.setattr(TicketServer, "_sample", lambda *_: asyncio.sleep(0))

    async def answer() -> list[int]:
        rollouts = TicketServer(recorder, slow, lambda _: asyncio.sleep(0))
        slowed = []
        for ticket in (0, 2 * jobs.GROUPS - 1, 2 * jobs.GROUPS, 2 * jobs.GROUPS + 1):
            await rollouts.answer(ticket)
            slowed.append(len(recorder.calls))
        return slowed

    assert asyncio.run(answer()) == [0, 0, 1, 1]
    assert recorder.calls == [("collective_rpc", "rltop_demo_slow_down", (0.04,))]


# --- the trainer --------------------------------------------------------------------------------------------------


class RecordedCalls:
    """Records the calls to a trainer's collector and engines."""

    def __init__(self, **given: Any) -> None:
        self.facts: Any = given.get("facts")
        self.rows: list[dict[str, Any]] = []
        self.updates: list[dict[str, Any]] = []

    def sequences(self, step: int, **columns: Any) -> None:
        self.rows.append({"step": step, **columns})

    def publish(self, version: int, weights: dict[str, Any], steps: Any) -> None:
        self.updates.append(weights)


ANSWERS = [list(range(4, 4 + size)) for size in (3, 6, 5, 6)]


def rollouts() -> Any:
    groups = [
        messages.Group("e0", ticket, task.prompt(0, ticket),
                       [messages.SampledAnswer(answer, [-0.5 - 0.1 * t for t in range(len(answer))], [0] * len(answer))
                        for answer in ANSWERS[2 * ticket : 2 * ticket + 2]])
        for ticket in range(2)
    ]  # fmt: skip
    return gather(groups)


def trained(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, step: int = 0, *, facts: bool = True
) -> tuple[RecordedCalls, Any]:
    """The calls of one training step with ``fault``, and the trainer."""
    monkeypatch.setattr("rltop.backend.demo.rl.demo_trainer.TrainerCollector", RecordedCalls)
    monkeypatch.setattr("rltop.backend.demo.rl.demo_trainer.EnginePool", lambda *_: None)
    torch.manual_seed(0)
    trainer = DemoTrainer(
        jobs.TrainerJob("run", str(MODEL), "", "", ["e0"], 9, 0, fault.temperature, "ppo", 4, fault, facts)
    )
    trainer._train(step, rollouts())
    sent: Any = trainer._collector
    return sent, trainer


def is_in_training(fault: Fault) -> bool:
    return "trainer" in fault.where and not fault.withheld and fault.burst == 1


@pytest.mark.parametrize("fault", [HEALTHY, *filter(is_in_training, FAULTS)], ids=lambda fault: fault.name)
def test_trainer_data_of_each_fault(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    sent, _ = trained(monkeypatch, fault)
    (row,) = sent.rows
    data, name = rollouts(), fault.name
    model = load_model(str(MODEL)).eval()
    temperature = 1.0 if name in ("trainer-temperature", "raw-temperature-silent") else fault.temperature
    with torch.no_grad():
        expected, _ = policy.logprobs_and_entropy(
            model, data.batch, temperature, bf16=fault.bf16, head_fp32=fault.trainer_head_fp32
        )
    real = data.batch.mask > 0
    off = (row["trainer_logprobs"] - expected)[real].abs().max()
    assert off > 1e-2 if name == "dropout" else off < 1e-4
    assert (row["old_logprobs"] - expected)[real].abs().max() < 1e-4  # recomputed correctly, at its temperature
    assert row["temperature"] == fault.temperature  # the configured one
    copied = torch.equal(row["rollout_logprobs"], data.logprobs)
    assert copied == (name not in ("shifted-logprobs", "zero-padded-logprobs"))
    assert row["mask"].all() == (name == "dropped-mask")
    assert torch.equal(row["mask"] > 0, real) == (name != "dropped-mask")
    assert sent.facts["temperature"] == fault.temperature
    assert sent.facts["head_dtype"] == (torch.bfloat16 if name == "head-fp32-one-side" else torch.float32)


@pytest.mark.parametrize("name", ["trainer-temperature", "shifted-logprobs", "dropped-mask", "dropout"])
def test_the_trainer_is_healthy_until_the_fault_starts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    late = dataclasses.replace(BY_NAME[name], at=3)
    healthy = Fault(temperature=late.temperature)
    ((before,), (well,)) = (trained(monkeypatch, fault, 2)[0].rows for fault in (late, healthy))
    for column in ("rollout_logprobs", "trainer_logprobs", "mask"):
        assert torch.equal(before[column], well[column])
    (after,) = trained(monkeypatch, late, 3)[0].rows
    assert not all(torch.equal(after[c], well[c]) for c in ("rollout_logprobs", "trainer_logprobs", "mask"))


def test_copied_logprobs_are_shifted_or_zeroed_at_the_end_of_each_answer() -> None:
    data = rollouts()
    late, lost = (rollout_logprobs(data, BY_NAME[name]) for name in ("shifted-logprobs", "zero-padded-logprobs"))
    for row, answer in enumerate(ANSWERS):
        kept = data.logprobs[row, : len(answer)].tolist()
        assert late[row].tolist() == pytest.approx([0.0, *kept[:-1], *[0.0] * (6 - len(answer))])
        assert lost[row].tolist() == pytest.approx([*kept[: max(len(answer) - 4, 0)], *[0.0] * 4, *[0.0] * 6][:6])


@pytest.mark.parametrize("at", [0, 3])
def test_updates_withhold_the_head_alone(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    _, trainer = trained(monkeypatch, dataclasses.replace(BY_NAME["head-not-updated"], at=at))
    for step in (0, 2, 3):
        missing = set(trainer._model.state_dict()) - set(trainer._update(step))
        assert missing == ({"lm_head.weight"} if step >= at else set())


def test_punished_entropy_falls_faster_than_under_a_healthy_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    fell = {}
    for fault in (HEALTHY, BY_NAME["entropy-collapse"]):
        sent, trainer = trained(monkeypatch, fault)
        trainer._train(1, rollouts())
        means = [float((row["entropy"].detach() * row["mask"]).sum() / row["mask"].sum()) for row in sent.rows]
        fell[fault.name] = means[0] - means[-1]
    assert fell["entropy-collapse"] > fell[""] + 0.01


def test_a_trainer_without_facts_states_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(monkeypatch, HEALTHY, facts=False)[0].facts is None


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_unchanged_by_encoding(fault: Fault) -> None:
    options = DemoOptions(fault=fault.name)
    assert options.injected == fault
    sent = jobs.EngineJob("e1", "model", "socket", 0, 1.0, fault)
    assert jobs.decode(jobs.encode(sent), jobs.EngineJob) == sent


def test_a_fault_starts_at_the_given_step_and_engine() -> None:
    options = DemoOptions(fault="lying-replica", fault_at=5, fault_engine="e0")
    assert [options.injected.on(engine).name for engine in ("e0", "e1")] == ["lying-replica", ""]
    assert [options.injected.during(step).name for step in (4, 5)] == ["", "lying-replica"]
    assert options.injected.description == "e0 loads no weight updates, but its version advances"


@pytest.mark.parametrize("fault", [HEALTHY, *FAULTS])
def test_the_temperature_defaults_to_the_faults(fault: Fault) -> None:
    assert DemoOptions(fault=fault.name).sampled_at == fault.temperature
    assert DemoOptions(fault=fault.name, temperature=0.5).sampled_at == 0.5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"fault": "gremlins"}, "fault: 'gremlins'; expected one of raw-logprobs, trainer-temperature, "),
        ({"fault": "lying-replica", "engines": 1}, r"fault lying-replica: it needs engine e1; engines are \['e0'\]"),
        ({"fault": "lying-replica", "fault_engine": "e2"}, "fault lying-replica: it needs engine e2; engines are "),
        ({"fault": "lag", "fault_engine": "e1"}, "--fault-engine: lag is not limited to one engine; leave the option "),
        ({"fault": "bf16-engine", "fault_at": 5}, "--fault-at: bf16-engine exists from the launch, so it can't"),
        ({"fault_at": 5}, "--fault-at: there is no fault, so it can't start at step 5"),
        ({"fault": "lag", "steps": 9, "fault_at": 9}, "--fault-at: 9; expected 0 to 8"),
    ],
)  # fmt: skip
def test_invalid_fault_options_are_rejected(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DemoOptions(**options)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_has_a_cause_and_a_component(fault: Fault) -> None:
    assert fault.codes and fault.help and fault.where
    assert fault != dataclasses.replace(
        HEALTHY, **{key: getattr(fault, key) for key in ("name", "codes", "help", "where", "launch", "first", "engine")}
    )


def test_the_help_and_the_page_list_every_fault() -> None:
    printed = " ".join(CliRunner().invoke(main, ["demo", "--help"]).output.replace("-\n", "-").split())
    for fault in FAULTS:
        assert f"{fault.name} {fault.help}".replace("- ", "-") in printed.replace("- ", "-")
    assert as_markdown() in DEMO.read_text()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ("", 0, "", True)),
        (["--fault", "lag"], ("lag", 0, "", True)),
        (["--fault", "lying-replica", "--fault-at", "7", "--fault-engine", "e0", "--no-facts"],
         ("lying-replica", 7, "e0", False)),
    ],
)  # fmt: skip
def test_the_command_passes_the_fault_options(
    monkeypatch: pytest.MonkeyPatch, given: list[str], wanted: tuple[Any, ...]
) -> None:
    sent: list[DemoOptions] = []
    monkeypatch.setattr(supervisor, "run_headless", sent.append)
    assert CliRunner().invoke(main, ["demo", "--headless", *given]).exit_code == 0
    (options,) = sent
    assert (options.fault, options.fault_at, options.fault_engine, options.facts) == wanted
