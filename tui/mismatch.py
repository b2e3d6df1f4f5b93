"""The Mismatch view: how the gap is spread, where it lies, and the tokens and sequences behind it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container, Vertical

from rltop.backend.gaps.intervals import estimate
from rltop.backend.gaps.profiles import Mismatch as Answered
from rltop.backend.gaps.profiles import Profile
from rltop.backend.gaps.sampled import Samples, Sequence, Token
from rltop.backend.view import Answer, AskMismatch, AskSamples, Question, Snapshot
from rltop.tui import gaps, look, marks
from rltop.tui.bars import Bar, BarChart, Bars
from rltop.tui.decode import Decode, as_id, decoder
from rltop.tui.explain import Figure
from rltop.tui.plot import Sight
from rltop.tui.rows import Rows, set_height
from rltop.tui.table import Column, Table

FLEET = "fleet"
UNKNOWN_ENGINE = "?"
"""Rows of the table of engines: all of them; and tokens whose engine is not known."""

LISTS: tuple[tuple[str, str], ...] = (
    ("abs_diff", "tokens with the largest |d|"),
    ("k3", "tokens with the largest k3"),
    ("worst", "sequences with the largest mean k3"),
    ("sample", "a fair sample of the sequences"),
)
"""Kinds of ``AskSamples``, in the order of the key, and what each is."""

LAGS = ("0", "1", "2", "3", "4+", "?")
"""Columns of the table: policy lag, the rest, and not known (or ahead of the trainer)."""

Spread = tuple[float, float, float, float]


@dataclass(frozen=True)
class Means:
    """Of a stratum: its tokens, and the means of d, |d| and k3; ``spread`` as in ``Profile``."""

    tokens: int = 0
    d: float = 0.0
    size: float = 0.0
    k3: float = 0.0
    spread: Spread | None = None

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % interval of |d|; None where it is not known."""
        if self.spread is None or not self.tokens:
            return None
        m, nn, ss, ns = self.spread
        return estimate((m, self.tokens, self.tokens * self.size, nn, ss, ns)).high


@dataclass(frozen=True)
class Place:
    """One engine or all; ``cells`` by the columns of the table."""

    engine: str
    tokens: int
    k3: float | None
    cells: dict[str, Means]

    def at(self, column: str) -> Means:
        """What stands in a column."""
        return self.cells.get(column, Means())

    def size(self, column: str) -> float | None:
        """|d| there; None without tokens."""
        means = self.at(column)
        return means.size if means.tokens else None

    def figures(self) -> list[Figure]:
        """Those that the catalogue knows; of strata it has no entries of their own."""
        named = (("all", "all", "logp_abs_diff_mean"), ("lag 0", "0", "lag0_abs_diff_mean"))
        gaps = [Figure(head, metric, self.size(at), (self.at(at).tokens, "tokens")) for head, at, metric in named]
        k3 = Figure("k3", "kl_k3", self.k3, (self.tokens, "tokens"))
        return [*gaps, k3, Figure("tokens", "tokens", float(self.tokens), None)]


def merged(rows: list[Means]) -> Means:
    """Of several strata or engines together."""
    rows = [row for row in rows if row.tokens]
    n = sum(row.tokens for row in rows)
    if not n:
        return Means()
    d, size, k3 = (
        sum(row.tokens * value for row, value in zip(rows, values, strict=True)) / n
        for values in ([row.d for row in rows], [row.size for row in rows], [row.k3 for row in rows])
    )
    spreads = [row.spread for row in rows if row.spread is not None]
    whole = tuple(map(sum, zip(*spreads, strict=True))) if len(spreads) == len(rows) else None
    return Means(n, d, size, k3, whole)  # type: ignore[arg-type]


def along(answer: Answered, dimension: str, engine: str | None) -> tuple[list[str], list[Means]]:
    """Labels of a dimension with the means of one engine, or of all."""
    profile = next((p for p in answer.profiles if p.dimension == dimension), Profile(dimension, [], {}))
    chosen = [
        [Means(*row, spread) for row, spread in zip(rows, profile.spreads.get(name, [None] * len(rows)), strict=True)]
        for name, rows in profile.engines.items()
        if engine in (None, name)
    ]
    return profile.labels, [merged([rows[at] for rows in chosen]) for at in range(len(profile.labels))]


def places(answer: Answered) -> list[Place]:
    """The table's lines: the fleet, then each engine, tokens of unknown engines last."""
    names = sorted(answer.bins, key=lambda name: (not name, name.rstrip("0123456789"), len(name), name))
    return [_place(answer, None), *(_place(answer, name) for name in names)]


def _place(answer: Answered, engine: str | None) -> Place:
    labels, lags = along(answer, "lag", engine)
    by_label = dict(zip(labels, lags, strict=True))
    groups = {name: [by_label[name]] if name in by_label else [] for name in LAGS[:-2]}
    groups["4+"] = [means for label, means in by_label.items() if label.rstrip("+").isdigit() and label not in groups]
    groups["?"] = [by_label[label] for label in ("ahead", "unknown") if label in by_label]
    prefix, cache = along(answer, "prefix", engine)
    groups |= {name: [means] for name, means in zip(prefix, cache, strict=True) if name in ("hit", "miss")}
    cells = {name: merged(rows) for name, rows in (groups | {"all": lags}).items()}
    every = cells["all"]
    name = FLEET if engine is None else engine or UNKNOWN_ENGINE
    return Place(name, every.tokens, every.k3 if every.tokens else None, cells)


def _cell(name: str) -> Callable[[Place], look.Part]:
    return lambda place: (with_error(place.at(name)), look.PLAIN)


def with_error(means: Means) -> str:
    """Mean |d|, and how far its 95 % interval goes to either side, in percent of it; at most 9 characters."""
    if not means.tokens:
        return look.UNKNOWN
    if means.high is None or not means.size:
        return look.figure(means.size)
    percent = 100 * (means.high / means.size - 1)
    if percent < 99.5:
        return f"{look.figure(means.size, 2)}±{percent:.0f}"
    return f"{look.figure(means.size, 1)}±>99"  # not known to a factor: a second digit would say nothing


PLACES: tuple[Column[Place], ...] = (
    Column("|d| ±%", 8, lambda p: (p.engine, look.STRONG), right=False),
    Column("all", 9, _cell("all"), sort=lambda p: p.size("all")),
    Column("lag 0", 9, _cell("0"), sort=lambda p: p.size("0")),
    *(Column(f"lag {name}", 9, _cell(name), rank=rank) for name, rank in zip(LAGS[1:-1], (1, 2, 5, 2), strict=True)),
    Column("lag ?", 9, _cell("?"), rank=6),
    Column("hit", 9, _cell("hit")),
    Column("miss", 9, _cell("miss")),
    Column("k3", 7, lambda p: (look.figure(p.k3), look.PLAIN), sort=lambda p: p.k3, rank=3),
    Column("tokens", 6, lambda p: (look.figure(p.tokens), look.FAINT), sort=lambda p: p.tokens, rank=4),
)


def token_columns(decode: Decode) -> tuple[Column[Token], ...]:
    """Columns of the list of tokens."""

    def gap(token: Token) -> look.Part:
        return f"{look.figure(token.diff)}{marks.mark(token.diff):<3}", gaps.style(token.diff)

    def around(token: Token) -> look.Part:
        before = marks.context(token.before, decode, 6)
        after = marks.context(token.after, decode)
        return f"{before}»{decode(token.id)}«{after}", look.PLAIN

    return (
        Column("d", 11, gap, sort=lambda t: abs(t.diff)),
        Column("rollout", 8, lambda t: (look.figure(t.rollout), look.PLAIN), sort=lambda t: t.rollout),
        Column("trainer", 8, lambda t: (look.figure(t.trainer), look.PLAIN), sort=lambda t: t.trainer),
        Column("engine", 6, lambda t: (t.engine or UNKNOWN_ENGINE, look.PLAIN), sort=lambda t: t.engine, right=False),
        Column("policy", 6, lambda t: (look.whole(t.version if t.version >= 0 else None), look.PLAIN), rank=1),
        Column("epoch", 5, lambda t: (look.whole(t.epoch if t.epoch >= 0 else None), look.PLAIN), rank=3),
        Column("cached", 6, lambda t: (look.whole(t.cached_tokens), look.PLAIN), rank=4),
        Column("reward", 6, lambda t: (look.figure(t.reward), look.PLAIN), rank=5),
        Column("at", 9, lambda t: (f"{t.position}/{t.tokens}", look.FAINT), rank=2),
        Column("before » token « after", 26, around, right=False),
    )


def sequence_columns(decode: Decode) -> tuple[Column[Sequence], ...]:
    """Columns of the list of sequences."""

    def begins(sequence: Sequence) -> look.Part:
        shown = (text for text, _ in marks.marked(sequence, decode))
        return marks.between(decode).join(text for text, _ in zip(shown, range(40), strict=False)), look.PLAIN

    return (
        Column("|d| mean", 8, lambda s: (look.figure(s.abs_diff_mean), look.PLAIN), sort=lambda s: s.abs_diff_mean),
        Column("k3 mean", 8, lambda s: (look.figure(s.k3_mean), look.PLAIN), sort=lambda s: s.k3_mean),
        Column("tokens", 6, lambda s: (str(s.tokens), look.PLAIN), sort=lambda s: s.tokens),
        Column("reward", 6, lambda s: (look.figure(s.reward), look.PLAIN), sort=lambda s: s.reward),
        Column("engine", 6, lambda s: (",".join(s.engines) or UNKNOWN_ENGINE, look.PLAIN), right=False),
        Column("cached", 6, lambda s: (look.whole(s.cached_tokens), look.PLAIN), rank=2),
        Column("row", 7, lambda s: (f"{s.rank}/{s.number}", look.FAINT), rank=3),
        Column("ended", 6, lambda s: (s.finish_reason, look.FAINT), rank=1, right=False),
        Column("begins", 26, begins, right=False),
    )


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
    return BarChart((("tokens by d", look.STRONG), (f" to {look.figure(top)} log", look.FAINT)), tuple(bars))


def _size_style(answer: Answered, at: int) -> Style:
    """As a token with such a gap is marked."""
    size = abs(at - (len(answer.edges) - 1))
    return gaps.style(answer.edges[size - 1] * 1.5) if size else look.PLAIN


def profile_chart(answer: Answered, dimension: str, engine: str | None, title: str) -> BarChart:
    """Mean |d| along a dimension; strata after the last that has tokens are left out."""
    labels, rows = along(answer, dimension, engine)
    used = max((at + 1 for at, row in enumerate(rows) if row.tokens), default=0)
    highest = max((row.size for row in rows), default=0.0)
    # Room for the intervals, but not so much that a stratum of few tokens makes all others small.
    top = min(max((row.high or 0.0 for row in rows), default=0.0), 1.5 * highest) or highest
    bars = [_bar(row, top, label) for label, row in zip(labels[:used], rows, strict=False)]
    return BarChart(((f"|d| by {title}", look.STRONG), (f" to {look.figure(top)}", look.FAINT)), tuple(bars))


def _bar(row: Means, top: float, label: str) -> Bar:
    if not row.tokens:
        return Bar(None, label.split("-")[0])
    return Bar(row.size / top if top else 0.0, label.split("-")[0], high=(row.high or 0.0) / top if top else 0.0)


class Mismatch(Vertical):
    """The view. It asks the hub for what it shows, when a step closes or something else is to be looked at."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._engine: str | None = None
        self._list = 0
        self._answer: Answered | None = None
        self._samples: Samples | None = None
        self._error = ""
        self._wanted: object = None
        self._asked: set[str] = set()
        self._decode: Decode = as_id
        self._models: object = None

    def compose(self) -> ComposeResult:
        """A line, three charts, the table of engines, a line, the list."""
        yield Rows(id="range")
        with Container(id="charts"):
            yield Bars(id="spread")
            yield Bars(id="by-probability")
            yield Bars(id="by-position")
        yield Table(PLACES, lambda place: place.engine, empty="nothing to show yet", id="places")
        yield Rows(id="listed")
        yield Table(token_columns(as_id), _token_key, empty="none", id="tokens")
        yield Table(sequence_columns(as_id), _sequence_key, empty="none", id="sequences")

    # --- asking -----------------------------------------------------------------------------------------------------

    def questions(self, view: Snapshot, sight: Sight) -> list[Question]:
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
        asked: list[Question] = [
            AskMismatch(uuid.uuid4().hex, first, last),
            AskSamples(uuid.uuid4().hex, last, kind, engine),
        ]
        self._asked = {question.id for question in asked}
        return asked

    def take(self, answers: dict[str, Answer]) -> bool:
        """Take the answers that have come. Whether there is something new to show."""
        come = [answers.pop(question) for question in self._asked & answers.keys()]
        for answer in come:
            self._asked.discard(answer.id)
            self._error = answer.error or ""
            self._answer = answer.mismatch or self._answer
            self._samples = answer.samples or self._samples
        return bool(come)

    def figures(self) -> tuple[str, list[Figure]] | None:
        """What the line of the table under the cursor shows, and of what; None where there is none."""
        place = self.query_one("#places", Table).selected
        if not isinstance(place, Place) or self._answer is None:
            return None
        return f"{place.engine}, steps {self._answer.first} to {self._answer.last}", place.figures()

    def next_list(self) -> None:
        """The next of the lists."""
        self._list = (self._list + 1) % len(LISTS)

    def choose(self, item: object) -> Text | None:
        """Enter on a line: an engine's tokens alone, or all again; or the text of a token or sequence, to be read."""
        if isinstance(item, Place):
            self._engine = None if item.engine in (FLEET, self._engine) else item.engine
        elif isinstance(item, Token):
            behind = self._sequence_of(item)
            return gaps.token_text(item, self._decode) if behind is None else gaps.sequence_text(behind, self._decode)
        elif isinstance(item, Sequence):
            return gaps.sequence_text(item, self._decode)
        return None

    def _sequence_of(self, token: Token) -> Sequence | None:
        place = (token.step, token.rank, token.number)
        kept = self._samples.sequences if self._samples else []
        return next((s for s in kept if (s.step, s.rank, s.number) == place), None)

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
        self.query_one("#tokens", Table).set_items(samples.tokens if samples else [])
        self.query_one("#sequences", Table).set_items(samples.sequences if samples else [])

    def on_resize(self) -> None:
        """Fewer charts where it is narrow."""
        self._make_room(len(self.query_one("#places", Table).items))

    @property
    def list_id(self) -> str:
        """The list that is shown, as a selector."""
        return "#tokens" if LISTS[self._list][0] in ("abs_diff", "k3") else "#sequences"

    def _say(self, where: str, parts: list[look.Part]) -> None:
        line = self.query_one(where, Rows)
        line.show([look.row(parts, line.size.width)])

    def _range(self, answer: Answered | None) -> list[look.Part]:
        if answer is None:
            waiting = "no step has closed yet" if self._wanted is None else "waiting for the hub"
            return [(self._error or waiting, look.FAINT)]
        steps = f"step {answer.last}" if answer.steps == 1 else f"steps {answer.first} to {answer.last}"
        parts: list[look.Part] = [(f"{steps}  ", look.STRONG), (f"{look.figure(answer.tokens)} tokens  ", look.PLAIN)]
        if answer.invalid:
            parts.append((f"▲ {answer.invalid} without a finite d  ", look.BAD))
        parts.append((f"{'fleet' if self._engine is None else self._engine}  ", look.PLAIN))
        return [*parts, ("d = trainer - rollout, nats", look.FAINT)]

    def _listed(self, samples: Samples | None) -> list[look.Part]:
        what = LISTS[self._list][1]
        if self._error:
            return [(f"{what}: {self._error}", look.WARN)]
        if samples is None:
            return [(what, look.FAINT)]
        of = f" of {samples.of_sequences} sequences, {samples.of_tokens} tokens"
        where = "" if self._engine is None else f", {self._engine} alone"
        return [(f"step {samples.step}: {what}", look.STRONG), (f"{of}{where}  v other list", look.FAINT)]

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
            self.query_one("#tokens", Table).set_columns(token_columns(self._decode))
            self.query_one("#sequences", Table).set_columns(sequence_columns(self._decode))


def _token_key(token: Token) -> str:
    return f"{token.step}/{token.rank}/{token.number}/{token.position}"


def _sequence_key(sequence: Sequence) -> str:
    return f"{sequence.step}/{sequence.rank}/{sequence.number}"
