"""What a verdict is made from: everything that is kept of a run, up to a step. Pure data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rltop.backend import view
from rltop.backend.diagnosis.course import Stretch


@dataclass(frozen=True, slots=True)
class Case:
    """A run, as a hub or a store has it.

    Attributes:
        run: its name.
        steps: measured steps, oldest first.
        engines, trainer: as last heard of, with fingerprints, flags, facts and what differs.
        events, changes: what happened, oldest first.
        evidence: of the steps, oldest first; the older ones merged.
    """

    run: str
    steps: Sequence[view.Step]
    engines: Mapping[str, view.Engine] = field(default_factory=dict)
    trainer: view.Trainer = view.Trainer()  # noqa: RUF009 - frozen
    events: Sequence[view.Event] = ()
    changes: Sequence[view.Change] = ()
    evidence: Sequence[Stretch] = ()
