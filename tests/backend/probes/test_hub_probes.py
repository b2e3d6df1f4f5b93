"""Probes through the hub's core: request, verdict once all reports have arrived, audit log."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult, as_json, as_text, mean, share, student
from rltop.backend.commands import audit
from rltop.backend.probes.from_hub_state import token_echo
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences


def ask(hub: Hub, probe: str, engines: list[str] | None = None) -> str:
    answer, _ = hub.ask(api.AskProbe(f"q-{probe}-{hub.now}", probe, engines, "ann", "box", "why", 60.0))
    assert answer.command is not None, answer.error
    return answer.command


def result(hub: Hub, command: str) -> ProbeResult:
    hub.later(1.0)
    return hub.picture.probes[command]


def fleet(*names: str) -> Hub:
    hub = Hub()
    for name in names:
        hub.engine(name, fingerprint={"vllm_version": "0.32.0", "dtype": "float32"})
    hub.later()
    return hub


def test_a_config_diff_names_the_differing_facts_and_is_logged() -> None:
    hub = fleet("e0", "e1")
    command = ask(hub, "config-diff")
    found = result(hub, command)
    assert (found.verdict, found.code, found.engines) == ("agree", "P0", ["e0", "e1"])
    hub.engine("e1", fingerprint={"vllm_version": "0.32.0", "dtype": "bfloat16"})
    hub.later()
    found = result(hub, command := ask(hub, "config-diff"))
    assert found.verdict == "differ"
    assert found.odd == ["e0", "e1"]
    assert "dtype" in found.text
    assert any("e1 has bfloat16" in note for note in found.notes)
    mine = [line for line in hub.lines if line.command == command]
    assert [line.event for line in mine] == ["requested", "requested", "applied", "applied", audit.MEASURED]
    assert mine[-1].result == found
    assert "probe config-diff" in audit.as_text(mine[-1])


def test_one_engine_alone_is_compared_with_the_trainer() -> None:
    hub = fleet("e0")
    hub.send("trainer/0", wire.TrainerFacts(0, {"dtype": "bf16"}))
    hub.later()
    found = result(hub, ask(hub, "config-diff"))
    assert found.verdict == "differ"
    assert any("the trainer states bf16" in note for note in found.notes)


PROMPT, TOKENS, LOGPROBS = [3, 4, 5], [6, 7, 8, 9], [-0.5, -1.0, -0.25, -2.0]


def step_of(hub: Hub, ids: list[int], prompt: list[int] = PROMPT) -> None:
    hub.send("e0", *rollouts([Written(PROMPT, TOKENS, LOGPROBS, [3] * 4)]))
    row = Trained(ids, [1] * len(ids), LOGPROBS[: len(ids)], LOGPROBS[: len(ids)], prompt=prompt)
    hub.send("trainer/0", *sequences([row]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, 4))
    hub.settle()


def test_token_echo_of_equal_ids() -> None:
    hub = fleet("e0")
    step_of(hub, TOKENS)
    found = result(hub, ask(hub, "token-echo"))
    assert found.verdict == "equal"
    (rows, copied) = found.evidence
    assert (rows.value, rows.n, copied.value) == (0.0, 1, 0.0)


def test_token_echo_of_different_ids() -> None:
    hub = fleet("e0")
    step_of(hub, [6, 7, 8, 1])
    found = result(hub, ask(hub, "token-echo"))
    assert found.verdict == "differ"
    assert "1 of 1 rows" in found.text
    assert "retokenised" in found.text or "no_completion_match" in found.text


def test_a_token_echo_before_the_first_step_is_unclear() -> None:
    assert token_echo(fleet("e0").picture).verdict == "unclear"


def test_an_invalid_probe_is_rejected_before_anything_is_sent() -> None:
    hub = fleet("e0")
    for probe, words in (("nonsense", "there is config-diff"), ("canary-flip", "can't be started")):
        answer, sent = hub.ask(api.AskProbe(probe, probe))
        assert answer.error is not None
        assert words in answer.error
        assert sent == []
    answer, _ = hub.ask(api.AskProbe("x", "config-diff", ["e7"]))
    assert answer.error == "no engine 'e7'; live engines: e0"


def test_the_next_hub_restores_results_from_the_log() -> None:
    hub = fleet("e0", "e1")
    found = result(hub, command := ask(hub, "config-diff"))
    other = Hub("hub-2")
    other.restore(hub.lines)
    other.later(1.0)
    assert other.picture.probes == {command: found}
    assert [line.event for line in other.lines] == []


def test_a_result_as_text_and_json() -> None:
    hub = fleet("e0", "e1")
    found = result(hub, ask(hub, "config-diff"))
    assert as_text(found).startswith("config-diff (P0) on e0, e1: agree")
    assert as_json(found)["verdict"] == "agree"
    odd = ProbeResult("c", "p", "P", [], "unclear", "", evidence=[mean("gap", [math.inf, 1.0], "nats", "sequences")])
    assert as_json(odd)["evidence"][0]["value"] is None


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_share_lies_in_its_interval(hits: int, more: int) -> None:
    found = share("x", hits, hits + more, "rows")
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_students_points_are_those_of_the_tables() -> None:
    for freedom, point in ((1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042)):
        assert student(freedom) == pytest.approx(point, rel=0.01)


def test_the_interval_of_a_mean_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    found = [mean("x", rng.normal(1.0, 2.0, 5).tolist(), "", "") for _ in range(2000)]
    inside = sum(one.low is not None and one.high is not None and one.low <= 1.0 <= one.high for one in found)
    assert 0.94 < inside / 2000 < 0.96
