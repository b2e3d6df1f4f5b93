"""Cost of the dashboard at its default rate: bytes and CPU per tick, on a real pseudo-terminal.

``python -m bench.tui_bytes`` from the repository root. Every tick brings new values of all eight engines, every
eighth a new step (a step each two seconds). CPU is that of the dashboard's process without its start.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from tests.support.terminal import Terminal

TICKS, FPS = 80, 4.0


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(columns: int, lines: int, kind: str) -> str:
    with Terminal(columns, lines, fps=FPS) as terminal:
        terminal.wait_for(lambda text: "step 39" in text and "detach" in text)
        terminal.advance("s")
        terminal.wait_for(lambda text: "step 40" in text)
        sent, used, began = terminal.bytes, cpu_s(terminal.process.pid), time.monotonic()
        terminal.advance(kind * TICKS + "s")
        last = 41 + kind.count("s") * TICKS + (TICKS + 1) // 8 * kind.count("n")
        terminal.wait_for(lambda text: f"step {last}" in text)
        took = time.monotonic() - began
        sent, used = terminal.bytes - sent, cpu_s(terminal.process.pid) - used
    ticks = TICKS + 1
    return (
        f"| {columns}x{lines} | {KINDS[kind]} | {sent / ticks / 1e3:.2f} | {sent / took / 1e3:.1f} "
        f"| {1e3 * used / ticks:.1f} | {100 * used / took:.1f} |"
    )


def contains(part: str, text: str) -> bool:
    return part in text


def measure_cursor(columns: int, lines: int) -> str:
    with Terminal(columns, lines, fps=FPS) as terminal:
        terminal.wait_for(lambda text: "step 39" in text and "detach" in text)
        terminal.press("[")
        terminal.wait_for(lambda text: "reading step 38" in text)
        sent, used = terminal.mark(), cpu_s(terminal.process.pid)
        for step in range(37, 37 - MOVES, -1):
            terminal.press("[")
            terminal.wait_for(partial(contains, f"reading step {step}"))
        sent, used = terminal.mark() - sent, cpu_s(terminal.process.pid) - used
    return (
        f"| {columns}x{lines} | the cursor, one step a key | {sent / MOVES / 1e3:.2f} | | {1e3 * used / MOVES:.1f} | |"
    )


MOVES = 30
KINDS = {"n": "8 engines each tick, a step each 2 s", "s": "a step each tick", "e": "one engine each tick"}


if __name__ == "__main__":
    print("| terminal | what moves | kB/tick | kB/s | CPU ms/tick | % of a core |")
    print("|---|---|---|---|---|---|")
    for size, kind in (((160, 48), "n"), ((160, 48), "s"), ((160, 48), "e"), ((80, 24), "n")):
        print(measure(*size, kind), flush=True)
    for size in ((160, 48), (80, 24)):
        print(measure_cursor(*size), flush=True)
