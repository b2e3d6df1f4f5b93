"""What was wrong with a stored run, as of any of its steps."""

from __future__ import annotations

from pathlib import Path

from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.store import step_details as store_samples
from rltop.backend.store.read import Reader


def diagnosis(path: Path, step: int | None = None) -> Verdict:
    """The verdict on a stored run.

    Args:
        path: a run directory or a file, as ``Reader`` takes.
        step: as of this one; None: the last.

    Raises:
        StoreError: it can't be read.
        ValueError: no such step is stored.
    """
    with Reader(path) as reader:
        return diagnose(case(reader, step))


def case(reader: Reader, step: int | None = None) -> DiagnosisInput:
    """What is stored of a run up to a step: engines and trainer as they were then. Raises as ``diagnosis``."""
    until = None if step is None else reader.frame_of_step(step)
    if step is not None and until is None:
        raise ValueError(f"no step {step} is stored in {reader.path}")
    picture = reader.picture(until)
    found = DiagnosisInput(
        picture.run,
        list(picture.steps.values()),
        picture.engines,
        picture.trainer,
        picture.events,
        list(picture.changes.values()),
        store_samples.course(reader, until).stretches(),
    )
    return found if step is None else found.up_to(step)
