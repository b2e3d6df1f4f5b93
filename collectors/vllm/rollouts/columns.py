"""Converts the outputs of several steps to arrays: the only passes over vLLM's objects that the collector needs.

This cost is paid per token and under the GIL, which the engine's thread needs too. So each pass is one comprehension or
one call over the outputs of many steps, never a call per token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.vllm.rollouts.tap import SampledFields

Layout = tuple[Any, ...]
"""Logprobs are read together only if this is equal. For outputs: entries per token, and the element types of logprobs
and ids. For batches: bytes per row of ids and of logprobs, and the tuple of both element types."""


class Columns(NamedTuple):
    """The sampled tokens of some outputs, in their order.

    Attributes:
        token_ids: i4 [tokens].
        logprobs: f4 [tokens], nats; NaN if none was recorded for the sampled token.
        sizes: number of tokens per output.
        misplaced: number of tokens whose recorded logprob belongs to another token.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    sizes: list[int]
    misplaced: int


class RequestRows(NamedTuple):
    """The accepted rows of some batches, grouped by request, oldest first within each.

    Attributes:
        request_ids: one per group. sizes: rows per group.
        token_ids: i4 [rows], the token that the logprob belongs to; -1 if none was recorded.
        logprobs: f4 [rows], nats; NaN if none was recorded.
    """

    request_ids: list[str]
    sizes: list[int]
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


def by_request(steps: list[list[Any]]) -> dict[str, list[Any]]:
    """Group outputs by request, oldest first."""
    found: dict[str, list[Any]] = defaultdict(list)
    for outputs in steps:
        for output in outputs:
            found[output.request_id].append(output)
    return found


def layout_of(outputs: list[Any]) -> Layout | None:
    """The layout of one step, whose outputs are slices of the same arrays; None if it has no logprobs."""
    for output in outputs:
        recorded = output.new_logprobs
        if recorded is not None:
            return recorded.logprobs.shape[1], recorded.logprobs.dtype, recorded.logprob_token_ids.dtype
    return None


def read_batches(batches: list[SampledFields], layout: Layout | None) -> RequestRows:
    """Read batches of one layout.

    Raises:
        ValueError: a request took a token but has no row, or there is not one row per request.
    """
    _, _, batch_ids, accepted, _, _, id_bytes, logprob_bytes, *_ = zip(*batches, strict=True)
    if accepted.count(None) == len(accepted) and all(map(batch_ids[0].__eq__, batch_ids)):  # the usual case
        ids, sizes = batch_ids[0], [len(batch_ids)] * len(batch_ids[0])
        order = np.arange(len(batch_ids) * len(ids)).reshape(len(batch_ids), -1).T.ravel()
    else:
        ids, sizes, order = _group_rows(batch_ids, accepted)
    if layout is None:
        return RequestRows(ids, sizes, np.full(order.size, -1, np.int32), np.full(order.size, np.nan, np.float32))
    count = sum(map(len, batch_ids))
    id_width, logprob_width, (id_type, logprob_type) = layout
    token_ids = _first_of_rows(id_bytes, count, id_width, id_type)[order].astype(np.int32, copy=False)
    logprobs = _first_of_rows(logprob_bytes, count, logprob_width, logprob_type)[order].astype(np.float32, copy=False)
    return RequestRows(ids, sizes, token_ids, logprobs)


def _first_of_rows(parts: Iterable[bytes], count: int, width: int, dtype: Any) -> NDArray[Any]:
    """Column 0 of ``count`` rows of ``width`` bytes each."""
    joined = b"".join(parts)
    if len(joined) != count * width:
        raise ValueError(f"{len(joined)} bytes recorded for {count} rows of {width} bytes")
    return np.frombuffer(joined, dtype).reshape(count, -1)[:, 0]


def _group_rows(
    batch_ids: Iterable[list[str]], accepted: Iterable[list[str] | None]
) -> tuple[list[str], list[int], NDArray[np.intp]]:
    """Group the accepted rows of batches by request.

    Returns:
        Request ids, rows per request, and the row indices, grouped by request and oldest first within each.
    """
    numbers: dict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # type: ignore[attr-defined]
    row_numbers: list[NDArray[Any]] = []
    ids: list[str] = []
    batch_numbers = np.empty(0, np.int32)
    rejected = 0
    for of_batch, accepting in zip(batch_ids, accepted, strict=True):
        if of_batch != ids:
            ids = of_batch
            batch_numbers = np.fromiter(map(numbers.__getitem__, ids), np.int32, len(ids))
        if accepting is None or accepting == ids or (len(accepting) == len(ids) and set(accepting).issuperset(ids)):
            row_numbers.append(batch_numbers)
        else:
            row_numbers.append(_without_rejected(batch_numbers, ids, accepting))
            rejected += len(ids) - len(accepting)
    of_rows = np.concatenate(row_numbers)
    if len(numbers) < np.iinfo(np.int16).max:
        of_rows = of_rows.astype(np.int16)  # numpy sorts these by radix
    order = np.argsort(of_rows, kind="stable")[rejected:]
    return list(numbers), np.bincount(of_rows[order], minlength=len(numbers)).tolist(), order


_REJECTED = -1
"""Replaces the number of a request whose row was rejected: sorts first."""


def _without_rejected(batch_numbers: NDArray[np.int32], ids: list[str], accepting: list[str]) -> NDArray[np.int32]:
    """``batch_numbers`` with ``_REJECTED`` for requests that took no token."""
    known = set(accepting)
    accepts = np.array([request_id in known for request_id in ids], bool)
    if int(np.count_nonzero(accepts)) != len(accepting):
        raise ValueError(f"{len(accepting)} requests took a token, {np.count_nonzero(accepts)} of them have a row")
    return np.where(accepts, batch_numbers, _REJECTED)


def read_outputs(outputs: list[Any]) -> Columns:
    """Read outputs of one layout.

    Column 0 of vLLM's logprobs holds the sampled token (``Sampler.gather_logprobs``). If it holds another one, the
    logprob is set to NaN and counted as misplaced.

    Raises:
        ValueError: not one row of logprobs per token.
        OverflowError: a token id does not fit 32 bits.
    """
    lists = [output.new_token_ids for output in outputs]
    sizes = list(map(len, lists))
    token_ids = np.fromiter(chain.from_iterable(lists), np.int32, sum(sizes))
    recorded = [output.new_logprobs for output in outputs]
    known = [entry for entry in recorded if entry is not None]
    logprobs = np.full(token_ids.size, np.nan, np.float32)
    misplaced = 0
    if known:
        ids = _first_column([entry.logprob_token_ids for entry in known])
        values = _first_column([entry.logprobs for entry in known])
        selected: Any = slice(None)
        if len(known) < len(outputs):
            selected = np.repeat([entry is not None for entry in recorded], sizes)
        expected = token_ids[selected]
        if not ids.size == values.size == expected.size:
            raise ValueError(f"{ids.size} ids and {values.size} logprobs recorded for {expected.size} tokens")
        wrong = ids != expected
        misplaced = int(np.count_nonzero(wrong))
        logprobs[selected] = np.where(wrong, np.nan, values) if misplaced else values
    return Columns(token_ids, logprobs, sizes, misplaced)


def _first_column(arrays: list[Any]) -> NDArray[Any]:
    """Column 0 of arrays of one layout, concatenated."""
    try:
        joined = b"".join(arrays)  # for single rows this takes a quarter of the time of np.concatenate
    except TypeError:  # not contiguous
        joined = np.concatenate(arrays).tobytes()
    return np.frombuffer(joined, arrays[0].dtype).reshape(-1, arrays[0].shape[1])[:, 0]
