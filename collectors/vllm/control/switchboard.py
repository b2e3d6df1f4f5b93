"""The switches of one engine: each combines a flag of the table with its control and preconditions.

A switch runs on the engine's thread between two steps with the batch queue drained, so that all tokens of batches in
flight were sampled before it. It completes or is undone; the result is what is read back from the live objects.
"""

from __future__ import annotations

from typing import Any

from rltop.collectors.contract import preconditions as table
from rltop.collectors.contract.flags import FLAGS, PREEMPTION, Flag
from rltop.collectors.contract.wire import FlagState
from rltop.collectors.vllm.control.engine_checks import CHECKS
from rltop.collectors.vllm.control.flag_controls import CONTROLS, STRICT
from rltop.collectors.vllm.engine_core import CoreAccess, FlagControl, SwitchError, preempt_all
from rltop.collectors.vllm.patches import HostFailure, run_step


class Switch:
    """One flag on one engine core."""

    def __init__(self, flag: Flag, control: FlagControl, core: CoreAccess) -> None:
        self.flag = flag
        self._control = control
        self._core = core

    def refresh(self) -> None:
        """Re-read what only the engine's thread may read."""
        if "workers_answer" in self.flag.preconditions + self.flag.strict_preconditions:
            self._core.workers.refresh()

    def read(self) -> str | None:
        """The value; None if the engine has no such setting. From any thread."""
        return self._control.read(self._core)

    def detail(self) -> str:
        """Form of the value, if there are several; else empty. From any thread."""
        return self._control.detail(self._core)

    def obstacle(self, strict: bool = False) -> str:
        """The first precondition that does not hold, as a reason; empty if all hold. From any thread."""
        if strict and not self.flag.strict:
            return f"{self.flag.name} has no strict form"
        needs_strict = strict or self.detail() == STRICT  # leaving the strict form takes the same steps
        for name in self.flag.preconditions + (self.flag.strict_preconditions if needs_strict else ()):
            if finding := violation(self._core, self.flag.name, name):
                precondition = table.BY_NAME[name]
                reason = precondition.reason.format(finding)
                return f"{reason}; start the engine with {self.flag.launch}" if precondition.relaunch else reason
        return ""

    def stands(self, value: str, strict: bool = False) -> bool:
        """Whether the value is in effect already. The strict form includes the plain one."""
        return self.read() == value and (not strict or self.detail() in {"", STRICT})

    def reads_as(self, value: str, strict: bool) -> bool:
        """Whether value and form read as they were just written."""
        return self.read() == value and (not self.detail() or (self.detail() == STRICT) == strict)

    def write(self, value: str, strict: bool = False) -> None:
        """Set it, completely or not at all. On the engine's thread, with the batch queue drained."""
        self._control.write(self._core, value, strict)

    def note(self) -> str:
        """Additional information about an applied switch; may be empty."""
        return self._control.note(self._core)


def violation(core: CoreAccess, flag: str, precondition: str) -> str:
    """The finding that violates a precondition, on the engine core or on a rank; empty if it holds."""
    check = CHECKS.get(precondition)
    return check(core) if check is not None else core.workers.violation(flag, precondition)


class Switchboard:
    """All switches of one engine core, by flag name.

    Create it before the engine takes requests: it queries the workers.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.core = CoreAccess(engine)
        self.switches = {flag.name: Switch(flag, CONTROLS[flag.name], self.core) for flag in FLAGS}

    def states(self) -> dict[str, FlagState]:
        """The state of every flag. Only reads, from any thread."""
        states = {}
        for name, switch in self.switches.items():
            obstacle = switch.obstacle()
            states[name] = FlagState(switch.read(), not obstacle, obstacle, switch.detail())
        return states

    def flip(self, flag: str, value: str, *, strict: bool = False) -> None:
        """Drain the engine, switch the flag and read it back.

        Raises:
            SwitchError: it had no effect, or has no strict form here; the previous value is restored.
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
            if not switch.reads_as(value, strict):
                raise SwitchError(f"the engine still reads {switch.read()} {switch.detail()}".rstrip())
        except Exception:
            switch.refresh()
            if old is not None and (switch.read(), switch.detail()) != (old, old_detail):
                switch.write(old, old_detail == STRICT)
            raise

    def at_boundary(self) -> None:
        """Between two steps: reset the prefix cache if a weight update requires it and running requests survive that.

        Raises:
            HostFailure: see ``drain``.
        """
        policy = self.core.policy
        if not policy.due:
            return
        policy.due = False
        drain(self.engine)
        findings = ((table.BY_NAME[name], violation(self.core, "update_clears_cache", name)) for name in PREEMPTION)
        reasons = (precondition.reason.format(finding) for precondition, finding in findings if finding)
        policy.skipped = next(reasons, "")
        if not policy.skipped:
            try:
                preempt_all(self.engine)
            except Exception as error:  # noqa: BLE001 - reported; the next update tries again
                policy.skipped = str(error)

    def facts(self) -> dict[str, str]:
        """Facts for the fingerprint."""
        return self.core.workers.facts() | self.core.policy.facts()


def drain(engine: Any) -> None:
    """Finish the batches in flight by the engine's own step, without scheduling new ones.

    Raises:
        HostFailure: the engine's code raised. Its batch is lost, so the exception must reach the engine.
    """
    scheduler = engine.scheduler
    shadowed = vars(scheduler).get("has_requests")
    scheduler.has_requests = lambda: False
    try:
        while getattr(engine, "batch_queue", None):
            run_step(engine)
    except Exception as error:
        raise HostFailure(error) from error
    finally:
        if shadowed is None:
            del scheduler.has_requests
        else:
            scheduler.has_requests = shadowed
