"""Messages of a ``sequences()`` call contain the values of the arrays, for every form and library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rltop.collectors.contract import wire
from rltop.collectors.trainer import packing
from rltop.collectors.trainer.arguments import check
from rltop.collectors.trainer.arrays import Copy

FORMS = ("batch", "packed", "list")
LIBRARIES = ("numpy", "torch")
HEAD = wire.Sequences(3, 0, 0, 0, [])


@dataclass
class Row:
    """One row, in plain Python: the oracle's side."""

    ids: list[int]
    mask: list[int]
    prompt: list[int]
    reward: float
    rollout: list[float]
    trainer: list[float]
    versions: list[float]


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def rows(draw: st.DrawFn, size: int | None = None) -> Row:
    n = draw(st.integers(0, 6)) if size is None else size

    def many(element: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
        return st.lists(element, min_size=n, max_size=n)

    return Row(
        draw(many(st.integers(-100, 2**31 - 1))),
        draw(many(st.integers(0, 1))),
        draw(st.lists(st.integers(0, 9), max_size=4)),
        draw(floats),
        draw(many(floats)),
        draw(many(floats)),
        draw(many(st.sampled_from([float("nan"), -1.0, 0.0, 7.0]))),
    )


def shaped(form: str, library: str, per_row: list[list[Any]], dtype: str) -> Any:
    """One per-token argument in the form and of the library asked for."""
    make: Any = (
        (lambda x: np.array(x, dtype))
        if library == "numpy"
        else (lambda x: torch.tensor(x, dtype=getattr(torch, dtype)))
    )
    if form == "list":
        return [make(row) for row in per_row]
    flat = make([value for row in per_row for value in row])
    return flat if form == "packed" else flat.reshape(len(per_row), len(per_row[0]))


def sent(batch: packing.CopiedCall) -> tuple[list[wire.Sequences], dict[str, NDArray[Any]]]:
    """The messages, and their arrays put together."""
    messages = list(packing.pack(batch))
    names = messages[0][1] if messages else {}
    for body, arrays in messages:
        assert body.arrays == wire.describe(arrays)
        wire.decode_data([bytes(f) for f in wire.encode_data(wire.Envelope(1, "t", "e", 0, 0.0), body, arrays)])
    return [body for body, _ in messages], {
        name: np.concatenate([arrays[name] for _, arrays in messages]) for name in names
    }


def same(seen: NDArray[Any], expected: list[Any], dtype: str) -> None:
    assert seen.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(seen, np.array(expected, dtype))


@given(st.data())
def test_messages_contain_the_values_of_the_arrays(data: st.DataObject) -> None:
    form, library = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(LIBRARIES))
    size = data.draw(st.integers(0, 6)) if form == "batch" else None
    given_rows: list[Row] = data.draw(st.lists(rows(size), min_size=1, max_size=5))
    message_bytes = data.draw(st.sampled_from([1, 150, 1 << 20]))
    convert_bytes = data.draw(st.sampled_from([1, 300, 8 << 20]))

    def tokens(name: str, dtype: str) -> Any:
        return shaped(form, library, [getattr(row, name) for row in given_rows], dtype)

    sizes = [len(row.ids) for row in given_rows]
    # As many packed rows as tokens: [batch] and [tokens] are the same shape, and are taken as per token.
    assume(form != "packed" or sum(sizes) != len(sizes) or set(sizes) == {1})
    checked = check(
        HEAD,
        tokens("ids", "int64"),
        tokens("mask", data.draw(st.sampled_from(["bool", "int64", "float32"]))),
        [np.array(row.prompt, np.int64) for row in given_rows],
        [row.reward for row in given_rows],
        np.cumsum([0, *sizes]) if form == "packed" else None,
        {
            "rollout_logprobs": tokens("rollout", "float32"),
            "trainer_logprobs": tokens("trainer", "float64"),
            "advantages": [row.reward for row in given_rows],
            "rollout_versions": tokens("versions", "float32"),
            "old_version": 4,
            "clipped": None,
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MESSAGE_BYTES", message_bytes)
        patch.setattr(packing, "CONVERT_BYTES", convert_bytes)
        bodies, arrays = sent(checked.copy())

    kept = [max((t + 1 for t, m in enumerate(row.mask) if m), default=0) for row in given_rows]
    trained = [(row, t) for row in given_rows for t, m in enumerate(row.mask) if m]
    assert sum(body.rows for body in bodies) == len(given_rows)
    if message_bytes == 1:
        assert len(bodies) == len(given_rows)
    same(arrays["row_sizes"], kept, "<i4")
    same(arrays["row_ids"], [i for row, k in zip(given_rows, kept, strict=True) for i in row.ids[:k]], "<i4")
    same(arrays["row_mask"], [m for row, k in zip(given_rows, kept, strict=True) for m in row.mask[:k]], "u1")
    same(arrays["prompt_sizes"], [len(row.prompt) for row in given_rows], "<i4")
    same(arrays["prompt_ids"], [i for row in given_rows for i in row.prompt], "<i4")
    same(arrays["rewards"], [row.reward for row in given_rows], "<f4")
    same(arrays["rollout_logprobs"], [row.rollout[t] for row, t in trained], "<f4")
    same(arrays["trainer_logprobs"], [row.trainer[t] for row, t in trained], "<f4")
    same(arrays["advantages"], [row.reward for row, _ in trained], "<f4")
    same(
        arrays["rollout_versions"],
        [int(max(-1, v)) if (v := row.versions[t]) == v else -1 for row, t in trained],
        "<i4",
    )
    same(arrays["old_versions"], [4] * len(trained), "<i4")
    assert "clipped" not in arrays
    assert "entropy" not in arrays


def test_arrays_are_read_once_for_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass over an array gives the interpreter's lock away."""
    monkeypatch.setattr(packing, "MESSAGE_BYTES", 1)
    reads: list[tuple[Any, ...]] = []
    read = Copy.read

    def counted(self: Copy, *span: Any) -> NDArray[Any]:
        reads.append(span)
        return read(self, *span)

    monkeypatch.setattr(Copy, "read", counted)
    values = np.zeros((50, 3), np.float32)
    bodies, _ = sent(
        simple(
            token_ids=values.astype(int), mask=np.ones_like(values), rollout_logprobs=values, trainer_logprobs=values
        )
    )
    assert len(bodies) == 50
    assert len(reads) == 4


@pytest.mark.parametrize("message_bytes", [1, 150, 1 << 20])
def test_request_ids_stay_with_their_rows(message_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MESSAGE_BYTES", message_bytes)
    bodies, _ = sent(simple(request_ids=["cmpl-1-0", None, "x" * 256]))
    assert [name for body in bodies for name in body.request_ids] == ["cmpl-1-0", "", "x" * 256]
    assert all(len(body.request_ids) == body.rows for body in bodies)
    bodies, _ = sent(simple())
    assert all(body.request_ids == [] for body in bodies)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", "b"], "request_ids: 2 entries; expected 3, one per row"),
        (["a", 5, "c"], "request_ids: 5; expected None or a string of at most 256 characters"),
        (["a", "b" * 257, "c"], "expected None or a string of at most 256 characters"),
    ],
)
def test_ids_of_other_kinds_or_numbers_are_refused(ids: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simple(request_ids=ids)


@pytest.mark.parametrize("message_bytes", [1, 150, 1 << 20])
def test_environments_stay_with_their_rows(message_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MESSAGE_BYTES", message_bytes)
    bodies, _ = sent(simple(environments=np.array(["math", None, "code"], object)))
    assert [name for body in bodies for name in body.environments] == ["math", "", "code"]
    bodies, _ = sent(simple())
    assert all(body.environments == [] for body in bodies)


PER_TOKEN = ("mask", "rollout", "trainer", "weights", "temperature", "rewards")
DTYPES = {"mask": "int64", "weights": "float32", "rewards": "float64"}


@st.composite
def shifted_rows(draw: st.DrawFn, form: str) -> list[dict[str, list[Any]]]:
    """Rows with per-token values, of which the first of each row is not trained on and has reward 0."""
    size = draw(st.integers(1, 5)) if form == "batch" else None
    found = []
    for _ in range(draw(st.integers(1, 5))):
        n = draw(st.integers(0, 5)) if size is None else size
        numbers = st.lists(st.integers(-8, 8).map(lambda x: x / 4), min_size=n, max_size=n)
        row: dict[str, list[Any]] = {name: draw(numbers) for name in PER_TOKEN}
        row["ids"] = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
        row["mask"] = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
        row["mask"][:1], row["rewards"][:1] = [0] * len(row["mask"][:1]), [0.0] * len(row["rewards"][:1])
        found.append(row)
    return found


def unmasked(name: str, row: dict[str, list[Any]], *, short: bool) -> list[Any]:
    """A row's values; those that no token of the row owns are arbitrary."""
    values = list(row[name])
    if short:
        return values[1:]
    return [1 if name == "mask" else 7.0, *values[1:]] if values and name != "rewards" else values


@given(st.data())
def test_next_token_arrays_are_sent_as_those_that_are_aligned_with_their_own_tokens(data: st.DataObject) -> None:
    """Each array has one entry per token or per next token, in rows or packed, and in one message or several."""
    form, library = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(LIBRARIES))
    given_rows = data.draw(shifted_rows(form))
    sizes = [len(row["ids"]) for row in given_rows]
    packed = form == "packed"
    assume(not packed or sum(sizes) > len(sizes) + 1)  # else [batch] may have the shape of an array per token
    bounds = np.cumsum([0, *sizes]) if packed else None

    def shift(name: str) -> Any:
        short, dtype = data.draw(st.booleans()), DTYPES.get(name, "float32")
        if not (packed and short):
            values = [unmasked(name, row, short=short) for row in given_rows]
            return shaped(form, library, values, dtype)
        ends = [unmasked(name, row, short=False) for row in given_rows]  # the last entry of a row is the next one's
        if name == "rewards":
            ends = [[9.0, *values[1:]] if values else [] for values in ends]
        flat = shaped(form, library, ends, dtype)[1:]
        return flat.reshape(1, -1) if data.draw(st.booleans()) else flat

    def call(values: dict[str, Any], ids: Any, *, shifted: bool) -> packing.CopiedCall:
        columns = {
            "rollout_logprobs": values["rollout"], "trainer_logprobs": values["trainer"],
            "weights": values["weights"], "temperature": values["temperature"],
        }  # fmt: skip
        return check(
            HEAD, ids, values["mask"], None, values["rewards"], bounds, columns, shifted=shifted
        ).copy()  # fmt: skip

    ids = shaped(form, library, [row["ids"] for row in given_rows], "int64")
    plain = {
        name: shaped(form, library, [row[name] for row in given_rows], DTYPES.get(name, "float32"))
        for name in PER_TOKEN
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MESSAGE_BYTES", data.draw(st.sampled_from([1, 100, 1 << 20])))
        patch.setattr(packing, "CONVERT_BYTES", data.draw(st.sampled_from([1, 200, 8 << 20])))
        _, expected = sent(call(plain, ids, shifted=False))
        _, seen = sent(call({name: shift(name) for name in PER_TOKEN}, ids, shifted=True))
    assert seen.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(seen[name], array, err_msg=name)
    np.testing.assert_array_equal(expected["rewards"], [np.float32(sum(row["rewards"])) for row in given_rows])


@pytest.mark.parametrize("name", ["weights", "temperature"])
def test_a_value_per_row_is_that_of_each_of_its_tokens(name: str) -> None:
    column = {"temperature": "temperatures"}.get(name, name)
    _, per_row = sent(simple(**{name: np.array([0.5, 1.0, 2.0])}))
    _, per_token = sent(simple(**{name: np.repeat([[0.5], [1.0], [2.0]], 4, axis=1)}))
    np.testing.assert_array_equal(per_row[column], np.repeat([0.5, 1, 2], 4))
    np.testing.assert_array_equal(per_token[column], per_row[column])


def simple(**changes: Any) -> packing.CopiedCall:
    ids = changes.pop("token_ids", np.arange(12).reshape(3, 4))
    arguments: dict[str, Any] = {"mask": np.ones((3, 4)), "prompt_ids": None, "rewards": None, "cu_seqlens": None}
    arguments |= {"request_ids": None, "environments": None, "shifted": False}
    columns: dict[str, Any] = {"rollout_logprobs": np.zeros((3, 4)), "trainer_logprobs": np.zeros((3, 4))}
    for name, value in changes.items():
        (arguments if name in arguments else columns)[name] = value
    return check(HEAD, ids, columns=columns, **arguments).copy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_dtype_of_torch_arrives_as_float32(dtype: torch.dtype) -> None:
    values = torch.linspace(-3, 0, 12, dtype=torch.float64).reshape(3, 4).to(dtype).requires_grad_()
    _, arrays = sent(simple(trainer_logprobs=values))
    np.testing.assert_array_equal(arrays["trainer_logprobs"], values.detach().float().flatten().numpy())


@pytest.mark.parametrize("values", [torch.zeros(3, 4), np.zeros((3, 4))])
def test_later_changes_to_an_argument_do_not_reach_what_is_sent(values: Any) -> None:
    batch = simple(entropy=values, advantages=values[:, 0])
    values += 1
    _, arrays = sent(batch)
    assert not arrays["entropy"].any()
    assert not arrays["advantages"].any()


def test_views_in_any_memory_order_are_read_row_by_row() -> None:
    wide = np.arange(24.0).reshape(4, 6)
    for view in (wide.T[:3], torch.from_numpy(wide).T[:3], wide[:3, ::-1][:, :4], wide[:3, 1:5]):
        _, arrays = sent(simple(entropy=view))
        np.testing.assert_array_equal(arrays["entropy"], np.asarray(view).flatten())


def test_doubles_beyond_float32_become_infinity() -> None:
    _, arrays = sent(simple(entropy=np.full((3, 4), -1e300)))
    assert (arrays["entropy"] == -np.inf).all()


def test_mixed_precision_rows_keep_the_finer_one() -> None:
    ids = [np.arange(2), np.arange(1)]
    values = [torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([0.1], dtype=torch.float32)]
    plain = [np.zeros(2), np.zeros(1)]
    _, arrays = sent(
        simple(token_ids=ids, mask=plain, rollout_logprobs=plain, trainer_logprobs=plain, clipped=plain, entropy=values)
    )
    assert arrays["entropy"].size == 0  # nothing is trained on
    _, arrays = sent(
        simple(token_ids=ids, mask=[[1, 1], [1]], rollout_logprobs=plain, trainer_logprobs=plain, entropy=values)
    )
    same(arrays["entropy"], [1.0, 2.0, 0.1], "<f4")


def test_a_padded_prompt_array_is_sent_with_its_padding() -> None:
    prompts = torch.arange(6).reshape(3, 2)
    _, arrays = sent(simple(prompt_ids=prompts))
    same(arrays["prompt_sizes"], [2, 2, 2], "<i4")
    same(arrays["prompt_ids"], [0, 1, 2, 3, 4, 5], "<i4")


def test_rows_of_no_length_and_no_rows_at_all() -> None:
    empty = np.zeros((3, 0))
    bodies, arrays = sent(
        simple(token_ids=empty.astype(int), mask=empty, rollout_logprobs=empty, trainer_logprobs=empty)
    )
    assert [body.rows for body in bodies] == [3]
    assert arrays["row_ids"].size == 0
    none: list[Any] = [[], np.zeros((0, 4), int), torch.zeros(0, 4, dtype=torch.long)]
    for nothing in none:
        batch = simple(
            token_ids=nothing,
            mask=nothing,
            rollout_logprobs=nothing,
            trainer_logprobs=nothing,
            rewards=[],
            prompt_ids=[],
        )
        assert sent(batch) == ([], {})


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 4000))
def test_blocks_cover_all_rows_once_within_the_limit(count: int, weight: int, limit: int) -> None:
    weights = (np.arange(count) * 37 % weight + 1).astype(np.int64)
    blocks = list(packing._blocks(weights, limit))
    assert [first for first, _ in blocks] == [0, *[last for _, last in blocks[:-1]]]
    assert blocks[-1][1] == count
    for first, last in blocks:
        assert last == first + 1 or weights[first:last].sum() <= limit


def test_ids_beyond_the_wire_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token_ids.*int32"):
        sent(simple(token_ids=np.full((3, 4), 2**31)))


@given(st.lists(st.integers(-3, 9), min_size=1, max_size=6), st.integers(0, 9))
def test_cumulative_sizes_must_rise_from_0_to_the_number_of_tokens(bounds: list[int], tokens: int) -> None:
    right = bounds[0] == 0 and bounds[-1] == tokens and bounds == sorted(bounds)
    if right:
        assert packing.row_sizes(np.array(bounds), tokens).sum() == tokens
    else:
        with pytest.raises(ValueError, match=rf"cu_seqlens.*0 to {tokens}"):
            packing.row_sizes(np.array(bounds), tokens)


def test_float8_of_torch_is_read() -> None:
    values = torch.linspace(-3, 0, 12).reshape(3, 4).to(torch.float8_e4m3fn)
    _, arrays = sent(simple(entropy=values))
    same(arrays["entropy"], values.float().flatten().tolist(), "<f4")


def test_bfloat16_of_numpy_is_read() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rounded = np.linspace(-3, 0, 12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    _, arrays = sent(simple(entropy=rounded))
    same(arrays["entropy"], rounded.astype(np.float32).flatten().tolist(), "<f4")


@given(st.lists(st.integers(0, 2**16 - 1), min_size=4, max_size=4))
def test_every_bfloat16_arrives_as_the_same_number(bits: list[int]) -> None:
    values = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(1, 4)
    batch = simple(
        token_ids=[[1, 2, 3, 4]],
        mask=[[1] * 4],
        rollout_logprobs=[np.zeros(4)],
        trainer_logprobs=[np.zeros(4)],
        entropy=[values[0]],
    )
    _, arrays = sent(batch)
    np.testing.assert_array_equal(arrays["entropy"], values[0].float().numpy())
