"""The latest answer of the refit guard about one engine, as data and as text. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

FAULTY = frozenset({"skipped", "late", "head", "partial", "scaled", "cast", "lost", "differs"})
"""Verdicts that a healthy engine never has."""

MAX_TENSORS = 16
"""Tensors that an answer names."""


class RefitCheck(msgspec.Struct, frozen=True):
    """What an engine's weights are after its last update, by samples of every tensor.

    Attributes:
        verdict: an outcome of the check ``refit`` (``rltop.backend.diagnosis.catalogue``).
        text: the same as a sentence.
        against: what they were compared with: ``trainer``, ``engines``, ``itself`` (before the update) or empty.
        policy_version: of the weights. updates: weight updates of the engine.
        compared: tensors that were compared. tensors: names of those that deviate, at most ``MAX_TENSORS``.
        since_step: last closed step when the verdict began. time: wall clock of the hub, seconds.
        share: of the engine's time that the guard has taken so far; None if not known. stall_s: of this check.
    """

    verdict: str
    text: str
    against: str = ""
    policy_version: int | None = None
    updates: int = 0
    compared: int = 0
    tensors: list[str] = []
    since_step: int | None = None
    time: float = 0.0
    share: float | None = None
    stall_s: float = 0.0

    @property
    def is_faulty(self) -> bool:
        """Whether no healthy engine has this verdict."""
        return self.verdict in FAULTY


def as_json(check: RefitCheck | None) -> dict[str, Any] | None:
    """The check as plain values."""
    return None if check is None else msgspec.to_builtins(check)


def as_line(engine: str, check: RefitCheck) -> str:
    """One line for people."""
    version = "" if check.policy_version is None else f" at version {check.policy_version}"
    cost = "" if check.share is None else f" ({100 * check.share:.2f} % of its time)"
    return f"refit {engine}: {check.verdict}{version}: {check.text}{cost}"
