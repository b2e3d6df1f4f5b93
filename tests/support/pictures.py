"""Deterministic snapshots of runs as a hub serves them, and a client that serves one."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rltop.backend.api import (
    Answer,
    AskSet,
    Change,
    Effect,
    EffectEstimate,
    EffectRow,
    Engine,
    Event,
    Question,
    Snapshot,
    Step,
    Trainer,
    change_key,
)
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.wire import Counts, FlagState, Timer

START = 1_790_000_000.0
"""Wall clock at which every run started."""

STEP_S = 4.0


@dataclass
class HeldClient:
    """A client controlled by the test: it serves the test's snapshot and records the questions."""

    view: Snapshot | None = None
    state: str = "live"
    age_s: float = 0.1
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)
    changed: bool = True

    def poll(self, timeout_s: float = 0.0) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def ask(self, question: Question) -> None:
        self.asked.append(question)

    def show(self, snapshot: Snapshot) -> None:
        self.view, self.changed = snapshot, True


def flags(caching: str = "on", scheduling: str = "on") -> dict[str, FlagState]:
    usual = {flag.name: FlagState(flag.values[0], True) for flag in FLAGS}
    return usual | {"prefix_caching": FlagState(caching, True), "async_scheduling": FlagState(scheduling, True)}


def step(number: int) -> Step:
    """Step ``number`` of a healthy run whose prefix caching is switched off after step 10."""
    rng = random.Random(number)
    learned = 1 - math.exp(-number / 18)
    gap = 0.011 + 0.004 * rng.random() + (0.004 if number > 20 else 0)
    k3 = gap * gap * (0.6 + 0.2 * rng.random())
    values: dict[str, float | None] = {
        "logp_abs_diff_mean": gap,
        "logp_abs_diff_p95": gap * (2.9 + 0.4 * rng.random()),
        "clip_frac_low": 0.012 + 0.006 * rng.random(),
        "clip_frac_high": 0.004 + 0.004 * rng.random(),
        "kl_k3": k3,
        "kl_k1": k3 + 6e-5 * (rng.random() - 0.5),
        "entropy": 0.9 - 0.5 * learned + 0.03 * rng.random(),
        "reward_mean": 0.5 + 0.33 * learned + 0.05 * (rng.random() - 0.5),
        "lag_mean": 0.8 + 0.5 * rng.random(),
        "lag_max": float(rng.choice((2, 2, 3))),
        "tokens": float(2600 + rng.randrange(300)),
        "joined_fraction": 1.0,
        "ratio_mean": 1 + 2e-3 * (rng.random() - 0.5),
        "ess": 0.97 + 0.02 * rng.random(),
        "prefix_hit_rate": 0.62 if number <= 10 else 0.0,
    }
    if number >= 4:  # before, token versions are unknown
        noise = gap * 0.9
        values |= {
            "noise_std": noise / math.sqrt(2 / math.pi),
            "noise_abs_diff": noise,
            "noise_k3": noise * noise * math.pi / 4,
            "noise_clip_frac_low": 0.006 + 0.001 * learned,
            "noise_clip_frac_high": 0.002,
            "backend_tokens": 900.0,
            "backend_abs_diff_mean": noise,
        }
    own = {"logp_abs_diff_mean": gap, "prefix_hit_rate": values["prefix_hit_rate"], "tokens": 1300.0, "requests": 24.0}
    own["backend_abs_diff_mean"] = values.get("backend_abs_diff_mean")
    engines = {"e0": own | {"engine_z": None}, "e1": own | {"engine_z": 5.25}}
    return Step(number, START + 20 + STEP_S * number, number + 1, partial=False, values=values, engines=engines)


def engine(name: str = "e0", **changes: Any) -> Engine:
    base = Engine(
        id=name,
        health="live",
        last_seen=START + 180,
        host="node-a",
        pid=4000 + int(name[1:]),
        vllm_version="0.32.0",
        step=4211 + 7 * int(name[1:]),
        policy_version=40,
        version_source="engine",
        lag=0,
        tokens=51_300,
        tokens_per_s=312.0 + 9 * int(name[1:]),
        running=16,
        waiting=3,
        kv_usage=0.374,
        prefix_hit_rate=0.62,
        gap=0.0143,
        flags=flags(),
        flag_epoch=0,
        fingerprint={
            "vllm": "0.32.0",
            "dtype": "bfloat16",
            "attention": "TORCH_SDPA",
            "logprobs_mode": "processed_logprobs",
        },
        finished=1312,
        aborted=0,
        counts={"rollouts": Counts(1312, 1312, 0, 0)},
    )
    return msgspec.structs.replace(base, **changes)


def change(name: str, flag: str, wanted: str, state: str, *, command: str, at_step: int = 10, **facts: Any) -> Change:
    base = Change(
        command=command, engine=name, flag=flag, wanted=wanted, state=state, requested=START + 20 + STEP_S * at_step,
        who="ada", host="node-a", step=at_step,
    )  # fmt: skip
    return msgspec.structs.replace(base, **facts)


def applied(name: str, flag: str, wanted: str, *, command: str, at_step: int = 10, **facts: Any) -> Change:
    known: dict[str, Any] = {
        "old": "off" if wanted == "on" else "on", "new": wanted, "engine_step": 1204, "policy_version": at_step,
        "in_flight": 19, "lost_requests": 0, "milliseconds": 1.84, "closed": START + 21 + STEP_S * at_step,
    }  # fmt: skip
    return change(name, flag, wanted, "applied", command=command, at_step=at_step, **(known | facts))


def event(
    number: int, text: str, severity: str = "info", *, at_step: int | None = None, on: str | None = None
) -> Event:
    when = START + 2 * number if at_step is None else START + 20 + STEP_S * at_step
    return Event(number, when, severity, "test", text, at_step, on)


def picture(**parts: Any) -> Snapshot:
    base = Snapshot(run="sort", epoch="h1", seq=100, started=START, time=START + 20, trainer=Trainer("live", 1))
    return msgspec.structs.replace(base, **parts)


def healthy(steps: int = 40, engines: int = 2) -> Snapshot:
    """A run of ``steps`` steps in which prefix caching was switched off at step 10."""
    changes = [applied(f"e{i}", "prefix_caching", "off", command="c1") for i in range(engines)]
    events = [event(0, "trainer appeared: 1 rank")]
    events += [event(1 + i, f"e{i} appeared: vLLM 0.32.0", on=f"e{i}") for i in range(engines)]
    events += [
        event(20 + i, "prefix_caching on -> off at engine step 1204, 19 in flight, 0 lost", at_step=10, on=f"e{i}")
        for i in range(engines)
    ]
    return picture(
        engines={
            f"e{i}": engine(f"e{i}", flags=flags("off"), flag_epoch=1, prefix_hit_rate=0.0) for i in range(engines)
        },
        trainer=Trainer("live", 1, {"0": START + 180}, steps - 1, steps),
        steps={number: step(number) for number in range(steps)},
        events=events,
        changes={change_key(c): c for c in changes},
        time=START + 20 + STEP_S * steps,
    )


def young() -> Snapshot:
    """A run of three steps, without a noise floor yet."""
    return healthy(3)


def no_steps() -> Snapshot:
    """Engines and trainer are connected; no training step yet."""
    return picture(
        engines={
            "e0": engine(gap=None, prefix_hit_rate=None, policy_version=None, lag=None),
            "e1": engine("e1", gap=None),
        },
        events=[event(0, "e0 appeared: vLLM 0.32.0", on="e0")],
    )


def switched() -> Snapshot:
    """One engine refused a switch that the other applied; a second switch is running."""
    fixed = FlagState("off", False, "async scheduling is not supported with this executor")
    changes = [
        applied("e0", "async_scheduling", "on", command="c2", at_step=20),
        change("e1", "async_scheduling", "on", "refused", command="c2", at_step=20, reason=fixed.reason, old="off"),
        change("e0", "prefix_caching", "off", "draining", command="c3", at_step=39, in_flight=17),
        change("e1", "prefix_caching", "off", "timed_out", command="c3", at_step=39, reason="no answer from engine"),
    ]
    shown = healthy()
    shown.engines = {
        "e0": engine("e0"),
        "e1": engine("e1", flags=flags() | {"async_scheduling": fixed}),
    }
    shown.changes |= {change_key(c): c for c in changes}
    shown.events += [event(30, "async_scheduling on refused: " + fixed.reason, "warn", at_step=20, on="e1")]
    return shown


def timed() -> Snapshot:
    """Half the fleet has a strict switch for ten minutes and a pause for one; facts differ."""
    strict = FlagState("off", True, "", "strict")
    shown = healthy()
    now = shown.time
    timers = [
        Timer("c8", "pause", "", "running", now + 42), Timer("c7", "set", "async_scheduling", "on", now + 572),
    ]  # fmt: skip
    facts = {
        "vllm_version": "0.32.0", "dtype": "bfloat16", "head_dtype": "bfloat16",
        "default_sampling": "temperature=0.6, top_k=20",
    }  # fmt: skip
    raw = "raw rollout logprobs ignore temperature 0.7, which makes every ratio wrong"
    shown.engines = {
        "e0": engine(
            flags=flags() | {"async_scheduling": strict, "logprobs_mode": FlagState("raw", True)},
            timers=timers,
            paused=True,
            fingerprint=facts,
            differs={"async_scheduling": "e1 has on", "logprobs_mode": f"e1 has processed; {raw}"},
        ),
        "e1": engine(
            "e1",
            fingerprint=facts | {"dtype": "float16"},
            differs={"async_scheduling": "e0 has off (strict)", "logprobs_mode": "e0 has raw"},
        ),
    }
    changes = [
        applied(
            "e0", "async_scheduling", "off", command="c7", at_step=30, strict=True, detail="strict", revert_s=600.0,
            reverts_at=now + 572, why="is it the scheduler?", flag_epoch=3,
        ),
        applied("e1", "logprobs_mode", "raw", command="c5", at_step=20, old="processed", kept_by="grace"),
        applied("e1", "logprobs_mode", "processed", command="c5/revert", at_step=24, old="raw", reverts="c5"),
        change("e0", "", "paused", "applied", command="c8", at_step=39, verb="pause", old="running", new="paused"),
        change(
            "e1", "lm_head_fp32", "on", "superseded", command="c6/revert", at_step=33, reverts="c6",
            reason="changed since by grace: left alone",
        ),
        change("e0", "", "", "applied", command="c9", at_step=39, verb="keep", target="c5", who="grace"),
    ]  # fmt: skip
    shown.changes = {change_key(c): c for c in changes}
    return shown


def effect(**changes: Any) -> Effect:
    """The effect of a canary: verdicts up, none, not yet, confounded, down, unknown."""

    def row(figure: str, unit: str, verdict: str, **facts: Any) -> EffectRow:
        own = EffectEstimate(0.0143, 0.0191, 0.0048, 0.0021, 0.0075)
        base = EffectRow(figure, unit, own, own, verdict, before=30, after=12, samples="tokens")
        return msgspec.structs.replace(base, **facts)

    rows = [
        row("gap", "nats", "up"),
        row("ratio", "", "none"),
        row("clip", "share", "not_yet", more=9, reason="the interval is wide"),
        row("entropy", "nats", "confounded"),
        row("speed", "tokens/s", "down", every="5 s", samples="s"),
        row("latency", "s", "unknown", own=None, against=None, reason="no request ended after the switch"),
    ]
    base = Effect(
        "c7", "async_scheduling", "on", "off", ["e0"], ["e1"], 3, 44, 2, "", ["a weight update came between"], rows
    )
    return msgspec.structs.replace(base, **changes)


def troubled() -> Snapshot:
    """Many engines: one silent, one exited, one that lost records, one with an inferred version."""
    shown = healthy(engines=12)
    shown.engines["e3"] = engine("e3", health="silent", tokens_per_s=None)
    shown.engines["e7"] = engine("e7", health="gone", tokens_per_s=None, kv_usage=None, running=0, waiting=0)
    shown.engines["e8"] = engine("e8", counts={"rollouts": Counts(1312, 1300, 12, 0)}, faults={"tap": 2})
    shown.engines["e9"] = engine("e9", version_source="inferred", vllm_version="0.18.1", lag=3, policy_version=37)
    shown.engines["e10"] = engine("e10", without_logprobs=41, gap=None)
    shown.events += [
        event(90, "e3 is silent: no word for 6 s", "warn", at_step=38, on="e3"),
        event(91, "e7 said goodbye", "error", at_step=39, on="e7"),
    ]
    return shown


__all__ = ["AskSet", "HeldClient"]
