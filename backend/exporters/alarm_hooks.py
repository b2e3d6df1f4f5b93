"""Delivers alarm notifications: JSON on a command's standard input or posted to a URL. Each once, with retries.

Runs in the process of ``rltop forward`` with one thread per hook, so a hook that hangs or fails delays only itself.
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
from rltop.backend.api.alarm import AlarmChange, change_line
from rltop.backend.exporters.forward import ForwardError

COMMAND_S = 30.0
"""Time limit of a command; then its process group is killed."""

POST_S = 10.0
"""Timeout of a webhook."""

WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
"""Waits between attempts. The message is dropped after the last: three minutes, enough for a service to restart."""

MAX_WAITING = 100
"""Most messages that wait for a hook; beyond that the oldest are dropped."""

_RETRYABLE = frozenset({408, 425, 429})
"""Client error statuses that are worth a retry."""


class TryLaterError(Exception):
    """Delivery failed; a retry may succeed."""


class GiveUpError(Exception):
    """Delivery failed; a retry can't succeed."""


Deliver = Callable[[bytes], None]
"""Delivers one message. Raises ``TryLaterError`` or ``GiveUpError`` with the reason."""


def message(run: str, change: AlarmChange) -> dict[str, Any]:
    """The payload of a hook: the ``alarm``, its change (``what``), and ``text``, a line that chat services show."""
    return {
        "run": run,
        "what": change.what,
        "text": f"rltop {run}: {change_line(change)}",
        "alarm": msgspec.to_builtins(change.alarm),
    }


class Hook:
    """A ``forward.Sink`` that delivers alarms.

    Args:
        deliver: see ``Deliver``; called on this hook's own thread.
        log: takes lines for the terminal, on any thread.
        waits_s: as ``WAITS_S``.
    """

    def __init__(self, deliver: Deliver, log: Callable[[str], None], waits_s: tuple[float, ...] = WAITS_S) -> None:
        self._deliver = deliver
        self._log = log
        self._waits_s = waits_s
        self._notified = NotificationHistory()
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rltop-hook", daemon=True)
        self._thread.start()

    def show(self, picture: Snapshot, fresh: list[Step]) -> None:
        """See ``forward.Sink``. Never waits."""
        del fresh
        for change in self._notified.new_changes(picture.alarms.values(), picture.time):
            payload = message(picture.run, change)
            with self._wake:
                self._waiting.append(msgspec.json.encode(payload))
                if len(self._waiting) > MAX_WAITING:
                    self._waiting.popleft()
                self._wake.notify()
            self._log(payload["text"])

    def close(self, timeout_s: float = 5.0) -> None:
        """Try the waiting messages once more, for at most ``timeout_s``, and end the thread."""
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
            self._deliver_with_retries(content)

    def _deliver_with_retries(self, content: bytes) -> None:
        for wait_s in (*self._waits_s, None):
            try:
                self._deliver(content)
                return
            except GiveUpError as error:
                self._log(f"not delivered: {error}")
                return
            except TryLaterError as error:
                if wait_s is None or self._ended:
                    self._log(f"not delivered, dropped: {error}")
                    return
                self._log(f"not delivered, retrying in {wait_s:g} s: {error}")
            with self._wake:
                self._wake.wait_for(lambda: self._ended, wait_s)


@dataclass(frozen=True)
class ShellCommand:
    """A shell command that receives a message on standard input; exit code 0 acknowledges it."""

    text: str
    limit_s: float = COMMAND_S

    def __call__(self, content: bytes) -> None:
        """See ``Deliver``."""
        started = subprocess.Popen(  # noqa: S602 - the user's own command line
            self.text, shell=True, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            started.communicate(content, self.limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            raise TryLaterError(f"the command took more than {self.limit_s:g} s and was killed") from None
        except BrokenPipeError:  # the command does not read its input
            started.wait()
        if started.returncode:
            raise TryLaterError(f"the command ended with exit code {started.returncode}")


@dataclass(frozen=True)
class Webhook:
    """A URL that messages are posted to. Raises ``ForwardError`` if it is neither http nor https."""

    url: str
    limit_s: float = POST_S

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ForwardError(f"{self.url!r} is not a webhook URL; it must begin with http:// or https://")

    def __call__(self, content: bytes) -> None:
        """See ``Deliver``."""
        headers = {"Content-Type": "application/json", "User-Agent": "rltop"}
        request = urllib.request.Request(self.url, content, headers, method="POST")  # noqa: S310 - http and https alone
        try:
            with urllib.request.urlopen(request, timeout=self.limit_s):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _RETRYABLE:
                raise GiveUpError(f"{self._host} answered {error.code} {error.reason}") from None
            raise TryLaterError(f"{self._host} answered {error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            raise TryLaterError(f"{self._host}: {error}") from None

    @property
    def _host(self) -> str:
        """The host alone: the path is often a secret."""
        return urllib.parse.urlsplit(self.url).hostname or ""
