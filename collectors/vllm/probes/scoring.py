"""What requests a scoring probe sends, and in which order: a plan asks for some, and goes on with what came back. Pure.

A score is a prompt of which vLLM returns the logprob of every token it computes (``prompt_logprobs``), with one token
sampled and thrown away. vLLM computes them by prefill, at temperature 1, whatever the mode of logprobs; asked so, it
reads no prefix cache unless it is told to, and then it scores what comes after the hit. That is what one-token
continuations at every position would give, from one request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract.probes import COLD, HOT, MAX_IN_FLIGHT, WARM
from rltop.collectors.contract.wire import Passage

FILL = "fill"
"""Way of a request that scores nothing, and leaves in the cache what a warm one reads."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One request.

    Attributes:
        passage: number of the passage it is about. way: see above.
        ids: its prompt.
        salt: of the prefix cache; None: none. reads: whether the cache is looked up.
        scores: whether logprobs are wanted.
    """

    passage: int
    way: str
    ids: list[int]
    salt: str | None
    reads: bool = False
    scores: bool = True


@dataclass(frozen=True, slots=True)
class Got:
    """What came back: ``cached`` tokens (None: not said), and f4 logprobs of the prompt's last tokens, nats."""

    cached: int | None
    logprobs: NDArray[np.float32]


Plan = Generator[list[ScoringRequest], list[Got], None]
"""Yields the requests to send together, at most ``MAX_IN_FLIGHT``; is sent what came of each, in their order."""

Salt = Callable[[str], str | None]
"""The cache salt of a rollout, by its request's id."""


def rescore(passages: Sequence[list[int]], fresh: Callable[[], str]) -> Plan:
    """Every passage once, cold, under a salt of its own: nobody else will hit what it leaves in the cache."""
    wanted = [ScoringRequest(number, COLD, ids, fresh()) for number, ids in enumerate(passages)]
    for at in range(0, len(wanted), MAX_IN_FLIGHT):
        yield wanted[at : at + MAX_IN_FLIGHT]


def hot_and_cold(passages: Sequence[list[int]], salts: Sequence[str | None], fresh: Callable[[], str]) -> Plan:
    """Of every passage: hot and cold; and, where it hit, the same hit computed now (warm)."""
    for number, (ids, salt) in enumerate(zip(passages, salts, strict=True)):
        hot, _ = yield [ScoringRequest(number, HOT, ids, salt, reads=True), ScoringRequest(number, COLD, ids, fresh())]
        if hot.cached:
            own = fresh()
            # One token more than the blocks that were hit: a lookup never takes all of a prompt.
            yield [ScoringRequest(number, FILL, ids[: hot.cached + 1], own, scores=False)]
            yield [ScoringRequest(number, WARM, ids, own, reads=True)]


def ids_of(passage: Passage, most: int) -> list[int]:
    """The passage's ids, cut to ``most``; none where that leaves nothing of the completion."""
    ids: list[int] = np.frombuffer(passage.ids, "<i4")[:most].tolist()
    return ids if len(ids) > max(passage.start, 1) else []
