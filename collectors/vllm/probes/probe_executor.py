"""Executes probes on one engine, one at a time: started at a step boundary and continued at later ones.

Between boundaries the engine serves requests as usual. A probe occupies the engine's thread only to read a slice of
weights or to add requests. A weight update, a pause or a switch interrupts a probe: its requests are aborted at the
boundary where that is detected, before the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rltop.collectors.contract.probes import BY_NAME, ENGINES, MAX_TOKENS
from rltop.collectors.contract.wire import Arrays, Command, ProbeReport, describe
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.engine_core import why_no_boundary
from rltop.collectors.vllm.patches import why_steps_unseen
from rltop.collectors.vllm.probes import scoring
from rltop.collectors.vllm.probes.injection import Injection, fresh_salt
from rltop.collectors.vllm.probes.probe_checks import cannot_score, overloaded, weights_offloaded
from rltop.collectors.vllm.probes.work import Digesting, Scoring, Work, is_ready
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX, Tap
from rltop.collectors.vllm.workers.all_ranks import reachable
from rltop.collectors.vllm.workers.weight_digest import FREE_BYTES

LOGIT_BYTES = 1 << 30
"""Bound on the memory for logits and logprobs of a scored prompt; a quarter of the free memory if that is less."""

BYTES_PER_LOGIT = 12
"""vLLM's V1 runner holds the logits of a whole chunk, their float32 copy and their log-softmax at the same time."""

End = Callable[[Command, str, str, float], None]
"""Closes the command with a state, a reason, and the time that it occupied the engine's thread, in milliseconds."""


@dataclass(frozen=True)
class ProbeConditions:
    """Conditions that must not change while a probe runs."""

    updates: int
    update_open: bool
    epoch: int
    paused: bool


@dataclass
class ActiveProbe:
    """The running probe."""

    command: Command
    work: Work
    conditions: ProbeConditions
    version: int | None
    started: float
    notes: list[str]
    stall: float = 0.0
    longest: float = 0.0
    next: float = 0.0


class Prober:
    """Runs the probes of one engine.

    Args:
        engine: vLLM's engine core.
        name: id of the engine.
        tap: provides weight updates and the flag epoch.
        version: returns the policy version in use and its source.
        guard: contains faults of the hook that removes outputs.
        salts: returns the cache salt of a rollout, by request id.
        report: sends a report.

    Attributes:
        end: closes a command; set by ``CommandExecutor``.
    """

    def __init__(
        self,
        engine: Any,
        name: str,
        tap: Tap,
        version: Callable[[], tuple[int | None, str]],
        guard: ErrorBoundary | None = None,
        salts: scoring.Salt = lambda _: None,
        report: Callable[[ProbeReport, Arrays], None] = lambda _report, _arrays: None,
    ) -> None:
        self.end: End = lambda *_: None
        self._engine = engine
        self._name = name
        self._tap = tap
        self._version = version
        self._guard = guard or ErrorBoundary()
        self._salts = salts
        self._report = report
        self._running: ActiveProbe | None = None

    # --- any thread -----------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a probe runs."""
        return self._running is not None

    def due(self) -> bool:
        """Whether the probe needs a step boundary now."""
        running = self._running
        return running is not None and (time.monotonic() >= running.next or is_ready(running.work))

    @property
    def in_flight(self) -> int:
        """Number of requests of a probe in the scheduler."""
        running = self._running
        return running.work.injection.in_flight if running is not None and isinstance(running.work, Scoring) else 0

    def obstacle(self, command: Command) -> str:
        """Why this engine can't execute the probe now; empty if it can."""
        probe = BY_NAME.get(command.probe)
        if probe is None or probe.executed_by != ENGINES:
            known = ", ".join(name for name, one in BY_NAME.items() if one.executed_by == ENGINES)
            return f"unknown probe {command.probe!r}; this engine knows {known}"
        if self._running is not None:
            return f"the probe {self._running.command.id} ({self._running.command.probe}) is running here"
        try:
            return next((reason for reason in self._obstacles(command, requests=probe.sends_requests) if reason), "")
        except AttributeError as error:  # objects differ from version to version
            return f"this engine differs from known vLLM versions: {error}"

    def _obstacles(self, command: Command, *, requests: bool) -> Iterator[str]:
        engine = self._engine
        yield why_no_boundary(engine)
        yield weights_offloaded(engine)
        if not requests:
            return
        yield cannot_score(engine)
        if fault := why_steps_unseen(engine):
            yield f"outputs of its requests could not be removed: {fault}"
        if sum(len(passage.ids) // 4 for passage in command.passages) > MAX_TOKENS:
            yield f"more than {MAX_TOKENS} tokens to score"
        if self._conditions().paused:
            yield "generation is paused, so its requests would wait"
        yield overloaded(engine)
        if command.probe == "cache-salt" and not getattr(engine.scheduler.kv_cache_manager, "enable_caching", False):
            yield "the prefix cache is off"

    # --- the engine's thread --------------------------------------------------------------------------------------

    def begin(self, command: Command) -> None:
        """Start a probe. At a step boundary, while none runs."""
        started, notes = time.perf_counter(), list[str]()
        try:
            work = self._work(command, notes)
        except Exception as error:  # noqa: BLE001 - becomes the answer, as in ``at_boundary``
            return self.end(command, "refused", f"{type(error).__name__}: {error}", 0.0)
        if work is None:
            return self.end(command, "refused", "; ".join(notes), 0.0)
        version, _ = self._version()
        self._running = ActiveProbe(command, work, self._conditions(), version, started, notes)
        return self.at_boundary()

    def _work(self, command: Command, notes: list[str]) -> Work | None:
        """The work of a probe; None if it can't be done, with the reason in ``notes``."""
        if not reachable(self._engine):
            notes.append("the collector is not loaded in every worker of this engine")
            return None
        if not BY_NAME[command.probe].sends_requests:
            return Digesting(self._engine)
        passages = self._passages(command, notes)
        if not passages:
            notes.append("no sequence is left to score")
            return None
        return Scoring(self._plan(command, passages), Injection(self._engine, self._guard, command.id))

    def at_boundary(self) -> None:
        """Continue the running probe, or end it. Never raises: an exception becomes the answer."""
        running = self._running
        if running is None:
            return None
        if interruption := self._interruption(running):
            return self.stop("superseded", interruption)
        if time.time() > running.command.deadline:
            return self.stop("timed_out", "its deadline passed before it was complete")
        if time.monotonic() < running.next and not is_ready(running.work):
            return None
        if load := overloaded(self._engine) if isinstance(running.work, Scoring) else "":
            return self.stop("refused", load)
        started = time.perf_counter()
        try:
            done = running.work.advance()
        except Exception as error:  # noqa: BLE001 - becomes the answer; not a fault of the boundary
            return self.stop("refused", f"{type(error).__name__}: {error}")
        elapsed = time.perf_counter() - started
        running.stall, running.longest = running.stall + elapsed, max(running.longest, elapsed)
        if done:
            return self._finish(running)
        running.next = time.monotonic() + running.work.rest()
        return None

    def after_step(self) -> None:
        """After a step of an engine inside its caller's process: end a probe whose requests alone are left.

        The caller has all its outputs and runs no more steps: the requests would stay, and hold blocks of the cache.
        """
        if self.in_flight and all(name.startswith(PROBE_PREFIX) for name in self._engine.scheduler.requests):
            self.stop("superseded", "interrupted: the engine's caller has all its outputs and runs no more steps")

    def stop(self, state: str, reason: str) -> None:
        """End the running probe without a result; does nothing if none runs."""
        running, self._running = self._running, None
        if running is not None:
            running.work.stop()
            self.end(running.command, state, reason, 1e3 * running.stall)

    def _finish(self, running: ActiveProbe) -> None:
        self._running = None
        running.work.stop()
        arrays = running.work.arrays()
        report = ProbeReport(
            running.command.id, self._name, running.command.probe, describe(arrays), running.version,
            running.conditions.updates, running.conditions.epoch, seconds=time.perf_counter() - running.started,
            stall_s=running.stall, longest_s=running.longest, notes=running.notes, **running.work.report(),
        )  # fmt: skip
        self._report(report, arrays)
        self.end(running.command, "applied", "", 1e3 * running.stall)

    def _interruption(self, running: ActiveProbe) -> str:
        """The event that invalidates the running probe; empty if there was none."""
        if fault := weights_offloaded(self._engine):
            return fault
        now, then = self._conditions(), running.conditions
        if now.updates != then.updates or now.update_open:
            return "interrupted by a weight update"
        if now.epoch != then.epoch:
            return "interrupted by a switch"
        if isinstance(running.work, Scoring):
            if now.paused:
                return "interrupted by a pause"
            if running.work.lost:
                return "another caller aborted its requests"
        return ""

    def _conditions(self) -> ProbeConditions:
        pause = getattr(getattr(self._engine.scheduler, "pause_state", None), "name", "UNPAUSED")
        return ProbeConditions(
            self._tap.updates.count, self._tap.update_open, self._tap.flag_epoch, pause != "UNPAUSED"
        )

    def _passages(self, command: Command, notes: list[str]) -> dict[int, list[int]]:
        """The token ids of each passage, by its index, cut to the longest prompt that can be scored."""
        limit = self._max_prompt()
        ids_of = {index: scoring.ids_of(passage, limit) for index, passage in enumerate(command.passages)}
        if cut := sum(len(passage.ids) // 4 > limit for passage in command.passages):
            notes.append(f"{cut} sequences were cut to their first {limit} tokens (free memory or model length)")
        return {index: ids for index, ids in ids_of.items() if ids}

    def _plan(self, command: Command, passages: dict[int, list[int]]) -> scoring.Plan:
        salts = [self._salts(command.passages[index].request_id) for index in passages]
        plan = scoring.PLANS[command.probe](list(passages.values()), salts, fresh_salt)
        return _renumbered(plan, list(passages))

    def _max_prompt(self) -> int:
        """Tokens of the longest prompt that can be scored: bounded by the model's length and the memory for logits."""
        model = self._engine.vllm_config.model_config
        free = [nbytes for nbytes in self._engine.model_executor.collective_rpc(FREE_BYTES) if nbytes is not None]
        available = min([LOGIT_BYTES, *(nbytes // 4 for nbytes in free)])
        return int(min(model.max_model_len - 1, available // (BYTES_PER_LOGIT * model.get_vocab_size())))


def _renumbered(plan: scoring.Plan, indices: list[int]) -> scoring.Plan:
    """The same plan, with the indices that the passages have in the command."""
    try:
        batch = next(plan)
        while True:
            results = yield [replace(request, passage=indices[request.passage]) for request in batch]
            batch = plan.send(results)
    except StopIteration:
        return
