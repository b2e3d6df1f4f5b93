"""Kill a hub 200 times at random moments under load, and look for a step that was shown or sent and is not stored.

    .venv/bin/python -m bench.hub_kills [--kills 200] [--seed 0]

From the root of a checkout. A trainer closes 50 steps a second, two engines report, a viewer notes what it is shown;
the hub is a process of its own, killed with SIGKILL up to 0.6 s after it began to show the run, and the next one
starts in the same directory. After every kill, every step that the viewer was shown meanwhile, while nothing was said
to wait, is held against what is stored, and at the end all of them again and the file as a whole. Then a last hub
comes, and every step that the trainer closed must be there, once and whole.
"""

from __future__ import annotations

import argparse
import time

from rltop.backend.store.read import NAME, Reader
from tests.receiver import run_directory
from tests.store_load import kill_often


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
        f"{stored} stored ({size / 1e6:.1f} MB), {len(witness.shown)} shown as stored, 0 of them lost or other, "
        "file sound, nothing that was sent is missing"
    )


if __name__ == "__main__":
    main()
