"""The agent of one engine: owns the tap, the assembler, the sender and the commands, and divides work between threads.

The engine's thread appends references (``tap.Tap``) and executes pending commands between two steps
(``CommandExecutor``). The sender's thread does everything else: it assembles rollouts, encodes messages, answers
commands and reads the engine's state.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.sender import Message, Sender
from rltop.collectors.vllm import patches
from rltop.collectors.vllm.control.command_executor import CommandExecutor
from rltop.collectors.vllm.control.jobs import PAUSED, PAUSED_BY_CALLER
from rltop.collectors.vllm.control.switchboard import Switchboard
from rltop.collectors.vllm.engine_name import engine_id
from rltop.collectors.vllm.fingerprint import current, fingerprint
from rltop.collectors.vllm.in_process import is_in_process
from rltop.collectors.vllm.probes.probe_executor import Prober
from rltop.collectors.vllm.refit_guard import RefitGuard
from rltop.collectors.vllm.rollouts.assembly import Assembler
from rltop.collectors.vllm.rollouts.request import FinishedRollout
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX, Record, Tap, version_of

MESSAGE_BYTES = 1 << 20
"""Target size of a message of rollouts."""

TICK_S = 0.5
"""How often the sender's thread processes the tap's records; the longest time that a finished rollout waits.

Reading many steps together costs far less than one by one; see ``columns``.
"""

WAITING = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""The scheduler's queues: 0.32.0 has the first two, 0.18.1 and 0.26.0 the first and the last."""

STATE_BYTES = 4096
DIGEST_BYTES = 256
SKETCH_BYTES = 512
"""Estimated size of a state, of a digest in a probe's report, and of the sketch of a tensor."""

FLUSH_S = 1.0
CLOSE_S = 1.5
"""How long an engine that ends waits for records to be processed and sent; vLLM kills it after about 5 seconds."""

log = logging.getLogger("rltop")


class StateRequest(NamedTuple):
    """Send the engine's state, as it is when the message is encoded."""


class ProbeOutput(NamedTuple):
    """A probe's report and its arrays."""

    report: wire.ProbeReport
    arrays: wire.Arrays


Item = FinishedRollout | StateRequest | ProbeOutput | wire.RefitReport
"""Items of the send queue, by kind: ``rollouts``, ``state``, ``probe``, ``sketches``."""


class Agent:
    """Observes one engine core and switches its flags.

    Never raises into the engine: hooks run inside the error boundary. ``close`` is idempotent and bounded.
    """

    def __init__(self, engine: Any, rundir: RunDir, guard: ErrorBoundary) -> None:
        self.engine = engine
        self.guard = guard
        self._pid = os.getpid()
        self.id = engine_id(engine)
        self.board = Switchboard(engine)
        self.tap = Tap(
            engine,
            on_weights=self.board.core.policy.on_weights,
            paused=lambda: self.commands.generation.read() == PAUSED_BY_CALLER,
        )
        if any(patches.why_unusable(point, engine.scheduler) for point in (patches.UPDATE, patches.SCHEDULE)):
            self.tap.reads_batches = False
        self.assembler = Assembler(started=self.tap.started, earlier=getattr(engine.scheduler, "requests", None))
        self.facts = guard.run("fingerprint", fingerprint, engine) or {}
        self.sender = Sender(
            rundir,
            self.id,
            "engine",
            self._encode,
            on_message=self._on_message,
            periodic=self._every_second,
            tick=self._tick,
            tick_s=TICK_S,
            vital=frozenset({"state", "probe", "sketches"}),
            guard=guard,
        )
        prober = Prober(
            engine, self.id, self.tap, self._version, guard, self.assembler.salt_of, self._offer_report
        )  # fmt: skip
        self.refit = RefitGuard(engine, self.id, self.tap, self._version, self._offer_sketches)
        self.commands = CommandExecutor(self.board, self.id, self.tap, self._version, self._announce, prober)
        self._hub_epoch = ""
        self._dropped_rollouts = 0
        self._dropped_requests = 0
        self._patches = patches.InstalledPatches(engine, self._hooks(), guard)
        for name, reason in self._patches.missing.items():
            self.facts[f"missing {name}"] = reason
            log.warning("rltop: %s: %s", name, reason)
        if any(name in self._patches.missing for name in patches.ESSENTIAL):
            log.warning("rltop: engine %s publishes no rollouts", self.id)
        self.sender.start()
        atexit.register(self.close)

    def _hooks(self) -> dict[str, patches.Hook]:
        tap = self.tap

        def at_boundary(*_message: Any, **_kwargs: Any) -> None:
            tap.look()
            self.board.at_boundary()
            self.commands.at_boundary()
            self.refit.at_boundary()

        def on_pause(*call: Any, **kwargs: Any) -> None:
            self.commands.generation.on_set(*call, **kwargs)
            tap.on_pause(*call, **kwargs)

        hooks: dict[str, patches.Hook] = {
            "schedule": tap.on_schedule,
            "add": tap.on_add,
            "finish": tap.on_finish,
            "rpc": tap.on_rpc,
            "rpc" + patches.FAILED: tap.on_rpc_failed,
            "reset": self.board.core.policy.on_reset,
            patches.PAUSING.name: self.board.core.policy.on_pause,
            patches.PAUSE.name: on_pause,
        }
        hooks |= {patches.UPDATE.name: tap.on_update} if tap.reads_batches else {patches.STEP.name: tap.on_step}
        if hasattr(self.engine, patches.REJECT.method):
            hooks[patches.REJECT.name] = tap.on_reject
        if is_in_process(self.engine):
            name = patches.CALLERS_STEP.name
            return hooks | {name: at_boundary, name + patches.AFTER: self.commands.prober.after_step}
        return hooks | {patches.BOUNDARY.name: at_boundary}

    def flag_values(self) -> dict[str, str | None]:
        """The value of every flag. From any thread."""
        return {name: switch.read() for name, switch in self.board.switches.items()}

    def is_pausing(self) -> bool:
        """Whether generation is paused by a command of rltop, whose timer runs here."""
        return self.commands.generation.read() == PAUSED

    def close(self) -> None:
        """Remove the patches, publish the finished rollouts and disconnect. Bounded in time."""
        self.release("the engine ended")
        self.finish()

    def release(self, reason: str) -> None:
        """Remove the patches and end a running probe. On the engine's thread, between two steps, or after its end."""
        if os.getpid() == self._pid:
            self.guard.run("probe", self.commands.prober.stop, "timed_out", reason)
            self._patches.undo()
            self.guard.run("updates", self.tap.close)

    def finish(self) -> None:
        """After ``release``: publish the finished rollouts and disconnect. Bounded in time; from any thread."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return  # the copy in a forked child: the parent's agent reports for the engine
        deadline = time.monotonic() + FLUSH_S
        while self.tap.processed != self.tap.enqueued and time.monotonic() < deadline:
            time.sleep(0.005)
        self._announce()
        self.sender.close(CLOSE_S)

    # --- the sender's thread --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Assemble the tap's records, offer finished rollouts, and send command updates."""
        tap, assembler = self.tap, self.assembler
        self.sender.loop_count = tap.loop_count
        records = [tap.records.popleft() for _ in range(len(tap.records))]
        self._assemble(records)
        if self.guard.is_off(patches.STEP.name) or self.guard.is_off(patches.UPDATE.name):
            assembler.drop_alive()  # steps are not recorded any more
        assembler.count_dropped(tap.dropped_requests - self._dropped_requests)
        self._dropped_requests = tap.dropped_requests
        if assembler.dropped != self._dropped_rollouts:
            self.sender.count_dropped("rollouts", assembler.dropped - self._dropped_rollouts)
            self._dropped_rollouts = assembler.dropped
        for finished in assembler.pop_finished():
            self.sender.offer("rollouts", finished.nbytes, finished)
        tap.processed += sum(record[1] for record in records)  # last: ``close`` waits for it
        self.commands.tick()
        if self.refit.due() or self.tap.awaits_comparison:
            self.commands.wake()
        for update in self.commands.pop_updates():
            self.sender.reply(update)

    def _assemble(self, records: list[Record]) -> None:
        """Apply records. One that can't be read is a gap; from then on outputs are recorded instead of batches."""
        remaining = iter(records)
        while self.guard.run("assemble", self.assembler.apply_all, remaining) is None:
            self.assembler.drop_alive()
            self.tap.disable_batch_reading()
            if self.guard.is_off("assemble"):
                return

    def _every_second(self) -> None:
        self.guard.run("commands", self.commands.check)  # contained separately: the state is sent if this raises
        self._announce()

    def _announce(self) -> None:
        """Queue the engine's state. From any thread."""
        self.sender.offer("state", STATE_BYTES, StateRequest())

    def _offer_report(self, report: wire.ProbeReport, arrays: wire.Arrays) -> None:
        nbytes = STATE_BYTES + DIGEST_BYTES * len(report.digests) + sum(array.nbytes for array in arrays.values())
        self.sender.offer("probe", nbytes, ProbeOutput(report, arrays))

    def _offer_sketches(self, report: wire.RefitReport) -> None:
        self.sender.offer("sketches", STATE_BYTES + SKETCH_BYTES * len(report.sketches), report)

    def _on_message(self, message: wire.ControlToCollector) -> None:
        if isinstance(message, wire.Welcome):
            self.commands.resend_pending()
            if message.hub_epoch == self._hub_epoch:
                return  # this hub has the state already; it answers every ``Register``
            self._hub_epoch = message.hub_epoch
        elif isinstance(message, wire.Command):
            self.commands.receive(message)
        self._announce()

    def _encode(self, kind: str, items: list[Item], /) -> Iterator[Message]:
        """The messages of consecutive items of one kind; state requests share one message."""
        if kind == "state":
            yield self.state(), {}
        for item in items:
            if isinstance(item, ProbeOutput):
                yield item.report, item.arrays
            elif isinstance(item, wire.RefitReport):
                yield item, {}
        yield from self._rollout_messages([item for item in items if isinstance(item, FinishedRollout)])

    def _rollout_messages(self, rollouts: list[FinishedRollout]) -> Iterator[Message]:
        batch: list[FinishedRollout] = []
        size = 0
        for rollout in rollouts:
            batch.append(rollout)
            size += rollout.nbytes
            if size >= MESSAGE_BYTES:
                yield _message(self.id, batch)
                batch, size = [], 0
        if batch:
            yield _message(self.id, batch)

    def _version(self) -> tuple[int | None, str]:
        return version_of(getattr(self.engine, "_weight_version", None), self.tap.updates.version)

    def state(self) -> wire.EngineState:
        """The engine's current state. Plain attribute reads and lengths only, so from any thread."""
        scheduler = self.engine.scheduler
        pause = getattr(getattr(scheduler, "pause_state", None), "name", "UNPAUSED")
        version, source = self._version()
        label = getattr(self.engine, "_weight_version", None)
        assembler = self.assembler
        facts = self.facts | current(self.engine) | self.board.facts()
        waiting = sum(len(getattr(scheduler, name, ())) for name in WAITING)
        probing = 0
        if self.commands.prober.in_flight:  # probe requests are not counted
            probing = sum(request.request_id.startswith(PROBE_PREFIX) for request in list(scheduler.running))
        by_batch = self.tap.reads_batches and not self.tap.arrays_unreadable
        facts["tokens read from"] = "batches" if by_batch else "each request's outputs"
        facts["refit guard"] = self.refit.fact
        if self.tap.partial_update:
            facts = facts | {"weights torn": self.tap.partial_update}
        if self.tap.updates.mixed:
            facts = facts | {"sampled within updates": self.tap.updates.mixed}
        if self.tap.rejected:
            facts = facts | {"rejected requests": str(self.tap.rejected)}
        if assembler.misplaced:
            facts = facts | {"misplaced logprobs": str(assembler.misplaced)}
        if assembler.unmatched:
            facts = facts | {"unmatched requests": str(assembler.unmatched)}
        if assembler.earlier:
            facts = facts | {"requests before attach": assembler.earlier_text()}
        return wire.EngineState(
            engine=self.id,
            host=platform.node(),
            pid=os.getpid(),
            step=self.tap.step,
            policy_version=version,
            version_source=source,
            weight_label=None if label is None else str(label),
            running=max(len(scheduler.running) - probing, 0),  # probes may end meanwhile
            waiting=max(waiting - (self.commands.prober.in_flight - probing), 0),
            kv_usage=_kv_usage(scheduler),
            prompt_tokens=assembler.prompt_tokens,
            generated_tokens=assembler.generated_tokens,
            cached_tokens=assembler.cached_tokens,
            finished=assembler.finished_count,
            aborted=assembler.aborted,
            without_logprobs=assembler.without_logprobs,
            flags=self.guard.run("flags", self.board.states) or {},  # the rest is sent if this raises
            flag_epoch=self.tap.flag_epoch,
            fingerprint=facts,
            commands=self.commands.closed(),
            paused=pause != "UNPAUSED",
            update_open=self.tap.update_open,
            weight_updates=self.tap.updates.count,
            timers=self.commands.timers(),
            preemptions=assembler.preemptions(),
            first_token_s=assembler.first_token_s,
            first_tokens=assembler.first_tokens,
            token_gap_s=assembler.token_gap_s,
            token_gaps=assembler.token_gaps,
        )


def _kv_usage(scheduler: Any) -> float | None:
    usage = getattr(getattr(scheduler, "kv_cache_manager", None), "usage", None)
    return None if usage is None else float(usage)


def _message(engine: str, rollouts: list[FinishedRollout]) -> Message:
    arrays: wire.Arrays = {
        "prompt_ids": np.frombuffer(b"".join([item.prompt for item in rollouts]), np.int32),
        "token_ids": np.frombuffer(b"".join([item.tokens for item in rollouts]), np.int32),
        "logprobs": np.frombuffer(b"".join([item.values for item in rollouts]), np.float32),
    }
    return wire.Rollouts(engine, [item.rollout for item in rollouts], wire.describe(arrays)), arrays
