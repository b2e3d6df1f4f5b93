"""Checksums of weights: the same however they are cut, fused, padded and held; another for any other weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from rltop.collectors.contract.digests import Checksum, bits_of, checksum, row_chunks, weight_digests
from tests.support.receiver import Receiver, run_directory

RNG = np.random.default_rng(0)


def weights(rows: int, columns: int) -> Any:
    return RNG.normal(size=(rows, columns)).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_columns_in_any_chunks_give_what_rows_do(rows: int, columns: int, step: int) -> None:
    tensor = weights(rows, columns)
    by_columns = Checksum()
    for first in range(0, columns, step):
        by_columns.add_columns(first, bits_of(tensor[:, first : first + step]))
    by_columns.end()
    assert by_columns == checksum(tensor)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = weights(100, 7)
    whole = checksum(tensor)
    monkeypatch.setattr("rltop.collectors.contract.digests.CHUNK_ELEMENTS", 21)
    assert len(list(row_chunks(tensor))) == 34
    assert checksum(tensor) == whole


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 5))
def test_rows_of_parts_add_up_to_those_of_the_whole_and_padding_adds_nothing(
    sizes: list[int], columns: int, padding: int
) -> None:
    parts = [weights(size, columns) for size in sizes]
    fused = np.concatenate([*parts, np.zeros((padding, columns), np.float32)])
    assert sum(checksum(part).rows for part in parts) % (1 << 64) == checksum(fused).rows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 8))
def test_columns_of_parts_add_up_to_those_of_the_whole(sizes: list[int], rows: int) -> None:
    parts = [weights(rows, size) for size in sizes]
    whole = checksum(np.concatenate(parts, 1))
    assert sum(checksum(part).columns for part in parts) % (1 << 64) == whole.columns
    assert checksum(np.concatenate(parts, 1)[:, ::-1].copy()).columns == whole.columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int8])
def test_numpy_and_torch_agree(dtype: torch.dtype) -> None:
    tensor = (torch.randn(30, 20) * 10).to(dtype)
    assert checksum(tensor) == checksum(tensor.numpy())


def test_the_layout_in_memory_does_not_matter() -> None:
    tensor = torch.randn(20, 30)
    assert checksum(tensor.t().contiguous().t()) == checksum(tensor)


def test_minus_zero_is_zero() -> None:
    tensor = torch.tensor([[0.0, -0.0, 1.0]])
    assert checksum(tensor) == checksum(torch.tensor([[-0.0, 0.0, 1.0]]))


@given(st.integers(0, 29), st.integers(0, 19))
def test_one_bit_of_one_weight_changes_all(row: int, column: int) -> None:
    tensor = weights(30, 20)
    other = tensor.copy()
    other[row, column] = np.nextafter(other[row, column], np.float32(9))
    one, two = checksum(tensor), checksum(other)
    assert one.rows != two.rows
    assert one.columns != two.columns
    assert one.whole != two.whole


def test_the_order_of_rows_is_seen_by_one_of_them_and_that_of_columns_by_both() -> None:
    tensor = weights(30, 20)
    rows, columns = checksum(tensor[::-1].copy()), checksum(tensor[:, ::-1].copy())
    assert rows.rows == checksum(tensor).rows
    assert rows.whole != checksum(tensor).whole
    assert columns.rows != checksum(tensor).rows


def test_values_that_change_places_between_rows_are_seen() -> None:
    tensor = weights(4, 4)
    other = tensor.copy()
    other[[0, 1], 2] = other[[1, 0], 2]
    assert checksum(other).rows != checksum(tensor).rows


def test_a_trainers_digests_are_of_the_dtype_that_engines_get() -> None:
    tensor = torch.randn(8, 4)
    given_as = weight_digests({"w": tensor}, torch.bfloat16)
    assert given_as == weight_digests([("w", tensor.to(torch.bfloat16))])
    assert given_as["w"].startswith("bfloat16:")
    assert weight_digests({"w": tensor.requires_grad_()})["w"].startswith("float32:")


@pytest.mark.parametrize(
    "wrong", [{"w": "f" * 16}, {"w": "float32:0"}, {"w": torch.ones(2)}, {1: "float32:" + "0" * 16}]
)
def test_an_invalid_digest_is_refused_in_the_call(wrong: Any) -> None:
    with run_directory() as rundir:
        collector = TrainerCollector(hub=str(rundir.path), start_hub=False)
        with pytest.raises(ValueError, match="weight_digests"):
            collector.step(0, weight_digests=wrong)
        collector.close(0.05)


def test_digests_travel_with_the_step() -> None:
    made = weight_digests({"w": weights(3, 2)})
    with run_directory() as rundir, Receiver(rundir) as hub:
        with TrainerCollector(hub=str(rundir.path), start_hub=False) as collector:
            collector.step(0, policy_version=1, weight_digests=made)
        bodies = [body for _, body, _ in hub.messages if isinstance(body, wire.StepClosed)]
    assert [body.weight_digests for body in bodies] == [made]
