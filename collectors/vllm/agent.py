"""One agent per engine: owns the tap, the assembler, the sender and the commands, and says which thread does what.

The engine's thread appends references (``tap.Tap``) and, between two steps, executes what stands in ``_pending``.
The sender's thread does all the rest: assembling, encoding, answering commands, reading the engine's state.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import MAX_FAULTS, Guard
from rltop.collectors.transport.sender import Sender
from rltop.collectors.vllm import patches
from rltop.collectors.vllm.control.command_executor import CommandExecutor
from rltop.collectors.vllm.control.switchboard import Switchboard
from rltop.collectors.vllm.fingerprint import current, fingerprint
from rltop.collectors.vllm.probes.probe_executor import Prober
from rltop.collectors.vllm.rollouts.assembly import Assembler
from rltop.collectors.vllm.rollouts.request import FinishedRollout
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX, Noted, Tap, version_of
from rltop.collectors.vllm.workers.one_rank import METHODS

MESSAGE_BYTES = 1 << 20
"""Aimed at size of one message of rollouts."""

TICK_S = 0.5
"""How often the sender's thread takes in what the engine's thread noted down; a finished rollout waits as long at most.

Some steps of a fast engine: reading them together costs far less than one by one, see ``columns``.
"""

WAITING = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""The scheduler's queues: 0.32.0 has the first two, 0.18.1 and 0.26.0 the first and the last."""

STATE_BYTES = 4096
DIGEST_BYTES = 256
"""What a state, and a digest of a probe's report, is taken to need."""

FLUSH_S = 1.0
CLOSE_S = 1.5
"""Bounds on what the end of an engine waits for us, a tick in each; vLLM kills it after some 5 seconds."""

log = logging.getLogger("rltop")


def hook(rundir: RunDir, guard: Guard) -> None:
    """Have an agent attached to every engine that starts in this process, and its workers answer it."""
    guard.run("workers", patches.install_in_workers, METHODS)
    for problem in patches.install(lambda engine: Agent(engine, rundir, guard).close, guard):
        log.warning("rltop: %s; engines of this kind are not seen", problem)


def engine_id(engine: Any, environ: Mapping[str, str] = os.environ) -> str:
    """``RLTOP_ENGINE``, else ``<short host>-<pid>``; with ``/dp<rank>`` where several ranks share one name.

    vLLM makes ranks of a dense model independent (``data_parallel_size`` reads 1 again) but keeps their index, and the
    coordinator that only ranks of several have.
    """
    parallel = engine.vllm_config.parallel_config
    rank = getattr(engine, "engine_index", None) or getattr(parallel, "data_parallel_index", 0) or 0
    name = environ.get("RLTOP_ENGINE") or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
    several = getattr(parallel, "data_parallel_size", 1) > 1 or getattr(engine, "has_coordinator", False)
    return f"{name}/dp{rank}" if rank or several else name


class Agent:
    """Watches one engine core, and switches its flags.

    Raises nothing into the engine: hooks run behind the guard. ``close`` is idempotent and bounded.
    """

    def __init__(self, engine: Any, rundir: RunDir, guard: Guard) -> None:
        self.engine = engine
        self.guard = guard
        self._pid = os.getpid()
        self.id = engine_id(engine)
        self.board = Switchboard(engine)
        self.tap = Tap(engine, on_weights=self.board.core.policy.on_weights)
        if any(patches.fault_of(seam, engine.scheduler) for seam in (patches.UPDATE, patches.SCHEDULE)):
            self.tap.by_rows = False
        self.assembler = Assembler(started=self.tap.started)
        self.facts = guard.run("fingerprint", fingerprint, engine) or {}
        self.sender = Sender(
            rundir,
            self.id,
            "engine",
            self._encode,
            on_message=self._hear,
            periodic=self._every_second,
            tick=self._tick,
            tick_s=TICK_S,
            vital=frozenset({"state", "probe"}),
            guard=guard,
        )
        prober = Prober(
            engine, self.id, self.tap, self._version, guard, self.assembler.salt_of, self._offer_report
        )  # fmt: skip
        self.commands = CommandExecutor(self.board, self.id, self.tap, self._version, self._announce, prober)
        self._hub = ""
        self._counted_drops = 0
        self._lost_requests = 0
        self._taps = patches.InstalledPatches(engine, self._hooks(), guard)
        for seam, reason in self._taps.missing.items():
            self.facts[f"missing {seam}"] = reason
            log.warning("rltop: %s: %s", seam, reason)
        if any(seam in self._taps.missing for seam in patches.ESSENTIAL):
            log.warning("rltop: engine %s publishes no rollouts", self.id)
        self.sender.start()
        atexit.register(self.close)

    def _hooks(self) -> dict[str, patches.Hook]:
        tap = self.tap

        def at_boundary(*_message: Any, **_kwargs: Any) -> None:
            self.board.at_boundary()
            self.commands.at_boundary()

        hooks: dict[str, patches.Hook] = {
            "schedule": tap.on_schedule,
            "add": tap.on_add,
            "finish": tap.on_finish,
            "rpc": tap.on_rpc,
            "rpc" + patches.FAILED: tap.on_rpc_failed,
            "reset": self.board.core.policy.on_reset,
        }
        hooks |= {patches.UPDATE.name: tap.on_update} if tap.by_rows else {patches.STEP.name: tap.on_step}
        if hasattr(self.engine, "input_queue"):
            hooks |= {
                "boundary": at_boundary,
                patches.PAUSING.name: self.board.core.policy.on_pause,
                "pause": self.commands.generation.on_set,
            }
        return hooks

    def close(self) -> None:
        """Publish what is finished, say goodbye, and leave the engine as it was found. Bounded in time."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return  # a fork's copy: the engine is the parent's to speak for
        self.guard.run("probe", self.commands.prober.stop, "timed_out", "the engine ended")
        self._taps.undo()
        deadline = time.monotonic() + FLUSH_S
        while self.tap.taken != self.tap.put and time.monotonic() < deadline:
            time.sleep(0.005)
        self._announce()
        self.sender.close(CLOSE_S)

    # --- the sender's thread --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Turn what the engine's thread noted down into whole rollouts."""
        tap, assembler = self.tap, self.assembler
        self.sender.loop_count = tap.turns
        records = [tap.records.popleft() for _ in range(len(tap.records))]
        self._assemble(records)
        if max(self.guard.faults.get(place, 0) for place in (patches.STEP.name, patches.UPDATE.name)) >= MAX_FAULTS:
            assembler.hole()  # no more steps are seen
        assembler.lost_requests(tap.shed_requests - self._lost_requests)
        self._lost_requests = tap.shed_requests
        if assembler.dropped != self._counted_drops:
            self.sender.count_lost("rollouts", assembler.dropped - self._counted_drops)
            self._counted_drops = assembler.dropped
        for finished in assembler.take():
            self.sender.offer("rollouts", finished.nbytes, finished)
        tap.taken += sum(record[1] for record in records)  # last: ``close`` waits for it
        self.commands.tick()
        for update in self.commands.take_updates():
            self.sender.reply(update)

    def _assemble(self, records: list[Noted]) -> None:
        """What can't be read is a hole; and if it was batches, the outputs are read from now on."""
        rest = iter(records)
        while self.guard.run("assemble", self.assembler.take_in, rest) is None:
            self.assembler.hole()
            self.tap.distrust()
            if self.guard.is_off("assemble"):
                return

    def _every_second(self) -> None:
        self.guard.run("commands", self.commands.check)  # under a place of its own: the state is told regardless
        self._announce()

    def _announce(self) -> None:
        """Send the state, read when it is encoded. From any thread."""
        self.sender.offer("state", STATE_BYTES, None)

    def _offer_report(self, report: wire.ProbeReport, arrays: wire.Arrays) -> None:
        nbytes = STATE_BYTES + DIGEST_BYTES * len(report.digests) + sum(array.nbytes for array in arrays.values())
        self.sender.offer("probe", nbytes, (report, arrays))

    def _hear(self, message: wire.ControlToCollector) -> None:
        if isinstance(message, wire.Welcome):
            self.commands.repeat()
            if message.hub_epoch == self._hub:
                return  # it has the state, and answers every ``Register``
            self._hub = message.hub_epoch
        elif isinstance(message, wire.Command):
            self.commands.receive(message)
        self._announce()

    def _encode(self, kind: str, items: list[Any], /) -> Iterable[tuple[wire.DataBody, wire.Arrays]]:
        if kind == "state":
            return [(self.state(), {})]
        if kind == "probe":
            return items
        return self._messages(items)

    def _messages(self, items: list[FinishedRollout]) -> Iterable[tuple[wire.DataBody, wire.Arrays]]:
        lot: list[FinishedRollout] = []
        size = 0
        for item in items:
            lot.append(item)
            size += item.nbytes
            if size >= MESSAGE_BYTES:
                yield _message(self.id, lot)
                lot, size = [], 0
        if lot:
            yield _message(self.id, lot)

    def _version(self) -> tuple[int | None, str]:
        return version_of(getattr(self.engine, "_weight_version", None), self.tap.inferred)

    def state(self) -> wire.EngineState:
        """The engine as it is now: plain reads and lengths only, so from any thread."""
        scheduler = self.engine.scheduler
        pause = getattr(getattr(scheduler, "pause_state", None), "name", "UNPAUSED")
        version, source = self._version()
        label = getattr(self.engine, "_weight_version", None)
        assembler = self.assembler
        facts = self.facts | current(self.engine) | self.board.facts()
        waiting = sum(len(getattr(scheduler, name, ())) for name in WAITING)
        probing = 0
        if self.commands.prober.out:  # its requests are none of the run's
            probing = sum(request.request_id.startswith(PROBE_PREFIX) for request in list(scheduler.running))
        by_batch = self.tap.by_rows and not self.tap.misread
        facts["tokens read from"] = "batches" if by_batch else "each request's outputs"
        if self.tap.torn:
            facts = facts | {"weights torn": self.tap.torn}
        if assembler.misplaced:
            facts = facts | {"misplaced logprobs": str(assembler.misplaced)}
        if assembler.unmatched:
            facts = facts | {"unmatched requests": str(assembler.unmatched)}
        return wire.EngineState(
            engine=self.id,
            host=platform.node(),
            pid=os.getpid(),
            step=self.tap.step,
            policy_version=version,
            version_source=source,
            weight_label=None if label is None else str(label),
            running=len(scheduler.running) - probing,
            waiting=max(waiting - (self.commands.prober.out - probing), 0),
            kv_usage=_kv_usage(scheduler),
            prompt_tokens=assembler.prompt_tokens,
            generated_tokens=assembler.generated_tokens,
            cached_tokens=assembler.cached_tokens,
            finished=assembler.finished_count,
            aborted=assembler.aborted,
            without_logprobs=assembler.without_logprobs,
            flags=self.guard.run("flags", self.board.states) or {},  # the rest is told regardless
            flag_epoch=self.tap.epoch,
            fingerprint=facts,
            commands=self.commands.closed(),
            paused=pause != "UNPAUSED",
            update_open=self.tap.update_open,
            weight_updates=self.tap.updates,
            timers=self.commands.timers(),
        )


def _kv_usage(scheduler: Any) -> float | None:
    usage = getattr(getattr(scheduler, "kv_cache_manager", None), "usage", None)
    return None if usage is None else float(usage)


def _message(engine: str, lot: list[FinishedRollout]) -> tuple[wire.DataBody, wire.Arrays]:
    arrays: wire.Arrays = {
        "prompt_ids": np.frombuffer(b"".join([item.prompt for item in lot]), np.int32),
        "token_ids": np.frombuffer(b"".join([item.tokens for item in lot]), np.int32),
        "logprobs": np.frombuffer(b"".join([item.values for item in lot]), np.float32),
    }
    return wire.Rollouts(engine, [item.rollout for item in lot], wire.describe(arrays)), arrays
