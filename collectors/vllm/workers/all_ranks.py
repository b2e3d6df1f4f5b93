"""Reads and writes flags that live in the workers: a switch succeeds on all ranks or is undone on all of them.

Ranks without the objects of a flag are skipped (only the last stage of a pipeline has a head and a sampler in use):
they neither count as different nor prevent a switch, and values are read from the other ranks.
"""

from __future__ import annotations

import itertools
from typing import Any

from rltop.collectors.vllm.workers.one_rank import READ, WRITE, Answer


def reachable(engine: Any) -> bool:
    """Whether every worker has the collector's methods. Calls a builtin, which exists in every worker.

    A call that fails on one rank would leave the answers of the others in vLLM's queues, and the next call would
    return them as its own.
    """
    return all(engine.model_executor.collective_rpc(hasattr, args=(READ,)))


_call_numbers = itertools.count(1)


def in_sync(engine: Any) -> bool:
    """Whether every rank answers this call, and not an earlier one: each returns a unique number, by a builtin."""
    number = next(_call_numbers)
    try:
        answers = engine.model_executor.collective_rpc(getattr, args=("rltop_no_such_attribute", number))
    except RuntimeError:
        return False  # the failure of an earlier call: this one can't fail
    return all(answer == number for answer in answers)


class Workers:
    """The last answers of all ranks. ``refresh`` and ``write`` on the engine's thread only, the rest from any thread.

    Attributes:
        fault: why the ranks can't be queried; empty if they can.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._answers: list[dict[str, Answer]] = []
        self.fault = "not queried yet"

    def refresh(self) -> None:
        """Query all ranks. Never raises: sets ``fault``."""
        try:
            if self.fault and not reachable(self._engine):
                raise AttributeError(f"the collector is not loaded in every worker: no {READ}")
            if not in_sync(self._engine):
                raise RuntimeError("a call failed on a rank, and vLLM returns each rank's previous answer")
            self._answers = self._engine.model_executor.collective_rpc(READ)
            self.fault = "" if self._answers else "no worker answered"
        except Exception as fault:  # noqa: BLE001 - executors may raise anything
            self._answers, self.fault = [], f"{type(fault).__name__}: {fault}"

    def read(self, name: str) -> str | None:
        """The value that all ranks with this flag have; ``mixed`` if they differ; None if none has it."""
        values = {answer["value"] for answer in self._of(name)}
        return "mixed" if len(values) > 1 else next(iter(values), None)

    def write(self, name: str, value: str, extra: Any = None) -> str:
        """Set ``name`` on all ranks; if one fails, restore all. Returns the error, empty on success."""
        old = self.read(name)
        failed = self._set(name, value, extra)
        if not failed and self.read(name) == value:
            return ""
        if old is not None:
            self._set(name, old, extra)
        return failed or "not all ranks have the new value"

    def _set(self, name: str, value: str, extra: Any) -> str:
        answers: list[Answer] = self._engine.model_executor.collective_rpc(WRITE, args=(name, value, extra))
        self.refresh()
        return "; ".join(f"rank {rank}: {a['error']}" for rank, a in enumerate(answers) if a["error"])

    def differing(self) -> str:
        """The flags whose values differ between ranks; empty if none does."""
        names = self._answers[0] if self._answers else ()
        values = {name: [str(answer["value"]) for answer in self._of(name)] for name in names}
        return "; ".join(f"{name} {', '.join(of_one)}" for name, of_one in values.items() if len(set(of_one)) > 1)

    def violation(self, name: str, precondition: str) -> str:
        """The finding of the first rank that violates a precondition of flag ``name``; empty if it holds on all."""
        return next((found for answer in self._of(name) if (found := answer["violated"].get(precondition))), "")

    def note(self, name: str) -> str:
        """Why a switch has no effect; empty if it has one."""
        return next((answer["note"] for answer in self._of(name)), "")

    def facts(self) -> dict[str, str]:
        """Facts of all ranks, for the fingerprint."""
        found: dict[str, set[str]] = {}
        for answers in self._answers:
            for answer in filter(None, answers.values()):
                for name, fact in answer["facts"].items():
                    found.setdefault(name, set()).add(fact)
        return {name: ", ".join(sorted(values)) for name, values in found.items()}

    def _of(self, name: str) -> list[Answer]:
        """The answers of the ranks that have the flag."""
        return [answers[name] for answers in self._answers if answers[name]]
