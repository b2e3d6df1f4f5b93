"""What an engine of the demo does at a weight update with each fault, and where a fault stands."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from rltop.backend.demo import jobs, messages, run
from rltop.backend.demo.engine import Rollouts
from rltop.backend.demo.faults import BY_NAME, FAULTS, HEALTHY
from rltop.backend.demo.options import DemoOptions
from rltop.tui.cli.main import main


class Recorder:
    """An ``AsyncLLM`` that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> None:
            self.calls.append((name, *arguments, *named.values()))

        return call


def updated(monkeypatch: pytest.MonkeyPatch, fault: str, engine: str) -> tuple[list[tuple[Any, ...]], list[Any]]:
    """The calls of one update to version 3, and what the trainer is told."""
    base = ModuleType("base")
    base.WeightTransferUpdateRequest = lambda update_info: update_info  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", base)
    recorder, told = Recorder(), []

    async def send(message: Any) -> None:
        told.append(message)

    job = jobs.EngineJob(engine, "model", "socket", 0, 1.0, BY_NAME[fault].on(engine))
    asyncio.run(Rollouts(recorder, job, send).update(messages.Update(3, "file")))
    return recorder.calls, told


LOADED = [("start_weight_update",), ("update_weights", {"path": "file"}), ("finish_weight_update", "3")]


@pytest.mark.parametrize(
    ("fault", "engine", "clears", "between"),
    [
        ("", "e1", True, LOADED),
        ("stale-replica", "e0", True, LOADED),
        ("stale-replica", "e1", True, []),
        ("lying-replica", "e0", True, LOADED),
        ("lying-replica", "e1", True, [("update_weight_version", "3")]),
        ("stale-prefix", "e0", False, LOADED),
        ("stale-prefix", "e1", False, LOADED),
        ("lag", "e1", True, LOADED),
    ],
)
def test_an_update_goes_wrong_as_the_fault_says(
    monkeypatch: pytest.MonkeyPatch, fault: str, engine: str, clears: bool, between: list[tuple[Any, ...]]
) -> None:
    calls, told = updated(monkeypatch, fault, engine)
    assert calls == [("pause_generation", "keep", clears), *between, ("resume_generation",)]
    assert [(message.engine, message.version) for message in told] == [(engine, 3)]


@pytest.mark.parametrize("fault", [HEALTHY, *FAULTS])
def test_only_a_stale_prefix_keeps_requests_apart(fault: Any) -> None:
    rollouts = Rollouts(SimpleNamespace(), jobs.EngineJob("e1", "model", "socket", 0, 1.0, fault), None)
    asked = [rollouts._prompt(f"t0-{number}", number, [1, 2]) for number in range(jobs.GROUP_SIZE)]
    assert all(prompt["prompt_token_ids"] == [1, 2] for prompt in asked)
    salts = [prompt["cache_salt"] for prompt in asked if "cache_salt" in prompt]
    assert len(set(salts)) == len(salts) == (2 if fault.name == "stale-prefix" else 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_survives_the_way_to_another_process(fault: Any) -> None:
    options = DemoOptions(fault=fault.name)
    assert options.injected == fault
    job = jobs.EngineJob("e1", "model", "socket", 0, 1.0, fault)
    assert jobs.decode(jobs.encode(job), jobs.EngineJob) == job


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"fault": "gremlins"}, "fault: 'gremlins'; expected one of raw-logprobs, trainer-temperature, "),
        ({"fault": "lying-replica", "engines": 1}, r"fault lying-replica: it is on e1; engines are \['e0'\]"),
    ],
)
def test_a_fault_that_cannot_be_had_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DemoOptions(**options)


def test_the_help_tells_of_every_fault() -> None:
    told = " ".join(CliRunner().invoke(main, ["demo", "--help"]).output.replace("-\n", "-").split())
    for fault in FAULTS:
        assert f"{fault.name}: {fault.help}".replace("- ", "-") in told.replace("- ", "-")


@pytest.mark.parametrize(("given", "wanted"), [([], ""), (["--fault", "lag"], "lag")])
def test_the_command_passes_on_the_fault_or_none(
    monkeypatch: pytest.MonkeyPatch, given: list[str], wanted: str
) -> None:
    told: list[DemoOptions] = []
    monkeypatch.setattr(run, "run_headless", told.append)
    assert CliRunner().invoke(main, ["demo", "--headless", *given]).exit_code == 0
    assert [options.fault for options in told] == [wanted]
