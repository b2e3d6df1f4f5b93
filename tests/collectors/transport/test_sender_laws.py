"""Guarantees of the sender for any behaviour of the hub: losses are counted, calls don't wait, order is kept."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zmq

from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport import sender as sender_module
from rltop.collectors.transport.error_boundary import MAX_FAULTS
from rltop.collectors.transport.sender import Message, Sender
from rltop.collectors.transport.software import software
from tests.support.receiver import Receiver, run_directory, wait_until

PAYLOAD = np.zeros(25_000, "<f4")


Item = tuple[int, int]
"""Of which thread, and its number."""


def encode(kind: str, items: list[Item]) -> Iterable[Message]:
    """One message per item: a number, or for bulk one with 100 kB behind it."""
    for rank, number in items:
        if kind == "bulk":
            arrays: wire.Arrays = {"payload": PAYLOAD}
            yield wire.Sequences(number, 0, rank, 0, wire.describe(arrays)), arrays
        else:
            yield wire.StepClosed(number, rank, 1), {}


def make(rundir: RunDir, **options: Any) -> Sender[Any]:
    return Sender(rundir, "trainer/0", "trainer", options.pop("encode", encode), vital=frozenset({"vital"}), **options)


def counts(sender: Sender[Any], kind: str) -> tuple[int, int, int, int]:
    c = sender.health().counts[kind]
    return c.offered, c.sent, c.dropped, c.queued


def test_a_racing_close_counts_every_record_and_the_hub_has_all_sent_ones() -> None:
    with run_directory() as rundir, Receiver(rundir) as hub:
        for _ in range(20):
            hub.messages.clear()
            sender = make(rundir)
            barrier = threading.Barrier(4)

            def offer(rank: int, sender: Sender[Any] = sender, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                for number in range(200):
                    sender.offer("vital", 1, (rank, number))

            hosts = [threading.Thread(target=offer, args=(rank,)) for rank in range(3)]
            for host in hosts:
                host.start()
            barrier.wait()
            confirmed = sender.close()
            for host in hosts:
                host.join()
            offered, sent, dropped, queued = counts(sender, "vital")
            assert (offered, queued) == (600, 0)
            assert sent + dropped == 600
            if sender._thread is None:  # closed before the first offer
                assert sent == 0
                continue
            assert confirmed
            steps = hub.bodies(wire.StepClosed)
            assert len(steps) == sent
            for rank in range(3):
                numbers = [step.step for step in steps if step.rank == rank]
                assert numbers == list(range(len(numbers)))


def test_kinds_keep_their_order() -> None:
    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir)
        order = [("bulk", 1), ("vital", 1), ("vital", 2), ("bulk", 2), ("vital", 3)]
        for kind, number in order:
            assert sender.offer(kind, 1, (0, number))
        assert sender.close()
        seen = [
            ("bulk" if isinstance(body, wire.Sequences) else "vital", body.step)
            for _, body, _ in hub.messages
            if isinstance(body, wire.Sequences | wire.StepClosed)
        ]
        assert seen == order


def test_without_a_hub_bulk_is_shed_first_and_the_queue_arrives_later() -> None:
    with run_directory() as rundir:
        sender = make(rundir, limit_bytes=1000)
        taken = [sender.offer("bulk", 100, (0, number)) for number in range(50)]
        assert taken == [True] * 9 + [False] * 41
        assert [sender.offer("vital", 50, (0, number)) for number in range(3)] == [True, True, False]
        assert sender.health().queue_bytes <= 1000
        assert counts(sender, "bulk") == (50, 0, 41, 9)
        with Receiver(rundir) as hub:
            wait_until(lambda: counts(sender, "bulk")[1] == 9 and counts(sender, "vital")[1] == 2)
            assert sender.close()
            assert [body.step for body in hub.bodies(wire.Sequences)] == list(range(9))
            assert [body.step for body in hub.bodies(wire.StepClosed)] == [0, 1]
            assert hub.sequence_numbers() == list(range(len(hub.messages)))  # nothing was lost: no holes


def test_a_stalled_hub_costs_bulk_records_but_no_vital_one() -> None:
    with run_directory() as rundir, Receiver(rundir, reading=False) as hub:
        sender = make(rundir, limit_bytes=4 << 20)
        sender.start()
        wait_until(lambda: hub.control)
        for number in range(400):
            sender.offer("bulk", PAYLOAD.nbytes, (0, number))
            if number % 40 == 0:
                assert sender.offer("vital", 100, (0, number))
            assert sender.health().queue_bytes <= 4 << 20
        wait_until(lambda: counts(sender, "bulk")[2] > 0 or sender.offer("bulk", PAYLOAD.nbytes, (0, 400)) is False)
        hub.read()
        assert sender.close()
        assert [body.step for body in hub.bodies(wire.StepClosed)] == list(range(0, 400, 40))
        offered, sent, dropped, queued = counts(sender, "bulk")
        assert (sent + dropped, queued) == (offered, 0)
        assert len(hub.bodies(wire.Sequences)) == sent
        assert hub.sequence_numbers() == list(range(len(hub.messages)))
        last = hub.bodies(wire.Health)[-1]
        assert last.counts["bulk"].dropped == dropped  # the hub knows what it missed


def test_collectors_register_with_a_new_hub_and_losses_are_gaps_in_the_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "REGISTER_PERIOD_S", 0.05)
    with run_directory() as rundir:
        sender = make(rundir)
        first = Receiver(rundir)
        number = 0

        def offer_until(condition: Any) -> None:
            def one_more() -> bool:
                nonlocal number
                sender.offer("vital", 1, (0, number))
                number += 1
                return bool(condition())

            wait_until(one_more)

        offer_until(lambda: len(first.bodies(wire.StepClosed)) > 20)
        first.stop()
        offer_until(lambda: counts(sender, "vital")[3] > 20)  # queued: the sender knows that nobody is there
        with Receiver(rundir) as second:
            offer_until(lambda: second.control and len(second.bodies(wire.StepClosed)) > 20)
            assert sender.close()
            registers = [message for message in second.control if isinstance(message, wire.Register)]
            assert registers[0] == wire.Register(
                wire.PROTO, "trainer/0", sender.epoch, "trainer", software(), sender._session
            )
            arrived = first.sequence_numbers() + second.sequence_numbers()
            byes = [message for message in second.control if isinstance(message, wire.Bye)]
            holes = set(range(byes[0].sent)) - set(arrived)
            offered, sent, dropped, queued = counts(sender, "vital")
            assert (offered, dropped, queued) == (number, 0, 0)
            steps = len(first.bodies(wire.StepClosed)) + len(second.bodies(wire.StepClosed))
            assert 0 <= sent - steps <= len(holes)


def test_close_without_a_hub_ends_the_thread_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BYE_TIMEOUT_S", 0.1)
    with run_directory() as rundir:
        sender = make(rundir)
        assert sender.offer("vital", 1, (0, 0))
        assert not sender.close()
        assert sender._thread is not None
        assert not sender._thread.is_alive()
        assert not sender.offer("vital", 1, (0, 1))
        assert counts(sender, "vital") == (2, 0, 2, 0)
        assert sender.health().queue_bytes == 0
        assert not sender.close()


def test_close_is_bounded_if_the_hub_never_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BYE_TIMEOUT_S", 0.1)
    with run_directory() as rundir, Receiver(rundir, acknowledging=False) as hub:
        sender = make(rundir)
        sender.offer("vital", 1, (0, 0))
        wait_until(lambda: hub.bodies(wire.StepClosed))
        assert not sender.close()
        assert counts(sender, "vital") == (1, 1, 0, 0)
        wait_until(lambda: any(isinstance(message, wire.Bye) for message in hub.control))


def test_an_unused_sender_closes_and_stays_closed() -> None:
    with run_directory() as rundir:
        sender = make(rundir)
        assert not sender.close()
        assert not sender.offer("vital", 1, (0, 0))
        assert sender._thread is None
        assert counts(sender, "vital") == (1, 0, 1, 0)


def test_threads_and_sockets_are_gone_after_close() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with run_directory() as rundir, Receiver(rundir) as hub:
        for _ in range(2):  # the first round loads and opens what stays
            files, threads = descriptors(), threading.active_count()
            sender = make(rundir)
            sender.offer("vital", 1, (0, 0))
            wait_until(lambda: hub.bodies(wire.StepClosed))
            assert sender.close()
            hub.messages.clear()
            assert threading.active_count() == threads
        wait_until(lambda: descriptors() <= files)  # the hub's end of a connection closes in its own time


@pytest.mark.parametrize("place", ["encode", "on_message", "periodic", "tick"])
def test_exceptions_of_a_collector_are_contained_counted_and_finally_switched_off(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "HEALTH_PERIOD_S", 0.01)
    monkeypatch.setattr(sender_module, "REGISTER_PERIOD_S", 0.01)
    calls = 0

    def fault(*_: object) -> Any:
        nonlocal calls
        calls += 1
        raise RuntimeError("ours")

    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir, **{place: fault})
        number = 0

        def until_off() -> bool:
            nonlocal number
            number += 1
            sender.offer("vital", 1, (0, number))
            return sender.guard.faults.get(place) == MAX_FAULTS

        wait_until(until_off)
        wait_until(lambda: any(body.faults.get(place) == MAX_FAULTS for body in hub.bodies(wire.Health)))
        assert sender.close()
        assert sender.guard.faults == {place: MAX_FAULTS}
        assert calls == MAX_FAULTS
        offered, sent, dropped, queued = counts(sender, "vital")
        assert (offered, queued) == (number, 0)
        assert (sent, dropped) == ((0, number) if place == "encode" else (number, 0))


def test_an_invalid_message_is_dropped_and_the_rest_is_sent() -> None:
    def wrong(kind: str, items: list[Any]) -> Iterable[Message]:
        for item in items:
            if item == "wrong":
                arrays: wire.Arrays = {"x": np.zeros(2, ">f8")}
                yield wire.Sequences(0, 0, 0, 0, wire.describe(arrays)), arrays
            yield wire.StepClosed(1, 0, 1), {}

    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir, encode=wrong)
        sender.offer("bulk", 1, "wrong")
        sender.offer("vital", 1, "right")
        assert sender.close()
        assert counts(sender, "bulk") == (1, 0, 1, 0)
        assert counts(sender, "vital") == (1, 1, 0, 0)
        assert len(hub.bodies(wire.StepClosed)) == 1


def test_a_forked_child_starts_clean_and_the_parent_keeps_its_records() -> None:
    with run_directory() as rundir:
        sender = make(rundir)
        for number in range(5):
            sender.offer("vital", 1, (0, number))
        child = os.fork()
        if child == 0:  # no test machinery in here: the exit code says what was seen
            clean = sender.health().counts == {} and sender._thread is None
            sender.offer("vital", 1, (1, 99))
            started = sender._thread is not None
            os._exit(0 if clean and started and sender.close(timeout=10) else 1)
        with Receiver(rundir) as hub:
            wait_until(lambda: len(hub.bodies(wire.StepClosed)) == 6)
            assert os.waitpid(child, 0)[1] == 0
            assert sender.close()
            epochs = {body.rank: envelope.epoch for envelope, body, _ in hub.messages if hasattr(body, "rank")}
            assert epochs[0] == sender.epoch != epochs[1]
            assert sorted(body.step for body in hub.bodies(wire.StepClosed)) == [0, 1, 2, 3, 4, 99]
            assert counts(sender, "vital") == (5, 5, 0, 0)


def test_commands_reach_the_collector_and_replies_the_hub() -> None:
    heard: list[wire.ControlToCollector] = []
    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir, on_message=heard.append)
        sender.start()
        command = wire.Command("c1", "prefix_caching", "off", 0.0)
        hub.to_send.append(command)
        wait_until(lambda: command in heard)
        assert heard[0] == wire.Welcome("hub")
        update = wire.CommandUpdate("c1", "e0", "prefix_caching", "applied")
        sender.reply(update)
        wait_until(lambda: update in hub.control)
        assert isinstance(hub.control[0], wire.Register)
        assert sender.close()


def heard(hub: Receiver, kind: type[Any]) -> list[tuple[int, int]]:
    """Sequence number and step of every message of that kind, in the order in which they came."""
    return [(envelope.seq, body.step) for envelope, body, _ in list(hub.messages) if isinstance(body, kind)]


def test_unacknowledged_messages_are_resent_unchanged_before_new_ones() -> None:
    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir)
        for number in range(5):
            sender.offer("bulk", PAYLOAD.nbytes, (0, number))
        wait_until(lambda: len(heard(hub, wire.Sequences)) == 5)
        first = list(hub.messages)
        hub.to_send += [wire.Acknowledged(sender.epoch, first[2][0].seq), wire.Resend(sender.epoch, 0)]
        wait_until(lambda: len(hub.messages) > len(first) + 1)
        sender.offer("vital", 1, (0, 5))
        assert sender.close()
        again = hub.messages[len(first) :]
        numbers = [envelope.seq for envelope, _, _ in again]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        then = {envelope.seq: (envelope.sent, body, arrays) for envelope, body, arrays in first}
        assert first[2][0].seq + 1 == numbers[0]
        for envelope, body, arrays in again:
            if envelope.seq in then and not isinstance(body, wire.Passed):
                sent, as_it_was, same = then[envelope.seq]
                assert (envelope.sent, body) == (sent, as_it_was)
                assert [array.tobytes() for array in arrays.values()] == [array.tobytes() for array in same.values()]
        assert all(envelope.oldest == numbers[0] for envelope, _, _ in again if envelope.seq in then)
        assert not any(isinstance(body, wire.Health) for envelope, body, _ in again if envelope.seq in then)


def test_retained_messages_make_room_for_new_records() -> None:
    limit = 10 * PAYLOAD.nbytes
    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir, limit_bytes=limit)
        for number in range(30):
            assert sender.offer("bulk", PAYLOAD.nbytes, (0, number))
            wait_until(lambda n=number: len(heard(hub, wire.Sequences)) == n + 1)  # type: ignore[misc]
            assert sender._resend_buffer.nbytes + sender.health().queue_bytes <= limit
        hub.to_send.append(wire.Resend(sender.epoch, 0))
        wait_until(lambda: heard(hub, wire.Sequences)[-1][1] == 29 and len(heard(hub, wire.Sequences)) > 30)
        again = [step for _, step in heard(hub, wire.Sequences)[30:]]
        assert again == list(range(again[0], 30))
        assert 5 < len(again) < 10
        assert sender.close()


def test_a_disconnect_waits_for_requested_messages() -> None:
    with run_directory() as rundir, Receiver(rundir, acknowledging=False) as hub:
        sender = make(rundir)
        for number in range(3):
            sender.offer("vital", 1, (0, number))
        wait_until(lambda: len(heard(hub, wire.StepClosed)) == 3)
        before = len(hub.messages)
        closing = threading.Thread(target=sender.close)
        closing.start()
        wait_until(lambda: any(isinstance(message, wire.Bye) for message in hub.control))
        hub.to_send.append(wire.Resend(sender.epoch, 0))
        wait_until(lambda: len(heard(hub, wire.StepClosed)) == 6)
        hub.to_send.append(wire.ByeAck(sender.epoch))
        closing.join()
        assert sender._acknowledged.is_set()
        assert len(hub.messages) > before


class Counted(zmq.Socket[bytes]):
    """A real socket that counts the calls that release the GIL, by socket type."""

    calls: ClassVar[Counter[tuple[int, str]]] = Counter()

    def send(self, *args: Any, **options: Any) -> Any:
        self.calls[self.socket_type, "send"] += 1
        return super().send(*args, **options)

    def recv(self, *args: Any, **options: Any) -> Any:
        self.calls[self.socket_type, "recv"] += 1
        return super().recv(*args, **options)

    def poll(self, *args: Any, **options: Any) -> Any:
        self.calls[self.socket_type, "poll"] += 1
        return super().poll(*args, **options)


def test_a_message_costs_one_socket_call_and_idle_polling_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def encode_wide(kind: str, items: list[Any]) -> Iterable[Message]:
        for number in items:
            arrays: wire.Arrays = {f"a{at}": PAYLOAD[:1000] for at in range(9)}
            yield wire.Sequences(number, 0, 0, 0, wire.describe(arrays)), arrays

    monkeypatch.setattr(zmq.Context, "_socket_class", Counted)
    monkeypatch.setattr(Counted, "calls", Counter())
    with run_directory() as rundir, Receiver(rundir) as hub:
        sender = make(rundir, encode=encode_wide)
        for number in range(300):
            sender.offer("bulk", 36_000, number)
        wait_until(lambda: len(hub.bodies(wire.Sequences)) == 300)
        sent_by_then = Counted.calls[zmq.PUSH, "send"]
        assert sender.close()
        assert 300 <= sent_by_then <= len(hub.messages)
        assert Counted.calls[zmq.PUSH, "send"] == len(hub.messages)
        heard = len([m for m in hub.control if isinstance(m, wire.Register | wire.Bye)])  # each was answered
        assert Counted.calls[zmq.DEALER, "recv"] == heard
