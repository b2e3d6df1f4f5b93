"""Builds the frames that viewers and the store get, and applies them to the hub's snapshot. Pure.

The snapshot changes by frames alone, in the hub as in a viewer: a snapshot and the frames after it always give the
hub's current snapshot.
"""

from __future__ import annotations

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.hub.components import Components
from rltop.backend.store.aggregates import FrameAggregates
from rltop.backend.store.step_details import StepDetails


class FrameBuilder:
    """Collects finished steps and probe results for the next frame."""

    def __init__(self, hub: Components) -> None:
        self._hub = hub
        self._steps: list[api.Step] = []
        self._probes: list[ProbeResult] = []

    def add_step(self, step: api.Step) -> None:
        """Add a measured step to the next frame."""
        self._steps.append(step)

    def add_probe(self, result: ProbeResult) -> None:
        """Add the result of a probe to the next frame."""
        self._probes.append(result)

    def next_frame(self, now: float, *, heartbeat: bool = False) -> api.Frame | None:
        """Return the next frame, applied to the snapshot; None if nothing changed and no heartbeat is due."""
        hub, shown = self._hub, self._hub.snapshot
        frame = api.Frame(
            shown.epoch,
            shown.seq + 1,
            now,
            hub.engines.take_changed(),
            hub.trainer.take_changed(),
            self._steps,
            hub.log.take_new(),
            hub.commands.take_changed(),
            {name: count for name, count in hub.log.counters.items() if shown.counters.get(name, 0) != count},
            self._probes,
            hub.alarms.take_changed(),
        )
        self._steps, self._probes = [], []
        changed = frame.engines or frame.trainer or api.has_records(frame) or frame.counters
        if not (changed or frame.probes or heartbeat):
            return None
        shown.apply(frame)
        return frame

    def aggregates(self, frame: api.Frame) -> FrameAggregates:
        """Return the aggregates to store with ``frame``, the latest one. Call once per frame."""
        hub, steps = self._hub, self._hub.steps
        details = [
            StepDetails(
                n, steps.samples.of_step(n), steps.shapes.of_step(n), steps.parts.of_step(n), steps.cells.of_step(n),
                steps.series.of_step(n), steps.provenance.pop(n, None),
            )
            for n in (step.step for step in frame.steps)
        ]  # fmt: skip
        marks = hub.acknowledgements.take_marks(hub.sources, hub.snapshot.time, step_done=bool(frame.steps))
        return FrameAggregates(details, hub.effects.take_new_marks(), hub.effects.throughput.take_finished(), marks)

    def diagnosis_input(self) -> DiagnosisInput:
        """Return the input of a diagnosis as of now, including the steps of the next frame."""
        shown = self._hub.snapshot
        return DiagnosisInput(
            shown.run,
            list((shown.steps | {step.step: step for step in self._steps}).values()),
            dict(shown.engines),
            shown.trainer,
            list(shown.events),
            list(shown.changes.values()),
            self._hub.steps.series.stretches(),
        )

    def set_unstored(self, frames: int) -> None:
        """Set how many frames are not on disk, for the next frame."""
        self._hub.log.counters["unstored"] = frames

    def correct_unstored(self, frame: api.Frame, frames: int) -> None:
        """Set in ``frame``, the latest one, how many frames up to it are not on disk."""
        shown = self._hub.snapshot.counters
        if shown.get("unstored", 0) != frames:
            self._hub.log.counters["unstored"] = shown["unstored"] = frame.counters["unstored"] = frames
