"""The refit guard's state in the hub: what the trainer stated, and what each engine loaded. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from rltop.backend.api.refit import MAX_TENSORS, RefitCheck
from rltop.backend.probes.refit_sketches import TrainerState, engine_weights
from rltop.backend.probes.refit_verdict import (
    Loaded,
    RefitVerdict,
    against_engines,
    against_itself,
    against_trainer,
)
from rltop.collectors.contract import wire

VERSIONS = 8
"""Versions of the trainer whose sketches are kept, the newest: an engine may be that late and named so."""

SETTLE_S = 1.0
"""How long a report of a fault waits for another one about the same update: its version may have been stated late."""

PATIENCE_S = 10.0
"""How long a report waits for the trainer's statement of its version, and for those of other engines."""


@dataclass(slots=True)
class Pending:
    """A report. ``before``: the one before it. ``version``: in the trainer's numbers; ``stated``: not from a count."""

    loaded: Loaded
    before: Loaded | None
    version: int | None
    stated: bool
    arrived: float
    share: float | None
    stall_s: float


@dataclass(slots=True)
class EngineHistory:
    """One engine process.

    Attributes:
        epoch: of the process.
        has: the trainer's version that all its weights were at the last report; None if they were no version's.
        trusted: tensors that were the trainer's at some time.
        still: updates in a row that changed nothing.
    """

    epoch: str
    has: int | None = None
    trusted: set[str] = field(default_factory=set)
    still: int = 0
    pending: Pending | None = None
    latest: Pending | None = None


class RefitChecks:
    """Judges what engines report, as soon as there is something to compare it with."""

    def __init__(self) -> None:
        self._trainer: OrderedDict[int, TrainerState] = OrderedDict()
        self._engines: dict[str, EngineHistory] = {}
        self._judged: dict[str, RefitCheck] = {}
        self._news = False  # something arrived since the last tick

    def add_trainer(self, body: wire.TrainerWeights) -> None:
        """Add what a rank states of a version."""
        self._news = True
        self._trainer.setdefault(body.policy_version, TrainerState()).add(body.sketches)
        while len(self._trainer) > VERSIONS:
            del self._trainer[min(self._trainer)]

    def add_report(
        self, body: wire.RefitReport, epoch: str, version: int | None, stated: bool, now: float, step: int | None
    ) -> None:
        """Add what an engine's process loaded; ``version``: in the trainer's numbers, ``stated`` or counted."""
        self._news = True
        history = self._engines.get(body.engine)
        if history is None or history.epoch != epoch:
            history = self._engines[body.engine] = EngineHistory(epoch)
        replaced = history.pending
        if replaced is not None and replaced.loaded.updates != body.weight_updates:
            self._close(body.engine, history, now, step)  # the next update ends the wait
            replaced = None
        loaded = Loaded(engine_weights(body.sketches), body.fused, body.reason, body.weight_updates, body.filled)
        share = body.spent_s / body.up_s if body.up_s > 0 else None
        latest = history.latest.loaded if history.latest is not None else None
        before = replaced.before if replaced is not None else latest
        history.pending = history.latest = Pending(loaded, before, version, stated, now, share, body.stall_s)

    def tick(self, now: float, step: int | None) -> dict[str, RefitCheck]:
        """The answers since the last call, by engine. ``step``: the last closed step."""
        for engine, history in self._engines.items():
            pending = history.pending
            if pending is None:
                continue
            waited = now - pending.arrived
            if waited > PATIENCE_S or (
                (self._news or waited > SETTLE_S) and self._is_settled(history, pending, waited)
            ):
                self._close(engine, history, now, step)
        self._news = False
        judged, self._judged = self._judged, {}
        return judged

    def _is_settled(self, history: EngineHistory, pending: Pending, waited: float) -> bool:
        """Whether the verdict can't change any more by what the trainer or other engines say."""
        if not self._trainer:
            return waited > SETTLE_S and (self._others(pending) is not None or len(self._engines) == 1)
        found = self._beside_trainer(history, pending)
        if found is not None and found.verdict == "agree":
            return True
        if waited <= SETTLE_S or not pending.stated or pending.version is None:
            return False
        return pending.version in self._trainer or max(self._trainer) > pending.version

    def _close(self, engine: str, history: EngineHistory, now: float, step: int | None) -> None:
        pending = history.pending
        assert pending is not None
        history.pending = None
        found = self._verdict(engine, history, pending)
        still = found is not None and found.against == "itself" and not _moved(pending.loaded, pending.before)
        history.still = history.still + 1 if still else 0
        history.has = found.version if found is not None else None
        history.trusted |= found.equal if found is not None else frozenset()
        if found is not None:
            self._judged[engine] = RefitCheck(
                found.verdict, found.text, found.against, pending.version, pending.loaded.updates, found.compared,
                list(found.tensors[:MAX_TENSORS]), step, now, pending.share, pending.stall_s,
            )  # fmt: skip

    def _verdict(self, engine: str, history: EngineHistory, pending: Pending) -> RefitVerdict | None:
        """Against the trainer if it stated this version, else other engines, else the update before."""
        if (found := self._beside_trainer(history, pending)) is not None:
            return found
        alone = against_itself(pending.loaded, pending.before, repeated=history.still > 0)
        if alone is not None and alone.verdict in ("lost", "scaled"):
            return alone
        beside = (self._others(pending) or {}).get(engine)
        return beside or alone

    def _beside_trainer(self, history: EngineHistory, pending: Pending) -> RefitVerdict | None:
        if pending.stated and pending.version is not None:
            if pending.version not in self._trainer:
                return None
            return against_trainer(
                pending.loaded, pending.before, self._trainer, pending.version, history.has, history.trusted
            )
        return self._newest(history, pending)

    def _newest(self, history: EngineHistory, pending: Pending) -> RefitVerdict | None:
        """Of an engine that only counts updates: any version that is newer than the last one it had is right."""
        numbers = sorted(self._trainer, reverse=True)
        known = history.trusted
        found = [against_trainer(pending.loaded, pending.before, self._trainer, n, None, known) for n in numbers]
        agreeing = next((one for one in found if one is not None and one.verdict == "agree"), None)
        if agreeing is not None and (agreeing.version == numbers[0] or agreeing.version != history.has):
            return agreeing
        return next((one for one in found if one is not None), None)

    def _others(self, pending: Pending) -> dict[str, RefitVerdict] | None:
        """The verdicts on all engines of the same version; None unless every other engine has reported it."""
        latest = {name: other.latest for name, other in self._engines.items()}
        same = {
            name: one for name, one in latest.items() if one and (one.version, one.stated) == (pending.version, True)
        }
        if len(same) < 2 or len(same) < len(latest) or not pending.stated:
            return None
        loaded = {name: one.loaded for name, one in same.items()}
        return against_engines(loaded, {name: one.before for name, one in same.items()})


def _moved(now: Loaded, before: Loaded | None) -> bool:
    return before is None or now.updates == before.updates or now.weights != before.weights
