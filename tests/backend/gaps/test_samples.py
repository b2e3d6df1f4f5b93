"""What is kept of single sequences and tokens: a fair sample, the worst, and never more than the bounds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.samples import Samples, as_json, floats, ints
from rltop.backend.gaps import sampling, token_details
from rltop.backend.gaps.sampling import KINDS, SAMPLE, TOKENS, WORST, SampledSteps, StepSamples
from rltop.backend.join.batch import Batch
from rltop.backend.join.index import RolloutIndex
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences


def plain_row(rng: np.random.Generator, size: int, spread: float = 0.1) -> Trained:
    rollout = (-rng.exponential(1.0, size)).astype(np.float32)
    trainer = (rollout + rng.normal(0, spread, size)).astype(np.float32)
    tokens = [int(x) for x in rng.integers(0, 1000, size)]
    return Trained([1, *tokens], [0] + [1] * size, rollout.tolist(), trainer.tolist(), reward=float(size))


def batches(rows: list[Trained], cuts: list[int], *, step: int = 0) -> list[Batch]:
    made = []
    for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if rows[start:end]:
            batch = Batch(*sequences(rows[start:end], step=step))
            batch.first = start
            batch.join(RolloutIndex(), strict=False)
            made.append(batch)
    return made


def kept(*found: Batch) -> StepSamples:
    step = StepSamples()
    for batch in found:
        step.add_batch(batch)
    return step


@given(st.integers(0, 2**32), st.integers(1, 40), st.data())
@settings(max_examples=40)
def test_any_split_order_and_merge_of_batches_keeps_the_same_samples(
    seed: int, count: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    rows = [plain_row(rng, int(rng.integers(1, 30))) for _ in range(count)]
    (whole,) = batches(rows, [])
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    parts = data.draw(st.permutations(batches(rows, cuts)))
    assert kept(*parts) == kept(whole)
    merged = StepSamples()
    for part in parts:
        merged += kept(part)
    assert merged == kept(whole)


@given(st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=40)
def test_the_worst_match_a_brute_force_search(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [plain_row(rng, int(rng.integers(1, 12)), spread=0.5) for _ in range(count)]
    found = kept(*batches(rows, []))
    d = [[float(np.float32(t) - np.float32(r)) for t, r in zip(x.trainer, x.rollout, strict=True)] for x in rows]
    k3 = [[math.expm1(value) - value for value in row] for row in d]
    means = sorted((float(np.mean(row)) for row in k3), reverse=True)[:WORST]
    assert [s.k3_mean for *_, s in found.worst.sequences] == pytest.approx(means, rel=1e-4)
    for list_, values in ((found.worst.by_diff, d), (found.worst.by_k3, k3)):
        flat = sorted((abs(value) for row in values for value in row), reverse=True)[:TOKENS]
        assert [value for value, *_ in list_] == pytest.approx(flat, rel=1e-3, abs=1e-6)
        for _, _, token in list_:
            row = rows[token.number]
            assert token.id == row.ids[1 + token.position]
            assert token.diff == pytest.approx(d[token.number][token.position], rel=1e-5, abs=1e-7)
            assert [*ints(token.before), token.id, *ints(token.after)] == list(
                row.ids[max(1 + token.position - token_details.BEFORE, 0) : 2 + token.position + token_details.AFTER]
            )


def test_every_sequence_has_the_same_chance() -> None:
    rng = np.random.default_rng(0)
    rows = [plain_row(rng, 1 + 10 * (number % 3), spread=0.01 * number) for number in range(64)]
    chosen: Counter[int] = Counter()
    steps = 400
    for step in range(steps):
        chosen.update(s.number for _, s in kept(*batches(rows, [], step=step)).sample)
    expected = steps * SAMPLE / 64
    deviation = math.sqrt(steps * (SAMPLE / 64) * (1 - SAMPLE / 64))
    scores = [(chosen[number] - expected) / deviation for number in range(64)]
    assert max(map(abs, scores)) < 4  # of 64 normal values, 1 in 250 runs would be beyond; this one is fixed
    assert 0.5 < float(np.var(scores)) < 1.6
    for third in range(3):  # no length is preferred
        of_length = sum(chosen[number] for number in range(third, 64, 3))
        assert of_length / len(range(third, 64, 3)) == pytest.approx(expected, rel=0.05)


def test_long_sequences_are_bounded_by_bytes_but_not_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STEP_BYTES", 20_000)
    rng = np.random.default_rng(0)
    rows = [plain_row(rng, 400 if number % 2 else 4) for number in range(32)]
    long, count = 0, 0
    for step in range(300):
        sample = kept(*batches(rows, [], step=step)).sample
        assert sum(s.nbytes for _, s in sample[:-1]) < 20_000
        long += sum(s.number % 2 for _, s in sample)
        count += len(sample)
    assert count < 300 * SAMPLE  # the bound was met
    assert long / count == pytest.approx(0.5, abs=0.03)


def test_an_engine_without_outliers_also_keeps_its_worst() -> None:
    hub, rng = Hub(), np.random.default_rng(0)
    for number in range(120):
        size, quiet = 10, number == 77
        rollout = (-rng.exponential(1.0, size)).astype(np.float32).tolist()
        one = Written([number], rng.integers(0, 50, size).tolist(), rollout, engine="e1" if quiet else "e0")
        hub.send(one.engine, *rollouts([one], one.engine))
        trainer = [value + (0.001 if quiet else 1.0 + rng.random()) for value in rollout]
        hub.send("trainer/0", *sequences([Trained([number, *one.tokens], [0] + [1] * size, rollout, trainer)]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    for kind in ("abs_diff", "k3"):
        assert {token.engine for token in asked(hub, kind).tokens} == {"e0"}
        own = asked(hub, kind, engine="e1").tokens
        assert [token.engine for token in own] == ["e1"] * sampling.ENGINE_TOKENS
        assert [abs(token.diff) for token in own] == pytest.approx([0.001] * 8, rel=1e-3)
        loud = asked(hub, kind, engine="e0").tokens
        assert (len(loud), loud) == (TOKENS, asked(hub, kind).tokens)
    assert [s.number for s in asked(hub, "worst", engine="e1").sequences] == [77]
    assert len(asked(hub, "worst", engine="e0").sequences) == WORST


def test_tokens_without_a_finite_gap_come_first() -> None:
    rng = np.random.default_rng(0)
    rows = [plain_row(rng, 20, spread=1.0) for _ in range(5)]
    broken = Trained([1, 7, 8], [0, 1, 1], [-1.0, float("nan")], [-1.0, -1.0])
    rows = [*rows, broken]
    for row in rows:
        row.reward = None
    found = kept(*batches(rows, []))
    assert found.worst.sequences[0][2].number == 5
    assert (found.worst.sequences[0][2].invalid, found.worst.sequences[0][2].abs_diff_mean) == (1, 0.0)
    assert found.worst.by_diff[0][2].position == found.worst.by_k3[0][2].position == 1
    assert math.isnan(found.worst.by_diff[0][2].diff)


def told() -> Hub:
    hub = Hub()
    one = Written([1, 2], [3, 4, 5], [-1.0, -2.0, -3.0], [6, 6, 7], "e1", 1, epochs=[0, 2, 2], request_id="r7-0a1b2c3d")
    hub.send("e1", *rollouts([one]))
    rows = [
        Trained([1, 2, 3, 4], [0, 0, 1, 1], one.logprobs[:2], [-1.0, -2.5], reward=0.5,
                per_token={"rollout_versions": [-1, -1]}),
        Trained([8, 8, 8], [0, 1, 1], [-1.0, -1.0], [-1.25, -1.0], reward=1.5, per_token={"rollout_versions": [5, 5]}),
    ]  # fmt: skip
    hub.send("trainer/0", *sequences(rows))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    return hub


def asked(hub: Hub, kind: str, engine: str | None = None, limit: int = 32, step: int | None = None) -> Samples:
    answer, _ = hub.ask(api.AskSamples("q", step, kind, engine, limit))
    assert answer.samples is not None, answer.error
    return api.decode_answer(api.encode(answer)).samples  # type: ignore[return-value]


def test_a_viewer_gets_sequences_with_the_engines_facts() -> None:
    hub = told()
    found = asked(hub, "worst")
    assert (found.step, found.of_sequences, found.of_tokens, found.steps) == (0, 2, 4, [0])
    worst, other = found.sequences
    assert (worst.engines, worst.requests, worst.ways) == (["e1"], ["r7-0a1b2c3d"], ["whole"])
    assert (worst.prompt_tokens, worst.cached_tokens, worst.reward, worst.finish_reason) == (2, 1, 0.5, "stop")
    assert (worst.tokens, worst.abs_diff_mean) == (2, 0.25)
    assert ints(worst.context).tolist() == [1, 2]
    assert ints(worst.ids).tolist() == [3, 4]
    assert (ints(worst.versions).tolist(), ints(worst.epochs).tolist()) == ([6, 6], [0, 2])
    assert floats(worst.trainer).tolist() == [-1.0, -2.5]
    assert (other.engines, other.unjoined) == ([], "no_prompt")
    assert (ints(other.versions).tolist(), ints(other.epochs).tolist()) == ([5, 5], [-1, -1])


def test_a_viewer_may_ask_for_one_engine_and_for_fewer() -> None:
    hub = told()
    assert [t.diff for t in asked(hub, "abs_diff").tokens[:3]] == [-0.5, -0.25, 0.0]
    assert [t.diff for t in asked(hub, "k3", engine="e1").tokens] == [-0.5, 0.0]
    assert len(asked(hub, "abs_diff", limit=1).tokens) == 1
    assert [s.number for s in asked(hub, "sample", engine="e1").sequences] == [0]
    assert {s.number for s in asked(hub, "sample").sequences} == {0, 1}


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (api.AskSamples("q", 3), "nothing is kept of step 3; there are 1 steps from 0 to 0"),
        (api.AskSamples("q", 0, "best"), "no samples of kind 'best'; there are sample, worst, abs_diff, k3"),
    ],
)
def test_a_failed_request_lists_what_is_available(question: api.AskSamples, error: str) -> None:
    answer, _ = told().ask(question)
    assert (answer.samples, answer.error) == (None, error)
    answer, _ = Hub().ask(api.AskSamples("q"))
    assert answer.error == "no training step with sequences has closed yet"


def test_samples_become_valid_json() -> None:
    hub = told()
    plain = as_json(asked(hub, "worst"))
    assert plain["sequences"][0]["trainer"] == [-1.0, -2.5]
    assert plain["sequences"][0]["mask"] == [1, 1]
    assert as_json(asked(hub, "k3"))["tokens"][0]["before"] == [1, 2, 3]


def test_rows_are_numbered_in_the_order_their_rank_sent_them() -> None:
    hub = Hub()
    late, early = Written([1], [3], [-1.0]), Written([2], [4], [-1.0])
    hub.send("e0", *rollouts([early]))
    for one, trainer in ((late, [-1.5]), (early, [-1.0])):
        hub.send("trainer/0", *sequences([Trained([*one.prompt, *one.tokens], [0, 1], one.logprobs, trainer)]))
    hub.send("e0", *rollouts([late]))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.settle()
    assert [(s.number, s.abs_diff_mean) for s in asked(hub, "worst").sequences] == [(0, 0.5), (1, 0.0)]


def test_the_oldest_steps_are_dropped_first() -> None:
    rng = np.random.default_rng(0)
    one = kept(*batches([plain_row(rng, 100) for _ in range(20)], []))
    store = SampledSteps(total_bytes=int(3.5 * one.nbytes))
    for step in range(10):
        store.put(step, one)
    store.put(8, one)  # a restarted trainer
    assert store.answer(None, "worst").steps == [7, 9, 8]
    assert store.nbytes <= 3.5 * one.nbytes
    assert all(store.answer(None, kind) for kind in KINDS)
