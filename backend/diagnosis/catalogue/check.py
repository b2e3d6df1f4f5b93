"""What is said of a test. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "unknown"
"""Outcome of every test where there is too little data, or none; ``Finding.text`` says what is missing."""

ALPHA = 1e-6
"""How often a healthy run shows an alarming outcome of one test, over all its steps and engines. With the tests of the
table together a healthy run errs less than once in 10,000."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question that is asked of a run.

    Attributes:
        name: as in ``Finding.test``.
        title: in a few words.
        outcomes: the words that it answers, the healthy one first.
        meaning: what each alarming outcome says, by outcome.
        on: what it is computed on.
        formula: the statistic, and what a healthy run has.
        rate: how often a healthy run gets an alarming outcome, and why.
        source: where it is from.
        by_engine: it is also asked of each engine alone (``Finding.engine``).
        detail: what ``Finding.detail`` holds, where it holds something.
        mild: outcomes that healthy runs may have too: they support a cause, and are none by themselves.
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

    @property
    def healthy(self) -> str:
        """The outcome of a healthy run."""
        return self.outcomes[0]

    def alarms(self, outcome: str) -> bool:
        """Whether a healthy run does not have it."""
        return outcome not in (self.healthy, UNKNOWN, *self.mild)


BET = "below ALPHA at any time, whatever the distribution (Ville): a betting test"
MEAN = "below ALPHA at any time, as far as means over sequences are normal; a mixture over effects and beginnings"
STATED = "none: it says what is there"
LEVEL = "a bound from a source or from healthy runs, not a level; no alarm in the healthy runs of the bench"
"""How often a test errs, of four kinds."""
