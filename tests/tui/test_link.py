"""What goes over the terminal's link: few bytes where little changes, none that wait, no ghost of a viewer."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from rich.style import Style
from textual.drivers._writer_thread import WriterThread
from textual.strip import Strip

from rltop.tui.widgets.line_widget import changed
from rltop.tui.widgets.terminal import MAX_BACKLOG, SLOWEST_HZ, RepaintPacer, backlog
from tests.support.harness import ended
from tests.support.terminal import Terminal

styles = st.sampled_from([None, Style(), Style(color="red"), Style(reverse=True), Style(underline=True)])
strips = st.lists(st.tuples(st.text("ab ⠿─", max_size=6), styles), max_size=6).map(
    lambda parts: Strip([Segment(text, style) for text, style in parts]).adjust_cell_length(20)
)


@given(strips, strips)
def test_repainting_the_changed_part_equals_repainting_the_row(old: Strip, new: Strip) -> None:
    start, end = changed(old, new)
    mended = Strip.join([old.crop(0, start), new.crop(start, end), old.crop(end, 20)])
    assert changed(mended, new) == (0, 0)
    assert mended.text == new.text
    assert start == end or changed(old.crop(start, end), new.crop(start, end)) == (0, end - start)


def test_an_equal_row_costs_nothing_and_a_blank_has_no_colour() -> None:
    row = Strip([Segment("a  b", Style(color="red"))])
    assert changed(row, Strip([Segment("a", Style(color="red")), *row.crop(1, 4)])) == (0, 0)
    assert changed(row, Strip([Segment("a", Style(color="red")), Segment("  "), *row.crop(3, 4)])) == (0, 0)
    assert changed(row, Strip([Segment("a  c", Style(color="red"))])) == (3, 4)
    assert changed(row, Strip([Segment("b  b", Style(color="red"))])) == (0, 1)


def test_the_backlog_is_that_of_textuals_writer() -> None:
    writer = WriterThread(io.StringIO())  # never started: nothing is taken from its queue
    app = SimpleNamespace(_driver=SimpleNamespace(_writer_thread=writer))
    assert backlog(app) == 0
    for _ in range(3):
        writer.write("x")
    assert backlog(app) == 3
    assert backlog(SimpleNamespace(_driver=None)) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.sampled_from([0.5, 1.0, 4.0, 10.0]))
def test_it_never_paints_with_a_backlog_and_always_recovers(waiting: list[int], hz: float) -> None:
    pace, painted = RepaintPacer(hz), []
    for i, count in enumerate([*waiting, *[0] * int(hz / SLOWEST_HZ + 2)]):
        if pace.tick(i / hz, count):
            assert count <= MAX_BACKLOG
            painted.append(i)
        assert pace.painting_hz >= min(SLOWEST_HZ, hz)
    assert painted[-1] >= len(waiting)


def test_it_slows_down_while_the_terminal_is_behind_and_recovers() -> None:
    pace = RepaintPacer(4.0)
    seen = [(pace.tick(i / 4, 0 if i == 0 or i > 8 else 5), pace.slow, pace.painting_hz) for i in range(60)]
    assert seen[0] == (True, False, 4.0)
    assert not any(painted for painted, _, _ in seen[1:9])
    assert seen[8] == (False, True, SLOWEST_HZ)
    assert seen[-2:] == [(True, False, 4.0)] * 2


def test_a_tick_sends_what_changed_and_a_frozen_screen_nothing() -> None:
    with Terminal(160, 48) as terminal:
        terminal.wait_for(lambda text: "step 39" in text and "detach" in text)
        terminal.advance("e")
        terminal.wait_for(lambda text: " 301 " in text)
        before = terminal.mark()
        terminal.advance("e" * 10)
        terminal.wait_for(lambda text: " 311 " in text)
        assert (terminal.mark() - before) / 10 < 400

        before = terminal.mark()
        terminal.advance("s" * 10)
        terminal.wait_for(lambda text: "step 49" in text)
        assert (terminal.mark() - before) / 10 < 6_000

        terminal.press(" ")
        terminal.wait_for(lambda text: "frozen at step 49" in text)
        before = terminal.mark()
        terminal.advance("e" * 10 + "s")
        terminal.wait_for(lambda text: "+1 new" in text)
        assert terminal.mark() - before < 400


def test_a_cursor_that_moves_sends_its_columns_and_leaves_nothing_behind() -> None:
    with Terminal(160, 48) as terminal:
        terminal.wait_for(lambda text: "step 39" in text and "detach" in text)
        terminal.press("[")
        terminal.wait_for(lambda text: "reading step 38" in text)
        before = terminal.mark()
        for step in range(37, 27, -1):
            terminal.press("[")
            terminal.wait_for(lambda text, step=step: f"reading step {step}" in text)  # type: ignore[misc]
        assert (terminal.mark() - before) / 10 < 4_000
        terminal.press("++]")
        terminal.wait_for(lambda text: "reading step 29" in text and "steps " in text)
        terminal.mark()
        moved = terminal.text
        terminal.press("?")
        terminal.wait_for(lambda text: "Application" in text)
        terminal.press("\x1b")
        terminal.wait_for(lambda text: text == moved)  # painted whole again


def test_a_stalled_terminal_is_not_flooded_and_reported_as_slow() -> None:
    with Terminal(160, 48) as terminal:
        terminal.wait_for(lambda text: "step 39" in text and "detach" in text)
        terminal.advance(
            "f" * 40 + "s"
        )  # far more than the terminal's buffer holds: nothing is read until all messages are taken
        terminal.wait_until_taken()
        terminal.wait_for(lambda text: "slow terminal, painting at" in text)
        terminal.wait_for(lambda text: "live" in text and "step 200" in text)


@pytest.mark.parametrize("owned", [True, False])
def test_a_closed_terminal_ends_the_viewer(owned: bool) -> None:
    with Terminal(80, 24, owned=owned) as terminal:
        terminal.wait_for(lambda text: "detach" in text)
        terminal.hang_up()
        assert ended(terminal.process) != 0


def test_ctrl_c_and_q_detach() -> None:
    for key in ("q", "\x03"):
        with Terminal(80, 24) as terminal:
            terminal.wait_for(lambda text: "detach" in text)
            terminal.press(key)
            while terminal.process.poll() is None:
                try:
                    terminal.read(0.1)
                except OSError:  # the last of it was read
                    break
            assert ended(terminal.process) == 0
