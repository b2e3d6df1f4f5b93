"""Whether a trainer that starts continues the run in this hub's store, or begins another under the same name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ADVICE = (
    "Nothing was overwritten. To continue a run, resume after its last step with the same facts; to keep runs apart, "
    "name them (run= or RLTOP_RUN)"
)


class RunContinuity:
    """Compares a trainer process with those that trained the stored steps.

    Args:
        steps: numbers of the stored steps.
        lives: by rank, the epoch of the process that trained them.
        facts: that the earlier trainer stated.
    """

    def __init__(
        self,
        steps: Iterable[int] = (),
        lives: Mapping[int, str] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        numbers = set(steps)
        self._first, self._last = min(numbers, default=0), max(numbers, default=-1)
        self._lives = dict(lives or {})
        self._facts = dict(facts or {})
        self._stated: dict[str, dict[str, str]] = {}

    def state(self, life: str, facts: Mapping[str, str]) -> None:
        """A trainer process states facts."""
        self._stated[life] = dict(facts)
        if life in self._lives.values():
            self._facts = dict(facts)

    def measured(self, step: int, lives: Mapping[int, str]) -> None:
        """A step is done, trained by these processes."""
        self._first = min(self._first, step) if self._last >= 0 else step
        self._last = max(self._last, step)
        self._lives |= lives
        for life in lives.values():
            self._facts = self._stated.get(life, self._facts)

    def break_at(self, rank: int, life: str, step: int) -> str | None:
        """Why a rank's process that trains ``step`` begins another run; None if it continues this one."""
        if self._last < 0 or self._lives.get(rank, life) == life:
            return None
        steps = f"the stored run has steps {self._first} to {self._last}"
        if step <= self._last:
            return f"a trainer started at step {step}, and {steps}"
        stated = self._stated.get(life, {})
        other = sorted(name for name in stated.keys() & self._facts.keys() if stated[name] != self._facts[name])
        return f"a trainer started with other facts ({', '.join(other)}), and {steps}" if other else None
