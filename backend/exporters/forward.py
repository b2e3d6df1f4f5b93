"""Forwards a live run to other tools, from its own process, so a sink that hangs affects nothing else.

A forwarder is an ordinary viewer of the hub's frames; the hub drops frames for it if it is too slow. After a pause, a
lost frame or a new hub it sends the steps of the snapshot that it has not sent yet.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from rltop.backend.api import Engine, Snapshot, Step
from rltop.backend.util.near import did_you_mean

LOOPBACK = "127.0.0.1"
"""The only address that is served; use a proxy or a tunnel for remote access."""


class ForwardError(RuntimeError):
    """A sink can't be opened; the message names the fix."""


class Sink(Protocol):
    """Receives steps and snapshots."""

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """The snapshot has changed; ``fresh`` are the new steps, in order."""

    def close(self) -> None:
        """Flush and close."""


class Forwarder:
    """Sends each step once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._last = -1

    def show(self, picture: Snapshot) -> int:
        """Send a snapshot; returns the number of new steps in it."""
        fresh = [step for number, step in sorted(picture.steps.items()) if number > self._last]
        if fresh:
            self._last = fresh[-1].step
        self._sink.show(picture, fresh)
        return len(fresh)


def scalars(step: Step) -> dict[str, float]:
    """Every number of a step, named as experiment trackers do: ``rltop/kl_k3``, ``trainer/loss``."""
    values_by_name = {f"rltop/{name}": value for name, value in step.values.items() if value is not None}
    for engine, values in step.engines.items():
        values_by_name |= {f"rltop/{engine}/{name}": value for name, value in values.items() if value is not None}
    return values_by_name | {f"trainer/{name}": value for name, value in step.trainer.items()}


# --- Prometheus -----------------------------------------------------------------------------------------------------

ENGINE_GAUGES = (
    "tokens",
    "tokens_per_s",
    "running",
    "waiting",
    "kv_usage",
    "prefix_hit_rate",
    "policy_version",
    "lag",
    "gap",
    "preemptions",
    "ttft",
    "itl",
)
"""Numbers of an engine that are exported."""


def exposition(picture: Snapshot) -> str:
    """The last step and the engines in the Prometheus text format."""
    lines: list[str] = []

    def gauge(name: str, about: str, rows: list[tuple[dict[str, str], float]]) -> None:
        if rows:
            lines.extend([f"# HELP {name} {about}", f"# TYPE {name} gauge"])
            lines.extend(f"{name}{_labels({'run': picture.run} | labels)} {_number(value)}" for labels, value in rows)

    last = max(picture.steps.values(), key=lambda step: step.step, default=None)
    if last is not None:
        gauge("rltop_step", "Last closed step.", [({}, last.step)])
        gauge("rltop_step_closed_seconds", "Time at which it closed, seconds since 1970.", [({}, last.closed)])
        gauge("rltop_metric", "Metrics of the last step.", _known(last.values))
        of_engines = [({"engine": e} | labels, v) for e, vs in last.engines.items() for labels, v in _known(vs)]
        gauge("rltop_engine_metric", "Metrics of the last step, per engine.", of_engines)
        gauge("rltop_trainer_scalar", "Scalars passed by the trainer.", _known(last.trainer))
    for name in ENGINE_GAUGES:
        rows = [({"engine": e.id}, float(v)) for e in picture.engines.values() if (v := getattr(e, name)) is not None]
        gauge(f"rltop_engine_{name}", "Last reported value.", rows)
    gauge(
        "rltop_engine_live",
        "1 if the engine reported recently.",
        [({"engine": e.id}, _live(e)) for e in picture.engines.values()],
    )
    gauge("rltop_hub_counter", "Counters of the hub.", _known(picture.counters, "counter"))
    return "\n".join([*lines, ""])


def _live(engine: Engine) -> float:
    return float(engine.health == "live")


def _known(values: Mapping[str, float | None], label: str = "metric") -> list[tuple[dict[str, str], float]]:
    return [({label: name}, float(value)) for name, value in values.items() if value is not None]


def _labels(labels: Mapping[str, str]) -> str:
    escaped = (
        (name, value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")) for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(repr(value), repr(value))


class Prometheus:
    """Serves ``/metrics`` on the loopback address; port 0 picks a free one (see ``port``)."""

    def __init__(self, port: int) -> None:
        self._text = b""
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/metrics"
                body = sink._text if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """No request log."""

        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        except OSError as error:
            raise ForwardError(f"can't serve on {LOOPBACK}:{port}: {error}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="rltop-prometheus", daemon=True)
        self._thread.start()

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """See ``Sink``."""
        del fresh
        self._text = exposition(picture).encode()

    def close(self) -> None:
        """See ``Sink``."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


# --- TensorBoard ----------------------------------------------------------------------------------------------------


class TensorBoard:
    """Writes an event file with one record of scalars per step; TensorBoard need not be installed."""

    def __init__(self, directory: str) -> None:
        name = f"events.out.tfevents.{int(time.time())}.rltop.{os.getpid()}"
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            self._file = (Path(directory) / name).open("wb")
        except OSError as error:
            raise ForwardError(f"can't write in {directory}: {error}") from error
        self._write(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """See ``Sink``."""
        del picture
        for step in fresh:
            values = b"".join(
                _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", _float32(value)))
                for tag, value in scalars(step).items()
            )
            self._write(_double(1, step.closed) + b"\x10" + _varint(step.step) + _bytes(5, values))
        if fresh:
            self._file.flush()

    def close(self) -> None:
        """See ``Sink``."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        """One TFRecord: length, data, and a masked CRC-32C of each."""
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _float32(value: float) -> float:
    return value if abs(value) < 3.4e38 or value != value else float("inf") * (1 if value > 0 else -1)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli, reflected
        table.append(crc)
    return table


_CRC = _crc_table()


def _masked(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# --- Weights & Biases -----------------------------------------------------------------------------------------------


class WandB:
    """Logs to a Weights & Biases project, configured by its environment variables (``WANDB_MODE=offline``)."""

    def __init__(self, project: str) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ForwardError("wandb is not installed: `pip install wandb`")
        import wandb

        self._run: Any = wandb.init(project=project)

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """See ``Sink``."""
        del picture
        for step in fresh:
            self._run.log(scalars(step), step=step.step)

    def close(self) -> None:
        """See ``Sink``."""
        self._run.finish()


@dataclass(frozen=True)
class SinkKind:
    """A kind of sink: the name of its argument, a summary, and its constructor."""

    argument: str
    summary: str
    open: Callable[[str], Sink]


def _port(text: str) -> Sink:
    if not (text.isascii() and text.isdigit() and int(text) < 65_536):
        raise ForwardError(f"prometheus:{text}: the port must be a number below 65536")
    return Prometheus(int(text))


KINDS: Mapping[str, SinkKind] = {
    "prometheus": SinkKind("PORT", f"serve the last step at http://{LOOPBACK}:PORT/metrics", _port),
    "tensorboard": SinkKind("DIR", "write an event file in DIR", TensorBoard),
    "wandb": SinkKind("PROJECT", "log to Weights & Biases (WANDB_MODE=offline: to a directory)", WandB),
}


def check_sink(text: str) -> tuple[str, str]:
    """Kind and argument of the sink ``KIND:ARGUMENT``. Raises ``ForwardError`` for another form."""
    kind, _, argument = text.partition(":")
    if kind not in KINDS or not argument:
        forms = ", ".join(f"{name}:{kind.argument}" for name, kind in KINDS.items())
        hint = "" if kind in KINDS else did_you_mean(kind, KINDS)
        raise ForwardError(f"{text!r}: expected one of {forms}{hint}")
    return kind, argument


def open_sink(text: str) -> Sink:
    """Open the sink ``KIND:ARGUMENT``. Raises ``ForwardError``."""
    kind, argument = check_sink(text)
    return KINDS[kind].open(argument)
