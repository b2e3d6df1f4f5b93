"""Tokens and sequences as styled text, with signs and colours by the size of the gap. Pure."""

from __future__ import annotations

import math

from rich.style import Style
from rich.text import Text

from rltop.backend.api.samples import Sequence, Token
from rltop.tui.tokens.decode import Decode, printable
from rltop.tui.tokens.token_text import between, context, legend, level, mark, marked, sequence_facts, token_facts
from rltop.tui.widgets import theme

STYLES = (theme.PLAIN, theme.SERIES[0], theme.WARN, theme.BAD)
"""Styles by ``token_text.level``."""

MAX_TOKENS = 2000
"""Tokens of a sequence that are shown, around its worst one."""


def style(d: float) -> Style:
    """The style of a token with this d."""
    return STYLES[level(d)]


def sequence_text(sequence: Sequence, decode: Decode) -> Text:
    """A sequence as text, each token coloured and marked by its gap."""
    text = Text()
    text.append(f"step {sequence.step}, {sequence_facts(sequence)}\n")
    if sequence.requests:
        text.append(f"requests {', '.join(map(printable, sequence.requests))}\n", theme.FAINT)
    text.append(legend() + "\n\n", theme.FAINT)
    text.append(context(sequence.context, decode, 200) + " » ", theme.FAINT)
    tokens = list(marked(sequence, decode))
    start, end = _window([d for _, d in tokens])
    if start:
        text.append(f"… {start} tokens … ", theme.FAINT)
    for shown, d in tokens[start:end]:
        text.append(shown, theme.FAINT if d is None else style(d))
        text.append(between(decode))
    if end < len(tokens):
        text.append(f" … {len(tokens) - end} tokens …", theme.FAINT)
    return text


def token_text(token: Token, decode: Decode) -> Text:
    """A token with its context as text."""
    text = Text()
    text.append(f"step {token.step}, {token_facts(token)}\n")
    if token.request:
        text.append(f"request {printable(token.request)}\n", theme.FAINT)
    text.append("\n" + context(token.before, decode) + between(decode), theme.FAINT)
    text.append(f"{decode(token.id)}{mark(token.diff)}", Style(reverse=True))
    text.append(between(decode) + context(token.after, decode), theme.FAINT)
    return text


def _window(diffs: list[float | None]) -> tuple[int, int]:
    """The range to show: all, or the part around the worst token."""
    if len(diffs) <= MAX_TOKENS:
        return 0, len(diffs)
    worst = max(range(len(diffs)), key=lambda index: _size(diffs[index]))
    start = min(max(worst - MAX_TOKENS // 2, 0), len(diffs) - MAX_TOKENS)
    return start, start + MAX_TOKENS


def _size(d: float | None) -> float:
    return -1.0 if d is None else math.inf if math.isnan(d) else abs(d)
