"""``Recorder``: a trainer collector that is made on first use and counts the steps that its host does not number."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rltop.collectors import TrainerCollector


@dataclass(frozen=True)
class Ranks:
    """Place of this process in the training job: see ``TrainerCollector``."""

    rank: int = 0
    world_size: int = 1
    replica: int = 0


def torch_ranks() -> Ranks:
    """Of torch.distributed; a job of one process if it is not initialised."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


class Recorder:
    """Sends the rows and steps of one training process.

    The collector is made with the first rows or the first step, when the process knows its rank. Call it from one
    thread at a time.

    Args:
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        ranks: called once, when the collector is made.
        facts: see ``TrainerCollector``.

    Attributes:
        step: number of the open step, from 0.
        version: of the weights that are being updated: the steps that ended, unless ``end_step`` states another.
    """

    def __init__(
        self,
        run: str | None = None,
        *,
        ranks: Callable[[], Ranks] = torch_ranks,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.step = 0
        self.version = 0
        self._run = run
        self._ranks = ranks
        self._facts = dict(facts or {})
        self._collector: TrainerCollector | None = None

    @property
    def collector(self) -> TrainerCollector:
        """The collector of this process, made on first use. Raises ``ValueError`` as its constructor does."""
        if self._collector is None:
            from rltop.collectors import TrainerCollector  # not in processes that never send

            at = self._ranks()
            self._collector = TrainerCollector(self._run, at.rank, at.world_size, replica=at.replica, facts=self._facts)
        return self._collector

    def facts(self, **facts: Any) -> None:
        """State facts of the trainer's configuration, before or after the collector is made."""
        self._facts |= facts
        if self._collector is not None:
            self._collector.facts(**facts)

    def rows(self, **arrays: Any) -> None:
        """Record rows of the open step: the arguments of ``TrainerCollector.sequences`` but ``step``.

        Raises:
            ValueError: an argument has the wrong shape, dtype or value.
        """
        self.collector.sequences(self.step, **{"policy_version": self.version, **arrays})

    def end_step(self, metrics: Mapping[str, Any] | None = None, version: int | None = None) -> None:
        """Close the open step. ``version``: of the weights after it, if not one more than before."""
        self.version = self.version + 1 if version is None else version
        self.collector.step(self.step, policy_version=self.version, metrics=numbers(metrics or {}))
        self.step += 1

    def at(self, step: int, version: int) -> None:
        """State the number of the open step and the version that it updates, where the framework counts them."""
        self.step, self.version = step, version

    def close(self) -> None:
        """Send what is queued and disconnect."""
        if self._collector is not None:
            self._collector.close()


def numbers(metrics: Mapping[str, Any], limit: int = 64) -> dict[str, float]:
    """The first ``limit`` finite numbers of a framework's log."""
    found = {
        name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)
    }
    return dict(list(found.items())[:limit])
