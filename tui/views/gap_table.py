"""The Mismatch view's table: the gap of the fleet and of each engine, by lag and prefix cache, with intervals. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rltop.backend.api.profiles import Mismatch, Profile
from rltop.backend.measure.intervals import estimate
from rltop.tui.model.explain import ShownFigure
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column

FLEET = "fleet"
UNKNOWN_ENGINE = "?"
"""Rows of the table of engines: all of them; and tokens whose engine is not known."""

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
    def is_sure(self) -> bool:
        """Whether |d| is known to a factor of two."""
        return self.high is not None and self.high < 2 * self.size

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % interval of |d|; None where it is not known."""
        if self.spread is None or not self.tokens:
            return None
        m, nn, ss, ns = self.spread
        return estimate((m, self.tokens, self.tokens * self.size, nn, ss, ns)).high


@dataclass(frozen=True)
class GapRow:
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

    def figures(self) -> list[ShownFigure]:
        """Those that the catalogue knows; of strata it has no entries of their own."""
        named = (("all", "all", "logp_abs_diff_mean"), ("lag 0", "0", "lag0_abs_diff_mean"))
        gaps = [ShownFigure(head, metric, self.size(at), (self.at(at).tokens, "tokens")) for head, at, metric in named]
        k3 = ShownFigure("k3", "kl_k3", self.k3, (self.tokens, "tokens"))
        return [*gaps, k3, ShownFigure("tokens", "tokens", float(self.tokens), None)]


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


def along(answer: Mismatch, dimension: str, engine: str | None) -> tuple[list[str], list[Means]]:
    """Labels of a dimension with the means of one engine, or of all."""
    profile = next((p for p in answer.profiles if p.dimension == dimension), Profile(dimension, [], {}))
    chosen = [
        [Means(*row, spread) for row, spread in zip(rows, profile.spreads.get(name, [None] * len(rows)), strict=True)]
        for name, rows in profile.engines.items()
        if engine in (None, name)
    ]
    return profile.labels, [merged([rows[at] for rows in chosen]) for at in range(len(profile.labels))]


def places(answer: Mismatch) -> list[GapRow]:
    """The table's lines: the fleet, then each engine, tokens of unknown engines last."""
    names = sorted(answer.bins, key=lambda name: (not name, name.rstrip("0123456789"), len(name), name))
    return [_place(answer, None), *(_place(answer, name) for name in names)]


def _place(answer: Mismatch, engine: str | None) -> GapRow:
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
    return GapRow(name, every.tokens, every.k3 if every.tokens else None, cells)


def _cell(name: str) -> Callable[[GapRow], theme.Part]:
    def cell(place: GapRow) -> theme.Part:
        means = place.at(name)
        return with_error(means), theme.PLAIN if means.is_sure else theme.FAINT

    return cell


def with_error(means: Means) -> str:
    """Mean |d|, and how far its 95 % interval goes to either side, in percent of it; at most 9 characters."""
    if not means.tokens:
        return theme.UNKNOWN
    if means.high is None or not means.size:
        return theme.figure(means.size)
    percent = 100 * (means.high / means.size - 1)
    if percent < 99.5:
        return f"{theme.figure(means.size, 2)}±{percent:.0f}"
    return f"{theme.figure(means.size, 1)}±>99"  # not known to a factor: a second digit would say nothing


PLACES: tuple[Column[GapRow], ...] = (
    Column("|d| ±%", 8, lambda p: (p.engine, theme.STRONG), right=False),
    Column("all", 9, _cell("all"), sort=lambda p: p.size("all")),
    Column("lag 0", 9, _cell("0"), sort=lambda p: p.size("0")),
    *(Column(f"lag {name}", 9, _cell(name), rank=rank) for name, rank in zip(LAGS[1:-1], (1, 2, 5, 2), strict=True)),
    Column("lag ?", 9, _cell("?"), rank=6),
    Column("hit", 9, _cell("hit")),
    Column("miss", 9, _cell("miss")),
    Column("k3", 7, lambda p: (theme.figure(p.k3), theme.PLAIN), sort=lambda p: p.k3, rank=3),
    Column("tokens", 6, lambda p: (theme.figure(p.tokens), theme.FAINT), sort=lambda p: p.tokens, rank=4),
)
