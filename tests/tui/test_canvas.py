"""The canvas draws every finite figure, bridges no gap, and holds still while data grow."""

from __future__ import annotations

import math
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.style import Style
from textual.strip import Strip

from rltop.tui.widgets import canvas, theme
from rltop.tui.widgets.canvas import CanvasLine, Drawing, Marker

WIDTH, HEIGHT = 47, 9
"""Below 50 cells there are no names at the ends of lines: all of the row right of the axis is dots."""

finite = st.floats(-1e6, 1e6).map(lambda v: 0.0 if abs(v) < 1e-9 else v)
figures = st.lists(st.none() | finite, min_size=1, max_size=60)


def line(values: list[float | None], *, dashed: bool = False, label: str = "a") -> CanvasLine:
    y = np.array(values, dtype=np.float64)
    return CanvasLine(label, np.arange(y.size, dtype=np.float64), y, np.ones(y.size - 1, np.bool_), Style(), dashed)


def dots(rows: list[Strip]) -> NDArray[np.bool_]:
    """Lit dots of the drawn lines, bottom row first, [4 * rows, 2 * cells]."""
    lit = np.zeros((4 * (len(rows) - 1), 2 * (WIDTH - canvas.GUTTER)), np.bool_)
    bits = {0: (0, 0), 1: (1, 0), 2: (2, 0), 3: (0, 1), 4: (1, 1), 5: (2, 1), 6: (3, 0), 7: (3, 1)}
    for y, strip in enumerate(rows[:-1]):
        for x, character in enumerate(strip.text[canvas.GUTTER :]):
            for bit, (down, right) in bits.items():
                if character != " " and (ord(character) - 0x2800) >> bit & 1:
                    lit[4 * y + down, 2 * x + right] = True
    return lit[::-1]


@given(figures, st.booleans())
def test_every_finite_value_is_a_lit_dot(values: list[float | None], dashed: bool) -> None:
    drawn = line(values, dashed=dashed)
    reach = (0.0, max(len(values) - 1, 1.0))
    lit = dots(canvas.draw(Drawing(reach, (drawn,)), WIDTH, HEIGHT))
    axis = canvas.scale((drawn,), 2)
    tall, wide = lit.shape
    for i, value in enumerate(values):
        if value is not None:
            y = min(max((value - axis.low) / (axis.high - axis.low), 0.0), 1.0) * (tall - 1)
            x = i / reach[1] * (wide - 1)
            near = lit[math.floor(y) : math.ceil(y) + 1, math.floor(x) : math.ceil(x) + 1]
            assert near.any(), (i, value)


@given(finite, finite)
def test_a_missing_value_leaves_a_gap(left: float, right: float) -> None:
    lit = dots(canvas.draw(Drawing((0, 4), (line([left, left, None, right, right]),)), WIDTH, HEIGHT))
    columns = np.asarray(lit.any(axis=0))
    quarter = (columns.size - 1) / 4
    assert columns[: round(quarter) + 1].all()
    assert not columns[round(quarter) + 1 : round(3 * quarter)].any()


def test_unlinked_values_are_not_connected() -> None:
    apart = CanvasLine("a", np.array([0.0, 4.0]), np.array([1.0, 2.0]), np.array([False]), Style())
    assert dots(canvas.draw(Drawing((0, 4), (apart,)), WIDTH, HEIGHT)).sum() == 2


@given(st.lists(figures, max_size=3), st.booleans())
def test_the_value_axis_contains_every_value_and_its_numbers_fit(many: list[list[float | None]], log: bool) -> None:
    axis = canvas.scale(tuple(line(values) for values in many), 3, log=log)
    assert axis.low < axis.high
    assert axis.ticks[0] >= axis.low - 1e-9 * abs(axis.low)
    assert len(axis.ticks) >= 2
    assert all(len(axis.label(tick)) < canvas.GUTTER for tick in axis.ticks)
    if axis.high - axis.low > 0.01 * max(abs(axis.low), abs(axis.high)):
        assert len({axis.label(tick) for tick in axis.ticks}) == len(axis.ticks)
    slack = 1e-6 * max(axis.high - axis.low, abs(axis.low), abs(axis.high))  # far less than a dot
    for value in (value for values in many for value in values if value is not None):
        if not axis.log:
            assert axis.low - slack <= value <= axis.high + slack
        elif value > 0:
            assert axis.low - 1e-9 <= math.log10(value) <= axis.high + 1e-9


@given(st.floats(0, 30_000), st.floats(0, 30_000), st.none() | st.sampled_from([30.0, 100.0, 300.0]))
def test_the_page_contains_the_latest_step(first: float, span: float, window: float | None) -> None:
    low, high = canvas.page(first, first + span, window)
    assert low < high
    assert high >= first + span - 1e-6
    if window is None or span <= window:
        assert low <= first
    else:
        assert high - low == window


def test_the_page_rarely_moves_while_steps_arrive() -> None:
    whole = [canvas.page(0, last) for last in range(2_000)]
    assert len(set(whole)) < 25
    windowed = [canvas.page(0, last, 100.0) for last in range(2_000)]
    assert len(set(windowed)) < 2_000 / 25 + 15


@given(figures, st.integers(8, 200), st.integers(2, 40), st.booleans())
def test_every_row_is_as_wide_as_the_canvas(values: list[float | None], width: int, height: int, log: bool) -> None:
    picture = Drawing((0, 60), (line(values), line(values[::-1], label="other")), (Marker(3, "pc-"),), (0.5,), 7.0, log)
    rows = canvas.draw(picture, width, height)
    assert len(rows) == height
    assert {strip.cell_length for strip in rows} == {width}


def test_a_marker_and_a_threshold_never_hide_or_fake_data() -> None:
    data = line([1.0] * 5)
    plain = dots(canvas.draw(Drawing((0, 4), (data,)), WIDTH, HEIGHT))
    marked = Drawing((0, 4), (data,), (Marker(2, "pc-"),), levels=(1.0, 0.5), cursor=1.0)
    cells = plain.reshape(HEIGHT - 1, 4, -1, 2).any(axis=(1, 3))
    shown = dots(canvas.draw(marked, WIDTH, HEIGHT)).reshape(HEIGHT - 1, 4, -1, 2)
    kept = shown.transpose(0, 2, 1, 3)[cells]
    assert (kept == plain.reshape(HEIGHT - 1, 4, -1, 2).transpose(0, 2, 1, 3)[cells]).all()
    assert shown.any(axis=(1, 3)).sum() > cells.sum()


def test_markers_stand_on_the_x_axis_with_their_name() -> None:
    rows = canvas.draw(Drawing((0, 40), (line([1.0] * 40),), (Marker(10.5, "pc-"),)), WIDTH, HEIGHT)
    assert "▲pc-" in rows[-1].text
    assert rows[-1].text.lstrip().startswith("└0")


def test_a_number_that_a_marker_would_cut_is_left_out_whole() -> None:
    plain = canvas.draw(Drawing((0, 40), (line([1.0] * 40),)), WIDTH, HEIGHT)[-1].text
    for x in range(41):
        marked = Drawing((0, 40), (line([1.0] * 40),), (Marker(float(x), "pc-"),))
        text = canvas.draw(marked, WIDTH, HEIGHT)[-1].text
        assert set(re.findall(r"\d+", text)) < set(re.findall(r"\d+", plain)) | {""}
        assert len(re.findall(r"\d+", text)) >= len(re.findall(r"\d+", plain)) - 2


def test_the_later_of_two_overlapping_markers_is_shown_whole() -> None:
    marks = (Marker(10.0, "resume"), Marker(10.5, "as-"))
    text = canvas.draw(Drawing((0, 40), (line([1.0] * 40),), marks), WIDTH, HEIGHT)[-1].text
    assert "▲as-─" in text
    assert "e" not in text.partition("▲as-")[2]


def test_line_labels_are_at_the_line_ends_where_there_is_room() -> None:
    two = (line([1.0] * 9, label="low"), line([5.0] * 9, label="high"))
    rows = [strip.text for strip in canvas.draw(Drawing((0, 8), two), 60, 12)]
    named = {word: y for y, text in enumerate(rows) for word in ("low", "high") if text.rstrip().endswith(word)}
    assert named["high"] < named["low"]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(1e-3, 1e-2), st.integers(2, 4))
def test_a_formatted_value_is_short_and_accurate(value: float, digits: int) -> None:
    text = theme.figure(value, digits)
    assert len(text) <= digits + 6
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    read = float(text.rstrip("kMG")) * units.get(text[-1], 1.0)
    assert math.isclose(read, value, rel_tol=0.5 * 10.0 ** (2 - digits), abs_tol=0) or (abs(value) >= 1e12)


@given(st.text(max_size=40), st.integers(0, 30))
def test_untrusted_text_has_the_requested_width_and_no_control_characters(text: str, width: int) -> None:
    shown = theme.clean(text, width)
    assert Strip(list(theme.row([(shown, theme.PLAIN)], width))).cell_length == width
    assert shown.isprintable()


@given(figures, figures, st.booleans())
def test_a_guide_is_dotted_sets_no_scale_and_never_hides_or_fakes_data(
    values: list[float | None], beside: list[float | None], log: bool
) -> None:
    data, guide = line(values), line(beside, label="noise")
    reach = (0.0, max(len(values) - 1, len(beside) - 1, 1.0))
    plain = canvas.draw(Drawing(reach, (data,), log=log), WIDTH, HEIGHT)
    guided = canvas.draw(Drawing(reach, (data,), log=log, guides=(guide,)), WIDTH, HEIGHT)
    assert [row.text[: canvas.GUTTER] for row in guided] == [row.text[: canvas.GUTTER] for row in plain]
    before, after = (dots(rows).reshape(HEIGHT - 1, 4, -1, 2).transpose(0, 2, 1, 3) for rows in (plain, guided))
    there = before.any(axis=(2, 3))
    assert (after[there] == before[there]).all()


def test_a_guide_is_drawn_only_where_known_and_in_range() -> None:
    guide = line([None, None, 0.5, 0.5, 0.5, 0.5, 7.0, 7.0, 7.0], label="noise")
    rows = canvas.draw(Drawing((0, 8), (line([*[0.0] * 8, 1.0]),), guides=(guide,)), WIDTH, HEIGHT)
    middle = dots(rows)[8:24, :60].any(axis=0)  # below lies the line, which rises at the end
    lit = np.flatnonzero(middle)
    edges = 2 / 8 * (2 * (WIDTH - canvas.GUTTER) - 1), 5 / 8 * (2 * (WIDTH - canvas.GUTTER) - 1)
    assert edges[0] - 1 <= lit.min() <= edges[0] + 2
    assert edges[1] - 2 <= lit.max() <= edges[1] + 1
    assert set(lit % 2) == {0}
