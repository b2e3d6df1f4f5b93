"""Hostile traffic of a hub from a seed: frames that look valid, with edge numbers, damage, repetition and other peers.

Every message starts as a real one. Then numbers and texts inside it are replaced, its bytes are flipped or cut, its
frames are reordered or repeated, or it is sent as it is, by one of several peers that share names and numbers.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from rltop.backend import api
from rltop.collectors.contract import wire
from tests.support.hub_messages import Trained, Written, engine_state, rollouts, sequences

Tree = Any
"""What msgpack carries."""

EDGES = [
    0, 1, 2, 3, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**53 + 1, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
    -1, -2, -(2**31), -(2**53), -(2**62), -(2**63),
]  # fmt: skip
NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, -0.0, 5e-324, 1e10, 1e11, -1e11]
TEXTS = [
    "", "hostile0", "trainer/7", "x#y", "\x1b[2J\x1b[H", "\x1b]52;c;cHduZWQ=\x07", "[bold red]x[/]", "\u202etxt",
    "\0", "a" * 5000, "\U0001f4a5" * 300, "'; DROP TABLE step; --", "../../etc/passwd", "%s%n", "{0.__class__}", "\r\n",
    "\x9b31m", "e\u0301" * 200,
]  # fmt: skip

FIRST_STEP = 10**6
"""Steps of the hostile trainer; edge numbers replace some of them."""

PEERS = ("hostile0", "hostile1", "hostile2")
TRAINER = "trainer/7"
RECENT = 200

encode = msgspec.msgpack.encode


class Hostile:
    """An endless source of hostile messages. Equal seeds give equal messages.

    It claims the names ``PEERS`` and ``TRAINER``, no others.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._bodies = _bodies()
        self._control = [_tree(message) for message in CONTROL]
        self._questions = [_tree(question) for question in QUESTIONS]
        self._seqs: Counter[tuple[str, str]] = Counter()
        self._recent: deque[list[bytes]] = deque(maxlen=RECENT)

    def data(self) -> list[bytes]:
        """The frames of a data message."""
        draw = self._random
        frames = draw.choice(self._recent) if self._recent and draw.random() < 0.08 else self._message()
        self._recent.append(frames)
        if draw.random() < 0.5 and 2 <= len(frames) <= wire.MAX_FRAMES:
            packed = bytes(wire.pack(frames)[0])
            return [self._damaged(packed) if draw.random() < 0.1 else packed]
        return frames

    def control(self) -> tuple[str, bytes]:
        """The routing id of a collector, and a control message of it."""
        draw = self._random
        name = draw.choice((*PEERS, TRAINER))
        message = encode(self._changed(draw.choice(self._control)))
        return f"{name}#{self._epoch()}", self._damaged(message) if draw.random() < 0.2 else message

    def question(self) -> bytes:
        """A question of a viewer; never a valid one that stops the hub."""
        message = encode(self._changed(self._random.choice(self._questions)))
        return self._damaged(message) if self._random.random() < 0.2 else message

    def _message(self) -> list[bytes]:
        draw = self._random
        source, body, arrays = draw.choice(self._bodies)
        name = source if source == TRAINER else draw.choice(PEERS)
        body = [name if field == source else field for field in body]
        envelope = self._envelope(name)
        kind = draw.random()
        if kind < 0.45:
            body = self._changed(body)
        elif kind < 0.55:
            envelope = self._changed(envelope)
        frames = [encode(envelope), encode(body), *arrays]
        if kind < 0.7:
            return frames
        return draw.choice(DAMAGE)(self, frames) if kind < 0.9 else frames

    def _envelope(self, name: str) -> Tree:
        epoch = "x" if name == TRAINER else self._epoch()  # a trainer that starts again may begin another run
        self._seqs[name, epoch] += 1
        seq = self._seqs[name, epoch]
        oldest = {PEERS[0]: None, PEERS[1]: seq}.get(name, self._random.choice((None, 0, max(seq - 5, 0))))
        return [wire.PROTO, name, epoch, seq, 1e9, oldest]

    def _epoch(self) -> str:
        return "x" if self._random.random() < 0.98 else str(self._random.randrange(50))

    def _changed(self, tree: Tree) -> Tree:
        """One or two places replaced."""
        for _ in range(self._random.choice((1, 1, 2))):
            tree = self._replaced(tree)
        return tree

    def _replaced(self, tree: Tree) -> Tree:
        draw = self._random
        if isinstance(tree, list) and tree and draw.random() < 0.95:
            return self._replaced_list(list(tree))
        if isinstance(tree, dict) and tree and draw.random() < 0.95:
            key = draw.choice(list(tree))
            if draw.random() < 0.15:
                return {draw.choice(TEXTS) if name == key else name: value for name, value in tree.items()}
            return tree | {key: self._replaced(tree[key])}
        return self._leaf(tree)

    def _replaced_list(self, items: list[Tree]) -> Tree:
        draw, at, kind = self._random, self._random.randrange(len(items)), self._random.random()
        if kind < 0.05:
            del items[at]
        elif kind < 0.1:
            items.append(self._leaf(None))
        elif kind < 0.13:
            draw.shuffle(items)
        elif kind < 0.15:
            items *= draw.choice((2, 50))
        else:
            items[at] = self._replaced(items[at])
        return items

    def _leaf(self, value: Tree) -> Tree:
        """Another value, mostly of the same type."""
        draw = self._random
        same: dict[type, list[Any]] = {bool: [True, False], int: EDGES, float: NUMBERS, str: TEXTS}
        if type(value) in same and draw.random() < 0.8:
            return draw.choice(same[type(value)])
        return draw.choice([None, [], {}, [draw.choice(EDGES)] * 4, *EDGES, *NUMBERS, *TEXTS])

    def _damaged(self, frame: bytes) -> bytes:
        """Flip some bits, or cut the end."""
        draw, changed = self._random, bytearray(frame)
        if not changed or draw.random() < 0.3:
            return frame[: draw.randint(0, len(frame))]
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    def _one_damaged(self, frames: list[bytes]) -> list[bytes]:
        at = self._random.randrange(len(frames))
        return [self._damaged(frame) if place == at else frame for place, frame in enumerate(frames)]

    def _filled(self, frames: list[bytes]) -> list[bytes]:
        value = self._random.choice((0, 127, 128, 255))
        return [*frames[:2], *(bytes([value]) * len(frame) for frame in frames[2:])]

    def _garbage(self, _frames: list[bytes]) -> list[bytes]:
        return [self._random.randbytes(self._random.randint(0, 200)) for _ in range(self._random.randint(1, 6))]


DAMAGE: tuple[Callable[[Hostile, list[bytes]], list[bytes]], ...] = (
    Hostile._one_damaged,
    Hostile._filled,
    Hostile._garbage,
    lambda _, frames: frames[::-1],
    lambda _, frames: frames[:1],
    lambda _, frames: frames[1:] or [b""],
    lambda _, frames: frames * 3,
    lambda _, frames: [b""] * 30 + frames,
)

CONTROL: tuple[wire.ControlToHub, ...] = (
    wire.Register(wire.PROTO, "hostile0", "x", "engine", {"rltop": "1"}),
    wire.CommandUpdate("c", "hostile0", "prefix_caching", "applied"),
    wire.Bye("hostile0", "x", 5, 0),
    wire.Bye(TRAINER, "x", 5, 0),
)

QUESTIONS: tuple[api.Question, ...] = (
    api.AskSnapshot("1"),
    api.AskSet("2", "prefix_caching", "off", engines=["hostile0"]),
    api.AskAct("3", "pause", engines=["hostile0"]),
    api.AskKeep("4", "c"),
    api.AskUndo("5", "c"),
    api.AskProbe("6", "token-echo", engines=["hostile0"]),
    api.AskEffect("7"),
    api.AskSamples("8"),
    api.AskMismatch("9"),
    api.AskDiagnosis("a"),
    api.AskAcknowledge("b", "x"),
    api.AskSilence("c", "x", 5.0),
    api.AskPast("d", 1),
    api.AskAttribution("e"),
)


def _tree(message: msgspec.Struct) -> Tree:
    return msgspec.msgpack.decode(encode(message))


def _bodies() -> list[tuple[str, Tree, list[bytes]]]:
    """The source, body and array frames of a real message of every type."""
    engine = PEERS[0]
    written = [Written(range(10), [1, 2, 3, 4], [-0.1] * 4, [1] * 4, request_id=f"q{n}") for n in range(3)]
    per_token: dict[str, Sequence[float]] = {
        "old_logprobs": [-0.1] * 4, "entropy": [0.5] * 4, "advantages": [1.0] * 4, "rollout_versions": [1] * 4,
        "old_versions": [1] * 4, "clipped": [0] * 4,
    }  # fmt: skip
    row = Trained([1, 2, 3, 4], [1] * 4, [-0.1] * 4, [-0.11] * 4, range(10), 1.0, per_token)
    report = wire.ProbeReport(
        "c", engine, "token-echo", wire.describe({"logprobs": np.zeros(2, "<f4")}), 1, 1, 1,
        [wire.Score(0, "cold", 0, 2, 1)], [wire.Digest("w", "parameter", "0" * 16, "0" * 16, "f", 4)], {"q": ["a"]}, 1,
        1,
    )  # fmt: skip
    update = wire.CommandUpdate("c", engine, "prefix_caching", "applied", "r", "on", "off", 1, 1, 1, 0, 1.0, 1.0)
    timer = wire.Timer("c", "set", "prefix_caching", "on", 1e9)
    about_rank = sequences([row] * 3, step=FIRST_STEP, rank=7, policy_version=1)
    messages: list[tuple[str, wire.DataBody, wire.Arrays]] = [
        (engine, *rollouts(written, engine)),
        (TRAINER, *about_rank),
        (TRAINER, wire.StepClosed(FIRST_STEP, 7, 1, 2, {"loss": 0.5}, 1.0, {"w": "bf16:0123456789abcdef"}, 3), {}),
        (engine, engine_state(engine, commands=[update], timers=[timer]), {}),
        (engine, wire.Health({"rollouts": wire.Counts(1, 1, 0, 0)}, 1, 2, 3, 0.1, {"x": 1}), {}),
        (TRAINER, wire.TrainerFacts(7, {"dtype": "float32"}), {}),
        (engine, report, {"logprobs": np.zeros(2, "<f4")}),
        (engine, wire.Passed(), {}),
    ]
    return [(source, _tree(body), [array.tobytes() for array in arrays.values()]) for source, body, arrays in messages]
