"""The filter of tables: its terms, its keys, and sorting with the mouse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.tui.model.fleet_table import FLEET, Row
from rltop.tui.widgets.row_filter import RowFilter, number_of
from rltop.tui.widgets.table import Table
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle

pytestmark = pytest.mark.usefixtures("utc")

TITLES = [column.title for column in FLEET]
CELLS = {"engine": "● e1", "tok/s": "12.3k", "KV use": "37%", "lag": "3?", "gap nats": "4.1e-4", "state": "silent"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e1", True), ("E1", True), ("e2", False), ("sil.nt", True), ("^●", True), ("lag>2", True), ("lag>3", False),
        ("lag>=3", True), ("lag=3", True), ("lag!=3", False), ("tok/s>12000", True), ("KV<40", True),
        ("gap<1e-3", True), ("e1 lag>2", True), ("e1 lag<2", False), ("state=silent", True), ("state!=silent", False),
        ("(", False), ("", True), ("policy>1", False),
    ],
)  # fmt: skip
def test_terms(text: str, expected: bool) -> None:
    assert RowFilter(text, TITLES).matches(CELLS) == expected


@pytest.mark.parametrize(("text", "hint"), [("lagg>2", "did you mean 'lag'"), ("lag>many", "'many' is no number")])
def test_a_wrong_term_is_an_error(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        RowFilter(text, TITLES)


@given(st.text(alphabet=st.characters(exclude_characters="<>=!"), max_size=20))
def test_any_text_is_a_filter(text: str) -> None:
    assert RowFilter(text, TITLES).matches(CELLS) in (True, False)


@pytest.mark.parametrize(
    ("text", "number"), [("12.3k", 12300), ("4.1e-4", 4.1e-4), ("37%", 37), ("-", None), ("2M", 2e6)]
)
def test_numbers_of_cells(text: str, number: float | None) -> None:
    assert number_of(text) == (None if number is None else pytest.approx(number))


async def test_slash_filters_the_focused_table_and_esc_shows_all() -> None:
    async with dashboard(HeldClient(pictures.troubled()), (120, 36)) as (app, pilot):
        await pilot.press("slash", *"lag>2", "enter")
        await settle(app, pilot)
        table: Table[Row] = app.query_one("#overview #fleet", Table)
        assert [row.id for row in table.items] == ["e9"]
        assert "/lag>2: 1 of 12" in screen_text(app)
        app.client.changed = True  # type: ignore[attr-defined]
        await settle(app, pilot)
        assert [row.id for row in table.items] == ["e9"], "new data keep the filter"
        await pilot.press("escape")
        await settle(app, pilot)
        assert len(table.items) == 12


@pytest.mark.parametrize("key", ["2", "3", "4", "5", "6"])
async def test_every_view_has_a_table_to_filter(key: str) -> None:
    async with dashboard(HeldClient(pictures.switched()), (120, 36)) as (app, pilot):
        await pilot.press(key)
        await settle(app, pilot)
        await pilot.press("slash", *"qqq", "enter")
        await settle(app, pilot)
        every: list[Table[Row]] = list(app._current.query(Table))
        tables = [table for table in every if table.filter_text == "qqq"]
        assert len(tables) == 1 and not tables[0].items


async def test_a_wrong_term_is_shown_and_changes_nothing() -> None:
    async with dashboard(HeldClient(pictures.troubled()), (120, 36)) as (app, pilot):
        await pilot.press("slash", *"lagg>2", "enter")
        await settle(app, pilot)
        assert any("did you mean 'lag'" in note.message for note in app._notifications)
        assert len(app.query_one("#overview #fleet", Table).items) == 12


async def test_a_click_on_a_title_sorts_and_a_second_one_reverses() -> None:
    async with dashboard(HeldClient(pictures.troubled()), (120, 36)) as (app, pilot):
        table: Table[Row] = app.query_one("#overview #fleet", Table)
        at = screen_text(app).splitlines()[table.region.y].index("tok/s")
        order = []
        for _ in range(2):
            await pilot.click("#overview #fleet", offset=(at, 0))
            await settle(app, pilot)
            order.append([row.id for row in table.items if row.engine and row.engine.tokens_per_s is not None])
        assert order[0] == list(reversed(order[1])) and order[0][0] == "e0"
