"""Hostile frames raise nothing in the hub, and a healthy run beside them keeps all its steps."""

from __future__ import annotations

import pytest

from bench.fuzz_hub import CORE_LIFE, Totals, attack_core, attack_hub
from bench.fuzz_wire import fuzz, join, split
from rltop.backend import api
from rltop.collectors.contract import wire
from tests.support.hostile import Hostile
from tests.support.hub_core import Hub
from tests.support.hub_messages import Source, engine_state

SEEDS = range(1, 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_hostile_frame_raises_in_the_core_and_every_step_of_the_witness_closes(seed: int) -> None:
    totals = Totals(seed)
    attack_core(totals, CORE_LIFE)
    assert totals.steps > 0
    assert (totals.faults, totals.blind) == ({}, 0)


def test_a_real_hub_survives_hostile_frames_and_stores_every_step_of_the_witness() -> None:
    totals = Totals(seed=4)
    attack_hub(totals, 3000)
    assert totals.frames >= 3000
    assert (totals.ended, totals.blind, totals.faults) == (0, 0, {})
    assert totals.steps > 0


def test_any_bytes_decode_to_a_message_or_to_a_declared_error() -> None:
    assert fuzz(20_000, seed=1) > 300


def test_the_inputs_of_the_fuzzer_are_lists_of_frames() -> None:
    for frames in ([b""], [b"", b""], [b"a", b"", b"bc"], [b"x"] * 40):
        assert split(join(frames)) == frames


def test_equal_seeds_give_equal_frames() -> None:
    one, other = Hostile(5), Hostile(5)
    assert [(one.data(), one.control(), one.question()) for _ in range(50)] == [
        (other.data(), other.control(), other.question()) for _ in range(50)
    ]


@pytest.mark.parametrize("name", ["", "n" * 1025], ids=["empty", "too long"])
def test_a_sender_without_a_usable_name_is_rejected(name: str) -> None:
    frames = Source(name).frames(engine_state("e0"))
    with pytest.raises(wire.WireError, match="length"):
        wire.decode_data(frames)


def test_a_question_with_the_id_of_another_command_starts_no_probe() -> None:
    hub = Hub()
    hub.engine("e0")
    hub.later()
    first, _ = hub.ask(api.AskProbe("one", "config-diff", ["e0"]))
    again, orders = hub.ask(api.AskProbe("one", "no such probe", ["e0"]))
    assert again.command == first.command
    assert orders == []
    hub.later(5.0)
    assert first.command is not None
    assert hub.picture.probes[first.command].probe == "config-diff"
