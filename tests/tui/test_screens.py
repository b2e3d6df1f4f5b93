"""Whole screens, compared with saved ones: sizes, states, dialogs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rltop.backend.api import Snapshot
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, settle

SMALL, MIDDLE, LARGE = (80, 24), (120, 36), (160, 48)


pytestmark = pytest.mark.usefixtures("utc")


@pytest.mark.parametrize(
    ("name", "picture", "size", "keys"),
    [
        ("overview-80", pictures.healthy, SMALL, ()),
        ("overview-120", pictures.healthy, MIDDLE, ()),
        ("overview-160", pictures.healthy, LARGE, ()),
        ("overview-60", pictures.healthy, (60, 30), ()),
        ("overview-40", pictures.healthy, (40, 20), ()),
        ("no-steps-80", pictures.no_steps, SMALL, ()),
        ("no-engines-80", pictures.picture, SMALL, ()),
        ("many-engines-120", pictures.troubled, MIDDLE, ()),
        ("sorted-120", pictures.troubled, MIDDLE, ("s", "s", "S")),
        ("zoomed-80", pictures.healthy, SMALL, ("shift+tab", "z")),
        ("log-minutes-80", pictures.healthy, SMALL, ("y", "x", "x")),
        ("reading-80", pictures.healthy, SMALL, ("{", "[")),
        ("control-80", pictures.switched, SMALL, ("4",)),
        ("control-160", pictures.switched, LARGE, ("4", "G")),
        ("control-many-80", pictures.troubled, SMALL, ("4", "pagedown")),
        ("confirm-80", pictures.switched, SMALL, ("4", "t")),
        ("confirm-mixed-120", pictures.switched, MIDDLE, ("4", "e", "j", "j", "j", "t", "s")),
        ("confirm-strict-80", pictures.switched, SMALL, ("4", "e", "j", "j", "j", "t", "f", "s")),
        ("timed-80", pictures.timed, SMALL, ("4",)),
        ("timed-120", pictures.timed, MIDDLE, ("4", "j", "j")),
        ("timed-160", pictures.timed, LARGE, ("4", "e", "@", "j")),
        ("confirm-pause-80", pictures.healthy, SMALL, ("p", "f")),
        ("keep-80", pictures.timed, SMALL, ("4", "j", "K")),
        ("undo-80", pictures.timed, SMALL, ("@", "G", "u")),
        ("engine-80", pictures.troubled, SMALL, ("enter",)),
        ("engine-differs-80", pictures.timed, SMALL, ("enter",)),
        ("differs-80", pictures.timed, SMALL, ()),
        ("number-80", pictures.healthy, SMALL, ("shift+tab",) * 3 + ("i",)),
        ("number-160", pictures.healthy, LARGE, ("shift+tab",) * 6 + ("i",)),
        ("number-engine-80", pictures.healthy, SMALL, ("j", "i")),
        ("number-engine-160", pictures.healthy, LARGE, ("j", "i")),
        ("number-no-noise-160", pictures.young, LARGE, ("shift+tab",) * 5 + ("i",)),
        ("no-noise-160", pictures.young, LARGE, ()),
        ("noise-zoomed-80", pictures.healthy, SMALL, ("shift+tab",) * 3 + ("z",)),
    ],
)
async def test_screen(name: str, picture: Callable[[], Snapshot], size: tuple[int, int], keys: tuple[str, ...]) -> None:
    async with dashboard(HeldClient(picture()), size, control=True) as (app, pilot):
        await pilot.press(*keys)
        await settle(app, pilot)
        assert_as_saved(app, name)


async def test_read_only_control() -> None:
    async with dashboard(HeldClient(pictures.switched()), SMALL) as (app, pilot):
        await pilot.press("F")
        await settle(app, pilot)
        assert_as_saved(app, "control-read-only-80")


@pytest.mark.parametrize(
    ("name", "state", "age_s", "picture"),
    [("connecting-80", "connecting", 0.0, None), ("lost-80", "lost", 12.0, pictures.healthy())],
)
async def test_without_a_hub(name: str, state: str, age_s: float, picture: Snapshot | None) -> None:
    async with dashboard(HeldClient(picture, state, age_s), SMALL) as (app, _):
        assert_as_saved(app, name)


async def test_help() -> None:
    async with dashboard(HeldClient(pictures.healthy()), LARGE) as (app, pilot):
        await pilot.press("?")
        await pilot.pause()
        assert_as_saved(app, "help-160")
