"""What a trainer states about its rows reaches the figures of the step: updates, the base of the ratio, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rltop.backend import api
from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences
from tests.support.receiver import Receiver, run_directory

TOKENS = [5, 9, 7, 3, 8, 6, 4, 2]
ROLLOUT = [-0.5, -1.0, -0.25, -2.0, -0.75, -1.5, -0.125, -3.0]


def hub_with(rows: int, *, version: int = 0) -> tuple[Hub, list[Written]]:
    hub = Hub()
    hub.engine("e0", policy_version=version)
    written = [Written([1, 2, number], TOKENS, ROLLOUT, [version] * len(TOKENS)) for number in range(rows)]
    hub.send("e0", *rollouts(written))
    return hub, written


def rows_of(written: list[Written], gap: float, **per_token: list[float]) -> list[Trained]:
    trainer = [logprob + gap for logprob in ROLLOUT]
    return [
        Trained(one.tokens, [1] * len(one.tokens), one.logprobs, trainer, one.prompt, 1.0, dict(per_token))
        for one in written
    ]


def train(hub: Hub, rows: list[Trained], *, step: int = 0, close: bool = True, **about: Any) -> None:
    hub.send("trainer/0", *sequences(rows, step=step, **about))
    if close:
        hub.send("trainer/0", wire.StepClosed(step, 0, 1, rows=None))
        hub.settle()
        hub.settle()


def test_a_step_that_begins_with_a_later_update_has_the_figures_of_that_update() -> None:
    """As TRL counts: two updates on each generation, and every update is a step."""
    hub, written = hub_with(4)
    for step in range(4):
        update = step % 2
        rows = rows_of(written[step // 2 * 2 :][:2], 0.01 + update * 0.1)
        train(hub, rows, step=step, update=update, first_update=update, policy_version=0)
    for step, own in hub.steps.items():
        assert own.values["tokens"] == 16
        assert own.values["logp_abs_diff_mean"] == pytest.approx(0.01 + step % 2 * 0.1, rel=1e-4)
        assert own.values["joined_fraction"] == 1
        assert own.reused == 2 * (step % 2)
        assert own.values["lag0_tokens"] == (0 if step % 2 else 16)
        assert own.values["lag_mean"] == step % 2
    assert [stretch.first for stretch in hub.state._hub.steps.series.stretches()] == [0, 2]


def test_of_several_updates_in_a_step_the_first_gives_the_figures_and_all_give_clip_rates() -> None:
    hub, written = hub_with(2)
    about: dict[str, Any] = {"clip_low": 0.8, "clip_high": 1.1}
    for update, gap in enumerate((0.01, 0.2, 0.2)):
        rows = rows_of(written, gap, advantages=[1.0] * len(TOKENS))
        train(hub, rows, step=3, update=update, close=update == 2, **about)
    values = hub.steps[3].values
    assert values["tokens"] == 16
    assert values["logp_abs_diff_mean"] == pytest.approx(0.01, rel=1e-4)
    assert values["clip_frac_high"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("base", "update", "expected"),
    [("current", 0, 0.0), ("current", 1, 0.0), ("old", 0, 0.0), ("old", 1, None), ("rollout", 0, None)],
)
def test_without_old_logprobs_the_ratio_is_1_in_the_first_update(
    base: str, update: int, expected: float | None
) -> None:
    hub, written = hub_with(2)
    train(
        hub, rows_of(written, 0.5), update=update, first_update=update, ratio_base=base, clip_low=0.8, clip_high=1.2
    )  # fmt: skip
    values = hub.steps[0].values
    assert (values["clip_frac_low"], values["clip_frac_high"]) == (expected, expected)
    assert values["kept_token_frac"] == (None if expected is None else 1.0)
    assert values["noise_clip_frac_high"] is None


def test_tokens_of_weight_0_stay_in_the_gap_and_leave_the_loss() -> None:
    hub, written = hub_with(2)
    weights = [0.0, 2.0, 1.0, 1.0, 0.0, 1.0, 1.0, 2.0]
    rows = rows_of(written, 0.3, weights=weights, advantages=[1.0] * len(TOKENS))
    rows[1].per_token["weights"] = [0.0] * len(TOKENS)
    train(hub, rows, clip_low=0.8, clip_high=1.2)
    values = hub.steps[0].values
    assert (values["tokens"], values["tokens_in_loss"]) == (16, 6)
    assert values["logp_abs_diff_mean"] == pytest.approx(0.3, rel=1e-4)
    assert (values["weight_cut_frac"], values["weight_cut_seq_frac"]) == (10 / 16, 0.5)
    assert (values["weight_mean"], values["weight_max"]) == (0.5, 2.0)
    assert values["weight_ess"] == pytest.approx(8**2 / (16 * 12))
    assert (values["clip_frac_high"], values["kept_token_frac"]) == (1.0, 0.0)


@pytest.mark.parametrize("entries", [1, 3])
def test_names_that_do_not_fit_the_rows_are_counted_as_invalid(entries: int) -> None:
    hub, written = hub_with(2)
    train(hub, rows_of(written, 0.1), close=False, environments=["math"] * entries)
    hub.later()
    assert hub.counters["invalid"] == 1
    assert any("environments" in text for text in hub.texts)


def arguments_of(written: list[Written], rows: slice) -> dict[str, Any]:
    """The arguments of ``sequences`` for some of the rows, with everything that may be stated per token."""
    size = len(written) * len(TOKENS)
    every: dict[str, Any] = {
        "token_ids": np.array([one.tokens for one in written]),
        "prompt_ids": [np.array(one.prompt) for one in written],
        "mask": np.ones((len(written), len(TOKENS))),
        "rollout_logprobs": np.array([one.logprobs for one in written], np.float32),
        "trainer_logprobs": np.array([one.logprobs for one in written]) + np.sin(np.arange(size)).reshape(-1, 8) / 8,
        "weights": (np.arange(size) % 3).reshape(len(written), -1),
        "temperature": np.full((len(written), len(TOKENS)), 0.7),
        "rewards": np.arange(size).reshape(len(written), -1) / 8,
        "advantages": np.arange(len(written)) - 1.5,
        "environments": [f"env-{number % 2}" for number in range(len(written))],
    }
    return {name: values[rows] for name, values in every.items()} | {"clip_low": 0.8, "clip_high": 1.05}


def measured(ranks: list[tuple[int, slice]]) -> api.Step:
    """A step of four rows, sent by real collectors: each rank's replica number, and the rows that it holds."""
    hub, written = hub_with(4)
    with run_directory() as directory, Receiver(directory) as receiver:
        for rank, (replica, rows) in enumerate(ranks):
            collector = TrainerCollector(
                hub=str(directory.path), rank=rank, world_size=len(ranks), replica=replica, start_hub=False
            )
            collector.sequences(0, **arguments_of(written, rows))
            collector.step(0, policy_version=1)
            assert collector.close()
        for envelope, body, arrays in receiver.messages:
            if not isinstance(body, wire.Health):
                hub.send(envelope.source, body, arrays)
    hub.settle()
    hub.settle()
    return hub.steps[0]


def test_ranks_that_hold_the_same_rows_count_as_one() -> None:
    first, second = slice(2), slice(2, None)
    alone = measured([(0, slice(None))])
    replicated = measured([(0, first), (1, first), (0, second), (1, second)])
    assert replicated.values == pytest.approx(alone.values, nan_ok=True)
    assert (replicated.partial, replicated.missing_rows, alone.values["sequences"]) == (False, 0, 4)
    assert alone.values["reward_mean"] == pytest.approx(np.arange(32).sum() / 8 / 4)
    assert alone.values["weight_cut_frac"] == 11 / 32


def test_unknown_weights_are_in_the_loss() -> None:
    hub, written = hub_with(1)
    train(hub, rows_of(written, 0.1, weights=[np.nan] * len(TOKENS)))
    values = hub.steps[0].values
    assert values["tokens_in_loss"] == 8
    assert values["weight_cut_frac"] is values["weight_mean"] is None


def evidence_at(temperature: float | None, per_token: float | None) -> list[bytes]:
    """The evidence of a step of rows of one prompt, whose first tokens differ by steps of the lattice at T = 1."""
    hub = Hub()
    hub.engine("e0")
    written = [Written([1], [number, 7], [-1.0 - number / 256, -0.5], [0, 0]) for number in range(4)]
    hub.send("e0", *rollouts(written))
    rows = [Trained(one.tokens, [1, 1], one.logprobs, one.logprobs, one.prompt) for one in written]
    for row in rows if per_token is not None else ():
        row.per_token["temperatures"] = [per_token or 0.0] * 2
    train(hub, rows, temperature=temperature)
    return [own.to_bytes() for _, own in sorted(hub.state._hub.steps.series.of_step(0).items())]


def test_a_temperature_per_token_counts_as_that_of_all() -> None:
    assert evidence_at(None, 0.5) == evidence_at(0.5, None) != evidence_at(1.0, None)
    assert evidence_at(None, 1.0) == evidence_at(1.0, None)
