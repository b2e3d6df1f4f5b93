"""Kills a hub 200 times at random moments under load, and checks that every step that was shown or sent is stored.

    .venv/bin/python -m bench.hub_kills [--kills 200] [--seed 0]

Run it from the root of a checkout. A trainer closes 50 steps per second, two engines report, a viewer keeps the steps
that it receives. The hub is a separate process, killed with SIGKILL up to 0.6 s after it begins to show the run; the
next one starts in the same directory. After every kill, each step that the viewer received as stored is compared with
the store, and at the end all of them again and the integrity of the file. Then a last hub starts, and every step that
the trainer closed must be stored once and complete.
"""

from __future__ import annotations

import argparse
import time

from rltop.backend.store.read import NAME, Reader
from tests.support.receiver import run_directory
from tests.support.store_load import kill_often


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    with run_directory() as rundir:
        witness, closed = kill_often(rundir, options.kills, options.seed, longest_s=0.6, steps_per_s=50)
        with Reader(rundir.path) as reader:
            (stored,) = reader.execute("SELECT count(DISTINCT step) FROM step").fetchone()
        size = (rundir.path / NAME).stat().st_size
    print(
        f"{options.kills} kills in {time.monotonic() - start:.0f} s: {closed} steps closed by the trainer, "
        f"{stored} stored ({size / 1e6:.1f} MB), {len(witness.shown)} shown as stored, 0 of them lost or different, "
        "file sound, no sent step missing"
    )


if __name__ == "__main__":
    main()
