"""The first lines and the last line of the screen: state of the run and of the dashboard, and the keys."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from textual.strip import Strip

from rltop.backend.api import Snapshot, is_over
from rltop.backend.text.fingerprint_text import MARK
from rltop.tui.model.fleet_table import health_text
from rltop.tui.model.key_commands import KeyCommand
from rltop.tui.model.run_state import run_state
from rltop.tui.model.state import DashboardState
from rltop.tui.widgets import theme


def header(
    run: str,
    state: DashboardState,
    width: int,
    *,
    live: bool = False,
    slow_hz: float | None = None,
    notice: str = "",
    control: bool = False,
) -> Strip:
    """The first line. Problems come before facts.

    Args:
        run: name of the run.
        state: of the dashboard.
        width: cells.
        live: the current view shows the run as it is now, also while frozen.
        slow_hz: repaints per second on a slow terminal; None if it keeps up.
        notice: additional text; empty for none.
        control: the dashboard may change the run.
    """
    parts: list[theme.Part] = [(" rltop ", theme.CURSOR), (f" {run} ", theme.STRONG)]
    warning = _warning(run, state, live=live, slow_hz=slow_hz)
    if warning:
        parts += [(f" {warning} ", theme.ALARM), (" ", theme.PLAIN)]
    elif state.client.state == "replay":
        parts += [("▶ replay  ", theme.WARN)]
    elif state.live is not None and is_over(state.live):
        parts += [("■ finished  ", theme.PLAIN)]
    else:
        parts += [("● ", theme.GOOD), ("live  ", theme.PLAIN)]
    if control:
        parts += [("⚑ control  ", theme.WARN)]
    if visible := state.viewport.range_text(state.history):
        parts.append((f"{visible}  ", theme.MARK))
    reference = state.history.reference
    if notice := ", ".join(filter(None, (notice, reference.text if reference else ""))):
        parts.append((f"{notice}  ", theme.WARN))
    if state.shown is not None:
        shown = facts(state.shown) if state.viewport.cursor is None else facts_at(state)
        for name, value, style in shown:
            fact = [(f"{name} ", theme.FAINT), (f"{value}  ", style)]
            if theme.length([*parts, *fact]) - 2 <= width:
                parts += fact
    return theme.row(parts, width)


def sentence(state: DashboardState, width: int) -> Strip:
    """The second line: the state of the run in words, now or at the step under the cursor; on every view."""
    index = None if state.viewport.cursor is None else state.history.index(state.viewport.cursor)
    step = None if index is None else state.history.steps[index]
    now = run_state(state.shown, state.floor, connection=state.client.state, step=step)
    parts = [(f" {now.sign} {now.text} ", now.style)]
    room = width - theme.length(parts) - 1
    parts += [(f" {detail}", theme.PLAIN) for detail in now.details if len(detail) <= room][:1]
    return theme.row(parts, width)


def facts_at(state: DashboardState) -> list[tuple[str, str, Style]]:
    """Name, value and style of the facts of the step under the cursor; nothing of the run now."""
    index = state.history.index(state.viewport.cursor or 0)
    if index is None:
        return []
    step = state.history.steps[index]
    return [
        ("policy", theme.whole(step.policy_version), theme.PLAIN),
        ("joined", theme.percent(step.values.get("joined_fraction")), theme.PLAIN),
        ("tokens/step", theme.figure(step.values.get("tokens")), theme.PLAIN),
    ]


def _warning(run: str, state: DashboardState, *, live: bool, slow_hz: float | None) -> str:
    """Everything that makes the screen differ from the run now; empty if nothing does."""
    client, cursor = state.client, state.viewport.cursor
    texts = []
    if client.state == "lost" and not (state.live is not None and is_over(state.live)):
        age = theme.duration(client.age_s)
        texts.append(f"✖ hub lost {age}: the run continues; `rltop hub {run}` starts a new one")
    elif client.state not in ("live", "replay", "lost"):
        texts.append("◌ connecting: waiting for the hub" if state.shown is None else "◌ reconnecting")
    if state.frozen is not None:
        texts.append(_frozen_text(state.frozen, state.live))
    if cursor is not None:
        marks = state.marks_at_cursor()
        texts.append(f"reading step {cursor}" + (f" {marks}" if marks else ""))
    if live and (state.frozen is not None or cursor is not None):
        texts.append("this view is live")
    if slow_hz is not None:
        texts.append(f"▲ slow terminal, painting at {slow_hz:.1f} Hz")
    return " · ".join(texts)


def _frozen_text(frozen: Snapshot, live: Snapshot | None) -> str:
    step = max(frozen.steps, default=-1)
    newer = max(live.steps if live else (), default=-1) - step
    at = f"at step {step}" if step >= 0 else "before the first step"
    return f"‖ frozen {at}" + (f", +{newer} new" if newer else "")


def facts(snapshot: Snapshot) -> list[tuple[str, str, Style]]:
    """Name, value and style of the facts of the run, the most important first."""
    live = sum(engine.health == "live" for engine in snapshot.engines.values())
    total = len(snapshot.engines)
    last = next(reversed(snapshot.steps.values()), None)
    trainer = snapshot.trainer
    step = trainer.step if trainer.step is not None else last.step if last else None
    over = is_over(snapshot)
    found = [
        ("step", theme.whole(step), theme.STRONG),
        ("policy", theme.whole(trainer.policy_version), theme.PLAIN),
        ("engines", str(total) if over else f"{live}/{total}",
         theme.PLAIN if over or (live == total and total) else theme.WARN),
    ]  # fmt: skip
    if differing := sorted({fact for engine in snapshot.engines.values() for fact in engine.differs}):
        found.append((MARK, f"{len(differing)} fact{'s' * (len(differing) > 1)}", theme.WARN))
    timers = [timer for engine in snapshot.engines.values() for timer in engine.timers]
    if paused := sum(timer.verb == "pause" for timer in timers):  # our own; every weight update pauses for a moment
        found.append(("paused", str(paused), theme.WARN))
    if timers:
        found.append(("timers", str(len(timers)), theme.WARN))
    if trainer.health != "live" and not over:
        found.append(("trainer", health_text(trainer.health), theme.WARN))
    counts = [*trainer.counts.values(), *(c for engine in snapshot.engines.values() for c in engine.counts.values())]
    lost = sum(kind.dropped for kind in counts)
    if lost:
        found.append(("records lost", str(lost), theme.WARN))
    if last is not None:
        joined = last.values.get("joined_fraction")
        found.append(("joined", theme.percent(joined), theme.WARN if (joined or 0) < 0.99 else theme.PLAIN))
    rates = [e.tokens_per_s for e in snapshot.engines.values() if e.tokens_per_s is not None and e.health == "live"]
    if not over:
        found.append(("tok/s", theme.figure(sum(rates)) if rates else theme.UNKNOWN, theme.PLAIN))
    if last is not None:
        found.append(("tokens/step", theme.figure(last.values.get("tokens")), theme.PLAIN))
    # In minutes: seconds would be the only thing that changes on a quiet screen.
    found.append(("lasted" if over else "up", f"{max(snapshot.time - snapshot.started, 0) // 60:.0f}m", theme.FAINT))
    return found


def footer(commands: Sequence[KeyCommand], view: str, *, control: bool, width: int) -> Strip:
    """The last line: the most useful keys, the view's own first, unavailable ones greyed; keys that do not fit are cut.

    The key to detach comes last and is always shown.
    """
    shown = [one for one in commands if one.footer and one.id != view and one.view in ("", view)]
    shown.sort(key=lambda command: not command.view)
    *others, leave = (_key(command, control=control) for command in shown)
    parts: list[theme.Part] = []
    for key in others:
        parts += key if theme.length([*parts, *key, *leave]) - 1 <= width else []
    parts += [*leave[:-1], (leave[-1][0].rstrip(), theme.FAINT)]
    gate = [(" control" if control else " read-only", theme.WARN)]
    room = width - theme.length(parts) - theme.length(gate)
    return theme.row([*parts, (" " * room, theme.PLAIN), *gate] if room >= 0 else parts, width)


def _key(command: KeyCommand, *, control: bool) -> list[theme.Part]:
    off = command.needs_control and not control
    return [
        (f" {command.shown.split()[0]}", theme.FAINT if off else theme.STRONG),
        (f" {command.footer} ", theme.FAINT),
    ]
