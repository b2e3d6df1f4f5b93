"""Executes commands on a server that is attached by URL, as far as vLLM's development routes can."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Collection
from typing import Any

from rltop.backend.attach.server_routes import DEV, Routes, ServerError
from rltop.collectors.contract.actions import BY_VERB, PROBE
from rltop.collectors.contract.wire import Command, CommandUpdate, Timer

REMEMBERED = 256
CLOSED_SHOWN = 32

NO_PLUGIN = (
    "attached by URL: only the plugin in the engine's process can do this (`rltop attach --pid`, docs/attach.md)"
)

FLUSH, PAUSE, RESUME = "/reset_prefix_cache", "/pause", "/resume"
ROUTES = {"flush_cache": FLUSH, "pause": PAUSE, "resume": RESUME}
"""Verb of a command -> the route that executes it."""


class RefusedError(RuntimeError):
    """A command can't be executed; the message is its reason."""


class ServerCommands:
    """The commands of one engine id. They act on the whole server, whose engines share its routes.

    Args:
        engine: id of the engine.
        routes: of the server.
        paths: that the server offers; empty if it does not list them.
    """

    def __init__(self, engine: str, routes: Routes, paths: Collection[str]) -> None:
        self._engine = engine
        self._routes = routes
        self._paths = paths
        self._pending: deque[Command] = deque()
        self._known: OrderedDict[str, CommandUpdate] = OrderedDict()
        self._closed: deque[CommandUpdate] = deque(maxlen=CLOSED_SHOWN)
        self._pause: Timer | None = None
        self._due = math.inf  # monotonic clock, seconds

    def receive(self, command: Command) -> CommandUpdate:
        """Queue a command, from any thread; the update to send."""
        if known := self._known.get(command.id):
            return known
        self._pending.append(command)
        return self._remember(self._update(command, "accepted"))

    def execute(self) -> list[CommandUpdate]:
        """Execute the queued commands and a due resume; the updates to send."""
        updates = [self._resume_due()] if time.monotonic() >= self._due else []
        while self._pending:
            updates.append(self._close(self._pending.popleft()))
        return updates

    def closed(self) -> list[CommandUpdate]:
        """The last closed commands, newest last."""
        return list(self._closed)

    def timers(self) -> list[Timer]:
        """The pause that will end by itself."""
        return [] if self._pause is None else [self._pause]

    def end(self) -> None:
        """Resume what this process paused: nobody else would."""
        if self._pause is not None:
            self._routes.post(RESUME)
            self._pause, self._due = None, math.inf

    def _close(self, command: Command) -> CommandUpdate:
        started = time.perf_counter()
        try:
            if time.time() > command.deadline:
                return self._end_as(command, "timed_out", reason="arrived after its deadline")
            facts = self._perform(command)
        except (RefusedError, ServerError) as error:
            return self._end_as(command, "refused", reason=str(error))
        return self._end_as(command, "applied", milliseconds=(time.perf_counter() - started) * 1e3, **facts)

    def _perform(self, command: Command) -> dict[str, Any]:
        """Do it; facts of the update."""
        if command.verb not in ROUTES:
            raise RefusedError(f"{'a probe' if command.verb == PROBE else command.verb}: {NO_PLUGIN}")
        route = ROUTES[command.verb]
        if self._paths and route not in self._paths:
            raise RefusedError(f"the server has no route {route}; {DEV}")
        if command.verb == "flush_cache":
            return self._flush()
        return self._start_pause(command) if command.verb == "pause" else self._end_pause()

    def _flush(self) -> dict[str, Any]:
        answer = self._routes.post(FLUSH)
        if not (isinstance(answer, dict) and answer.get("success")):
            raise RefusedError("vLLM resets the cache only while no request uses a block; try again when it is idle")
        return {"reason": "vLLM reset the whole prefix cache"}

    def _start_pause(self, command: Command) -> dict[str, Any]:
        if self._pause is None and self._is_paused():
            raise RefusedError("paused by another client, who has to end it")
        action = BY_VERB["pause"]
        seconds = command.revert_s or action.guard_s or action.max_guard_s
        if not 0 < seconds <= action.max_guard_s:
            raise RefusedError(f"a timer of {seconds} s; expected more than 0 and at most {action.max_guard_s:.0f} s")
        self._routes.post(f"{PAUSE}?mode=keep&clear_cache=false")
        self._pause = Timer(command.id, "pause", "", BY_VERB["resume"].value, time.time() + seconds)
        self._due = time.monotonic() + seconds
        return {"old": BY_VERB["resume"].value, "new": action.value, "reverts_at": self._pause.at}

    def _end_pause(self) -> dict[str, Any]:
        if self._pause is None and self._is_paused():
            raise RefusedError("paused by another client, who has to end it")
        if self._pause is None:
            return {"reason": "already running"}
        self.end()
        return {"old": BY_VERB["pause"].value, "new": BY_VERB["resume"].value}

    def _is_paused(self) -> bool:
        return bool(self._routes.ask("/is_paused").get("is_paused"))

    def _resume_due(self) -> CommandUpdate:
        assert self._pause is not None
        command = self._pause.command
        revert = Command(f"{command}/revert", "", "", math.inf, "resume", target=command)
        try:
            self.end()
        except ServerError as error:
            self._due = time.monotonic() + 1.0  # again: a pause must end
            return self._remember(self._update(revert, "draining", reason=str(error)))
        return self._end_as(revert, "applied", old=BY_VERB["pause"].value, new=BY_VERB["resume"].value)

    def _update(self, command: Command, state: str, **facts: Any) -> CommandUpdate:
        common: dict[str, Any] = {
            "flag": command.flag,
            "verb": command.verb,
            "reverts": command.target,
            "wanted": BY_VERB[command.verb].value if command.verb in BY_VERB else "",
            "time": time.time(),
        }
        return CommandUpdate(id=command.id, engine=self._engine, state=state, **common | facts)

    def _end_as(self, command: Command, state: str, **facts: Any) -> CommandUpdate:
        update = self._update(command, state, **facts)
        self._closed.append(update)
        return self._remember(update)

    def _remember(self, update: CommandUpdate) -> CommandUpdate:
        self._known[update.id] = update
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return update
