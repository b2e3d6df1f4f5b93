"""Reports a vLLM server without the plugin to a hub: polls its routes, and executes the commands that they allow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rltop.backend.attach import server_metrics
from rltop.backend.attach.server_commands import NO_PLUGIN, ServerCommands
from rltop.backend.attach.server_metrics import ABORTED, MetricsError, Numbers
from rltop.backend.attach.server_routes import TIMEOUT_S, Routes, ServerError
from rltop.collectors.contract import wire
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from rltop.collectors.vllm.weight_journal import label_version

POLL_S = 1.0
STATE_BYTES = 4096

FAILED_POLLS = 3
"""Failed polls after which the engines of the server are reported as exited."""

METRICS_TIMEOUT_S = 10.0
"""Wait of a poll for the metrics. A killed server may leave processes that hold its port: it then accepts and never
answers. The first read waits longer: a server under load answers late."""

CLOSE_S = 5.0

SITUATION = frozenset({"/is_paused", "/is_sleeping", "/weight_info"})
"""Development routes that say what the metrics don't."""

UNKNOWN = "unknown"
FLAG_STATES = {flag.name: wire.FlagState(None, False, NO_PLUGIN, UNKNOWN) for flag in FLAGS}
"""No flag can be read or switched by URL."""

Log = Callable[[str], None]


class ServerEngine:
    """One engine of a server, as the hub sees it.

    Args:
        engine: its id.
        rundir: of the run.
        routes: of the server.
        paths: that the server offers.
        facts: of the server.
    """

    def __init__(
        self, engine: str, rundir: RunDir, routes: Routes, paths: frozenset[str], facts: Mapping[str, str]
    ) -> None:
        self.id = engine
        self.commands = ServerCommands(engine, routes, paths)
        self._routes = routes
        self._facts = dict(facts)
        self._sender = Sender[Message](
            rundir, engine, "engine", _as_they_are, on_message=self._on_message, vital=frozenset({"state"})
        )
        self._sender.start()

    def _on_message(self, message: wire.ControlToCollector) -> None:
        if isinstance(message, wire.Command):
            self._sender.reply(self.commands.receive(message))

    def report(self, numbers: Numbers, situation: Mapping[str, Any]) -> None:
        """Execute commands and send the state."""
        for update in self.commands.execute():
            self._sender.reply(update)
        self._sender.loop_count = round(numbers.get("steps", 0))
        self._sender.offer("state", STATE_BYTES, (self._state(numbers, situation), {}))

    def _state(self, numbers: Numbers, situation: Mapping[str, Any]) -> wire.EngineState:
        label = situation.get("weight_version")
        version = label_version(label)
        ended, aborted = _count(numbers, "ended"), _count(numbers, ABORTED)
        kv_usage = numbers.get("kv_usage")
        return wire.EngineState(
            engine=self.id,
            host=self._routes.host,
            pid=0,
            step=_count(numbers, "steps"),
            policy_version=version,
            version_source="unknown" if version is None else "engine",
            weight_label=None if label is None else str(label),
            running=_count(numbers, "running"),
            waiting=_count(numbers, "waiting"),
            kv_usage=None if kv_usage is None else min(max(kv_usage, 0.0), 1.0),
            prompt_tokens=_count(numbers, "prompt_tokens"),
            generated_tokens=_count(numbers, "generated_tokens"),
            cached_tokens=_count(numbers, "cached_tokens"),
            finished=max(ended - aborted, 0),
            aborted=aborted,
            without_logprobs=0,
            flags=FLAG_STATES,
            flag_epoch=0,
            fingerprint=self._facts | ({"sleeping": "yes"} if situation.get("is_sleeping") else {}),
            commands=self.commands.closed(),
            paused=bool(situation.get("is_paused")),
            timers=self.commands.timers(),
            preemptions=_count(numbers, "preemptions") if "preemptions" in numbers else None,
            first_token_s=numbers.get("first_token_s", 0.0),
            first_tokens=_count(numbers, "first_tokens"),
            token_gap_s=numbers.get("token_gap_s", 0.0),
            token_gaps=_count(numbers, "token_gaps"),
        )

    def close(self) -> None:
        """Resume a pause of ours, and disconnect."""
        with contextlib.suppress(ServerError):  # it is gone, with its pause
            self.commands.end()
        self._sender.close(CLOSE_S)


def _as_they_are(_kind: str, items: list[Message]) -> Iterator[Message]:
    yield from items


def _count(numbers: Numbers, name: str) -> int:
    return max(round(numbers.get(name, 0.0)), 0)


class Server:
    """Polls one server and reports each of its engines, until ``close``.

    Raises:
        ServerError: it does not answer, or is no vLLM server with metrics.
    """

    def __init__(self, url: str, rundir: RunDir, log: Log) -> None:
        self.routes = Routes(url)
        self._rundir = rundir
        self._log = log
        self._engines: dict[str, ServerEngine] = {}
        self._failed = 0
        self._paths: frozenset[str] = frozenset()
        self._numbers = self._read(TIMEOUT_S)

    @property
    def names(self) -> list[str]:
        """The ids of its engines."""
        return [self._name(label) for label in self._numbers]

    def poll(self) -> None:
        """Read the server once and report; a server that is gone is reported as exited until it answers again."""
        try:
            self._numbers = self._read(METRICS_TIMEOUT_S)
        except ServerError as error:
            self._failed += 1
            if self._failed == FAILED_POLLS and self._engines:
                self._log(f"{error}; reported as exited until it answers again")
                self._disconnect()
            return
        self._failed = 0
        if not self._engines:
            self._connect()
        situation = self._situation()
        for label, numbers in self._numbers.items():
            if label in self._engines:
                self._engines[label].report(numbers, situation)

    def run(self) -> None:
        """Poll until interrupted."""
        while True:
            started = time.monotonic()
            self.poll()
            time.sleep(max(POLL_S - (time.monotonic() - started), 0.0))

    def close(self) -> None:
        """End a pause of ours and disconnect."""
        self._disconnect()

    def _read(self, timeout_s: float) -> dict[str, Numbers]:
        try:
            return server_metrics.read(self.routes.get("/metrics", timeout_s))
        except MetricsError as error:
            raise ServerError(f"{self.routes.url}/metrics: {error}") from error

    def _connect(self) -> None:
        self._paths, facts = self.routes.paths(), self._facts()
        self._engines = {
            label: ServerEngine(self._name(label), self._rundir, self.routes, self._paths, facts)
            for label in self._numbers
        }

    def _disconnect(self) -> None:
        engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()

    def _name(self, label: str) -> str:
        """``host:port``, with the engine's index if the server has several."""
        name = f"{self.routes.host}:{self.routes.port}"
        return name if len(self._numbers) == 1 else f"{name}/dp{label}"

    def _facts(self) -> dict[str, str]:
        models = self.routes.ask("/v1/models").get("data")
        model = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        found = {
            "vllm_version": self.routes.ask("/version").get("version"),
            "model": model.get("root") or model.get("id"),
            "max_model_len": model.get("max_model_len"),
            "attached by": f"URL {self.routes.url}: no rollouts, no flags",
        }
        return {name: str(value) for name, value in found.items() if value is not None}

    def _situation(self) -> dict[str, Any]:
        """What the development routes say; empty without them."""
        found: dict[str, Any] = {}
        for path in self._paths & SITUATION:
            found |= self.routes.ask(path)
        return found


__all__ = ["Server", "ServerError"]
