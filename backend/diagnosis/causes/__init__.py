"""What goes wrong in runs, as data: causes by family, and the probes that tell them apart."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import CauseEntry
from rltop.backend.diagnosis.causes.health_causes import HEALTH
from rltop.backend.diagnosis.causes.inference_causes import PATH
from rltop.backend.diagnosis.causes.rollout_causes import RECORD
from rltop.backend.diagnosis.causes.semantic_causes import SEMANTIC
from rltop.backend.diagnosis.causes.trainer_causes import OBJECTIVE, TRAINER
from rltop.backend.diagnosis.causes.weight_causes import WEIGHTS

CAUSES: tuple[CauseEntry, ...] = RECORD + SEMANTIC + WEIGHTS + PATH + TRAINER + OBJECTIVE + HEALTH
"""In the order in which a person looks; of causes that fit alike the first is told first."""

BY_ID: dict[str, CauseEntry] = {known.id: known for known in CAUSES}


def confusable(known: CauseEntry) -> list[str]:
    """Ids of the causes that can show the same signs: those that it names, and those that name it."""
    return [other.id for other in CAUSES if other.id in known.confusable_with or known.id in other.confusable_with]
