"""The socket on which a process with engines waits for ``rltop attach`` and ``rltop detach``: one blocked thread.

Standard library only. Nothing here raises into the host: the thread ends on an unexpected fault.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from rltop.collectors.contract import attach, engine_processes
from rltop.collectors.contract.rundir import RunDirError
from rltop.collectors.transport.error_boundary import ErrorBoundary

Message = dict[str, Any]

BACKLOG = 8

ACCEPT_AGAIN_S = 1.0
"""Pause after a connection that could not be accepted, for example for lack of a file descriptor."""

CLOSE_S = 1.0
"""How long ``close`` waits for the thread."""


class Listener:
    """Listens from its creation to ``close``, one connection at a time.

    Args:
        handle: answers a request; what it raises becomes a refusal.
        guard: contains other faults.

    Raises:
        RunDirError: the directory is not private.
        OSError: no socket can be made there.
        RuntimeError: no thread can be started.
    """

    def __init__(self, handle: Callable[[Message], Message], guard: ErrorBoundary) -> None:
        self._handle = handle
        self._guard = guard
        self._closing = threading.Event()
        engine_processes.create_directory()
        self._path = engine_processes.socket_of(os.getpid())
        self._path.unlink(missing_ok=True)  # of an earlier process with this pid
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen(BACKLOG)
            self._thread = threading.Thread(target=self._run, name="rltop-listener", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError):  # no thread can be started
            self._socket.close()
            raise

    def close(self) -> None:
        """End the thread and remove the socket. Bounded in time."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes ``accept``
        self._path.unlink(missing_ok=True)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)
        self._socket.close()

    def close_in_child(self) -> None:
        """Close a forked child's copy of the socket: otherwise it would stay connectable after the parent's end."""
        self._socket.close()

    def _run(self) -> None:
        while not self._closing.is_set() and not self._guard.is_off("listener"):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                self._closing.wait(ACCEPT_AGAIN_S)
                continue
            with connection:
                self._guard.run("listener", self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        """Answer the request of one connection. Another user's is closed unread."""
        if attach.peer_of(connection)[1] != os.getuid():
            return
        connection.settimeout(attach.READ_TIMEOUT_S)
        with contextlib.suppress(OSError):  # the client is gone
            attach.send(connection, self._answer(connection))

    def _answer(self, connection: socket.socket) -> Message:
        try:
            return self._handle(attach.receive(connection))
        except Exception as error:  # noqa: BLE001 - becomes the answer
            return {"ok": False, "reason": reason_of(error)}


def reason_of(error: Exception) -> str:
    """Why a request was refused."""
    if isinstance(error, attach.AttachError | RunDirError | OSError):
        return str(error)
    return f"the collector failed: {type(error).__name__}: {error}"
