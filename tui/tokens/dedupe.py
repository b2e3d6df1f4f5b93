"""Deduplication of tokens and sequences that differ only in their row, as samples of one prompt often do. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

from rltop.backend.api.samples import Sequence, Token

T = TypeVar("T")

Times = dict[str, int]
"""Number of equal items by the key of the first."""


def distinct(items: list[T], identity: Callable[[T], Hashable], key: Callable[[T], str]) -> tuple[list[T], Times]:
    """The first item of each ``identity``, and the number of items with it by ``key``."""
    first: dict[Hashable, T] = {}
    times: Counter[Hashable] = Counter()
    for item in items:
        first.setdefault(identity(item), item)
        times[identity(item)] += 1
    return list(first.values()), {key(item): times[value] for value, item in first.items()}


def distinct_tokens(tokens: list[Token]) -> tuple[list[Token], Times]:
    """Tokens with distinct context, engine or logprobs; logprobs are compared as bytes, since NaN != NaN."""
    return distinct(tokens, lambda t: (t.id, t.before, t.engine, struct.pack("<2d", t.rollout, t.trainer)), token_key)


def distinct_sequences(sequences: list[Sequence]) -> tuple[list[Sequence], Times]:
    """Sequences with distinct context, tokens, logprobs or engines."""
    return distinct(sequences, lambda s: (s.context, s.ids, s.rollout, s.trainer, tuple(s.engines)), sequence_key)


def times_text(times: Times, key: str) -> str:
    """The prefix of an item that occurs several times: ``3x ``."""
    return f"{times[key]}x " if times.get(key, 1) > 1 else ""


def token_key(token: Token) -> str:
    """The key of a token."""
    return f"{token.step}/{token.rank}/{token.number}/{token.position}"


def sequence_key(sequence: Sequence) -> str:
    """The key of a sequence."""
    return f"{sequence.step}/{sequence.rank}/{sequence.number}"
