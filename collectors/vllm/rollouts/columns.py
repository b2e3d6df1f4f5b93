"""From the outputs of several steps to arrays: the few passes over vLLM's objects that the collector can't do without.

Everything here is paid for each token of the engine, under the GIL that the engine's thread needs too. So each pass is
one comprehension or one call over all outputs of some tens of milliseconds, never a call per token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Layout = tuple[Any, ...]
"""What must be equal for logprobs that are read together: their width and element types. Of outputs in entries; of
batches in bytes of ids, of logprobs, and both types in one."""

Batch = tuple[Any, ...]
"""A ``tap.Sampled``, or a tuple of its fields."""


class Columns(NamedTuple):
    """The sampled tokens of some outputs, in their order.

    Attributes:
        token_ids: i4 [tokens].
        logprobs: f4 [tokens], nats; NaN where none was recorded, or not for the sampled token.
        sizes: tokens of each output.
        misplaced: tokens whose recorded logprob was another token's.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    sizes: list[int]
    misplaced: int


class RequestRows(NamedTuple):
    """The rows of some batches that requests took, by request, and of each oldest first.

    Attributes:
        ids: of the requests. sizes: rows of each.
        told: i4 [rows], the token that the logprob is of; -1 where none was recorded.
        logprobs: f4 [rows], nats; NaN where none was recorded.
    """

    ids: list[str]
    sizes: list[int]
    told: NDArray[np.int32]
    logprobs: NDArray[np.float32]


def by_request(steps: list[list[Any]]) -> dict[str, list[Any]]:
    """The outputs of each request, oldest first."""
    found: dict[str, list[Any]] = defaultdict(list)
    for outputs in steps:
        for output in outputs:
            found[output.request_id].append(output)
    return found


def layout_of(outputs: list[Any]) -> Layout | None:
    """Of one step, whose outputs are slices of the same arrays; None where none has logprobs."""
    for output in outputs:
        recorded = output.new_logprobs
        if recorded is not None:
            return recorded.logprobs.shape[1], recorded.logprobs.dtype, recorded.logprob_token_ids.dtype
    return None


def rows_of(batches: list[Batch], layout: Layout | None) -> RequestRows:
    """Read batches of one layout.

    Raises:
        ValueError: a request took a token and has no row, or the rows are not one for each request.
    """
    _, _, of_steps, takers, _, _, told, logprobs, *_ = zip(*batches, strict=True)
    if takers.count(None) == len(takers) and all(map(of_steps[0].__eq__, of_steps)):  # most of the time
        ids, sizes = of_steps[0], [len(of_steps)] * len(of_steps[0])
        order = np.arange(len(of_steps) * len(ids)).reshape(len(of_steps), -1).T.ravel()
    else:
        ids, sizes, order = _order(of_steps, takers)
    if layout is None:
        return RequestRows(ids, sizes, np.full(order.size, -1, np.int32), np.full(order.size, np.nan, np.float32))
    count = sum(map(len, of_steps))
    *widths, types = layout
    columns = []
    for parts, width, of_type, native in zip((told, logprobs), widths, types, (np.int32, np.float32), strict=True):
        joined = b"".join(parts)
        if len(joined) != count * width:
            raise ValueError(f"{len(joined)} bytes recorded for batches of {count} requests, {width} of each")
        read = np.frombuffer(joined, of_type).reshape(count, -1)
        columns.append(read[:, 0][order].astype(native, copy=False))
    return RequestRows(ids, sizes, *columns)


def _order(
    of_steps: Iterable[list[str]], takers: Iterable[list[str] | None]
) -> tuple[list[str], list[int], NDArray[np.intp]]:
    """Of batches: their requests, how many rows each took, and where these are: of each request oldest first."""
    places: dict[str, int] = defaultdict()
    places.default_factory = places.__len__  # type: ignore[attr-defined]
    of_batches: list[NDArray[Any]] = []
    ids: list[str] = []
    of_batch = np.empty(0, np.int32)
    left_out = 0
    for of_step, accepted in zip(of_steps, takers, strict=True):
        if of_step != ids:
            ids = of_step
            of_batch = np.fromiter(map(places.__getitem__, ids), np.int32, len(ids))
        if accepted is None or accepted == ids or (len(accepted) == len(ids) and set(accepted).issuperset(ids)):
            of_batches.append(of_batch)
        else:
            of_batches.append(_taken(of_batch, ids, accepted))
            left_out += len(ids) - len(accepted)
    of_rows = np.concatenate(of_batches)
    if len(places) < np.iinfo(np.int16).max:
        of_rows = of_rows.astype(np.int16)  # numpy sorts these by radix
    order = np.argsort(of_rows, kind="stable")[left_out:]
    return list(places), np.bincount(of_rows[order], minlength=len(places)).tolist(), order


_LEFT_OUT = -1
"""In place of a request: sorts first."""


def _taken(of_batch: NDArray[np.int32], ids: list[str], accepted: list[str]) -> NDArray[np.int32]:
    """``of_batch`` without the rows of those that took no token."""
    takers = set(accepted)
    takes = np.array([request_id in takers for request_id in ids], bool)
    if int(np.count_nonzero(takes)) != len(accepted):
        raise ValueError(f"{len(accepted)} requests took a token, {np.count_nonzero(takes)} of them have a row")
    return np.where(takes, of_batch, _LEFT_OUT)


def columns_of(outputs: list[Any]) -> Columns:
    """Read outputs of one layout.

    Column 0 of what vLLM recorded holds the sampled token (``Sampler.gather_logprobs``); where it does not, it is not
    what we think it is.

    Raises:
        ValueError: not one row of logprobs per token.
        OverflowError: a token id beyond 32 bits.
    """
    lists = [output.new_token_ids for output in outputs]
    sizes = list(map(len, lists))
    token_ids = np.fromiter(chain.from_iterable(lists), np.int32, sum(sizes))
    recorded = [output.new_logprobs for output in outputs]
    known = [entry for entry in recorded if entry is not None]
    logprobs = np.full(token_ids.size, np.nan, np.float32)
    misplaced = 0
    if known:
        told = _first_column([entry.logprob_token_ids for entry in known])
        values = _first_column([entry.logprobs for entry in known])
        here: Any = slice(None)
        if len(known) < len(outputs):
            here = np.repeat([entry is not None for entry in recorded], sizes)
        expected = token_ids[here]
        if not told.size == values.size == expected.size:
            raise ValueError(f"{told.size} ids and {values.size} logprobs recorded for {expected.size} tokens")
        astray = told != expected
        misplaced = int(np.count_nonzero(astray))
        logprobs[here] = np.where(astray, np.nan, values) if misplaced else values
    return Columns(token_ids, logprobs, sizes, misplaced)


def _first_column(arrays: list[Any]) -> NDArray[Any]:
    """Column 0 of arrays of one layout, one below the other."""
    try:
        joined = b"".join(arrays)  # for single rows in a quarter of the time of np.concatenate
    except TypeError:  # not contiguous
        joined = np.concatenate(arrays).tobytes()
    return np.frombuffer(joined, arrays[0].dtype).reshape(-1, arrays[0].shape[1])[:, 0]
