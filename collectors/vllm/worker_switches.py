"""The engine's side of the flags that live in its workers: all ranks alike, or all as before."""

from __future__ import annotations

from typing import Any

from rltop.collectors.vllm.switch import SwitchError, launch, no_boundary
from rltop.collectors.vllm.worker import READ, WRITE, Answer


class Workers:
    """The last answers of all ranks. ``refresh`` on the engine's thread only; all else from any thread."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._answers: list[dict[str, Answer]] = []
        self._fault = "the workers were not asked yet"

    def refresh(self) -> None:
        """Ask all ranks. Never raises: a worker without our methods is an answer."""
        try:
            self._answers = self._engine.model_executor.collective_rpc(READ)
            self._fault = "" if self._answers else "no worker answered"
        except Exception as fault:  # noqa: BLE001 - whatever an executor raises
            self._answers, self._fault = [], f"the workers can't be asked ({type(fault).__name__}: {fault})"

    def set(self, flag: str, value: str) -> list[Answer]:
        """Have all ranks set ``flag``, and keep what they read afterwards."""
        found: list[Answer] = self._engine.model_executor.collective_rpc(WRITE, args=(flag, value))
        self.refresh()
        return found

    def of(self, flag: str) -> list[Answer]:
        """The answer of each rank."""
        return [answers[flag] for answers in self._answers]

    def fault(self, flag: str) -> str:
        """What stands against switching ``flag`` on any rank; empty if nothing does."""
        if self._fault:
            return self._fault
        if len({answer["value"] for answer in self.of(flag)}) > 1:
            return "the ranks differ: " + ", ".join(str(answer["value"]) for answer in self.of(flag))
        return next((answer["obstacle"] for answer in self.of(flag) if answer["obstacle"]), "")

    def facts(self) -> dict[str, str]:
        """Facts for the fingerprint, of all ranks."""
        found: dict[str, set[str]] = {}
        for answers in self._answers:
            for answer in answers.values():
                for name, fact in answer["facts"].items():
                    found.setdefault(name, set()).add(fact)
        return {name: ", ".join(sorted(values)) for name, values in found.items()}


class WorkerSwitch:
    """A flag of the workers as a switch of the engine."""

    def __init__(self, flag: str, engine: Any, workers: Workers) -> None:
        self._flag = flag
        self._engine = engine
        self._workers = workers

    def refresh(self) -> None:
        """Read the live objects of all ranks."""
        self._workers.refresh()

    def read(self) -> str | None:
        """The value that all ranks have; ``mixed`` where they differ."""
        values = {answer["value"] for answer in self._workers.of(self._flag)}
        return "mixed" if len(values) > 1 else next(iter(values), None)

    def obstacle(self) -> str:
        """Launched in a way that this switch does not cover, or refused by a rank."""
        config = self._engine.vllm_config
        if reason := no_boundary(self._engine):
            return reason
        if getattr(config, "speculative_config", None) is not None:
            reason = "speculative decoding is on"
        elif config.parallel_config.pipeline_parallel_size > 1:
            reason = "not proven with pipeline parallelism"
        elif self._flag == "lm_head_fp32" and getattr(config, "lora_config", None) is not None:
            reason = "LoRA is on: the head goes through its base layer"
        reason = reason or self._workers.fault(self._flag)
        return launch(self._flag, reason) if reason else ""

    def write(self, value: str) -> None:
        """Set all ranks; where one fails, all go back."""
        old = self.read()
        answers = self._workers.set(self._flag, value)
        failed = [f"rank {rank}: {a['error']}" for rank, a in enumerate(answers) if a["error"]]
        if not failed and self.read() == value:
            return
        if old is not None:
            self._workers.set(self._flag, old)
        raise SwitchError("; ".join(failed) or "the ranks did not all take it")

    def note(self) -> str:
        """Why it changes nothing, where it does not."""
        return next((answer["note"] for answer in self._workers.of(self._flag)), "")
