"""How the gap of single tokens looks on the screen: signs and colours by its size. Pure."""

from __future__ import annotations

import math

from rich.style import Style
from rich.text import Text

from rltop.backend.api.samples import Sequence, Token
from rltop.tui.tokens.decode import Decode, printable
from rltop.tui.tokens.token_text import between, context, legend, level, mark, marked, sequence_facts, token_facts
from rltop.tui.widgets import theme

STYLES = (theme.PLAIN, theme.SERIES[0], theme.WARN, theme.BAD)
"""By ``marks.level``."""

SHOWN = 2000
"""Tokens of a sequence that are shown: those around its worst."""


def style(d: float) -> Style:
    """The colour of a token with this d."""
    return STYLES[level(d)]


def sequence_text(sequence: Sequence, decode: Decode) -> Text:
    """A sequence to read, each token coloured and marked by its gap."""
    text = Text()
    text.append(f"step {sequence.step}, {sequence_facts(sequence)}\n")
    if sequence.requests:
        text.append(f"requests {', '.join(map(printable, sequence.requests))}\n", theme.FAINT)
    text.append(legend() + "\n\n", theme.FAINT)
    text.append(context(sequence.context, decode, 200) + " » ", theme.FAINT)
    tokens = list(marked(sequence, decode))
    start, end = _sight([d for _, d in tokens])
    if start:
        text.append(f"… {start} tokens … ", theme.FAINT)
    for shown, d in tokens[start:end]:
        text.append(shown, theme.FAINT if d is None else style(d))
        text.append(between(decode))
    if end < len(tokens):
        text.append(f" … {len(tokens) - end} tokens …", theme.FAINT)
    return text


def token_text(token: Token, decode: Decode) -> Text:
    """A token to read, with what stands around it."""
    text = Text()
    text.append(f"step {token.step}, {token_facts(token)}\n")
    if token.request:
        text.append(f"request {printable(token.request)}\n", theme.FAINT)
    text.append("\n" + context(token.before, decode) + between(decode), theme.FAINT)
    text.append(f"{decode(token.id)}{mark(token.diff)}", Style(reverse=True))
    text.append(between(decode) + context(token.after, decode), theme.FAINT)
    return text


def _sight(diffs: list[float | None]) -> tuple[int, int]:
    """The stretch to show: all, or what stands around the worst token."""
    if len(diffs) <= SHOWN:
        return 0, len(diffs)
    worst = max(range(len(diffs)), key=lambda at: _size(diffs[at]))
    start = min(max(worst - SHOWN // 2, 0), len(diffs) - SHOWN)
    return start, start + SHOWN


def _size(d: float | None) -> float:
    return -1.0 if d is None else math.inf if math.isnan(d) else abs(d)
