"""Tokens and sequences that are the same but for their row, as samples of one prompt often are: shown once. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

from rltop.backend.api.samples import Sequence, Token

T = TypeVar("T")

Times = dict[str, int]
"""By the key of an item, how many are the same."""


def distinct(items: list[T], same: Callable[[T], Hashable], key: Callable[[T], str]) -> tuple[list[T], Times]:
    """The first of each that are the same, and how many there are."""
    first: dict[Hashable, T] = {}
    times: Counter[Hashable] = Counter()
    for item in items:
        first.setdefault(same(item), item)
        times[same(item)] += 1
    return list(first.values()), {key(item): times[what] for what, item in first.items()}


def distinct_tokens(tokens: list[Token]) -> tuple[list[Token], Times]:
    """Those with one text before them, one engine and the same logprobs, bit by bit: a NaN is not equal to itself."""
    return distinct(tokens, lambda t: (t.id, t.before, t.engine, struct.pack("<2d", t.rollout, t.trainer)), token_key)


def distinct_sequences(sequences: list[Sequence]) -> tuple[list[Sequence], Times]:
    """The same of sequences."""
    return distinct(sequences, lambda s: (s.context, s.ids, s.rollout, s.trainer, tuple(s.engines)), sequence_key)


def times_text(times: Times, key: str) -> str:
    """What stands before an item that is there several times."""
    return f"{times[key]}x " if times.get(key, 1) > 1 else ""


def token_key(token: Token) -> str:
    """Tells a line from others."""
    return f"{token.step}/{token.rank}/{token.number}/{token.position}"


def sequence_key(sequence: Sequence) -> str:
    """The same of sequences."""
    return f"{sequence.step}/{sequence.rank}/{sequence.number}"
