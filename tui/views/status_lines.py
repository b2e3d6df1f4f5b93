"""The first and the last line of the screen: what state the run and the view are in, and which keys there are."""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style
from textual.strip import Strip

from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import Alarm
from rltop.backend.text.fingerprint_text import MARK
from rltop.tui.model.key_commands import COMMANDS, KeyCommand
from rltop.tui.widgets import theme


@dataclass(frozen=True)
class ViewState:
    """All that the first line says beside the facts of the run.

    ``frozen_at`` is the step at which the view was frozen (-1 before the first), ``behind`` how many steps closed
    since; ``reading`` the step that is read, if not the latest, ``there`` what happened right before it; ``range`` the
    stretch of the x axis that shows, if not the whole run; ``live``: of the view that shows, which shows the run as it
    is all the same; ``slow_hz`` how often a slow link is painted; ``notice`` what whoever started the view has to say;
    ``alarm`` the open one, and ``now`` the run's clock.
    """

    state: str
    age_s: float
    frozen_at: int | None = None
    behind: int = 0
    reading: int | None = None
    there: str = ""
    range: str = ""
    live: bool = False
    slow_hz: float | None = None
    notice: str = ""
    alarm: Alarm | None = None
    now: float = 0.0


def header(run: str, view: Snapshot | None, state: ViewState, width: int) -> Strip:
    """The first line. What is wrong comes before what is so."""
    parts: list[theme.Part] = [(" rltop ", theme.CURSOR), (f" {run} ", theme.STRONG)]
    alarm = _alarm(run, view, state)
    if alarm:
        parts += [(f" {alarm} ", theme.ALARM), (" ", theme.PLAIN)]
    elif state.state == "replay":
        parts += [("▶ ", theme.WARN), ("replay  ", theme.PLAIN)]
    else:
        parts += [("● ", theme.GOOD), ("live  ", theme.PLAIN)]
    if state.alarm is not None:
        parts += open_alarm(state.alarm, state.now)
    if state.range:
        parts.append((f"{state.range}  ", theme.MARK))
    if state.notice:
        parts.append((f"{state.notice}  ", theme.WARN))
    if view is not None:
        for name, value, style in facts(view):
            fact = [(f"{name} ", theme.FAINT), (f"{value}  ", style)]
            if theme.length([*parts, *fact]) - 2 <= width:
                parts += fact
    return theme.row(parts, width)


def open_alarm(alarm: Alarm, now: float) -> list[theme.Part]:
    """An alarm, on every view until it is over; one that somebody has taken note of, or silenced, is quieter."""
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    said = f"{alarm.id} {'' if alarm.sure else 'perhaps '}{alarm.cause} ({alarm.code}){since}"
    if alarm.acknowledged:
        return [(f"▲ {said} ", theme.WARN), (f"ack {alarm.acknowledged}  ", theme.FAINT)]
    if alarm.is_muted(now):
        return [(f"▲ {said} ", theme.WARN), ("silent  ", theme.FAINT)]
    return [(f" ✖ {said} ", theme.ALARM + theme.BAD), (" ", theme.PLAIN)]


def _alarm(run: str, view: Snapshot | None, state: ViewState) -> str:
    said = []
    if state.state == "lost":
        said.append(f"✖ hub lost {theme.duration(state.age_s)}: the run goes on; `rltop hub {run}` brings one back")
    elif state.state not in ("live", "replay"):
        said.append("◌ connecting: waiting for the hub" if view is None else "◌ reconnecting")
    if state.frozen_at is not None:
        at = f"at step {state.frozen_at}" if state.frozen_at >= 0 else "before the first step"
        said.append(f"‖ frozen {at}" + (f", +{state.behind} new" if state.behind else ""))
    if state.reading is not None:
        said.append(f"reading step {state.reading}" + (f" {state.there}" if state.there else ""))
    if state.live and (state.frozen_at is not None or state.reading is not None):
        said.append("this view is live")
    if state.slow_hz is not None:
        said.append(f"▲ link slow, painting at {state.slow_hz:.1f} Hz")
    return " · ".join(said)


def facts(view: Snapshot) -> list[tuple[str, str, Style]]:
    """Name, value and style of what the first line says of the run, the most important first."""
    live = sum(engine.health == "live" for engine in view.engines.values())
    total = len(view.engines)
    last = next(reversed(view.steps.values()), None)
    trainer = view.trainer
    step = trainer.step if trainer.step is not None else last.step if last else None
    found = [
        ("step", theme.whole(step), theme.STRONG),
        ("policy", theme.whole(trainer.policy_version), theme.PLAIN),
        ("engines", f"{live}/{total}", theme.PLAIN if live == total and total else theme.WARN),
    ]
    if differing := sorted({fact for engine in view.engines.values() for fact in engine.differs}):
        found.append((MARK, f"{len(differing)} fact{'s' * (len(differing) > 1)}", theme.WARN))
    timers = [timer for engine in view.engines.values() for timer in engine.timers]
    if paused := sum(timer.verb == "pause" for timer in timers):  # our own; every weight update pauses for a moment
        found.append(("paused", str(paused), theme.WARN))
    if timers:
        found.append(("timers", str(len(timers)), theme.WARN))
    if trainer.health != "live":
        found.append(("trainer", trainer.health, theme.WARN))
    counts = [*trainer.counts.values(), *(c for engine in view.engines.values() for c in engine.counts.values())]
    lost = sum(kind.dropped for kind in counts)
    if lost:
        found.append(("records lost", str(lost), theme.WARN))
    if last is not None:
        joined = last.values.get("joined_fraction")
        found.append(("joined", theme.percent(joined), theme.WARN if (joined or 0) < 0.99 else theme.PLAIN))
    rates = [e.tokens_per_s for e in view.engines.values() if e.tokens_per_s is not None and e.health == "live"]
    found.append(("tok/s", theme.figure(sum(rates)) if rates else theme.UNKNOWN, theme.PLAIN))
    if last is not None:
        found.append(("tokens/step", theme.figure(last.values.get("tokens")), theme.PLAIN))
    # Minutes: a second that ticks would be the only thing that moves on a quiet screen.
    found.append(("up", f"{max(view.time - view.started, 0) // 60:.0f}m", theme.FAINT))
    return found


def footer(where: str, *, control: bool, width: int) -> Strip:
    """The last line: the keys worth knowing, the view's own first, those not allowed greyed; what does not fit is out.

    How to leave comes last and fits always.
    """
    shown = [one for one in COMMANDS if one.footer and one.id != where and one.view in ("", where)]
    shown.sort(key=lambda command: not command.view)
    *others, leave = (_key(command, control=control) for command in shown)
    parts: list[theme.Part] = []
    for key in others:
        parts += key if theme.length([*parts, *key, *leave]) - 1 <= width else []
    parts += [*leave[:-1], (leave[-1][0].rstrip(), theme.FAINT)]
    gate = [] if control else [(" read-only", theme.WARN)]
    room = width - theme.length(parts) - theme.length(gate)
    return theme.row([*parts, (" " * room, theme.PLAIN), *gate] if room >= 0 else parts, width)


def _key(command: KeyCommand, *, control: bool) -> list[theme.Part]:
    off = command.needs_control and not control
    return [
        (f" {command.shown.split()[0]}", theme.FAINT if off else theme.STRONG),
        (f" {command.footer} ", theme.FAINT),
    ]
