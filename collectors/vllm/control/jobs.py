"""Jobs: how commands act on the live objects of an engine core. One job per subject."""

from __future__ import annotations

from typing import Any, Protocol

from rltop.collectors.contract import probes
from rltop.collectors.contract.actions import BY_VERB
from rltop.collectors.vllm.control.switchboard import Switchboard, drain
from rltop.collectors.vllm.engine_core import SwitchError, evict_unreferenced, hashed_blocks, why_no_boundary
from rltop.collectors.vllm.in_process import is_in_process
from rltop.collectors.vllm.patches import PAUSE, why_steps_unseen, why_unusable

PAUSED = BY_VERB["pause"].value
RUNNING = BY_VERB["resume"].value
PAUSED_BY_CALLER = "paused by its caller"
"""Value of the generation while another caller's pause is in effect."""


class Job(Protocol):
    """One subject of commands on one engine."""

    def refresh(self) -> None:
        """Re-read what only the engine's thread may read."""

    def read(self) -> str | None:
        """The current value; None if there is none to read. From any thread."""

    def detail(self) -> str:
        """Form of the value, if there are several; else empty. From any thread."""

    def stands(self, value: str, *, strict: bool) -> bool:
        """Whether ``value`` is in effect already. From any thread."""

    def obstacle(self, value: str, *, strict: bool) -> str:
        """Why ``value`` can't be set; empty if it can. From any thread."""

    def waits(self, value: str) -> str:
        """Why setting ``value`` has to wait; empty if it doesn't. From any thread."""

    def perform(self, value: str, *, strict: bool) -> None:
        """Set ``value``, completely or not at all. On the engine's thread, between two steps.

        Raises:
            SwitchError: it did not take effect; the previous state is restored.
            HostFailure: see ``switchboard.drain``.
        """

    def note(self) -> str:
        """Additional information after ``perform``; may be empty."""


class FlagJob:
    """A flag of the switchboard."""

    def __init__(self, board: Switchboard, flag: str) -> None:
        self._board = board
        self._flag = flag
        self._switch = board.switches[flag]

    def refresh(self) -> None:
        """See ``Job``."""
        self._switch.refresh()

    def read(self) -> str | None:
        """See ``Job``."""
        return self._switch.read()

    def detail(self) -> str:
        """See ``Job``."""
        return self._switch.detail()

    def stands(self, value: str, *, strict: bool) -> bool:
        """See ``Job``."""
        return self._switch.stands(value, strict)

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002 - preconditions don't depend on it
        """See ``Job``."""
        return self._switch.obstacle(strict)

    def waits(self, value: str) -> str:  # noqa: ARG002
        """Nothing: the executor waits for weight updates anyway."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:
        """See ``Job``."""
        self._board.flip(self._flag, value, strict=strict)

    def note(self) -> str:
        """See ``Job``."""
        return self._switch.note()


class CacheJob:
    """The prefix cache: flushes the blocks that no request references."""

    def __init__(self, board: Switchboard) -> None:
        self._engine = board.engine
        self._caching = board.switches["prefix_caching"]
        self._note = ""

    def refresh(self) -> None:
        """Nothing to do: everything can be read from any thread."""

    def read(self) -> str | None:
        """The number of blocks that can be hit."""
        if self._caching.obstacle():
            return None
        unreferenced, referenced = hashed_blocks(self._engine.scheduler.kv_cache_manager)
        return f"{len(unreferenced) + referenced} blocks"

    def detail(self) -> str:
        """Empty: there is one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """Never: every command flushes."""
        return False

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """The obstacles of switching the cache: those also prevent evicting single blocks."""
        return self._caching.obstacle()

    def waits(self, value: str) -> str:  # noqa: ARG002
        """Nothing."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:  # noqa: ARG002
        """Evict the blocks that no request references."""
        drain(self._engine)
        evicted, referenced = evict_unreferenced(self._engine.scheduler.kv_cache_manager)
        left = f"{referenced} in use stay and can be hit until their requests end" if referenced else "none left"
        self._note = f"{evicted} blocks evicted, {left}"

    def note(self) -> str:
        """How many blocks were evicted, and how many remain."""
        return self._note


class GenerationJob:
    """Pauses and resumes generation, and tracks who paused it.

    The scheduler's pause state does not contain who set it, so ``on_set`` is called for every change of it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._ours = False

    def on_set(self, _result: Any, pause_state: Any) -> None:  # noqa: ARG002 - vLLM's names
        """``Scheduler.set_pause_state(pause_state)``, by any caller."""
        self._ours = False

    def refresh(self) -> None:
        """Nothing to do: everything can be read from any thread."""

    def read(self) -> str | None:
        """Running, paused by rltop, or paused by another caller."""
        state = getattr(self._engine.scheduler, "pause_state", None)
        if state is None:
            return None
        if state.name == "UNPAUSED":
            return RUNNING
        return PAUSED if self._ours else PAUSED_BY_CALLER

    def detail(self) -> str:
        """Empty: there is one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """Whether generation is in this state already, paused by rltop."""
        return self.read() == value

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """Missing patch points, ranks in lockstep, a caller that would wait, or a pause by another caller."""
        engine = self._engine
        if reason := why_no_boundary(engine):
            return reason
        if value == PAUSED and is_in_process(engine):
            return "its caller would wait in generate() until the pause ends, and its process does nothing else"
        if value == PAUSED and (fault := why_steps_unseen(engine)):  # resuming loses nothing
            return f"lost requests could not be counted: {fault}"
        if self.read() is None:
            return "this vLLM's scheduler has no pause"
        if fault := why_unusable(PAUSE, engine.scheduler):
            return f"who paused generation is unknown on this vLLM: {fault}"
        if hasattr(engine, "dp_group"):
            return "data-parallel ranks in lockstep pause only together, by pause_generation()"
        if value == RUNNING and self.read() == PAUSED_BY_CALLER:
            return "generation was paused by the trainer or another client, which has to resume it"
        return ""

    def waits(self, value: str) -> str:
        """For another caller's pause: one of rltop on top of it would end together with it."""
        if value == PAUSED and self.read() == PAUSED_BY_CALLER:
            return "waits for the trainer or client that paused generation to resume it"
        return ""

    def perform(self, value: str, *, strict: bool) -> None:  # noqa: ARG002
        """Finish the batches in flight, then pause with all requests in place, or resume."""
        drain(self._engine)
        scheduler = self._engine.scheduler
        kinds = type(scheduler.pause_state)
        scheduler.set_pause_state(kinds["PAUSED_ALL" if value == PAUSED else "UNPAUSED"])
        self._ours = value == PAUSED
        if self.read() != value:
            scheduler.set_pause_state(kinds["UNPAUSED" if value == PAUSED else "PAUSED_ALL"])
            self._ours = value != PAUSED
            raise SwitchError(f"the engine reads {self.read()} after it was set to {value}")

    def note(self) -> str:
        """Empty."""
        return ""


class ProbeJob:
    """The subject of probe commands, which ``Prober`` executes: no value, nothing to wait for."""

    def refresh(self) -> None:
        """Nothing to do: there is no value."""

    def read(self) -> str | None:
        """None: there is no value."""
        return None

    def detail(self) -> str:
        """Empty: there is one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """Never: every command starts a probe."""
        return False

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """Empty: ``Prober.obstacle`` decides."""
        return ""

    def waits(self, value: str) -> str:  # noqa: ARG002
        """Nothing."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:
        """Nothing: ``Prober`` executes it."""

    def note(self) -> str:
        """Empty."""
        return ""


def jobs_of(board: Switchboard, generation: GenerationJob) -> dict[str, Job]:
    """The job for each subject of commands."""
    return {
        **{flag: FlagJob(board, flag) for flag in board.switches},
        BY_VERB["flush_cache"].subject: CacheJob(board),
        BY_VERB["pause"].subject: generation,
        probes.SUBJECT: ProbeJob(),
    }
