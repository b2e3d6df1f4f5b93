"""What the dashboard asks of the hub, and what became of the questions."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from typing import Literal

from rltop.backend.api import (
    AskAcknowledge,
    AskAct,
    AskKeep,
    AskProbe,
    AskSet,
    AskSilence,
    AskUndo,
    Question,
    new_id,
)
from rltop.collectors.contract.probes import Probe
from rltop.tui.dialogs.switch_dialog import CommandRequest
from rltop.tui.model.source import SnapshotSource

UNANSWERED_S = 5.0
"""A question that the hub has not answered by then is said to be unanswered."""

Tell = Callable[[str, Literal["warning", "error"]], None]
"""Says something to the person."""


class ControlRequests:
    """Sends what was confirmed, and tells where the hub refuses it or does not answer.

    Args:
        client: takes the questions.
        clock: monotonic seconds.
        tell: see ``Tell``.
    """

    def __init__(self, client: SnapshotSource, clock: Callable[[], float], tell: Tell) -> None:
        self._client = client
        self._clock = clock
        self._tell = tell
        self._asked: dict[str, tuple[str, float]] = {}

    def change(self, wish: CommandRequest, subject: str) -> None:
        """Have a flag switched, or an action done."""
        choice, place = wish.choice, wish.place
        engines = None if place.fraction is not None else list(place.engines)
        question: Question
        if choice.verb == "set":
            question = AskSet(
                new_id(), subject, choice.word, engines, _user(), socket.gethostname(), wish.why,
                strict=wish.strict, revert_s=wish.revert_s, fraction=place.fraction,
            )  # fmt: skip
            what = f"{subject} {choice.word}"
        else:
            question = AskAct(new_id(), choice.verb, engines, wish.revert_s, _user(), socket.gethostname(), wish.why)
            what = choice.word
        self._send(question, f"{what} on {place.name}")

    def keep(self, command: str, what: str, why: str) -> None:
        """Have timers stopped."""
        self._send(AskKeep(new_id(), command, _user(), socket.gethostname(), why), f"keep {what}")

    def undo(self, command: str, what: str, why: str) -> None:
        """Have a command taken back."""
        self._send(AskUndo(new_id(), command, _user(), socket.gethostname(), why), f"undo {what}")

    def probe(self, probe: Probe, why: str) -> None:
        """Start an experiment on all live engines."""
        question = AskProbe(new_id(), probe.name, None, _user(), socket.gethostname(), why, probe.timeout_s)
        self._send(question, f"probe {probe.name}")

    def acknowledge(self, alarm: str) -> None:
        """Take note of an alarm."""
        self._send(AskAcknowledge(new_id(), alarm, _user(), socket.gethostname()), f"acknowledge {alarm}")

    def silence(self, alarm: str, seconds: float) -> None:
        """Have nothing told of an alarm for so long."""
        self._send(AskSilence(new_id(), alarm, seconds, _user(), socket.gethostname()), f"silence {alarm}")

    def take_answers(self) -> None:
        """Tell what there is to tell of the questions on their way."""
        for question, (what, asked) in list(self._asked.items()):
            answer = self._client.answers.pop(question, None)
            if answer is not None and answer.error:
                self._tell(f"{what}: {answer.error}", "error")
            elif answer is None and self._clock() - asked > UNANSWERED_S:
                self._tell(f"{what}: the hub has not answered; it may still happen", "warning")
            elif answer is None:
                continue
            del self._asked[question]

    def _send(self, question: Question, what: str) -> None:
        self._client.ask(question)
        self._asked[question.id] = what, self._clock()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this number
        return str(os.getuid())
