"""Plans of scoring probes: generators that yield batches of requests and are sent their results. Pure.

A scoring request is a prompt for which vLLM returns the logprob of every computed token (``prompt_logprobs``); one
token is sampled and discarded. vLLM computes these logprobs by prefill at temperature 1 in every ``logprobs_mode``.
It reads no prefix cache for such requests unless that is requested, and then scores only the tokens after the hit. One
request gives the same logprobs as one-token continuations at every position.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract.probes import COLD, HOT, MAX_IN_FLIGHT, WARM
from rltop.collectors.contract.wire import Passage

FILL = "fill"
"""Way of a request that scores nothing and fills the cache for a warm one."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One request.

    Attributes:
        passage: index of its passage.
        way: ``COLD``, ``HOT``, ``WARM`` or ``FILL``.
        ids: the prompt.
        salt: salt of the prefix cache; None: no salt.
        reads_cache: whether the prefix cache is read.
        scores: whether logprobs are returned.
    """

    passage: int
    way: str
    ids: list[int]
    salt: str | None
    reads_cache: bool = False
    scores: bool = True


@dataclass(frozen=True, slots=True)
class ScoringResult:
    """The number of ``cached`` tokens (None: not reported), and f4 logprobs (nats) of the prompt's last tokens."""

    cached: int | None
    logprobs: NDArray[np.float32]


Plan = Generator[list[ScoringRequest], list[ScoringResult], None]
"""Yields batches of at most ``MAX_IN_FLIGHT`` requests, and is sent their results in the same order."""

Salt = Callable[[str], str | None]
"""Returns the cache salt of a rollout, by request id."""


def rescore(passages: Sequence[list[int]], _salts: Sequence[str | None], fresh: Callable[[], str]) -> Plan:
    """Score every passage once, cold, with a salt of its own, so that no other request hits its blocks."""
    requests = [ScoringRequest(index, COLD, ids, fresh()) for index, ids in enumerate(passages)]
    for start in range(0, len(requests), MAX_IN_FLIGHT):
        yield requests[start : start + MAX_IN_FLIGHT]


def hot_and_cold(passages: Sequence[list[int]], salts: Sequence[str | None], fresh: Callable[[], str]) -> Plan:
    """Score every passage hot and cold and, if it hit the cache, with the same prefix recomputed now (warm)."""
    for index, (ids, salt) in enumerate(zip(passages, salts, strict=True)):
        hot, _ = yield [
            ScoringRequest(index, HOT, ids, salt, reads_cache=True),
            ScoringRequest(index, COLD, ids, fresh()),
        ]
        if hot.cached:
            own = fresh()
            # One token more than the hit: a lookup never returns a whole prompt.
            yield [ScoringRequest(index, FILL, ids[: hot.cached + 1], own, scores=False)]
            yield [ScoringRequest(index, WARM, ids, own, reads_cache=True)]


PLANS: dict[str, Callable[[Sequence[list[int]], Sequence[str | None], Callable[[], str]], Plan]] = {
    "prefill-rescore": rescore,
    "cross-replica": rescore,
    "cache-salt": hot_and_cold,
}
"""Makes the plan of each probe that sends requests, from passages, their salts and a maker of unused salts."""


def ids_of(passage: Passage, limit: int) -> list[int]:
    """The passage's token ids, cut to ``limit``; empty if that leaves no token of the completion."""
    ids: list[int] = np.frombuffer(passage.ids, "<i4")[:limit].tolist()
    return ids if len(ids) > max(passage.start, 1) else []
