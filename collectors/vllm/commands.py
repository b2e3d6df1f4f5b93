"""Commands to one engine: taken on the sender's thread, executed on the engine's thread at a step boundary.

requested > accepted > (draining) > applied | refused | timed_out, each once, idempotent by id. Nothing is started
while a weight update is open or after the command's deadline.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from rltop.collectors.flags import BY_NAME
from rltop.collectors.vllm.seams import HostFailure
from rltop.collectors.vllm.switches import Board
from rltop.collectors.vllm.tap import Tap
from rltop.collectors.wire import Command, CommandUpdate

REMEMBERED = 256
"""Commands remembered by id, so that one that comes again is answered, not executed again."""

CLOSED_SHOWN = 16
WAITS = "waits for the weight update under way to finish"


class Commands:
    """The private queue of one engine's commands.

    Args:
        board: the switches of the engine core.
        name: id of the engine.
        tap: tells the step, whether an update is open, and gets the new flag epoch.
        version: policy version in use, and where it is known from.
        announce: have the updates sent, with a fresh state. From any thread.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        tap: Tap,
        version: Callable[[], tuple[int | None, str]],
        announce: Callable[[], None],
    ) -> None:
        self._board = board
        self._engine = board.engine
        self._name = name
        self._tap = tap
        self._version = version
        self._announce = announce
        self._pending: deque[Command] = deque()
        self._updates: deque[CommandUpdate] = deque(maxlen=REMEMBERED)
        self._closed: deque[CommandUpdate] = deque(maxlen=CLOSED_SHOWN)
        self._known: OrderedDict[str, CommandUpdate] = OrderedDict()

    # --- the sender's thread --------------------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """Accept or refuse a command, and wake the engine for it."""
        if seen := self._known.get(command.id):
            self._updates.append(seen)
            return
        flag = BY_NAME.get(command.flag)
        if flag is None or command.flag not in self._board.switches:
            known = ", ".join(self._board.switches)
            self._close(command, "refused", f"unknown flag {command.flag!r}; this engine knows {known}")
        elif command.value not in flag.values:
            self._close(command, "refused", f"{command.value!r} is not one of {', '.join(flag.values)}")
        elif time.time() > command.deadline:
            self._close(command, "timed_out", "it arrived after its deadline")
        elif obstacle := self._board.switches[command.flag].obstacle():
            self._close(command, "refused", obstacle)
        else:
            self._note(self._update(command, "accepted"))
            self._pending.append(command)
            self._wake()

    def check(self) -> None:
        """Once a second: expire what waited too long, whether or not the engine moves."""
        for command in list(self._pending):
            if time.time() > command.deadline and self._claim(command):
                reason = WAITS if self._tap.update_open else "the engine did not come to a step boundary in time"
                self._close(command, "timed_out", reason)
        if self._pending:
            self._wake()

    def take_updates(self) -> list[CommandUpdate]:
        """What has to be told since the last call. On the sender's thread only."""
        return [self._updates.popleft() for _ in range(len(self._updates))]

    def closed(self) -> list[CommandUpdate]:
        """The last commands this engine closed, newest last."""
        return list(self._closed)

    def _wake(self) -> None:
        """An idle or paused engine blocks on its input queue; WAKEUP is newer than 0.18, an empty abort always was."""
        kinds = sys.modules["vllm.v1.engine"].EngineCoreRequestType
        message: tuple[Any, Any] = (kinds.WAKEUP, None) if hasattr(kinds, "WAKEUP") else (kinds.ABORT, [])
        self._engine.input_queue.put_nowait(message)

    # --- the engine's thread --------------------------------------------------------------------------------------

    def at_boundary(self, *_message: Any, **_kwargs: Any) -> None:
        """After every message to the engine core, between two steps: execute what is pending."""
        for command in list(self._pending):  # a copy: the sender's thread may take out what waited too long
            if self._tap.update_open and time.time() <= command.deadline:
                noted = self._known.get(command.id)  # None: so many came since that it was forgotten
                if noted is None or noted.state != "draining":
                    self._note(self._update(command, "draining", reason=WAITS))
                    self._announce()
                return
            if self._claim(command):
                try:
                    self._execute(command)
                finally:
                    self._announce()

    def _execute(self, command: Command) -> None:
        engine, tap = self._engine, self._tap
        switch = self._board.switches[command.flag]
        if time.time() > command.deadline:
            return self._close(command, "timed_out", "its deadline passed before the engine came to a step boundary")
        switch.refresh()
        if obstacle := switch.obstacle():
            return self._close(command, "refused", obstacle)
        old = switch.read()
        before = set(engine.scheduler.requests)
        facts: dict[str, Any] = {
            "old": old,
            "new": old,
            "in_flight": len(before),
            "lost_requests": 0,
            "milliseconds": 0.0,
        }
        if old == command.value:
            return self._close(command, "applied", f"already {old}", **facts)
        started = time.perf_counter()
        tap.finished_ids = set()
        try:
            self._board.flip(command.flag, command.value)
        except Exception as error:
            self._close(command, "refused", f"the switch failed and was undone: {error}")
            raise
        except HostFailure as failure:
            self._close(command, "refused", f"the engine failed while it drained: {failure.error}")
            raise
        finally:
            finished, tap.finished_ids = tap.finished_ids, None
        tap.epoch += 1
        facts |= {
            "new": switch.read(),
            "lost_requests": len(before - finished - set(engine.scheduler.requests)),
            "milliseconds": (time.perf_counter() - started) * 1e3,
        }
        return self._close(command, "applied", switch.note(), **facts)

    # --- both -----------------------------------------------------------------------------------------------------

    def _claim(self, command: Command) -> bool:
        """True for exactly one of the threads that want to close this command."""
        try:
            self._pending.remove(command)
        except ValueError:
            return False
        return True

    def _update(self, command: Command, state: str, **facts: Any) -> CommandUpdate:
        version, _ = self._version()
        return CommandUpdate(
            command.id,
            self._name,
            command.flag,
            state,
            engine_step=self._tap.step,
            policy_version=version,
            time=time.time(),
            **facts,
        )

    def _close(self, command: Command, state: str, reason: str, **facts: Any) -> None:
        update = self._update(command, state, reason=reason, **facts)
        self._closed.append(update)
        self._note(update)

    def _note(self, update: CommandUpdate) -> None:
        self._known[update.id] = update
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        self._updates.append(update)
