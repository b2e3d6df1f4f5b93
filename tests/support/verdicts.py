"""Verdicts and alarms as a hub gives them, for tests of screens, reports and messages."""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend.alarms import naming
from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import Alarm
from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict
from tests.support import pictures

STALE = Cause(
    "stale-prefix-cache", "C1", "inference path", "The prefix cache survives weight updates",
    "Prompts are read from keys and values that older weights computed: engines sample from a policy that never "
    "existed, while gap, clip rate and reward look normal.",
    0.92,
    14,
    [],
    [
        "matched |d| of hits is 3.2 times (2.7 to 3.8) that of misses",
        "root mean square 0.18 nats per root of room; float32 on both sides makes 0.004 at most",
        "matched |d| 3.7e-07 before step 15, 0.013 since",
    ],
    ["partial-update"],
    "cache-salt",
    "Clear it at each update: pause_generation(clear_cache=True), /reset_prefix_cache, or cache_salt = policy version. "
    "For now: `rltop flush`.",
    "rltop set update_clears_cache on",
)  # fmt: skip
PARTIAL = Cause(
    "partial-update", "B3", "weights", "A part of the weights is not updated", "One part stays old.", 0.07, 14, ["e1"],
    ["record fits between two versions"], ["stale-prefix-cache"], "weight-digest", "Send all tensors.",
)  # fmt: skip
FINDINGS = [
    Finding("cache_gap", "hit_worse", 3.2, "", 2.7, 3.8, 2e-9, 14, None, 24842, 1664,
            "matched |d| of hits is 3.2 times (2.7 to 3.8) that of misses"),
    Finding("trend", "jump", 0.013, "nats", 0.011, 0.015, 1e-12, 15, None, 24842, 1664,
            "matched |d| 3.7e-07 before step 15, 0.013 since"),
    Finding("mean_ratio", "calibrated", 1.0003, "", 0.9989, 1.0017, 1.0, None, None, 24842, 1664,
            "mean ratio 1.0003 (0.9989 to 1.0017)"),
    Finding("mean_ratio", "calibrated", 1.0013, "", 0.9991, 1.0035, 1.0, None, "e0", 12000, 800,
            "mean ratio 1.0013 (0.9991 to 1.0035)"),
    *(Finding(name, "unknown", text="not measured") for name in ("logit_lattice", "batch_load", "versions")),
]  # fmt: skip


def fault(step: int = 39) -> Verdict:
    return Verdict("sort", step, FAULT, [STALE, PARTIAL], FINDINGS, [], 40, 104_000, 2560)


def healthy(step: int = 39) -> Verdict:
    notes = ["entropy falls by a third: as it does where a policy learns"]
    return Verdict("sort", step, HEALTHY, [], FINDINGS[2:], [], 40, 104_000, 2560, notes)


def undecided(step: int = 39) -> Verdict:
    shared = [msgspec.structs.replace(cause, confidence=0.5) for cause in (PARTIAL, STALE)]
    needs = ["run probe weight-digest, or cache-salt: partial-update and stale-prefix-cache fit alike"]
    return Verdict("sort", step, UNDECIDED, shared, FINDINGS, needs, 12, 9_400, 700)


def alarm(**changes: Any) -> Alarm:
    if changes.get("sure") is False:
        family = naming.of_family([undecided()])
        return Alarm(id="a1", raised=pictures.START + 80, raised_step=16, **(family | changes))
    base = Alarm(
        id="a1", cause=STALE.id, code=STALE.code, layer=STALE.layer, title=STALE.title, sure=True,
        raised=pictures.START + 80, raised_step=16, since_step=14, evidence=STALE.evidence, remedy=STALE.remedy,
        command=STALE.command,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def alarmed(**changes: Any) -> Snapshot:
    """A run of which an alarm is open."""
    shown = pictures.healthy()
    made = alarm(**changes)
    return msgspec.structs.replace(shown, alarms={made.id: made})
