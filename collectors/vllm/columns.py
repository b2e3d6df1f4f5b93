"""From the outputs of several steps to arrays: the few passes over vLLM's objects that the collector can't do without.

Everything here is paid for each token of the engine, under the GIL that the engine's thread needs too. So each pass is
one comprehension or one call over all outputs of some tens of milliseconds, never a call per token.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Layout = tuple[int, Any, Any]
"""Width and element types of recorded logprobs: what must be equal for outputs that are read together."""


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
