"""The version-matched gap, and the size that rounding alone explains: by dtypes, and by the run's first steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rltop.backend import api
from rltop.backend.fleet import facts
from rltop.backend.metrics import Values

FLOAT32 = 4e-3
"""Upper bound on the normalised RMS gap (|d| / sqrt(1-p)), with float32 throughout: 0.0017 to 0.0022 were measured on
text with a mean NLL of 3.6 on GPUs (Fast-LLM, pull 525), 1e-6 on CPUs."""

SIXTEEN_BITS = 0.05
"""The bound with bfloat16 anywhere: 0.022 to 0.041 in the same measurement, for bodies and heads of either dtype;
bfloat16 logits between 32 and 64 alone cause 0.07, part of which the softmax cancels."""

MAX_ROUNDING = 0.09
"""The most that rounding to 16 bits can cause: bfloat16 logits between 32 and 64 on both sides."""

MIN_TEMPERATURE = 0.1
"""Lower bound on the temperature: below it, sampling is greedy."""

EIGHT_BITS = 0.5
"""The bound with weights of 8 bits or fewer: mean |d| 0.27 in a toy of few layers (miles, issue 1678), 0.34 as RMS."""

MEASURED = {FLOAT32: 0.0022, SIXTEEN_BITS: 0.041, EIGHT_BITS: 0.34}
"""The largest measured values at a temperature of 1, by bound."""

_WIDE = {"float32", "float64", "fp32", "fp64", "torch.float32", "float", "torch.float64"}

WIDER = 10.0
"""Factor by which rounding may grow: at most 5.5 in healthy runs of the demo, where the policy had become certain of
nearly all tokens."""

FINEST = 0.01
"""Lower limit of this bound, relative to that of the dtypes: a float32 logprob of -30 is a multiple of 2e-6."""

MATCHED = (("backend_abs_diff_mean", "backend_tokens"), ("lag0_abs_diff_mean", "lag0_tokens"))
"""Metrics of the version-matched gap with their sample sizes: from old logprobs, else from tokens of lag 0."""

FIRST_TOKENS = 500
"""Version-matched tokens of the first steps that the floor of a run is estimated from."""


def declared_bound(sides: Sequence[facts.Facts], trainer: facts.Facts) -> tuple[float, str]:
    """The normalised RMS gap that the stated dtypes imply at most, and the reason; 16 bits if no dtype is stated.

    Args:
        sides: facts of the engines.
        trainer: facts of the trainer.
    """
    bound, why = _of_dtypes(sides, trainer)
    at = temperature(sides, trainer)
    measured = MEASURED[bound] / at
    return (measured, f"{why} at a temperature of {at:g}") if measured > bound else (bound, why)


def matched_gap(values: Values) -> float | None:
    """The version-matched mean |d| of a step, or of one engine in it, in nats; None without version-matched tokens."""
    return next((value for gap, _ in MATCHED if (value := values.get(gap)) is not None), None)


def gap_floor(steps: Iterable[api.Step], engines: Iterable[api.Engine], trainer: api.Trainer) -> float | None:
    """The version-matched mean |d| that rounding explains at most, in nats; None before the first matched tokens.

    As the check ``floor``: the bound of the dtypes, or a multiple of the gap of the run's first steps if that is lower.

    Args:
        steps: of the run, oldest first.
        engines: of the run, with their facts.
        trainer: of the run.
    """
    own = _first_gap(steps)
    if own is None:
        return None
    declared, _ = declared_bound([facts.of_engine(engine) for engine in engines], trainer.facts)
    return min(declared, max(WIDER * own, FINEST * declared))


def _first_gap(steps: Iterable[api.Step]) -> float | None:
    """The mean |d| of the first version-matched tokens."""
    total = tokens = 0.0
    for step in steps:
        gap, size = next(((step.values[gap], step.values.get(size)) for gap, size in MATCHED
                          if step.values.get(gap) is not None), (None, None))  # fmt: skip
        if gap is not None:
            total, tokens = total + gap * (size or 1.0), tokens + (size or 1.0)
        if tokens >= FIRST_TOKENS:
            break
    return total / tokens if tokens else None


def temperature(sides: Sequence[facts.Facts], trainer: facts.Facts) -> float:
    """The lowest stated temperature, 1 at most: rounding is that of logits, and is divided by the temperature."""
    stated = [text for side in (*sides, trainer) for text in side.get("temperature", "").split(facts.MIXED) if text]
    values = [float(text) for text in stated if text.replace(".", "", 1).isdigit()]
    return max(min([1.0, *(value for value in values if value > 0)]), MIN_TEMPERATURE)


def _of_dtypes(sides: Sequence[facts.Facts], trainer: facts.Facts) -> tuple[float, str]:
    if any(side.get("quantization", "none").lower() not in ("none", "") for side in sides):
        return EIGHT_BITS, "quantised weights"
    engine_words = [side[fact] for side in sides for fact in ("dtype", "head_dtype") if fact in side]
    trainer_words = [trainer[fact] for fact in ("dtype", "head_dtype") if fact in trainer]
    if trainer_words and engine_words and any(map(_narrow, engine_words)) != any(map(_narrow, trainer_words)):
        return FLOAT32, "mismatching dtypes"
    words = engine_words + trainer_words
    if words and not any(map(_narrow, words)):
        return FLOAT32, "float32 on both sides" if trainer_words else "float32 in the engines"
    return SIXTEEN_BITS, "16 bits" if words else "dtypes not stated"


def _narrow(word: str) -> bool:
    return word.strip().lower() not in _WIDE
