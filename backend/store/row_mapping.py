"""Maps the structs that viewers get to rows of the store, and back, bit for bit. Pure."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from rltop.backend import api
from rltop.backend.api.alarm import Alarm
from rltop.backend.store.schema import BY_NAME, ENGINE_FACTS, ENGINE_NUMBERS, SCALAR

Row = dict[str, Any]
"""Column name to value."""

ODD = "odd"
"""Key in ``rest`` of the numbers that a column can't hold, by column name."""

_fields = functools.cache(msgspec.structs.fields)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

_OWN = {
    "step": ("step", "closed", "policy_version", "partial"),
    "event": ("number", "time", "severity", "kind", "text", "step", "engine"),
    "change": ("command", "engine", "flag", "wanted", "state", "requested", "step", "old", "new"),
    "engine": tuple(ENGINE_NUMBERS),
    "alarm": ("cause", "code", "layer", "title", "raised", "raised_step", "since_step", "cleared", "cleared_step"),
}
"""Fields that have a column of the same name, by table."""

_STEP_SPREAD = frozenset({"values", "trainer", "engines"})
"""Fields of a step whose entries become columns and rows."""


def _is_odd(value: object) -> bool:
    """Whether SQLite would return another value: NaN becomes NULL, -0.0 becomes 0.0, integers have 64 bits."""
    if isinstance(value, float):
        return value != value or (value == 0 and math.copysign(1.0, value) < 0)
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _with_rest(row: Row, rest: Row) -> Row:
    if odd := {name: value for name, value in row.items() if _is_odd(value)}:
        rest = rest | {ODD: odd}
        row |= {name: 0.0 if value == 0 else None for name, value in odd.items()}
    row["rest"] = _encode(rest) if rest else None
    return row


def _split(struct: msgspec.Struct, own: Iterable[str], elsewhere: Iterable[str] = ()) -> tuple[Row, Row]:
    """Split a struct's fields into columns and rest; the rest omits fields that have their default."""
    row = {name: getattr(struct, name) for name in own}
    skip = {*row, *elsewhere}
    rest = {
        f.name: value
        for f in _fields(type(struct))
        if f.name not in skip and not _is_default(f, value := getattr(struct, f.name))
    }
    return row, rest


def _is_default(field: msgspec.structs.FieldInfo, value: object) -> bool:
    if field.default is not msgspec.NODEFAULT:
        return type(value) is type(field.default) and value == field.default
    return field.default_factory is not msgspec.NODEFAULT and value == field.default_factory()


def step_row(step: api.Step, scalars: Mapping[str, str]) -> Row:
    """Return a row of ``step``: a column per metric, and per trainer scalar in ``scalars`` (name to column)."""
    row, rest = _split(step, _OWN["step"], _STEP_SPREAD)
    row["partial"] = int(step.partial)
    row |= step.values
    row |= {scalars[name]: value for name, value in step.trainer.items() if name in scalars}
    if others := {name: value for name, value in step.trainer.items() if name not in scalars}:
        rest["trainer"] = others
    return _with_rest(row, rest)


def step_engine_rows(step: api.Step, step_id: int) -> list[Row]:
    """Return rows of ``step_engine``."""
    return [_with_rest({"step_id": step_id, "engine": engine, **values}, {}) for engine, values in step.engines.items()]


def event_row(event: api.Event) -> Row:
    """Return a row of ``event``."""
    return _with_rest(*_split(event, _OWN["event"]))


def change_row(change: api.Change) -> Row:
    """Return a row of ``change``."""
    return _with_rest(*_split(change, _OWN["change"]))


def alarm_row(alarm: Alarm) -> Row:
    """Return a row of ``alarm``."""
    row, rest = _split(alarm, _OWN["alarm"], {"id"})
    return _with_rest({"alarm": alarm.id, **row}, rest)


def engine_facts(engine: api.Engine) -> str:
    """Return the fields of an engine that seldom change, as JSON."""
    return msgspec.json.encode({name: getattr(engine, name) for name in ENGINE_FACTS}).decode()


def engine_row(engine: api.Engine, facts: int) -> Row:
    """Return a row of ``engine``; ``facts`` is the id of the row with ``engine_facts``."""
    row, rest = _split(engine, _OWN["engine"], {"id", *ENGINE_FACTS})
    return _with_rest({"engine": engine.id, "facts": facts, **row}, rest)


class SampleRow(msgspec.Struct, frozen=True):
    """A retained sequence or token of a step; fields are the columns of ``sample``, ``body`` not compressed."""

    step: int
    kind: str
    engine: str
    tokens: int
    value: float | None
    body: bytes


_ZLIB = b"\x78"  # no msgpack map starts with it


def sample_row(sample: SampleRow) -> Row:
    """Return a row of ``sample``."""
    return msgspec.structs.asdict(sample)


def sample_body(body: bytes) -> Row:
    """Return the map in a ``body``."""
    found: Row = _decode(unpacked(body) if body[:1] == _ZLIB else body)
    return found


MAX_BLOB = 1 << 28
"""Bytes of a decompressed blob; the longest sequences of a step have a tenth of it."""


def unpacked(packed: bytes) -> bytes:
    """Decompress a blob.

    Raises:
        ValueError: it is cut, or has more than ``MAX_BLOB`` bytes.
        zlib.error: it is damaged.
    """
    stream = zlib.decompressobj()
    content = stream.decompress(packed, MAX_BLOB)
    if not stream.eof:
        raise ValueError("a compressed value is cut, or too long")
    return content


def blob(value: object) -> bytes:
    """Encode a struct or a map, as in the blobs of ``frame``."""
    return _encode(value)


# --- reading ----------------------------------------------------------------------------------------------------------


def _restored(names: Sequence[str], values: Sequence[Any]) -> tuple[Row, Row]:
    """Return the row with the numbers that SQLite can't hold restored, and the other values of ``rest``."""
    row = dict(zip(names, values, strict=True))
    packed = row.pop("rest")
    rest: Row = _decode(packed) if packed else {}
    row |= rest.pop(ODD, {})
    return row, rest


def step_of(names: tuple[str, ...], values: Sequence[Any], engines: Mapping[str, dict[str, float | None]]) -> api.Step:
    """Return the step of a row of ``step``. A metric without a value is None; a scalar without one was not logged."""
    places, metrics, scalars = _step_plan(names)
    own = [values[place] for place in places]
    packed = own.pop()
    figures = {name: values[place] for name, place in metrics}
    passed = {name: value for name, place in scalars if (value := values[place]) is not None}
    if packed is None:  # nearly always; constructed without validation, for speed
        return api.Step(own[0], own[1], own[2], bool(own[3]), figures, dict(engines), trainer=passed)
    rest: Row = _decode(packed)
    for name, value in rest.pop(ODD, {}).items():
        if name.startswith(SCALAR):
            passed[name.removeprefix(SCALAR)] = value
        else:
            figures[name] = value
    fields = {"step": own[0], "closed": own[1], "policy_version": own[2], "partial": bool(own[3])}
    fields |= rest | {"values": figures, "trainer": passed | rest.get("trainer", {}), "engines": dict(engines)}
    return msgspec.convert(fields, api.Step)


_Places = list[tuple[str, int]]


@functools.lru_cache(maxsize=64)
def _step_plan(names: tuple[str, ...]) -> tuple[list[int], _Places, _Places]:
    """Return the indices in a row of ``step`` of own fields and ``rest``, of metrics, and of the trainer's scalars."""
    fixed = {column.name for column in BY_NAME["step"].columns}
    more = [(name, place) for place, name in enumerate(names) if name not in fixed]
    metrics = [(name, place) for name, place in more if not name.startswith(SCALAR)]
    scalars = [(name.removeprefix(SCALAR), place) for name, place in more if name.startswith(SCALAR)]
    return [names.index(name) for name in (*_OWN["step"], "rest")], metrics, scalars


def step_engine_of(names: Sequence[str], values: Sequence[Any]) -> tuple[int, str, dict[str, float | None]]:
    """Return step row, engine and metrics of a row of ``step_engine``."""
    row, _ = _restored(names, values)
    return row.pop("step_id"), row.pop("engine"), row


def event_of(names: Sequence[str], values: Sequence[Any]) -> api.Event:
    """Return the event of a row of ``event``."""
    row, rest = _restored(names, values)
    return msgspec.convert({name: row[name] for name in _OWN["event"]} | rest, api.Event)


def change_of(names: Sequence[str], values: Sequence[Any]) -> api.Change:
    """Return the change of a row of ``change``."""
    row, rest = _restored(names, values)
    return msgspec.convert({name: row[name] for name in _OWN["change"]} | rest, api.Change)


def alarm_of(names: Sequence[str], values: Sequence[Any]) -> Alarm:
    """Return the alarm of a row of ``alarm``."""
    row, rest = _restored(names, values)
    return msgspec.convert({"id": row["alarm"]} | {name: row[name] for name in _OWN["alarm"]} | rest, Alarm)


def engine_of(names: Sequence[str], values: Sequence[Any], facts: str) -> api.Engine:
    """Return the engine of a row of ``engine`` with its facts."""
    row, rest = _restored(names, values)
    known: Row = msgspec.json.decode(facts)
    own = {name: row[name] for name in _OWN["engine"]}
    return msgspec.convert({"id": row["engine"]} | own | known | rest, api.Engine)


def trainer_of(packed: bytes) -> api.Trainer:
    """Return the trainer in a blob of ``frame``."""
    return msgspec.msgpack.decode(packed, type=api.Trainer)


def counters_of(packed: bytes) -> dict[str, int]:
    """Return the counters in a blob of ``frame``."""
    return msgspec.msgpack.decode(packed, type=dict[str, int])
