"""The Mismatch view: how the gap is spread, where it lies, and the tokens and sequences behind it."""

from __future__ import annotations

import math
import uuid

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical

from rltop.backend.api import Answer, AskMismatch, AskSamples, Question, Snapshot
from rltop.backend.api.profiles import Mismatch as Answered
from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.tui.model.explain import ShownFigure
from rltop.tui.model.viewport import Viewport
from rltop.tui.tokens import gap_style
from rltop.tui.tokens.decode import Decode, as_id, decoder
from rltop.tui.tokens.dedupe import Times, distinct_sequences, distinct_tokens, sequence_key, token_key
from rltop.tui.views.gap_table import FLEET, PLACES, UNKNOWN_ENGINE, GapRow, Means, along, places
from rltop.tui.views.token_lists import sequence_columns, token_columns
from rltop.tui.widgets import theme
from rltop.tui.widgets.bars import Bar, BarChart, Bars
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Table

LISTS: tuple[tuple[str, str], ...] = (
    ("abs_diff", "tokens with the largest |d|"),
    ("k3", "tokens with the largest k3"),
    ("worst", "sequences with the largest mean k3"),
    ("sample", "a fair sample"),
)
"""Kinds of ``AskSamples``, in the order of the key, and what each is."""


def spread_chart(answer: Answered, engine: str | None) -> BarChart:
    """How many tokens have which d: the counts' logarithms."""
    counts = [sum(c) for c in zip(*(c for name, c in answer.bins.items() if engine in (None, name)), strict=True)]
    top = max(counts, default=0)
    middle = len(counts) // 2
    labels = {0: f"-{answer.edges[-2]:g}", middle - 4: "-1e-3", middle: "0", middle + 5: "1e-3"}
    labels[len(counts) - 2] = f"{answer.edges[-2]:g}"
    bars = [
        Bar(math.log10(count + 1) / math.log10(top + 1) if count else None, labels.get(at, ""), _size_style(answer, at))
        for at, count in enumerate(counts)
    ]
    return BarChart((("tokens by d", theme.STRONG), (f" to {theme.figure(top)} log", theme.FAINT)), tuple(bars))


def _size_style(answer: Answered, at: int) -> Style:
    """As a token with such a gap is marked."""
    size = abs(at - (len(answer.edges) - 1))
    return gap_style.style(answer.edges[size - 1] * 1.5) if size else theme.PLAIN


def profile_chart(answer: Answered, dimension: str, engine: str | None, title: str) -> BarChart:
    """Mean |d| along a dimension; strata after the last that has tokens are left out."""
    labels, rows = along(answer, dimension, engine)
    used = max((at + 1 for at, row in enumerate(rows) if row.tokens), default=0)
    highest = max((row.size for row in rows), default=0.0)
    # Room for the intervals, but not so much that a stratum of few tokens makes all others small.
    top = min(max((row.high or 0.0 for row in rows), default=0.0), 1.5 * highest) or highest
    bars = [_bar(row, top, label) for label, row in zip(labels[:used], rows, strict=False)]
    return BarChart(((f"|d| by {title}", theme.STRONG), (f" to {theme.figure(top)}", theme.FAINT)), tuple(bars))


def _bar(row: Means, top: float, label: str) -> Bar:
    if not row.tokens:
        return Bar(None, label.split("-")[0])
    return Bar(row.size / top if top else 0.0, label.split("-")[0], high=(row.high or 0.0) / top if top else 0.0)


class MismatchView(Vertical):
    """The view. It asks the hub for what it shows, when a step closes or something else is to be looked at."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._engine: str | None = None
        self._list = 0
        self._answer: Answered | None = None
        self._samples: Samples | None = None
        self._error = ""
        self._wanted: object = None
        self._none_kept = ""
        self._asked: dict[str, str] = {}
        self._decode: Decode = as_id
        self._times: Times = {}
        self._models: object = None

    def compose(self) -> ComposeResult:
        """A line, three charts, the table of engines, a line, the list."""
        yield LineWidget(id="range")
        with Container(id="charts"):
            yield Bars(id="spread")
            yield Bars(id="by-probability")
            yield Bars(id="by-position")
        yield Table(PLACES, lambda place: place.engine, empty="nothing to show yet", id="places")
        yield LineWidget(id="listed")
        yield Table(token_columns(as_id, self._times), token_key, empty="none", id="tokens")
        yield Table(sequence_columns(as_id, self._times), sequence_key, empty="none", id="sequences")

    # --- asking -----------------------------------------------------------------------------------------------------

    def questions(self, view: Snapshot, sight: Viewport) -> list[Question]:
        """What to ask the hub now: nothing, unless other steps, engines or lists are looked at than before."""
        last = max(view.steps, default=None)
        if sight.cursor is not None:
            last = max((step for step in view.steps if step <= sight.cursor), default=last)
        first = last
        if last is not None and sight.cursor is None:
            first = None if sight.window is None else max(last - round(sight.window) + 1, 0)
        kind, _ = LISTS[self._list]
        wanted = (view.epoch, first, last, self._engine, kind)
        if last is None or wanted == self._wanted:
            return []
        self._wanted = wanted
        engine = "" if self._engine == UNKNOWN_ENGINE else self._engine
        shapes = AskMismatch(uuid.uuid4().hex, first, last)
        samples = AskSamples(uuid.uuid4().hex, last, kind, engine)
        self._asked = {shapes.id: "mismatch", samples.id: "samples"}
        return [shapes, samples]

    def take(self, answers: dict[str, Answer]) -> bool:
        """Take the answers that have come. Whether there is something new to show."""
        come = [answers.pop(question) for question in self._asked.keys() & answers.keys()]
        for answer in come:
            if self._asked.pop(answer.id) == "mismatch":
                self._error, self._answer = answer.error or "", answer.mismatch or self._answer
            else:  # what was kept of another step is not this one's
                self._none_kept, self._samples = answer.error or "", answer.samples
        return bool(come)

    def figures(self) -> tuple[str, list[ShownFigure]] | None:
        """What the line of the table under the cursor shows, and of what; None where there is none."""
        place = self.query_one("#places", Table).selected
        if not isinstance(place, GapRow) or self._answer is None:
            return None
        return f"{place.engine}, steps {self._answer.first} to {self._answer.last}", place.figures()

    def next_list(self) -> None:
        """The next of the lists."""
        self._list = (self._list + 1) % len(LISTS)

    def choose(self, item: object) -> Text | None:
        """Enter on a line: an engine's tokens alone, or all again; or the text of a token or sequence, to be read."""
        if isinstance(item, GapRow):
            self._engine = None if item.engine in (FLEET, self._engine) else item.engine
        elif isinstance(item, Token):
            return gap_style.token_text(item, self._decode)
        elif isinstance(item, Sequence):
            return gap_style.sequence_text(item, self._decode)
        return None

    # --- showing ----------------------------------------------------------------------------------------------------

    def paint(self, view: Snapshot) -> None:
        """Show what was answered last."""
        self._find_tokenizer(view)
        answer, samples = self._answer, self._samples
        engine = "" if self._engine == UNKNOWN_ENGINE else self._engine
        found = places(answer) if answer else []
        self._make_room(len(found))
        self._say("#range", self._range(answer))
        if answer is not None:
            self.query_one("#spread", Bars).draw(spread_chart(answer, engine))
            self.query_one("#by-probability", Bars).draw(profile_chart(answer, "probability", engine, "rollout p"))
            self.query_one("#by-position", Bars).draw(profile_chart(answer, "position", engine, "position"))
        self.query_one("#places", Table).set_items(found)
        self._say("#listed", self._listed(samples))
        tokens = LISTS[self._list][0] in ("abs_diff", "k3")
        self.query_one("#tokens").display, self.query_one("#sequences").display = tokens, not tokens
        of_tokens = distinct_tokens(samples.tokens if samples else [])
        of_sequences = distinct_sequences(samples.sequences if samples else [])
        self._times.clear()
        self._times.update(of_tokens[1] | of_sequences[1])
        self.query_one("#tokens", Table).set_items(of_tokens[0])
        self.query_one("#sequences", Table).set_items(of_sequences[0])

    def on_resize(self) -> None:
        """Fewer charts where it is narrow."""
        self._make_room(len(self.query_one("#places", Table).items))

    @property
    def list_id(self) -> str:
        """The list that is shown, as a selector."""
        return "#tokens" if LISTS[self._list][0] in ("abs_diff", "k3") else "#sequences"

    def _say(self, where: str, parts: list[theme.Part]) -> None:
        line = self.query_one(where, LineWidget)
        line.show([theme.row(parts, line.size.width)])

    def _range(self, answer: Answered | None) -> list[theme.Part]:
        if answer is None:
            waiting = "no step has closed yet" if self._wanted is None else "waiting for the hub"
            return [(self._error or waiting, theme.FAINT)]
        steps = f"step {answer.last}" if answer.steps == 1 else f"steps {answer.first} to {answer.last}"
        parts: list[theme.Part] = [
            (f"{steps}  ", theme.STRONG),
            (f"{theme.figure(answer.tokens)} tokens  ", theme.PLAIN),
        ]
        if answer.invalid:
            parts.append((f"▲ {answer.invalid} without a finite d  ", theme.BAD))
        parts.append((f"{'fleet' if self._engine is None else self._engine}  ", theme.PLAIN))
        return [*parts, ("d = trainer - rollout, nats", theme.FAINT)]

    def _listed(self, samples: Samples | None) -> list[theme.Part]:
        what = LISTS[self._list][1]
        if self._none_kept:
            return [(f"{what}: {self._none_kept}", theme.WARN)]
        if samples is None:
            return [(what, theme.FAINT)]
        of = f" of {samples.of_sequences} sequences, {samples.of_tokens} tokens"
        where = "" if self._engine is None else f", {self._engine} alone"
        return [(f"step {samples.step}: {what}", theme.STRONG), (f"{of}{where}  v other list", theme.FAINT)]

    def _make_room(self, lines: int) -> None:
        width, height = self.size.width, self.size.height
        across = 3 if width >= 72 else 2 if width >= 48 else 1
        charts = self.query_one("#charts")
        charts.styles.grid_size_columns = across
        for place, chart in enumerate(self.query(Bars)):
            chart.set_class(place >= across, "spare")
        set_height(charts, max(5, min(height // 3, 16)))
        set_height(self.query_one("#places"), 1 + min(max(lines, 1), max(3, height // 5)))

    def _find_tokenizer(self, view: Snapshot) -> None:
        models = {engine.fingerprint.get("model") for engine in view.engines.values()}
        if models != self._models:
            self._models, self._decode = models, decoder(view.engines.values())
            self.query_one("#tokens", Table).set_columns(token_columns(self._decode, self._times))
            self.query_one("#sequences", Table).set_columns(sequence_columns(self._decode, self._times))
