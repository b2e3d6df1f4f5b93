"""Columns of the Gap view's lists of tokens and sequences. Pure."""

from __future__ import annotations

from rltop.backend.api.samples import Sequence, Token
from rltop.tui.tokens import gap_style, token_text
from rltop.tui.tokens.decode import Decode
from rltop.tui.tokens.dedupe import Times, sequence_key, times_text, token_key
from rltop.tui.views.gap_table import UNKNOWN_ENGINE
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column


def token_columns(decode: Decode, times: Times) -> tuple[Column[Token], ...]:
    """Columns of the list of tokens; ``times`` is read at each repaint."""

    def gap(token: Token) -> theme.Part:
        return f"{theme.figure(token.diff)}{token_text.mark(token.diff):<3}", gap_style.style(token.diff)

    def in_context(token: Token) -> theme.Part:
        before = token_text.context(token.before, decode, 6)
        after = token_text.context(token.after, decode)
        return f"{times_text(times, token_key(token))}{before}»{decode(token.id)}«{after}", theme.PLAIN

    return (
        Column("d", 11, gap, sort=lambda t: abs(t.diff)),
        Column("rollout", 8, lambda t: (theme.figure(t.rollout), theme.PLAIN), sort=lambda t: t.rollout),
        Column("trainer", 8, lambda t: (theme.figure(t.trainer), theme.PLAIN), sort=lambda t: t.trainer),
        Column("engine", 6, lambda t: (t.engine or UNKNOWN_ENGINE, theme.PLAIN), sort=lambda t: t.engine, right=False),
        Column("policy", 6, lambda t: (theme.whole(t.version if t.version >= 0 else None), theme.PLAIN), rank=1),
        Column("epoch", 5, lambda t: (theme.whole(t.epoch if t.epoch >= 0 else None), theme.PLAIN), rank=3),
        Column("cached", 6, lambda t: (theme.whole(t.cached_tokens), theme.PLAIN), rank=4),
        Column("reward", 6, lambda t: (theme.figure(t.reward), theme.PLAIN), rank=5),
        Column("at", 9, lambda t: (f"{t.position}/{t.tokens}", theme.FAINT), rank=2),
        Column("before » token « after", 26, in_context, right=False),
    )


def sequence_columns(decode: Decode, times: Times) -> tuple[Column[Sequence], ...]:
    """Columns of the list of sequences; ``times`` is read at each repaint."""

    def beginning(sequence: Sequence) -> theme.Part:
        shown = (text for text, _ in token_text.marked(sequence, decode))
        text = token_text.between(decode).join(text for text, _ in zip(shown, range(40), strict=False))
        return times_text(times, sequence_key(sequence)) + text, theme.PLAIN

    return (
        Column("|d| mean", 8, lambda s: (theme.figure(s.abs_diff_mean), theme.PLAIN), sort=lambda s: s.abs_diff_mean),
        Column("k3 mean", 8, lambda s: (theme.figure(s.k3_mean), theme.PLAIN), sort=lambda s: s.k3_mean),
        Column("tokens", 6, lambda s: (str(s.tokens), theme.PLAIN), sort=lambda s: s.tokens),
        Column("reward", 6, lambda s: (theme.figure(s.reward), theme.PLAIN), sort=lambda s: s.reward),
        Column("engine", 6, lambda s: (",".join(s.engines) or UNKNOWN_ENGINE, theme.PLAIN), right=False),
        Column("cached", 6, lambda s: (theme.whole(s.cached_tokens), theme.PLAIN), rank=2),
        Column("row", 7, lambda s: (f"{s.rank}/{s.number}", theme.FAINT), rank=3),
        Column("ended", 6, lambda s: (s.finish_reason, theme.FAINT), rank=1, right=False),
        Column("begins", 26, beginning, right=False),
    )
