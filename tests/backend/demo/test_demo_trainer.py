"""The demo trainer's computation: logprobs compared with an unpadded forward pass, past weights, matched rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo import jobs, messages
from rltop.backend.demo.engines.engine_process import token_versions
from rltop.backend.demo.faults import HEALTHY, Fault
from rltop.backend.demo.options import MODEL
from rltop.backend.demo.rl import policy, task
from rltop.backend.demo.rl.demo_trainer import (
    gather,
    last_sampled,
    load_model,
    pick_matched,
    spanning_share,
    steps_to_grant,
)

PROMPTS = [task.prompt(0, number) for number in range(3)]
ANSWERS = [[*task.solution(prompt), task.EOS] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(str(MODEL)).eval()


def disturb(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))


def plain_logprobs(model: Any, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padding_changes_no_logprob_and_no_entropy(model: Any, temperature: float) -> None:
    batch = policy.make_batch(PROMPTS, ANSWERS)
    with torch.no_grad():
        logprobs, entropy = policy.logprobs_and_entropy(model, batch, temperature)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        expected = plain_logprobs(model, prompt, answer, temperature)
        chosen = expected[torch.arange(len(answer)), torch.tensor(answer)]
        torch.testing.assert_close(logprobs[row, : len(answer)], chosen, atol=2e-5, rtol=0)
        torch.testing.assert_close(entropy[row, : len(answer)], -(expected.exp() * expected).sum(-1), atol=2e-5, rtol=0)


def test_logprobs_under_past_weights_are_per_token_and_row(model: Any) -> None:
    snapshots = policy.Snapshots(model, limit=10)
    first = snapshots.take(0)
    disturb(model, 1)
    snapshots.take(1)
    batch = policy.make_batch(PROMPTS, ANSWERS)
    versions = torch.zeros_like(batch.answers)
    versions[:, 5:] = 1
    under = {}
    for version in (0, 1):
        model.load_state_dict(snapshots.take(1) if version else first)
        with torch.no_grad():
            under[version], _ = policy.logprobs_and_entropy(model, batch, 1.0)

    logprobs, known = snapshots.logprobs(batch, versions, torch.tensor([0, 2]), 1.0)

    real = batch.mask > 0
    assert logprobs[1].isnan().all()
    assert (logprobs.isnan() == known.isnan()).all()
    for row in (0, 2):
        torch.testing.assert_close(logprobs[row, :5], under[0][row, :5], atol=1e-6, rtol=0)
        assert (known[row][real[row]] == versions[row][real[row]]).all()
        assert known[row][~real[row]].isnan().all()
    late = real[0, 5:]
    torch.testing.assert_close(logprobs[0, 5:][late], under[1][0, 5:][late], atol=1e-6, rtol=0)


def test_only_the_last_snapshots_are_kept_and_older_tokens_stay_unknown(model: Any) -> None:
    snapshots = policy.Snapshots(model, limit=3)
    for version in range(5):
        snapshots.take(version)
    assert snapshots.versions == [2, 3, 4]
    batch = policy.make_batch(PROMPTS, ANSWERS)
    logprobs, known = snapshots.logprobs(batch, torch.ones_like(batch.answers), torch.tensor([0, 1, 2]), 1.0)
    assert logprobs.isnan().all()
    assert known.isnan().all()


def test_a_snapshot_is_a_copy_of_the_live_weights(model: Any) -> None:
    snapshots = policy.Snapshots(model, limit=2)
    kept = snapshots.take(0)["lm_head.weight"].clone()
    disturb(model, 2)
    assert torch.equal(snapshots.take(1)["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(kept, model.lm_head.weight)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 80), st.integers(1, 64))
def test_matched_rows_are_a_seeded_sample_without_repeats(seed: int, step: int, size: int, batch: int) -> None:
    rows = pick_matched(seed, step, size, batch).tolist()
    assert rows == pick_matched(seed, step, size, batch).tolist()
    assert len(set(rows)) == len(rows) == min(size, batch)
    assert all(0 <= row < batch for row in rows)


def test_matched_rows_differ_from_step_to_step() -> None:
    assert len({tuple(pick_matched(0, step, 16, 64).tolist()) for step in range(20)}) == 20


def spans(*borders: tuple[str, int, int]) -> list[Any]:
    return [SimpleNamespace(version=version, start=start, end=end) for version, start, end in borders]


def test_version_spans_are_expanded_per_token() -> None:
    assert token_versions(spans(("3", 0, 2), ("4", 2, 5)), 5) == [3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    "broken",
    [
        spans(("3", 0, 2)),
        spans(("3", 0, 2), ("4", 3, 6)),
        spans(("3", 1, 6)),
        spans(),
    ],
)
def test_version_spans_that_do_not_cover_the_answer_are_rejected(broken: list[Any]) -> None:
    with pytest.raises(ValueError, match="do not cover 5 tokens"):
        token_versions(broken, 5)


def group(ticket: int, versions: list[list[int]]) -> messages.Group:
    prompt = task.prompt(0, ticket)
    right = [*task.solution(prompt), task.EOS]
    samples = [
        messages.SampledAnswer(right[: len(row)], [-0.1 * place for place in range(len(row))], row) for row in versions
    ]
    return messages.Group("e0", ticket, prompt, samples)


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 60))
def test_tickets_of_every_step_are_granted_once_and_in_time(burst: int, at: int, steps: int) -> None:
    fault, out = Fault(burst=burst, at=at), list[int]()
    for done in range(-jobs.AHEAD, steps):
        if done >= 0:
            assert done in out
        out += steps_to_grant(done, fault, steps)
    assert out == list(range(steps))


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 60))
def test_a_step_waits_for_its_whole_burst_and_only_for_granted_tickets(burst: int, at: int, steps: int) -> None:
    fault = Fault(burst=burst, at=at)
    together = [steps_to_grant(done, fault, steps) for done in range(-jobs.AHEAD, steps)]
    for step in range(steps):
        (own,) = [out for out in together if step in out]
        assert last_sampled(step, fault, steps) == own[-1]


def test_without_a_fault_tickets_are_granted_two_steps_ahead() -> None:
    assert [list(steps_to_grant(done, HEALTHY, 4)) for done in range(-2, 4)] == [[0], [1], [2], [3], [], []]


def test_groups_become_rows_with_rewards_and_advantages() -> None:
    rollouts = gather([group(0, [[0, 0, 1], [1] * 8]), group(1, [[2], [2, 2]])])
    assert rollouts.batch.mask.sum(1).tolist() == [3, 8, 1, 2]
    assert rollouts.versions[0].tolist() == [0, 0, 1, -1, -1, -1, -1, -1]
    assert rollouts.rewards.tolist() == pytest.approx(
        [task.reward(prompt.tolist(), answer[: int(size)].tolist())
         for prompt, answer, size in zip(
             rollouts.prompts, rollouts.batch.answers, rollouts.batch.mask.sum(1), strict=True)]
    )  # fmt: skip
    assert rollouts.advantages.view(2, 2).sum(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert spanning_share(rollouts) == 0.25
