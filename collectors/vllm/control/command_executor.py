"""Executes commands on one engine: received on the sender's thread, executed on the engine's thread at a step boundary.

State machine: requested → accepted → (draining) → applied | refused | timed_out | superseded. Each command is closed
once; commands are idempotent by id. Nothing is started during a weight update or after the command's deadline. If a
command has a timer, the engine itself reverts it by a command ``<id>/revert``, which takes the same path: the hub may
be gone by then.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rltop.collectors.contract.actions import BY_VERB, MAX_REVERT_S, PROBE, subject_of
from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.contract.wire import Command, CommandUpdate, Timer
from rltop.collectors.vllm.control.jobs import PAUSED, GenerationJob, Job, jobs_of
from rltop.collectors.vllm.control.switchboard import Switchboard
from rltop.collectors.vllm.control.timers import FlagTimer, FlagTimers
from rltop.collectors.vllm.engine_core import SwitchError, why_no_boundary
from rltop.collectors.vllm.in_process import is_in_process
from rltop.collectors.vllm.patches import HostFailure, wake, why_steps_unseen
from rltop.collectors.vllm.probes.probe_executor import Prober
from rltop.collectors.vllm.rollouts.tap import Tap

REMEMBERED = 256
"""Commands remembered by id: a repeated command is answered, not executed again."""

CLOSED_SHOWN = 32
"""More than an engine can close without a hub: it has one command and one timer per subject."""

RETRY_S = 1.0
"""Interval between attempts of a revert that can't be executed now."""

MAX_REASON_CHARS = 500
"""Bound on a reason sent to the hub: exceptions of vLLM may contain whole configurations."""

WAITS = "waits for the weight update in progress to finish"
WAITS_FOR_CALLER = "waits for the engine's next step, which its caller runs"
NO_BOUNDARY_IN_TIME = "the engine reached no step boundary before the deadline"
NO_STEP_IN_TIME = "the engine's caller ran no step before the deadline; a longer --timeout waits for the next one"
STRICT = "strict"
"""``FlagState.detail`` of a strict form."""

log = logging.getLogger("rltop")


class Reading(NamedTuple):
    """A subject's value as read, and whether it is in its strict form."""

    value: str | None
    strict: bool


@dataclass(frozen=True)
class LastCommand:
    """The last command that was applied to a subject, the reading before it and the value after it."""

    command: str
    before: Reading
    after: str | None


@dataclass(frozen=True)
class Execution:
    """One execution of a command.

    Attributes:
        job: the subject's job.
        value, strict: what the subject is set to, and whether in the strict form.
        before: the reading before the execution.
        facts: fields of the ``CommandUpdate`` that closes the command.
    """

    command: Command
    job: Job
    value: str
    strict: bool
    before: Reading
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The command's subject."""
        return _subject(self.command)

    @property
    def is_done(self) -> bool:
        """Whether the subject has the wanted value already. An undo must also restore the form."""
        same_form = not self.command.target or self.strict == self.before.strict
        return same_form and self.job.stands(self.value, strict=self.strict)


class CommandExecutor:
    """The command queue of one engine.

    Args:
        board: the switches of the engine core.
        name: id of the engine.
        tap: provides the engine step and whether an update is open; its flag epoch is incremented here.
        version: returns the policy version in use and its source.
        announce: sends the updates together with a fresh state. From any thread.
        prober: runs probes.
    """

    def __init__(
        self,
        board: Switchboard,
        name: str,
        tap: Tap,
        version: Callable[[], tuple[int | None, str]],
        announce: Callable[[], None],
        prober: Prober | None = None,
    ) -> None:
        self.prober = prober or Prober(board.engine, name, tap, version)
        self.prober.end = self._close_probe
        self.generation = GenerationJob(board.engine)
        self._jobs = jobs_of(board, self.generation)
        self._engine = board.engine
        self._in_process = is_in_process(board.engine)
        self._name = name
        self._tap = tap
        self._version = version
        self._announce = announce
        self._pending: deque[Command] = deque()
        self._updates: deque[CommandUpdate] = deque(maxlen=REMEMBERED)
        self._closed: deque[CommandUpdate] = deque(maxlen=CLOSED_SHOWN)
        self._known: OrderedDict[str, CommandUpdate] = OrderedDict()
        self._last: dict[str, LastCommand] = {}
        self._timers = FlagTimers()
        self._retry_at: dict[str, float] = {}  # by revert; monotonic clock, seconds

    # --- the sender's thread --------------------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """Accept or refuse a command, and wake the engine for it."""
        if known := self._known.get(command.id):
            self._updates.append(known)
        elif time.time() > command.deadline:
            self._close(command, "timed_out", "arrived after its deadline")
        elif command.verb == "keep":
            self._keep(command)
        elif fault := self._fault_of(command):
            self._close(command, "refused", fault)
        else:
            self._accept(command)

    def check(self) -> None:
        """Once a second: start due reverts and expire commands past their deadline, even if the engine is blocked."""
        for timer in self._timers.running():
            if timer.verb == "pause" and self.generation.read() != PAUSED and self._timers.stop(timer):
                self._supersede(timer, "another caller paused or resumed generation since")
        for timer in self._timers.pop_due(time.monotonic()):
            self._accept(_revert_of(timer))
        for command in list(self._pending):
            if fault := why_no_boundary(self._engine):
                if self._claim(command):
                    self._close(command, "refused", fault)
            elif time.time() > command.deadline and self._claim(command):
                self._close_late(command)
        if self._pending or self.prober.busy:
            self.wake()

    def tick(self) -> None:
        """A few times per second: trigger a step boundary if a running probe needs one."""
        if self.prober.due():
            self.wake()

    def resend_pending(self) -> None:
        """Repeat the updates of pending commands, for a new hub; closed ones are part of the state."""
        self._updates.extend(known for command in list(self._pending) if (known := self._known.get(command.id)))

    def pop_updates(self) -> list[CommandUpdate]:
        """Return and forget the updates to send. On the sender's thread only."""
        return [self._updates.popleft() for _ in range(len(self._updates))]

    def closed(self) -> list[CommandUpdate]:
        """The last commands this engine closed, newest last."""
        return list(self._closed)

    def timers(self) -> list[Timer]:
        """Running timers, the next to expire first."""
        return self._timers.as_wire()

    def _fault_of(self, command: Command) -> str:
        """Why the command can't be accepted; empty if it can."""
        flag, action = BY_NAME.get(command.flag), BY_VERB.get(command.verb)
        if command.verb == "set":
            if flag is None or command.flag not in self._jobs:
                known = ", ".join(subject for subject in self._jobs if subject in BY_NAME)
                return f"unknown flag {command.flag!r}; this engine knows {known}"
            if command.value not in flag.values:
                return f"{command.value!r} is not one of {', '.join(flag.values)}"
            if command.strict and not flag.strict:
                return f"{flag.name} has no strict form"
        elif command.verb == PROBE:
            return self.prober.obstacle(command)
        elif action is None:
            return f"unknown command {command.verb!r}; this engine knows set, keep, probe, {', '.join(BY_VERB)}"
        longest = action.max_guard_s if action else MAX_REVERT_S
        if command.revert_s is not None and not 0 < command.revert_s <= longest:
            return f"a timer of {command.revert_s} s; expected more than 0 and at most {longest:.0f} s"
        return self._jobs[_subject(command)].obstacle(_value(command), strict=command.strict)

    def _accept(self, command: Command) -> None:
        self._publish(self._update(command, "accepted", reason=WAITS_FOR_CALLER if self._in_process else ""))
        self._pending.append(command)
        self.wake()

    def _keep(self, command: Command) -> None:
        timer, target = self._timers.find(command.target), command.target
        if timer is not None and timer.verb == "pause":
            reason = "a pause always auto-reverts; run `rltop pause` again to renew its timer"
            self._close(command, "refused", reason)
        elif timer is not None and self._timers.keep(timer):
            now = self._jobs[timer.subject].read()
            self._close(command, "applied", "timer stopped", flag=timer.flag, old=now, new=now)
        elif self._timers.was_kept(target):
            self._close(command, "applied", "already kept")
        elif revert := self._known.get(f"{target}/revert"):
            self._close(command, "refused", f"the timer has expired: the revert is {revert.state}", flag=revert.flag)
        else:
            self._close(command, "refused", f"this engine has no timer of command {target}")

    def wake(self) -> None:
        """Trigger a step boundary. From any thread."""
        if not self._in_process:  # such an engine waits for its caller
            wake(self._engine)

    # --- the engine's thread --------------------------------------------------------------------------------------

    def at_boundary(self, *_message: Any, **_kwargs: Any) -> None:
        """Execute pending commands. Called between two steps, after every message to the engine core."""
        for command in list(self._pending):  # a copy: the sender's thread may remove expired commands
            if time.monotonic() < self._retry_at.get(command.id, 0.0):
                continue
            if time.time() <= command.deadline and (reason := self._wait_reason(command)):
                self._report_waiting(command, reason)
            elif self._claim(command):
                try:
                    self._execute(command)
                except Exception as error:
                    if command.id not in {update.id for update in self.closed()}:  # every command is answered
                        self._close(command, "refused", f"the collector failed: {type(error).__name__}: {error}")
                    raise
                finally:
                    self._announce()
        self.prober.at_boundary()

    def _start_probe(self, command: Command) -> None:
        if obstacle := self.prober.obstacle(command):  # it may have arisen since the command was accepted
            return self._close(command, "refused", obstacle)
        self._publish(self._update(command, "running"))
        return self.prober.begin(command)

    def _close_probe(self, command: Command, state: str, reason: str, milliseconds: float) -> None:
        self._close(command, state, reason, milliseconds=milliseconds)
        self._announce()

    def _execute(self, command: Command) -> None:
        """Check a command against the present state of its subject, then close it or perform it."""
        if time.time() > command.deadline:
            return self._close_late(command)
        if command.verb == PROBE:
            return self._start_probe(command)
        subject = _subject(command)
        job, last = self._jobs[subject], self._last.get(subject)
        job.refresh()
        before = _reading(job)
        unchanged = {"old": before.value, "new": before.value}
        if command.target and (reason := _changed_since(command, last, before.value)):
            return self._close(command, "superseded", reason, **unchanged)
        strict = command.strict or (bool(command.target) and last is not None and last.before.strict)
        execution = Execution(command, job, _value(command), strict, before, unchanged)
        if obstacle := job.obstacle(execution.value, strict=strict) or _no_way_back(command, before.value):
            if command.deadline == math.inf:  # a revert, which has to happen
                return self._retry_later(command, obstacle)
            return self._close(command, "refused", obstacle, **unchanged)
        if execution.is_done:
            execution.facts["in_flight"] = len(self._engine.scheduler.requests)
            return self._close_applied(execution, f"already {before.value}")
        return self._perform(execution)

    def _perform(self, execution: Execution) -> None:
        """Perform a command and count the requests that it lost; if it lost any, undo it."""
        command, job, facts, scheduler = execution.command, execution.job, execution.facts, self._engine.scheduler
        self.prober.stop("superseded", f"interrupted by {command.id} on {execution.subject}")
        in_flight = set(scheduler.requests)
        facts["in_flight"] = len(in_flight)
        started = time.perf_counter()
        error, finished = self._run_job(execution)
        if not why_steps_unseen(self._engine):
            facts["lost_requests"] = len(in_flight - finished - set(scheduler.requests))
        facts["milliseconds"] = (time.perf_counter() - started) * 1e3
        facts["new"] = job.read()
        if error:
            outcome = "was undone" if _reading(job) == execution.before else f"left the value at {facts['new']}"
            self._close(command, "refused", f"the switch failed and {outcome}: {error}", **facts)
        elif facts.get("lost_requests"):
            self._undo(execution)
        else:
            self._close_applied(execution, job.note())

    def _run_job(self, execution: Execution) -> tuple[str, set[str]]:
        """Run the job.

        Returns:
            The error, empty if there was none, and the requests that finished while the engine drained.

        Raises:
            HostFailure: vLLM's own code failed; the command is closed.
        """
        command, tap, error = execution.command, self._tap, ""
        finished: set[str] = set()
        tap.finished_ids = finished
        try:
            execution.job.perform(execution.value, strict=execution.strict)
        except SwitchError as fault:
            error = str(fault)
        except Exception as fault:  # becomes the answer: it must not count as a fault of the boundary, where timers end
            error = f"{type(fault).__name__}: {fault}"
            log.warning("rltop: %s of %s failed", command.verb, execution.subject, exc_info=True)
        except HostFailure as failure:
            self._close(command, "refused", f"the engine failed while it drained: {failure.error}")
            raise
        finally:
            tap.finished_ids = None
            if command.verb == "set" and _reading(execution.job) != execution.before:
                tap.flag_epoch += 1
                execution.facts["flag_epoch"] = tap.flag_epoch
        return error, finished

    def _undo(self, execution: Execution) -> None:
        """Restore the reading before a command that lost requests, if it has a way back, and close it as refused."""
        command, job, facts = execution.command, execution.job, execution.facts
        outcome = "it could not be undone"
        try:
            if command.verb == "set" or BY_VERB[command.verb].undo:
                job.perform(str(execution.before.value), strict=execution.before.strict)
                outcome = "it was undone"
                facts.pop("flag_epoch", None)
        finally:
            reason = f"{facts['lost_requests']} requests were lost; {outcome}"
            self._close(command, "refused", reason, **facts | {"new": job.read()})

    def _close_applied(self, execution: Execution, reason: str) -> None:
        """Close a command as applied and start its timer; an earlier timer on the same subject ends."""
        command, job, facts, subject = execution.command, execution.job, execution.facts, execution.subject
        self._last[subject] = LastCommand(command.id, execution.before, facts["new"])
        earlier = self._timers.latest(subject)
        timer = self._timer_for(execution, earlier)
        superseded = earlier is not None and self._timers.stop(earlier)
        if timer is not None:
            self._timers.start(timer)
        at = timer.at if timer is not None else None
        self._close(command, "applied", reason, **facts, detail=job.detail(), reverts_at=at)
        if earlier is not None and superseded:
            self._supersede(earlier, f"{command.id} was applied to {subject} since")

    def _timer_for(self, execution: Execution, earlier: FlagTimer | None) -> FlagTimer | None:
        """The timer of an applied command: back to the reading before any timer. None if there is nothing to revert."""
        command, action = execution.command, BY_VERB.get(execution.command.verb)
        default_s = action.guard_s if action else None
        seconds = default_s if command.revert_s is None else command.revert_s
        back = Reading(earlier.back_to, earlier.back_strict) if earlier else execution.before
        now = Reading(execution.facts["new"], execution.job.detail() == STRICT)
        if seconds is None or back.value is None or back == now:
            return None
        return FlagTimer(
            command.id, execution.subject, command.verb, command.flag, back.value, back.strict,
            time.monotonic() + seconds, time.time() + seconds,
        )  # fmt: skip

    # --- both -----------------------------------------------------------------------------------------------------

    def _close_late(self, command: Command) -> None:
        no_boundary = NO_STEP_IN_TIME if self._in_process else NO_BOUNDARY_IN_TIME
        self._close(command, "timed_out", self._wait_reason(command) or no_boundary)

    def _wait_reason(self, command: Command) -> str:
        """Why the command has to wait; empty if it doesn't."""
        return WAITS if self._tap.update_open else self._jobs[_subject(command)].waits(_value(command))

    def _report_waiting(self, command: Command, reason: str) -> None:
        """Publish ``draining`` once: the reason may contain counts that change every time."""
        known = self._known.get(command.id)  # None: more than ``REMEMBERED`` commands came since
        if known is None or known.state != "draining":
            self._publish(self._update(command, "draining", reason=reason))
            self._announce()

    def _retry_later(self, command: Command, obstacle: str) -> None:
        """Keep a revert pending until its obstacle is gone: a temporary change must end."""
        self._retry_at[command.id] = time.monotonic() + RETRY_S
        self._report_waiting(command, obstacle)
        self._pending.append(command)

    def _claim(self, command: Command) -> bool:
        """Remove the command from the pending ones. True for exactly one of the threads that want to close it."""
        try:
            self._pending.remove(command)
        except ValueError:
            return False
        return True

    def _supersede(self, timer: FlagTimer, reason: str) -> None:
        now = self._jobs[timer.subject].read()
        self._close(_revert_of(timer), "superseded", reason, old=now, new=now)

    def _update(self, command: Command, state: str, **facts: Any) -> CommandUpdate:
        version, _ = self._version()
        common: dict[str, Any] = {
            "flag": command.flag,
            "engine_step": self._tap.step,
            "policy_version": version,
            "time": time.time(),
            "verb": command.verb,
            "reverts": "" if command.verb == "keep" else command.target,
            "wanted": _value(command),
        }
        return CommandUpdate(id=command.id, engine=self._name, state=state, **common | facts)

    def _close(self, command: Command, state: str, reason: str, **facts: Any) -> None:
        self._timers.forget_due(command.id)
        self._retry_at.pop(command.id, None)
        update = self._update(command, state, reason=reason[:MAX_REASON_CHARS], **facts)
        self._closed.append(update)
        self._publish(update)

    def _publish(self, update: CommandUpdate) -> None:
        self._known[update.id] = update
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._updates.append(update)


def _reading(job: Job) -> Reading:
    return Reading(job.read(), job.detail() == STRICT)


def _subject(command: Command) -> str:
    return subject_of(command.verb, command.flag)


def _value(command: Command) -> str:
    """The value that the command sets its subject to; empty if the subject has none to read."""
    return command.value if command.verb == "set" else BY_VERB[command.verb].value if command.verb in BY_VERB else ""


def _revert_of(timer: FlagTimer) -> Command:
    """The engine's own command that reverts ``timer``. It has no deadline, since it may wait for a weight update."""
    verb = BY_VERB[timer.verb].undo if timer.verb in BY_VERB else "set"
    value = timer.back_to if timer.flag else ""
    return Command(timer.revert, timer.flag, value, math.inf, verb, timer.back_strict, target=timer.command)


def _no_way_back(command: Command, now: str | None) -> str:
    """Why the command can't have a timer; empty if it can or has none."""
    if command.verb != "set" or command.revert_s is None or now in BY_NAME[command.flag].values:
        return ""
    return f"{command.flag} reads {now}, to which it can't be reverted; switch it without a timer"


def _changed_since(command: Command, last: LastCommand | None, now: str | None) -> str:
    """Why there is nothing of ``command.target`` left to undo; empty if its change is still in place."""
    subject = _subject(command)
    if last is None or last.command != command.target:
        by = f"last set by {last.command}" if last else "not set since the engine started"
        return f"left unchanged: {subject} was {by}, not by {command.target}"
    if now != last.after:
        return (
            f"left unchanged: {subject} reads {now}, not {last.after} as {command.target} left it; it was changed since"
        )
    return ""
