"""The switches of one engine: what each flag is on the live objects, when it may change, and how.

Everything is probed on the objects, never on version numbers. A switch runs on the engine's own thread between two
steps, with the batch queue drained, so that tokens of batches in flight belong to the time before it; it is whole or
undone; and what counts is the read-back.
"""

from __future__ import annotations

from typing import Any

from rltop.collectors.vllm.scheduler_switches import AsyncScheduling, PrefixCaching
from rltop.collectors.vllm.seams import HostFailure
from rltop.collectors.vllm.switch import Switch, SwitchError
from rltop.collectors.vllm.worker import WORKER_FLAGS
from rltop.collectors.vllm.worker_switches import Workers, WorkerSwitch
from rltop.collectors.wire import FlagState


class Board:
    """All switches of one engine core, by the name of their flag.

    Made before the engine takes work: it asks the workers.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.workers = Workers(engine)
        self.workers.refresh()
        self.switches: dict[str, Switch] = {
            "prefix_caching": PrefixCaching(engine),
            "async_scheduling": AsyncScheduling(engine),
            **{flag: WorkerSwitch(flag, engine, self.workers) for flag in WORKER_FLAGS},
        }

    def states(self) -> dict[str, FlagState]:
        """Every flag as it stands. Only reads, from any thread."""
        found = {}
        for name, switch in self.switches.items():
            obstacle = switch.obstacle()
            found[name] = FlagState(switch.read(), not obstacle, obstacle)
        return found

    def flip(self, flag: str, value: str, *, strict: bool = False) -> None:
        """Drain, switch, read back.

        Raises:
            SwitchError: it did not take; the old value is back in place.
            HostFailure: see ``drain``.
        """
        if strict:
            raise SwitchError(f"{flag} has no strict form on this engine")
        switch = self.switches[flag]
        drain(self.engine)
        old = switch.read()
        try:
            switch.write(value)
            switch.refresh()
            if switch.read() != value:
                raise SwitchError(f"the engine still reads {switch.read()} after the switch")
        except Exception:
            if old is not None and switch.read() != old:
                switch.write(old)
            raise


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
