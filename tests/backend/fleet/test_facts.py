"""Facts of engines against each other and against the trainer's word: what is marked, what is told, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.fleet import facts
from rltop.backend.fleet.agreement import RECENT, SETTLE_S, SamplingFacts
from rltop.backend.fleet.facts import BY_NAME, FACTS, compare, defaults, same_model, same_text, same_top_k
from rltop.collectors.contract import wire
from rltop.collectors.contract.facts import MAX_CHARS, MAX_FACTS, as_text, checked_facts
from rltop.collectors.contract.flags import FLAGS
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, engine_state, rollouts, sequences

ENGINE = {"vllm_version": "0.32.0", "dtype": "bfloat16", "head_dtype": "float32", "logprobs_mode": "processed"}


def test_every_fact_has_a_description_and_an_effect() -> None:
    assert len(BY_NAME) == len(FACTS)
    for fact in FACTS:
        assert fact.means
        assert bool(fact.why) != (fact.name in facts.FLAG_NAMES)
        assert fact.fleet or fact.trainer
    assert {flag.name for flag in FLAGS} <= BY_NAME.keys()
    assert facts.NEUTRAL.keys() <= BY_NAME.keys()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("torch.float32", "float32", True), ("fp32", "float32", True), ("BF16", "bfloat16", True), ("1", "1.0", True),
        ("half", "torch.float16", True), ("float16", "bfloat16", False), ("0.7", "0.70", True), ("0.7", "0.71", False),
        ("none", "none", True), ("none", "fp8", False),
    ],
)  # fmt: skip
def test_values_with_one_meaning_are_equal(one: str, other: str, same: bool) -> None:
    assert same_text(one, other) is same_text(other, one) is same


def test_top_k_and_models_have_their_own_comparison() -> None:
    assert same_top_k("-1", "0")
    assert same_top_k("none", "-1")
    assert not same_top_k("50", "-1")
    assert same_model("/mnt/a/Qwen3-8B", "Qwen/Qwen3-8B")
    assert not same_model("Qwen/Qwen3-8B", "Qwen/Qwen3-4B")


def found(engines: dict[str, dict[str, str]], trainer: dict[str, str] | None = None) -> dict[tuple[str, str], str]:
    return {(one.engine, one.fact): one.explanation for one in compare(engines, trainer or {})}


def test_of_three_the_odd_one_is_marked_and_of_two_both() -> None:
    odd = ENGINE | {"dtype": "float16"}
    assert found({"e0": ENGINE, "e1": odd, "e2": ENGINE}) == {("e1", "dtype"): "e0, e2 have bfloat16"}
    assert found({"e0": ENGINE, "e1": odd}) == {
        ("e0", "dtype"): "e1 has float16",
        ("e1", "dtype"): "e0 has bfloat16",
    }
    assert found({"e0": ENGINE, "e1": ENGINE}) == {}


def test_what_is_not_stated_is_not_compared() -> None:
    known = ENGINE | {"attention_backend": "FLASH_ATTN"}
    assert found({"e0": known, "e1": ENGINE}, {}) == {}
    assert found({"e0": ENGINE}, {"temperature": "0.7", "quantization": "fp8"}) == {}


def test_the_trainer_is_compared_with_every_engine() -> None:
    trainer = {"dtype": "torch.float32", "head_dtype": "fp32", "temperature": "1.0"}
    sampled = ENGINE | {"temperature": "0.7"}
    assert found({"e0": sampled, "e1": sampled}, trainer) == {
        ("e0", "dtype"): "the trainer states torch.float32",
        ("e1", "dtype"): "the trainer states torch.float32",
        ("e0", "temperature"): "the trainer states 1.0",
        ("e1", "temperature"): "the trainer states 1.0",
    }


def test_requests_of_several_kinds_agree_if_one_kind_is_the_trainers() -> None:
    assert found({"e0": ENGINE | {"temperature": "0, 1"}}, {"temperature": "1"}) == {}


@pytest.mark.parametrize(
    ("mode", "sampled", "trainer", "left_out"),
    [
        ("raw", {}, {"temperature": "0.7"}, "temperature 0.7"),
        ("raw", {}, {"temperature": "1.0", "top_p": "0.95"}, "top_p 0.95"),
        ("raw", {"temperature": "1", "top_k": "20"}, {"temperature": "1"}, "top_k 20"),
        ("raw (strict)", {"temperature": "0.6", "top_p": "0.9"}, {}, "temperature 0.6, top_p 0.9"),
        ("raw", {}, {"temperature": "1", "top_k": "-1", "top_p": "1.0"}, None),
        ("raw", {"temperature": "0, 1"}, {}, None),
        ("raw", {}, {}, None),
        ("processed", {"temperature": "0.7"}, {"temperature": "0.7"}, None),
    ],
)
def test_raw_logprobs_mismatch_shaped_sampling(
    mode: str, sampled: dict[str, str], trainer: dict[str, str], left_out: str | None
) -> None:
    said = found({"e0": ENGINE | sampled | {"logprobs_mode": mode}}, trainer)
    expected = {("e0", "logprobs_mode"): f"raw logprobs leave out {left_out}, which makes every ratio wrong"}
    assert said == (expected if left_out else {})


def test_defaults_of_a_generation_config_are_compared_with_the_trainer() -> None:
    filled = ENGINE | {"default_sampling": "repetition_penalty=1.05, temperature=0.6, top_k=20, top_p=0.95"}
    assert defaults(filled) == {"repetition_penalty": "1.05", "temperature": "0.6", "top_k": "20", "top_p": "0.95"}
    assert defaults(ENGINE | {"default_sampling": "vLLM's own"}) == {}
    assert found({"e0": filled}, {"temperature": "1", "top_k": "20"}) == {
        ("e0", "default_sampling"): "requests without their own value get temperature 0.6 where the trainer states 1"
    }


values = st.sampled_from(["a", "b", "c"])


@given(st.dictionaries(st.text(min_size=1, max_size=3), values, max_size=9))
def test_engines_are_marked_unless_they_are_the_majority(engines: dict[str, str]) -> None:
    marked = {one.engine for one in compare({name: {"device": value} for name, value in engines.items()}, {})}
    counts = {value: list(engines.values()).count(value) for value in engines.values()}
    usual = [value for value, count in counts.items() if 2 * count > len(engines)]
    assert marked == {name for name, value in engines.items() if len(counts) > 1 and value not in usual}


def test_sampling_facts_come_from_the_latest_requests_with_logprobs() -> None:
    sampled = SamplingFacts()
    assert sampled.facts("e0") == {}

    def finish(temperature: float, count: int = 1, **about: float) -> None:
        body, _ = rollouts([Written([1], [2], [-1.0])] * count)
        entries = [
            wire.Rollout(r.request_id, 1, 1, "stop", [], "engine", True, sampling={"temperature": temperature, **about})
            for r in body.rollouts
        ]
        sampled.observe(wire.Rollouts("e0", entries, body.arrays))

    finish(0.7)
    assert sampled.facts("e0")["temperature"] == "0.7"
    assert sampled.facts("e0")["top_p"] == "1"
    finish(1.0, top_p=0.9)
    assert (sampled.facts("e0")["temperature"], sampled.facts("e0")["top_p"]) == ("0.7, 1", "0.9, 1")
    finish(1.0, RECENT)
    assert (sampled.facts("e0")["temperature"], sampled.facts("e0")["top_p"]) == ("1", "1")


# --- in the hub --------------------------------------------------------------------------------------------------


def told(hub: Hub) -> list[tuple[str, str]]:
    return [(event.severity, event.text) for event in hub.picture.events if event.kind == "facts"]


def both(hub: Hub, one: dict[str, str], other: dict[str, str], seconds: float = SETTLE_S + 2) -> None:
    """Both engines report these facts for so long."""
    for _ in range(int(seconds)):
        hub.engine("e0", fingerprint=one)
        hub.engine("e1", fingerprint=other)
        hub.later(1.0)


def test_a_mismatch_and_its_end_are_one_event_each() -> None:
    hub = Hub()
    both(hub, ENGINE, ENGINE | {"dtype": "float16"}, 12)
    assert told(hub) == [
        (
            "warn",
            "dtype differs across the fleet: e0 has bfloat16; e1 has float16; other rounding: the gap grows with the "
            "length of an answer",
        )
    ]
    assert hub.picture.engines["e0"].differs == {"dtype": "e1 has float16"}
    both(hub, ENGINE, ENGINE)
    assert told(hub)[1:] == [("info", "dtype no longer differs across the fleet")]
    assert hub.picture.engines["e0"].differs == {}
    both(hub, ENGINE | {"dtype": "float16"}, ENGINE)
    assert len(told(hub)) == 3


def test_a_fleet_that_is_switched_one_by_one_is_no_mismatch() -> None:
    hub = Hub()
    both(hub, ENGINE, ENGINE)
    both(hub, ENGINE | {"head_dtype": "bfloat16"}, ENGINE, SETTLE_S - 2)
    both(hub, ENGINE | {"head_dtype": "bfloat16"}, ENGINE | {"head_dtype": "bfloat16"})
    assert told(hub) == []


def test_current_flags_are_compared_and_a_canary_is_no_warning() -> None:
    hub = Hub()
    off = {"prefix_caching": wire.FlagState("off", True), "async_scheduling": wire.FlagState("off", True, "", "strict")}
    for _ in range(8):
        hub.engine("e0")
        hub.engine("e1", flags=off)
        hub.later(1.0)
    assert [severity for severity, _ in told(hub)] == ["info", "info"]
    assert hub.picture.engines["e0"].differs == {
        "prefix_caching": "e1 has off",
        "async_scheduling": "e1 has off (strict)",
    }


def test_an_engine_that_is_gone_does_not_count() -> None:
    hub = Hub()
    hub.engine("e0", fingerprint=ENGINE)
    hub.engine("e1", fingerprint=ENGINE | {"dtype": "float16"})
    hub.say("e1", wire.Bye("e1", "life-1", 1))
    both_gone = hub.picture.engines
    for _ in range(8):
        hub.engine("e0", fingerprint=ENGINE)
        hub.later(1.0)
    assert told(hub) == []
    assert both_gone["e0"].differs == {}


def test_trainer_facts_are_compared_shown_and_dropped_at_a_restart() -> None:
    hub = Hub()
    hub.send("trainer/0", wire.TrainerFacts(0, {"dtype": "float32", "temperature": "1"}))
    both(hub, ENGINE, ENGINE)
    assert hub.picture.trainer.facts == {"dtype": "float32", "temperature": "1"}
    assert hub.picture.engines["e1"].differs == {"dtype": "the trainer states float32"}
    assert [text for _, text in told(hub)] == [
        "dtype: e0, e1 have bfloat16, the trainer states float32; other rounding: the gap grows with the length of an "
        "answer"
    ]
    hub.sources.pop("trainer/0")
    hub.source("trainer/0").epoch = "life-2"
    hub.send("trainer/0", *sequences([Trained([1, 2], [0, 1], [-1.0], [-1.0])], temperature=0.7))
    both(hub, ENGINE, ENGINE)
    assert hub.picture.trainer.facts == {"temperature": "0.7"}
    assert told(hub)[1:] == [("info", "dtype no longer differs from training")]


def test_requests_are_compared_with_the_trainers_temperature() -> None:
    hub = Hub()
    body, arrays = rollouts([Written([1], [2], [-1.0])])
    entry = wire.Rollout("r", 1, 1, "stop", [], "engine", True, sampling={"temperature": 0.6})
    hub.send("trainer/0", wire.TrainerFacts(0, {"temperature": "1.0"}))
    for _ in range(6):
        hub.engine("e0", fingerprint=ENGINE)
        hub.send("e0", wire.Rollouts("e0", [entry], body.arrays), arrays)
        hub.later(1.0)
    assert hub.picture.engines["e0"].fingerprint["temperature"] == "0.6"
    assert hub.picture.engines["e0"].differs == {"temperature": "the trainer states 1.0"}


@pytest.mark.parametrize(("temperatures", "differs"), [([1.0, 0.6], False), ([0.7, 0.7], True)])
def test_requests_are_compared_with_each_temperature_of_the_trainers_tokens(
    temperatures: list[float], differs: bool
) -> None:
    hub = Hub()
    body, arrays = rollouts([Written([1], [2], [-1.0])])
    entry = wire.Rollout("r", 1, 1, "stop", [], "engine", True, sampling={"temperature": 0.6})
    row = Trained([1, 2, 3], [0, 1, 1], [-1.0] * 2, [-1.0] * 2, per_token={"temperatures": temperatures})
    hub.send("trainer/0", *sequences([row]))
    for _ in range(6):
        hub.engine("e0", fingerprint=ENGINE)
        hub.send("e0", wire.Rollouts("e0", [entry], body.arrays), arrays)
        hub.later(1.0)
    stated = "0.7" if differs else "0.6, 1"
    assert hub.picture.trainer.facts == {"temperature": stated}
    assert hub.picture.engines["e0"].differs == ({"temperature": f"the trainer states {stated}"} if differs else {})


def test_facts_of_an_engine_are_its_fingerprint_and_its_flags_now() -> None:
    state = engine_state("e0", fingerprint={"logprobs_mode": "raw_logprobs", "async_scheduling": "launched on"})
    state.flags["async_scheduling"] = wire.FlagState("off", True, "", "depth 1")
    state.flags["logprobs_mode"] = wire.FlagState(None, False, "unknown here")
    known = facts.of_engine(state)
    assert (known["async_scheduling"], known["logprobs_mode"]) == ("off (depth 1)", "raw_logprobs")


# --- what may be stated -------------------------------------------------------------------------------------------


def test_values_are_text_that_is_always_the_same() -> None:
    import numpy as np
    import torch

    assert as_text(torch.bfloat16) == "bfloat16"
    assert as_text(np.dtype("float32")) == as_text(np.float32) == "float32"
    assert (as_text(True), as_text(False), as_text(0.7), as_text(1.0), as_text(1)) == ("on", "off", "0.7", "1", "1")
    assert as_text("two\n words ") == "two words"
    assert as_text(None) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"a b": 1}, {"": 1}, {3: 1}, {"x": float("nan")}, {"x": float("inf")}, {"x": ""}, {"x": "y" * (MAX_CHARS + 1)},
        {f"f{i}": i for i in range(MAX_FACTS + 1)},
    ],
)  # fmt: skip
def test_invalid_facts_are_refused(wrong: dict[object, object]) -> None:
    with pytest.raises(ValueError, match="fact"):
        checked_facts(wrong)
