"""The effect of a canary as a probe result. Pure."""

from __future__ import annotations

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeEvidence, ProbeResult
from rltop.collectors.contract.probes import BY_NAME

PROBE = BY_NAME["canary-flip"]

MOVED = frozenset({"up", "down"})
WAITING = frozenset({"not_yet"})
"""Verdicts of ``api.EffectRow``."""


def result_of(effect: api.Effect, picture: api.Snapshot) -> ProbeResult:
    """The probe result of a switch of one flag, from its effect as far as it is measured now."""
    moved = [row for row in effect.rows if row.verdict in MOVED]
    decided = [row for row in effect.rows if row.verdict in MOVED | {"none"}]
    waiting = [row for row in effect.rows if row.verdict in WAITING]
    flip = f"{effect.flag} {effect.old} → {effect.new} on {', '.join(effect.engines)}"
    if moved:
        verdict, text = "changed", f"{flip} moved {', '.join(f'{row.figure} {row.verdict}' for row in moved)}."
    elif waiting:
        more = max((row.more or 0 for row in waiting), default=0)
        wait = f", about {more} more observations are needed" if more else ""
        verdict, text = "not_yet", f"{flip}: not decided yet{wait}; ask again later."
    elif decided:
        verdict, text = "no_effect", f"{flip} moved none of {', '.join(row.figure for row in decided)}."
    else:
        reasons = sorted({row.reason for row in effect.rows if row.reason})
        verdict, text = "unclear", f"{flip}: {'; '.join(reasons) or 'nothing was measured'}."
    return ProbeResult(
        effect.command, PROBE.name, PROBE.code, effect.engines, verdict, text, list(effect.engines) if moved else [],
        [entry for row in effect.rows if (entry := _evidence(row)) is not None], picture.time,
        max(picture.steps, default=None), None, [*effect.confounds, *_no_control(effect)],
    )  # fmt: skip


def _evidence(row: api.EffectRow) -> ProbeEvidence | None:
    estimate = row.against or row.own
    if estimate is None:
        return None
    name = f"change of {row.figure}, {row.verdict}"
    return ProbeEvidence(
        name, estimate.difference, row.unit, estimate.low, estimate.high, row.after, f"after, each one {row.every}"
    )


def _no_control(effect: api.Effect) -> list[str]:
    return [] if effect.against else ["No control group: only the run's own trend was subtracted."]
