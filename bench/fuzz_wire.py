"""Fuzzes the decoders of the wire, guided by coverage: any bytes give a message or a ``WireError``, nothing else.

    .venv/bin/python -m bench.fuzz_wire [--inputs 1000000] [--seed 0] [--corpus FOLDER]

Run it from the root of a checkout. Inputs begin as hostile messages (``tests/support/hostile.py``). An input is
mutated, decoded, and becomes a parent of further inputs if it reached new lines of ``wire.py`` or a new answer: a type
of message, or the text of an error without its numbers, since most of a decoder is compiled code. ``--corpus``: the
inputs with new coverage are read from and added to this folder. What decodes must encode to a message that decodes to
the same.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rltop.backend import api
from rltop.collectors.contract import wire
from tests.support.hostile import Hostile

SEEDS = 2000
"""Hostile messages to begin with."""

REPORT_S = 10.0

Edges = frozenset[object]
"""What an input reached."""


class DecoderError(AssertionError):
    """A decoder raised something else than its declared error, or what it decoded does not survive a round trip."""


def split(data: bytes) -> list[bytes]:
    """The frames of an input: the first byte has their number less one, then each but the last has its size in two."""
    count, at, frames = (data[0] % 40 if data else 0), 1, list[bytes]()
    for _ in range(count):
        size = int.from_bytes(data[at : at + 2], "little")
        frames.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return [*frames, data[at:]]


def join(frames: list[bytes]) -> bytes:
    """The input that ``split`` takes apart."""
    parts = [len(frame).to_bytes(2, "little") + frame for frame in frames[:-1]]
    return bytes([len(frames) - 1]) + b"".join(parts) + frames[-1]


def decode(data: bytes) -> list[str]:
    """Decode an input as every kind of message; returns the kind of each answer. Raises ``DecoderError``."""
    frames = split(data)
    return [
        _answer(_decode_data, frames),
        _answer(_round_trip, wire.decode_to_hub, wire.encode, frames[-1]),
        _answer(_round_trip, wire.decode_to_collector, wire.encode, frames[-1]),
        _answer(_round_trip, api.decode_question, api.encode, frames[-1]),
        str(type(api.refusal(frames[-1], ValueError("x")))),
    ]


def _answer(call: Callable[..., str], *args: Any) -> str:
    try:
        return call(*args)
    except DecoderError:
        raise
    except ValueError as error:  # ``WireError``, and what ``decode_question`` declares
        if not isinstance(error, wire.WireError) and call is _decode_data:
            raise DecoderError(repr(error)) from error
        return re.sub(r"\d+|'.*'", "", str(error))[:60]
    except Exception as error:
        raise DecoderError(repr(error)) from error


def _decode_data(frames: list[bytes]) -> str:
    envelope, body, arrays = wire.decode_data(frames)
    again = wire.decode_data([bytes(frame) for frame in wire.encode_data(envelope, body, arrays)])
    if repr(again[:2]) != repr((envelope, body)) or [a.tobytes() for a in again[2].values()] != [
        a.tobytes() for a in arrays.values()
    ]:
        raise DecoderError(f"{body!r} is another message after a round trip")
    return type(body).__name__


def _round_trip(read: Callable[[bytes], Any], write: Callable[[Any], bytes], frame: bytes) -> str:
    message = read(frame)
    if repr(read(write(message))) != repr(message):  # as text: NaN is not equal to itself
        raise DecoderError(f"{message!r} is another message after a round trip")
    return type(message).__name__


class Coverage:
    """The lines of ``wire.py`` that a call reaches, and its answers."""

    def __init__(self) -> None:
        self._lines: set[object] = set()

    def of(self, data: bytes) -> Edges:
        """What an input reaches."""
        self._lines = set()
        sys.settrace(self._call)
        try:
            answers = decode(data)
        finally:
            sys.settrace(None)
        return frozenset(self._lines | set(enumerate(answers)))

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._line if frame.f_code.co_filename == wire.__file__ else None

    def _line(self, frame: FrameType, _event: str, _argument: object) -> Any:
        self._lines.add(frame.f_lineno)
        return self._line


def mutated(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """A change of an input: bits, bytes, numbers of msgpack, insertions, cuts, and the end of another input."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, kind = draw.randrange(len(changed) + 1), draw.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = draw.randrange(256)
        elif kind == 2:
            changed[at:at] = draw.choice(TOKENS)
        elif kind == 3:
            changed[at : at + 9] = draw.choice(TOKENS)
        elif kind == 4:
            del changed[at : at + draw.randint(1, 9)]
        elif kind == 5:
            changed[at:at] = changed[at : at + draw.randint(1, 40)]
        else:
            changed[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(changed[: 1 << 16])


TOKENS = [
    b"\xc0", b"\xc2", b"\xc3", b"\x90", b"\x91", b"\xdc\xff\xff", b"\xdd" + b"\xff" * 4, b"\x80", b"\xdf" + b"\xff" * 4,
    b"\xa0", b"\xa1\xff", b"\xdb" + b"\xff" * 4, b"\xcf" + b"\xff" * 8, b"\xcf\x80" + bytes(7), b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6), b"\xcb\x7f\xf0" + bytes(6), b"\xcb\xff\xf0" + bytes(6), b"\xca\x7f\x80\0\0", b"\xff",
    b"\xc7\x04\xffabcd", b"\xd6\xff" + bytes(4), b"\xc4\x01x", b"\x91" * 600, bytes(4), b"\xff" * 4, b"\2\0\0\0",
]  # fmt: skip
"""Parts of msgpack and of packed headers with extreme meanings: sizes, numbers, types, depth."""


def seeds(seed: int) -> list[bytes]:
    """Inputs to begin with."""
    hostile = Hostile(seed)
    found = [b"", b"\0"]
    for _ in range(SEEDS):
        frames = hostile.data()
        found += [join(frames)] if all(len(frame) < 1 << 16 for frame in frames) else []
        found += [b"\0" + hostile.control()[1], b"\0" + hostile.question()]
    return found


def fuzz(inputs: int, seed: int, corpus: Path | None = None) -> int:
    """Fuzz with a number of inputs; returns the number of lines and answers reached. Raises ``DecoderError``."""
    draw, coverage, reached = random.Random(seed), Coverage(), set[object]()
    parents = list[bytes]()
    waiting, next_report = [*_saved(corpus), *seeds(seed)], time.monotonic() + REPORT_S
    for count in range(inputs):
        data = waiting.pop() if waiting else mutated(draw, draw.choice(parents), draw.choice(parents))
        found = _covered(coverage, data)
        if not found <= reached or not parents:
            reached |= found
            parents.append(data)
            _save(corpus, data)
        if time.monotonic() >= next_report:
            next_report += REPORT_S
            print(f"{count} inputs, {len(parents)} with new coverage, {len(reached)} lines and answers", flush=True)
    return len(reached)


def _covered(coverage: Coverage, data: bytes) -> Edges:
    try:
        return coverage.of(data)
    except DecoderError:
        print(f"input: {data!r}")
        raise


def _saved(corpus: Path | None) -> list[bytes]:
    return [] if corpus is None or not corpus.is_dir() else [path.read_bytes() for path in sorted(corpus.iterdir())]


def _save(corpus: Path | None, data: bytes) -> None:
    if corpus is not None:
        corpus.mkdir(exist_ok=True)
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    reached = fuzz(options.inputs, options.seed, options.corpus)
    print(f"{options.inputs} inputs, {reached} lines and answers: nothing but messages and declared errors")


if __name__ == "__main__":
    main()
