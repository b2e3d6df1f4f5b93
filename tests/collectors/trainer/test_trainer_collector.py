"""The trainer's calls as a user makes them: wrong arguments raise on their line, everything else goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from rltop.collectors.trainer import arguments as batch
from rltop.collectors.trainer import arrays
from rltop.collectors.trainer import collector as trainer
from tests.support.harness import PATIENT_S
from tests.support.receiver import Receiver, run_directory, wait_until

IDS = np.arange(6).reshape(2, 3)
ONES = np.ones((2, 3))
FLAT = np.zeros(6)
BOUNDS = np.array([0, 2, 6])


@pytest.fixture
def idle() -> Iterator[TrainerCollector]:
    """A collector whose run has no hub."""
    with run_directory() as directory:
        collector = TrainerCollector(hub=str(directory.path), start_hub=False)
        yield collector
        collector.close(timeout=0.05)


def call(collector: TrainerCollector, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "step": 0, "token_ids": IDS, "rollout_logprobs": ONES, "trainer_logprobs": ONES, "mask": ONES
    }  # fmt: skip
    arguments |= changes
    collector.sequences(arguments.pop("step"), **arguments)


PACKED: dict[str, Any] = {
    "token_ids": np.arange(6), "rollout_logprobs": FLAT, "trainer_logprobs": FLAT, "mask": FLAT, "cu_seqlens": BOUNDS
}  # fmt: skip
LISTED: dict[str, Any] = {
    name: [np.zeros(3, int), np.zeros(1, int)] for name in ("token_ids", "rollout_logprobs", "trainer_logprobs", "mask")
}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"trainer_logprobs": np.ones((2, 4))}, r"trainer_logprobs: shape \[2, 4\]; expected shape \[2, 3\] as token_ids"),
    ({"rollout_logprobs": None}, r"rollout_logprobs: None; expected shape \[2, 3\]"),
    ({"mask": np.ones(6)}, r"mask: shape \[6\]; expected shape \[2, 3\]"),
    ({"mask": None}, r"mask: dtype object"),
    ({"old_logprobs": torch.ones(3, 2)}, r"old_logprobs: shape \[3, 2\]"),
    ({"entropy": 0.5}, r"entropy: shape \[\]"),
    ({"clipped": np.ones(2)}, r"clipped: shape \[2\]; expected shape \[2, 3\] as token_ids$"),
    (
        {"advantages": np.ones(3)},
        r"advantages: shape \[3\]; expected shape \[2, 3\] as token_ids, or \[2\], one per row$",
    ),
    ({"rewards": np.ones((2, 2))}, r"rewards: shape \[2, 2\]; expected \[2\], one per row, or shape \[2, 3\]"),
    ({"rewards": "good"}, r"rewards: dtype <U4; expected numbers"),
    ({"weights": 0.5}, r"weights: shape \[\]; expected shape \[2, 3\] as token_ids, or \[2\], one per row$"),
    ({"weights": np.ones((2, 4))}, r"weights: shape \[2, 4\]; expected"),
    ({"weights": object()}, r"weights: dtype object; expected numbers"),
    ({"temperature": np.ones(3)}, r"temperature: shape \[3\]; expected shape \[2, 3\] as token_ids, or \[2\]"),
    ({"temperature": ["a", "b"]}, r"temperature: dtype <U1"),
    ({"temperature": 10**400}, r"temperature: 10+\.\.\.; expected a number"),
    ({"entropy": np.ones((2, 2))}, r"entropy: shape \[2, 2\]; .*; pass shifted=True if it belongs to the next tokens"),
    ({"entropy": np.ones((2, 1)), "shifted": True}, r"entropy: .*\[2, 3\] as token_ids, or one entry less per row"),
    ({"environments": "math"}, r"environments: 'math'; expected a list of 2 strings, one per row"),
    ({"environments": 5}, r"environments: 5; expected a list of 2 strings"),
    ({"environments": ["math"]}, r"environments: 1 entries; expected 2, one per row"),
    ({"environments": ["math", 5]}, r"environments: 5; expected None or a string of at most 256 characters"),
    ({"request_ids": 5}, r"request_ids: 5; expected a list of 2 strings"),
    ({"rollout_versions": np.ones(3)}, r"rollout_versions: shape \[3\]; .* or a single number"),
    ({"old_version": np.ones((3, 2))}, r"old_version: shape \[3, 2\]"),
    ({"prompt_ids": np.arange(4)}, r"prompt_ids: shape \[4\]; expected \[2, P\] or a list of 2 1-D arrays"),
    ({"prompt_ids": [[1], [2], [3]]}, r"prompt_ids: rows of lengths \[1, 1, 1\]; expected \[2, P\]"),
    ({"prompt_ids": np.ones((2, 2))}, r"prompt_ids: dtype float64; expected integers"),
    ({"token_ids": ONES}, r"token_ids: dtype float64; expected integers"),
    ({"token_ids": np.arange(6)}, r"token_ids: shape \[6\] without cu_seqlens"),
    ({"token_ids": np.zeros((1, 2, 3), int)}, r"token_ids: shape \[1, 2, 3\] without"),
    ({"trainer_logprobs": np.ones((2, 3), complex)}, r"trainer_logprobs: dtype complex128; expected numbers"),
    ({"trainer_logprobs": torch.ones(2, 3, dtype=torch.complex64)}, r"trainer_logprobs: dtype torch.complex64"),
    ({"entropy": torch.ones(2, 3).to_sparse()}, r"entropy: a nested or sparse tensor; expected a dense one"),
    ({"trainer_logprobs": [["a"], ["b"]]}, r"trainer_logprobs\[0\]: dtype <U1"),
    ({"cu_seqlens": BOUNDS}, r"token_ids: shape \[2, 3\] with cu_seqlens; expected \[tokens\] or \[1, tokens\]"),
    (PACKED | {"cu_seqlens": [0, 7]}, r"cu_seqlens: \[0, 7\]; expected to increase from 0 to 6"),
    (PACKED | {"cu_seqlens": torch.tensor([0, 4, 2, 6])}, r"cu_seqlens: \[0, 4, 2, 6\]"),
    (PACKED | {"cu_seqlens": np.ones((2, 2), int)}, r"cu_seqlens: shape \[2, 2\]; expected \[rows \+ 1\]"),
    (PACKED | {"cu_seqlens": [0.0, 6.0]}, r"cu_seqlens: dtype float64; expected integers"),
    (PACKED | {"entropy": np.zeros(5)}, r"entropy: shape \[5\]; expected shape \[6\] as token_ids"),
    (
        LISTED | {"mask": [np.zeros(3), np.zeros(2)]},
        r"mask: rows of lengths \[3, 2\]; expected .* \[3, 1\]",
    ),
    (
        LISTED | {"mask": [np.zeros(3), torch.zeros(1)]},
        r"mask\[1\]: Tensor of shape \[1\] on cpu; expected",
    ),
    (LISTED | {"mask": [np.zeros((3, 1)), np.zeros(1)]}, r"mask\[0\]: ndarray of shape \[3, 1\]"),
    ({"step": -1}, r"step: -1; expected a whole number"),
    ({"step": 1.5}, r"step: 1.5"),
    ({"update": "first"}, r"update: 'first'"),
    ({"policy_version": -2}, r"policy_version: -2"),
    ({"temperature": "warm"}, r"temperature: 'warm'; expected a number"),
    ({"clip_high": 0.28}, r"clip_high: 0.28; expected a bound of the ratio itself, from 1 to inf"),
    ({"clip_low": 1.2}, r"clip_low: 1.2; expected a bound of the ratio itself, from 0 to 1"),
    ({"ratio_base": "new"}, r"ratio_base: 'new'; expected one of rollout, old, current"),
    ({"ratio_base": np.ones(2)}, r"ratio_base: array.*; expected one of rollout"),
    ({"step": torch.ones(2)}, r"step: tensor"),
    ({"step": 2**70}, r"step: \d+; expected a whole number from 0"),
    ({"objective": "dpo"}, r"objective: 'dpo'; expected one of ppo, gspo"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said[:30] for _, said in WRONG])
def test_wrong_arguments_are_named_before_anything_is_sent(
    idle: TrainerCollector, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        call(idle, **changes)
    assert idle._sender.health().counts == {}


@pytest.mark.parametrize(
    "metrics",
    [{"loss": "low"}, {"loss": None}, {"loss": [1, 2]}, {"loss": torch.ones(2)}, {1: 1.0}, {"loss": 1j}, ["loss", 1]],
)
def test_metrics_that_are_not_numbers_are_refused(idle: TrainerCollector, metrics: dict[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"metrics.*(loss|1|list)"):
        idle.step(0, metrics=metrics)
    assert idle._sender.health().counts == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "no run is named"),
        ({"run": "a", "hub": "/tmp/b"}, "name one of them"),
        ({"run": "../a"}, "run name"),
        ({"hub": "tcp://1.2.3.4:5"}, "refused"),
        ({"run": "a", "rank": 2, "world_size": 2}, "rank: 2 of world_size 2"),
        ({"run": "a", "rank": -1}, "rank: -1"),
        ({"run": "a", "world_size": 1.5}, "world_size: 1.5"),
        ({"run": "a", "replica": -1}, "replica: -1; expected a whole number from 0"),
        ({"run": "a", "version_unit": 0}, "version_unit: 0; expected a whole number from 1"),
    ],
)
def test_wrong_configuration_raises(arguments: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLTOP_HUB", raising=False)
    monkeypatch.delenv("RLTOP_RUN", raising=False)
    with pytest.raises(ValueError, match=said):
        TrainerCollector(**arguments, start_hub=False)


def test_the_run_is_named_by_argument_or_else_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_HOME", "/tmp/rl-home")
    monkeypatch.setenv("RLTOP_RUN", "env")
    monkeypatch.delenv("RLTOP_HUB", raising=False)
    found = []
    for arguments in ({}, {"run": "given"}, {"hub": "/tmp/rl-dir"}):
        collector = TrainerCollector(**arguments, start_hub=False)  # type: ignore[arg-type]
        collector.close(timeout=0.01)
        found.append(collector.rundir.path)
    assert found == [Path("/tmp/rl-home/env"), Path("/tmp/rl-home/given"), Path("/tmp/rl-dir")]


def test_a_step_arrives_after_its_sequences_with_its_scalars() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        with TrainerCollector(hub=str(directory.path), rank=1, world_size=2, start_hub=False) as collector:
            for step in range(3):
                for update in range(2):
                    call(collector, step=step, update=update, policy_version=step, objective="gspo", clip_low=0.5)
                metrics = {"python": 1, "numpy": np.float32(0.5), "bf16": torch.tensor([2.5], dtype=torch.bfloat16)}
                collector.step(step, policy_version=step + 1, metrics=metrics | {"nan": float("nan")})
        bodies = [body for _, body, _ in hub.messages if not isinstance(body, wire.Health)]
        kinds = [(type(body), body.step) for body in bodies if isinstance(body, wire.Sequences | wire.StepClosed)]
        assert kinds == [pair for step in range(3) for pair in [(wire.Sequences, step)] * 2 + [(wire.StepClosed, step)]]
        closed = bodies[-1]
        assert isinstance(closed, wire.StepClosed)
        assert (closed.rank, closed.world_size, closed.policy_version) == (1, 2, 3)
        assert np.isnan(closed.metrics.pop("nan"))
        assert closed.metrics == {"python": 1.0, "numpy": 0.5, "bf16": 2.5}
        first = bodies[1]
        assert isinstance(first, wire.Sequences)
        assert (first.update, first.rank, first.policy_version, first.objective) == (1, 1, 0, "gspo")
        assert (first.clip_low, first.clip_high, first.temperature, first.ratio_base) == (0.5, None, None, "rollout")
        assert {envelope.source for envelope, _, _ in hub.messages} == {"trainer/1"}
        last = hub.bodies(wire.Health)[-1]
        assert last.loop_count == 9
        assert last.counts == {"sequences": wire.Counts(6, 6), "step": wire.Counts(3, 3)}


def test_the_first_update_that_is_passed_for_a_step_is_stated() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        with TrainerCollector(hub=str(directory.path), start_hub=False, version_unit=512) as collector:
            for step, update in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 0)]:
                call(collector, step=step, update=update)
            for step in range(3):
                collector.step(step)
        assert [(body.step, body.update, body.first_update) for body in hub.bodies(wire.Sequences)] == [
            (0, 0, 0), (0, 1, 0), (1, 1, 1), (1, 2, 1), (2, 0, 0),
        ]  # fmt: skip
        assert {body.version_unit for body in (*hub.bodies(wire.Sequences), *hub.bodies(wire.StepClosed))} == {512}


def test_of_ranks_that_hold_the_same_rows_one_sends_them_and_all_close_the_step() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        ranks = [
            TrainerCollector(hub=str(directory.path), rank=rank, world_size=4, replica=rank % 2, start_hub=False)
            for rank in range(4)
        ]
        for collector in ranks:
            with pytest.raises(ValueError, match="mask"):
                call(collector, mask=None)
            call(collector)
            collector.step(0)
            collector.close()
        assert sorted(body.rank for body in hub.bodies(wire.Sequences)) == [0, 2]
        assert sorted((body.rank, body.rows) for body in hub.bodies(wire.StepClosed)) == [
            (0, 2),
            (1, 0),
            (2, 2),
            (3, 0),
        ]


def test_a_large_batch_is_split_below_the_limits_of_the_wire() -> None:
    rows, time = 64, 4096
    ids = torch.arange(rows * time).reshape(rows, time)
    logprobs = -torch.rand(rows, time)
    with run_directory() as directory, Receiver(directory) as hub:
        with TrainerCollector(hub=str(directory.path), start_hub=False) as collector:
            collector.sequences(
                0, token_ids=ids, rollout_logprobs=logprobs, trainer_logprobs=logprobs, mask=torch.ones_like(ids)
            )
        parts = [(body, arrays) for _, body, arrays in hub.messages if isinstance(body, wire.Sequences)]
        assert len(parts) > 1
        assert sum(body.rows for body, _ in parts) == rows
        for _, arrays in parts:
            assert sum(array.nbytes for array in arrays.values()) <= 1 << 20
        np.testing.assert_array_equal(np.concatenate([arrays["row_ids"] for _, arrays in parts]), ids.flatten())
        np.testing.assert_array_equal(
            np.concatenate([arrays["trainer_logprobs"] for _, arrays in parts]), logprobs.flatten()
        )


def test_without_a_hub_memory_is_bounded_and_losses_are_counted(
    idle: TrainerCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = torch.zeros(64, 16384)  # 4 MiB each
    copies = 0
    real = batch.Checked.copy

    def counted(checked: batch.Checked) -> Any:
        nonlocal copies
        copies += 1
        return real(checked)

    monkeypatch.setattr(batch.Checked, "copy", counted)
    for step in range(40):
        idle.sequences(
            step, token_ids=big.int(), rollout_logprobs=big, trainer_logprobs=big, mask=big.bool(), entropy=big
        )
        idle.step(step)
        assert idle._sender.health().queue_bytes <= trainer.LIMIT_BYTES
    counts = idle._sender.health().counts
    assert counts["step"] == wire.Counts(40, 0, 0, 40)
    assert counts["sequences"].offered == 40
    assert counts["sequences"].dropped > 0
    assert copies == counts["sequences"].queued  # what is dropped is not copied either


def test_after_close_calls_are_counted_and_nothing_else(idle: TrainerCollector) -> None:
    idle.close(timeout=0.05)
    call(idle)
    idle.step(0, metrics={"loss": 1.0})
    counts = idle._sender.health().counts
    assert counts == {"sequences": wire.Counts(1, 0, 1), "step": wire.Counts(1, 0, 1)}
    assert not idle.close()


def test_a_fault_while_copying_is_contained_and_counted(idle: TrainerCollector, monkeypatch: Any) -> None:
    monkeypatch.setattr(arrays.Argument, "copy", lambda self: 1 / 0)
    call(idle)
    idle.step(0, metrics={"loss": 1.0})
    assert idle._guard.faults == {"sequences": 1, "step": 1}
    counts = idle._sender.health().counts
    assert counts == {"sequences": wire.Counts(1, 0, 1), "step": wire.Counts(1, 0, 1)}


def test_an_id_beyond_int32_drops_its_call_and_not_the_step() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        with TrainerCollector(hub=str(directory.path), start_hub=False) as collector:
            call(collector, token_ids=IDS + 2**40)
            collector.step(0)
        assert len(hub.bodies(wire.StepClosed)) == 1
        last = hub.bodies(wire.Health)[-1]
        assert last.counts["sequences"] == wire.Counts(1, 0, 1)
        assert last.faults == {"encode": 1}


FORKING = """
import os, sys
from rltop.collectors import TrainerCollector
collector = TrainerCollector(hub=sys.argv[1], start_hub=False)
collector.step(0)
child = os.fork()
if child == 0:
    collector.step(1)
    collector.close()
    os._exit(0)
os.waitpid(child, 0)
collector.step(2)
sys.exit(0 if collector.close() else 1)
"""


def test_a_process_that_forks_and_ends_leaves_nothing_behind() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        ended = subprocess.run([sys.executable, "-c", FORKING, str(directory.path)], check=False)
        assert ended.returncode == 0
        wait_until(lambda: len(hub.bodies(wire.StepClosed)) == 3)
        assert sorted(body.step for body in hub.bodies(wire.StepClosed)) == [0, 1, 2]


ENDING = """
import sys, torch
from rltop.collectors import TrainerCollector
from rltop.collectors.transport import sender
sender.EXIT_TIMEOUT_S = sender.BYE_TIMEOUT_S = float(sys.argv[2])
collector = TrainerCollector(hub=sys.argv[1], start_hub=False)
big = torch.zeros(64, 4096, dtype=torch.bfloat16)
for step in range(8):
    collector.sequences(step, token_ids=big.int(), rollout_logprobs=big, trainer_logprobs=big, mask=big == 0)
    collector.step(step)
"""


@pytest.mark.parametrize("hub_is_there", [True, False])
def test_a_trainer_that_ends_without_closing_ends_well(hub_is_there: bool) -> None:
    with run_directory() as directory:
        command = [sys.executable, "-c", ENDING, str(directory.path), str(PATIENT_S if hub_is_there else 2.0)]
        if not hub_is_there:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (ended.returncode, ended.stderr) == (0, "")
            return
        with Receiver(directory) as hub:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert [body.step for body in hub.bodies(wire.StepClosed)] == list(range(8))
