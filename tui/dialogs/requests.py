"""Commands of the dashboard to the hub, with their answers."""

from __future__ import annotations

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

TIMEOUT_S = 5.0
"""A command that the hub does not answer within this time is reported as unanswered."""

ShowProblem = Callable[[str, Literal["warning", "error"]], None]
"""Shows a message of a severity to the user."""


class ControlRequests:
    """Sends confirmed commands, and shows those that the hub refuses or does not answer.

    Args:
        client: takes the questions and has the answers.
        clock: monotonic seconds.
        show_problem: see ``ShowProblem``.
    """

    def __init__(self, client: SnapshotSource, clock: Callable[[], float], show_problem: ShowProblem) -> None:
        self._client = client
        self._clock = clock
        self._show_problem = show_problem
        self._asked: dict[str, tuple[str, float]] = {}

    def change(self, request: CommandRequest, subject: str) -> None:
        """Switch a flag, or run an action."""
        choice, scope = request.choice, request.scope
        engines = None if scope.fraction is not None else list(scope.engines)
        question: Question
        if choice.verb == "set":
            question = AskSet(
                new_id(), subject, choice.word, engines, why=request.reason,
                strict=request.strict, revert_s=request.revert_s, fraction=scope.fraction,
            )  # fmt: skip
            description = f"{subject} {choice.word}"
        else:
            question = AskAct(new_id(), choice.verb, engines, request.revert_s, why=request.reason)
            description = choice.word
        self._send(question, f"{description} on {scope.name}")

    def keep(self, command: str, description: str, reason: str) -> None:
        """Stop the timers of a command."""
        self._send(AskKeep(new_id(), command, why=reason), f"keep {description}")

    def undo(self, command: str, description: str, reason: str) -> None:
        """Revert a command."""
        self._send(AskUndo(new_id(), command, why=reason), f"undo {description}")

    def probe(self, probe: Probe, reason: str) -> None:
        """Start a probe on all live engines."""
        question = AskProbe(new_id(), probe.name, why=reason, timeout_s=probe.timeout_s)
        self._send(question, f"probe {probe.name}")

    def acknowledge(self, alarm: str) -> None:
        """Acknowledge an alarm."""
        self._send(AskAcknowledge(new_id(), alarm), f"acknowledge {alarm}")

    def silence(self, alarm: str, seconds: float) -> None:
        """Silence an alarm for this many seconds."""
        self._send(AskSilence(new_id(), alarm, seconds), f"silence {alarm}")

    def take_answers(self) -> None:
        """Handle the answers that have arrived, and timeouts."""
        for question, (description, sent) in list(self._asked.items()):
            answer = self._client.answers.pop(question, None)
            if answer is not None and answer.error:
                self._show_problem(f"{description}: {answer.error}", "error")
            elif answer is None and self._clock() - sent > TIMEOUT_S:
                self._show_problem(f"{description}: the hub has not answered; it may still be executed", "warning")
            elif answer is None:
                continue
            del self._asked[question]

    def _send(self, question: Question, description: str) -> None:
        self._client.ask(question)
        self._asked[question.id] = description, self._clock()
