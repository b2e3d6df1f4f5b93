"""What the demo's supervisor knows of its run: every step and flag change the hub showed, kept across hubs.

A hub may be killed in the middle and another may take over with an empty memory. What was seen stays here; what no hub
saw is absent and is said.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from rltop.backend.api import TERMINAL, AskSet, Change, Snapshot, Step
from rltop.backend.client.live import Client
from rltop.backend.demo.options import Setting


@dataclass
class Request:
    """A ``--set`` on its way: not asked (no question), asked of the hub ``epoch``, answered (command or error)."""

    setting: Setting
    question: str = ""
    epoch: str = ""
    command: str = ""
    error: str = ""

    def is_due(self, newest: int, epoch: str) -> bool:
        """Whether to ask: the step has closed, and no hub that still lives was asked or has answered."""
        return self.setting.step <= newest and not (self.command or self.error) and self.epoch != epoch


class Follower:
    """Follows the hub of a run and sends the settings when their steps close. Never blocks longer than asked to.

    Args:
        client: of the run.
        settings: to send.
    """

    def __init__(self, client: Client, settings: Sequence[Setting]) -> None:
        self.client = client
        self.steps: dict[int, Step] = {}
        self.changes: dict[str, Change] = {}
        self.last: Snapshot | None = None
        self._requests = [Request(setting) for setting in settings]

    def poll(self, timeout_s: float) -> list[Step]:
        """Take in what the hub has to say; returns the steps that were not seen before, in order."""
        self.client.poll(timeout_s)
        view = self.client.view  # the client's own picture: it goes on changing, and a new hub replaces it
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
        """Whether a hub is there now."""
        return self.client.state == "live"

    def unsettled(self) -> list[str]:
        """The settings whose end is not known yet."""
        return [str(request.setting) for request in self._requests if not request.error and not self._closed(request)]

    def failures(self) -> list[str]:
        """What went wrong with the settings, one sentence each; empty if every one was applied everywhere."""
        found = [f"--set {request.setting}: {request.error}" for request in self._requests if request.error]
        found += [f"--set {setting}: its end was not seen" for setting in self.unsettled()]
        for request in self._requests:
            found += [
                f"--set {request.setting}: {change.state} on {change.engine}: {change.reason}"
                for change in self._changes_of(request)
                if change.state in TERMINAL and change.state != "applied"
            ]
        return found

    def missing(self, steps: int) -> list[int]:
        """The steps of the run that no hub showed."""
        return [step for step in range(steps) if step not in self.steps]

    def picture(self) -> Snapshot | None:
        """All that was seen, as one snapshot; None if no hub was ever seen."""
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
        setting, question = request.setting, uuid.uuid4().hex
        self.client.ask(AskSet(question, setting.flag, setting.value, who="rltop demo", why=f"--set {setting}"))
        if self.client.answers.pop(question, None) is None:  # an answer at once: it never left; try again next turn
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
