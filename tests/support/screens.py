"""The dashboard's screen as text, compared with saved files.

Reversed cells (cursor, focus, alarm) are between ``⟦`` and ``⟧``; colours are left out, since no fact may depend on
them. ``RLTOP_NEW_SCREENS=1 pytest tests/tui/test_screens.py`` rewrites the files; read the diff before a commit.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from textual.app import App
from textual.pilot import Pilot

from rltop.tui.app import RltopApp
from tests.support.pictures import HeldClient

SAVED = Path(__file__).parents[1] / "screens"


@asynccontextmanager
async def dashboard(
    client: HeldClient, size: tuple[int, int], *, control: bool = False
) -> AsyncIterator[tuple[RltopApp, Pilot[int]]]:
    """The painted dashboard of ``client``, with a stopped clock."""
    app = RltopApp(client, "sort", control=control, clock=lambda: 100.0)
    async with app.run_test(size=size) as pilot:
        await settle(app, pilot)
        yield app, pilot


async def settle(app: RltopApp, pilot: Pilot[int]) -> None:
    """Receive, lay out, paint."""
    for _ in range(3):
        app.tick()
        await pilot.pause()


def screen_text(app: App[int]) -> str:
    """The whole screen, without trailing blanks."""
    lines = []
    for strip in app.screen._compositor.render_strips():
        text, inside = "", False
        for segment in strip:
            reverse = bool(segment.style and segment.style.reverse)
            text += ("⟦" if reverse else "⟧") * (reverse != inside) + segment.text
            inside = reverse
        lines.append((text + "⟧" * inside).rstrip())
    return "\n".join(lines) + "\n"


def assert_as_saved(app: App[int], name: str) -> None:
    """Assert that the screen equals the file saved as ``name``."""
    shown, path = screen_text(app), SAVED / f"{name}.txt"
    if os.environ.get("RLTOP_NEW_SCREENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown)
    assert path.exists(), f"{path} is missing; see {__file__}"
    assert shown == path.read_text(), f"the screen is not {path}; see {__file__}"
