"""The questions before a flag is switched, an action is done, a timer is stopped, or a change is undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from rltop.backend.api import Change, Snapshot
from rltop.backend.util.durations import span
from rltop.tui.dialogs.confirm_dialog import INNER, ConfirmPlain, Facts, Question
from rltop.tui.model.changes import deed, open_timers, together, undoable
from rltop.tui.model.switchable import Choice, Target
from rltop.tui.widgets import theme

TIMES: tuple[tuple[str, float], ...] = (("1m", 60.0), ("10m", 600.0), ("1h", 3600.0))
"""After how long a change can be taken back by itself."""

FOR_GOOD = "good"

HALF = 0.5


@dataclass(frozen=True)
class Scope:
    """Where a command goes: these engines, or a share of the live ones that the hub picks."""

    name: str
    engines: tuple[str, ...] = ()
    fraction: float | None = None


@dataclass(frozen=True)
class CommandRequest:
    """A switch or an action as it was confirmed; see ``view.AskSet`` and ``view.AskAct``."""

    choice: Choice
    place: Scope
    strict: bool = False
    revert_s: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Option:
    """One line of options: its key, its name, what can be chosen."""

    key: str
    name: str
    labels: tuple[str, ...]


def places(target: Target) -> tuple[Scope, ...]:
    """Where the command can go, the line under the cursor first: a fleet, its canary half, each engine that can."""
    refusing = {said.partition(":")[0] for said in target.refusing}
    each = tuple(Scope(engine, (engine,)) for engine in target.engines if engine not in refusing)
    if target.engine is not None:
        return each
    half = (Scope("half", fraction=HALF),) if target.subject.flag is not None and len(target.engines) > 1 else ()
    return (Scope("fleet", target.engines), *half, *(each if len(target.engines) > 1 else ()))


def times(choice: Choice) -> tuple[tuple[str, float | None], ...]:
    """After how long it can be taken back by itself; what has a guard timer always is."""
    if not choice.max_s:
        return ()
    within = [time for time in TIMES if time[1] <= choice.max_s]
    return (*(() if choice.guard_s is not None else ((FOR_GOOD, None),)), *within)


class Confirm(Question[CommandRequest]):
    """Asks before a flag is switched or an action is done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "next('v')", "Other value"),
        Binding("w", "next('w')", "Other place"),
        Binding("f", "next('f')", "Other time"),
        Binding("s", "next('s')", "Other form"),
    ]

    def __init__(self, target: Target, offered: CommandRequest | None = None) -> None:
        """``offered``: begin with this choice, place and reason."""
        super().__init__()
        self._target = target
        self._chosen = dict.fromkeys("vwfs", 0)
        self._places = places(target)
        if offered is not None:
            self._places = tuple(dict.fromkeys((offered.place, *self._places)))
            self._chosen["v"] = target.choices.index(offered.choice)
            self.reason = offered.why

    @property
    def _choice(self) -> Choice:
        return self._target.choices[self._chosen["v"]]

    @property
    def _place(self) -> Scope:
        return self._places[self._chosen["w"]]

    def _options(self) -> list[Option]:
        flag = self._target.subject.flag
        options = [
            Option("v", "value", tuple(choice.word for choice in self._target.choices)),
            Option("w", "where", tuple(place.name for place in self._places)),
            Option("f", "for", tuple(label for label, _ in times(self._choice))),
            Option("s", "form", ("usual", "strict") if flag is not None and self._has_forms() else ()),
        ]
        return [option for option in options if len(option.labels) > 1]

    def _has_forms(self) -> bool:
        flag = self._target.subject.flag
        return flag is not None and bool(flag.strict) and self._choice.word != flag.values[0]

    def head(self) -> Text:
        """What is about to happen, and each option with its choices."""
        target, choice = self._target, self._choice
        if choice.verb == "set":
            text = Text.assemble(
                "Switch ",
                (target.subject.name, "bold"),
                f" from {target.now} to ",
                (choice.word, "bold reverse"),
                " ?\n",
            )
        else:
            text = Text.assemble((choice.word.capitalize(), "bold reverse"), f" {target.subject.name} ?\n")
        for option in self._options():
            text.append(f"\n{option.key:>4}  {option.name:<7}")
            for label in _window(option.labels, self._chosen[option.key]):
                chosen = label == option.labels[self._chosen[option.key]]
                text.append(f" {label} ", "bold reverse" if chosen else "")
        return text

    def facts(self) -> Facts:
        """Where it goes, what it does and costs, what stands against it, how it ends."""
        target, choice, place = self._target, self._choice, self._place
        flag = target.subject.flag
        strict = flag.strict if flag is not None and self._has_forms() and self._chosen["s"] else ""
        needs = (
            f"{', '.join(flag.preconditions)}: each is checked first" if flag is not None and flag.preconditions else ""
        )
        found = [
            ("reaches", _reach(target, place)), ("expect", choice.effect), ("cost", choice.cost), ("strict", strict),
            *(("refuses", said) for said in target.refusing), ("ends", self._ends()), ("needs", needs),
        ]  # fmt: skip
        return [(name, said) for name, said in found if said]

    def _ends(self) -> str:
        choice, revert_s = self._choice, self._revert_s()
        if revert_s is not None:
            keeps = "; K keeps it" if choice.verb == "set" else ""
            return f"the engine takes it back by itself after {span(revert_s)}, whatever dies meanwhile{keeps}"
        return "u brings it back" if choice.verb == "set" else "at once"

    def _revert_s(self) -> float | None:
        offered = times(self._choice)
        return offered[self._chosen["f"]][1] if offered else None

    def answer(self) -> CommandRequest:
        """The wish as it stands."""
        strict = self._has_forms() and bool(self._chosen["s"])
        return CommandRequest(self._choice, self._place, strict, self._revert_s(), self.why)

    def verb(self) -> str:
        """As people say it."""
        return "switch" if self._choice.verb == "set" else self._choice.word

    def action_next(self, key: str) -> None:
        """The next choice of an option."""
        option = next((option for option in self._options() if option.key == key), None)
        if option is not None:
            self._chosen[key] = (self._chosen[key] + 1) % len(option.labels)
            if key == "v":
                self._chosen |= {"f": 0, "s": 0}
            self.redraw()


def _reach(target: Target, place: Scope) -> str:
    kept = f"{target.in_flight} requests in flight when last heard of; all are kept"
    if place.fraction is not None:
        return f"half of {len(target.engines)} live engines, never all: the effect is held against the others"
    if place.name == "fleet":
        return f"{len(target.engines)} live: {', '.join(target.engines)}; {kept}"
    alone = f"engine{'s' * (len(place.engines) > 1)} {place.name} alone"
    return alone + (f"; {kept}" if target.engine else "")


def _window(labels: tuple[str, ...], chosen: int, room: int = INNER - 16) -> list[str]:
    """The labels that fit beside the chosen one, with dots where some are left out."""
    low = high = chosen
    while True:
        grown = [(low - 1, high), (low, high + 1)]
        fits = [
            (a, b)
            for a, b in grown
            if a >= 0 and b < len(labels) and sum(len(x) + 2 for x in labels[a : b + 1]) <= room
        ]
        if not fits:
            return [*["…"] * (low > 0), *labels[low : high + 1], *["…"] * (high < len(labels) - 1)]
        low, high = fits[-1]


@dataclass(frozen=True)
class CommandQuestion:
    """A question about a command that was given: its id, itself in words, and the question."""

    command: str
    what: str
    question: ConfirmPlain


def keep_question(view: Snapshot, command: str) -> CommandQuestion | None:
    """Whether to stop the timers of ``command``; None if none runs."""
    timers = [(engine, timer) for engine, timer in open_timers(view, command) if timer.verb == "set"]
    if not timers:
        return None
    engines, timer = ", ".join(engine for engine, _ in timers), timers[0][1]
    what = next((deed(change) for change in together(view, command)), timer.flag or timer.verb)
    facts = [
        ("otherwise", f"back to {timer.back_to} in {theme.clock(timer.at - view.time)}"),
        ("keep", "stops the timer; the change stays until someone undoes it"),
    ]
    return CommandQuestion(command, what, ConfirmPlain(f"Keep {what} on {engines} ?", facts, "keep it"))


def undo_question(view: Snapshot, change: Change) -> CommandQuestion | None:
    """Whether to bring engines back to what they had before the command of ``change``; None if it changed nothing."""
    done = undoable(together(view, change.command))
    if not done:
        return None
    facts = [(one.engine, f"{one.flag or deed(one)} back to {one.old}") for one in done]
    facts.append(("unless", "something was changed since: then it is left alone, and the log says superseded"))
    return CommandQuestion(change.command, deed(change), ConfirmPlain(f"Undo {deed(change)} ?", facts, "undo"))
