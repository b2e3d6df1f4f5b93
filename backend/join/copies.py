"""The trainer's copy of the rollout logprobs beside the engine's record of them, token by token. Pure, vectorised.

A copy that is not the record makes every number that is measured against it wrong, and most ways of spoiling one leave
a mark that names it. No threshold here is tuned: a copy is the record up to the rounding of float32, exactly what a
rounding to bfloat16 or float16 makes of it, or it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.join.reasons import ReasonEntry
from rltop.backend.join.rounding import CASTS, Floats, Marks, equal

Ints = NDArray[np.int64]

MAX_SHIFT = 4
"""Copies displaced by up to so many tokens are named. A label shift is 1; a turn's header is a few."""

NOT_A_LOGPROB = -9998.0
"""At or below it, above 0, or not finite: a filler. vLLM writes -9999 where it has none; no real one gets there."""

EQUAL, CUT, UNRECORDED = "equal", "cut", "unrecorded"
ZERO_FILLED, PADDED, CLAMPED, RECOMPUTED, CHANGED = "zero_filled", "padded", "clamped", "recomputed", "changed"
SHIFTED = "shifted"

KINDS: tuple[ReasonEntry, ...] = (
    ReasonEntry(EQUAL, "the copy is the engine's record, to the rounding of float32"),
    ReasonEntry(CUT, "equal as far as it goes, but the engine recorded more tokens of the request"),
    ReasonEntry(UNRECORDED, "the engine recorded no logprobs: there is nothing to compare with"),
    ReasonEntry(ZERO_FILLED, "0.0 stands where the engine recorded another value, and the rest is equal"),
    ReasonEntry(
        PADDED, "a filler stands where the engine recorded a value (one number, NaN or infinity); the rest is equal"
    ),
    ReasonEntry(CLAMPED, "values below a bound were raised to it, and the rest is equal"),
    ReasonEntry(SHIFTED, "each value is that of a token before (+) or after (-)"),
    *(ReasonEntry(f"cast_{name}", f"the record rounded to {name}") for name in CASTS),
    ReasonEntry(RECOMPUTED, "most values differ, and by no rule: not a copy, but computed again"),
    ReasonEntry(CHANGED, "some values differ, by no rule"),
)

_BY_NAME = {kind.name: kind for kind in KINDS}


FINE = frozenset({EQUAL, CUT})
"""What a healthy run has; anything else is worth an event when it appears."""


def describe(kind: str) -> str:
    """The sentence for a kind as ``compare`` names it."""
    return _BY_NAME[SHIFTED if kind.startswith(SHIFTED) else kind].sentence


def compare(batch: Batch) -> dict[str, Counter[str]]:
    """How many joined spans have which kind of copy, by engine.

    ``shifted`` has the number of tokens appended: ``shifted+1`` where each value is that of the token before.
    """
    found: dict[str, Counter[str]] = {}
    joined = [(n, span, hit) for n, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)) if hit]
    if not joined:
        return found
    whole = batch.arrays["rollout_logprobs"]
    ours = np.concatenate([hit.record.logprobs[hit.offset : hit.offset + s.end - s.start] for _, s, hit in joined])
    theirs = np.concatenate([whole[s.token : s.token + s.end - s.start] for _, s, _ in joined])
    kinds = classify(ours, theirs, np.array([s.end - s.start for _, s, _ in joined], np.int64))
    for (number, _, hit), kind in zip(joined, kinds, strict=True):
        shown = kind
        if not hit.record.rollout.has_logprobs:
            shown = UNRECORDED
        elif kind == EQUAL and batch.is_cut(number):
            shown = CUT
        found.setdefault(hit.record.engine, Counter())[shown] += 1
    return found


def classify(ours: Floats, theirs: Floats, sizes: Ints) -> list[str]:
    """The kind of each span.

    Args:
        ours: the engines' records of the spans, concatenated [tokens].
        theirs: the trainer's copies, likewise.
        sizes: tokens per span [spans], all above 0.
    """
    kinds = np.full(sizes.size, "", dtype=object)
    left = np.arange(sizes.size)
    for name, test in _TESTS:
        if not left.size:
            break
        spans = _Spans(ours, theirs, sizes)
        said = test(spans)
        kinds[left[said]] = name
        keep = np.repeat(~said, sizes)
        ours, theirs, sizes, left = ours[keep], theirs[keep], sizes[~said], left[~said]
    return [str(kind) for kind in kinds]


class _Spans:
    """Spans that no rule has named yet.

    ``differ`` [tokens]: where the copy is not the record. Where the engine has no record (NaN), anything is right.
    """

    def __init__(self, ours: Floats, theirs: Floats, sizes: Ints) -> None:
        self.ours, self.theirs, self.sizes = ours, theirs, sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.differ = ~self.follow(ours)

    def follow(self, values: Floats) -> Marks:
        """Where the copy is ``values`` [tokens], made of the record."""
        follows: Marks = equal(values, self.theirs) | np.isnan(values)
        return follows

    def all(self, tokens: Marks) -> Marks:
        """Whether all tokens of each span are marked [spans]."""
        return np.logical_and.reduceat(tokens, self.starts)

    def any(self, tokens: Marks) -> Marks:
        """Whether any is."""
        return np.logical_or.reduceat(tokens, self.starts)

    def count(self, tokens: Marks) -> Ints:
        """How many are."""
        return np.add.reduceat(tokens.astype(np.int64), self.starts)

    def spread(self, spans: NDArray[np.float32]) -> NDArray[np.float32]:
        """A value per span, for each of its tokens."""
        return np.repeat(spans, self.sizes)


def _is_equal(spans: _Spans) -> Marks:
    return spans.all(~spans.differ)


def _is_zero_filled(spans: _Spans) -> Marks:
    return spans.all(~spans.differ | (spans.theirs == 0))


def _is_cast(cast: Callable[[Floats], Floats]) -> Callable[[_Spans], Marks]:
    def test(spans: _Spans) -> Marks:
        return spans.all(spans.follow(cast(spans.ours)))

    return test


def _is_shifted(by: int) -> Callable[[_Spans], Marks]:
    """Of the tokens that both have, all must agree, and one of them not in a 0.0, which many tokens have alike."""

    def test(spans: _Spans) -> Marks:
        place = np.arange(spans.ours.size) - np.repeat(spans.starts, spans.sizes)
        inside = (place - by >= 0) & (place - by < np.repeat(spans.sizes, spans.sizes))
        source = np.clip(np.arange(spans.ours.size) - by, 0, spans.ours.size - 1)
        moved = spans.ours[source]
        agree = spans.follow(moved)
        for cast in CASTS.values():
            agree |= spans.follow(cast(moved))
        return spans.all(agree | ~inside) & spans.any(inside & agree & (moved != 0) & np.isfinite(moved))

    return test


def _is_clamped(spans: _Spans) -> Marks:
    """What differs, two tokens or more, was below one bound, which stands there now; nothing else is below it."""
    bound = np.where(spans.differ, spans.theirs, -np.inf).astype(np.float32)
    highest = np.maximum.reduceat(bound, spans.starts)
    with np.errstate(invalid="ignore"):
        raised = (spans.theirs == spans.spread(highest)) & (spans.ours < spans.theirs)
        below = ~spans.differ & (spans.ours < spans.spread(highest))
    return spans.all(~spans.differ | raised) & ~spans.any(below) & (spans.count(spans.differ) >= 2)


def _is_padded(spans: _Spans) -> Marks:
    """What differs holds no logprob, or one and the same value at two tokens or more."""
    filler = ~np.isfinite(spans.theirs) | (spans.theirs > 0) | (spans.theirs <= NOT_A_LOGPROB)
    with np.errstate(invalid="ignore"):
        low = np.minimum.reduceat(np.where(spans.differ, spans.theirs, np.inf), spans.starts)
        high = np.maximum.reduceat(np.where(spans.differ, spans.theirs, -np.inf), spans.starts)
        one = (low == high) & (spans.count(spans.differ) >= 2)
    padded: Marks = spans.all(~spans.differ | filler) | one
    return padded


def _is_recomputed(spans: _Spans) -> Marks:
    most: Marks = 2 * spans.count(spans.differ) > spans.sizes
    return most


def _is_left(spans: _Spans) -> Marks:
    return np.ones(spans.sizes.size, bool)


def _shifts() -> Iterable[int]:
    for by in range(1, MAX_SHIFT + 1):
        yield by
        yield -by


_TESTS: tuple[tuple[str, Callable[[_Spans], Marks]], ...] = (
    (EQUAL, _is_equal),
    *((f"cast_{name}", _is_cast(cast)) for name, cast in CASTS.items()),
    (ZERO_FILLED, _is_zero_filled),
    *((f"{SHIFTED}{by:+d}", _is_shifted(by)) for by in _shifts()),
    (CLAMPED, _is_clamped),
    (PADDED, _is_padded),
    (RECOMPUTED, _is_recomputed),
    (CHANGED, _is_left),
)
"""In order: the first that holds names the span. Whatever a rounding or a shift explains, no later rule may."""
