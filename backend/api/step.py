"""One measured training step as viewers get it. Pure data."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True):
    """One training step, measured.

    Attributes:
        step: the trainer's number, from 0.
        closed: wall clock of the hub when it closed, seconds.
        policy_version: weights after the step; None if the trainer did not say.
        partial: closed by a timeout with ranks missing, or rows of it are missing.
        values: by metric name (``rltop.backend.metrics``); a metric that can't be computed is None, never NaN.
        engines: the per-engine subset of the metrics, by engine id; tokens whose engine is not known are absent.
        unjoined: trainer sequences without their rollout, by reason.
        trainer: the scalars the trainer passed to ``step(metrics=...)``.
        joins: joined sequences by how they were found (``rltop.backend.join.reasons.WAYS``).
        reused: joined sequences that an earlier step has trained on too.
        unused: rollouts that no step has trained on, by engine, counted when they become too old for it.
        copies: by engine, how the trainer's copies of the recorded logprobs came out (``join.copies.KINDS``).
        level: in how coarse a part of a picture it stands (``coarse``); 0 has every step.
        missing_rows: rows that the trainer passed for it and that never came.
        lost: messages, by source, that never came and may have been about it; 0 where nobody knows how many.
    """

    step: int
    closed: float
    policy_version: int | None
    partial: bool
    values: dict[str, float | None]
    engines: dict[str, dict[str, float | None]] = {}
    unjoined: dict[str, int] = {}
    trainer: dict[str, float] = {}
    joins: dict[str, int] = {}
    reused: int = 0
    unused: dict[str, int] = {}
    copies: dict[str, dict[str, int]] = {}
    level: int = 0
    missing_rows: int = 0
    lost: dict[str, int] = {}
