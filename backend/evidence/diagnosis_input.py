"""The input of a diagnosis: the state and evidence of a run up to a step. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from rltop.backend import api
from rltop.backend.evidence.series import Stretch


def last_mixed(steps: Iterable[api.Step], step: int) -> int:
    """The last of ``steps`` that may have trained on tokens sampled before ``step`` closed.

    A token of lag n was sampled n steps before it is trained on.
    """
    return max((one.step for one in steps if one.step - (one.values.get("lag_max") or 0) <= step), default=step)


@dataclass(frozen=True, slots=True)
class DiagnosisInput:
    """A run, from a hub or a store.

    Attributes:
        run: its name.
        steps: measured steps, oldest first.
        engines, trainer: their latest state, with fingerprints, flags, facts and mismatches.
        events, changes: oldest first.
        evidence: by stretches of steps, oldest first.
    """

    run: str
    steps: Sequence[api.Step]
    engines: Mapping[str, api.Engine] = field(default_factory=dict)
    trainer: api.Trainer = api.Trainer()  # noqa: RUF009 - frozen
    events: Sequence[api.Event] = ()
    changes: Sequence[api.Change] = ()
    evidence: Sequence[Stretch] = ()

    @property
    def present(self) -> dict[str, api.Engine]:
        """The connected engines; those of a run that is over are all it had."""
        return {name: one for name, one in self.engines.items() if one.health != "gone"} or dict(self.engines)

    def sampled_after(self, step: int) -> DiagnosisInput:
        """The run with the evidence of steps whose tokens were all sampled after ``step`` closed."""
        after = last_mixed(self.steps, step)
        return replace(self, evidence=[stretch for stretch in self.evidence if stretch.first > after])

    def up_to(self, step: int) -> DiagnosisInput:
        """The run as of ``step``: flags as they were then, other facts as in the latest state.

        Raises:
            ValueError: the step is not kept.
        """
        steps = [one for one in self.steps if one.step <= step]
        if not steps or steps[-1].step != step:
            known = f"{self.steps[0].step} to {self.steps[-1].step}" if self.steps else "none"
            raise ValueError(f"step {step} is not kept; kept steps: {known}")
        return replace(
            self,
            steps=steps,
            engines={name: self._with_flags_of(engine, step) for name, engine in self.engines.items()},
            events=[event for event in self.events if event.step is None or event.step <= step],
            changes=[change for change in self.changes if change.step is None or change.step < step],
            evidence=[stretch for stretch in self.evidence if stretch.last <= step],
        )

    def _with_flags_of(self, engine: api.Engine, step: int) -> api.Engine:
        """The engine with its flags as of ``step``, and with what the refit guard found until then."""
        flags = dict(engine.flags)
        for change in reversed(self.changes):
            since = change.step is not None and change.step >= step and change.engine == engine.id
            if since and change.verb == "set" and api.changed_engine(change) and change.flag in flags:
                flags[change.flag] = msgspec.structs.replace(flags[change.flag], value=change.old)
        refit = engine.refit if engine.refit is not None and (engine.refit.since_step or 0) <= step else None
        changed = flags != engine.flags or refit is not engine.refit
        return msgspec.structs.replace(engine, flags=flags, refit=refit) if changed else engine
