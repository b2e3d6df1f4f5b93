from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.transport.send_queue import QueuedBatch, SendQueue

KINDS = ("bulk", "vital")
Action = tuple[str, str, int]
actions = st.lists(
    st.tuples(st.sampled_from(["offer", "take", "sent", "dropped", "lost"]), st.sampled_from(KINDS), st.integers(0, 40))
)


@given(actions)
def test_every_record_is_queued_sent_or_dropped_and_the_bound_holds(todo: list[Action]) -> None:
    box = SendQueue[object](100, frozenset({"vital"}))
    offered = dict.fromkeys(KINDS, 0)
    queued: list[tuple[str, int]] = []  # an independent account: what should be held, in order
    taken: list[QueuedBatch[object]] = []
    gone = dict.fromkeys(KINDS, 0)
    for action, kind, size in todo:
        if action == "offer":
            offered[kind] += 1
            held = sum(s for _, s in queued) + sum(lot.nbytes for lot in taken)
            fits = held + size <= (100 if kind == "vital" else 90)
            assert box.has_room(kind, size) == fits
            assert box.offer(kind, size, len(queued)) == fits
            if fits:
                queued.append((kind, size))
            else:
                gone[kind] += 1
        elif action == "lost":
            box.count_dropped(kind, size)
            offered[kind] += size
            gone[kind] += size
        elif action == "take":
            lot = box.pop_batch()
            assert (lot is None) == (not queued)
            if lot is not None:
                run = 0
                while run < len(queued) and queued[run][0] == lot.kind:
                    run += 1
                assert queued[0][0] == lot.kind
                assert (len(lot.items), lot.nbytes) == (run, sum(s for _, s in queued[:run]))
                del queued[:run]
                taken.append(lot)
        elif taken:
            lot = taken.pop()
            gone[lot.kind] += len(lot.items)
            box.settle(lot, sent=action == "sent")
        assert box.nbytes == sum(s for _, s in queued) + sum(lot.nbytes for lot in taken) <= 100
    for kind, counts in box.counts().items():
        waiting = sum(k == kind for k, _ in queued) + sum(len(lot.items) for lot in taken if lot.kind == kind)
        assert (counts.offered, counts.sent + counts.dropped, counts.queued) == (offered[kind], gone[kind], waiting)


def test_vital_kinds_have_reserved_room() -> None:
    box = SendQueue[object](100, frozenset({"vital"}))
    assert [box.offer("bulk", 30, None) for _ in range(5)] == [True, True, True, False, False]
    assert [box.offer("vital", 5, None) for _ in range(3)] == [True, True, False]


def test_after_close_offers_are_dropped_and_queued_items_remain() -> None:
    box = SendQueue[str](100, frozenset())
    assert box.offer("bulk", 1, "a")
    box.close()
    assert not box.offer("bulk", 1, "b")
    assert not box.has_room("bulk", 1)
    lot = box.pop_batch()
    assert lot is not None
    assert lot.items == ["a"]
