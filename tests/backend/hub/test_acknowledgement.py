"""Up to where a collector is settled: what is before that is in steps that are done, or too old for any."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.ingest.acknowledgement import PERIOD_S, Acknowledgements
from rltop.backend.ingest.sources import ReceivedMark, Source
from rltop.backend.join.pending import PendingMessages
from rltop.backend.join.records import Record
from rltop.collectors.contract import wire
from tests.support.hub_messages import Written, rollouts


def record(seq: int, place: int) -> Record:
    (rollout,) = rollouts([Written([1], [5], [-1.0])])[0].rollouts
    arrays = rollouts([Written([1], [5], [-1.0])])[1]
    return Record("e0", rollout, b"", 1, arrays["token_ids"], arrays["logprobs"], "life", seq=seq, place=place)


@given(st.lists(st.integers(0, 3), max_size=12), st.data())
def test_rollouts_are_needed_until_they_are_trained_on_or_old(sizes: list[int], data: st.DataObject) -> None:
    needed = PendingMessages()
    records = [record(seq, place) for seq, size in enumerate(sizes) for place in range(size)]
    for seq, size in enumerate(sizes):
        needed.received("e0", "life", seq, size)
    last = len(sizes) - 1
    trained, old = set[int](), 0
    for act in data.draw(st.lists(st.sampled_from(["train", "age"]), max_size=2 * len(records))):
        if act == "age" and old < len(records):  # the oldest first
            needed.mark_old(records[old])
            old += 1
        elif records:
            chosen = data.draw(st.integers(0, len(records) - 1))
            needed.mark_trained(records[chosen])
            trained.add(chosen)
        young = [of.seq for of in records[old:]]
        untrained = [of.seq for place, of in enumerate(records) if place >= old and place not in trained]
        expected = min(young, default=last + 1) - 1, min(untrained, default=last + 1) - 1
        assert needed.watermarks("e0", "life", last) == expected
    assert needed.watermarks("e0", "another life", 7) == (7, 7)


def message_taken(settling: Acknowledgements, seq: int, step: int) -> None:
    settling.message_taken(wire.Envelope(wire.PROTO, "trainer/0", "life", seq, 0.0, 0), wire.StepClosed(step, 0, 1))


def test_a_sender_is_acknowledged_only_what_the_store_has() -> None:
    still_open = {1, 2}
    settling = Acknowledgements(PendingMessages(), still_open.__contains__)
    trainer = Source("trainer/0", "life", 0.0, 4, resends=True)
    for seq, step in enumerate((0, 0, 1, 2)):
        message_taken(settling, seq, step)
    assert settling.take_marks([trainer], 0.0, step_done=True) == [("trainer/0", ReceivedMark("life", 1, 1))]
    settling.not_stored()
    assert settling.take_acknowledged() == []
    assert settling.take_marks([trainer], 1.0, step_done=False) == []
    still_open.remove(2)  # a later step is done: that does not settle what is before it
    assert settling.take_marks([trainer], PERIOD_S, step_done=False) == [("trainer/0", ReceivedMark("life", 1, 1))]
    assert settling.take_acknowledged() == [("trainer/0", wire.Acknowledged("life", 1))]
    assert settling.take_acknowledged() == []
    still_open.remove(1)
    assert settling.take_marks([trainer], PERIOD_S, step_done=True) == [("trainer/0", ReceivedMark("life", 3, 3))]
    assert settling.take_acknowledged() == [("trainer/0", wire.Acknowledged("life", 3))]
    assert settling.take_marks([trainer], 3 * PERIOD_S, step_done=True) == []


def test_senders_without_a_resend_buffer_have_no_watermarks() -> None:
    settling = Acknowledgements(PendingMessages(), lambda _: False)
    assert settling.take_marks([Source("e0", "life", 0.0, 4)], 0.0, step_done=True) == []
