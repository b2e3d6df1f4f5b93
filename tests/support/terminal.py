"""The dashboard on a real pseudo-terminal: its output is counted and shown on an emulated screen.

``python -m tests.support.terminal FD`` is the other side: a dashboard whose run advances by one message of ``FD`` per
tick:
``m`` only a mark, ``e`` values of one engine, ``s`` a step, ``n`` values of eight engines and every eighth time a step,
``f`` all plots at once.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
import pyte

from rltop.tui.app import RltopApp
from tests.support import pictures
from tests.support.harness import wait_for
from tests.support.pictures import HeldClient

MARK = b"\a"
"""The reply to ``m``, sent after all earlier output: the bell, which the dashboard never rings here."""


class Terminal:
    """A dashboard in a child process on a pseudo-terminal; ``owned``: its session's controlling terminal."""

    def __init__(self, columns: int, lines: int, *, fps: float = 10.0, owned: bool = True) -> None:
        self.bytes = 0
        self._marks = self._at_mark = 0
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        messages, self._messages = os.pipe()
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.terminal", str(messages), str(fps), str(int(owned))],
            stdin=slave, stdout=slave, stderr=slave, pass_fds=(messages,), start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(slave)
        os.close(messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.hang_up()
        os.close(self._messages)

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def advance(self, messages: str) -> None:
        """Advance the run, one message a tick."""
        os.write(self._messages, messages.encode())

    def mark(self) -> int:
        """Bytes sent until all earlier messages were painted; waits for those still in transit."""
        wanted = self._marks + 1
        self.advance("m")
        self._wait(lambda: self._marks >= wanted)
        return self._at_mark

    def wait_until_taken(self) -> None:
        """Wait until the run has taken all messages, without reading the dashboard's output."""
        wait_for(lambda: not any(fcntl.ioctl(self._messages, termios.FIONREAD, bytes(4))), "the run takes all messages")

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def read(self, timeout_s: float) -> int:
        """Read the dashboard's output, waiting up to ``timeout_s`` for the first bytes."""
        if not select.select([self._master], [], [], timeout_s)[0]:
            return 0
        data = os.read(self._master, 1 << 16)
        if MARK in data:
            self._marks += data.count(MARK)
            self._at_mark = self.bytes + data.rindex(MARK) + 1
        self.bytes += len(data)
        self._stream.feed(data)
        return len(data)

    def wait_for(self, shown: Callable[[str], bool]) -> None:
        """Read until ``shown`` is true of the screen."""
        self._wait(lambda: shown(self.text))

    def _wait(self, condition: Callable[[], bool]) -> None:
        try:
            wait_for(lambda: condition() or (bool(self.read(0.5)) and condition()), "the screen", poll_s=0.0)
        except AssertionError as stalled:
            raise AssertionError(f"{stalled}\n{self.text}") from None


class AdvancingClient(HeldClient):
    """Advances by one message of the pipe ``messages`` a tick."""

    def __init__(self, messages: int) -> None:
        super().__init__(pictures.healthy(engines=8))
        os.set_blocking(messages, False)
        self._messages = messages
        self._moves = 0
        self.marked: Callable[[], object] = str

    def poll(self, timeout_s: float = 0.0) -> bool:
        try:
            message = os.read(self._messages, 1).decode()
        except BlockingIOError:
            message = ""
        if message == "m":
            self.marked()
        elif message:
            self._move(message)
        return super().poll(timeout_s)

    def _move(self, message: str) -> None:
        view = self.view
        assert view is not None
        self._moves += 1
        self.changed = True
        for i in range({"e": 1, "n": 8}.get(message, 0)):
            view.engines[f"e{i}"] = pictures.engine(
                f"e{i}", tokens_per_s=300.0 + self._moves, running=10 + self._moves * (i + 3) % 7,
                waiting=self._moves * (i + 1) % 5, kv_usage=0.3 + 0.05 * (self._moves * (i + 5) % 9),
            )  # fmt: skip
        if message == "s" or (message == "n" and self._moves % 8 == 0):
            number = len(view.steps)
            view.steps[number] = pictures.step(number)
            view.trainer = msgspec.structs.replace(view.trainer, step=number)
        if message == "f":
            view.steps = {n: msgspec.structs.replace(pictures.step(n + self._moves), step=n) for n in range(200)}


def main(messages: int, fps: float, owned: int) -> int:
    if owned:
        fcntl.ioctl(sys.stdin, termios.TIOCSCTTY, 0)  # as a login's terminal: its end is this session's end
    client = AdvancingClient(messages)
    app = RltopApp(client, "sort", fps=fps)
    client.marked = app.bell
    app.run()
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
