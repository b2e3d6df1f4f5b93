"""The judge of the live walk, on an engine that is made up: it passes one that is right and sees each thing wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rltop.collectors.contract import wire
from rltop.collectors.contract.flags import BY_NAME, FLAGS
from tests.support import switchboard
from tests.support.switchboard import TIMES, Walk, moves

LAUNCHED = {flag.name: flag.values[0] for flag in FLAGS} | {"logprobs_mode": "raw"}


class Engine:
    """An engine double with front end and hub, switched immediately. ``wrong`` breaks a rollout before it is sent."""

    def __init__(self) -> None:
        self.llm = self
        self.flags = {name: (value, "") for name, value in LAUNCHED.items()}
        self.epoch = 5
        self.resets = 0
        self.lost = 0
        self.updates: list[wire.CommandUpdate] = []
        self.known: list[str] = []
        self.arrived: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.wrong: Callable[[SimpleNamespace], None] = lambda rollout: None

    # --- the hub's side

    def command(self, _engine: str, flag: str, value: str, name: str, *, strict: bool = False) -> None:
        if flag not in self.flags:
            self.known.append(name)
            return
        old, self.epoch = self.flags[flag][0], self.epoch + 1
        self.flags[flag] = (value, switchboard.Move(flag, value, strict).detail)
        self.updates += [
            wire.CommandUpdate(
                name, "e0", flag, state, old=old, new=value, in_flight=50, lost_requests=self.lost, milliseconds=1.0,
                time=time.time(), detail=self.flags[flag][1],
            )
            for state in ("accepted", "applied")
        ]  # fmt: skip

    def closed(self, name: str) -> wire.CommandUpdate:
        return next(update for update in self.updates if update.id == name and update.state == "applied")

    def states(self) -> list[Any]:
        bound = "yes" if self.flags["lm_head_fp32"][0] == "on" else "no override"
        return [
            SimpleNamespace(
                commands=[SimpleNamespace(id=name) for name in self.known],
                flags={name: wire.FlagState(value, True, "", detail) for name, (value, detail) in self.flags.items()},
                flag_epoch=self.epoch,
                fingerprint={
                    "prefix cache resets": str(self.resets), "head_dtype": "float32", "lm_head_fp32 bound": bound,
                },
            )
        ]  # fmt: skip

    def rollouts(self) -> dict[str, Any]:
        return self.arrived

    # --- the front end's side

    def run(self, result: Any) -> Any:
        return result

    def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.resets += clear_cache and self.flags["update_clears_cache"][0] != "off"

    def collective_rpc(self, method: str) -> None:
        self.resets += self.flags["update_clears_cache"][0] == "on"

    def resume_generation(self) -> None:
        pass

    def finish_one(self, name: str) -> None:
        """A request that came and went under the flags of now."""
        raw, uncached = self.flags["logprobs_mode"][0] == "raw", self.flags["prefix_caching"][0] == "off"
        tokens = [7] * 20
        logprobs = [-0.9 + 0.1 * (i % 3) if raw else -0.5 for i in range(20)]
        rollout = SimpleNamespace(
            tokens=list(tokens), logprobs=list(logprobs), finish_reason="length", cached_tokens=0 if uncached else 64,
            runs=[SimpleNamespace(start=0, flag_epoch=self.epoch)], scheduled=time.time(), lookup_off=uncached, raw=raw,
        )  # fmt: skip
        self.outputs[name] = SimpleNamespace(
            prompt_token_ids=[1] * 70, num_cached_tokens=rollout.cached_tokens,
            outputs=[SimpleNamespace(
                token_ids=tokens, logprobs=[{7: SimpleNamespace(logprob=x)} for x in logprobs], finish_reason="length",
            )],
        )  # fmt: skip
        self.wrong(rollout)
        rollout.size = len(rollout.tokens)
        self.arrived[f"{name}-0123abcd"] = (rollout, [1] * 70, rollout.tokens, rollout.logprobs)


class Traffic(switchboard.Traffic):
    engine: Any

    def start(self) -> None:
        self.wait_tokens(0)

    def wait_tokens(self, count: int) -> None:
        for _ in range(5):
            name = f"{self.name}{len(self.outputs)}"
            self.engine.finish_one(name)
            self.outputs[name], self.sizes[name] = self.engine.outputs[name], 20

    def finish(self) -> None:
        pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(switchboard, "Traffic", Traffic)
    monkeypatch.setattr(switchboard, "policy_logprobs", lambda prompt, tokens, _temperature: np.full(len(tokens), -0.5))
    return Engine()


def walk(engine: Any) -> list[switchboard.Row]:
    return Walk(engine, engine).run()


def test_a_correct_engine_passes_and_is_restored(engine: Engine) -> None:
    rows = walk(engine)
    assert {row.flag for row in rows} == set(BY_NAME)
    assert all(row.signature for row in rows)
    assert engine.flags == {name: (value, "") for name, value in LAUNCHED.items()}
    assert switchboard.table(rows).count("\n") == len(rows) + 1


def lose_a_token(rollout: SimpleNamespace) -> None:
    rollout.tokens, rollout.logprobs = rollout.tokens[1:], rollout.logprobs[1:]


def misplace_a_logprob(rollout: SimpleNamespace) -> None:
    rollout.logprobs[3] += 1e-6


def hit_while_off(rollout: SimpleNamespace) -> None:
    rollout.lookup_off = False


def end_otherwise(rollout: SimpleNamespace) -> None:
    rollout.finish_reason = "abort"


@pytest.mark.parametrize("wrong", [lose_a_token, misplace_a_logprob, hit_while_off, end_otherwise])
def test_a_rollout_that_differs_from_the_sampled_tokens_fails(
    engine: Engine, wrong: Callable[[SimpleNamespace], None]
) -> None:
    engine.wrong = wrong
    with pytest.raises(AssertionError):
        walk(engine)


@pytest.mark.parametrize("offset", [-0.5, -0.45], ids=["raw is not raw", "processed is not processed"])
def test_logprobs_of_another_distribution_fail(engine: Engine, monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """The trainer's logprobs: equal to the rollout's in either mode, or slightly off in processed mode."""
    if offset == -0.5:
        monkeypatch.setattr(engine, "finish_one", _always_processed(engine))
    else:
        monkeypatch.setattr(switchboard, "policy_logprobs", lambda prompt, tokens, _t: np.full(len(tokens), offset))
    with pytest.raises(AssertionError):
        walk(engine)


def _always_processed(engine: Engine) -> Callable[[str], None]:
    def finish_one(name: str) -> None:
        held = engine.flags["logprobs_mode"]
        engine.flags["logprobs_mode"] = ("processed", "")
        Engine.finish_one(engine, name)
        engine.flags["logprobs_mode"] = held

    return finish_one


def test_a_lost_request_an_extra_reset_or_an_ineffective_switch_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.lost = 1
    with pytest.raises(AssertionError):
        walk(engine)
    engine.lost = 0
    monkeypatch.setattr(engine, "collective_rpc", lambda method: engine.pause_generation("keep", True))
    with pytest.raises(AssertionError):
        walk(engine)


def test_a_walk_switches_every_flag_to_another_value_each_time() -> None:
    found = list(moves(20, LAUNCHED, strict=True))
    assert Counter(move.flag for move in found) == dict.fromkeys(LAUNCHED, TIMES)
    assert {(move.flag, move.value) for move in found} == {
        (flag.name, value) for flag in FLAGS for value in flag.values
    }
    assert {move.detail for move in found} == {"", "depth 1", "strict"}
    assert found == list(moves(20, LAUNCHED, strict=True))
    present = dict(LAUNCHED)
    for move in found:
        assert present[move.flag] != move.shown
        present[move.flag] = move.shown
