"""The report of a run: one self-contained file with the verdict, safe against any text in it."""

from __future__ import annotations

import html.parser
import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.metrics import BY_NAME
from rltop.backend.report.blocks import Block, Bullets, Code, Heading, Paragraph, TableBlock, as_html, markdown
from rltop.backend.report.contents import MATCHED_TITLE, PLOTS, blocks
from rltop.backend.report.svg import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    MAX_POINTS,
    TOP,
    WIDTH,
    PlotLine,
    PlotMark,
    downsampled,
    spread,
    svg,
    ticks,
)  # fmt: skip
from rltop.tui.cli.main import main
from tests.support import pictures, stored, verdicts

NOW = pictures.START + 500


def incident() -> api.Snapshot:
    """A run with a switch, and an alarm that was raised and is over."""
    shown = verdicts.alarmed(cleared=pictures.START + 150, cleared_step=32, acknowledged="kim", acknowledged_at=NOW - 9)
    shown.events.append(pictures.event(99, "alarm a1 raised", "error", at_step=16))
    return shown


def drawn(text: str) -> list[ET.Element]:
    """The plots in it, as XML that is well formed."""
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text)]


def test_a_report_begins_with_the_verdict_and_has_the_whole_incident() -> None:
    text = markdown(blocks(incident(), verdicts.fault(), NOW))
    lines = text.splitlines()
    assert lines[0] == "# Run sort: The prefix cache survives weight updates (C1)"
    assert lines[4].startswith("**run sort: FAULT since step 14 on all engines, as of step 39")
    for sentence in (*verdicts.STALE.evidence, verdicts.PARTIAL.title, "cleared at step 32", "prefix\\_caching"):
        assert sentence.replace("|", "\\|") in text, sentence
    assert "rltop set update_clears_cache on --run sort" in lines
    assert "ada@node-a" in text and "alarm a1 raised" in text and "| e0 " in text.replace("    ", " | ")
    titles = [svg.find("{http://www.w3.org/2000/svg}title") for svg in drawn(text)]
    assert [title.text for title in titles if title is not None] == [MATCHED_TITLE, *(title for title, _, _ in PLOTS)]


def test_reports_of_a_healthy_and_of_an_empty_run() -> None:
    text = markdown(blocks(pictures.healthy(), verdicts.healthy(), NOW))
    assert text.startswith("# Run sort: healthy\n") and "None was raised." in text
    empty = verdicts.undecided()
    text = markdown(blocks(pictures.picture(), msgspec.structs.replace(empty, causes=[], step=None), NOW))
    assert "No step has closed." in text and not drawn(text)


def test_every_plotted_metric_is_in_the_catalogue() -> None:
    assert {metric for _, series, own in PLOTS for _, metric in series} <= set(BY_NAME)


class Tags(html.parser.HTMLParser):
    """The tags of a page, and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [(name, value) for name, value in attrs if name in ("src", "href", "onload", "onclick")]


def test_html_is_one_file_without_external_resources_or_scripts() -> None:
    shown = incident()
    evil = '"><script>alert(1)</script><img src=x onerror=y>\x1b]0;x\x07'
    shown.events.append(pictures.event(100, evil, "error"))
    shown.changes["x"] = pictures.applied("e0", "prefix_caching", "on", command="c9", why=evil, who=evil)
    page = as_html(f"run {evil}", blocks(shown, verdicts.fault(), NOW))
    found = Tags(page)
    assert not found.loads
    assert not found.tags & {"script", "img", "link", "iframe", "image", "use"}
    assert "\x1b" not in page and "\x07" not in page
    text = markdown(blocks(shown, verdicts.fault(), NOW))
    assert "<script" not in text and "<img" not in text and "\x1b" not in text


@given(st.text(max_size=60))
def test_text_is_escaped_in_both_formats(text: str) -> None:
    found: list[Block] = [Heading(text), Paragraph(text), Bullets([(text, text)]), TableBlock([text], [[text]])]
    lines = markdown(found).splitlines()
    assert len(lines) == 9  # whatever it is, a line each: a table has three, blank lines between
    assert not Tags(as_html(text, found)).tags - {
        "html", "head", "meta", "title", "style", "body", "h2", "p", "ul", "li", "em", "table", "tr", "th", "td",
    }  # fmt: skip
    first, *_, last = markdown([Code(text)]).splitlines()
    assert first == last and set(first) == {"`"} and first not in text


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(-5, 50), st.sampled_from(["switch", "alarm", "over"])), max_size=4),
)
def test_a_plot_is_well_formed_and_its_line_is_inside_its_frame(
    values: list[float | None], marks: list[tuple[float, str]]
) -> None:
    column = np.array([np.nan if value is None else value for value in values])
    made = svg(
        "a <b>", np.arange(len(values), dtype=float), [PlotLine("x&y", column)],
        [PlotMark(step, "<m>", kind) for step, kind in marks], updates=[0.5], fault=(1.0, 3.0),
    )  # fmt: skip
    root = ET.fromstring(made)
    lines = [e.attrib["d"] for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("stroke-linejoin")]
    assert len(lines) == bool(np.isfinite(column).any())
    for line in lines:
        points = [tuple(map(float, point)) for point in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", line)]
        assert len(points) == np.isfinite(column).sum()
        assert all(57 <= x <= 665 and 21 <= y <= 165 for x, y in points)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.floats(0, 100), st.floats(101, 300))
def test_spread_positions_keep_their_distance_and_order(wanted: list[float], low: float, high: float) -> None:
    found = spread(wanted, low, high, 12.0)
    apart = min(12.0, (high - low) / max(len(wanted) - 1, 1))
    assert all(low - 1e-6 <= at <= high + 1e-6 for at in found)
    ordered = sorted(found)
    assert all(b - a >= apart - 1e-6 for a, b in itertools.pairwise(ordered))
    by_wish = [at for _, at in sorted(zip(wanted, found, strict=True), key=lambda pair: pair[0])]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(by_wish)) or len(set(wanted)) < len(wanted)


MARKS = st.lists(
    st.tuples(st.integers(0, 60), st.text("abc_=+-", min_size=1, max_size=24)), max_size=40
)  # fmt: skip


@given(MARKS, st.lists(st.lists(st.floats(-5, 5), min_size=61, max_size=61), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_labels_of_a_plot_never_overlap(marks: list[tuple[int, str]], values: list[list[float]]) -> None:
    lines = [PlotLine(f"line{n}-with-a-long-name", np.array(one)) for n, one in enumerate(values)]
    drawn_marks = [PlotMark(step + 0.5, label, "switch") for step, label in marks]
    root = ET.fromstring(svg("title", np.arange(61, dtype=np.float64), lines, drawn_marks))
    texts = [text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("font-weight") is None]
    small = [text for text in texts if text.get("font-size") == "9"]
    boxes = [(float(text.get("x", 0)), float(text.get("y", 0)), CHARACTER * len(text.text or "")) for text in small]
    for n, (x, y, wide) in enumerate(boxes):
        assert x + wide <= WIDTH
        assert not [1 for x2, y2, wide2 in boxes[:n] if y == y2 and x < x2 + wide2 and x2 < x + wide]
    ends = sorted(float(text.get("y", 0)) for text in texts if (text.text or "").startswith("line"))
    assert len(ends) == len(lines)
    assert ends[0] >= TOP and ends[-1] <= HEIGHT - BOTTOM + 4
    assert all(b - a >= 11.8 for a, b in itertools.pairwise(ends))


def test_lines_are_not_drawn_over_holes_and_isolated_points_are_dots() -> None:
    steps, connected = np.array([0.0, 1.0, 4.0, 5.0, 6.0]), np.array([True, False, True, False])
    made = svg("a", steps, [PlotLine("x", np.array([1.0, 2.0, 3.0, 4.0, 5.0]))], connected=connected)
    (line,) = re.findall(r'd="([^"]*)"[^>]*stroke-linejoin', made)
    assert re.sub(r"[-\d. ]+", "", line.replace("h0", "h")) == "MLMLMh"


@given(st.integers(MAX_POINTS + 1, 20_000), st.integers(0, 10**6))
def test_a_long_run_keeps_its_extremes(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=steps)
    y[rng.integers(steps)] = np.nan
    x, kept = downsampled(np.arange(steps, dtype=float), y)
    assert len(x) <= MAX_POINTS + 2
    assert (np.nanmin(kept), np.nanmax(kept)) == (np.nanmin(y), np.nanmax(y))
    assert (np.diff(x) > 0).all()


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_are_few_and_inside_the_range(low: float, size: float, about: int) -> None:
    found = ticks(low, low + size, about)
    assert len(found) <= 2 * about + 2
    assert all(low - size * 1e-6 - abs(low) * 1e-9 <= at <= low + size * (1 + 1e-6) + abs(low) * 1e-9 for at in found)


def test_the_command_writes_the_report_of_a_stored_run(tmp_path: Path) -> None:
    path = stored.store(tmp_path, stored.frames(12))
    to = tmp_path / "report.html"
    run = CliRunner()
    result = run.invoke(main, ["report", str(path), "-o", str(to)])
    assert result.exit_code == 0, result.output
    assert to.read_text().startswith("<!doctype html>") and len(drawn(to.read_text())) == 1 + len(PLOTS)
    assert "exists; --force overwrites it" in run.invoke(main, ["report", str(path), "-o", str(to)]).output
    plain = run.invoke(main, ["report", str(path)])
    assert plain.output.startswith("# Run run: ") and "as of step 11" in plain.output
    then = run.invoke(main, ["report", str(path), "--step", "5"])
    assert "as of step 5" in then.output
    assert run.invoke(main, ["report", str(path), "--step", "99"]).exit_code == 1


@pytest.mark.parametrize("before", [None, 0o644])
def test_only_the_user_can_read_a_written_report(before: int | None, tmp_path: Path) -> None:
    stored.store(tmp_path, list(stored.frames(3)))
    to = tmp_path / "report.html"
    if before is not None:
        to.touch(before)
    result = CliRunner().invoke(main, ["report", str(tmp_path), "--to", str(to), "--force"])
    assert result.exit_code == 0, result.output
    assert to.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["nothing", "a/b"])
def test_a_missing_run_is_an_error(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path / name)])
    assert result.exit_code == 1 and "no run named" in result.output
