"""The process at the other end of a connection, as the kernel reports it."""

from __future__ import annotations

import functools
import pwd
import re
import socket
from dataclasses import dataclass

import zmq

_ADDRESS = re.compile(r".*:(?P<uid>\d+):(?P<gid>\d+):(?P<pid>\d+)")
"""``Peer-Address`` of a local socket: SO_PEERCRED of the process that connected."""

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that is connected to the hub.

    Attributes:
        uid: its user.
        pid: None if it is in a pid namespace that this process can't see.
        user, host: for people.
    """

    uid: int
    pid: int | None
    user: str
    host: str


def peer_of(frame: zmq.Frame) -> Peer | None:
    """The sender of a received frame; None if the transport does not show it."""
    try:
        address = frame.get("Peer-Address")
    except zmq.ZMQError:
        return None
    return _peer_at(str(address))


@functools.lru_cache(_REMEMBERED)
def _peer_at(address: str) -> Peer | None:
    if (found := _ADDRESS.fullmatch(address)) is None:
        return None
    uid, pid = int(found["uid"]), int(found["pid"])
    return Peer(uid, pid or None, _name_of(uid), socket.gethostname())


@functools.lru_cache(_REMEMBERED)
def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
