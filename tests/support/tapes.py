"""Records every call of a hub's core with its time, and replays it.

A tape has the calls of ``HubState`` in their order, each as 4 bytes of size (little-endian) and a msgpack array
``[method, arguments, named]``; the first is ``["start", [run, epoch, now], {}]``. Messages are in it as the frames that
came over the wire, so a tape outlives changes of what the hub makes of them. ``bench/faults.py record`` makes tapes,
with xz.
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rltop.backend import api
from rltop.backend.hub.outputs import Effect
from rltop.backend.hub.peers import Peer
from rltop.backend.hub.state import HubState
from tests.support.hub_core import Hub

Call = tuple[str, list[Any], dict[str, Any]]

_SIZE = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Call).decode


METHODS = {"watch": "diagnose", "frame": "next_frame"}
"""Methods of ``HubState`` whose name on tapes is another one."""


def taping(write: Callable[[bytes], object]) -> Callable[..., HubState]:
    """Return a ``HubState`` class that also records its calls.

    It never waits for the kernel (call ``pieces.warm`` before), has no past, and numbers its commands: so a replay,
    which can't know when a compiler was done or what was drawn, comes to the same.

    Args:
        write: takes the tape's bytes, in order.
    """

    class Taping(HubState):
        def __init__(self, run: str, epoch: str, now: float, *_: Any) -> None:
            self._tape("start", run, epoch, now)
            super().__init__(run, epoch, now, _numbered())

        def data(self, frames: list[bytes], now: float, peer: Peer | None = None) -> list[Effect]:
            frames = [bytes(frame) for frame in frames]
            self._tape("data", frames, now)
            return super().data(frames, now, peer)

        def control(self, sender: str, frame: bytes, now: float, peer: Peer | None = None) -> list[Effect]:
            self._tape("control", sender, frame, now)
            return super().control(sender, frame, now, peer)

        def ask(self, viewer: bytes, frame: bytes, now: float, *caller: Any) -> list[Effect]:
            self._tape("ask", viewer, frame, now)
            return super().ask(viewer, frame, now, *caller)

        def undelivered(self, receiver: str, frame: bytes, now: float) -> list[Effect]:
            self._tape("undelivered", receiver, frame, now)
            return super().undelivered(receiver, frame, now)

        def tick(self, now: float) -> list[Effect]:
            self._tape("tick", now)
            return super().tick(now)

        def diagnose(self, now: float) -> None:
            self._tape("watch", now)
            super().diagnose(now)

        def next_frame(self, now: float, *, heartbeat: bool = False) -> api.Frame | None:
            self._tape("frame", now, heartbeat=heartbeat)
            return super().next_frame(now, heartbeat=heartbeat)

        def note(self, now: float, severity: str, kind: str, text: str) -> None:
            self._tape("note", now, severity, kind, text)
            super().note(now, severity, kind, text)

        def _tape(self, method: str, *arguments: object, **named: object) -> None:
            call = _encode((method, arguments, named))
            write(_SIZE.pack(len(call)) + call)

    return Taping


def calls(path: Path) -> Iterator[Call]:
    """The calls of a tape, plain or ``.xz``; of one that was cut off, those before the cut."""
    held = path.read_bytes()
    tape = memoryview(lzma.decompress(held) if path.suffix == ".xz" else held)
    at = 0
    while at + _SIZE.size <= len(tape):
        (size,) = _SIZE.unpack_from(tape, at)
        at += _SIZE.size + size
        if at > len(tape):
            return
        yield _decode(tape[at - size : at])


def played(path: Path) -> Iterator[tuple[Hub, list[int]]]:
    """Play a tape: the hub, whenever viewers of the run came to see further steps, with their numbers.

    Calls that failed while the run went on (the core contains their faults) fail here.
    """
    tape = calls(path)
    method, arguments, _ = next(tape)
    assert method == "start"
    run, epoch, now = arguments
    hub = Hub.of(HubState(run, epoch, now, _numbered()), now)
    for method, arguments, named in tape:
        hub.now = next(reversed([value for value in arguments if isinstance(value, float)]))
        effect = getattr(hub.state, METHODS.get(method, method))(*arguments, **named)
        if isinstance(effect, api.Frame):
            hub.frames.append(effect)
            if effect.steps:
                yield hub, [step.step for step in effect.steps]


def replay(path: Path) -> Hub:
    """The hub at the end of a tape that has steps."""
    *_, (hub, _) = played(path)
    return hub


def digest(picture: api.Snapshot) -> str:
    """Of everything that is shown of every step, to the bit."""
    return hashlib.sha256(msgspec.json.encode([step for _, step in sorted(picture.steps.items())])).hexdigest()


def _numbered() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"c{next(numbers)}"
