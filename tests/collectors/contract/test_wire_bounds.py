"""Every number on the wire has bounds: sums of what a hub accepts fit 64 bits, and no time is beyond a calendar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from rltop.backend import api
from rltop.collectors.contract import wire
from tests.support.hub_messages import engine_state

UNBOUNDED = {"proto", "temperature", "clip_low", "clip_high", "metrics"}
"""``proto`` is compared; a trainer's own figures may be infinite or NaN, and are shown as they are."""

MESSAGES: tuple[Any, ...] = (wire.Envelope, wire.DataBody, wire.ControlToHub, wire.ControlToCollector)
LARGEST = 2**63 - 1
ENGINES = 1024


def numbers(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every integer and float type within a type, with the fields that lead to it."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            yield path, kind
        case inspect.StructType():
            for field in kind.fields:
                yield from numbers(field.type, f"{path}.{field.name}")
        case inspect.UnionType():
            for one in kind.types:
                yield from numbers(one, path)
        case inspect.ListType() | inspect.VarTupleType():
            yield from numbers(kind.item_type, path)
        case inspect.DictType():
            yield from numbers(kind.value_type, path)


@pytest.mark.parametrize("message", MESSAGES, ids=["envelope", "data", "to hub", "to collector"])
def test_every_number_has_a_lower_and_an_upper_bound(message: Any) -> None:
    found = [(path, kind) for path, kind in numbers(inspect.type_info(message)) if path.split(".")[-1] not in UNBOUNDED]
    assert found
    assert [path for path, kind in found if kind.ge is None or kind.le is None] == []


def test_a_count_summed_over_many_engines_fits_64_bits() -> None:
    for path, kind in numbers(inspect.type_info(wire.DataBody)):
        if isinstance(kind, inspect.IntType) and kind.ge == 0:
            assert kind.le is not None and kind.le * ENGINES <= LARGEST + 1, path


def test_every_whole_number_of_a_viewers_question_has_bounds() -> None:
    found = [
        (path, kind) for path, kind in numbers(inspect.type_info(api.Question)) if isinstance(kind, inspect.IntType)
    ]
    assert found
    assert [path for path, kind in found if kind.ge is None or kind.le is None] == []


COUNTS = [field.name for field in inspect.type_info(wire.EngineState).fields if isinstance(field.type, inspect.IntType)]  # type: ignore[attr-defined]


@given(st.sampled_from(COUNTS), st.integers(-(2**63), -1) | st.integers(2**53 + 1, 2**64 - 1))
def test_a_message_with_a_number_out_of_bounds_is_rejected_as_a_whole(name: str, value: int) -> None:
    envelope = wire.Envelope(wire.PROTO, "e0", "epoch", 0, 0.0)
    frames = [msgspec.msgpack.encode(one) for one in (envelope, engine_state("e0", **{name: value}))]
    with pytest.raises(wire.WireError):
        wire.decode_data(frames)


@given(st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e12, -1e12]))
def test_a_time_that_no_calendar_has_is_rejected(sent: float) -> None:
    frames = [
        msgspec.msgpack.encode(one) for one in (wire.Envelope(wire.PROTO, "e0", "epoch", 0, sent), engine_state("e0"))
    ]
    with pytest.raises(wire.WireError):
        wire.decode_data(frames)
