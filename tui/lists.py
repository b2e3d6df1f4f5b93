"""The Mismatch view's lists: tokens and sequences, each that several share once. Pure."""

from __future__ import annotations

from rltop.backend.gaps.sampled import Sequence, Token
from rltop.tui import gaps, look, marks
from rltop.tui.decode import Decode
from rltop.tui.places import UNKNOWN_ENGINE
from rltop.tui.same import Times, sequence_key, times_text, token_key
from rltop.tui.table import Column


def token_columns(decode: Decode, times: Times) -> tuple[Column[Token], ...]:
    """Columns of the list of tokens; ``times`` is read as it is then."""

    def gap(token: Token) -> look.Part:
        return f"{look.figure(token.diff)}{marks.mark(token.diff):<3}", gaps.style(token.diff)

    def around(token: Token) -> look.Part:
        before = marks.context(token.before, decode, 6)
        after = marks.context(token.after, decode)
        return f"{times_text(times, token_key(token))}{before}»{decode(token.id)}«{after}", look.PLAIN

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
        return times_text(times, sequence_key(sequence)) + text, look.PLAIN

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
