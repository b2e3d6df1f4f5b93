"""The resend buffer holds the unacknowledged messages that fit, in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract import wire
from rltop.collectors.transport.resend_buffer import MESSAGE_BYTES, ResendBuffer

Act = tuple[str, int]
ACTS = st.lists(
    st.tuples(st.sampled_from(["keep", "transient", "release", "rewind", "again", "fit"]), st.integers(0, 30)),
    max_size=80,
)


@given(ACTS)
def test_the_buffer_retains_all_messages_after_the_last_released(acts: list[Act]) -> None:
    kept = ResendBuffer()
    told: list[int] = []  # an independent account: the size of every message that was kept
    oldest = again = 0
    for act, number in acts:
        if act in ("keep", "transient"):
            kept.append(float(len(told)), [b"x" * number, b"y"], transient=act == "transient")
            again += again == len(told)
            told.append(MESSAGE_BYTES + (number + 1 if act == "keep" else 0))
        elif act == "release":
            kept.acknowledge(number)
            oldest = max(oldest, min(number + 1, len(told)))
        elif act == "rewind":
            kept.rewind(number)
            again = number
        elif act == "again" and kept.next_resend:
            kept.mark_resent()
            again += 1
        elif act == "fit":
            room = number * MESSAGE_BYTES
            kept.shrink(room)
            while sum(told[oldest:]) > room:
                oldest += 1
        again = min(max(again, oldest), len(told))
        assert (kept.oldest, kept.next_seq, kept.nbytes) == (oldest, len(told), sum(told[oldest:]))
        assert (kept.next_resend.seq if kept.next_resend else len(told)) == again
        assert kept.next_resend is None or kept.next_resend.time == again


def test_a_transient_message_is_retained_as_its_number_alone() -> None:
    kept = ResendBuffer()
    kept.append(0.0, wire.encode_body(wire.Health({}, 0, 1000), {}), transient=True)
    kept.rewind(0)
    assert kept.next_resend is not None
    envelope = wire.encode_envelope(wire.Envelope(wire.PROTO, "e0", "life", 0, 0.0))
    assert wire.decode_data([envelope, *kept.next_resend.frames])[1] == wire.Passed()


def test_a_view_of_a_large_array_does_not_retain_the_array() -> None:
    large = np.zeros(10_000, "<f4")
    part = large[10:20]
    body = wire.Sequences(0, 0, 0, 0, wire.describe({"part": part, "large": large}))
    kept = ResendBuffer()
    kept.append(0.0, wire.encode_body(body, {"part": part, "large": large}))
    kept.rewind(0)
    assert kept.next_resend is not None
    _, window, whole = kept.next_resend.frames
    assert isinstance(window, bytes)
    assert window == part.tobytes()
    assert isinstance(whole, memoryview)
