"""Compares the trainer's copy of the rollout logprobs with the engine's, token by token. Pure, vectorised.

A corrupted copy makes every number that is measured against it wrong, and most kinds of corruption can be recognised.
No threshold here is tuned: a copy equals the engine's logprobs to the rounding of float32, or exactly after a cast to
bfloat16 or float16, or it differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.join.reasons import ReasonEntry
from rltop.backend.join.records import Hit
from rltop.backend.join.rounding import CASTS, FLOAT32_ROUNDING, Floats, Marks, equal

Ints = NDArray[np.int64]

MAX_SHIFT = 4
"""Largest shift in tokens that is recognised. A label shift is 1; the header of a turn is a few."""

NOT_A_LOGPROB = -9998.0
"""A value at or below this, above 0, or not finite is a filler. vLLM writes -9999 without a logprob; no real one gets
there."""

UNIFORM_TOKENS, UNIFORM_BELOW = 4, -1.0
"""Tokens of a span whose logprobs are one value below UNIFORM_BELOW: as many alternatives were equally likely each
time, which no trained model computes."""

EQUAL, CUT, UNRECORDED = "equal", "cut", "unrecorded"
BROKEN, UNIFORM = "broken", "uniform"
ZERO_FILLED, PADDED, CLAMPED, RECOMPUTED, CHANGED = "zero_filled", "padded", "clamped", "recomputed", "changed"
SHIFTED, OTHER_ROW, LIKELIEST, SCALED = "shifted", "other_row", "likeliest", "scaled"
DECIMALS = range(1, 7)

KINDS: tuple[ReasonEntry, ...] = (
    ReasonEntry(EQUAL, "the copy equals the engine's logprobs, to the rounding of float32"),
    ReasonEntry(CUT, "an equal prefix: the engine generated more tokens for the request"),
    ReasonEntry(UNRECORDED, "the engine returned no logprobs to compare with"),
    ReasonEntry(BROKEN, "the engine recorded NaN or infinity: its logits are broken"),
    ReasonEntry(
        UNIFORM, "the engine recorded one value throughout: all tokens were equally likely, as without weights"
    ),
    ReasonEntry(ZERO_FILLED, "0.0 replaces some of the engine's values, and the rest is equal"),
    ReasonEntry(
        PADDED, "a filler (one number, NaN or infinity) replaces some of the engine's values; the rest is equal"
    ),
    ReasonEntry(CLAMPED, "values below a bound were raised to it, and the rest is equal"),
    ReasonEntry(SHIFTED, "each value belongs to an earlier (+) or later (-) token"),
    ReasonEntry(OTHER_ROW, "the engine's logprobs of another row of the step"),
    ReasonEntry(LIKELIEST, "never below the engine's, as the logprobs of the likeliest token at each position"),
    ReasonEntry(SCALED, "the engine's logprobs times one number, as divided by a temperature"),
    *(ReasonEntry(f"cast_{name}", f"the engine's logprobs rounded to {name}") for name in CASTS),
    *(ReasonEntry(f"cast_{n}_decimals", f"the engine's logprobs rounded to {n} decimals") for n in DECIMALS),
    ReasonEntry(RECOMPUTED, "most values differ without a pattern: recomputed, not copied"),
    ReasonEntry(CHANGED, "some values differ without a pattern"),
)

_BY_NAME = {kind.name: kind for kind in KINDS}


FINE = frozenset({EQUAL, CUT})
"""Kinds of a healthy run; any other causes an event when it appears."""

OF_ENGINE = frozenset({BROKEN, UNIFORM})
"""Kinds that are due to the engine's own record, and not to the copy."""

WITHOUT_RULE = frozenset({RECOMPUTED, CHANGED})
"""Kinds of copies that follow no known rule."""


def describe(kind: str) -> str:
    """The sentence that explains a kind returned by ``compare``."""
    return _BY_NAME[SHIFTED if kind.startswith(SHIFTED) else kind].sentence


def sentence(kind: str, count: int, total: int, engines: str) -> str:
    """A line about ``count`` of ``total`` copies of one kind."""
    if kind in OF_ENGINE:
        return f"{count} of {total} records of {engines} are {kind}: {describe(kind)}"
    return f"{count} of {total} copies of {engines}'s logprobs are {kind}: {describe(kind)}"


def compare(batch: Batch) -> dict[str, Counter[str]]:
    """Number of joined spans by engine and kind of copy.

    ``shifted`` has the number of tokens appended: ``shifted+1`` if each value is that of the previous token.
    """
    return by_engine(batch, of_spans(batch))


def by_engine(batch: Batch, kinds: Mapping[int, str]) -> dict[str, Counter[str]]:
    """Number of joined spans by engine and kind of copy, with the kinds of ``of_spans``."""
    found: dict[str, Counter[str]] = {}
    for number, kind in kinds.items():
        hit = batch.hits[number]
        assert hit is not None
        found.setdefault(hit.record.engine, Counter())[kind] += 1
    return found


def of_spans(batch: Batch) -> dict[int, str]:
    """Kind of each joined span's copy, by number of the span."""
    joined = [(n, span, hit) for n, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)) if hit]
    if not joined:
        return {}
    whole = batch.arrays["rollout_logprobs"]
    ours = [hit.record.logprobs[hit.offset : hit.offset + s.end - s.start] for _, s, hit in joined]
    theirs = [whole[s.token : s.token + s.end - s.start] for _, s, _ in joined]
    sizes = np.array([copy.size for copy in theirs], np.int64)
    kinds = classify(np.concatenate(ours), np.concatenate(theirs), sizes)
    return {
        number: _shown(
            batch, number, hit, OTHER_ROW if kind in WITHOUT_RULE and _is_of_other(batch, hit, copy) else kind
        )
        for (number, _, hit), kind, copy in zip(joined, kinds, theirs, strict=True)
    }


def _shown(batch: Batch, number: int, hit: Hit, kind: str) -> str:
    span = batch.spans[number]
    own = hit.record.logprobs[hit.offset : hit.offset + span.end - span.start]
    if not hit.record.rollout.has_logprobs:
        return UNRECORDED
    if not np.isfinite(own).all():
        return BROKEN
    if own.size >= UNIFORM_TOKENS and own[0] < UNIFORM_BELOW and bool(equal(own, own[:1]).all()):
        return UNIFORM
    return CUT if kind == EQUAL and batch.is_cut(number) else kind


def _is_of_other(batch: Batch, hit: Hit, copy: Floats) -> bool:
    """Whether a copy has the logprobs of another rollout."""
    found = batch.index.with_logprobs(copy) if batch.index else []
    return any(record is not hit.record and _is_of(record.logprobs, copy) for record in found)


def _is_of(own: Floats, copy: Floats) -> bool:
    """Whether the copy has the logprobs ``own``, as far as both go."""
    size = min(own.size, copy.size)
    return bool(equal(own[:size], copy[:size]).all())


def classify(ours: Floats, theirs: Floats, sizes: Ints) -> list[str]:
    """The kind of each span.

    Args:
        ours: the engines' logprobs of the spans, concatenated [tokens].
        theirs: the trainer's copies of them [tokens].
        sizes: tokens per span [spans], all above 0.
    """
    kinds = np.full(sizes.size, "", dtype=object)
    left = np.arange(sizes.size)
    for name, test in _TESTS:
        if not left.size:
            break
        spans = _Spans(ours, theirs, sizes)
        matches = test(spans)
        kinds[left[matches]] = name
        keep = np.repeat(~matches, sizes)
        ours, theirs, sizes, left = ours[keep], theirs[keep], sizes[~matches], left[~matches]
    return [str(kind) for kind in kinds]


class _Spans:
    """Spans that no test has matched yet.

    ``differ`` [tokens]: the copy differs from the engine's logprob. Without one (NaN) every value is accepted.
    """

    def __init__(self, ours: Floats, theirs: Floats, sizes: Ints) -> None:
        self.ours, self.theirs, self.sizes = ours, theirs, sizes
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.differ = ~self.matches(ours)

    def matches(self, values: Floats) -> Marks:
        """Where the copy equals ``values`` [tokens], derived from the engine's logprobs."""
        same: Marks = equal(values, self.theirs) | np.isnan(values)
        return same

    def all(self, tokens: Marks) -> Marks:
        """Whether all tokens of each span are marked [spans]."""
        return np.logical_and.reduceat(tokens, self.starts)

    def any(self, tokens: Marks) -> Marks:
        """Whether any token of each span is marked [spans]."""
        return np.logical_or.reduceat(tokens, self.starts)

    def count(self, tokens: Marks) -> Ints:
        """Number of marked tokens of each span [spans]."""
        return np.add.reduceat(tokens.astype(np.int64), self.starts)

    def spread(self, spans: NDArray[np.float32]) -> NDArray[np.float32]:
        """Repeat a value per span [spans] for its tokens [tokens]."""
        return np.repeat(spans, self.sizes)


def _is_equal(spans: _Spans) -> Marks:
    return spans.all(~spans.differ)


def _is_zero_filled(spans: _Spans) -> Marks:
    return spans.all(~spans.differ | (spans.theirs == 0))


def _is_cast(cast: Callable[[Floats], Floats]) -> Callable[[_Spans], Marks]:
    def test(spans: _Spans) -> Marks:
        return spans.all(spans.matches(cast(spans.ours)))

    return test


def _is_shifted(by: int) -> Callable[[_Spans], Marks]:
    """All tokens that both have must agree, one of them on a value other than 0.0, which many tokens share."""

    def test(spans: _Spans) -> Marks:
        position = np.arange(spans.ours.size) - np.repeat(spans.starts, spans.sizes)
        inside = (position - by >= 0) & (position - by < np.repeat(spans.sizes, spans.sizes))
        source = np.clip(np.arange(spans.ours.size) - by, 0, spans.ours.size - 1)
        moved = spans.ours[source]
        agree = spans.matches(moved)
        for cast in CASTS.values():
            agree |= spans.matches(cast(moved))
        return spans.all(agree | ~inside) & spans.any(inside & agree & (moved != 0) & np.isfinite(moved))

    return test


def _is_clamped(spans: _Spans) -> Marks:
    """The differing tokens, two or more, were raised to one bound; no other token is below it."""
    bound = np.where(spans.differ, spans.theirs, -np.inf).astype(np.float32)
    highest = np.maximum.reduceat(bound, spans.starts)
    with np.errstate(invalid="ignore"):
        raised = (spans.theirs == spans.spread(highest)) & (spans.ours < spans.theirs)
        below = ~spans.differ & (spans.ours < spans.spread(highest))
    return spans.all(~spans.differ | raised) & ~spans.any(below) & (spans.count(spans.differ) >= 2)


def _is_padded(spans: _Spans) -> Marks:
    """The differing tokens hold no logprob, or two or more of them hold one and the same value."""
    filler = ~np.isfinite(spans.theirs) | (spans.theirs > 0) | (spans.theirs <= NOT_A_LOGPROB)
    with np.errstate(invalid="ignore"):
        low = np.minimum.reduceat(np.where(spans.differ, spans.theirs, np.inf), spans.starts)
        high = np.maximum.reduceat(np.where(spans.differ, spans.theirs, -np.inf), spans.starts)
        one = (low == high) & (spans.count(spans.differ) >= 2)
    padded: Marks = spans.all(~spans.differ | filler) | one
    return padded


def _is_decimal(decimals: int) -> Callable[[_Spans], Marks]:
    """Every copy is the engine's value rounded to this many decimals."""

    def test(spans: _Spans) -> Marks:
        rounded = np.round(spans.ours.astype(np.float64), decimals)
        return spans.all(spans.matches(rounded.astype(np.float32)))

    return test


def _is_likeliest(spans: _Spans) -> Marks:
    """Where the copy differs, two or more times, it is above, and both fit as probabilities of different tokens."""
    with np.errstate(invalid="ignore", over="ignore"):
        both = np.exp(spans.ours, dtype=np.float64) + np.exp(spans.theirs, dtype=np.float64)
        above = (spans.theirs > spans.ours) & (spans.theirs <= 0) & (both <= 1 + FLOAT32_ROUNDING)
    return spans.all(~spans.differ | above) & (spans.count(spans.differ) >= 2)


def _is_scaled(spans: _Spans) -> Marks:
    """All copies are the engine's logprobs times one number; three or more are not 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(np.isfinite(spans.ours) & (spans.ours < 0), spans.theirs / spans.ours, np.nan)
    top = np.fmax.reduceat(factor, spans.starts)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(spans.theirs - spans.ours * spans.spread(top)) <= SCALED_ERROR * np.abs(spans.theirs)
    return spans.all(near) & (spans.count(spans.ours < 0) >= 3) & spans.any(spans.differ)


SCALED_ERROR = 1e-4
"""Relative error of a scaled copy: a few roundings to float32, of values near 0 too."""


def _is_recomputed(spans: _Spans) -> Marks:
    most: Marks = 2 * spans.count(spans.differ) > spans.sizes
    return most


def _any_other(spans: _Spans) -> Marks:
    return np.ones(spans.sizes.size, bool)


def _shifts() -> Iterable[int]:
    for by in range(1, MAX_SHIFT + 1):
        yield by
        yield -by


_TESTS: tuple[tuple[str, Callable[[_Spans], Marks]], ...] = (
    (EQUAL, _is_equal),
    *((f"cast_{name}", _is_cast(cast)) for name, cast in CASTS.items()),
    *((f"cast_{n}_decimals", _is_decimal(n)) for n in reversed(DECIMALS)),
    (ZERO_FILLED, _is_zero_filled),
    *((f"{SHIFTED}{by:+d}", _is_shifted(by)) for by in _shifts()),
    (CLAMPED, _is_clamped),
    (PADDED, _is_padded),
    (LIKELIEST, _is_likeliest),
    (SCALED, _is_scaled),
    (RECOMPUTED, _is_recomputed),
    (CHANGED, _any_other),
)
"""Tests in order of priority: the first that matches decides. A cast or a shift takes precedence over later tests."""
