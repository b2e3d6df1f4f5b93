"""The dialogs before a switch, an action, a keep or an undo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from rltop.backend.api import Change, Snapshot
from rltop.backend.commands.undoable import undoable
from rltop.backend.util.durations import span
from rltop.tui.dialogs.confirm_dialog import INNER, ConfirmPlain, Facts, Question
from rltop.tui.model.changes import changes_of, describe, open_timers
from rltop.tui.model.switchable import Choice, Target
from rltop.tui.widgets import theme

TIMES: tuple[tuple[str, float], ...] = (("1m", 60.0), ("10m", 600.0), ("1h", 3600.0))
"""Times after which a change can auto-revert."""

UNTIL_CHANGED = "until changed"

HALF = 0.5


@dataclass(frozen=True)
class Scope:
    """The engines of a command: these, or a fraction of the live ones that the hub picks."""

    name: str
    engines: tuple[str, ...] = ()
    fraction: float | None = None


@dataclass(frozen=True)
class CommandRequest:
    """A confirmed switch or action; see ``api.AskSet`` and ``api.AskAct``."""

    choice: Choice
    scope: Scope
    strict: bool = False
    revert_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Option:
    """One line of options: key, name, labels to choose from."""

    key: str
    name: str
    labels: tuple[str, ...]


def scopes(target: Target) -> tuple[Scope, ...]:
    """The possible scopes: the selected row first, then for the fleet its canary half and each engine."""
    refusing = {refusal.partition(":")[0] for refusal in target.refusing}
    each = tuple(Scope(engine, (engine,)) for engine in target.engines if engine not in refusing)
    if target.engine is not None:
        return each
    half = (Scope("half", fraction=HALF),) if target.subject.flag is not None and len(target.engines) > 1 else ()
    return (Scope("fleet", target.engines), *half, *(each if len(target.engines) > 1 else ()))


def times(choice: Choice) -> tuple[tuple[str, float | None], ...]:
    """The possible auto-revert times with labels; None is no auto-revert, which actions with a guard timer lack."""
    if not choice.max_s:
        return ()
    within = [time for time in TIMES if time[1] <= choice.max_s]
    return (*(() if choice.guard_s is not None else ((UNTIL_CHANGED, None),)), *within)


class Confirm(Question[CommandRequest]):
    """The dialog of a switch or an action."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "next('v')", "Other value"),
        Binding("w", "next('w')", "Other scope"),
        Binding("f", "next('f')", "Other time"),
        Binding("s", "next('s')", "Other form"),
    ]

    def __init__(self, target: Target, offered: CommandRequest | None = None) -> None:
        """``offered``: start with this choice, scope and reason."""
        super().__init__()
        self._target = target
        self._chosen = dict.fromkeys("vwfs", 0)
        self._scopes = scopes(target)
        if offered is not None:
            self._scopes = tuple(dict.fromkeys((offered.scope, *self._scopes)))
            self._chosen["v"] = target.choices.index(offered.choice)
            self.reason = offered.reason

    @property
    def _choice(self) -> Choice:
        return self._target.choices[self._chosen["v"]]

    @property
    def _scope(self) -> Scope:
        return self._scopes[self._chosen["w"]]

    def _options(self) -> list[Option]:
        flag = self._target.subject.flag
        options = [
            Option("v", "value", tuple(choice.word for choice in self._target.choices)),
            Option("w", "where", tuple(scope.name for scope in self._scopes)),
            Option("f", "for", tuple(label for label, _ in times(self._choice))),
            Option("s", "form", ("default", "strict") if flag is not None and self._has_forms() else ()),
        ]
        return [option for option in options if len(option.labels) > 1]

    def _has_forms(self) -> bool:
        flag = self._target.subject.flag
        return flag is not None and bool(flag.strict) and self._choice.word != flag.values[0]

    def head(self) -> Text:
        """The headline, and each option with its choices."""
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
        """Scope, effect, cost, refusals, how it ends, preconditions."""
        target, choice, scope = self._target, self._choice, self._scope
        flag = target.subject.flag
        strict = flag.strict if flag is not None and self._has_forms() and self._chosen["s"] else ""
        checks = f"{', '.join(flag.preconditions)}: checked first" if flag is not None and flag.preconditions else ""
        found = [
            ("reaches", _reach(target, scope)), ("effect", choice.effect), ("cost", choice.cost), ("strict", strict),
            *(("refuses", refusal) for refusal in target.refusing), ("ends", self._ends()), ("requires", checks),
        ]  # fmt: skip
        return [(name, text) for name, text in found if text]

    def _ends(self) -> str:
        choice, revert_s = self._choice, self._revert_s()
        if revert_s is not None:
            keeps = "; K keeps it" if choice.verb == "set" else ""
            return f"auto-reverts on the engine after {span(revert_s)}, also without hub or dashboard{keeps}"
        return "u undoes it" if choice.verb == "set" else "at once"

    def _revert_s(self) -> float | None:
        offered = times(self._choice)
        return offered[self._chosen["f"]][1] if offered else None

    def answer(self) -> CommandRequest:
        """The request with the current options."""
        strict = self._has_forms() and bool(self._chosen["s"])
        return CommandRequest(self._choice, self._scope, strict, self._revert_s(), self.typed_reason)

    def verb(self) -> str:
        """``switch``, or the word of the action."""
        return "switch" if self._choice.verb == "set" else self._choice.word

    def action_next(self, key: str) -> None:
        """Select the next choice of an option."""
        option = next((option for option in self._options() if option.key == key), None)
        if option is not None:
            self._chosen[key] = (self._chosen[key] + 1) % len(option.labels)
            if key == "v":
                self._chosen |= {"f": 0, "s": 0}
            self.redraw()


def _reach(target: Target, scope: Scope) -> str:
    kept = f"{target.in_flight} requests in flight at the last report; all are kept"
    if scope.fraction is not None:
        return f"half of {len(target.engines)} live engines, never all: the others are the control group"
    if scope.name == "fleet":
        return f"{len(target.engines)} live: {', '.join(target.engines)}; {kept}"
    only = f"only engine{'s' * (len(scope.engines) > 1)} {scope.name}"
    return only + (f"; {kept}" if target.engine else "")


def _window(labels: tuple[str, ...], chosen: int, room: int = INNER - 16) -> list[str]:
    """The labels that fit around the chosen one, with ellipses for the rest."""
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
    """A confirmation about an earlier command: its id, its description, and the dialog."""

    command: str
    description: str
    dialog: ConfirmPlain


def keep_question(snapshot: Snapshot, command: str) -> CommandQuestion | None:
    """The dialog before stopping the timers of ``command``; None if none runs."""
    timers = [(engine, timer) for engine, timer in open_timers(snapshot, command) if timer.verb == "set"]
    if not timers:
        return None
    engines, timer = ", ".join(engine for engine, _ in timers), timers[0][1]
    description = next((describe(change) for change in changes_of(snapshot, command)), timer.flag or timer.verb)
    facts = [
        ("otherwise", f"back to {timer.back_to} in {theme.clock(timer.at - snapshot.time)}"),
        ("keep", "stops the timer; the change stays until changed"),
    ]
    return CommandQuestion(command, description, ConfirmPlain(f"Keep {description} on {engines} ?", facts, "keep"))


def undo_question(snapshot: Snapshot, change: Change) -> CommandQuestion | None:
    """The dialog before reverting the command of ``change``; None if it changed nothing."""
    done = undoable(changes_of(snapshot, change.command))
    if not done:
        return None
    facts = [(one.engine, f"{one.flag or describe(one)} back to {one.old}") for one in done]
    facts.append(("unless", "it was changed since: such an engine is left as it is, and the log shows superseded"))
    return CommandQuestion(change.command, describe(change), ConfirmPlain(f"Undo {describe(change)} ?", facts, "undo"))
