"""Requests to the listener of an engine process: attach to a run, detach. ``docs/protocols/attach.md`` has the states.

One connection carries one request and one answer, each a JSON object in one line. Both sides check with SO_PEERCRED
that the other belongs to the same user. Standard library only: a dormant plugin loads this.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROTOCOL = 1
MAX_LINE_BYTES = 1 << 16

READ_TIMEOUT_S = 5.0
"""How long a listener waits for the request of a connection."""

ANSWER_MARGIN_S = 10.0
"""How much longer than the time that it grants an engine a client waits for the answer."""

ATTACH, DETACH = "attach", "detach"

_CREDENTIALS = struct.Struct("=3i")
"""pid, uid and gid of a peer, as in ``struct ucred``."""


class AttachError(RuntimeError):
    """A request failed; the message says why and what to do."""


def is_supported() -> bool:
    """Whether this system can name the user at the other end of a Unix socket."""
    return hasattr(socket, "SO_PEERCRED")


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of the process at the other end."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return pid, uid


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one message.

    Raises:
        OSError: the peer is gone or does not read.
    """
    connection.sendall(json.dumps({"protocol": PROTOCOL, **message}).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any]:
    """Receive one message.

    Raises:
        AttachError: it is not one line with a JSON object of this protocol.
        OSError: nothing came in time.
    """
    line = b""
    while not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        if not (part := connection.recv(4096)):
            break
        line += part
    if not line.endswith(b"\n"):
        raise AttachError("malformed message: expected one line, of at most 64 KiB")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise AttachError("malformed message: not JSON") from None
    if not isinstance(message, dict):
        raise AttachError("malformed message: not a JSON object")
    if message.get("protocol") != PROTOCOL:
        raise AttachError(f"protocol {message.get('protocol')!r}; this version of rltop has {PROTOCOL}")
    return message


def request(path: Path, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send ``message`` to the listener at ``path`` and return its answer.

    Args:
        path: of the socket.
        message: without ``protocol`` and ``timeout_s``.
        timeout_s: seconds that the engine may take to reach a step boundary.

    Raises:
        AttachError: nothing listens there, another user does, or the answer is a refusal.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s + ANSWER_MARGIN_S)
        try:
            connection.connect(str(path))
            if peer_of(connection)[1] != os.getuid():
                raise AttachError(f"{path}: another user listens there")
            send(connection, {**message, "timeout_s": timeout_s})
            answer = receive(connection)
        except TimeoutError:
            raise AttachError("no answer; the process is stopped, or holds the GIL") from None
        except OSError as error:
            raise AttachError(f"can't reach the process: {error.strerror or error}") from error
    if not answer.get("ok"):
        raise AttachError(str(answer.get("reason") or "the process gave no reason"))
    return answer
