"""The Overview: plots of the run, the fleet, what happened."""

from __future__ import annotations

import time
from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import Container, Vertical

from rltop.backend.fleet.facts import some
from rltop.backend.fleet.prints import MARK
from rltop.backend.view import Engine, Event, Snapshot
from rltop.collectors.flags import FLAGS
from rltop.collectors.wire import FlagState
from rltop.tui import look
from rltop.tui.happened import Mark, markers
from rltop.tui.history import History
from rltop.tui.plot import Chart, Plot, Series
from rltop.tui.rows import set_height
from rltop.tui.sight import Sight
from rltop.tui.table import Column, Table

CHARTS: tuple[Chart, ...] = (
    Chart("gap", "logprob gap |d|", (
        Series("mean", "logp_abs_diff_mean", "noise_abs_diff"), Series("p95", "logp_abs_diff_p95"),
    )),
    Chart("clip", "clip rate", (
        Series("low", "clip_frac_low", "noise_clip_frac_low"), Series("high", "clip_frac_high", "noise_clip_frac_high"),
    )),
    Chart("KL", "KL rollout|trainer", (Series("k3", "kl_k3", "noise_k3"), Series("k1", "kl_k1"))),
    Chart("reward", "reward", (Series("mean", "reward_mean"),)),
    Chart("entropy", "entropy", (Series("mean", "entropy"),)),
    Chart("lag", "policy lag", (Series("mean", "lag_mean"), Series("max", "lag_max"))),
)  # fmt: skip

LOWEST = 5
"""Lines below which a plot says nothing; where there are fewer, the last plots are left out."""

HEALTH = {"live": ("●", look.GOOD), "silent": ("◌", look.WARN), "gone": ("✖", look.BAD)}


def _name(engine: Engine) -> look.Part:
    sign, style = HEALTH.get(engine.health, ("?", look.WARN))
    mark = MARK if engine.differs else " "
    return f"{sign}{mark}{engine.id}", style if engine.health != "live" else look.WARN if engine.differs else look.PLAIN


def _version(engine: Engine) -> look.Part:
    mark = "" if engine.version_source == "engine" or engine.policy_version is None else "?"
    return look.whole(engine.policy_version) + mark, look.PLAIN


def _state(engine: Engine) -> look.Part:
    faults = sum(engine.faults.values())
    lost = sum(counts.dropped for counts in engine.counts.values())
    words = [
        (engine.health != "live", engine.health),
        (engine.paused, "paused"),
        (engine.update_open, "updating"),
        (faults > 0, f"{faults} faults"),
        (lost > 0, f"{lost} lost"),
        (engine.without_logprobs > 0, f"{engine.without_logprobs} without logprobs"),
        (bool(engine.differs), f"{MARK} {some(list(engine.differs))}"),
    ]
    said = ", ".join(word for true, word in words if true)
    return said or "ok", look.WARN if said and said != "updating" else look.FAINT


def flags_text(flags: dict[str, FlagState]) -> str:
    """The flags that are not as usual, in few characters: ``pc- lm=p``."""
    unusual = [
        (flag.name, flags[flag.name].value)
        for flag in FLAGS
        if flag.name in flags and flags[flag.name].value not in (None, flag.values[0])
    ]
    return " ".join(look.flag_label(name, value, short=True) for name, value in unusual) or "usual"


# What changes most stands left: a line is sent again up to its last changed cell.
FLEET: tuple[Column[Engine], ...] = (
    Column("engine", 10, _name, sort=lambda e: e.id, right=False),
    Column("tok/s", 6, lambda e: (look.figure(e.tokens_per_s), look.PLAIN), sort=lambda e: e.tokens_per_s),
    Column("run", 4, lambda e: (str(e.running), look.PLAIN), sort=lambda e: e.running),
    Column("wait", 4, lambda e: (str(e.waiting), look.PLAIN), sort=lambda e: e.waiting),
    Column("KV use", 6, lambda e: (look.percent(e.kv_usage), look.PLAIN), sort=lambda e: e.kv_usage, rank=2),
    Column(
        "hits",
        5,
        lambda e: (look.percent(e.prefix_hit_rate), look.PLAIN),
        sort=lambda e: e.prefix_hit_rate,
        metrics=("prefix_hit_rate",),
    ),
    Column("policy", 6, _version, sort=lambda e: e.policy_version),
    Column(
        "lag", 3, lambda e: (look.whole(e.lag), look.WARN if (e.lag or 0) > 1 else look.PLAIN), sort=lambda e: e.lag
    ),
    Column(
        "gap nats",
        8,
        lambda e: (look.figure(e.gap), look.PLAIN),
        sort=lambda e: e.gap,
        metrics=("logp_abs_diff_mean", "engine_z"),
    ),
    Column("flags", 8, lambda e: (flags_text(e.flags), look.PLAIN), right=False),
    Column("vLLM", 9, lambda e: (e.vllm_version, look.PLAIN), sort=lambda e: e.vllm_version, rank=1, right=False),
    Column("step", 8, lambda e: (str(e.step), look.FAINT), sort=lambda e: e.step, rank=5),
    Column("tokens", 6, lambda e: (look.figure(e.tokens), look.FAINT), sort=lambda e: e.tokens, rank=4),
    Column("finished", 8, lambda e: (str(e.finished), look.FAINT), sort=lambda e: e.finished, rank=6),
    Column("aborted", 7, lambda e: (str(e.aborted), look.FAINT), sort=lambda e: e.aborted, rank=7),
    Column("host", 12, lambda e: (e.host, look.FAINT), sort=lambda e: e.host, rank=8, right=False),
    Column("state", 6, _state, rank=3, right=False),
)


def _severity(event: Event) -> look.Part:
    sign, style = look.SEVERITY.get(event.severity, ("?", look.WARN))
    return sign, style


EVENTS: tuple[Column[Event], ...] = (
    Column("time", 8, lambda e: (time.strftime("%H:%M:%S", time.localtime(e.time)), look.FAINT), right=False),
    Column("step", 5, lambda e: (look.whole(e.step), look.FAINT)),
    Column("", 1, _severity, right=False),
    Column("engine", 7, lambda e: (e.engine or "", look.PLAIN), rank=1, right=False),
    Column("what happened", 20, lambda e: (e.text, look.SEVERITY.get(e.severity, ("?", look.PLAIN))[1]), right=False),
)


class Overview(Vertical):
    """All of a run on one screen."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Plots above, tables below."""
        with Container(id="plots"):
            yield from (Plot(chart) for chart in CHARTS)
        yield Table(FLEET, lambda engine: engine.id, empty="no engine has reported yet", id="fleet")
        yield Table(EVENTS, lambda event: str(event.number), empty="nothing happened yet", id="events", log=True)

    def paint(self, view: Snapshot, history: History, sight: Sight, found: tuple[Mark, ...]) -> None:
        """Show the run as it is in ``view``; ``found`` is what happened in it."""
        self._make_room(len(view.engines))
        marks = markers(found, history, sight.axis)
        if (drawn := (history.revision, marks, sight)) != self._drawn:
            self._drawn = drawn
            for plot in self.query(Plot):
                plot.draw(history, marks, sight)
        self.query_one("#fleet", Table).set_items(list(by_id(view.engines.values())))
        self.query_one("#events", Table).set_items(view.events[::-1])

    def on_resize(self) -> None:
        """Fewer plots where it is narrow or low."""
        self._make_room(None)

    def _make_room(self, engines: int | None) -> None:
        """Tables grow with the fleet and the screen; the plots take the rest."""
        fleet, events = self.query_one("#fleet", Table), self.query_one("#events", Table)
        count = len(fleet.items) if engines is None else engines
        height = self.size.height
        fleet_rows = 1 + min(max(count, 1), max(2, height // 4))
        event_rows = max(4, height // 5)
        set_height(fleet, fleet_rows)
        set_height(events, event_rows)
        across = 3 if self.size.width >= 76 else 2 if self.size.width >= 50 else 1
        down = max(1, (height - fleet_rows - event_rows) // LOWEST)
        self.query_one("#plots").styles.grid_size_columns = across
        for place, plot in enumerate(self.query(Plot)):
            plot.set_class(place >= across * down, "spare")


def by_id(engines: Iterable[Engine]) -> list[Engine]:
    """Engines in the order people count: e2 before e10."""
    return sorted(engines, key=lambda engine: (engine.id.rstrip("0123456789"), len(engine.id), engine.id))
