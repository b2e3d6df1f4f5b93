"""Diagnoses a stored run, as of any of its steps."""

from __future__ import annotations

from pathlib import Path

from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.store import step_details
from rltop.backend.store.read import Reader, evaluating
from rltop.backend.store.schema import Unavailable


def diagnosis(path: Path, step: int | None = None) -> Verdict:
    """Return the verdict on a stored run.

    Args:
        path: a run directory or a file, as ``Reader`` takes.
        step: the step to diagnose; None: the last.

    Raises:
        StoreError: it can't be read.
        Unavailable: no such step is stored.
    """
    with evaluating(path), Reader(path) as reader:
        return diagnose(diagnosis_input(reader, step))


def diagnosis_input(reader: Reader, step: int | None = None) -> DiagnosisInput:
    """Return the input of a diagnosis up to a step, with engines and trainer as of then. Raises as ``diagnosis``."""
    until = None if step is None else reader.frame_of_step(step)
    if step is not None and until is None:
        raise Unavailable(f"no step {step} is stored in {reader.path}")
    snapshot = reader.snapshot(until)
    data = DiagnosisInput(
        snapshot.run,
        list(snapshot.steps.values()),
        snapshot.engines,
        snapshot.trainer,
        snapshot.events,
        list(snapshot.changes.values()),
        step_details.evidence_series(reader, until).stretches(),
    )
    try:
        return data if step is None else data.up_to(step)
    except ValueError as error:
        raise Unavailable(str(error)) from error
