"""Effects through the hub's core: real messages in, a question, and the answer; and how speeds are taken."""

from __future__ import annotations

import numpy as np
import pytest

from rltop.backend import api
from rltop.backend.effects.flag_epochs import EffectHistory
from rltop.backend.effects.throughput import BIN_S, MAX_SAMPLES, Throughput
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Source, Trained, Written, engine_state, rollouts, sequences

RAW = 0.4
"""What raw logprobs are off by here, in nats."""


class World:
    """A run of two engines and a trainer; an engine whose flag epoch is odd records raw logprobs."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.rng = np.random.default_rng(0)
        self.epochs = {"e0": 0, "e1": 0}
        self.generated = {"e0": 0, "e1": 0}
        self.closed: dict[str, list[wire.CommandUpdate]] = {"e0": [], "e1": []}
        self.step = 0
        self.states()

    def states(self) -> None:
        for engine, epoch in self.epochs.items():
            closed = self.closed[engine]
            self.hub.engine(engine, flag_epoch=epoch, generated_tokens=self.generated[engine], commands=closed)

    def go(self, steps: int) -> None:
        for _ in range(steps):
            trained = []
            for engine, epoch in self.epochs.items():
                written = []
                for number in range(6):
                    tokens = [self.step, number, *self.rng.integers(0, 50, 6)]
                    truth = [float(np.float32(x)) for x in -self.rng.exponential(1, len(tokens))]
                    record = [float(np.float32(x - RAW * (epoch % 2))) for x in truth]
                    prompt = [ord(engine[1]), self.step, number]
                    written.append(
                        Written(prompt, tokens, record, [self.step] * 8, engine, epochs=[epoch] * 8,
                                times=(self.hub.now - 3, self.hub.now - 2, self.hub.now))
                    )  # fmt: skip
                    noisy = [float(np.float32(x + self.rng.normal(0, 0.05))) for x in truth]
                    trained.append(Trained(tokens, [1] * 8, record, noisy, prompt))
                self.hub.send(engine, *rollouts(written))
                self.generated[engine] += 100
            self.hub.send("trainer/0", *sequences(trained, step=self.step, policy_version=self.step))
            self.hub.send("trainer/0", wire.StepClosed(self.step, 0, 1, self.step + 1))
            self.hub.later(5.0)
            self.states()
            self.step += 1

    def switch(self, *engines: str, state: str = "applied") -> str:
        answer, _ = self.hub.ask(api.AskSet(f"q{self.step}", "logprobs_mode", "raw", list(engines)))
        assert answer.command
        for engine in engines:
            self.epochs[engine] += state == "applied"
            update = wire.CommandUpdate(
                answer.command, engine, "logprobs_mode", state, old="processed", new="raw",
                flag_epoch=self.epochs[engine] if state == "applied" else None,
            )  # fmt: skip
            self.hub.say(engine, update)
            self.closed[engine].append(update)
        self.states()
        self.hub.later(0.1)
        return answer.command

    def ask(self, command: str = "") -> api.Answer:
        answer, orders = self.hub.ask(api.AskEffect("why", command))
        assert not orders
        return answer

    def effect(self, command: str = "") -> api.Effect:
        answer = self.ask(command)
        assert answer.effect is not None, answer.error
        found = api.decode_answer(api.encode(answer)).effect
        assert found == answer.effect
        return answer.effect


def test_the_effect_of_a_canary_is_estimated_from_messages() -> None:
    world = World()
    world.go(12)
    command = world.switch("e1")
    world.go(12)
    found = world.effect()
    assert (found.command, found.engines, found.against, found.ended) == (command, ["e1"], ["e0"], "")
    assert world.effect(command[:-1]) == found
    ratio = next(row for row in found.rows if row.figure == "ratio")
    assert ratio.verdict == "up"
    assert ratio.against is not None
    assert ratio.against.low <= np.exp(RAW) - 1 <= ratio.against.high
    assert (ratio.samples_before, ratio.samples_after) == (12 * 48, 12 * 48)
    latency = next(row for row in found.rows if row.figure == "latency")
    assert latency.own is not None
    assert latency.own.before == pytest.approx(3.0)
    speed = next(row for row in found.rows if row.figure == "speed")
    assert speed.own is not None
    assert speed.own.before == pytest.approx(20.0, rel=1e-3)
    assert not found.confounds


def test_an_empty_command_means_the_last_that_switched_something() -> None:
    world = World()
    assert "no command has switched anything" in (world.ask().error or "")
    world.go(6)
    first = world.switch("e0", "e1")
    world.go(6)
    refused = world.switch("e0", state="refused")
    assert world.effect().command == first
    assert "switched nothing: e0 refused" in (world.ask(refused).error or "")
    assert "no command 'x9'" in (world.ask("x9").error or "")
    assert "is ambiguous: " in (world.ask("hub-1-c").error or "")


def test_a_command_of_an_earlier_hub_has_no_observations_before() -> None:
    world = World()
    told = wire.CommandUpdate("old", "e0", "logprobs_mode", "applied", old="processed", new="raw", flag_epoch=1)
    world.epochs["e0"], world.closed["e0"] = 1, [told]
    world.states()
    world.hub.later()
    world.go(8)
    found = world.effect("old")
    assert {row.verdict for row in found.rows} == {"unknown"}
    assert {row.reason for row in found.rows} == {"no observations before the switch"}


def throughput(*states: tuple[float, dict[str, object]], life: str = "life-1") -> Throughput:
    found = Throughput()
    for sent, about in states:
        envelope = wire.Envelope(wire.PROTO, "e0", life, 0, sent)
        found.record(envelope, engine_state("e0", **about), 100 + sent)
    return found


def test_speed_is_sampled_by_time_bin_and_flag_epoch() -> None:
    tokens = {0: 0, 1: 80, 3: 240, 5: 300, 6: 390}
    states: list[tuple[float, dict[str, object]]] = [(at, {"generated_tokens": made}) for at, made in tokens.items()]
    found = throughput(*states)
    (first, second) = found.samples()["e0"]
    assert (first.time, first.life, first.epoch, first.seconds, first.tokens) == (103, "life-1", 0, 3, 240)
    assert (second.time, second.seconds, second.tokens) == (106, 3, 150)
    assert found.present() == {"e0": ("life-1", 0)}
    other = throughput((0, {}), (1, {"generated_tokens": 1080}), (2, {"flag_epoch": 1, "generated_tokens": 1100}),
                 (3, {"flag_epoch": 1, "generated_tokens": 1190}))  # fmt: skip
    assert [(sample.epoch, sample.tokens) for sample in other.samples()["e0"]] == [(0, 80), (1, 90)]


@pytest.mark.parametrize(
    "states",
    [
        ((0, {"running": 0}), (1, {"running": 0})),  # nothing to do
        ((0, {"paused": True}), (1, {"generated_tokens": 1001})),
        ((0, {}), (1, {"flag_epoch": 1, "generated_tokens": 1100})),  # of two epochs
        ((0, {}), (60, {"generated_tokens": 9000})),  # who knows when
        ((0, {}), (0, {"generated_tokens": 1100})),
        ((0, {}), (1, {"generated_tokens": 900})),  # counters started anew
    ],
)
def test_intervals_without_work_are_left_out(states: tuple[tuple[float, dict[str, object]], ...]) -> None:
    assert throughput(*states).samples() == {}


def test_processes_are_not_merged_and_samples_are_bounded() -> None:
    found = Throughput()
    for number in range(MAX_SAMPLES + 10):
        envelope = wire.Envelope(wire.PROTO, "e0", "a" if number < 5 else "b", number, BIN_S * number)
        found.record(envelope, engine_state("e0", generated_tokens=100 * number), BIN_S * number)
    kept = found.samples()["e0"]
    assert len(kept) == MAX_SAMPLES
    assert {sample.tokens for sample in kept} == {100}
    assert kept[0].time == 10 * BIN_S


def test_marks_are_bounded() -> None:
    effects = EffectHistory()
    for number in range(api.MAX_CHANGES + 5):
        told = wire.CommandUpdate(f"c{number}", "e0", "logprobs_mode", "applied", flag_epoch=number)
        effects.record_state(wire.Envelope(1, "e0", "a", number, 0.0), engine_state("e0", commands=[told]), 0.0)
    assert len(effects.marks) == api.MAX_CHANGES


def test_a_restarted_engine_marks_its_own_epochs() -> None:
    world = World()
    world.go(6)
    command = world.switch("e1")
    world.go(6)
    world.hub.sources["e1"] = Source("e1", "life-2")
    world.epochs["e1"], world.closed["e1"] = 0, []
    world.states()
    world.go(6)
    found = world.effect(command)
    assert found.ended == "engine e1 restarted"
    assert found.last_step == 11
