"""Who may do what: the one place in the hub that decides the role of a peer.

A viewer may ask. Whoever commands, answers an alarm or stops the hub must be a controller: the request carries a proof
made with the control key of the run, over the request and a challenge that the hub gives once, to this connection. So a
request that was captured can't be sent again, and a key that was rotated proves nothing any more.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from rltop.backend import api
from rltop.backend.hub.peers import Peer
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import RunKey, RunKeyError

MAX_CHALLENGES = 1024
"""Challenges that wait for their request; the oldest are forgotten, and their requests refused."""

log = logging.getLogger("rltop.hub")


class Role(StrEnum):
    """What a peer of the query socket may do."""

    VIEWER = "viewer"
    CONTROLLER = "controller"


class NotAuthorisedError(ValueError):
    """A peer may not do what it requests."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: its connection, its process if it is known, and its proof, if it sent one."""

    viewer: bytes
    peer: Peer | None = None
    proof: bytes = b""


class Access:
    """Decides the role of a caller, and names the author of a change.

    Args:
        key: of controllers.
    """

    def __init__(self, key: RunKey) -> None:
        self._key = key
        self._challenges: OrderedDict[tuple[bytes, str], None] = OrderedDict()

    def challenge(self, viewer: bytes) -> str:
        """A challenge for one request of this connection."""
        challenge = secrets.token_hex(16)
        self._challenges[viewer, challenge] = None
        while len(self._challenges) > MAX_CHALLENGES:
            self._challenges.popitem(last=False)
        return challenge

    def check(self, caller: Caller, frame: bytes) -> None:
        """Check that a request, as received, is a controller's.

        Raises:
            NotAuthorisedError: it is not; the message says what is missing.
        """
        if not caller.proof:
            raise NotAuthorisedError("this needs the control key of the run, and the request has no proof of it")
        try:
            role = self._role(caller, frame)
        except RunKeyError as error:
            raise NotAuthorisedError(str(error)) from error
        if role != Role.CONTROLLER:
            raise NotAuthorisedError("the request's proof is not of the present control key, or was used before")

    def _role(self, caller: Caller, frame: bytes) -> Role:
        challenge, proof = api.split_proof(caller.proof)
        if (caller.viewer, challenge) not in self._challenges:
            return Role.VIEWER
        del self._challenges[caller.viewer, challenge]  # whatever follows: each is for one request
        return Role.CONTROLLER if self._key.verifies(proof, *api.proven(challenge, frame)) else Role.VIEWER


def authored(question: api.AskControl, peer: Peer | None) -> api.AskControl:
    """The request with the author that the hub knows; what it says of its author becomes a claim."""
    if isinstance(question, api.AskStop):
        return question
    if peer is None:
        return msgspec.structs.replace(question, author=None)
    other_user, other_host = question.who not in ("", peer.user), question.host not in ("", peer.host)
    claimed = f"{question.who}@{question.host}" if other_user or other_host else ""
    author = api.Author(peer.uid, peer.pid, claimed)
    return msgspec.structs.replace(question, who=peer.user, host=peer.host, author=author)


class HubSeal:
    """Encodes messages to collectors, with the proof that this hub sends them where a collector must see one.

    Args:
        key: of the hub.
        epoch: of the hub.
        session_of: the session of the collector with an identity; empty if it has none, as in earlier versions.
    """

    def __init__(self, key: RunKey, epoch: str, session_of: Callable[[str], str]) -> None:
        self._key, self._epoch, self._session_of = key, epoch, session_of

    def __call__(self, to: str, message: wire.Body) -> bytes:
        """The message to the collector ``to``, encoded."""
        encoded = wire.encode(message)
        session = self._session_of(to)
        if not session or not isinstance(message, wire.MUST_BE_PROVEN):
            return encoded
        try:
            proof = self._key.proof(*wire.proven_parts(session, self._epoch, encoded))
        except RunKeyError as error:
            log.error("messages to collectors can't be proven, so they are refused: %s", error)
            return encoded
        return wire.encode(wire.Proven(self._epoch, encoded, proof))
