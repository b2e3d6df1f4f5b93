"""Frames as a hub hands them to its store, with edge-case numbers, and stores made of frames."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from rltop.backend import api, metrics
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.retention import LIMITS, Limits
from rltop.backend.store.write import Writer
from tests.support import pictures

ENGINES = ("e0", "e1/dp1")


def values(rng: random.Random) -> dict[str, float | None]:
    """A figure for every metric, some of them unknown, zero of either sign, huge or tiny."""
    odd: tuple[float | None, ...] = (None, 0.0, -0.0, 1e-300, -1.5e300, 1 / 3, 17.0)
    return {m.name: rng.choice((*odd, rng.random(), rng.gauss(0, 1))) for m in metrics.METRICS}


def step(number: int, seed: int = 0, engines: Iterable[str] = ENGINES) -> api.Step:
    rng = random.Random(seed * 1_000_003 + number)
    return api.Step(
        number,
        pictures.START + number + rng.random(),
        rng.choice((None, number + 1, 2**61)),
        rng.random() < 0.1,
        values(rng),
        {engine: values(rng) for engine in engines},
        {"no rollout": rng.randrange(5)} if rng.random() < 0.3 else {},
        {"grad_norm": rng.choice((0.5, math.nan, math.inf, -0.0)), "Grad_norm": 2.0, "naïve": 3.0, "lr": rng.random()},
    )


def frames(steps: int, *, seed: int = 0, every_s: float = 1.0, engines: Iterable[str] = ENGINES) -> Iterator[api.Frame]:
    """A run's frames: a step in each, engines and counters in most, events and a command's life in some."""
    rng = random.Random(seed)
    for number in range(steps):
        now = pictures.START + every_s * number
        shown = {
            engine: pictures.engine(
                "e0", id=engine, last_seen=now, step=number, tokens=number * 100 + rng.randrange(50),
                tokens_per_s=rng.choice((None, rng.random() * 500)), kv_usage=rng.choice((math.nan, rng.random())),
                flag_epoch=number // 50,
            )
            for engine in engines
        }  # fmt: skip
        change = pictures.change(
            "e0", "prefix_caching", "off", ("requested", "draining", "applied")[number % 3], command=f"c{number // 3}"
        )
        yield api.Frame(
            "hub-1",
            number + 1,
            now,
            shown if rng.random() < 0.8 else {},
            api.Trainer("live", 1, {"0": now}, number, number + 1),
            [step(number, seed, engines)],
            [pictures.event(number, f"thing {number}", rng.choice(("info", "warn")))] if number % 4 == 0 else [],
            [change] if number < 30 else [],
            {"messages": number * 7, "bytes": 2**40 + number},
        )


def store(directory: Path, made: Iterable[api.Frame], *, epoch: str = "hub-1", limits: Limits = LIMITS) -> Path:
    """A store in ``directory`` with these frames, closed in good order."""
    writer = Writer(directory / NAME, "run", epoch, pictures.START, limits=limits)
    writer.write(list(made))
    writer.close()
    return directory / NAME


def live(made: Iterable[api.Frame]) -> api.Snapshot:
    """What a viewer has after these frames."""
    picture = api.Snapshot("run", "hub-1", 0, pictures.START, pictures.START)
    for frame in made:
        picture.apply(frame)
    return picture


def bits(thing: object) -> bytes:
    """What is equal only if every number is, to the bit: NaN is itself, -0.0 is not 0.0."""
    return msgspec.msgpack.encode(msgspec.to_builtins(thing, str_keys=True), order="deterministic")


def picture(path: Path, until: int | None = None) -> api.Snapshot:
    with Reader(path) as reader:
        return reader.snapshot(until)
