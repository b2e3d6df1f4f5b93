"""The description of a check. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "unknown"
"""Outcome of any check with too little data; ``Finding.text`` names what is missing."""

SUSPECT = "suspect"
"""Detail of an unknown outcome if what there is is beyond the bound, and too little to be certain."""

ALPHA = 1e-6
"""Probability of an alarming outcome of one check in a healthy run, over all its steps and engines. Over all checks
together it is below 1 in 10,000."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a run.

    Attributes:
        name: id, as in ``Finding.test``.
        title: a short description.
        outcomes: its outcomes, the healthy one first.
        meaning: the meaning of every other outcome.
        on: the tokens, rows or requests that it is computed on.
        formula: the statistic, and its bound.
        rate: error rate in healthy runs, and its assumptions.
        source: origin of the statistic or the bound.
        by_engine: also computed for each engine alone (``Finding.engine``).
        detail: meaning of ``Finding.detail``, if it is set.
        mild: outcomes that healthy runs may have too; they support a cause but never raise an alarm.
        on_request: it has a result only if it was asked for; without one, a symptom counts by its other checks.
    """

    name: str
    title: str
    outcomes: tuple[str, ...]
    meaning: dict[str, str]
    on: str
    formula: str
    rate: str
    source: str
    by_engine: bool = False
    detail: str = ""
    mild: tuple[str, ...] = ()
    on_request: bool = False

    @property
    def healthy(self) -> str:
        """The outcome of a healthy run."""
        return self.outcomes[0]

    def alarms(self, outcome: str) -> bool:
        """Whether a healthy run does not have the outcome."""
        return outcome not in (self.healthy, UNKNOWN, *self.mild)


BET = "below ALPHA at any time, for any distribution (Ville): a betting test"
MEAN = "below ALPHA at any time, if means over sequences are normal; a mixture over effect sizes and first steps"
DETERMINISTIC = "none: deterministic"
LEVEL = "no guaranteed rate: a bound from a source or from healthy runs; no alarm in the healthy runs of the bench"
"""The four kinds of error rates."""
