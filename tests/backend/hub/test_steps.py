"""Steps as the pure core measures them: the oracle's numbers from the same arrays, and when a step closes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from rltop.backend import api
from rltop.backend.fleet.engines import SILENT_S
from rltop.backend.ingest.sources import BYE_PATIENCE_S
from rltop.backend.join.index import RolloutIndex
from rltop.backend.steps import steps
from rltop.backend.steps.steps import GRACE_S, MAX_OPEN, PARTIAL_S
from rltop.collectors.contract import wire
from tests.support import oracles
from tests.support.hub_core import Hub, sent
from tests.support.hub_messages import Source, Trained, Written, rollouts, sequences

UNKNOWN = wire.UNKNOWN_VERSION


def f4(values: ArrayLike) -> list[float]:
    return [float(x) for x in np.array(values, np.float32)]


class World:
    """A step of a real-looking run: sequences on two engines, some unjoined, some with recomputed logprobs."""

    def __init__(self, seed: int, *, objective: str = "ppo", base: str = "rollout", broken: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.policy = int(rng.integers(5, 9))
        self.clip = oracles.Clip(*((0.9, 1.1) if objective == "ppo" else (0.99, 1.02)), objective, base)
        self.rows: list[oracles.Row] = []
        self.written: list[Written] = []
        self.trained: list[Trained] = []
        for number in range(int(rng.integers(1, 20))):
            self._row(rng, number, broken)

    def _row(self, rng: np.random.Generator, number: int, broken: bool) -> None:
        n, prompt = int(rng.integers(1, 30)), [int(x) for x in rng.integers(1, 50, int(rng.integers(1, 9)))]
        tokens = [int(x) for x in rng.integers(0, 50, n)]
        rollout = f4(-rng.exponential(1, n))
        trainer = f4(np.array(rollout) + rng.normal(0, 0.1, n))
        old = f4(np.array(rollout) + rng.normal(0, 0.01, n))
        if broken:
            trainer[0], old[-1] = float("nan"), float("nan")
            trainer[-1] = -math.inf if n > 1 else trainer[-1]
        cut = int(rng.integers(0, n + 1))
        version = self.policy - int(rng.integers(0, 4))
        versions: list[int | None] = [version if at < cut else version + 1 for at in range(n)]
        old_versions = [None if rng.random() < 0.3 else int(rng.integers(version, version + 2)) for _ in range(n)]
        advantages = f4([rng.normal()] * n)
        entropy = f4(rng.exponential(1, n))
        joined = number % 5 != 4
        engine, cached = f"e{number % 2}", int(rng.integers(0, len(prompt) + 1))
        off = bool(rng.random() < 0.2)
        if joined:
            self.written.append(Written(prompt, tokens, rollout, versions, engine, cached, off))
        reward = float(np.float32(rng.random()))
        given = [UNKNOWN if v is None else v for v in old_versions]
        self.trained.append(
            Trained(
                [*prompt, *tokens], [0] * len(prompt) + [1] * n, rollout, trainer, reward=reward,
                per_token={
                    "old_logprobs": old, "old_versions": given, "advantages": advantages, "entropy": entropy,
                    "rollout_versions": [v if not joined and v is not None else UNKNOWN for v in versions],
                },
            )
        )  # fmt: skip
        self.rows.append(
            oracles.Row(
                rollout, trainer, versions, engine if joined else None, old, old_versions, advantages, entropy, reward,
                len(prompt), 0 if off else cached, self.policy,
            )
        )  # fmt: skip

    def play(self, hub: Hub, *, split: int = 1, rollouts_first: bool = True) -> None:
        sent = [
            (engine, *rollouts([w for w in self.written if w.engine == engine]))
            for engine in sorted({w.engine for w in self.written})
        ]
        if rollouts_first:
            for engine, body, arrays in sent:
                hub.send(engine, body, arrays)
        for part in np.array_split(np.arange(len(self.trained)), split):
            if part.size:
                body_arrays = sequences(
                    [self.trained[i] for i in part], policy_version=self.policy, clip_low=self.clip.low,
                    clip_high=self.clip.high, objective=self.clip.objective, ratio_base=self.clip.base,
                )  # fmt: skip
                hub.send("trainer/0", *body_arrays)
        hub.send("trainer/0", wire.StepClosed(0, 0, 1, self.policy + 1))
        hub.later()
        if not rollouts_first:
            for engine, body, arrays in sent:
                hub.send(engine, body, arrays)
        hub.settle()


def assert_values(ours: dict[str, float | None], rows: list[oracles.Row], clip: oracles.Clip) -> None:
    expected = oracles.Step(rows, clip).values()
    with np.errstate(invalid="ignore"):
        d = np.array([t - r for row in rows for t, r in zip(row.trainer, row.rollout, strict=True)])
    d = d[np.isfinite(d)]
    for name, value in expected.items():
        if name not in ours:
            assert name == "joined_fraction"
        elif value is None:
            assert ours[name] is None, name
        else:
            loose = 0.01 * float(np.abs(d).max(initial=0)) if "_p" in name and name[-2:].isdigit() else 1e-9
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=loose), name


@given(st.integers(0, 2**32), st.sampled_from(["ppo", "gspo"]), st.sampled_from(["rollout", "old"]), st.booleans())
@settings(max_examples=60)
def test_a_step_has_the_oracles_numbers(seed: int, objective: str, base: str, broken: bool) -> None:
    world, hub = World(seed, objective=objective, base=base, broken=broken), Hub()
    world.play(hub)
    step = hub.steps[0]
    assert_values(step.values, world.rows, world.clip)
    assert sum(step.unjoined.values()) == sum(row.engine is None for row in world.rows)
    assert set(step.engines) == {row.engine for row in world.rows if row.engine}
    for engine, values in step.engines.items():
        assert_values(values, [row for row in world.rows if row.engine == engine], world.clip)


@given(st.integers(0, 2**32), st.integers(1, 5), st.booleans(), st.sampled_from([1, 2000, steps.PART_TOKENS]))
@settings(max_examples=40)
def test_micro_batches_arrival_order_and_parts_do_not_change_the_result(
    seed: int, split: int, first: bool, part: int
) -> None:
    world, hub, other = World(seed), Hub(), Hub()
    world.play(hub)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "PART_TOKENS", part)
        world.play(other, split=split, rollouts_first=first)
    for name, value in hub.steps[0].values.items():
        rel = 1e-6 if name.startswith("noise_") or name.endswith("_std") else 1e-9  # spreads are differences of sums
        expected = None if value is None else pytest.approx(value, rel=rel, abs=1e-12)
        assert other.steps[0].values[name] == expected, name
    assert set(other.steps[0].engines) == set(hub.steps[0].engines)


def row(d: float = 0.0, token: int = 5) -> Trained:
    return Trained([1, token], [0, 1], [-1.0], [-1.0 + d], reward=1.0, per_token={"advantages": [1.0]})


def test_clip_rates_use_all_updates_and_the_rest_uses_the_first() -> None:
    hub = Hub()
    bounds: dict[str, Any] = {"clip_low": 0.8, "clip_high": 1.2}
    hub.send("trainer/0", *sequences([row(0.0)], **bounds))
    hub.send("trainer/0", *sequences([row(1.0)], update=1, **bounds))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    values = hub.steps[0].values
    assert (values["clip_frac_low"], values["clip_frac_high"]) == (0.0, 0.5)
    assert (values["tokens"], values["sequences"], values["logp_abs_diff_mean"]) == (1.0, 1.0, 0.0)


def test_an_explicit_mask_overrides_the_bounds_and_takes_its_side_from_the_advantage() -> None:
    hub = Hub()
    rows = [
        Trained([1, 2, 3, 4], [0, 1, 1, 1], [-1.0] * 3, [-1.0, -1.0, -2.0],
                per_token={"clipped": [1, 1, 0], "advantages": [-1.0, 1.0, 1.0]}),
    ]  # fmt: skip
    hub.send("trainer/0", *sequences(rows, clip_low=0.8, clip_high=1.2, objective="gspo"))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    assert hub.steps[0].values["clip_frac_low"] == pytest.approx(1 / 3)
    assert hub.steps[0].values["clip_frac_high"] == pytest.approx(1 / 3)


def test_without_advantages_or_bounds_there_is_no_clip_rate() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"clip_low": 0.8, "clip_high": 1.2}, {}),
        ({}, {"advantages": [1.0]}),
    ]
    for about, per_token in cases:
        hub = Hub()
        one = Trained([1, 5], [0, 1], [-1.0], [-1.0], per_token=per_token)
        hub.send("trainer/0", *sequences([one], **about))
        hub.send("trainer/0", wire.StepClosed(0, 0, 1))
        hub.settle()
        assert hub.steps[0].values["clip_frac_low"] is None
        assert hub.steps[0].values["clip_frac_high"] is None


def test_an_explicit_mask_needs_no_old_logprobs() -> None:
    hub = Hub()
    one = Trained([1, 2, 3, 4], [0, 1, 1, 1], [-1.0] * 3, [-1.0] * 3,
                  per_token={"clipped": [1, 1, 0], "advantages": [-1.0, 1.0, 1.0]})  # fmt: skip
    hub.send("trainer/0", *sequences([one], ratio_base="old"))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    assert hub.steps[0].values["clip_frac_low"] == hub.steps[0].values["clip_frac_high"] == pytest.approx(1 / 3)


def test_a_ratio_at_the_bound_is_not_clipped() -> None:
    hub = Hub()
    for number, sign in enumerate((-1.0, 1.0)):
        at = Trained([1, 5], [0, 1], [-1.0], [-1.0], per_token={"advantages": [sign]})
        hub.send("trainer/0", *sequences([at], update=number, clip_low=1.0, clip_high=1.0))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    assert hub.steps[0].values["clip_frac_low"] == hub.steps[0].values["clip_frac_high"] == 0.0


def test_a_step_closes_when_all_ranks_have_closed_it() -> None:
    hub = Hub()
    hub.send("e0", *rollouts([Written([1], [5], [-1.0]), Written([1], [6], [-1.0])]))
    for rank in (0, 1):
        hub.send(f"trainer/{rank}", *sequences([row(token=5 + rank)], rank=rank))
    hub.send("trainer/1", wire.StepClosed(0, 1, 2, 4, {"loss": 1.0, "grad_norm": 3.0}))
    hub.later(1.0)
    assert not hub.steps
    hub.send("trainer/0", wire.StepClosed(0, 0, 2, 4, {"loss": 2.0}))
    hub.later()
    step = hub.steps[0]
    assert (step.partial, step.policy_version, step.values["sequences"]) == (False, 4, 2.0)
    assert step.trainer == {"loss": 2.0, "grad_norm": 3.0}


def test_a_step_with_missing_ranks_closes_as_partial() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 2))
    hub.later(PARTIAL_S - 1)
    assert not hub.steps
    hub.later(1.0)
    hub.later(GRACE_S)
    assert hub.steps[0].partial
    assert any("is partial" in event.text for event in hub.state.snapshot.events)


def test_a_closed_step_waits_for_rollouts_for_a_bounded_time() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later(GRACE_S / 2)
    assert not hub.steps
    hub.send("e0", *rollouts([Written([1], [5], [-1.0])]))
    hub.later()
    assert hub.steps[0].values["joined_fraction"] == 1.0
    hub.send("trainer/0", *sequences([row()], step=1))
    hub.send("trainer/0", wire.StepClosed(1, 0, 1))
    hub.later()
    assert hub.steps[1].values["joined_fraction"] == 1.0


@pytest.mark.parametrize("late", ["its rollouts", "nothing", "silence"])
def test_a_closed_step_waits_until_every_engine_was_heard(late: str) -> None:
    """The hub or an engine is starved: what it says next are the rollouts, or it had none."""
    hub = Hub()
    hub.engine("e0")
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later(GRACE_S + 1.0)
    assert not hub.steps
    if late == "its rollouts":
        hub.send("e0", *rollouts([Written([1], [5], [-1.0])]))
    elif late == "nothing":
        hub.engine("e0")
    hub.later(SILENT_S if late == "silence" else 0.0)
    assert hub.steps[0].values["joined_fraction"] == (late == "its rollouts")


def test_a_closed_step_does_not_use_an_earlier_rollout_for_one_in_transit() -> None:
    hub = Hub()
    hub.send("e0", *rollouts([Written([1], [5], [-3.0], [0])]))  # the same tokens, sampled some steps ago
    hub.send("trainer/0", *sequences([row()], policy_version=7))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later()
    hub.send("e1", *rollouts([Written([1], [5], [-1.0], [7])], "e1"))
    hub.later(GRACE_S / 2)
    assert set(hub.steps[0].engines) == {"e1"}
    assert hub.steps[0].values["lag_mean"] == 0.0


def test_late_rows_are_counted_and_change_nothing() -> None:
    hub = Hub()
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later()
    before = hub.steps[0]
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later(GRACE_S + PARTIAL_S)
    assert hub.counters["late_rows"] == 1
    assert hub.steps == {0: before}


def test_a_restarted_trainer_may_repeat_its_steps() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.send("trainer/0", *sequences([row()], step=1))  # and dies in step 1
    hub.settle()
    hub.sources["trainer/0"] = Source("trainer/0", "life-2")
    for step in (0, 1):
        hub.send("trainer/0", *sequences([row(0.5)], step=step))
        hub.send("trainer/0", wire.StepClosed(step, 0, 1))
    hub.settle()
    assert [hub.steps[step].values["logp_diff_mean"] for step in (0, 1)] == [0.5, 0.5]
    assert hub.steps[1].values["sequences"] == 1.0
    assert "late_rows" not in hub.counters  # counters show once they rise


def test_a_disconnect_of_the_trainer_closes_its_open_steps() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([row()]))
    effects = hub.say("trainer/0", wire.Bye("trainer/0", "life-1", 1))
    assert sent(effects, wire.ByeAck) == [wire.ByeAck("life-1")]
    hub.settle()
    hub.later()
    assert hub.steps[0].partial
    assert hub.state.snapshot.trainer.health == "gone"


def test_a_disconnect_of_the_trainer_loses_no_waiting_rows() -> None:
    hub = Hub()
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    late = [hub.source("trainer/0").frames(*sequences([row()], step=1), sent=hub.now) for _ in range(5)]
    late.append(hub.source("trainer/0").frames(wire.StepClosed(1, 0, 1), sent=hub.now))
    assert not hub.say("trainer/0", wire.Bye("trainer/0", "life-1", 1 + len(late)))  # it overtook the data
    for frames in late:
        hub.later(BYE_PATIENCE_S * 0.9)  # each takes a while to measure
        hub.state.data(frames, hub.now)
    acks = sent(hub.later(), wire.ByeAck)
    hub.settle()
    assert acks == [wire.ByeAck("life-1")]
    assert hub.steps[1].values["sequences"] == 5.0
    assert not hub.steps[1].partial
    assert not hub.counters.get("lost_messages")


def test_open_steps_are_bounded_and_the_oldest_is_shown() -> None:
    hub = Hub()
    hub.send("e0", *rollouts([Written([1], [5], [-1.0])]))
    for step in range(3 * MAX_OPEN):
        hub.send("trainer/0", *sequences([row()], step=step))
    hub.later()
    assert sorted(hub.steps) == list(range(2 * MAX_OPEN))
    assert all(step.partial and step.values["joined_fraction"] == 1.0 for step in hub.steps.values())


def test_waiting_rows_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MAX_WAITING_BYTES", 100_000)
    hub = Hub()
    for token in range(300):  # a few bytes each on the wire, a thousand here
        hub.send("trainer/0", *sequences([row(token=token)]))
    hub.later()
    assert hub.counters["settled_early"] > 100
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    assert hub.steps[0].values["sequences"] == 300.0
    assert hub.steps[0].unjoined == {"no_prompt": 300}


def test_a_step_that_no_rank_closes_does_not_stay_open() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([row()]))
    hub.send("trainer/0", wire.StepClosed(1, 0, 1))
    hub.later()
    hub.later(PARTIAL_S)
    hub.later(GRACE_S)
    assert sorted(hub.steps) == [0, 1]
    assert hub.steps[0].partial


def test_rows_wait_for_the_compiler_and_delay_nothing_else() -> None:
    ready = False
    waiting = steps.Steps(RolloutIndex(), lambda: ready)
    waiting.add_rows("life", *sequences([Trained([1, 2], [0, 1], [-1.0], [-1.5])]), 0.0)
    waiting.close_rank("life", wire.StepClosed(0, 0, 1), 0.0)
    waiting.close_rank("life", wire.StepClosed(1, 0, 1), 0.0)
    assert [step.step for step in waiting.tick(100.0)] == [1]
    ready = True
    (step,) = waiting.tick(100.1)
    assert (step.step, step.values["logp_diff_mean"]) == (0, -0.5)


def test_a_step_with_late_rollouts_is_measured_in_parts_between_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "PART_TOKENS", 1)
    made = [Written([7, at], [at, 2, 3, 4], [-1.0, -2.0, -0.5, -0.1], [3] * 4) for at in range(20)]
    hub = Hub()
    for w in made:
        ids, mask = [*w.prompt, *w.tokens], [0, 0, 1, 1, 1, 1]
        hub.send("trainer/0", *sequences([Trained(ids, mask, w.logprobs, w.logprobs)]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later()
    hub.send("e0", *rollouts(made))
    ticks = 0
    while not hub.steps:
        hub.state.tick(hub.now)
        hub.state.next_frame(hub.now)
        ticks += 1
        answer, _ = hub.ask(api.AskSnapshot(f"q{ticks}"))
        assert answer.snapshot is not None
        assert answer.snapshot.steps or hub.state.unfinished
    assert ticks >= len(made)
    assert hub.steps[0].values["joined_fraction"] == 1.0


def test_later_rows_do_not_overtake_half_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal completions, one rollout: it is of the row that came first."""
    monkeypatch.setattr(steps, "PART_TOKENS", 1)
    ready = False
    index = RolloutIndex()
    waiting = steps.Steps(index, lambda: ready)
    index.add(*rollouts([Written([at], [5, 6], [-1.0, -1.5], [3] * 2, request_id=f"r{at}") for at in range(1, 4)]))

    def pass_row(at: int) -> None:
        row = Trained([at, 5, 6], [0, 1, 1], [-1.0, -1.5], [-1.0, -1.5])
        waiting.add_rows("life", *sequences([row]), 0.0)

    for at in range(1, 4):
        pass_row(at)
    ready = True
    found: list[api.Step] = []

    def tick(now: float) -> bool:
        found.extend(waiting.tick(now))
        return waiting.unfinished

    assert tick(1.0)
    pass_row(3)
    waiting.close_rank("life", wire.StepClosed(0, 0, 1, rows=4), 1.0)
    while tick(1.0):
        assert not found
    while not found:
        assert tick(1.0 + GRACE_S)
    (step,) = found
    assert sum(step.unjoined.values()) == 1
    assert step.values["joined_fraction"] == 0.75
