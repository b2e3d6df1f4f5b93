"""Writes ``docs/dashboard.svg``: the Overview of the recorded sample run while an alarm is open.

``python -m scripts.picture [FILE]`` from the repository root.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from rltop.backend.client.replay import SAMPLE, Replay
from rltop.backend.store.read import Reader
from rltop.tui.app import RltopApp

STEP = 46
"""The replay starts and stops here: the fault began after step 32, its alarm was raised after step 34."""

SIZE = (132, 40)


async def picture() -> str:
    """The screen as SVG. It loads no fonts: viewers use their own monospace font."""
    replay = Replay(Reader(SAMPLE), from_step=STEP, clock=lambda: 0.0)
    app = RltopApp(replay, replay.view.run, bell=False)
    try:
        async with app.run_test(size=SIZE) as pilot:
            for _ in range(3):
                app.tick()
                await pilot.pause()
            svg = app.export_screenshot(title=f"rltop {replay.view.run}")
    finally:
        replay.close()
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent / "docs" / "dashboard.svg"
    target.write_text(asyncio.run(picture()))
    print(target, target.stat().st_size, "bytes")
