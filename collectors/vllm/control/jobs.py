"""What commands do on the live objects of one engine core: one job for each subject."""

from __future__ import annotations

from typing import Any, Protocol

from rltop.collectors.contract import probes
from rltop.collectors.contract.actions import BY_VERB
from rltop.collectors.vllm.control.switchboard import Switchboard, drain
from rltop.collectors.vllm.engine_core import SwitchError, evict_unheld, no_boundary, split_hashed
from rltop.collectors.vllm.patches import PAUSE, fault_of, unseen

PAUSED = BY_VERB["pause"].value
RUNNING = BY_VERB["resume"].value
PAUSED_BY_CALLER = "paused by its caller"
"""What the generation reads while a pause holds that is not ours."""


class Job(Protocol):
    """One subject of commands on one engine."""

    def refresh(self) -> None:
        """Read anew what only the engine's thread may read."""

    def read(self) -> str | None:
        """What it is now. From any thread."""

    def detail(self) -> str:
        """Which form of it, where there are several. From any thread."""

    def stands(self, value: str, *, strict: bool) -> bool:
        """Whether there is nothing to do for ``value``. From any thread."""

    def obstacle(self, value: str, *, strict: bool) -> str:
        """Why it can't become ``value``; empty if it can. From any thread."""

    def waits(self, value: str) -> str:
        """What to wait for before it becomes ``value``; empty for nothing. From any thread."""

    def perform(self, value: str, *, strict: bool) -> None:
        """Do it, whole or not at all. On the engine's thread, between two steps.

        Raises:
            SwitchError: it did not take; all is as before.
            HostFailure: see ``switches.drain``.
        """

    def note(self) -> str:
        """What there is to say of it when it was done; often empty."""


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

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002 - a switch may be used either way, or not
        """See ``Job``."""
        return self._switch.obstacle(strict)

    def waits(self, value: str) -> str:  # noqa: ARG002
        """Weight updates are waited for in any case."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:
        """See ``Job``."""
        self._board.flip(self._flag, value, strict=strict)

    def note(self) -> str:
        """See ``Job``."""
        return self._switch.note()


class CacheJob:
    """The prefix cache, to be flushed as far as no request holds it."""

    def __init__(self, board: Switchboard) -> None:
        self._engine = board.engine
        self._caching = board.switches["prefix_caching"]
        self._note = ""

    def refresh(self) -> None:
        """All of it can be read from any thread."""

    def read(self) -> str | None:
        """How many blocks can be hit."""
        if self._caching.obstacle():
            return None
        unheld, held = split_hashed(self._engine.scheduler.kv_cache_manager)
        return f"{len(unheld) + held} blocks"

    def detail(self) -> str:
        """It has one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """It is flushed as often as it is asked for."""
        return False

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """What stands against evicting single blocks stands against the switch of the cache too."""
        return self._caching.obstacle()

    def waits(self, value: str) -> str:  # noqa: ARG002
        """For nothing of its own."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:  # noqa: ARG002
        """Evict; what requests hold stays theirs."""
        drain(self._engine)
        evicted, held = evict_unheld(self._engine.scheduler.kv_cache_manager)
        left = f"{held} that requests hold stay, and can be hit until those end" if held else "none is left"
        self._note = f"{evicted} blocks evicted, {left}"

    def note(self) -> str:
        """What was evicted, and what remains."""
        return self._note


class GenerationJob:
    """Whether the engine generates, and whose pause it is if not.

    The scheduler's pause state says that it is paused, not by whom: ``on_set`` hears everybody who sets it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._ours = False

    def on_set(self, _result: Any, pause_state: Any) -> None:  # noqa: ARG002 - the host's names
        """``Scheduler.set_pause_state(pause_state)``, by anybody."""
        self._ours = False

    def refresh(self) -> None:
        """All of it can be read from any thread."""

    def read(self) -> str | None:
        """Running, paused by us, or paused by somebody else."""
        state = getattr(self._engine.scheduler, "pause_state", None)
        if state is None:
            return None
        if state.name == "UNPAUSED":
            return RUNNING
        return PAUSED if self._ours else PAUSED_BY_CALLER

    def detail(self) -> str:
        """It has one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """Whether it is so already, by us."""
        return self.read() == value

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """It can't be told who paused; ranks that step together pause together; or the pause is somebody else's."""
        engine = self._engine
        if reason := no_boundary(engine):
            return reason
        if value == PAUSED and (fault := unseen(engine)):  # to go on is always right
            return f"it could not be told whether a request is lost: {fault}"
        if self.read() is None:
            return "this vLLM's scheduler has no pause"
        if fault := fault_of(PAUSE, engine.scheduler):
            return f"whose pause it is can't be told on this vLLM: {fault}"
        if hasattr(engine, "dp_group"):
            return "data-parallel ranks that step together pause only together, by pause_generation()"
        if value == RUNNING and self.read() == PAUSED_BY_CALLER:
            return "generation was paused by the trainer or another client, and is theirs to resume"
        return ""

    def waits(self, value: str) -> str:
        """A pause of ours on top of somebody else's would end with theirs."""
        if value == PAUSED and self.read() == PAUSED_BY_CALLER:
            return "waits for the trainer or client that paused generation to resume it"
        return ""

    def perform(self, value: str, *, strict: bool) -> None:  # noqa: ARG002
        """Finish the batches in flight, then keep every request where it is, or go on."""
        drain(self._engine)
        scheduler = self._engine.scheduler
        kinds = type(scheduler.pause_state)
        scheduler.set_pause_state(kinds["PAUSED_ALL" if value == PAUSED else "UNPAUSED"])
        self._ours = value == PAUSED
        if self.read() != value:
            scheduler.set_pause_state(kinds["UNPAUSED" if value == PAUSED else "PAUSED_ALL"])
            self._ours = value != PAUSED
            raise SwitchError(f"the engine reads {self.read()} after it was told to be {value}")

    def note(self) -> str:
        """Nothing to add."""
        return ""


class ProbeJob:
    """What all commands must know of the probe's: it has nothing to read, and waits for nothing of its own."""

    def refresh(self) -> None:
        """There is nothing to read."""

    def read(self) -> str | None:
        """See ``refresh``."""
        return None

    def detail(self) -> str:
        """It has one form."""
        return ""

    def stands(self, value: str, *, strict: bool) -> bool:  # noqa: ARG002
        """It is done as often as it is asked for."""
        return False

    def obstacle(self, value: str, *, strict: bool) -> str:  # noqa: ARG002
        """It depends on the probe: ``Prober.obstacle``."""
        return ""

    def waits(self, value: str) -> str:  # noqa: ARG002
        """For nothing of its own."""
        return ""

    def perform(self, value: str, *, strict: bool) -> None:
        """It is begun and carried on by ``Prober``."""

    def note(self) -> str:
        """Nothing to add."""
        return ""


def jobs_of(board: Switchboard, generation: GenerationJob) -> dict[str, Job]:
    """The job for each subject of this engine's commands."""
    return {
        **{flag: FlagJob(board, flag) for flag in board.switches},
        BY_VERB["flush_cache"].subject: CacheJob(board),
        BY_VERB["pause"].subject: generation,
        probes.SUBJECT: ProbeJob(),
    }
