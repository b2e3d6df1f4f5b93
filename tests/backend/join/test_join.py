"""Trainer rows find the rollouts they came from, whatever the order, and nothing is joined that does not fit."""

from __future__ import annotations

import random as randoms
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rltop.backend.join.batch import ATTEMPTS_PER_DELAY, Batch
from rltop.backend.join.index import KEPT_STEPS, RolloutIndex
from rltop.collectors.contract import wire
from tests.support.hub_messages import Trained, Written, rollouts, sequences

PAD = 0


def trained(written: Written, *, size: int | None = None, pad: int = 0, prompt_apart: bool = False) -> Trained:
    tokens, logprobs = list(written.tokens[:size]), list(written.logprobs[:size])
    before = [PAD] * pad + list(written.prompt)
    if prompt_apart:
        return Trained(tokens, [1] * len(tokens), logprobs, logprobs, prompt=before)
    return Trained([*before, *tokens], [0] * len(before) + [1] * len(tokens), logprobs, logprobs)


def index_of(*written: Written, **limits: int) -> RolloutIndex:
    index = RolloutIndex(**limits)
    for one in written:
        index.add(*rollouts([one]))
    return index


def batch_of(*rows: Trained, step: int = 0, update: int = 0) -> Batch:
    return Batch(*sequences(rows, step=step, update=update))


def engines(batch: Batch) -> list[str | None]:
    return [hit.record.engine if hit else None for hit in batch.hits]


def settled(index: RolloutIndex, batch: Batch) -> Batch:
    batch.join(index, strict=True)
    batch.join(index, strict=False)
    return batch


def logprobs_of(tokens: Sequence[int], salt: int, prompt: Sequence[int] = ()) -> list[float]:
    rng = np.random.default_rng([salt, *tokens, 0, *prompt])
    return [float(x) for x in -rng.exponential(1.0, len(tokens)).astype(np.float32)]


tokens = st.lists(st.integers(1, 3), min_size=1, max_size=12)


@st.composite
def fleets(draw: st.DrawFn) -> list[Written]:
    """Rollouts with few prompts and few tokens: many share a prompt, a beginning, or everything but logprobs."""
    prompts = draw(st.lists(tokens, min_size=1, max_size=3))
    made = []
    for number in range(draw(st.integers(1, 12))):
        prompt, completion = draw(st.sampled_from(prompts)), draw(tokens)
        made.append(Written(prompt, completion, logprobs_of(completion, number, prompt), engine=f"e{number}"))
    return made


SHORT_AND_LONG = [Written([1], [1], [-0.4237], engine="e0"), Written([1, 1], [1], [-1.3305], engine="e1")]
"""The longer prompt, of one repeated token, looks like the shorter one padded with it."""


@given(fleets(), st.randoms(use_true_random=False), st.booleans(), st.integers(0, 3))
def test_every_row_joins_its_own_rollout_in_any_order(
    fleet: list[Written], random: randoms.Random, prompt_apart: bool, pad: int
) -> None:
    order = list(range(len(fleet)))
    random.shuffle(order)
    batch = batch_of(*(trained(fleet[i], prompt_apart=prompt_apart, pad=pad) for i in order))
    assert settled(index_of(*fleet), batch).joined == len(fleet)
    assert engines(batch) == [fleet[i].engine for i in order]


@given(fleets().flatmap(lambda fleet: st.tuples(st.just(fleet), st.permutations(fleet))))
@example((SHORT_AND_LONG, SHORT_AND_LONG))
@example((SHORT_AND_LONG, SHORT_AND_LONG[::-1]))
def test_rows_that_arrive_first_join_as_their_rollouts_arrive(case: tuple[list[Written], list[Written]]) -> None:
    fleet, arriving = case
    index, batch = RolloutIndex(), batch_of(*(trained(one) for one in fleet))
    for one in arriving:
        index.add(*rollouts([one]))
        batch.join(index, strict=True)
    assert not batch.waiting
    assert engines(batch) == [one.engine for one in fleet]


@given(fleets(), st.integers(1, 5))
def test_equal_rollouts_join_as_a_multiset(fleet: list[Written], copies: int) -> None:
    index = index_of(*(fleet[0],) * copies)
    batch = settled(index, batch_of(*(trained(fleet[0]),) * (copies + 1)))
    assert batch.joined == copies
    assert batch.unjoined() == {"already_joined": 1}
    assert len({id(hit.record) for hit in batch.hits if hit}) == copies


ALIKE = [Written([1] * n, [1] * 12, logprobs_of([1] * 12, 0, [1] * n)) for n in (1, 2)]
"""Long completions that say nothing, of a prompt and of one that looks like it padded."""


@given(fleets(), fleets())
@example(ALIKE[:1], ALIKE[1:])
def test_rows_with_other_prompts_or_tokens_do_not_join(fleet: list[Written], others: list[Written]) -> None:
    known = {(tuple(one.prompt), tuple(one.tokens)) for one in fleet}
    batch = settled(index_of(*fleet), batch_of(*(trained(one) for one in others)))
    for span, hit, one in zip(batch.spans, batch.hits, others, strict=True):
        assert span.end - span.start == len(one.tokens)
        if hit:
            assert list(hit.record.tokens[: len(one.tokens)]) == list(one.tokens)
            assert any(
                prompt == tuple(one.prompt) and rest[: len(one.tokens)] == tuple(one.tokens) for prompt, rest in known
            )


@given(tokens, tokens, tokens, st.integers(1, 6))
def test_a_longer_rollout_joins_once_the_exact_ones_are_claimed(
    prompt: list[int], completion: list[int], surplus: list[int], pad: int
) -> None:
    whole = [*completion, *surplus]
    longer = Written(prompt, whole, logprobs_of(whole, 1), engine="longer")
    exact = Written(prompt, completion, longer.logprobs[: len(completion)], engine="exact")
    batch = batch_of(trained(longer, size=len(completion), pad=pad))
    assert not batch.join(index_of(longer), strict=True)  # the exact one may still come
    assert engines(settled(index_of(longer), batch)) == ["longer"]
    batch = batch_of(trained(longer, pad=pad), trained(exact, pad=pad))
    assert engines(settled(index_of(longer, exact), batch)) == ["longer", "exact"]


@given(tokens, st.lists(st.tuples(tokens, tokens), min_size=1, max_size=4), st.integers(0, 2), st.booleans())
def test_a_row_of_several_requests_joins_each_by_its_whole_context(
    prompt: list[int], turns: list[tuple[list[int], list[int]]], pad: int, prompt_apart: bool
) -> None:
    made: list[Written] = []
    context, ids, mask = list(prompt), list[int](), list[int]()
    recorded: list[float] = []
    for number, (completion, reply) in enumerate(turns):
        made.append(Written(list(context), completion, logprobs_of(completion, number), engine=f"e{number}"))
        ids += [*completion, *reply]
        mask += [1] * len(completion) + [0] * len(reply)
        recorded += made[-1].logprobs
        context += [*completion, *reply]
    padded = [PAD] * pad + prompt
    if prompt_apart:
        row = Trained(ids, mask, recorded, recorded, prompt=padded)
    else:
        row = Trained([*padded, *ids], [0] * len(padded) + mask, recorded, recorded)
    batch = settled(index_of(*made), batch_of(row))
    assert batch.joined == 1
    assert engines(batch) == [one.engine for one in made]


def test_a_masked_token_inside_a_completion_does_not_end_it() -> None:
    one = Written([5, 6], [1, 2, 3, 4, 5], logprobs_of([1, 2, 3, 4, 5], 0), versions=[7, 7, 7, 8, 8])
    kept = [one.logprobs[0], one.logprobs[1], one.logprobs[3], one.logprobs[4]]
    batch = settled(index_of(one), batch_of(Trained([5, 6, 1, 2, 3, 4, 5], [0, 0, 1, 1, 0, 1, 1], kept, kept)))
    assert batch.joined == 1
    assert [hit.offset for hit in batch.hits if hit] == [0, 3]


@pytest.mark.parametrize("cast", [np.float16, "bfloat16", np.float32])
def test_a_cast_copy_of_the_logprobs_still_distinguishes_equal_completions(cast: object) -> None:
    fleet = [Written([1], [2, 2, 2], logprobs_of([2, 2, 2], salt), engine=f"e{salt}") for salt in range(6)]
    rows = []
    for one in reversed(fleet):
        exact = np.array(one.logprobs, np.float32)
        if cast == "bfloat16":
            copy = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        else:
            copy = exact.astype(cast)  # type: ignore[call-overload]
        rows.append(Trained([1, 2, 2, 2], [0, 1, 1, 1], [float(x) for x in copy], one.logprobs))
    batch = batch_of(*rows)
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [f"e{salt}" for salt in reversed(range(6))]


def test_a_corrupted_copy_of_the_logprobs_joins_by_tokens_without_a_better_rollout() -> None:
    one = Written([1], [2, 3], [-0.5, -1.5])
    batch = batch_of(Trained([1, 2, 3], [0, 1, 1], [0.0, 0.0], [0.0, 0.0]))
    index = index_of(one)
    assert not batch.join(index, strict=True)
    assert batch.unjoined() == {"unsure": 1}
    assert batch.join(index, strict=False)


def test_a_rollout_without_logprobs_joins_by_tokens() -> None:
    one = Written([1], [2, 3], [float("nan")] * 2, has_logprobs=False)
    assert batch_of(Trained([1, 2, 3], [0, 1, 1], [-1.0, -1.0], [0.0, 0.0])).join(index_of(one), strict=True)


def test_a_rollout_joins_again_in_another_step_and_another_update() -> None:
    one = Written([1], [2, 3], [-0.5, -1.5])
    index = index_of(one)
    for step, update in ((0, 0), (0, 1), (1, 0)):
        assert batch_of(trained(one), step=step, update=update).join(index, strict=True)


@given(fleets())
def test_rows_wait_for_their_own_rollouts_if_those_of_the_step_before_are_equal(fleet: list[Written]) -> None:
    def rows(step: int) -> list[Trained]:
        return [replace(trained(one), per_token={"rollout_versions": [step] * len(one.tokens)}) for one in fleet]

    index = index_of(*(replace(one, versions=[0] * len(one.tokens)) for one in fleet))
    assert batch_of(*rows(0)).join(index, strict=True)
    frozen = batch_of(*rows(1), step=1)
    assert not frozen.join(index, strict=True)
    for one in fleet:
        index.add(*rollouts([replace(one, versions=[1] * len(one.tokens))]))
    assert frozen.join(index, strict=True)
    assert {int(version) for hit in frozen.hits if hit for version in hit.record.versions} == {1}
    assert frozen.reused() == 0


@given(fleets(), st.sampled_from(["engine", "stated", "inferred"]), st.booleans())
def test_rows_that_are_trained_on_again_wait_for_nothing(fleet: list[Written], source: str, stated: bool) -> None:
    index = index_of(*(replace(one, versions=[3] * len(one.tokens), source=source) for one in fleet))
    version = 3 if source != "inferred" else 7  # a count is no version
    rows = [trained(one) for one in fleet]
    for row, one in zip(rows, fleet, strict=True):
        row.per_token = {"rollout_versions": [version] * len(one.tokens)} if stated else {}
    assert batch_of(*rows).join(index, strict=True)
    again = batch_of(*rows, step=1)
    assert again.join(index, strict=True)
    assert again.reused() == len(fleet)


def test_unjoined_rows_have_a_reason() -> None:
    old, kept = Written([1], [2], [-1.0]), Written([4], [5], [-1.0])
    index = index_of(old, kept, max_bytes=3000)
    assert index.evicted == 1
    rows = [trained(old), trained(Written([9], [9], [-1.0])), trained(Written([4], [6], [-1.0]))]
    assert settled(index, batch_of(*rows)).unjoined() == {"evicted": 1, "no_prompt": 1, "no_completion_match": 1}


def test_the_index_is_bounded_by_bytes_and_evicts_rollouts_completely() -> None:
    index = RolloutIndex(max_bytes=100_000)
    for number in range(300):
        index.add(*rollouts([Written([number], [1] * 50, [-1.0] * 50)]))
    assert index.bytes <= 100_000
    assert len(index) + index.evicted == 300
    kept = {id(record) for record in index._records}
    assert {id(record) for records in index._by.values() for record in records} == kept
    assert sum(index._lengths.values()) == sum(index._firsts.values()) == len(index)


def test_a_row_without_trained_tokens_is_neither_joined_nor_unjoined() -> None:
    batch = batch_of(Trained([1, 2], [0, 0], [], []), trained(Written([1], [2], [-1.0])))
    assert (batch.rows, batch.joinable, batch.joined) == (2, 1, 0)


@given(st.data())
def test_arrays_that_do_not_fit_are_refused(data: st.DataObject) -> None:
    body, arrays = sequences([trained(Written([1, 2], [3, 4], [-1.0, -2.0]), prompt_apart=True)])
    name = data.draw(st.sampled_from(sorted(arrays)))
    arrays[name] = data.draw(
        st.sampled_from([arrays[name][:-1], np.repeat(arrays[name], 2), arrays[name].astype("f8")])
    )
    with pytest.raises(wire.WireError):
        Batch(body, arrays)


def test_rows_without_rollouts_are_retried_less_and_less_often_but_still_join() -> None:
    index, batch = RolloutIndex(), batch_of(trained(Written([1], [2], [-1.0])))
    attempts = 0
    for number in range(400):
        index.add(*rollouts([Written([100 + number], [1], [-1.0])]))
        before = batch._attempts
        assert not batch.join(index, strict=True)
        attempts += batch._attempts - before
    assert ATTEMPTS_PER_DELAY < attempts < 100
    index.add(*rollouts([Written([1], [2], [-1.0])]))
    assert batch.join(index, strict=False)


def test_rollouts_of_old_steps_beyond_the_reuse_budget_are_evicted() -> None:
    index = RolloutIndex(kept_bytes=10_000)
    for number in range(KEPT_STEPS + 20):
        index.add(*rollouts([Written([number], [1] * 50, [-1.0] * 50)]))
        index.step_done()
        assert len(index) >= min(number + 1, KEPT_STEPS)
    assert len(index) == KEPT_STEPS
    assert index.evicted == 0  # nothing was wanted and had no room
    roomy = RolloutIndex()
    for number in range(KEPT_STEPS + 20):
        roomy.add(*rollouts([Written([number], [1] * 50, [-1.0] * 50)]))
        roomy.step_done()
    assert len(roomy) == KEPT_STEPS + 20
