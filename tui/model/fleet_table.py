"""The fleet as a table: the engines now, or when a step closed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rltop.backend.api import Change, Engine, PastState, Snapshot, Step, is_over
from rltop.backend.fleet.facts import some
from rltop.backend.fleet.rounding import matched_gap
from rltop.backend.metrics import Values
from rltop.backend.text.fingerprint_text import MARK
from rltop.backend.text.status import duration
from rltop.collectors.contract.flags import FLAGS
from rltop.tui.model.alarm_focus import AlarmFocus
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column

HEALTH = {"live": ("●", theme.GOOD), "silent": ("◌", theme.WARN), "gone": ("✖", theme.BAD)}


def health_text(health: str) -> str:
    """The health of an engine or trainer as displayed."""
    return "exited" if health == "gone" else health


@dataclass(frozen=True)
class Row:
    """A line of the table. Values unknown for that time are None and shown as ``-``.

    Attributes:
        id: the engine's name.
        engine: its last state by then; None if that was not stored.
        gap: ``logp_abs_diff_mean`` of its tokens in the step. hits: its prefix hit rate.
        matched: the version-matched gap of its tokens in the step.
        lag: versions behind the trainer.
        flags: flag to value; empty if unknown.
        alarm: id of the open alarm that is about it; empty for none.
        ended: the run is over, so an engine that has exited is none that is missing.
    """

    id: str
    engine: Engine | None
    gap: float | None = None
    hits: float | None = None
    lag: float | None = None
    flags: Mapping[str, str | None] = field(default_factory=dict)
    matched: float | None = None
    alarm: str = ""
    ended: bool = False


def now(snapshot: Snapshot) -> list[Row]:
    """The engines now, with the gaps of the last step."""
    last = next(reversed(snapshot.steps.values()), None)
    values = last.engines if last else {}
    ended = is_over(snapshot)
    return [
        replace(_row(engine, engine.gap, engine.lag), matched=matched_gap(values.get(engine.id, {})), ended=ended)
        for engine in by_id(snapshot.engines.values())
    ]


def with_alarm(rows: Iterable[Row], focus: AlarmFocus | None) -> list[Row]:
    """The rows with the open alarm on the engines that it is about."""
    return [replace(row, alarm=focus.alarm) if focus and row.id in focus.engines else row for row in rows]


def at_step(snapshot: Snapshot, step: Step, past: PastState | None) -> list[Row]:
    """The engines when ``step`` closed.

    Args:
        snapshot: of now.
        step: as in ``snapshot``; of an old step only its headline values.
        past: the stored state of that time; None if there is none, or not yet.
    """
    values = {**step.engines, **(past.step.engines if past else {})}
    known = past.engines if past else {}
    names = {**known, **values} if past or values else snapshot.engines
    changes = [change for change in snapshot.changes.values() if change.verb == "set" and change.state == "applied"]
    return by_id(_row_at(name, known.get(name), values.get(name, {}), changes, step.closed) for name in names)


def _row_at(name: str, engine: Engine | None, values: Values, changes: list[Change], when: float) -> Row:
    gap, matched = values.get("logp_abs_diff_mean"), matched_gap(values)
    if engine is not None:
        return replace(_row(engine, gap, engine.lag), matched=matched)
    own = [change for change in changes if change.engine == name]
    return Row(name, None, gap, values.get("prefix_hit_rate"), values.get("lag_mean"), flags_at(own, when), matched)


def _row(engine: Engine, gap: float | None, lag: float | None) -> Row:
    flags = {flag: state.value for flag, state in engine.flags.items()}
    return Row(engine.id, engine, gap, engine.prefix_hit_rate, lag, flags)


def flags_at(changes: Iterable[Change], when: float) -> dict[str, str | None]:
    """Values at wall clock ``when`` of the flags that an engine's applied switches changed."""
    found: dict[str, str | None] = {}
    for change in sorted(changes, key=lambda change: change.closed or change.requested):
        if (change.closed or change.requested) <= when:
            found[change.flag] = change.new
        else:
            found.setdefault(change.flag, change.old)
    return found


def flags_text(flags: Mapping[str, str | None]) -> str:
    """The flags that differ from their defaults, in short form: ``pc- lm=p``; ``default`` if none does."""
    changed = [
        (flag.name, flags[flag.name])
        for flag in FLAGS
        if flag.name in flags and flags[flag.name] not in (None, flag.values[0])
    ]
    return " ".join(theme.flag_label(name, value, short=True) for name, value in changed) or "default"


def _name(row: Row) -> theme.Part:
    engine = row.engine
    sign, style = (" ", theme.PLAIN) if engine is None else HEALTH.get(engine.health, ("?", theme.WARN))
    if row.ended:
        sign, style = "■", theme.FAINT
    if row.alarm:
        return f"{sign}◆{row.id}", theme.BAD
    if engine is not None and engine.health == "live":
        style = theme.WARN if engine.differs else theme.PLAIN
    return f"{sign}{MARK if engine is not None and engine.differs else ' '}{row.id}", style


def _version(engine: Engine) -> str:
    return theme.whole(engine.policy_version) + "?" * engine.is_inferred


def _lag(row: Row) -> theme.Part:
    shown = theme.whole(int(row.lag)) if row.lag is not None and row.lag == int(row.lag) else theme.figure(row.lag, 2)
    if row.engine is not None and row.lag is not None:
        shown += "?" * row.engine.is_inferred
    return shown, theme.WARN if (row.lag or 0) > 1 and row.engine is not None else theme.PLAIN


def _matched(row: Row) -> theme.Part:
    return theme.figure(row.matched), theme.BAD if row.alarm else theme.PLAIN


def _state(row: Row) -> theme.Part:
    engine = row.engine
    if engine is None:
        return (f"◆ {row.alarm}", theme.BAD) if row.alarm else (theme.UNKNOWN, theme.FAINT)
    faults = sum(engine.faults.values())
    lost = sum(counts.dropped for counts in engine.counts.values())
    words = [
        (bool(row.alarm), f"◆ {row.alarm}"),
        (row.ended, "finished"),
        (engine.health != "live" and not row.ended, health_text(engine.health)),
        (engine.paused, "paused"),
        (engine.update_open, "updating"),
        (faults > 0, f"{faults} faults"),
        (lost > 0, f"{lost} lost"),
        (engine.without_logprobs > 0, f"{engine.without_logprobs} without logprobs"),
        (bool(engine.differs), f"{MARK} {some(list(engine.differs))}"),
    ]
    text = ", ".join(word for true, word in words if true)
    style = theme.FAINT if text in ("", "updating", "finished") else theme.BAD if row.alarm else theme.WARN
    return text or "ok", style


def _shown(text: Callable[[Engine], str], style: Any = theme.PLAIN) -> Callable[[Row], theme.Part]:
    return lambda row: (theme.UNKNOWN if row.engine is None else text(row.engine), style)


def _by(key: Callable[[Engine], Any]) -> Callable[[Row], Any]:
    return lambda row: None if row.engine is None else key(row.engine)


# Columns that change often stand side by side: a line is resent from its first to its last changed cell.
# State, gaps and flags are dropped last on a narrow screen.
FLEET: tuple[Column[Row], ...] = (
    Column("engine", 10, _name, sort=lambda row: row.id, right=False),
    Column("tok/s", 6, _shown(lambda e: theme.figure(e.tokens_per_s)), sort=_by(lambda e: e.tokens_per_s), rank=2),
    Column("run", 4, _shown(lambda e: str(e.running)), sort=_by(lambda e: e.running), rank=3),
    Column("wait", 4, _shown(lambda e: str(e.waiting)), sort=_by(lambda e: e.waiting), rank=4),
    Column("KV use", 6, _shown(lambda e: theme.percent(e.kv_usage)), sort=_by(lambda e: e.kv_usage), rank=6),
    Column("hits", 5, lambda row: (theme.percent(row.hits), theme.PLAIN), sort=lambda row: row.hits,
           metrics=("prefix_hit_rate",), rank=5),
    Column("policy", 6, _shown(_version), sort=_by(lambda e: e.policy_version), rank=1),
    Column("lag", 3, _lag, sort=lambda row: row.lag),
    Column("gap nats", 8, lambda row: (theme.figure(row.gap), theme.PLAIN), sort=lambda row: row.gap,
           metrics=("logp_abs_diff_mean", "engine_z")),
    Column("matched", 7, _matched, sort=lambda row: row.matched,
           metrics=("backend_abs_diff_mean", "lag0_abs_diff_mean")),
    Column("flags", 8, lambda row: (flags_text(row.flags) if row.flags else theme.UNKNOWN, theme.PLAIN), right=False),
    Column("vLLM", 9, _shown(lambda e: e.vllm_version), sort=_by(lambda e: e.vllm_version), rank=7, right=False),
    Column("step", 8, _shown(lambda e: str(e.step), theme.FAINT), sort=_by(lambda e: e.step), rank=9),
    Column("tokens", 6, _shown(lambda e: theme.figure(e.tokens), theme.FAINT), sort=_by(lambda e: e.tokens), rank=8),
    Column("finished", 8, _shown(lambda e: str(e.finished), theme.FAINT), sort=_by(lambda e: e.finished), rank=10),
    Column("aborted", 7, _shown(lambda e: str(e.aborted), theme.FAINT), sort=_by(lambda e: e.aborted), rank=11),
    Column("preempt", 7, _shown(lambda e: theme.whole(e.preemptions), theme.FAINT), sort=_by(lambda e: e.preemptions),
           rank=13),
    Column("TTFT", 6, _shown(lambda e: duration(e.ttft), theme.FAINT), sort=_by(lambda e: e.ttft), rank=13),
    Column("ITL", 6, _shown(lambda e: duration(e.itl), theme.FAINT), sort=_by(lambda e: e.itl), rank=13),
    Column("host", 12, _shown(lambda e: e.host, theme.FAINT), sort=_by(lambda e: e.host), rank=12, right=False),
    Column("state", 6, _state, right=False),
)  # fmt: skip


T = TypeVar("T", Engine, Row)


def by_id(engines: Iterable[T]) -> list[T]:
    """Engines in natural order: e2 before e10."""
    return sorted(engines, key=lambda engine: (engine.id.rstrip("0123456789"), len(engine.id), engine.id))
