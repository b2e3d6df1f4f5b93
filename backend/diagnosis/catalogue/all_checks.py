"""The catalogue of checks, as data.

The first outcome of a check is the healthy one; any check may also be ``unknown``. ``d = trainer - rollout`` in nats: a
token with a positive d is likelier to the trainer. Imports nothing heavy.
"""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue import gap_checks, probe_checks, rollout_checks, run_checks
from rltop.backend.diagnosis.catalogue.check import ALPHA, SUSPECT, UNKNOWN, Check

__all__ = ["ALPHA", "BY_NAME", "CHECKS", "SUSPECT", "UNKNOWN", "Check"]

CHECKS: tuple[Check, ...] = (*rollout_checks.CHECKS, *gap_checks.CHECKS, *run_checks.CHECKS, *probe_checks.CHECKS)

BY_NAME: dict[str, Check] = {check.name: check for check in CHECKS}
