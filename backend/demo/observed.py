"""Follows the demo's run: collects every step and flag change across hubs, and sends the ``--set`` requests.

A hub may be killed and another may take over without its memory. Everything seen stays here; steps that no hub measured
are reported as missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from rltop.backend.api import TERMINAL, AskSet, Change, Snapshot, Step, new_id
from rltop.backend.client.live import Client
from rltop.backend.demo.options import Setting


@dataclass
class Request:
    """A ``--set``: not sent (no question), sent to the hub ``epoch``, or answered (command or error)."""

    setting: Setting
    question: str = ""
    epoch: str = ""
    command: str = ""
    error: str = ""

    def is_due(self, newest: int, epoch: str) -> bool:
        """Whether to send it: the step has closed, and this hub has not received it and none has answered."""
        return self.setting.step <= newest and not (self.command or self.error) and self.epoch != epoch


class Follower:
    """Follows the hub of a run and sends each setting when its step closes.

    Args:
        client: client of the run's hub.
        settings: the ``--set`` requests.
    """

    def __init__(self, client: Client, settings: Sequence[Setting]) -> None:
        self.client = client
        self.steps: dict[int, Step] = {}
        self.changes: dict[str, Change] = {}
        self.last: Snapshot | None = None
        self._requests = [Request(setting) for setting in settings]

    def poll(self, timeout_s: float) -> list[Step]:
        """Process frames and answers, for at most ``timeout_s``; returns the new steps in order."""
        self.client.poll(timeout_s)
        view = self.client.view  # the client's own object: it keeps changing, and a new hub replaces it
        if view is None:
            return []
        fresh = [step for number, step in sorted(view.steps.items()) if number not in self.steps]
        self.steps.update(view.steps)
        self.changes.update(view.changes)
        self.last = view
        self._send_due()
        self._read_answers()
        return fresh

    @property
    def live(self) -> bool:
        """Whether the hub is live."""
        return self.client.state == "live"

    def unsettled(self) -> list[str]:
        """The settings whose outcome is not known yet."""
        return [str(request.setting) for request in self._requests if not request.error and not self._closed(request)]

    def failures(self) -> list[str]:
        """One sentence per failed setting; empty if all were applied on every engine."""
        failures = [f"--set {request.setting}: {request.error}" for request in self._requests if request.error]
        failures += [f"--set {setting}: no outcome was reported" for setting in self.unsettled()]
        for request in self._requests:
            failures += [
                f"--set {request.setting}: {change.state} on {change.engine}: {change.reason}"
                for change in self._changes_of(request)
                if change.state in TERMINAL and change.state != "applied"
            ]
        return failures

    def missing(self, steps: int) -> list[int]:
        """The steps that no hub measured."""
        return [step for step in range(steps) if step not in self.steps]

    def picture(self) -> Snapshot | None:
        """Everything seen, as one snapshot; None if no hub was reached."""
        if self.last is None:
            return None
        return msgspec.structs.replace(self.last, steps=dict(sorted(self.steps.items())), changes=dict(self.changes))

    def _send_due(self) -> None:
        view = self.client.view
        if view is None or not self.live or not self.steps:
            return
        newest = max(self.steps)
        for request in self._requests:
            if request.is_due(newest, view.epoch):
                self._send(request, view.epoch)

    def _send(self, request: Request, epoch: str) -> None:
        setting, question = request.setting, new_id()
        self.client.ask(AskSet(question, setting.flag, setting.value, why=f"--set {setting}"))
        if (
            self.client.answers.pop(question, None) is None
        ):  # an immediate answer means that it was not sent; retry at the next poll
            request.question, request.epoch = question, epoch

    def _read_answers(self) -> None:
        for request in self._requests:
            if request.question and (answer := self.client.answers.pop(request.question, None)):
                request.command, request.error = answer.command or "", answer.error or ""

    def _changes_of(self, request: Request) -> list[Change]:
        return [change for change in self.changes.values() if request.command and change.command == request.command]

    def _closed(self, request: Request) -> bool:
        changes = self._changes_of(request)
        return bool(changes) and all(change.state in TERMINAL for change in changes)
