"""Under loss, duplication, reordering and hub crashes each message is stored once or counted as lost."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.ingest.sources import MISSING_TIMEOUT_S, REQUEST_AGAIN_S, ReceivedMark, Sources
from rltop.collectors.contract import wire
from rltop.collectors.transport.resend_buffer import MESSAGE_BYTES, ResendBuffer

LIFE = "life-1"


@dataclass
class Link:
    """Connections from a sender to a hub, each of which keeps order; the last is the one that is written to."""

    rng: random.Random
    pipes: list[deque[wire.Envelope]] = field(default_factory=lambda: [deque()])

    def put(self, envelope: wire.Envelope, fate: str) -> None:
        if fate != "lost":
            self.pipes[-1].append(envelope)
        if fate == "doubled":
            self.pipes[-1].append(envelope)

    def get(self) -> wire.Envelope | None:
        full = [pipe for pipe in self.pipes if pipe]
        return self.rng.choice(full).popleft() if full else None


@dataclass
class Hub:
    """A hub that receives messages into memory and stores them from time to time."""

    mark: ReceivedMark | None
    begun: float

    def __post_init__(self) -> None:
        self.sources = Sources({"e0": self.mark} if self.mark else {}, self.begun)
        self.taken: list[int] = []
        self.lost = 0

    def hear(self, envelope: wire.Envelope, now: float) -> int | None:
        arrival = self.sources.receive(envelope, now, envelope.seq, 1 << 20)
        assert arrival is not None  # no other process has its name
        self.lost += arrival.lost
        if arrival.is_midway:  # nobody knows of those before: no hub has stored anything
            self.lost += min(arrival.ready, default=arrival.source.next_seq)
        assert not (arrival.is_duplicate and arrival.ready)
        self.taken += arrival.ready
        return arrival.source.resend_due(now)


class World:
    """A sender, a link, successive hubs, and their store."""

    def __init__(self, seed: int, room: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.room = room
        self.kept = ResendBuffer()
        self.link = Link(self.rng)
        self.hub = Hub(None, self.now)
        self.stored: list[int] = []
        self.lost = 0
        self.mark: ReceivedMark | None = None

    def send(self, fate: str = "") -> None:
        """Send the next resend, or else a new message."""
        self.kept.shrink(self.room * MESSAGE_BYTES)
        due = self.kept.next_resend
        seq = due.seq if due else self.kept.next_seq
        envelope = wire.Envelope(wire.PROTO, "e0", LIFE, seq, 0.0, self.kept.oldest)
        if due:
            self.kept.mark_resent()
        else:
            self.kept.append(self.now, [])
        self.link.put(envelope, fate)

    def hear(self, *, asked: bool = True) -> None:
        if (envelope := self.link.get()) is not None:
            wanted = self.hub.hear(envelope, self.now)
            if wanted is not None and asked:
                self.kept.rewind(wanted)

    def store(self, *, told: bool = True) -> None:
        source = self.hub.sources.get("e0")
        if source is None:
            return
        last = source.next_seq - 1
        self.stored += self.hub.taken
        self.lost += self.hub.lost
        self.hub.taken, self.hub.lost = [], 0
        self.mark = ReceivedMark(LIFE, last, last)
        if told:
            self.kept.acknowledge(last)

    def die(self) -> None:
        """The hub dies with unstored and in-flight messages; another takes over."""
        self.link.pipes = [deque()]
        self.hub = Hub(self.mark, self.now)


ACTS = st.lists(
    st.sampled_from(
        ["send", "send", "send", "lost", "doubled", "hear", "hear", "hear", "deaf", "store", "untold", "die", "cut"]
    ),
    max_size=120,
)


@given(ACTS, st.integers(0, 2**32 - 1), st.sampled_from([0, 3, 1000]))
def test_every_message_is_stored_once_and_in_order_or_counted_as_lost(acts: list[str], seed: int, room: int) -> None:
    world = World(seed, room)
    for act in acts:
        world.now += 0.1
        if act in ("send", "lost", "doubled"):
            world.send(act)
        elif act in ("hear", "deaf"):  # deaf: that it is asked to send again does not reach the sender
            world.hear(asked=act == "hear")
        elif act in ("store", "untold"):
            world.store(told=act == "store")
        elif act == "die":
            world.die()
        elif act == "cut":  # what the hub has of the old connection it reads beside the new one's
            world.link.pipes = [world.link.pipes[-1], deque()]
    for _ in range(2 * len(acts) + 10):  # then all goes well
        world.now += REQUEST_AGAIN_S
        world.send()
        while any(world.link.pipes):
            world.hear()
        world.store()
    assert world.stored == sorted(set(world.stored))
    assert world.stored[-1] == world.kept.next_seq - 1
    assert len(world.stored) + world.lost == world.kept.next_seq
    if room == 1000:
        assert world.lost == 0


def test_messages_that_are_never_resent_are_given_up() -> None:
    world = World(0, 1000)
    world.send()
    world.hear()
    world.send("lost")
    while world.now < MISSING_TIMEOUT_S - 1:
        world.send()
        world.hear(asked=False)
        world.now += 1
    assert world.hub.taken == [0]
    world.now += 3
    world.send()
    world.hear(asked=False)
    last = world.kept.next_seq - 1
    assert world.hub.taken == [0, *range(2, last + 1)]  # those after it had waited
    assert world.hub.lost == 1
