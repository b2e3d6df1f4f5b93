"""Decoding arbitrary bytes gives a message or a ``WireError``."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from rltop.collectors.contract import wire
from tests.collectors.contract.test_wire_golden import ARRAYS, MESSAGES

ENVELOPE = wire.Envelope(wire.PROTO, "e0", "f00d", 7, 1.5)

named_arrays = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(list(wire.DTYPES.values())).flatmap(
        lambda dtype: np_st.arrays(dtype, st.integers(0, 20))  # NaN and infinities included
    ),
    max_size=6,
)


@given(named_arrays)
def test_arrays_arrive_as_they_were_sent(arrays: wire.Arrays) -> None:
    body = wire.Sequences(3, 0, 1, 2, wire.describe(arrays))
    frames = [bytes(frame) for frame in wire.encode_data(ENVELOPE, body, arrays)]
    envelope, decoded, back = wire.decode_data(frames)
    assert (envelope, decoded) == (ENVELOPE, body)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable or array.size == 0


@given(named_arrays)
def test_a_packed_message_is_one_frame_with_the_same_content(arrays: wire.Arrays) -> None:
    body = wire.Sequences(3, 0, 1, 2, wire.describe(arrays))
    frames = [bytes(frame) for frame in wire.encode_data(ENVELOPE, body, arrays)]
    packed = bytes(*wire.pack(frames))
    assert list(wire.unpack([packed])) == frames
    envelope, decoded, back = wire.decode_data([packed])
    assert (envelope, decoded) == (ENVELOPE, body)
    for name, array in arrays.items():
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.aligned
        base: Any = back[name].base  # it keeps nothing else alive
        assert array.size == 0 or memoryview(base).nbytes == array.nbytes


@given(st.binary(max_size=60), st.data())
def test_damaged_packed_messages_raise_only_wire_errors(rest: bytes, data: st.DataObject) -> None:
    packed = bytes(*wire.pack(wire.encode_data(ENVELOPE, wire.Health({}, 0, 1000), {})))
    changed = bytearray(packed)
    changed[data.draw(st.integers(0, 40))] = data.draw(st.integers(0, 255))
    for frame in (bytes(changed), packed[: data.draw(st.integers(0, len(packed)))], packed + rest, rest):
        assert_message_or_wire_error([frame])


@pytest.mark.parametrize(
    "frame", [b"", b"\2\0\0", b"\1" + bytes(7), b"\xff" * 400, b"\2\0\0\0" + b"\xff" * 8 + bytes(90)]
)
def test_inconsistent_sizes_are_refused_before_any_allocation(frame: bytes) -> None:
    with pytest.raises(wire.WireError, match="packed"):
        wire.unpack([frame])


def test_a_message_too_large_to_be_packed_is_sent_frame_by_frame() -> None:
    frames = [b"", b"", bytes(wire.MAX_PACKED_BYTES)]
    assert wire.pack(frames) == frames
    assert len(wire.pack([b"", b"", bytes(wire.MAX_PACKED_BYTES // 2)])) == 1


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_arbitrary_bytes_raise_only_wire_errors(frames: list[bytes]) -> None:
    assert_message_or_wire_error(frames)


@given(st.sampled_from(list(MESSAGES)), st.data())
def test_mutated_messages_raise_only_wire_errors(name: str, data: st.DataObject) -> None:
    body = MESSAGES[name]
    if isinstance(body, wire.DataBody):
        frames = [bytes(frame) for frame in wire.encode_data(ENVELOPE, body, ARRAYS.get(name, {}))]
    else:
        frames = [wire.encode(body)]
    which = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[which])
    for _ in range(data.draw(st.integers(1, 4))):
        if not frame:
            break
        at = data.draw(st.integers(0, len(frame) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            frame[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del frame[at:]
        else:
            frame[at:at] = data.draw(st.binary(max_size=4))
    frames[which] = bytes(frame)
    assert_message_or_wire_error(frames)


def assert_message_or_wire_error(frames: list[bytes]) -> None:
    for decode in (wire.decode_to_hub, wire.decode_to_collector):
        for frame in frames:
            with contextlib.suppress(wire.WireError):
                decode(frame)
    try:
        _, body, arrays = wire.decode_data(frames)
    except wire.WireError:
        return
    described: list[wire.Array] = getattr(body, "arrays", [])
    assert [(entry.name, entry.size) for entry in described] == [(name, a.size) for name, a in arrays.items()]


@pytest.mark.parametrize(
    "tail",
    [
        b"\xa1\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\x81" * 100_000,
        b"\xc9\x00\x00\x00\x01\x05\x00",
        b"\xcf" + b"\xff" * 8,
    ],
    ids=["text that is no utf-8", "deep lists", "deep maps", "extension", "beyond int64"],
)
def test_hostile_values_are_refused_or_skipped_in_every_field(tail: bytes) -> None:
    good = msgspec.msgpack.encode(("bye", "trainer/0", "f00d", 3))
    for frame in (b"\x94\xa3bye" + tail * 3, b"\x95" + good[1:] + tail, tail, b"\x94" + tail + good[5:]):
        assert_message_or_wire_error([frame])
        assert_message_or_wire_error([frame, frame])


def sequences(**changes: Any) -> list[bytes]:
    entry = wire.Array(changes.get("name", "x"), changes.get("dtype", "i4"), changes.get("size", 2))
    envelope = msgspec.structs.replace(ENVELOPE, proto=changes.get("proto", wire.PROTO))
    body = wire.Sequences(0, 0, 0, 0, [entry] * changes.get("times", 1))
    return [
        wire.encode_envelope(envelope),
        wire.encode(body),
        *[changes.get("frame", b"\0" * 8)] * changes.get("frames", 1),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "O"}, "does not fit"),
        ({"size": -1}, "Expected `int` >= 0"),
        ({"size": 1 << 50}, "does not fit"),
        ({"size": 1 << 60}, "Expected `int` <="),
        ({"frame": b"\0" * 7}, "does not fit"),
        ({"times": 2, "frames": 2}, "does not fit"),
        ({"frames": 2}, "1 arrays described, 2 sent"),
        ({"frames": 0}, "1 arrays described, 0 sent"),
        ({"frames": 40}, "42 frames"),
        ({"proto": 2}, "wire version 2"),
        ({"frame": bytes(wire.MAX_FRAME_BYTES + 1)}, "array frame of more than"),
    ],
)
def test_an_array_that_contradicts_its_description_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(wire.WireError, match=said):
        wire.decode_data(sequences(**changes))


def test_large_headers_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(wire.WireError, match="header frame"):
        wire.decode_data([bytes(wire.MAX_HEADER_BYTES + 1), b""])
    with pytest.raises(wire.WireError, match="control message"):
        wire.decode_to_hub(bytes(wire.MAX_CONTROL_BYTES + 1))


def test_messages_beyond_the_limits_are_not_encoded() -> None:
    big: wire.Arrays = {"x": np.zeros(wire.MAX_FRAME_BYTES + 1, "u1")}
    with pytest.raises(wire.WireError, match="array frame"):
        wire.encode_body(wire.Sequences(0, 0, 0, 0, wire.describe(big)), big)
    with pytest.raises(wire.WireError, match="float64"):
        wire.describe({"x": np.zeros(1)})
