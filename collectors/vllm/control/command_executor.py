"""Commands to one engine: taken on the sender's thread, executed on the engine's thread at a step boundary.

requested > accepted > (draining) > applied | refused | timed out | superseded, each once, idempotent by id. Nothing is
started while a weight update is open or after the command's deadline. What a command does for a time only, the engine
takes back by a command of its own, ``<id>/revert``, that goes the same way: the hub may be gone by then.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.contract.actions import BY_VERB, MAX_REVERT_S, PROBE, subject_of
from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.contract.wire import Command, CommandUpdate, Timer
from rltop.collectors.vllm.control.jobs import PAUSED, GenerationJob, Job, jobs_of
from rltop.collectors.vllm.control.switchboard import Switchboard
from rltop.collectors.vllm.control.timers import FlagTimer, FlagTimers
from rltop.collectors.vllm.engine_core import SwitchError, no_boundary
from rltop.collectors.vllm.patches import HostFailure, unseen
from rltop.collectors.vllm.probes.probe_executor import Prober
from rltop.collectors.vllm.rollouts.tap import Tap

REMEMBERED = 256
"""Commands remembered by id, so that one that comes again is answered, not executed again."""

CLOSED_SHOWN = 32
"""More than an engine can close while no hub lives: it has one command and one timer for each subject."""

RETRY_S = 1.0
"""How soon what the engine wants to take back is tried again where something stands against it."""

MAX_REASON_CHARS = 500
"""Of a reason on the wire: errors of the host may carry whole configurations."""

WAITS = "waits for the weight update under way to finish"
STRICT = "strict"
"""``FlagState.detail`` of a strict form."""

log = logging.getLogger("rltop")


@dataclass(frozen=True)
class LastCommand:
    """The command that spoke last on a subject, and what the subject was before and after it."""

    command: str
    value: str | None
    old: str | None
    old_strict: bool


class CommandExecutor:
    """The private queue of one engine's commands.

    Args:
        board: the switches of the engine core.
        name: id of the engine.
        tap: tells the step, whether an update is open, and gets the new flag epoch.
        version: policy version in use, and where it is known from.
        announce: have the updates sent, with a fresh state. From any thread.
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
        self.prober.end = self._probed
        self.generation = GenerationJob(board.engine)
        self._jobs = jobs_of(board, self.generation)
        self._engine = board.engine
        self._name = name
        self._tap = tap
        self._version = version
        self._announce = announce
        self._pending: deque[Command] = deque()
        self._updates: deque[CommandUpdate] = deque(maxlen=REMEMBERED)
        self._closed: deque[CommandUpdate] = deque(maxlen=CLOSED_SHOWN)
        self._known: OrderedDict[str, CommandUpdate] = OrderedDict()
        self._marks: dict[str, LastCommand] = {}
        self._leases = FlagTimers()
        self._not_before: dict[str, float] = {}  # of our own reverts that something stands against

    # --- the sender's thread --------------------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """Accept or refuse a command, and wake the engine for it."""
        if seen := self._known.get(command.id):
            self._updates.append(seen)
        elif time.time() > command.deadline:
            self._close(command, "timed_out", "it arrived after its deadline")
        elif command.verb == "keep":
            self._keep(command)
        elif fault := self._fault_of(command):
            self._close(command, "refused", fault)
        else:
            self._accept(command)

    def check(self) -> None:
        """Once a second: take back what was for a time only, and expire what waited too long, engine moving or not."""
        for lease in self._leases.running():
            if lease.verb == "pause" and self.generation.read() != PAUSED and self._leases.end(lease):
                self._supersede(lease, "somebody else paused or resumed generation since")
        for lease in self._leases.take_due(time.monotonic()):
            self._accept(_revert_of(lease))
        for command in list(self._pending):
            if gone := no_boundary(self._engine):
                if self._claim(command):
                    self._close(command, "refused", gone)
            elif time.time() > command.deadline and self._claim(command):
                waits = self._waits(command)
                self._close(command, "timed_out", waits or "the engine did not come to a step boundary in time")
        if self._pending or self.prober.busy:
            self._wake()

    def tick(self) -> None:
        """Some times a second: bring about the boundary that a probe goes on at."""
        if self.prober.due():
            self._wake()

    def repeat(self) -> None:
        """Tell a new hub of what is under way; what is closed stands in the state."""
        self._updates.extend(known for command in list(self._pending) if (known := self._known.get(command.id)))

    def take_updates(self) -> list[CommandUpdate]:
        """What has to be told since the last call. On the sender's thread only."""
        return [self._updates.popleft() for _ in range(len(self._updates))]

    def closed(self) -> list[CommandUpdate]:
        """The last commands this engine closed, newest last."""
        return list(self._closed)

    def timers(self) -> list[Timer]:
        """What the engine will take back by itself, soonest first."""
        return self._leases.timers()

    def _fault_of(self, command: Command) -> str:
        """Why the command can't be taken; empty if it can."""
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
            return f"a timer of {command.revert_s} s; more than 0 and at most {longest:.0f} can be asked for"
        return self._jobs[_subject(command)].obstacle(_value(command), strict=command.strict)

    def _accept(self, command: Command) -> None:
        self._note(self._update(command, "accepted"))
        self._pending.append(command)
        self._wake()

    def _keep(self, command: Command) -> None:
        lease, target = self._leases.find(command.target), command.target
        if lease is not None and lease.verb == "pause":
            self._close(command, "refused", "a pause always ends by itself; `rltop pause` again renews its timer")
        elif lease is not None and self._leases.keep(lease):
            now = self._jobs[lease.subject].read()
            self._close(command, "applied", "its timer is stopped", flag=lease.flag, old=now, new=now)
        elif self._leases.was_kept(target):
            self._close(command, "applied", "kept already")
        elif over := self._known.get(f"{target}/revert"):
            self._close(command, "refused", f"its time is over: the revert is {over.state}", flag=over.flag)
        else:
            self._close(command, "refused", f"no timer of command {target} runs on this engine")

    def _wake(self) -> None:
        """An idle or paused engine blocks on its input queue; WAKEUP is newer than 0.18, an empty abort always was."""
        kinds = sys.modules["vllm.v1.engine"].EngineCoreRequestType
        message: tuple[Any, Any] = (kinds.WAKEUP, None) if hasattr(kinds, "WAKEUP") else (kinds.ABORT, [])
        self._engine.input_queue.put_nowait(message)

    # --- the engine's thread --------------------------------------------------------------------------------------

    def at_boundary(self, *_message: Any, **_kwargs: Any) -> None:
        """After every message to the engine core, between two steps: execute what is pending."""
        for command in list(self._pending):  # a copy: the sender's thread may take out what waited too long
            if time.monotonic() < self._not_before.get(command.id, 0.0):
                continue
            if time.time() <= command.deadline and (waits := self._waits(command)):
                self._say_waiting(command, waits)
            elif self._claim(command):
                try:
                    self._execute(command)
                except Exception as error:
                    if command.id not in {update.id for update in self.closed()}:  # nobody is left without an answer
                        self._close(command, "refused", f"the collector failed: {type(error).__name__}: {error}")
                    raise
                finally:
                    self._announce()
        self.prober.at_boundary()

    def _probe(self, command: Command) -> None:
        if obstacle := self.prober.obstacle(command):  # it may have come since
            return self._close(command, "refused", obstacle)
        self._note(self._update(command, "running"))
        return self.prober.begin(command)

    def _probed(self, command: Command, state: str, reason: str, milliseconds: float) -> None:
        self._close(command, state, reason, milliseconds=milliseconds)
        self._announce()

    def _execute(self, command: Command) -> None:
        subject, value = _subject(command), _value(command)
        job, mark = self._jobs[subject], self._marks.get(subject)
        if time.time() > command.deadline:
            late = self._waits(command) or "its deadline passed before the engine came to a step boundary"
            return self._close(command, "timed_out", late)
        if command.verb == PROBE:
            return self._probe(command)
        job.refresh()
        old, old_strict = job.read(), job.detail() == STRICT
        if command.target and (since := _changed_since(command, mark, old)):
            return self._close(command, "superseded", since, old=old, new=old)
        strict = command.strict or (bool(command.target) and mark is not None and mark.old_strict)
        if obstacle := job.obstacle(value, strict=strict) or _no_way_back(command, old):
            if command.deadline == math.inf:
                return self._try_later(command, obstacle)
            return self._close(command, "refused", obstacle, old=old, new=old)
        facts: dict[str, Any] = {"old": old, "new": old}
        facts["in_flight"] = len(self._engine.scheduler.requests)
        as_it_was = not command.target or strict == old_strict  # what is taken back goes back to the very form
        if as_it_was and job.stands(value, strict=strict):
            return self._applied(command, job, LastCommand(command.id, old, old, old_strict), f"already {old}", facts)
        return self._switch(command, job, LastCommand(command.id, None, old, old_strict), strict, facts)

    def _switch(self, command: Command, job: Job, mark: LastCommand, strict: bool, facts: dict[str, Any]) -> None:
        """Do it, and count who was lost: if anybody was, it is undone."""
        engine, tap, value, failed = self._engine, self._tap, _value(command), ""
        self.prober.stop("superseded", f"overtaken by {command.id} on {_subject(command)}")
        facts["in_flight"] = len(engine.scheduler.requests)
        before = set(engine.scheduler.requests)
        started = time.perf_counter()
        tap.finished_ids = set()
        try:
            job.perform(value, strict=strict)
        except SwitchError as error:
            failed = str(error)
        except Exception as error:  # an answer, which must not count against the boundary: timers end there too
            failed = f"{type(error).__name__}: {error}"
            log.warning("rltop: %s of %s failed", command.verb, _subject(command), exc_info=True)
        except HostFailure as failure:
            self._close(command, "refused", f"the engine failed while it drained: {failure.error}")
            raise
        finally:
            finished, tap.finished_ids = tap.finished_ids, None
            changed = (job.read(), job.detail() == STRICT) != (mark.old, mark.old_strict)
            if command.verb == "set" and changed:
                tap.flag_epoch += 1
                facts["flag_epoch"] = tap.flag_epoch
        if not unseen(engine):
            facts["lost_requests"] = len(before - finished - set(engine.scheduler.requests))
        facts["milliseconds"] = (time.perf_counter() - started) * 1e3
        facts["new"] = job.read()
        if failed:
            became = f"it reads {facts['new']} now" if changed else "was undone"
            return self._close(command, "refused", f"the switch failed and {became}: {failed}", **facts)
        if facts.get("lost_requests"):
            return self._take_back(command, job, mark, facts)
        mark = LastCommand(command.id, facts["new"], mark.old, mark.old_strict)
        return self._applied(command, job, mark, job.note(), facts)

    def _take_back(self, command: Command, job: Job, mark: LastCommand, facts: dict[str, Any]) -> None:
        reason = f"{facts['lost_requests']} requests were lost, and it could not be undone"
        try:
            if command.verb == "set" or BY_VERB[command.verb].undo:
                job.perform(str(mark.old), strict=mark.old_strict)
                reason = f"{facts['lost_requests']} requests were lost, so it was undone"
                facts.pop("flag_epoch", None)
        finally:
            self._close(command, "refused", reason, **facts | {"new": job.read()})

    def _applied(self, command: Command, job: Job, mark: LastCommand, reason: str, facts: dict[str, Any]) -> None:
        """Close it, with the timer it asked for; it ends the one that ran on the same subject."""
        subject = _subject(command)
        self._marks[subject] = mark
        earlier = self._leases.before(subject)
        lease = self._lease(command, mark, earlier, job.detail() == STRICT)
        superseded = earlier is not None and self._leases.end(earlier)
        if lease is not None:
            self._leases.start(lease)
        at = lease.at if lease is not None else None
        self._close(command, "applied", reason, **facts, detail=job.detail(), reverts_at=at)
        if earlier is not None and superseded:
            self._supersede(earlier, f"{command.id} spoke on {subject} since")

    def _lease(
        self, command: Command, mark: LastCommand, earlier: FlagTimer | None, strict_now: bool
    ) -> FlagTimer | None:
        """The timer that a command asks for: back to what was before any timer, if that is something else."""
        action = BY_VERB.get(command.verb)
        seconds = command.revert_s if command.revert_s is not None else action.guard_s if action else None
        back_to, strict = (earlier.back_to, earlier.back_strict) if earlier else (mark.old, mark.old_strict)
        if seconds is None or back_to is None or (back_to, strict) == (mark.value, strict_now):
            return None
        return FlagTimer(
            command.id, _subject(command), command.verb, command.flag, back_to, strict,
            time.monotonic() + seconds, time.time() + seconds,
        )  # fmt: skip

    # --- both -----------------------------------------------------------------------------------------------------

    def _waits(self, command: Command) -> str:
        """What the command has to wait for; empty for nothing."""
        return WAITS if self._tap.update_open else self._jobs[_subject(command)].waits(_value(command))

    def _say_waiting(self, command: Command, reason: str) -> None:
        """Once: reasons count requests, and would come anew each time."""
        noted = self._known.get(command.id)  # None: so many came since that it was forgotten
        if noted is None or noted.state != "draining":
            self._note(self._update(command, "draining", reason=reason))
            self._announce()

    def _try_later(self, command: Command, obstacle: str) -> None:
        """What is for a time only must end: what stands against that is waited for, and told."""
        self._not_before[command.id] = time.monotonic() + RETRY_S
        self._say_waiting(command, obstacle)
        self._pending.append(command)

    def _claim(self, command: Command) -> bool:
        """True for exactly one of the threads that want to close this command."""
        try:
            self._pending.remove(command)
        except ValueError:
            return False
        return True

    def _supersede(self, lease: FlagTimer, reason: str) -> None:
        now = self._jobs[lease.subject].read()
        self._close(_revert_of(lease), "superseded", reason, old=now, new=now)

    def _update(self, command: Command, state: str, **facts: Any) -> CommandUpdate:
        version, _ = self._version()
        about: dict[str, Any] = {
            "flag": command.flag,
            "engine_step": self._tap.step,
            "policy_version": version,
            "time": time.time(),
            "verb": command.verb,
            "reverts": "" if command.verb == "keep" else command.target,
        }
        return CommandUpdate(id=command.id, engine=self._name, state=state, **about | facts)

    def _close(self, command: Command, state: str, reason: str, **facts: Any) -> None:
        self._leases.settle(command.id)
        self._not_before.pop(command.id, None)
        update = self._update(command, state, reason=reason[:MAX_REASON_CHARS], **facts)
        self._closed.append(update)
        self._note(update)

    def _note(self, update: CommandUpdate) -> None:
        self._known[update.id] = update
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._updates.append(update)


def _subject(command: Command) -> str:
    return subject_of(command.verb, command.flag)


def _value(command: Command) -> str:
    """What the subject is to read afterwards; empty where it has nothing to read."""
    return command.value if command.verb == "set" else BY_VERB[command.verb].value if command.verb in BY_VERB else ""


def _revert_of(lease: FlagTimer) -> Command:
    """The engine's own command that ends a lease. It has no deadline: it may have to wait for a weight update."""
    verb = BY_VERB[lease.verb].undo if lease.verb in BY_VERB else "set"
    value = lease.back_to if lease.flag else ""
    return Command(lease.revert, lease.flag, value, math.inf, verb, lease.back_strict, target=lease.command)


def _no_way_back(command: Command, now: str | None) -> str:
    """Why it can't be done for a time only; empty if it can."""
    if command.verb != "set" or command.revert_s is None or now in BY_NAME[command.flag].values:
        return ""
    return f"{command.flag} reads {now}, to which it could not be taken back; switch it without a timer"


def _changed_since(command: Command, mark: LastCommand | None, now: str | None) -> str:
    """Why what ``command.target`` did does not stand any more; empty if it does."""
    subject = _subject(command)
    if mark is None or mark.command != command.target:
        other = f"by {mark.command}" if mark else "in this life of the engine"
        return f"left alone: {subject} was last set {other}, not by {command.target}"
    if now != mark.value:
        return f"left alone: {subject} reads {now}, not {mark.value} as {command.target} left it; somebody changed it"
    return ""
