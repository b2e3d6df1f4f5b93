"""The switches of one engine: a flag of the table, its control, and what must hold, brought together.

A switch runs on the engine's own thread between two steps, with the batch queue drained, so that tokens of batches in
flight belong to the time before it; it is whole or undone; and what counts is the read-back.
"""

from __future__ import annotations

from typing import Any

from rltop.collectors.contract import preconditions as table
from rltop.collectors.contract.flags import FLAGS, PREEMPTION, Flag
from rltop.collectors.contract.wire import FlagState
from rltop.collectors.vllm.control.engine_checks import CHECKS
from rltop.collectors.vllm.control.flag_controls import CONTROLS, STRICT
from rltop.collectors.vllm.engine_core import CoreAccess, FlagControl, SwitchError, preempt_all
from rltop.collectors.vllm.patches import HostFailure


class Switch:
    """One flag on one engine core."""

    def __init__(self, flag: Flag, control: FlagControl, core: CoreAccess) -> None:
        self.flag = flag
        self._control = control
        self._core = core

    def refresh(self) -> None:
        """Read anew what only the engine's thread may read."""
        if "workers_answer" in self.flag.needs + self.flag.strict_needs:
            self._core.workers.refresh()

    def read(self) -> str | None:
        """The value, or None where the engine has no such thing. From any thread."""
        return self._control.read(self._core)

    def detail(self) -> str:
        """Which form of the value it is, where there are several. From any thread."""
        return self._control.detail(self._core)

    def obstacle(self, strict: bool = False) -> str:
        """Why it can't be switched on this engine now; empty if it can. From any thread."""
        if strict and not self.flag.strict:
            return f"{self.flag.name} has no strict form"
        way = strict or self.detail() == STRICT  # the way back takes the same steps
        for name in self.flag.needs + (self.flag.strict_needs if way else ()):
            if found := lacking(self._core, self.flag.name, name):
                need = table.BY_NAME[name]
                reason = need.reason.format(found)
                return f"{reason}; start the engine with {self.flag.launch}" if need.relaunch else reason
        return ""

    def stands(self, value: str, strict: bool = False) -> bool:
        """Whether a command for this value has nothing to do: what is strictly so is so."""
        return self.read() == value and (not strict or self.detail() in {"", STRICT})

    def took(self, value: str, strict: bool) -> bool:
        """Whether it reads as it was just written, form and all."""
        return self.read() == value and (not self.detail() or (self.detail() == STRICT) == strict)

    def write(self, value: str, strict: bool = False) -> None:
        """Set it, whole or not at all. On the engine's thread, the batch queue drained."""
        self._control.write(self._core, value, strict)

    def note(self) -> str:
        """What else there is to say of an applied switch; often empty."""
        return self._control.note(self._core)


def lacking(core: CoreAccess, flag: str, need: str) -> str:
    """What was found against ``need``, on the engine core or on a rank; empty if it holds."""
    check = CHECKS.get(need)
    return check(core) if check is not None else core.workers.lacking(flag, need)


class Switchboard:
    """All switches of one engine core, by the name of their flag.

    Made before the engine takes work: it asks the workers.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.core = CoreAccess(engine)
        self.switches = {flag.name: Switch(flag, CONTROLS[flag.name], self.core) for flag in FLAGS}

    def states(self) -> dict[str, FlagState]:
        """Every flag as it stands. Only reads, from any thread."""
        found = {}
        for name, switch in self.switches.items():
            obstacle = switch.obstacle()
            found[name] = FlagState(switch.read(), not obstacle, obstacle, switch.detail())
        return found

    def flip(self, flag: str, value: str, *, strict: bool = False) -> None:
        """Drain, switch, read back.

        Raises:
            SwitchError: it did not take, or can't be done in the strict form; the old value is back in place.
            HostFailure: see ``drain``.
        """
        switch = self.switches[flag]
        drain(self.engine)
        old, old_detail = switch.read(), switch.detail()
        if strict and (obstacle := switch.obstacle(strict=True)):
            raise SwitchError(obstacle)
        try:
            switch.write(value, strict)
            switch.refresh()
            if not switch.took(value, strict):
                raise SwitchError(f"the engine still reads {switch.read()} {switch.detail()}".rstrip())
        except Exception:
            switch.refresh()
            if old is not None and (switch.read(), switch.detail()) != (old, old_detail):
                switch.write(old, old_detail == STRICT)
            raise

    def at_boundary(self) -> None:
        """Between two steps: reset the cache for an update that asks for it, if every running request survives that.

        Raises:
            HostFailure: see ``drain``.
        """
        policy = self.core.policy
        if not policy.due:
            return
        policy.due = False
        drain(self.engine)
        found = ((table.BY_NAME[name], lacking(self.core, "update_clears_cache", name)) for name in PREEMPTION)
        policy.skipped = next((need.reason.format(fault) for need, fault in found if fault), "")
        if not policy.skipped:
            try:
                preempt_all(self.engine)
            except Exception as error:  # noqa: BLE001 - told; the boundary is there for the next update too
                policy.skipped = str(error)

    def facts(self) -> dict[str, str]:
        """What the switches know of the engine, for the fingerprint."""
        return self.core.workers.facts() | self.core.policy.facts()


def drain(engine: Any) -> None:
    """Finish the batches in flight and schedule none, by the engine's own step.

    Raises:
        HostFailure: the engine's own code raised; its batch is gone, so the engine must know.
    """
    scheduler = engine.scheduler
    shadowed = vars(scheduler).get("has_requests")
    scheduler.has_requests = lambda: False
    try:
        while getattr(engine, "batch_queue", None):
            engine._process_engine_step()
    except Exception as error:
        raise HostFailure(error) from error
    finally:
        if shadowed is None:
            del scheduler.has_requests
        else:
            scheduler.has_requests = shadowed
