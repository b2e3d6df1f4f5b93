"""The Mismatch view's lists: tokens and sequences, each that several share once. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

from rltop.backend.gaps.sampled import Sequence, Token
from rltop.tui import gaps, look, marks
from rltop.tui.decode import Decode
from rltop.tui.places import UNKNOWN_ENGINE
from rltop.tui.table import Column

T = TypeVar("T")

Times = dict[str, int]
"""By the key of a line, how many are the same but for their row: samples of one prompt often are."""


def distinct(items: list[T], same: Callable[[T], Hashable], key: Callable[[T], str]) -> tuple[list[T], Times]:
    """The first of each that are the same, and how many there are."""
    first: dict[Hashable, T] = {}
    times: Counter[Hashable] = Counter()
    for item in items:
        first.setdefault(same(item), item)
        times[same(item)] += 1
    return list(first.values()), {key(item): times[what] for what, item in first.items()}


def same_token(token: Token) -> Hashable:
    """What tokens in different rows may have in common; logprobs as bits, since a NaN is not equal to itself."""
    return token.id, token.before, token.engine, struct.pack("<2d", token.rollout, token.trainer)


def same_sequence(sequence: Sequence) -> Hashable:
    """The same of sequences."""
    return sequence.context, sequence.ids, sequence.rollout, sequence.trainer, tuple(sequence.engines)


def _times(times: Times, key: str) -> str:
    return f"{times[key]}x " if times.get(key, 1) > 1 else ""


def token_columns(decode: Decode, times: Times) -> tuple[Column[Token], ...]:
    """Columns of the list of tokens; ``times`` is read as it is then."""

    def gap(token: Token) -> look.Part:
        return f"{look.figure(token.diff)}{marks.mark(token.diff):<3}", gaps.style(token.diff)

    def around(token: Token) -> look.Part:
        before = marks.context(token.before, decode, 6)
        after = marks.context(token.after, decode)
        return f"{_times(times, token_key(token))}{before}»{decode(token.id)}«{after}", look.PLAIN

    return (
        Column("d", 11, gap, sort=lambda t: abs(t.diff)),
        Column("rollout", 8, lambda t: (look.figure(t.rollout), look.PLAIN), sort=lambda t: t.rollout),
        Column("trainer", 8, lambda t: (look.figure(t.trainer), look.PLAIN), sort=lambda t: t.trainer),
        Column("engine", 6, lambda t: (t.engine or UNKNOWN_ENGINE, look.PLAIN), sort=lambda t: t.engine, right=False),
        Column("policy", 6, lambda t: (look.whole(t.version if t.version >= 0 else None), look.PLAIN), rank=1),
        Column("epoch", 5, lambda t: (look.whole(t.epoch if t.epoch >= 0 else None), look.PLAIN), rank=3),
        Column("cached", 6, lambda t: (look.whole(t.cached_tokens), look.PLAIN), rank=4),
        Column("reward", 6, lambda t: (look.figure(t.reward), look.PLAIN), rank=5),
        Column("at", 9, lambda t: (f"{t.position}/{t.tokens}", look.FAINT), rank=2),
        Column("before » token « after", 26, around, right=False),
    )


def sequence_columns(decode: Decode, times: Times) -> tuple[Column[Sequence], ...]:
    """Columns of the list of sequences; ``times`` likewise."""

    def begins(sequence: Sequence) -> look.Part:
        shown = (text for text, _ in marks.marked(sequence, decode))
        text = marks.between(decode).join(text for text, _ in zip(shown, range(40), strict=False))
        return _times(times, sequence_key(sequence)) + text, look.PLAIN

    return (
        Column("|d| mean", 8, lambda s: (look.figure(s.abs_diff_mean), look.PLAIN), sort=lambda s: s.abs_diff_mean),
        Column("k3 mean", 8, lambda s: (look.figure(s.k3_mean), look.PLAIN), sort=lambda s: s.k3_mean),
        Column("tokens", 6, lambda s: (str(s.tokens), look.PLAIN), sort=lambda s: s.tokens),
        Column("reward", 6, lambda s: (look.figure(s.reward), look.PLAIN), sort=lambda s: s.reward),
        Column("engine", 6, lambda s: (",".join(s.engines) or UNKNOWN_ENGINE, look.PLAIN), right=False),
        Column("cached", 6, lambda s: (look.whole(s.cached_tokens), look.PLAIN), rank=2),
        Column("row", 7, lambda s: (f"{s.rank}/{s.number}", look.FAINT), rank=3),
        Column("ended", 6, lambda s: (s.finish_reason, look.FAINT), rank=1, right=False),
        Column("begins", 26, begins, right=False),
    )


def token_key(token: Token) -> str:
    """Tells a line from others."""
    return f"{token.step}/{token.rank}/{token.number}/{token.position}"


def sequence_key(sequence: Sequence) -> str:
    """The same of sequences."""
    return f"{sequence.step}/{sequence.rank}/{sequence.number}"
