"""The state of a run in one sentence, and what a starting run is waiting for. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.style import Style

from rltop.backend.api import Engine, Snapshot, Step, is_over
from rltop.backend.api.alarm import Alarm, short_name
from rltop.backend.fleet.facts import some
from rltop.backend.fleet.rounding import matched_gap
from rltop.tui.model.alarm_focus import alarm_at
from rltop.tui.model.fleet_table import by_id, health_text
from rltop.tui.widgets import theme


@dataclass(frozen=True)
class RunState:
    """The state in words.

    Attributes:
        sign, style: of the state; the sign distinguishes states without colours.
        text: the state.
        details: figures that it rests on, longest first; those that fit are shown.
    """

    sign: str
    style: Style
    text: str
    details: tuple[str, ...] = ()


def run_state(
    snapshot: Snapshot | None, floor: float | None, *, connection: str = "live", step: Step | None = None
) -> RunState:
    """The state of the run now, or after a step.

    Args:
        snapshot: of the run; None before the first.
        floor: of the version-matched gap; None where unknown.
        connection: state of the client.
        step: a step of the past; None for now.
    """
    if snapshot is None:
        return RunState("◌", theme.WARN, "waiting for the hub of this run")
    if step is not None:
        return _past(snapshot, step, floor)
    last = next(reversed(snapshot.steps.values()), None)
    if is_over(snapshot) and last is not None:
        return _over(snapshot, last, hub_ended=connection == "lost")
    if snapshot.alarm is not None:
        return _alarm(snapshot.alarm, last, floor, snapshot.time)
    if (missing := _missing(snapshot)) or last is None:
        return RunState("◌", theme.WARN, f"waiting for {missing or 'the first training step'}")
    if trouble := _trouble(snapshot):
        return RunState("▲", theme.WARN, trouble)
    return _quiet(last, floor)


def awaited(snapshot: Snapshot | None, run: str) -> Iterator[tuple[bool, str, str]]:
    """What a run needs before its first step: whether it is there, its name, and its state or how to start it."""
    yield snapshot is not None, "hub", "answers" if snapshot else f"none yet: `rltop hub {run}` starts it"
    engines = by_id(snapshot.engines.values()) if snapshot else []
    start = f"none yet: `rltop attach {run}`, or start vLLM with RLTOP_RUN={run}"
    yield bool(engines), "engines", f"{some([engine.id for engine in engines])}" if engines else start
    trainer = snapshot is not None and snapshot.trainer.health == "live"
    yield trainer, "trainer", "reports" if trainer else "none yet: it needs a TrainerCollector, see `rltop integrate`"
    yield False, "training step", "the first one fills the plots" if engines and trainer else "none yet"


def _missing(snapshot: Snapshot) -> str:
    """The part of a starting run that has not reported."""
    absent = snapshot.trainer.health == "absent"
    if not snapshot.engines:
        return "engines and the trainer" if absent else "engines"
    return "the trainer" if absent else ""


def _over(snapshot: Snapshot, last: Step, *, hub_ended: bool) -> RunState:
    alarm = snapshot.alarm
    state = f"finished after step {last.step}" + (", and its hub has ended" if hub_ended else "")
    if alarm is not None:
        return RunState("■", theme.WARN, f"{state}, with an open alarm: {_named(alarm)}")
    raised = len(snapshot.alarms)
    return RunState("■", theme.GOOD, state, (f"{raised or 'no'} alarm{'s' * (raised != 1)} raised, none open",))


def _alarm(alarm: Alarm, last: Step | None, floor: float | None, now: float) -> RunState:
    text = _named(alarm)
    details = () if last is None else _gap_texts(_gap_of(last, alarm), floor)
    if alarm.acknowledged:
        return RunState("▲", theme.WARN, f"{text}, acknowledged by {alarm.acknowledged}", details)
    if alarm.is_muted(now):
        return RunState("▲", theme.WARN, f"{text}, silenced", details)
    return RunState("✖", theme.ALARM + theme.BAD, text, details)


def _named(alarm: Alarm) -> str:
    """Id, cause, engines and first step."""
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    where = some(alarm.engines) if alarm.engines else "all engines"
    return f"{alarm.id} {short_name(alarm)} on {where}{since}"


def _gap_of(step: Step, alarm: Alarm) -> float | None:
    """The largest version-matched gap of the alarm's engines in the step."""
    gaps = [gap for name in alarm.engines if (gap := matched_gap(step.engines.get(name, {}))) is not None]
    return max(gaps, default=None) if gaps else matched_gap(step.values)


def _gap_texts(gap: float | None, floor: float | None) -> tuple[str, ...]:
    if gap is None or floor is None:
        return ("the version-matched gap is unknown",)
    figures = f"gap {theme.figure(gap)}", f"floor {theme.figure(floor)}"
    return f"version-matched {figures[0]} nats, {figures[1]}", ", ".join(figures), theme.figure(gap)


def _trouble(snapshot: Snapshot) -> str:
    """Parts of the run that are missing; empty if none is."""
    words = []
    if snapshot.trainer.health != "live":
        words.append(f"the trainer {_is(snapshot.trainer.health)}")
    for health in ("silent", "gone"):
        names = [engine.id for engine in _of_health(snapshot, health)]
        if names:
            words.append(f"{some(names)} {_is(health, many=len(names) > 1)}")
    return ", ".join(words)


def _is(health: str, *, many: bool = False) -> str:
    if health == "gone":
        return f"{'have' if many else 'has'} exited"
    return f"{'are' if many else 'is'} {health_text(health)}"


def _of_health(snapshot: Snapshot, health: str) -> list[Engine]:
    return [engine for engine in by_id(snapshot.engines.values()) if engine.health == health]


def _quiet(last: Step, floor: float | None) -> RunState:
    gap = matched_gap(last.values)
    if gap is None or floor is None:
        return RunState("·", theme.PLAIN, "no alarm", _gap_texts(gap, floor))
    if gap > floor:
        return RunState("▲", theme.WARN, "no alarm, but the last step is above the floor", _gap_texts(gap, floor))
    return RunState("✔", theme.GOOD, "healthy: no alarm", _gap_texts(gap, floor))


def _past(snapshot: Snapshot, step: Step, floor: float | None) -> RunState:
    alarm = alarm_at(snapshot, step.step)
    at = f"step {step.step} of the past: "
    if alarm is None:
        return RunState("◂", theme.MARK, f"{at}no alarm then", _gap_texts(matched_gap(step.values), floor))
    return RunState("◂", theme.MARK, f"{at}{_named(alarm)}", _gap_texts(_gap_of(step, alarm), floor))
