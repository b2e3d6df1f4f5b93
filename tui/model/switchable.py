"""Flags and actions with their state on the fleet and on each engine: the rows of the Control view. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rltop.backend.api import TERMINAL, Change, Engine, Snapshot
from rltop.backend.fleet.facts import shown
from rltop.collectors.contract.actions import ACTIONS, Action, subject_of
from rltop.collectors.contract.flags import FLAGS, Flag
from rltop.collectors.contract.wire import FlagState, Timer
from rltop.tui.model.fleet_table import by_id, health_text

ABSENT = FlagState(None, False, "this engine does not report the flag")

FOREIGN_PAUSE = "paused by the trainer or another client, which has to resume it"

MIXED = "mixed"
"""Value of a fleet whose live engines have different values."""


@dataclass(frozen=True)
class Choice:
    """A value or action that can be requested.

    Attributes:
        verb: as on the wire.
        word: the value of a flag, or the word of an action.
        effect: the expected effect.
        cost: the cost; empty where the effect includes it.
        guard_s: it always auto-reverts after this many seconds; None: only on request.
        max_s: the longest auto-revert that can be requested; 0: none.
    """

    verb: str
    word: str
    effect: str
    cost: str = ""
    guard_s: float | None = None
    max_s: float = 0.0


@dataclass(frozen=True)
class Subject:
    """The object of a command: a flag, or the subject of actions.

    Attributes:
        name: as in the table of flags or of actions.
        summary: one line; empty where the choices explain it.
        choices: everything that can be requested.
        flag: the flag, if it is one.
    """

    name: str
    summary: str
    choices: tuple[Choice, ...]
    flag: Flag | None = None


def _of_flag(flag: Flag) -> Subject:
    choices = (Choice("set", value, flag.effect, flag.cost, max_s=float("inf")) for value in flag.values)
    return Subject(flag.name, flag.summary, tuple(choices), flag)


def _of_actions(name: str, actions: Sequence[Action]) -> Subject:
    choices = (
        Choice(a.verb, a.word, f"{a.word}: {a.summary}. {a.effect}", "", a.guard_s, a.max_guard_s) for a in actions
    )
    return Subject(name, "", tuple(choices))


SUBJECTS: tuple[Subject, ...] = (
    *(_of_flag(flag) for flag in FLAGS),
    *(
        _of_actions(name, [action for action in ACTIONS if action.subject == name])
        for name in dict.fromkeys(action.subject for action in ACTIONS)
    ),
)


@dataclass(frozen=True)
class Target:
    """One subject on the fleet or on one engine.

    Attributes:
        subject: the flag, or the subject of actions.
        engine: the engine; None for the whole fleet.
        value: as read back; ``MIXED`` where live engines differ, None where unknown.
        detail: form of the value; for a fleet, where all engines share it.
        choices: what can be requested here now.
        engines: ids of the live engines that a command would reach.
        in_flight: requests running or waiting there.
        refusal: why nothing can be changed; empty if something can.
        refusing: for a fleet, the live engines that refuse, each with its reason.
        last: the latest change here; for a fleet, of the engine that is furthest behind.
        timer: the next auto-revert; ``left_s`` is the time left in seconds.
        timed: ids of the engines that hold such a timer.
        differs: mismatches of the value, by engine (``rltop.backend.fleet.facts``).
    """

    subject: Subject
    engine: str | None
    value: str | None
    detail: str
    choices: tuple[Choice, ...]
    engines: tuple[str, ...]
    in_flight: int
    refusal: str
    refusing: tuple[str, ...] = ()
    last: Change | None = None
    timer: Timer | None = None
    left_s: float = 0.0
    timed: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identifies the row while its values change."""
        return f"{self.subject.name}@{self.engine or ''}"

    @property
    def where(self) -> str:
        """``fleet`` or the engine's id."""
        return "fleet" if self.engine is None else self.engine

    @property
    def now(self) -> str:
        """The value with its form."""
        return "-" if self.value is None else shown(self.value, self.detail)

    @property
    def signature(self) -> tuple[str, ...]:
        """Value, refusal, pending revert and state of a running command; engines with equal signatures fold together.

        A pause by another client is left out: every weight update causes one, and rows must not come and go with it.
        """
        if self.refusal == FOREIGN_PAUSE:
            return "running", "", "", ""
        running = self.last.state if self.last is not None and self.last.state not in TERMINAL else ""
        return self.now, self.refusal, self.timer.back_to if self.timer is not None else "", running


def targets(snapshot: Snapshot) -> list[Target]:
    """Every subject on the fleet and on each engine, in the order of the tables of flags and actions."""
    engines = by_id(snapshot.engines.values())
    # A superseded revert changed nothing: any other change is preferred.
    in_order = sorted(snapshot.changes.values(), key=lambda change: change.state != "superseded")
    last = {(subject_of(change.verb, change.flag), change.engine): change for change in in_order}
    found = []
    for subject in SUBJECTS:
        each = [_on_engine(subject, engine, last.get((subject.name, engine.id))) for engine in engines]
        found += [_on_fleet(subject, each), *each]
    return [replace(t, left_s=t.timer.at - snapshot.time) if t.timer is not None else t for t in found]


def fold(rows: Sequence[Target]) -> list[Target]:
    """The rows of the fleet, and of the engines that differ from the majority."""
    names = dict.fromkeys(target.subject.name for target in rows)
    live = [target for target in rows if target.engine and target.engines]
    majority = {name: _majority([target for target in live if target.subject.name == name]) for name in names}
    return [
        target
        for target in rows
        if target.engine is None
        or target.differs
        or (target.engines and target.signature != majority[target.subject.name])
    ]


def _majority(each: Sequence[Target]) -> tuple[str, ...]:
    """The signature of more than half of the live engines; empty if there is none, so that every engine differs."""
    seen = [target.signature for target in each]
    most = max(seen, key=seen.count, default=())
    return most if 2 * seen.count(most) > len(seen) else ()


def _on_engine(subject: Subject, engine: Engine, last: Change | None) -> Target:
    live = engine.health == "live"
    value, detail, choices, refusal = _reading(subject, engine)
    timers = [timer for timer in engine.timers if subject_of(timer.verb, timer.flag) == subject.name]
    mismatch = engine.differs.get(subject.name)
    return Target(
        subject,
        engine.id,
        value,
        detail,
        choices,
        engines=(engine.id,) if live else (),
        in_flight=engine.running + engine.waiting if live else 0,
        refusal=refusal if live else f"engine is {health_text(engine.health)}",
        last=last,
        timer=timers[0] if timers else None,
        timed=(engine.id,) if timers else (),
        differs=(f"{engine.id}: {mismatch}",) if mismatch else (),
    )


def _reading(subject: Subject, engine: Engine) -> tuple[str | None, str, tuple[Choice, ...], str]:
    """Value, form, choices and refusal of a subject on one engine."""
    if subject.flag is not None:
        state = engine.flags.get(subject.name, ABSENT)
        has_forms = bool(subject.flag.strict) and state.value != subject.flag.values[0]  # the same value, other form
        choices = tuple(choice for choice in subject.choices if choice.word != state.value or has_forms)
        return state.value, state.detail, choices, "" if state.switchable else state.reason or "not switchable"
    if not any(action.value for action in ACTIONS if action.subject == subject.name):
        return None, "", subject.choices, ""
    ours = any(timer.verb == "pause" for timer in engine.timers)
    verb = "resume" if engine.paused else "pause"
    choices = tuple(choice for choice in subject.choices if choice.verb == verb)
    return (
        "paused" if engine.paused else "running",
        "",
        choices,
        FOREIGN_PAUSE if engine.paused and not ours else "",
    )


def _on_fleet(subject: Subject, each: list[Target]) -> Target:
    live = [target for target in each if target.engines]
    values = {target.value for target in live}
    forms = {target.detail for target in live}
    fixed = [target for target in live if target.refusal]
    able = [target for target in live if not target.refusal]
    changes = [target.last for target in live if target.last is not None]
    newest = max((change.requested for change in changes), default=0.0)
    timers = [target.timer for target in live if target.timer is not None]
    refusal = "no live engine" if not live else f"on no engine: {fixed[0].refusal}" if not able else ""
    return Target(
        subject,
        None,
        values.pop() if len(values) == 1 else MIXED if values else None,
        forms.pop() if len(forms) == 1 else "",
        tuple(choice for choice in subject.choices if any(choice in target.choices for target in able)),
        engines=tuple(engine for target in live for engine in target.engines),
        in_flight=sum(target.in_flight for target in live),
        refusal=refusal,
        refusing=tuple(f"{target.engine}: {target.refusal}" for target in fixed),
        last=min((change for change in changes if change.requested == newest), key=_progress, default=None),
        timer=min(timers, key=lambda timer: timer.at, default=None),
        timed=tuple(engine for target in live for engine in target.timed),
        differs=tuple(mismatch for target in live for mismatch in target.differs),
    )


_ORDER = ("requested", "accepted", "draining", "timed_out", "refused", "superseded", "applied")


def _progress(change: Change) -> int:
    return _ORDER.index(change.state) if change.state in _ORDER else 0
