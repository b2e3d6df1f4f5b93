"""A measured training step as viewers get it. Pure data."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True):
    """The measurements of one training step.

    Attributes:
        step: the trainer's number, from 0.
        closed: wall clock of the hub when it closed, seconds.
        policy_version: of the weights after the step; None if the trainer passed none.
        partial: closed by a timeout without all ranks, or rows are missing.
        values: by metric name (``rltop.backend.metrics``); None, never NaN, for a metric that can't be computed.
        engines: the per-engine metrics by engine id; tokens of unknown engines are excluded.
        unjoined: trainer sequences without their rollout, by reason.
        trainer: the scalars the trainer passed to ``step(metrics=...)``.
        joins: joined sequences by the way they were found (``rltop.backend.join.reasons.WAYS``).
        reused: joined sequences that an earlier step also trained on.
        unused: rollouts that no step trained on, by engine, counted when they are too old for one.
        copies: by engine, kinds of the trainer's copies of the rollout logprobs (``join.copies.KINDS``).
        level: downsampling level in a snapshot (``downsample``); level 0 has every step.
        missing_rows: rows that the trainer passed for the step and that never arrived.
        lost: lost messages by source that may belong to the step; 0 if their number is not known.
        violations: by engine, joined sequences that break a rule that holds exactly (``join.violations.KINDS``).
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
    violations: dict[str, dict[str, int]] = {}
