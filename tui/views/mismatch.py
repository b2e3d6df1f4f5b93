"""The Gap view: distribution and location of the logprob gap, and the tokens and sequences behind it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping

from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Container

from rltop.backend.api import Answer, AskMismatch, AskSamples, Question, Snapshot
from rltop.backend.api.profiles import Mismatch
from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.tui.dialogs.info_dialogs import Page
from rltop.tui.model.explain import ShownFigure
from rltop.tui.model.key_commands import KeyCommand
from rltop.tui.tokens import gap_style
from rltop.tui.tokens.decode import Decode, as_id, decoder
from rltop.tui.tokens.dedupe import Times, distinct_sequences, distinct_tokens, sequence_key, token_key
from rltop.tui.views.gap_table import FLEET, PLACES, UNKNOWN_ENGINE, GapRow, Means, gap_rows, profile_means
from rltop.tui.views.token_lists import sequence_columns, token_columns
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.bars import Bar, BarChart, Bars
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Table

LISTS: tuple[tuple[str, str], ...] = (
    ("abs_diff", "tokens with the largest |d|"),
    ("k3", "tokens with the largest k3"),
    ("worst", "sequences with the largest mean k3"),
    ("sample", "a random sample"),
)
"""Kinds of ``AskSamples`` with their titles, in the order of the key."""


def histogram(answer: Mismatch, engine: str | None) -> BarChart:
    """Histogram of d over tokens, log counts."""
    counts = [sum(c) for c in zip(*(c for name, c in answer.bins.items() if engine in (None, name)), strict=True)]
    top = max(counts, default=0)
    middle = len(counts) // 2
    labels = {0: f"-{answer.edges[-2]:g}", middle - 4: "-1e-3", middle: "0", middle + 5: "1e-3"}
    labels[len(counts) - 2] = f"{answer.edges[-2]:g}"
    bars = [
        Bar(
            math.log10(count + 1) / math.log10(top + 1) if count else None,
            labels.get(index, ""),
            _bin_style(answer, index),
        )
        for index, count in enumerate(counts)
    ]
    return BarChart((("tokens by d", theme.STRONG), (f" to {theme.figure(top)} log", theme.FAINT)), tuple(bars))


def _bin_style(answer: Mismatch, index: int) -> Style:
    """The style of a token with a gap of this bin."""
    distance = abs(index - (len(answer.edges) - 1))
    return gap_style.style(answer.edges[distance - 1] * 1.5) if distance else theme.PLAIN


def profile_chart(answer: Mismatch, dimension: str, engine: str | None, title: str) -> BarChart:
    """Mean |d| by stratum; trailing strata without tokens are left out."""
    labels, rows = profile_means(answer, dimension, engine)
    used = max((index + 1 for index, row in enumerate(rows) if row.tokens), default=0)
    highest = max((row.size for row in rows), default=0.0)
    # Room for the intervals, limited so that a stratum of few tokens does not flatten all others.
    top = min(max((row.high or 0.0 for row in rows), default=0.0), 1.5 * highest) or highest
    bars = [_bar(row, top, label) for label, row in zip(labels[:used], rows, strict=False)]
    return BarChart(((f"|d| by {title}", theme.STRONG), (f" to {theme.figure(top)}", theme.FAINT)), tuple(bars))


def _bar(row: Means, top: float, label: str) -> Bar:
    if not row.tokens:
        return Bar(None, label.split("-")[0])
    return Bar(row.size / top if top else 0.0, label.split("-")[0], high=(row.high or 0.0) / top if top else 0.0)


class GapView(View):
    """The view. It queries the hub when a step closes or the cursor, range, engine or list changes."""

    first_pane = "#places"
    keys = (
        KeyCommand("next_list", ("v",), "v", "Next list", "worst tokens by |d| or k3, worst sequences, a random sample",
                   "Gap"),
    )  # fmt: skip

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._engine: str | None = None
        self._list = 0
        self._mismatch: Mismatch | None = None
        self._samples: Samples | None = None
        self._error = ""
        self._requested: object = None
        self._no_samples = ""
        self._asked: dict[str, str] = {}
        self._decode: Decode = as_id
        self._times: Times = {}
        self._models: object = None

    def compose(self) -> ComposeResult:
        """A summary line, three charts, the table of engines, a caption, the list."""
        yield LineWidget(id="range")
        with Container(id="charts"):
            yield Bars(id="histogram")
            yield Bars(id="by-probability")
            yield Bars(id="by-position")
        yield Table(PLACES, lambda row: row.key, empty="no data yet", id="places")
        yield LineWidget(id="caption")
        yield Table(token_columns(as_id, self._times), token_key, empty="none", id="tokens")
        yield Table(sequence_columns(as_id, self._times), sequence_key, empty="none", id="sequences")

    # --- questions ---------------------------------------------------------------------------------------------------

    def questions(self, snapshot: Snapshot) -> list[Question]:
        """Gap and samples of the visible steps; nothing if they were requested before."""
        viewport = self.state.viewport.in_steps(self.state.history)
        last = max(snapshot.steps, default=None)
        if viewport.cursor is not None:
            last = max((step for step in snapshot.steps if step <= viewport.cursor), default=last)
        first = last
        if last is not None and viewport.cursor is None:
            first = None if viewport.window is None else max(last - round(viewport.window) + 1, 0)
        kind, _ = LISTS[self._list]
        request = (snapshot.epoch, first, last, self._engine, kind)
        if last is None or request == self._requested:
            return []
        self._requested = request
        gap = AskMismatch(uuid.uuid4().hex, first, last)
        samples = AskSamples(uuid.uuid4().hex, last, kind, self._engine_id)
        self._asked = {gap.id: "mismatch", samples.id: "samples"}
        return [gap, samples]

    def take_answers(self, answers: dict[str, Answer]) -> bool:
        """As ``View``."""
        arrived = [answers.pop(question) for question in self._asked.keys() & answers.keys()]
        for answer in arrived:
            if self._asked.pop(answer.id) == "mismatch":
                self._error, self._mismatch = answer.error or "", answer.mismatch or self._mismatch
            else:  # samples of another step must not stay on screen
                self._no_samples, self._samples = answer.error or "", answer.samples
        return bool(arrived)

    @property
    def _engine_id(self) -> str | None:
        """The selected engine as the hub names it: empty for tokens of unknown engines, None for all."""
        return "" if self._engine == UNKNOWN_ENGINE else self._engine

    # --- commands ---------------------------------------------------------------------------------------------------

    def commands(self) -> Mapping[str, Callable[[], object]]:
        """As ``View``."""
        return {"next_list": self._next_list}

    def _next_list(self) -> None:
        if self.display:
            self._list = (self._list + 1) % len(LISTS)
            self.state.changed()
            self.query_one("#tokens" if self._lists_tokens else "#sequences").focus()

    def figures(self) -> tuple[str, list[ShownFigure]] | None:
        """The numbers of the engine under the cursor."""
        row = self.query_one("#places", Table).selected
        if not isinstance(row, GapRow) or self._mismatch is None:
            return None
        return f"{row.place}, steps {self._mismatch.first} to {self._mismatch.last}", row.figures()

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter: select an engine, or all again; show the text of a token or sequence."""
        item = event.item
        if isinstance(item, GapRow):
            if not item.is_environment:
                self._engine = None if item.place in (FLEET, self._engine) else item.place
                self.state.changed()
        elif isinstance(item, Token):
            self.app.push_screen(Page(gap_style.token_text(item, self._decode)))
        elif isinstance(item, Sequence):
            self.app.push_screen(Page(gap_style.sequence_text(item, self._decode)))

    # --- painting ----------------------------------------------------------------------------------------------------

    def paint(self, snapshot: Snapshot) -> None:
        """Draw the latest answers."""
        self._load_tokenizer(snapshot)
        answer, samples, engine = self._mismatch, self._samples, self._engine_id
        rows = gap_rows(answer) if answer else []
        self._make_room(len(rows))
        self._show_line("#range", self._range(answer))
        if answer is not None:
            self.query_one("#histogram", Bars).draw(histogram(answer, engine))
            self.query_one("#by-probability", Bars).draw(profile_chart(answer, "probability", engine, "rollout p"))
            self.query_one("#by-position", Bars).draw(profile_chart(answer, "position", engine, "position"))
        self.query_one("#places", Table).set_items(rows)
        self._show_line("#caption", self._caption(samples))
        self.query_one("#tokens").display = self._lists_tokens
        self.query_one("#sequences").display = not self._lists_tokens
        tokens, token_counts = distinct_tokens(samples.tokens if samples else [])
        sequences, sequence_counts = distinct_sequences(samples.sequences if samples else [])
        self._times.clear()
        self._times.update(token_counts | sequence_counts)
        self.query_one("#tokens", Table).set_items(tokens)
        self.query_one("#sequences", Table).set_items(sequences)

    def on_resize(self) -> None:
        """Fewer charts where it is narrow."""
        self._make_room(len(self.query_one("#places", Table).items))

    @property
    def _lists_tokens(self) -> bool:
        """The current list is one of tokens, not of sequences."""
        return LISTS[self._list][0] in ("abs_diff", "k3")

    def _show_line(self, selector: str, parts: list[theme.Part]) -> None:
        line = self.query_one(selector, LineWidget)
        line.show([theme.row(parts, line.size.width)])

    def _range(self, answer: Mismatch | None) -> list[theme.Part]:
        if answer is None:
            waiting = "waiting for the first training step" if self._requested is None else "waiting for the hub"
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

    def _caption(self, samples: Samples | None) -> list[theme.Part]:
        title = LISTS[self._list][1]
        if self._no_samples:
            return [(f"{title}: {self._no_samples}", theme.WARN)]
        if samples is None:
            return [(title, theme.FAINT)]
        of = f" of {samples.of_sequences} sequences, {samples.of_tokens} tokens"
        engine = "" if self._engine is None else f", only {self._engine}"
        return [(f"step {samples.step}: {title}", theme.STRONG), (f"{of}{engine}  v next list", theme.FAINT)]

    def _make_room(self, lines: int) -> None:
        width, height = self.size.width, self.size.height
        across = 3 if width >= 72 else 2 if width >= 48 else 1
        charts = self.query_one("#charts")
        charts.styles.grid_size_columns = across
        for index, chart in enumerate(self.query(Bars)):
            chart.set_class(index >= across, "spare")
        set_height(charts, max(5, min(height // 3, 16)))
        set_height(self.query_one("#places"), 1 + min(max(lines, 1), max(3, height // 5)))

    def _load_tokenizer(self, snapshot: Snapshot) -> None:
        models = {engine.fingerprint.get("model") for engine in snapshot.engines.values()}
        if models != self._models:
            self._models, self._decode = models, decoder(snapshot.engines.values())
            self.query_one("#tokens", Table).set_columns(token_columns(self._decode, self._times))
            self.query_one("#sequences", Table).set_columns(sequence_columns(self._decode, self._times))
