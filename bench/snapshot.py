"""Cost of a long run for hub and viewer: size of the snapshot, time to encode and decode it, memory, first paint.

``python -m bench.snapshot [--steps 20000] [--engines 8] [--whole N]`` from the repository root. The snapshot is built
from frames, as in a hub, of steps with a value for every metric and ten scalars of the trainer. ``--whole`` is the
number of newest steps that are not downsampled. The viewer's side runs in a process of its own; its memory is the
increase while it decodes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterable
from pathlib import Path

from rltop.backend import api, metrics
from rltop.backend.api import downsample
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard

KINDS = 64
"""Number of different steps. Each use is decoded again, so that no two steps share an object."""


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def steps(count: int, engines: int) -> list[api.Step]:
    rng = random.Random(0)
    found = []
    for n in range(count):
        values = _figures(rng, metrics.BY_NAME)
        own = {f"e{e}": _figures(rng, metrics.PER_ENGINE) for e in range(engines)}
        scalars = {f"actor/scalar_{i}": rng.random() for i in range(10)}
        joins = {"content": 64}
        found.append(api.Step(n, pictures.START + n, n, False, values, own, {}, scalars, joins))
    return found


def _figures(rng: random.Random, names: Iterable[str]) -> dict[str, float | None]:
    return {name: rng.gauss(0, 1) for name in names}


def hub(count: int, engines: int) -> tuple[bytes, float, float]:
    """The encoded answer, MB of the hub's snapshot, and milliseconds to encode it."""
    kinds = [api.encode(api.Frame("bench", 1, 0.0, steps=[one])) for one in steps(KINDS, engines)]
    picture, before = pictures.picture(epoch="bench", seq=0), resident_mb()
    for n in range(count):
        (step,) = api.decode_frame(kinds[n % KINDS]).steps
        again = api.Step(n, step.closed, n, False, step.values, step.engines, step.unjoined, step.trainer, step.joins)
        picture.apply(api.Frame("bench", n + 1, pictures.START + n, steps=[again]))
    held = resident_mb() - before
    began = time.perf_counter()
    answer = api.encode(api.Answer("q", snapshot=picture))
    return answer, held, 1e3 * (time.perf_counter() - began)


def viewer(answer: bytes, results: multiprocessing.SimpleQueue[tuple[float, float, float]]) -> None:
    """Puts milliseconds to decode, MB held, and milliseconds from the snapshot to the painted overview."""
    before, began = resident_mb(), time.perf_counter()
    picture = api.decode_answer(answer).snapshot
    decoding, held = 1e3 * (time.perf_counter() - began), resident_mb() - before
    assert picture is not None

    async def paint() -> float:
        client = HeldClient(pictures.no_steps())
        async with dashboard(client, (160, 48)) as (app, _):
            client.show(picture)
            began = time.perf_counter()
            app.tick()
            return 1e3 * (time.perf_counter() - began)

    results.put((decoding, held, asyncio.run(paint())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--whole", type=int, default=downsample.WHOLE_STEPS)
    arguments = parser.parse_args()
    downsample.WHOLE_STEPS = arguments.whole
    answer, held, encoding = hub(arguments.steps, arguments.engines)
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.SimpleQueue[tuple[float, float, float]] = context.SimpleQueue()
    process = context.Process(target=viewer, args=(answer, results))
    process.start()
    decoding, viewer_held, painting = results.get()
    process.join()
    print("| steps, whole | engines | snapshot | hub holds | encode | decode | viewer holds | first paint |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.steps:,}, {min(arguments.whole, arguments.steps):,} | {arguments.engines} "
        f"| {len(answer) / 1e6:.1f} MB | {held:.0f} MB | {encoding:.0f} ms | {decoding:.0f} ms "
        f"| {viewer_held:.0f} MB | {painting:.0f} ms |"
    )


if __name__ == "__main__":
    main()
