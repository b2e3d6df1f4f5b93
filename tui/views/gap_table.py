"""The table of the Gap view: the gap of the fleet and of each engine by lag and prefix cache, with intervals. Pure."""

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
"""Names of two rows: all engines, and tokens of unknown engines."""

LAGS = ("0", "1", "2", "3", "4+", "?")
"""Lag columns: 0 to 3, more, and unknown (or ahead of the trainer)."""

PLACE_WIDTH = 8

Spread = tuple[float, float, float, float]


@dataclass(frozen=True)
class Means:
    """A stratum: number of tokens, means of d, |d| and k3; ``spread`` as in ``Profile``."""

    tokens: int = 0
    d: float = 0.0
    size: float = 0.0
    k3: float = 0.0
    spread: Spread | None = None

    @property
    def is_precise(self) -> bool:
        """Whether the upper end of the interval is below twice the mean."""
        return self.high is not None and self.high < 2 * self.size

    @property
    def high(self) -> float | None:
        """Upper end of the 95 % interval of |d|; None where unknown."""
        if self.spread is None or not self.tokens:
            return None
        m, nn, ss, ns = self.spread
        return estimate((m, self.tokens, self.tokens * self.size, nn, ss, ns)).high


@dataclass(frozen=True)
class GapRow:
    """A row: one engine, the fleet, or an environment; with ``cells`` by column.

    ``place``: name of the engine or environment.
    """

    place: str
    tokens: int
    k3: float | None
    cells: dict[str, Means]
    is_environment: bool = False

    @property
    def key(self) -> str:
        """Identity: an environment may have the name of an engine."""
        return f"{self.is_environment} {self.place}"

    @property
    def label(self) -> str:
        """The name; of a long one, its end, since names of environments often begin alike."""
        return self.place if len(self.place) <= PLACE_WIDTH else f"…{self.place[1 - PLACE_WIDTH :]}"

    def at(self, column: str) -> Means:
        """The stratum of a column."""
        return self.cells.get(column, Means())

    def size(self, column: str) -> float | None:
        """Mean |d| of a column; None without tokens."""
        means = self.at(column)
        return means.size if means.tokens else None

    def figures(self) -> list[ShownFigure]:
        """The numbers of the row that the metric catalogue explains; it has none for strata."""
        named = (("all", "all", "logp_abs_diff_mean"), ("lag 0", "0", "lag0_abs_diff_mean"))
        gaps = [ShownFigure(head, metric, self.size(at), (self.at(at).tokens, "tokens")) for head, at, metric in named]
        k3 = ShownFigure("k3", "kl_k3", self.k3, (self.tokens, "tokens"))
        return [*gaps, k3, ShownFigure("tokens", "tokens", float(self.tokens), None)]


def merged(rows: list[Means]) -> Means:
    """The means of several strata or engines together."""
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


def profile_means(answer: Mismatch, dimension: str, engine: str | None) -> tuple[list[str], list[Means]]:
    """Labels and means along a dimension, of one engine or of all (None)."""
    profile = next((p for p in answer.profiles if p.dimension == dimension), Profile(dimension, [], {}))
    chosen = [
        [Means(*row, spread) for row, spread in zip(rows, profile.spreads.get(name, [None] * len(rows)), strict=True)]
        for name, rows in profile.engines.items()
        if engine in (None, name)
    ]
    return profile.labels, [merged([rows[at] for rows in chosen]) for at in range(len(profile.labels))]


def gap_rows(answer: Mismatch) -> list[GapRow]:
    """The rows of the table: the fleet, each engine, tokens of unknown engines; then each environment."""
    names = sorted(answer.bins, key=lambda name: (not name, name.rstrip("0123456789"), len(name), name))
    return [_gap_row(answer, None), *(_gap_row(answer, name) for name in names), *_environment_rows(answer)]


def _environment_rows(answer: Mismatch) -> list[GapRow]:
    labels, means = profile_means(answer, "environment", None)
    return [
        GapRow(label, own.tokens, own.k3, {"all": own}, is_environment=True)
        for label, own in zip(labels, means, strict=True)
    ]


def _gap_row(answer: Mismatch, engine: str | None) -> GapRow:
    labels, lags = profile_means(answer, "lag", engine)
    by_label = dict(zip(labels, lags, strict=True))
    groups = {name: [by_label[name]] if name in by_label else [] for name in LAGS[:-2]}
    groups["4+"] = [means for label, means in by_label.items() if label.rstrip("+").isdigit() and label not in groups]
    groups["?"] = [by_label[label] for label in ("ahead", "unknown") if label in by_label]
    prefix, cache = profile_means(answer, "prefix", engine)
    groups |= {name: [means] for name, means in zip(prefix, cache, strict=True) if name in ("hit", "miss")}
    cells = {name: merged(rows) for name, rows in (groups | {"all": lags}).items()}
    every = cells["all"]
    name = FLEET if engine is None else engine or UNKNOWN_ENGINE
    return GapRow(name, every.tokens, every.k3 if every.tokens else None, cells)


def _cell(name: str) -> Callable[[GapRow], theme.Part]:
    def cell(row: GapRow) -> theme.Part:
        means = row.at(name)
        return with_error(means), theme.PLAIN if means.is_precise else theme.FAINT

    return cell


def with_error(means: Means) -> str:
    """Mean |d| with the half width of its 95 % interval in percent; at most 9 characters."""
    if not means.tokens:
        return theme.UNKNOWN
    if means.high is None or not means.size:
        return theme.figure(means.size)
    percent = 100 * (means.high / means.size - 1)
    if percent < 99.5:
        return f"{theme.figure(means.size, 2)}±{percent:.0f}"
    return f"{theme.figure(means.size, 1)}±>99"  # a second digit would be noise


PLACES: tuple[Column[GapRow], ...] = (
    Column("|d| ±%", PLACE_WIDTH, lambda r: (r.label, theme.PLAIN if r.is_environment else theme.STRONG), right=False),
    Column("all", 9, _cell("all"), sort=lambda r: r.size("all")),
    Column("lag 0", 9, _cell("0"), sort=lambda r: r.size("0")),
    *(Column(f"lag {name}", 9, _cell(name), rank=rank) for name, rank in zip(LAGS[1:-1], (1, 2, 5, 2), strict=True)),
    Column("lag ?", 9, _cell("?"), rank=6),
    Column("hit", 9, _cell("hit")),
    Column("miss", 9, _cell("miss")),
    Column("k3", 7, lambda r: (theme.figure(r.k3), theme.PLAIN), sort=lambda r: r.k3, rank=3),
    Column("tokens", 6, lambda r: (theme.figure(r.tokens), theme.FAINT), sort=lambda r: r.tokens, rank=4),
)
