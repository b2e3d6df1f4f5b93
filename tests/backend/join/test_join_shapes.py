"""The shapes that trainers hand over: padded, packed, cut, resumed, edited, reused, filtered; and requests by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rltop.backend.join import violations
from rltop.backend.join.ageing import UNUSED_STEPS
from rltop.backend.join.batch import Batch
from rltop.backend.join.index import RolloutIndex
from rltop.backend.join.records import given_id
from rltop.collectors.contract import wire
from rltop.collectors.trainer.arguments import check
from rltop.collectors.trainer.packing import pack
from tests.backend.join.test_join import PAD, batch_of, engines, fleets, index_of, logprobs_of, settled, tokens, trained
from tests.support.hub_messages import Trained, Written, rollouts


def written(prompt: Sequence[int], completion: Sequence[int], salt: int, **about: object) -> Written:
    return Written(prompt, completion, logprobs_of(completion, salt, prompt), engine=f"e{salt}", **about)  # type: ignore[arg-type]


def row_of(*parts: Sequence[int] | Written, request_id: str = "") -> Trained:
    """A row of tokens that are context, and of completions that are trained on."""
    ids, mask, logprobs = list[int](), list[int](), list[float]()
    for part in parts:
        completion = isinstance(part, Written)
        new = part.tokens if isinstance(part, Written) else part
        ids += new
        mask += [int(completion)] * len(new)
        logprobs += part.logprobs if isinstance(part, Written) else ()
    return Trained(ids, mask, logprobs, logprobs, request_id=request_id)


def matrix(rows: list[Written], *, prompts_apart: bool) -> list[Trained]:
    """As TRL, verl and OpenRLHF have it: prompts padded on the left to one width, completions on the right."""
    width = max(len(one.prompt) for one in rows)
    return [trained(one, pad=width - len(one.prompt), prompt_apart=prompts_apart) for one in rows]


@given(fleets(), st.booleans())
def test_a_matrix_of_padded_prompts_joins_whole(fleet: list[Written], prompts_apart: bool) -> None:
    batch = batch_of(*matrix(fleet, prompts_apart=prompts_apart))
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [one.engine for one in fleet]
    assert set(batch.ways()) <= {"whole", "padded"}


@given(fleets())
def test_a_row_that_packs_several_sequences_joins_each(fleet: list[Written]) -> None:
    parts: list[Sequence[int] | Written] = []
    for one in fleet:
        parts += [one.prompt, one]
    batch = batch_of(row_of(*parts))
    assert settled(index_of(*fleet), batch).joined == 1
    assert engines(batch) == [one.engine for one in fleet]


@given(fleets(), st.integers(1, 3))
def test_a_packed_row_may_have_padding_and_untrained_tokens_between(fleet: list[Written], between: int) -> None:
    parts: list[Sequence[int] | Written] = []
    for one in fleet:
        parts += [one.prompt, one, [9] * between]
    batch = batch_of(row_of(*parts))
    assert settled(index_of(*fleet), batch).joined == 1
    assert engines(batch) == [one.engine for one in fleet]


def test_packed_sequences_of_several_turns_join_by_their_own_context() -> None:
    parts: list[Sequence[int] | Written] = []
    made = []
    for number in range(3):
        first = written([1, 2, 10 + number], [3, 4], 2 * number)
        second = written([1, 2, 10 + number, 3, 4, 7, 8], [5, 6], 2 * number + 1)
        made += [first, second]
        parts += [first.prompt, first, [7, 8], second]
    batch = batch_of(row_of(*parts))
    assert batch.join(index_of(*made), strict=True)
    assert engines(batch) == [f"e{number}" for number in range(6)]
    assert batch.ways() == {"packed": 1}


@given(tokens, st.lists(tokens, min_size=2, max_size=5), st.integers(0, 2))
def test_a_stopped_and_resubmitted_request_joins_in_pieces(
    prompt: list[int], pieces: list[list[int]], pad: int
) -> None:
    made, context = list[Written](), list(prompt)
    for number, piece in enumerate(pieces):
        made.append(written(context, piece, number, finish_reason="abort"))
        context = [*context, *piece]
    batch = batch_of(row_of([PAD] * pad, prompt, *made))
    assert settled(index_of(*made), batch).joined == 1
    assert engines(batch) == [f"e{number}" for number in range(len(pieces))]
    assert [span.token for span in batch.spans] == [
        sum(map(len, pieces[:number])) for number in range(len(pieces))
    ]  # fmt: skip
    assert batch.ways() == {"resumed": 1}


def test_a_row_that_continues_after_its_rollout_is_distinguished_from_one_never_sampled() -> None:
    one = written([1, 2], [3, 4, 5], 0)
    appended = Trained([1, 2, 3, 4, 5, 99], [0, 0, 1, 1, 1, 1], [*one.logprobs, 0.0], [*one.logprobs, -3.0])
    assert settled(index_of(one), batch_of(appended)).unjoined() == {"overlong": 1}


def test_retokenised_text_is_reported_and_not_joined() -> None:
    prompt, completion = [1, 2], list(range(100, 140))
    one, other = written(prompt, completion, 0), written(prompt, list(range(200, 240)), 1)
    again = [*completion[:10], 7, *completion[12:25], 8, 9, *completion[26:]]  # two ids for one, one for two
    row = Trained([*prompt, *again], [0, 0] + [1] * len(again), [-1.0] * len(again), [-1.0] * len(again))
    assert settled(index_of(one, other), batch_of(row)).unjoined() == {"retokenised": 1}
    assert settled(index_of(one, other), batch_of(row, trained(one))).unjoined() == {"no_completion_match": 1}


def test_a_changed_prompt_joins_if_tokens_and_logprobs_identify_the_rollout() -> None:
    one = written([1, 2], list(range(100, 120)), 0)
    batch = batch_of(Trained([5, 1, 3, *one.tokens], [0] * 3 + [1] * 20, one.logprobs, one.logprobs))
    assert not batch.join(index_of(one), strict=True)
    assert settled(index_of(one), batch).joined == 1
    assert batch.ways() == {"other_prompt": 1}


def test_a_changed_prompt_with_two_candidate_rollouts_does_not_join() -> None:
    one, two = written([1, 2], list(range(100, 120)), 0), written([3, 4], list(range(100, 120)), 0)
    two.logprobs = one.logprobs
    row = Trained([5, *one.tokens], [0] + [1] * 20, one.logprobs, one.logprobs)
    assert settled(index_of(one, two), batch_of(row)).unjoined() == {"no_prompt": 1}


@given(fleets())
def test_rows_without_prompts_join_by_tokens_and_logprobs_whatever_their_length(fleet: list[Written]) -> None:
    rows = [Trained(one.tokens, [1] * len(one.tokens), one.logprobs, one.logprobs) for one in fleet]
    batch = settled(index_of(*fleet), batch_of(*rows))
    assert engines(batch) == [one.engine for one in fleet]
    assert set(batch.ways()) == {"without_prompt"}


def test_equal_rollouts_of_one_prompt_join_rows_without_a_prompt_and_those_of_two_prompts_do_not() -> None:
    same = [Written([1, 2], [5], [-0.5], engine="e0"), Written([1, 2], [5], [-0.5], engine="e1")]
    rows = [Trained([5], [1], [-0.5], [-0.4])] * 2
    assert sorted(map(str, engines(settled(index_of(*same), batch_of(*rows))))) == ["e0", "e1"]
    other = Written([3], [5], [-0.5], engine="e2")
    assert settled(index_of(*same, other), batch_of(*rows)).joined == 0


@pytest.mark.parametrize("logprobs", [[-0.5], [-1e-4], [0.0]])
def test_a_short_row_with_another_prompt_or_a_certain_token_does_not_join(logprobs: list[float]) -> None:
    one = Written([1, 2], [5], logprobs)
    assert settled(index_of(one), batch_of(Trained([9, 5], [0, 1], logprobs, logprobs))).joined == 0
    row = Trained([5], [1], logprobs, logprobs)
    assert settled(index_of(one), batch_of(row)).joined == (logprobs[0] < -0.001)


def test_tokens_before_the_prompt_are_removed_and_reported() -> None:
    one = written([1, 2, 3], [4, 5], 0)
    batch = batch_of(row_of([7, 1], one.prompt, one))  # a second beginning of text, by another tokeniser
    assert batch.join(index_of(one), strict=True)
    assert batch.ways() == {"padded": 1}


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ([PAD, PAD, PAD], {}),
        ([PAD, PAD, 7], {}),
        ([7], {}),
        ([11, 12, 13], {0: violations.ENGINE_HAS_END}),
        ([PAD, PAD, 11, 12, 13, 14], {0: violations.ENGINE_HAS_END}),
    ],
)
def test_a_prompt_that_the_engine_had_the_end_of_is_told_apart_from_padding(
    before: list[int], found: dict[int, str]
) -> None:
    one = written([1, 2, 3], [4, 5], 0)
    row = Trained(one.tokens, [1, 1], one.logprobs, one.logprobs, prompt=[*before, *one.prompt])
    batch = settled(index_of(one), batch_of(row))
    assert batch.joined == 1
    assert violations.prompts(batch) == found


def test_a_corrupted_copy_after_padding_joins_if_the_completion_is_distinctive() -> None:
    long, short = written([1, 2], list(range(100, 108)), 0), written([1, 3], [100], 1)
    rows = [
        Trained([PAD, *one.prompt, *one.tokens], [0, 0, 0] + [1] * len(one.tokens), zeros, zeros)
        for one in (long, short)
        for zeros in [[0.0] * len(one.tokens)]
    ]
    batch = settled(index_of(long, short), batch_of(*rows))
    assert engines(batch) == ["e0", None]
    assert batch.unjoined() == {"unsure": 1}


def test_a_short_row_with_other_logprobs_is_no_prefix_of_a_longer_rollout() -> None:
    longer = written([1], [2, 3, 4], 0)
    assert settled(index_of(longer), batch_of(Trained([1, 2], [0, 1], [-9.0], [-9.0]))).unjoined() == {"unsure": 1}


@pytest.mark.parametrize(
    ("internal", "given"),
    [
        ("cmpl-12-0-0a1b2c3d", "cmpl-12-0"),
        ("3_chatcmpl-77-0a1b2c3d", "chatcmpl-77"),
        ("step4-row9-ffffffff", "step4-row9"),
        ("plain", "plain"),
        ("12_34-0a1b2c3d", "34"),
        ("new\nline-0a1b2c3d", "new\nline"),
    ],
)
def test_an_id_is_reduced_to_the_one_the_caller_gave(internal: str, given: str) -> None:
    assert given_id(internal) == given


@pytest.mark.parametrize("known_as", ["r7", "r7-0a1b2c3d", "0_r7-0a1b2c3d", "r7-0-0a1b2c3d"])
def test_an_id_finds_a_rollout_at_once_despite_changed_prompt_and_logprobs(known_as: str) -> None:
    one = written([1], [2, 3], 0, request_id=known_as)
    row = Trained([8, 9, 2, 3], [0, 0, 1, 1], [0.0, 0.0], [0.0, 0.0], request_id="r7")
    batch = batch_of(row)
    assert batch.join(index_of(one), strict=True)
    assert batch.ways() == {"by_id": 1}


def test_samples_of_one_request_share_its_id_and_differ_by_content() -> None:
    fleet = [written([1], [2, 3], salt, request_id=f"{salt}_r7-0a1b2c3d") for salt in range(4)]
    rows = [row_of([9], one, request_id="r7") for one in reversed(fleet)]
    batch = batch_of(*rows)
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == ["e3", "e2", "e1", "e0"]


def test_an_id_with_other_tokens_reports_the_edit_and_does_not_join() -> None:
    one = written([1], [2, 3], 0, request_id="r7")
    row = Trained([1, 2, 4], [0, 1, 1], [-1.0, -1.0], [-1.0, -1.0], request_id="r7")
    assert settled(index_of(one), batch_of(row)).unjoined() == {"retokenised": 1}


def test_an_unknown_id_does_not_keep_a_row_from_its_rollout() -> None:
    one = written([1], [2, 3], 0, request_id="r7")
    assert batch_of(row_of([1], one, request_id="unknown")).join(index_of(one), strict=True)


@given(fleets())
def test_ids_change_nothing_for_rows_that_join_without(fleet: list[Written]) -> None:
    for number, one in enumerate(fleet):
        one.request_id = f"r{number}-0a1b2c3d"
    rows = [row_of(one.prompt, one, request_id=f"r{number}") for number, one in enumerate(fleet)]
    batch = batch_of(*rows)
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [one.engine for one in fleet]


def test_a_rollout_used_in_an_earlier_step_is_joined_again_and_counted() -> None:
    index = index_of(written([1], [2], 0), written([1], [3], 1))
    first, second = row_of([1], written([1], [2], 0)), row_of([1], written([1], [3], 1))
    assert settled(index, batch_of(first)).reused() == 0
    assert settled(index, batch_of(first, update=1)).reused() == 0
    assert settled(index, batch_of(first, second, step=1)).reused() == 1


def test_rollouts_that_no_step_trains_on_are_counted_once_by_engine() -> None:
    index = index_of(*(written([1], [2], salt) for salt in range(3)))
    settled(index, batch_of(row_of([1], written([1], [2], 1))))
    told = [index.step_done() for _ in range(UNUSED_STEPS + 3)]
    assert told[:UNUSED_STEPS] == [{}] * UNUSED_STEPS
    assert told[UNUSED_STEPS:] == [{"e0": 1, "e2": 1}, {}, {}]


def test_rollouts_evicted_for_lack_of_space_also_count_as_unused() -> None:
    index = RolloutIndex(max_bytes=6000)
    for number in range(5):
        index.add(*rollouts([written([number], [2], number % 2)]))
    assert index.step_done() == {"e0": 2, "e1": 1}
    for _ in range(UNUSED_STEPS - 1):
        assert not index.step_done()
    assert index.step_done() == {"e0": 1, "e1": 1}


def test_ids_that_do_not_fit_the_rows_are_refused() -> None:
    one = written([1], [2], 0)
    with pytest.raises(wire.WireError, match="request_ids: 2 entries for 1 rows"):
        batch_of(row_of([1], one)).__class__(
            wire.Sequences(0, 0, 0, 1, [], request_ids=["a", "b"]),
            {
                "row_ids": np.array([1, 2], "<i4"), "row_mask": np.array([0, 1], "u1"),
                "row_sizes": np.array([2], "<i4"), "rollout_logprobs": np.array([-1], "<f4"),
                "trainer_logprobs": np.array([-1], "<f4"),
            },
        )  # fmt: skip


# --- as the frameworks call the collector -----------------------------------------------------------------------------

PAD_ID = 151643


def collected(prompt_ids: object = None, **arrays: object) -> Batch:
    """The one message that a call of ``TrainerCollector.sequences`` becomes, as the hub takes it."""
    shifted = bool(arrays.pop("shifted", False))
    names = ("token_ids", "mask", "cu_seqlens", "request_ids")
    columns = {name: value for name, value in arrays.items() if name not in names}
    columns["trainer_logprobs"] = columns["rollout_logprobs"]
    checked = check(
        wire.Sequences(0, 0, 0, 0, []), arrays["token_ids"], arrays["mask"], prompt_ids, None,
        arrays.get("cu_seqlens"), columns, arrays.get("request_ids"), shifted=shifted,
    )  # fmt: skip
    ((body, made),) = pack(checked.copy())
    _, decoded, found = wire.decode_data(
        [bytes(frame) for frame in wire.encode_data(wire.Envelope(1, "trainer/0", "e", 0, 0.0), body, made)]
    )
    assert isinstance(decoded, wire.Sequences)
    return Batch(decoded, found)


def group(seed: int, count: int = 6) -> list[Written]:
    """A group of samples of each of two prompts of different length, of different length themselves."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(10, 1000, size).tolist() for size in (5, 9)]
    sizes = rng.integers(2, 30, count).tolist()
    completions = [rng.integers(10, 1000, size).tolist() for size in sizes]
    return [
        written(prompts[n % 2], completion, n, request_id=f"r{n}-0a1b2c3d") for n, completion in enumerate(completions)
    ]


def left(rows: list[list[int]]) -> NDArray[np.int64]:
    width = max(map(len, rows))
    return np.array([[PAD_ID] * (width - len(row)) + list(row) for row in rows])


def right(rows: Sequence[Sequence[float]], fill: float) -> NDArray[np.float64]:
    width = max(map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


@given(st.integers(0, 2**32))
def test_trl_passes_padded_prompts_and_completions_apart_or_in_one(seed: int) -> None:
    fleet = group(seed)
    prompts = left([list(one.prompt) for one in fleet])
    completions = right([one.tokens for one in fleet], PAD_ID).astype(np.int64)
    logprobs = right([one.logprobs for one in fleet], 0.0)
    mask = right([[1] * len(one.tokens) for one in fleet], 0)
    whole = np.concatenate([prompts, completions], axis=1)
    ahead = np.zeros(prompts.shape)
    for batch in (
        collected(token_ids=completions, rollout_logprobs=logprobs, mask=mask, prompt_ids=prompts),
        collected(
            token_ids=whole,
            rollout_logprobs=np.concatenate([ahead, logprobs], axis=1),
            mask=np.concatenate([ahead, mask], axis=1),
        ),
    ):
        assert batch.join(index_of(*fleet), strict=True)
        assert engines(batch) == [one.engine for one in fleet]


@given(st.integers(0, 2**32))
def test_verl_passes_responses_with_tool_output_masked_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = group(seed)
    second, ids, masks, logprobs = list[Written](), list[list[int]](), list[list[int]](), list[list[float]]()
    for number, one in enumerate(first):
        tool = rng.integers(10, 1000, 4).tolist()
        after = written([*one.prompt, *one.tokens, *tool], rng.integers(10, 1000, 5).tolist(), 100 + number)
        second.append(after)
        ids.append([*one.tokens, *tool, *after.tokens])
        masks.append([1] * len(one.tokens) + [0] * 4 + [1] * 5)
        logprobs.append([*one.logprobs, *[0.0] * 4, *after.logprobs])
    batch = collected(
        token_ids=right(ids, PAD_ID).astype(np.int64),
        mask=right(masks, 0),
        rollout_logprobs=right(logprobs, 0.0),
        prompt_ids=left([list(one.prompt) for one in first]),
    )
    assert batch.join(index_of(*first, *second), strict=True)
    assert engines(batch) == [w.engine for pair in zip(first, second, strict=True) for w in pair]


@given(st.integers(0, 2**32), st.booleans())
def test_prime_rl_packs_samples_into_one_row_with_padding_at_its_end(seed: int, apart: bool) -> None:
    fleet = group(seed)
    ids = [token for one in fleet for token in (*one.prompt, *one.tokens)]
    mask = [on for one in fleet for on in [0] * len(one.prompt) + [1] * len(one.tokens)]
    logprobs = [value for one in fleet for value in [0.0] * len(one.prompt) + list(one.logprobs)]
    sizes = [len(one.prompt) + len(one.tokens) for one in fleet]
    if apart:
        batch = collected(
            token_ids=np.array(ids), mask=mask, rollout_logprobs=logprobs, cu_seqlens=np.cumsum([0, *sizes])
        )
    else:
        tail = [0] * 7
        batch = collected(
            token_ids=np.array([[*ids, *[PAD_ID] * 7]]),
            mask=np.array([[*mask, *tail]]),
            rollout_logprobs=np.array([[*logprobs, *tail]]),
        )
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [one.engine for one in fleet]
    assert batch.ways() == ({"whole": len(fleet)} if apart else {"packed": 1})


@given(st.integers(0, 2**32), st.booleans())
def test_pipeline_rl_passes_packed_logprobs_of_the_next_token(seed: int, on_mask: bool) -> None:
    """Its labels mask the prompts; what the last token of a row predicts belongs to no token."""
    fleet = group(seed)
    ids = [token for one in fleet for token in (*one.prompt, *one.tokens)]
    mask = [on for one in fleet for on in [0] * len(one.prompt) + [1] * len(one.tokens)]
    logprobs = [value for one in fleet for value in [-9.0] * len(one.prompt) + list(one.logprobs)]
    batch = collected(
        token_ids=np.array([ids]),
        mask=np.array([mask[1:] if on_mask else mask]),
        rollout_logprobs=np.array([logprobs[1:]]),
        cu_seqlens=np.cumsum([0, *(len(one.prompt) + len(one.tokens) for one in fleet)]),
        shifted=True,
    )
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [one.engine for one in fleet]
    assert batch.arrays["rollout_logprobs"].tolist() == [value for one in fleet for value in one.logprobs]


@given(st.integers(0, 2**32))
def test_nemo_rl_passes_some_logprobs_of_the_next_token_and_others_of_their_own(seed: int) -> None:
    fleet = group(seed)
    whole = [[*one.prompt, *one.tokens] for one in fleet]
    logprobs = right([[0.0] * len(one.prompt) + list(one.logprobs) for one in fleet], 0.0)
    batch = collected(
        token_ids=right(whole, PAD_ID).astype(np.int64),
        mask=right([[0] * len(one.prompt) + [1] * len(one.tokens) for one in fleet], 0),
        rollout_logprobs=logprobs,
        old_logprobs=logprobs[:, 1:],
        shifted=True,
    )
    assert batch.join(index_of(*fleet), strict=True)
    np.testing.assert_array_equal(batch.arrays["old_logprobs"], batch.arrays["rollout_logprobs"])


@given(st.integers(0, 2**32))
def test_a_copy_in_bfloat16_joins_at_once(seed: int) -> None:
    torch = pytest.importorskip("torch")
    fleet = group(seed)
    batch = collected(
        token_ids=torch.tensor(right([one.tokens for one in fleet], PAD_ID).astype(np.int64)),
        mask=torch.tensor(right([[1] * len(one.tokens) for one in fleet], 0)),
        rollout_logprobs=torch.tensor(right([one.logprobs for one in fleet], 0.0)).float().bfloat16(),
        prompt_ids=[list(one.prompt) for one in fleet],
        request_ids=[f"r{n}" for n in range(len(fleet))],
    )
    assert batch.join(index_of(*fleet), strict=True)
    assert engines(batch) == [one.engine for one in fleet]
