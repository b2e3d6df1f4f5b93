"""Joins the reports of all ranks about what was loaded: an update counts once, however many ranks load it."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, NamedTuple

from rltop.collectors.vllm.weight_journal import JOURNAL
from rltop.collectors.vllm.workers.all_ranks import reachable
from rltop.collectors.vllm.workers.weight_watch import REPORT, Report, WeightWatch, watch_here


class Loaded(NamedTuple):
    """What happened to the weights since it was asked last, on all ranks together.

    Attributes:
        loaded: some rank loaded something, or has another model.
        whole: with it, every rank has loaded all its parameters.
        repeats: some rank loaded a tensor that it had loaded before in this update.
        replaced: some rank has another model.
        failed: the error of a load that raised on some rank; empty if none did.
        stated: versions that the framework stated, in the workers or in this process.
    """

    loaded: bool = False
    whole: bool = False
    repeats: bool = False
    replaced: bool = False
    failed: str = ""
    stated: tuple[int, ...] = ()


class RankWeights:
    """Asks the workers of one engine. On the engine's thread only.

    Attributes:
        journal: number of the last entry of this process's journal that was read.
        pending: whether a rank still compares values on its device: ask again, without ``compares``.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._calls = itertools.count(1)
        self._statements: dict[int, int] = {}  # by process
        self.journal = JOURNAL.number
        self.pending = False
        self._answer = self._all_answer()
        self._here: WeightWatch | None = None  # of a worker in this process
        self.ask(0)  # begins to watch; earlier statements are ignored

    def ask(self, step: int, compares: bool = True) -> Loaded:
        """Ask every rank what happened since the last call. Never raises, and waits for no device.

        After a call failed, vLLM returns earlier answers of some ranks. Those are left out: the ranks before the one
        that failed answer for them.
        """
        call, answers = next(self._calls), []
        if self._answer:
            with contextlib.suppress(Exception):  # executors may raise anything; then calls count by name only
                answers = self._engine.model_executor.collective_rpc(REPORT, args=(call, step, compares))
        return self._joined(
            [a for a in answers if isinstance(a, dict) and a.get("call") == call and not a.get("fault")]
        )

    def look(self, step: int) -> Loaded:
        """The same without a call: of a worker in this process, if there is one, and of this process's statements."""
        return self._joined([] if self._here is None else [self._here.report(step)])

    def close(self) -> None:
        """Watch the worker in this process no longer; workers elsewhere end with the engine."""
        if self._here is not None:
            self._here.stop()

    def _all_answer(self) -> bool:
        try:
            return reachable(self._engine)
        except Exception:  # noqa: BLE001 - as in ``ask``
            return False

    def _joined(self, reports: list[Report]) -> Loaded:
        self.journal = JOURNAL.number
        if self._here is None:
            self._here = next((found for report in reports if (found := watch_here(report))), None)
        self.pending = any(report.get("pending") for report in reports)
        of_loaded = [report for report in reports if report["loaded"] or report["replaced"]]
        return Loaded(
            bool(of_loaded),
            all(report["whole"] for report in reports),
            any(report["repeats"] for report in of_loaded),
            any(report["replaced"] for report in of_loaded),
            next((report["failed"] for report in of_loaded if report["failed"]), ""),
            self._new_versions(reports),
        )

    def _new_versions(self, reports: list[Report]) -> tuple[int, ...]:
        """Versions stated since the last call, in any process that this engine knows of."""
        versions = []
        for pid, number, version in (*(report["stated"] for report in reports), JOURNAL.statement()):
            if number > self._statements.get(pid, 0):
                versions.append(version)
            self._statements[pid] = number
        return tuple(dict.fromkeys(versions))
