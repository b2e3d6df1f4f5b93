"""The causes of faults, as data, by family, and the probes that distinguish them."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import CauseEntry
from rltop.backend.diagnosis.causes.health_causes import HEALTH
from rltop.backend.diagnosis.causes.inference_causes import PATH
from rltop.backend.diagnosis.causes.rollout_causes import RECORD
from rltop.backend.diagnosis.causes.semantic_causes import SEMANTIC
from rltop.backend.diagnosis.causes.trainer_causes import OBJECTIVE, TRAINER
from rltop.backend.diagnosis.causes.weight_causes import WEIGHTS

CAUSES: tuple[CauseEntry, ...] = RECORD + SEMANTIC + WEIGHTS + PATH + TRAINER + OBJECTIVE + HEALTH
"""All causes, in the order in which to check them; of causes that fit equally well the first is reported first."""

BY_ID: dict[str, CauseEntry] = {entry.id: entry for entry in CAUSES}


def confusable(entry: CauseEntry) -> list[str]:
    """Ids of the causes that can have the same symptoms: those that it names, and those that name it."""
    return [other.id for other in CAUSES if other.id in entry.confusable_with or entry.id in other.confusable_with]
