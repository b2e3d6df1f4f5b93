"""The tests of a diagnosis, as data: what each asks, what it may answer, on what, how often it errs.

The first outcome of a test is the healthy one; any test may also say ``unknown``. Signs: ``d = trainer - rollout``,
nats, so a ``positive`` d is a token that the trainer finds likelier than the record says. Loads nothing heavy.
"""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue import gap_checks, rollout_checks, run_checks
from rltop.backend.diagnosis.catalogue.check import ALPHA, UNKNOWN, Check

__all__ = ["ALPHA", "BY_NAME", "TESTS", "UNKNOWN", "Check"]

TESTS: tuple[Check, ...] = (*rollout_checks.TESTS, *gap_checks.TESTS, *run_checks.TESTS)

BY_NAME: dict[str, Check] = {test.name: test for test in TESTS}
