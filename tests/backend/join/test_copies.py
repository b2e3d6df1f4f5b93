"""Classification of the trainer's copy of the rollout logprobs: equal, or the kind of corruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.join.copies import KINDS, classify, compare, describe, of_spans
from rltop.backend.join.index import RolloutIndex
from rltop.backend.join.rounding import agree, bfloat16, bfloat16_cut, equal, float16
from rltop.collectors.contract import wire
from tests.backend.join.test_join import batch_of, index_of, settled
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences

Floats = NDArray[np.float32]


def f4(values: object) -> Floats:
    return np.asarray(values, np.float32)


def logprobs(seed: int, size: int) -> Floats:
    return f4(-np.random.default_rng(seed).exponential(1.0, size) - 1e-3)


def shifted(by: int) -> Callable[[Floats], Floats]:
    def shift(record: Floats) -> Floats:
        moved = np.zeros_like(record)
        for at in range(record.size):
            if 0 <= at - by < record.size:
                moved[at] = record[at - by]
        return moved

    return shift


def changed_at(places: Sequence[int], value: float) -> Callable[[Floats], Floats]:
    def change(record: Floats) -> Floats:
        copy = record.copy()
        copy[list(places)] = value
        return copy

    return change


DAMAGES: dict[str, Callable[[Floats], Floats]] = {
    "equal": lambda record: record,
    "zero_filled": changed_at([-1], 0.0),
    "cast_bfloat16": bfloat16,
    "cast_bfloat16_cut": bfloat16_cut,
    "cast_float16": float16,
    "shifted+1": shifted(1),
    "shifted-1": shifted(-1),
    "shifted+3": shifted(3),
    "padded": changed_at([-1], float("nan")),
    "recomputed": lambda record: record + np.resize(f4([1e-3, -2e-3]), record.size),
    "scaled": lambda record: record * f4(1.25),
    "cast_2_decimals": lambda record: np.round(record.astype(np.float64), 2).astype(np.float32),
    "likeliest": lambda record: np.where(record < -0.7, np.log1p(-np.exp(record) - 1e-3), record),
    "changed": changed_at([4], -0.125),
}


@given(st.integers(0, 2**32), st.lists(st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(9, 40)), min_size=1))
def test_every_corruption_is_classified_among_other_spans(seed: int, spans: list[tuple[str, int]]) -> None:
    records = [logprobs(seed + number, size) for number, (_, size) in enumerate(spans)]
    copies = [DAMAGES[name](record) for (name, _), record in zip(spans, records, strict=True)]
    sizes = np.array([size for _, size in spans], np.int64)
    assert classify(np.concatenate(records), np.concatenate(copies), sizes) == [name for name, _ in spans]


def _batch(records: Sequence[Floats], copies: Sequence[Floats]) -> Batch:
    index, rows, written = RolloutIndex(), [], []
    for n, (record, copy) in enumerate(zip(records, copies, strict=True)):
        ids = list(range(100 * n, 100 * n + record.size))
        written.append(Written([n], ids, record.tolist()))
        rows.append(Trained(ids, [1] * len(ids), copy.tolist(), copy.tolist(), [n]))
    index.add(*rollouts(written))
    batch = Batch(*sequences(rows))
    batch.join(index, strict=False)
    return batch


@given(st.integers(0, 2**32), st.lists(st.integers(6, 30), min_size=4, max_size=12), st.data())
def test_a_copy_of_another_row_is_found(seed: int, sizes: list[int], data: st.DataObject) -> None:
    records = [logprobs(seed + n, size) for n, size in enumerate(sizes)]
    one, other = data.draw(st.permutations(range(len(sizes))))[:2]
    copies = list(records)
    copies[one] = np.resize(records[other], sizes[one])
    kinds = of_spans(_batch(records, copies))
    assert kinds == {n: "other_row" if n == one else "equal" for n in range(len(sizes))}


def test_a_copy_of_a_row_of_another_message_is_found() -> None:
    records = [logprobs(n, 12) for n in range(2)]
    index = RolloutIndex()
    index.add(*rollouts([Written([n], list(range(12)), record.tolist()) for n, record in enumerate(records)]))
    copy = records[1].tolist()
    batch = Batch(*sequences([Trained(list(range(12)), [1] * 12, copy, copy, [0])]))
    batch.join(index, strict=False)
    assert of_spans(batch) == {0: "other_row"}


@given(st.integers(0, 2**32), st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.booleans())
def test_a_record_without_finite_logprobs_is_broken_whatever_the_trainer_puts_in_its_place(
    seed: int, value: float, passed: bool
) -> None:
    records = [logprobs(seed + n, 12) for n in range(3)]
    records[1][:] = value
    copies = [record if passed or n != 1 else logprobs(seed + 9, 12) for n, record in enumerate(records)]
    assert of_spans(_batch(records, copies)) == {0: "equal", 1: "broken", 2: "equal"}


def test_a_record_of_one_low_value_is_uniform() -> None:
    flat, sure = np.full(8, f4([-6.2383246])[0]), np.zeros(8, np.float32)
    kinds = of_spans(_batch([logprobs(1, 8), flat, sure], [logprobs(1, 8), flat, sure]))
    assert kinds == {0: "equal", 1: "uniform", 2: "equal"}


@pytest.mark.parametrize(
    ("record", "copy", "kind"),
    [
        ([-0.5], [-0.5], "equal"),
        ([0.0, -1.0], [0.0, -1.0], "equal"),
        ([-0.5, -1.5, -2.5], [0.0, 0.0, 0.0], "zero_filled"),
        ([-0.5, -1.5, -2.5], [-1.0, -1.0, -2.5], "padded"),
        ([-0.5, -1.5, -2.5], [-9999.0, -1.5, -2.5], "padded"),
        ([-0.5, -1.5, -2.5], [1.0, -1.5, -2.5], "padded"),
        ([-0.5, -1.5, -2.5], [-0.5, float("-inf"), float("nan")], "padded"),
        ([-0.5, -25.0, -2.5, -30.0], [-0.5, -20.0, -2.5, -20.0], "clamped"),
        ([-0.5, -25.0, -21.0, -30.0], [-0.5, -20.0, -21.0, -20.0], "padded"),
        ([-0.5, -1.5, -2.5], [-0.5, -1.25, -2.5], "changed"),
        ([-0.5], [-0.75], "recomputed"),
        ([-0.1, -0.7], [0.0, -0.1], "shifted+1"),
        ([0.0, -0.7], [-0.3, 0.0], "recomputed"),
        ([float("nan"), -0.5], [-3.0, -0.5], "equal"),
        ([float("nan"), -0.3], [-3.0, float(bfloat16(f4([-0.3]))[0])], "cast_bfloat16"),
    ],
)
def test_short_copies_are_classified_by_the_same_rules(record: list[float], copy: list[float], kind: str) -> None:
    assert classify(f4(record), f4(copy), np.array([len(record)])) == [kind]


@given(st.integers(0, 2**32), st.integers(1, 30), st.sampled_from([-1, 1]))
def test_one_float32_rounding_is_equal_and_two_are_not(seed: int, size: int, side: int) -> None:
    record = logprobs(seed, size)
    one = np.nextafter(record, f4(np.inf * side))
    assert equal(record, one).all()
    far = record * f4(1 + side * 4 * 2.0**-23)
    assert not equal(record, far).any()


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_casts_are_those_of_numpy_and_torch(value: float) -> None:
    torch = pytest.importorskip("torch")
    one = f4([value])
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(one).to(torch.bfloat16).to(torch.float32).numpy()
        assert np.array_equal(bfloat16(one), expected, equal_nan=True)
        assert np.array_equal(float16(one), one.astype(np.float16).astype(np.float32), equal_nan=True)


@given(st.integers(0, 2**32), st.integers(4, 30))
def test_a_cast_agrees_and_a_recomputed_copy_does_not(seed: int, size: int) -> None:
    record = logprobs(seed, size)
    assert all(agree(record, cast(record)) for cast in (lambda x: x, bfloat16, bfloat16_cut, float16))
    assert not agree(record, record * f4(1.0001))


def test_every_kind_has_a_sentence() -> None:
    names = {kind.name for kind in KINDS}
    assert {name.rstrip("+-0123456789") if name.startswith("shifted") else name for name in DAMAGES} <= names
    assert all(describe(name) for name in (*names, "shifted+1", "shifted-2"))


def copies_of(written: Written, copy: Sequence[float], size: int | None = None) -> dict[str, dict[str, int]]:
    tokens = written.tokens[:size]
    row = Trained([*written.prompt, *tokens], [0] * len(written.prompt) + [1] * len(tokens), copy, copy)
    batch = settled(index_of(written), batch_of(row))
    assert batch.joined == 1
    return {engine: dict(kinds) for engine, kinds in compare(batch).items()}


def test_a_joined_row_is_compared_with_its_own_rollout() -> None:
    one = Written([1], list(range(10)), [float(x) for x in logprobs(1, 10)])
    assert copies_of(one, one.logprobs) == {"e0": {"equal": 1}}
    assert copies_of(one, [0.0] * 10) == {"e0": {"zero_filled": 1}}
    assert copies_of(one, one.logprobs[:6], 6) == {"e0": {"cut": 1}}
    silent = Written([1], [2], [float("nan")], has_logprobs=False)
    assert copies_of(silent, [-1.0]) == {"e0": {"unrecorded": 1}}


def test_a_masked_token_leaves_the_rest_equal() -> None:
    one = Written([1], [2, 3, 4], [-0.5, -1.5, -2.5])
    row = Trained([1, 2, 3, 4], [0, 1, 0, 1], [-0.5, -2.5], [-0.5, -2.5])
    assert compare(settled(index_of(one), batch_of(row))) == {"e0": {"equal": 2}}


def play(hub: Hub, step: int, damage: Callable[[Floats], Floats]) -> None:
    for salt in range(2):
        record = logprobs(100 * step + salt, 12)
        one = Written([step, salt], list(range(12)), [float(x) for x in record], engine=f"e{salt}")
        copy = [float(x) for x in (damage(record) if salt else record)]
        hub.send(one.engine, *rollouts([one]))
        row = Trained([step, salt, *one.tokens], [0, 0] + [1] * 12, copy, copy)
        hub.send("trainer/0", *sequences([row], step=step))
    hub.send("trainer/0", wire.StepClosed(step, 0, 1))
    hub.settle()


def test_a_step_counts_its_copies_and_a_new_kind_causes_an_event() -> None:
    hub = Hub()
    play(hub, 0, DAMAGES["equal"])
    assert hub.steps[0].copies == {"e0": {"equal": 1}, "e1": {"equal": 1}}
    assert hub.steps[0].joins == {"whole": 2}
    for step in (1, 2):
        play(hub, step, DAMAGES["shifted+1"])
    assert hub.steps[2].copies == {"e0": {"equal": 1}, "e1": {"shifted+1": 1}}
    events = [event for event in hub.picture.events if event.kind == "join"]
    assert [(event.severity, event.step) for event in events] == [("warn", 1)]
    assert "1 of 1 copies of e1's logprobs are shifted+1: each value belongs to an earlier" in events[0].text
