"""Verifies switches on a real engine with requests in flight: no request lost, correct read-backs, visible effects.

Needs no pytest: ``bench/gpu_suite.py`` runs the same walk where there is none.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rltop.collectors.contract import wire
from rltop.collectors.contract.flags import BY_NAME, FLAGS
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ON_CPU, LiveEngine, policy_logprobs, result

ENGINE = "e0"
TEMPERATURE = 0.7
LANES = 128
"""More than an engine of 64 runs at once: however late the front end is, enough requests are in flight."""

AT_LEAST = 32
TIMES = 20
"""Switches of each flag in a walk."""

TOKENS_BETWEEN = 200
RECOMPUTED = 400
"""Number of evenly chosen rollouts whose logprobs are recomputed."""

FLOOR = 1e-5 if ON_CPU else 1e-2
"""Deviation of a mean ratio from 1 by rounding: float32 here, bf16 on a GPU."""

_numbers = itertools.count()
"""Of commands: an engine answers an id that it knows without doing anything."""

Arrived = tuple[wire.Rollout, list[int], list[int], list[float]]


# --- the record ---------------------------------------------------------------------------------------------------


def arrived(hub: HubStandIn, name: str) -> Arrived:
    """The rollout of the request that the front end calls ``name``: vLLM appends 8 hex digits."""

    def find() -> Arrived | None:
        return next((found for key, found in hub.rollouts().items() if key.rsplit("-", 1)[0] == name), None)

    return wait_for(find, f"rollout {name}")


def told(output: Any) -> tuple[list[int], list[float]]:
    """Tokens and logprobs as the front end returned them."""
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    return tokens, [entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)]


def check_same(found: Arrived, output: Any) -> wire.Rollout:
    """The rollout equals the front end's output, to the last bit of float32."""
    rollout, prompts, tokens, logprobs = found
    assert prompts == output.prompt_token_ids
    assert (tokens, logprobs) == told(output)
    assert rollout.finish_reason == output.outputs[0].finish_reason
    assert rollout.cached_tokens == output.num_cached_tokens
    return rollout


def check_equal(hub: HubStandIn, name: str, output: Any) -> wire.Rollout:
    """The same of one request by name."""
    return check_same(arrived(hub, name), output)


def by_epoch(found: list[Arrived], temperature: float) -> dict[int, Any]:
    """By flag epoch, pi / mu of every token: the trainer's probability at ``temperature`` over the rollout's."""
    parts: dict[int, list[Any]] = {}
    for rollout, prompts, tokens, logprobs in found:
        ratio = np.exp(policy_logprobs(prompts, tokens, temperature) - np.array(logprobs))
        ends = [run.start for run in rollout.runs[1:]] + [rollout.size]
        for run, end in zip(rollout.runs, ends, strict=True):
            parts.setdefault(run.flag_epoch, []).append(ratio[run.start : end])
    return {epoch: np.concatenate(of_epoch) for epoch, of_epoch in parts.items()}


# --- commands -----------------------------------------------------------------------------------------------------


def switch(hub: HubStandIn, flag: str, value: str, tag: str, *, strict: bool = False) -> wire.CommandUpdate:
    """Switch a flag and check that it is applied without lost requests (not counted if it was set already)."""
    name = f"{tag}-{flag}-{value}"
    hub.command(ENGINE, flag, value, name, strict=strict)
    update = hub.closed(name)
    lost = None if update.reason == f"already {value}" else 0
    assert (update.state, update.new, update.lost_requests) == ("applied", value, lost), update
    states = [u.state for u in hub.updates if u.id == update.id]
    assert states == ["accepted", "applied"]
    return update


def fresh(hub: HubStandIn) -> wire.EngineState:
    """A state that was read after this call: it knows a question that was asked now."""
    name = f"fresh{next(_numbers)}"
    hub.command(ENGINE, "no_such_flag", "on", name)
    return wait_for(
        lambda: next((s for s in hub.states() if name in [update.id for update in s.commands]), None), "a fresh state"
    )


# --- traffic ------------------------------------------------------------------------------------------------------


def prompt(number: int, size: int = 20) -> list[int]:
    """Hardly two alike in their first tokens."""
    return [3] + [5 + (number * 7 + i * i) % 100 for i in range(size - 1)]


@dataclass
class Traffic:
    """Keeps ``LANES`` requests in flight, each of a size of its own; half begin with the same two blocks."""

    engine: LiveEngine
    name: str
    outputs: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    stopping: bool = False
    _lanes: list[Future[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begin, and wait until all are running."""
        self._lanes = [self.engine.start(self._lane(lane)) for lane in range(LANES)]
        self.wait_tokens(2 * TOKENS_BETWEEN)

    async def _lane(self, lane: int) -> None:
        number = 0
        while not self.stopping:
            name = f"{self.name}{lane}.{number}"
            ids = (prompt(1, 64) if lane % 2 else []) + prompt(lane * 1000 + number, 12 + lane % 7)
            self.sizes[name] = 160 + (lane * 13 + number * 29) % 120
            self.outputs[name] = await self.engine.sample(name, ids, self.sizes[name], None, temperature=TEMPERATURE)
            number += 1

    def tokens(self) -> int:
        """Seen by the front end so far."""
        return sum(map(len, list(self.engine.progress.values())))

    def wait_tokens(self, count: int) -> None:
        """Until so many more were sampled."""
        goal = self.tokens() + count
        wait_for(lambda: self.tokens() >= goal, f"{count} more tokens")

    def finish(self) -> None:
        """Wait for the requests in flight to finish; send no more."""
        self.stopping = True
        for lane in self._lanes:
            result(lane)


def whole(hub: HubStandIn, traffic: Traffic) -> list[Arrived]:
    """Every rollout is complete, arrives once, and equals its front end's output."""

    def all_arrived() -> dict[str, Arrived] | None:
        found = {key.rsplit("-", 1)[0]: value for key, value in hub.rollouts().items()}
        return found if traffic.outputs.keys() <= found.keys() else None

    found = wait_for(all_arrived, "every rollout of the traffic")
    assert len(traffic.outputs) >= LANES
    for name, output in traffic.outputs.items():
        assert check_same(found[name], output).size == traffic.sizes[name]
    return [found[name] for name in traffic.outputs]


# --- the walk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    flag: str
    value: str
    strict: bool = False

    @property
    def detail(self) -> str:
        """Form of the value."""
        two = (self.flag, self.value) == ("async_scheduling", "off")
        return ("strict" if self.strict else "depth 1") if two else ""

    @property
    def shown(self) -> str:
        """Value and form."""
        return f"{self.value} ({self.detail})" if self.detail else self.value


def moves(seed: int, start: dict[str, str], *, strict: bool, times: int = TIMES) -> Iterator[Move]:
    """``times`` switches of every flag in a random order, each to another value or form than the present one."""
    chance = random.Random(seed)
    forms = {flag.name: [Move(flag.name, value) for value in flag.values] for flag in FLAGS}
    if strict:
        forms["async_scheduling"].append(Move("async_scheduling", "off", strict=True))
    present = {name: Move(name, value) for name, value in start.items()}
    deck = [name for name in start for _ in range(times)]
    chance.shuffle(deck)
    for name in deck:
        now = present[name]  # what is strictly off is off already
        others = [move for move in forms[name] if move != now and not (now.strict and move.value == now.value)]
        present[name] = chance.choice(others)
        yield present[name]


@dataclass
class Row:
    """Observations of one value of one flag."""

    flag: str
    value: str
    milliseconds: list[float] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    lost: int = 0
    signature: str = ""

    def line(self) -> str:
        """One line of a Markdown table."""
        times = self.milliseconds
        took = f"{statistics.median(times):.1f} (to {max(times):.1f})"
        flight = f"{min(self.in_flight)} to {max(self.in_flight)}"
        return f"| `{self.flag}` {self.value} | {len(times)} | {took} | {flight} | {self.lost} | {self.signature} |"


HEADING = "| switch | times | ms, median (to) | in flight | lost | signature |\n|---|---|---|---|---|---|"


class Walk:
    """A seeded random walk over all values of some flags, under traffic; ``rows`` holds its observations.

    Args:
        engine: booted.
        hub: its hub.
        flags: to switch.
        strict: with strict forms among them.
        seed: of the order.
        times: switches of each flag.
    """

    def __init__(
        self,
        engine: LiveEngine,
        hub: HubStandIn,
        flags: tuple[str, ...] = tuple(BY_NAME),
        *,
        strict: bool = True,
        seed: int = 20,
        times: int = TIMES,
    ) -> None:
        self.engine, self.hub, self.flags, self.strict, self.seed = engine, hub, flags, strict, seed
        self.deck = times
        self.rows: dict[tuple[str, str], Row] = {}
        self.updates: dict[str, list[int]] = {}
        self.values: list[dict[str, str]] = []
        """Values of every flag, by epoch since the start."""
        self.times: list[float] = []
        """When that epoch began."""

    def run(self) -> list[Row]:
        """Walk, put everything back, and judge."""
        start = fresh(self.hub)
        home = {name: state.value or "" for name, state in start.flags.items() if name in self.flags}
        assert all(start.flags[name].switchable for name in home), start.flags
        self.values, self.times = [{name: state.value or "" for name, state in start.flags.items()}], [0.0]
        traffic = Traffic(self.engine, f"walk{start.flag_epoch}-")
        try:
            traffic.start()
            for number, move in enumerate(moves(self.seed, home, strict=self.strict, times=self.deck)):
                self._step(number, move, traffic)
        finally:
            traffic.finish()
        for flag, value in home.items():
            if self.values[-1][flag] != value:
                switch(self.hub, flag, value, f"home{start.flag_epoch}")
        self._judge(traffic, start.flag_epoch)
        return list(self.rows.values())

    def _step(self, number: int, move: Move, traffic: Traffic) -> None:
        traffic.wait_tokens(TOKENS_BETWEEN)
        before = self.values[-1]
        update = switch(self.hub, move.flag, move.value, f"walk{next(_numbers)}", strict=move.strict)
        assert update.old == before[move.flag].split(" ")[0]
        assert update.in_flight is not None
        assert update.in_flight >= AT_LEAST
        assert update.milliseconds is not None
        state = fresh(self.hub)
        read = state.flags[move.flag]
        assert (read.value, read.detail, update.detail) == (move.value, move.detail, move.detail)
        assert {name: state.flags[name].value for name in before if name != move.flag} == {
            name: value.split(" ")[0] for name, value in before.items() if name != move.flag
        }
        self.values.append(before | {move.flag: move.shown})
        self.times.append(update.time)
        row = self.rows.setdefault((move.flag, move.shown), Row(move.flag, move.shown))
        row.milliseconds.append(update.milliseconds)
        row.in_flight.append(update.in_flight)
        row.lost += update.lost_requests or 0
        if move.flag == "lm_head_fp32":
            row.signature = f"logits in {state.fingerprint['head_dtype']}, {state.fingerprint['lm_head_fp32 bound']}"
            assert state.fingerprint["lm_head_fp32 bound"] == ("yes" if move.value == "on" else "no override")
        if move.flag == "update_clears_cache":
            self._update(move.value, number)

    def _update(self, value: str, number: int) -> None:
        """An update to the same weights, by a caller that pauses and clears, only pauses, or does neither."""
        clear = (True, False, None)[number % 3]
        before = int(fresh(self.hub).fingerprint["prefix cache resets"])
        if clear is not None:
            self.engine.run(self.engine.llm.pause_generation(mode="keep", clear_cache=clear))
        self.engine.run(self.engine.llm.collective_rpc("reload_weights"))
        after = int(fresh(self.hub).fingerprint["prefix cache resets"]) - before
        if clear is not None:
            self.engine.run(self.engine.llm.resume_generation())
        callers = int(clear is True)
        assert after == {"caller": callers, "on": callers + 1, "off": 0}[value], (value, clear, after)
        self.updates.setdefault(value, []).append(after)

    # --- judging --------------------------------------------------------------------------------------------------

    def _judge(self, traffic: Traffic, first: int) -> None:
        records = whole(self.hub, traffic)
        self._judge_ratios(records, first)
        self._judge_hits(records)
        for value, resets in self.updates.items():
            row = self.rows["update_clears_cache", value]
            row.signature = f"{sum(resets)} resets at {len(resets)} updates"

    def _judge_ratios(self, records: list[Arrived], first: int) -> None:
        """Check by the ratios the logprobs mode, and that tokens are in order under every form of scheduling."""
        parts: dict[tuple[str, str], list[Any]] = {}
        for epoch, ratio in by_epoch(records[:: max(1, len(records) // RECOMPUTED)], TEMPERATURE).items():
            values = self.values[epoch - first]
            parts.setdefault(("logprobs_mode", values["logprobs_mode"]), []).append(ratio)
            if values["logprobs_mode"] == "processed":
                parts.setdefault(("async_scheduling", values["async_scheduling"]), []).append(ratio)
        for (flag, value), pieces in parts.items():
            ratio = np.concatenate(pieces)
            mean, error = ratio.mean(), ratio.std() / ratio.size**0.5
            if row := self.rows.get((flag, value)):
                row.signature = f"mean ratio {mean:.5f} ± {error:.5f}, {ratio.size} tokens"
            if value == "raw":
                assert abs(mean - 1) > max(10 * error, 5 * FLOOR), (mean, error)
            else:
                assert abs(mean - 1) <= max(3 * error, FLOOR), (mean, error)
                if ON_CPU:  # token by token: one lost, doubled or out of order would change all after it
                    assert np.abs(ratio - 1).max() < 1e-3
        assert {key for key in self.rows if key[0] in {"logprobs_mode", "async_scheduling"}} <= parts.keys()

    def _judge_hits(self, records: list[Arrived]) -> None:
        hits, prompts = {"on": 0, "off": 0}, {"on": 0, "off": 0}
        for rollout, ids, _, _ in records:
            epoch = sum(time <= rollout.scheduled for time in self.times) - 1
            value = self.values[epoch]["prefix_caching"]
            assert rollout.lookup_off == (value == "off")
            hits[value] += rollout.cached_tokens or 0
            prompts[value] += len(ids)
        assert hits["off"] == 0
        assert hits["on"] > 0
        for value, count in hits.items():
            if row := self.rows.get(("prefix_caching", value)):
                row.signature = f"{count} of {prompts[value]} prompt tokens hit"


def table(rows: list[Row]) -> str:
    """As Markdown, by flag."""
    return "\n".join([HEADING, *(row.line() for row in sorted(rows, key=lambda row: (row.flag, row.value)))])
