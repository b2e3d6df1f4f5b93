"""Hands alarms on: JSON to the standard input of a command, or posted to a URL; each once, late rather than never.

Runs in the process of ``rltop forward``, a thread per hook: one that hangs or fails holds up its own messages alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from rltop.backend.alarms.notified import NotificationHistory
from rltop.backend.api import Snapshot, Step
from rltop.backend.api.alarm import AlarmChange, summary_line
from rltop.backend.exporters.forward import ForwardError

COMMAND_S = 30.0
"""How long a command may take; then it and what it started are killed."""

POST_S = 10.0
"""How long the other side of a webhook may take to answer."""

WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
"""Waits between attempts; after the last the message is given up: three minutes, the time in which services restart."""

MAX_WAITING = 100
"""Messages that may wait for a hook; of more, the oldest are given up."""

_LATER = frozenset({408, 425, 429})
"""Statuses of a client's fault that pass by themselves."""


class TryLaterError(Exception):
    """A message could not be delivered, and may be later."""


class GiveUpError(Exception):
    """A message can't be delivered, now or later."""


Deliver = Callable[[bytes], None]
"""Delivers one message. Raises ``TryLaterError`` or ``GiveUpError``, which say why."""


def message(run: str, news: AlarmChange) -> dict[str, Any]:
    """What a hook gets: ``what`` became of which ``alarm``, and ``text``, a line that chat services show."""
    text = f"rltop {run}: alarm {news.alarm.id} {news.what}: {summary_line(news.alarm)}"
    return {"run": run, "what": news.what, "text": text, "alarm": msgspec.to_builtins(news.alarm)}


class Hook:
    """A ``forward.Sink`` that delivers alarms.

    Args:
        deliver: see ``Deliver``; called on a thread of this hook's own.
        say: takes lines for the person, on any thread.
        waits_s: as ``WAITS_S``.
    """

    def __init__(self, deliver: Deliver, say: Callable[[str], None], waits_s: tuple[float, ...] = WAITS_S) -> None:
        self._deliver = deliver
        self._say = say
        self._waits_s = waits_s
        self._told = NotificationHistory()
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rltop-hook", daemon=True)
        self._thread.start()

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """See ``forward.Sink``. Never waits."""
        del fresh
        for news in self._told.fresh(picture.alarms.values(), picture.time):
            made = message(picture.run, news)
            with self._wake:
                self._waiting.append(msgspec.json.encode(made))
                if len(self._waiting) > MAX_WAITING:
                    self._waiting.popleft()
                self._wake.notify()
            self._say(made["text"])

    def close(self, timeout_s: float = 5.0) -> None:
        """Try once more what waits, for so long at most; no more will come."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._waiting) or self._ended)
                if not self._waiting:
                    return
                content = self._waiting.popleft()
            self._bring(content)

    def _bring(self, content: bytes) -> None:
        for wait_s in (*self._waits_s, None):
            try:
                self._deliver(content)
                return
            except GiveUpError as error:
                self._say(f"not delivered: {error}")
                return
            except TryLaterError as error:
                if wait_s is None or self._ended:
                    self._say(f"not delivered, given up: {error}")
                    return
                self._say(f"not delivered, again in {wait_s:g} s: {error}")
            with self._wake:
                self._wake.wait_for(lambda: self._ended, wait_s)


@dataclass(frozen=True)
class ShellCommand:
    """A command for the shell, which gets a message on standard input; exit code 0 says that it has it."""

    text: str
    limit_s: float = COMMAND_S

    def __call__(self, content: bytes) -> None:
        """See ``Deliver``."""
        started = subprocess.Popen(  # noqa: S602 - the person's own command, typed as one
            self.text, shell=True, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            started.communicate(content, self.limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            raise TryLaterError(f"the command took more than {self.limit_s:g} s and was killed") from None
        except BrokenPipeError:  # it does not care for its input
            started.wait()
        if started.returncode:
            raise TryLaterError(f"the command ended with exit code {started.returncode}")


@dataclass(frozen=True)
class Webhook:
    """A URL that messages are posted to. Raises ``ForwardError`` if it is none of http or https."""

    url: str
    limit_s: float = POST_S

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ForwardError(f"{self.url!r} is no URL to post to; it begins with http:// or https://")

    def __call__(self, content: bytes) -> None:
        """See ``Deliver``."""
        headers = {"Content-Type": "application/json", "User-Agent": "rltop"}
        request = urllib.request.Request(self.url, content, headers, method="POST")  # noqa: S310 - http and https alone
        try:
            with urllib.request.urlopen(request, timeout=self.limit_s):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _LATER:
                raise GiveUpError(f"{self._host} answered {error.code} {error.reason}") from None
            raise TryLaterError(f"{self._host} answered {error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            raise TryLaterError(f"{self._host}: {error}") from None

    @property
    def _host(self) -> str:
        """Without the path, which often is a secret."""
        return urllib.parse.urlsplit(self.url).hostname or ""
