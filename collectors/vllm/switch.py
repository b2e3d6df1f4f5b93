"""What a switch is, and what several of them need."""

from __future__ import annotations

from typing import Any, Protocol

from rltop.collectors.flags import BY_NAME
from rltop.collectors.vllm.seams import BOUNDARY, fault_of


class SwitchError(RuntimeError):
    """The live objects did not do what the switch expected; everything is as it was before."""


class Switch(Protocol):
    """One flag on one engine core."""

    def refresh(self) -> None:
        """Read anew what only the engine's thread may read."""

    def read(self) -> str | None:
        """The value, or None where the engine has no such thing. From any thread."""

    def obstacle(self) -> str:
        """Why it can't be switched on this engine now; empty if it can. From any thread."""

    def write(self, value: str) -> None:
        """Set it, whole or not at all. On the engine's thread, the batch queue drained."""

    def note(self) -> str:
        """What else there is to say of an applied switch; often empty."""


def launch(flag: str, reason: str) -> str:
    """A refusal with the way out."""
    return f"{reason}; start the engine with {BY_NAME[flag].launch}"


def no_boundary(engine: Any) -> str:
    """Why nothing can be run between two steps of this engine; empty if it can."""
    if not hasattr(engine, "_process_engine_step"):
        return "an engine inside its caller's process has no step boundary; unset VLLM_ENABLE_V1_MULTIPROCESSING=0"
    if fault := fault_of(BOUNDARY, engine):
        return f"this vLLM has no step boundary that is known here: {fault}"
    return ""


def common_obstacle(engine: Any) -> str:
    """What stands against every switch of the scheduler."""
    if reason := no_boundary(engine):
        return reason
    if getattr(engine.scheduler, "connector", None) is not None:
        return "a KV connector is in use, whose own cache and transfers this switch does not cover"
    return ""
