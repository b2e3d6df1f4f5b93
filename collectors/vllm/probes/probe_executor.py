"""A probe on one engine: begun at a step boundary, carried on at later ones, ended by its end or by what overtakes it.

One at a time. Between boundaries the engine serves as ever; what a probe takes of its thread is a digest's slice, or
the time to add some requests. Nothing of a probe outlives a weight update, a pause or a switch: its requests are
aborted at the boundary at which that is seen, before the next step.
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
from rltop.collectors.vllm.probes.probe_checks import asleep, crowded, unfit
from rltop.collectors.vllm.probes.work import Digesting, Scoring, Work, answered
from rltop.collectors.vllm.rollouts.tap import Tap
from rltop.collectors.vllm.workers.all_ranks import reachable
from rltop.collectors.vllm.workers.weight_digest import ROOM

LOGIT_BYTES = 1 << 30
"""Logits and logprobs of a scored prompt may take so much memory, or a quarter of what is free if that is less."""

BYTES_PER_LOGIT = 12
"""vLLM's V1 runner holds logits, their float32 copy and their log-softmax of a whole chunk at once."""

End = Callable[[Command, str, str, float], None]
"""Closes the command: with a state, a reason, and how many milliseconds the engine's thread was busy with it."""


@dataclass(frozen=True)
class ProbeConditions:
    """What must not change while a probe runs."""

    updates: int
    update_open: bool
    epoch: int
    paused: bool


@dataclass
class ActiveProbe:
    """The probe that runs."""

    command: Command
    work: Work
    standing: ProbeConditions
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
        tap: tells of updates and the flag epoch.
        version: policy version in use, and where it is known from.
        guard: contains faults of the look at a step's outputs.
        salts: the cache salt of a rollout, by its request's id.
        report: have a report sent.

    Attributes:
        end: closes a command; set by whoever takes commands.
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
        """Whether a boundary should be brought about."""
        running = self._running
        return running is not None and (time.monotonic() >= running.next or answered(running.work))

    @property
    def out(self) -> int:
        """Requests of a probe that are in the scheduler."""
        running = self._running
        return running.work.injection.out if running is not None and isinstance(running.work, Scoring) else 0

    def obstacle(self, command: Command) -> str:
        """Why this engine can't be probed so now; empty if it can."""
        probe = BY_NAME.get(command.probe)
        if probe is None or probe.by != ENGINES:
            known = ", ".join(name for name, one in BY_NAME.items() if one.by == ENGINES)
            return f"unknown probe {command.probe!r}; this engine knows {known}"
        if self._running is not None:
            return f"the probe {self._running.command.id} ({self._running.command.probe}) is running here"
        try:
            return next((reason for reason in self._obstacles(command, requests=probe.requests) if reason), "")
        except AttributeError as error:  # objects differ from version to version
            return f"this engine is not as it is known here: {error}"

    def _obstacles(self, command: Command, *, requests: bool) -> Iterator[str]:
        engine = self._engine
        yield why_no_boundary(engine)
        yield asleep(engine)
        if not requests:
            return
        yield unfit(engine)
        if fault := why_steps_unseen(engine):
            yield f"outputs of its requests could not be taken out: {fault}"
        if sum(len(passage.ids) // 4 for passage in command.passages) > MAX_TOKENS:
            yield f"more than {MAX_TOKENS} tokens were sent"
        if self._standing().paused:
            yield "generation is paused, and its requests would wait"
        yield crowded(engine)
        if command.probe == "cache-salt" and not getattr(engine.scheduler.kv_cache_manager, "enable_caching", False):
            yield "the prefix cache is off"

    # --- the engine's thread --------------------------------------------------------------------------------------

    def begin(self, command: Command) -> None:
        """Start it. At a boundary, with none running."""
        started, notes = time.perf_counter(), list[str]()
        try:
            work = self._work(command, notes)
        except Exception as error:  # noqa: BLE001 - an answer, as in ``at_boundary``
            return self.end(command, "refused", f"{type(error).__name__}: {error}", 0.0)
        if work is None:
            return self.end(command, "refused", "; ".join(notes), 0.0)
        version, _ = self._version()
        self._running = ActiveProbe(command, work, self._standing(), version, started, notes)
        return self.at_boundary()

    def _work(self, command: Command, notes: list[str]) -> Work | None:
        """What there is to do; None if it can't be done, with the reason in ``notes``."""
        if not reachable(self._engine):
            notes.append("the collector is not in every worker of this engine")
            return None
        if not BY_NAME[command.probe].requests:
            return Digesting(self._engine)
        passages = self._passages(command, notes)
        if not passages:
            notes.append("no sequence was left to score")
            return None
        return Scoring(self._plan(command, passages), Injection(self._engine, self._guard, command.id))

    def at_boundary(self) -> None:
        """Go on with the probe that runs, or end it. Never raises: a fault is an answer."""
        running = self._running
        if running is None:
            return None
        if overtaken := self._overtaken(running):
            return self.stop("superseded", overtaken)
        if time.time() > running.command.deadline:
            return self.stop("timed_out", "its deadline passed before it was through")
        if time.monotonic() < running.next and not answered(running.work):
            return None
        if crowd := crowded(self._engine) if isinstance(running.work, Scoring) else "":
            return self.stop("refused", crowd)
        started = time.perf_counter()
        try:
            done = running.work.go()
        except Exception as error:  # noqa: BLE001 - an answer, which must not count against the boundary
            return self.stop("refused", f"{type(error).__name__}: {error}")
        took = time.perf_counter() - started
        running.stall, running.longest = running.stall + took, max(running.longest, took)
        if done:
            return self._finish(running)
        running.next = time.monotonic() + running.work.rest()
        return None

    def stop(self, state: str, reason: str) -> None:
        """End the probe that runs, if one does, without a result."""
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
            running.standing.updates, running.standing.epoch, seconds=time.perf_counter() - running.started,
            stall_s=running.stall, longest_s=running.longest, notes=running.notes, **running.work.report(),
        )  # fmt: skip
        self._report(report, arrays)
        self.end(running.command, "applied", "", 1e3 * running.stall)

    def _overtaken(self, running: ActiveProbe) -> str:
        if sleeps := asleep(self._engine):
            return sleeps
        now, then = self._standing(), running.standing
        if now.updates != then.updates or now.update_open:
            return "a weight update came in between"
        if now.epoch != then.epoch:
            return "a switch came in between"
        if isinstance(running.work, Scoring):
            if now.paused:
                return "generation was paused in between"
            if running.work.lost:
                return "somebody aborted its requests"
        return ""

    def _standing(self) -> ProbeConditions:
        pause = getattr(getattr(self._engine.scheduler, "pause_state", None), "name", "UNPAUSED")
        return ProbeConditions(self._tap.update_count, self._tap.update_open, self._tap.flag_epoch, pause != "UNPAUSED")

    def _passages(self, command: Command, notes: list[str]) -> dict[int, list[int]]:
        """The ids of each passage, by its number, as long as may be scored here."""
        most = self._longest()
        found = {number: scoring.ids_of(passage, most) for number, passage in enumerate(command.passages)}
        if cut := sum(len(passage.ids) // 4 > most for passage in command.passages):
            notes.append(f"{cut} sequences were cut to their first {most} tokens, for want of memory or model length")
        return {number: ids for number, ids in found.items() if ids}

    def _plan(self, command: Command, passages: dict[int, list[int]]) -> scoring.Plan:
        ids = list(passages.values())
        if command.probe == "cache-salt":
            salts = [self._salts(command.passages[number].request_id) for number in passages]
            return _renumbered(scoring.hot_and_cold(ids, salts, fresh_salt), list(passages))
        return _renumbered(scoring.rescore(ids, fresh_salt), list(passages))

    def _longest(self) -> int:
        """The longest prompt that may be scored: by the model's length, and by the memory that its logits take."""
        model = self._engine.vllm_config.model_config
        free = [room for room in self._engine.model_executor.collective_rpc(ROOM) if room is not None]
        room = min([LOGIT_BYTES, *(one // 4 for one in free)])
        return int(min(model.max_model_len - 1, room // (BYTES_PER_LOGIT * model.get_vocab_size())))


def _renumbered(plan: scoring.Plan, numbers: list[int]) -> scoring.Plan:
    """The same plan, with the numbers that the command's passages have."""
    try:
        wanted = next(plan)
        while True:
            got = yield [replace(one, passage=numbers[one.passage]) for one in wanted]
            wanted = plan.send(got)
    except StopIteration:
        return
