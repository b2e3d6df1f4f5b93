"""The encoding of messages is frozen: old bytes stay readable, and appended fields are compatible.

``wire_golden.json`` holds the msgpack frame of every message as hex. A change here is a change of the wire: append
fields with defaults, and add a new entry; never edit one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from rltop.collectors.contract import wire

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "wire_golden.json").read_text())

ENVELOPES = {
    "envelope": wire.Envelope(1, "trainer/0", "0123456789abcdef", 42, 1700000000.25),
    "envelope_with_oldest": wire.Envelope(1, "trainer/0", "0123456789abcdef", 42, 1700000000.25, 17),
}

COMMAND_UPDATE = wire.CommandUpdate(
    "c1", "e0", "prefix_caching", "applied", "done", "on", "off", 100, 7, 12, 0, 1.5, 1700000001.0
)

ARRAYS: dict[str, wire.Arrays] = {
    "rollouts": {
        "prompt_ids": np.array([1, 2, 3], "<i4"),
        "token_ids": np.array([4, 5], "<i4"),
        "logprobs": np.array([-0.5, np.nan], "<f4"),
    },
    "probe_report": {"logprobs": np.array([-0.5, -1.0], "<f4")},
    "sequences": {"row_sizes": np.array([2], "<i4"), "row_mask": np.array([1, 1], "u1")},
}

MESSAGES: dict[str, wire.Body] = {
    "rollouts": wire.Rollouts(
        "e0",
        [
            wire.Rollout(
                "r-1",
                3,
                2,
                "stop",
                [wire.VersionRun(0, 1, 7), wire.VersionRun(1, 1)],
                "engine",
                True,
                2,
                False,
                {"temperature": 0.5},
                1.0,
                2.0,
                3.0,
                9,
            )
        ],
        wire.describe(ARRAYS["rollouts"]),
    ),
    "engine_state": wire.EngineState(
        "e0",
        "host",
        123,
        100,
        7,
        "engine",
        "7",
        3,
        1,
        0.25,
        1000,
        2000,
        500,
        30,
        1,
        0,
        {"prefix_caching": wire.FlagState("on", True), "async_scheduling": wire.FlagState(None, False, "why")},
        2,
        {"vllm": "0.32.0"},
        [COMMAND_UPDATE],
        False,
        True,
        6,
    ),
    "sequences": wire.Sequences(5, 1, 2, 1, wire.describe(ARRAYS["sequences"]), 7, 0.5, 0.75, 1.25, "old", "gspo"),
    "step_closed": wire.StepClosed(5, 2, 4, 8, {"grad_norm": 1.5}, 1700000002.0),
    "health": wire.Health({"step": wire.Counts(10, 7, 1, 2)}, 100, 1000, 55, 0.5, {"encode": 1}),
    "command_update": COMMAND_UPDATE,
    "register": wire.Register(1, "e0", "0123456789abcdef", "engine"),
    "bye": wire.Bye("e0", "0123456789abcdef", 43),
    "bye_ack": wire.ByeAck("0123456789abcdef"),
    "welcome": wire.Welcome("fedcba9876543210"),
    "proven": wire.Proven("fedcba9876543210", b"a message", bytes(range(32))),
    "command": wire.Command("c1", "prefix_caching", "off", 1700000003.0),
    "sequences_with_request_ids": wire.Sequences(5, 0, 0, 2, [], request_ids=["cmpl-1-0", ""]),
    "trainer_facts": wire.TrainerFacts(0, {"temperature": "0.7", "dtype": "float32"}),
    "command_with_timer": wire.Command("c2", "async_scheduling", "off", 1700000003.0, "set", True, 600.0, "c1"),
    "command_update_of_a_revert": wire.CommandUpdate(
        "c2/revert", "e0", "async_scheduling", "superseded", "changed since", "on", "on", 101, 7, 12, 0, 1.5,
        1700000001.0, "set", "depth 1", 1700000601.0, "c2", 5,
    ),
    "command_update_of_a_waiting_revert": wire.CommandUpdate(
        "c2/revert", "e0", "async_scheduling", "draining", "an update is open", engine_step=101, time=1700000001.0,
        reverts="c2", wanted="on",
    ),
    "rollouts_since": wire.Rollouts(
        "e0", [wire.Rollout("r-2", 0, 0, "abort", [], "unknown", True, None, False, {}, 1.0, 2.0, 3.0, 9, 1.5, 0.5)], []
    ),
    "engine_state_with_timer": wire.EngineState(
        "e0", "host", 123, 100, 7, "engine", "7", 3, 1, 0.25, 1000, 2000, 500, 30, 1, 0,
        {"async_scheduling": wire.FlagState("off", True, "", "strict")}, 2, {}, [], False, True, 6,
        [wire.Timer("c2", "set", "async_scheduling", "on", 1700000601.0)],
    ),
    "engine_state_with_latencies": wire.EngineState(
        "e0", "host", 123, 100, 7, "engine", "7", 3, 1, 0.25, 1000, 2000, 500, 30, 1, 0, {}, 0, {}, [], False, False, 6,
        [], 4, 1.5, 30, 12.25, 1970,
    ),
    "command_of_a_probe": wire.Command(
        "c3", "", "", 1700000003.0, "probe", probe="prefill-rescore",
        passages=(wire.Passage("r-1", np.array([1, 2, 3], "<i4").tobytes(), 2),),
    ),
    "probe_report": wire.ProbeReport(
        "c3", "e0", "prefill-rescore", wire.describe(ARRAYS["probe_report"]), 7, 6, 5,
        [wire.Score(0, "cold", 1, 2, 0)], [wire.Digest("w", "packed", "0" * 16, "f" * 16, "float32", 8192, 1)],
        {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}, 1, 3, 0.5, 0.25, 0.125, ["note"],
    ),
    "step_closed_with_digests": wire.StepClosed(5, 0, 1, 8, weight_digests={"w": "float32:" + "f" * 16}),
    "step_closed_with_rows": wire.StepClosed(5, 0, 1, 8, rows=512),
    "sequences_with_environments": wire.Sequences(
        5, 1, 0, 2, [], 1024, ratio_base="current", environments=["math", ""], version_unit=512, first_update=1
    ),
    "step_closed_with_unit": wire.StepClosed(5, 0, 1, 1536, version_unit=512),
    "refit_report": wire.RefitReport(
        "e0", "update", 3, 7, "engine", 26,
        [wire.WeightSketch("w", "float32", 64, ["f" * 16], 2.5, [0.5, -1.0], 1, 1)],
        {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}, 0.25, 0.125, 0.5, 60.0, ["note"],
    ),
    "trainer_weights": wire.TrainerWeights(0, 7, [wire.WeightSketch("w", "float32", 64, ["f" * 16] * 3, 2.5, [0.5])]),
    "passed": wire.Passed(),
    "bye_with_oldest": wire.Bye("e0", "0123456789abcdef", 43, 17),
    "acknowledged": wire.Acknowledged("0123456789abcdef", 41),
    "resend": wire.Resend("0123456789abcdef", 17),
    "refused": wire.Refused("0123456789abcdef", "another trainer is live"),
}  # fmt: skip


def decoder_for(body: wire.Body) -> Any:
    """Decodes the union that the message belongs to, as its receiver does."""
    for union in (wire.DataBody, wire.ControlToHub, wire.ControlToCollector):
        if type(body) in get_args(union):
            return msgspec.msgpack.Decoder(union)
    raise AssertionError(f"{type(body).__name__} belongs to no union")


def begins_with(now: Any, then: Any) -> bool:
    """Whether ``now`` is ``then`` with fields appended, in nested structs too."""
    if isinstance(then, list) and isinstance(now, list):
        return len(now) >= len(then) and all(map(begins_with, now, then))
    if isinstance(then, dict) and isinstance(now, dict):
        return now.keys() == then.keys() and all(begins_with(now[key], then[key]) for key in then)
    return bool(now == then)


def test_every_message_of_the_wire_is_covered() -> None:
    every = {cls for union in (wire.DataBody, wire.ControlToHub, wire.ControlToCollector) for cls in get_args(union)}
    assert {type(body) for body in MESSAGES.values()} == every
    assert set(GOLDEN) == {*ENVELOPES, *MESSAGES}


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_are_decoded_and_encoded_unchanged(name: str) -> None:
    frame = bytes.fromhex(GOLDEN[name])
    assert decoder_for(MESSAGES[name]).decode(frame) == MESSAGES[name]
    # Fields appended since then may follow; what was there has not moved.
    assert begins_with(msgspec.msgpack.decode(wire.encode(MESSAGES[name])), msgspec.msgpack.decode(frame))


@pytest.mark.parametrize("name", ENVELOPES)
def test_the_envelope_is_frozen_too(name: str) -> None:
    frame = bytes.fromhex(GOLDEN[name])
    assert msgspec.msgpack.decode(frame, type=wire.Envelope) == ENVELOPES[name]
    assert begins_with(msgspec.msgpack.decode(wire.encode_envelope(ENVELOPES[name])), msgspec.msgpack.decode(frame))


@pytest.mark.parametrize("name", MESSAGES)
def test_an_old_reader_ignores_fields_appended_later(name: str) -> None:
    newer = [*msgspec.msgpack.decode(wire.encode(MESSAGES[name])), {"a field": [1, "of a later version"]}, None]
    assert decoder_for(MESSAGES[name]).decode(msgspec.msgpack.encode(newer)) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_new_reader_uses_defaults_for_fields_of_an_old_sender(name: str) -> None:
    fields = msgspec.structs.fields(type(MESSAGES[name]))
    required = sum(field.required for field in fields)
    frame = msgspec.msgpack.decode(bytes.fromhex(GOLDEN[name]))
    older = decoder_for(MESSAGES[name]).decode(msgspec.msgpack.encode(frame[: 1 + required]))
    for field in fields[required:]:
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        assert getattr(older, field.name) == default
    assert [field.required for field in fields] == sorted((field.required for field in fields), reverse=True)
