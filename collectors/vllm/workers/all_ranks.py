"""The engine's side of what lives in its workers: all ranks alike, or all as before.

A rank without the objects of a flag (of a pipeline, every stage but the last has no head and no sampler in use) is not
applicable: it neither counts as different nor blocks a switch, and what is read comes from the ranks that have them.
"""

from __future__ import annotations

import itertools
from typing import Any

from rltop.collectors.vllm.workers.one_rank import READ, WRITE, Answer


def reachable(engine: Any) -> bool:
    """Whether every worker has our methods: asked by a builtin, which no worker can fail to find.

    A call that fails on one rank leaves the answers of the others in vLLM's queues, where the next call would take
    them for its own.
    """
    return all(engine.model_executor.collective_rpc(hasattr, args=(READ,)))


_marks = itertools.count(1)


def in_step(engine: Any) -> bool:
    """Whether every rank's answer is the one to this call: each hands back a number of ours, by a builtin as above."""
    mark = next(_marks)
    try:
        answers = engine.model_executor.collective_rpc(getattr, args=("rltop_no_such_attribute", mark))
    except RuntimeError:
        return False  # the failure of an earlier call: this one can't fail
    return all(answer == mark for answer in answers)


class Workers:
    """The last answers of all ranks. ``refresh`` and ``write`` on the engine's thread only; all else from any thread.

    Attributes:
        fault: why the ranks can't be asked; empty if they can.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._answers: list[dict[str, Answer]] = []
        self.fault = "not asked yet"

    def refresh(self) -> None:
        """Ask all ranks. Never raises: a worker without our methods is an answer."""
        try:
            if self.fault and not reachable(self._engine):
                raise AttributeError(f"the collector is not in every worker: no {READ}")
            if not in_step(self._engine):
                raise RuntimeError("a call failed on a rank, and vLLM takes each rank's last answer for the next one's")
            self._answers = self._engine.model_executor.collective_rpc(READ)
            self.fault = "" if self._answers else "no worker answered"
        except Exception as fault:  # noqa: BLE001 - whatever an executor raises
            self._answers, self.fault = [], f"{type(fault).__name__}: {fault}"

    def read(self, name: str) -> str | None:
        """The value of all ranks that have it; ``mixed`` where those differ."""
        values = {answer["value"] for answer in self._of(name)}
        return "mixed" if len(values) > 1 else next(iter(values), None)

    def write(self, name: str, value: str, extra: Any = None) -> str:
        """Have all ranks set ``name``; where one does not, all go back. Returns what went wrong."""
        old = self.read(name)
        failed = self._set(name, value, extra)
        if not failed and self.read(name) == value:
            return ""
        if old is not None:
            self._set(name, old, extra)
        return failed or "the ranks did not all take it"

    def _set(self, name: str, value: str, extra: Any) -> str:
        answers: list[Answer] = self._engine.model_executor.collective_rpc(WRITE, args=(name, value, extra))
        self.refresh()
        return "; ".join(f"rank {rank}: {a['error']}" for rank, a in enumerate(answers) if a["error"])

    def differing(self) -> str:
        """The flags whose value differs from rank to rank; empty if none does."""
        names = self._answers[0] if self._answers else ()
        values = {name: [str(answer["value"]) for answer in self._of(name)] for name in names}
        return "; ".join(f"{name} {', '.join(of_one)}" for name, of_one in values.items() if len(set(of_one)) > 1)

    def lacking(self, name: str, need: str) -> str:
        """What the first rank found on which ``need`` of ``name`` does not hold; empty if it holds on all."""
        return next((answer["lacking"][need] for answer in self._of(name) if need in answer["lacking"]), "")

    def note(self, name: str) -> str:
        """Why a switch changes nothing, where it does not."""
        return next((answer["note"] for answer in self._of(name)), "")

    def facts(self) -> dict[str, str]:
        """Facts for the fingerprint, of all ranks."""
        found: dict[str, set[str]] = {}
        for answers in self._answers:
            for answer in filter(None, answers.values()):
                for name, fact in answer["facts"].items():
                    found.setdefault(name, set()).add(fact)
        return {name: ", ".join(sorted(values)) for name, values in found.items()}

    def _of(self, name: str) -> list[Answer]:
        """The answer of each rank on which the flag applies."""
        return [answers[name] for answers in self._answers if answers[name]]
