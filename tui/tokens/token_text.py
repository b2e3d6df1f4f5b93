"""Tokens and sequences as plain text: signs by the size of the gap, facts, context. Pure; imports no Textual."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rltop.backend.api.samples import Sequence, Token, floats, ints
from rltop.tui.tokens.decode import Decode, as_id, printable

LEVELS = (0.05, 0.25, 1.0)
"""|d| in nats from which a token is marked with one, two, three arrows: a ratio of 1.05, 1.28 (the default upper clip)
and 2.7. Up: the trainer gives the token more probability than the engine did; down: less."""

NO_GAP = "?"
"""The sign of a token without a finite d."""

UNKNOWN = "-"
"""Text of an unknown value, as in ``widgets.theme``."""


def level(d: float) -> int:
    """Number of arrows, 0 to 3."""
    return 3 if math.isnan(d) else sum(abs(d) >= limit for limit in LEVELS)


def mark(d: float) -> str:
    """The sign after a token with this d; it carries the same information as the colour."""
    return NO_GAP if math.isnan(d) else ("↑" if d > 0 else "↓") * level(d)


def differences(sequence: Sequence) -> list[float]:
    """D of each trained token, NaN where not finite."""
    pairs = zip(floats(sequence.trainer).tolist(), floats(sequence.rollout).tolist(), strict=True)
    return [trainer - rollout if math.isfinite(trainer - rollout) else math.nan for trainer, rollout in pairs]


def context(raw: bytes, decode: Decode, last: int | None = None) -> str:
    """A row of ids as text; only the ``last`` ones if given."""
    found = ints(raw).tolist()
    return between(decode).join(decode(token) for token in (found if last is None else found[-last:]))


def between(decode: Decode) -> str:
    """The separator of tokens: ids need a blank, text has its own."""
    return " " if decode is as_id else ""


def marked(sequence: Sequence, decode: Decode) -> Iterator[tuple[str, float | None]]:
    """The tokens of a sequence with their marks and d; untrained tokens are in brackets, with None."""
    diffs = iter(differences(sequence))
    for token, trained in zip(ints(sequence.ids).tolist(), sequence.mask, strict=True):
        if trained:
            d = next(diffs)
            yield f"{decode(token)}{mark(d)}", d
        else:
            yield f"({decode(token)})", None


def sequence_facts(sequence: Sequence) -> str:
    """Origin and gap of a sequence, in one line."""
    engines = printable(", ".join(sequence.engines)) or f"engine unknown ({sequence.unjoined})"
    facts = [f"row {sequence.rank}/{sequence.number}", engines, f"{sequence.tokens} tokens"]
    figures = (("|d|", sequence.abs_diff_mean), ("k3", sequence.k3_mean), ("reward", sequence.reward))
    facts += [f"{name} {UNKNOWN if value is None else f'{value:.4g}'}" for name, value in figures]
    if sequence.invalid:
        facts.append(f"{sequence.invalid} without a finite gap")
    if sequence.prompt_tokens is not None:
        facts.append(f"{sequence.cached_tokens or 0} of {sequence.prompt_tokens} prompt tokens cached")
    if versions := sorted(set(ints(sequence.versions).tolist()) - {-1}):
        facts.append(f"policy {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else ""))
    return ", ".join(facts)


def token_facts(token: Token) -> str:
    """Origin and gap of a token, in one line."""
    version = UNKNOWN if token.version < 0 else str(token.version)
    epoch = UNKNOWN if token.epoch < 0 else str(token.epoch)
    facts = [
        f"d {token.diff:.4f}",
        f"rollout {token.rollout:.4f}",
        f"trainer {token.trainer:.4f}",
        f"row {token.rank}/{token.number}",
        f"token {token.position} of {token.tokens}",
        printable(token.engine) or "engine unknown",
        f"policy {version}",
        f"flag epoch {epoch}",
    ]
    if token.prompt_tokens is not None:
        facts.append(f"{token.cached_tokens or 0} of {token.prompt_tokens} prompt tokens cached")
    if token.reward is not None:
        facts.append(f"reward {token.reward:.4g}")
    return ", ".join(facts)


def legend() -> str:
    """The legend of the marks."""
    limits = ", ".join(f"{'↑' * n} from {limit:g}" for n, limit in enumerate(LEVELS, 1))
    return f"{limits} nats; ↑ the trainer gives more probability, ↓ less; (brackets) not trained on"


def lines(sequence: Sequence, decode: Decode) -> list[str]:
    """A sequence as plain lines."""
    shown = between(decode).join(text for text, _ in marked(sequence, decode))
    return [sequence_facts(sequence), f"  after …{context(sequence.context, decode, 12)}", f"  {shown}"]
