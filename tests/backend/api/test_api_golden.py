"""The bytes of the view and query sockets are frozen: the tags and field names of every message and its structs.

``api_golden.json`` holds one msgpack frame per message as hex. ``python -m tests.backend.api.test_api_golden`` adds new
messages and fields to it; it refuses to drop or rename anything.
"""

from __future__ import annotations

import json
import types
import zlib
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import pytest

from rltop.backend import api

PATH = Path(__file__).parent / "api_golden.json"
GOLDEN: dict[str, str] = json.loads(PATH.read_text()) if PATH.exists() else {}

QUESTIONS: tuple[Any, ...] = get_args(api.Question)
MESSAGES: dict[str, Any] = {cls.__name__: cls for cls in (*QUESTIONS, api.Answer, api.Frame, api.Snapshot)}


def example(kind: Any, name: str) -> Any:
    """A value of a type; each value is made from the name of its field, so that no two fields can be swapped."""
    origin, inner = get_origin(kind), get_args(kind)
    number = 1 + zlib.crc32(name.encode()) % 1000
    if origin in (Union, types.UnionType):
        return example(next(member for member in inner if member is not type(None)), name)
    if origin is Annotated:
        return example(inner[0], name)
    if origin is list:
        return [example(inner[0], name)]
    if origin is tuple:
        return tuple(example(member, f"{name}{place}") for place, member in enumerate(inner))
    if origin is dict:
        return {example(inner[0], f"{name} key"): example(inner[1], name)}
    if issubclass(kind, msgspec.Struct):
        return kind(**{field.name: example(field.type, field.name) for field in msgspec.structs.fields(kind)})
    values = {str: name, int: number, float: number + 0.5, bool: True, bytes: name.encode()}
    return values[kind]


def encoded(name: str) -> bytes:
    return api.encode(example(MESSAGES[name], name))


def decoded(name: str, frame: bytes) -> Any:
    kind = api.Question if MESSAGES[name] in QUESTIONS else MESSAGES[name]
    return msgspec.msgpack.decode(frame, type=kind)


def includes(new: Any, old: Any) -> bool:
    """Whether ``new`` is ``old`` with fields added: keys to a map, entries at the end of a struct that is a list."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and includes(new[key], old[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(new) >= len(old) and all(map(includes, new, old))
    return bool(new == old) and type(new) is type(old)


def test_every_message_has_a_frozen_frame() -> None:
    assert set(GOLDEN) == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_frozen_frame_has_every_field(name: str) -> None:
    """If this fails for a field that was added, run ``python -m tests.backend.api.test_api_golden``."""
    assert msgspec.msgpack.decode(bytes.fromhex(GOLDEN[name])) == msgspec.msgpack.decode(encoded(name))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_frozen_frame_is_decoded_without_loss(name: str) -> None:
    frame = bytes.fromhex(GOLDEN[name])
    assert type(decoded(name, frame)) is MESSAGES[name]
    assert includes(msgspec.msgpack.decode(api.encode(decoded(name, frame))), msgspec.msgpack.decode(frame))


def renew() -> None:
    for name, frame in GOLDEN.items():
        if not includes(msgspec.msgpack.decode(encoded(name)), msgspec.msgpack.decode(bytes.fromhex(frame))):
            raise SystemExit(f"{name} has lost or renamed a field, or changed its type: other versions can't read it")
    PATH.write_text(json.dumps({name: encoded(name).hex() for name in MESSAGES}, indent=1) + "\n")


if __name__ == "__main__":
    renew()
