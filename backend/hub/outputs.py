"""What ``HubState`` returns: effects, which the worker thread performs in order."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.ingest.sources import Source
from rltop.collectors.contract import wire


@dataclass(frozen=True, slots=True)
class SendControl:
    """Send a control message to the collector with this identity (``<source>#<epoch>``)."""

    to: str
    message: wire.Body


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the viewer with this identity."""

    to: bytes
    answer: api.Answer


@dataclass(frozen=True, slots=True)
class AnswerFromStore:
    """Answer a viewer from the store, or with ``answer`` if the store can't: it is what the hub has in memory."""

    to: bytes
    question: api.AskSamples | api.AskMismatch | api.AskPast
    answer: api.Answer


@dataclass(frozen=True, slots=True)
class Stop:
    """End the hub."""


@dataclass(frozen=True, slots=True)
class Renew:
    """End this hub and begin another run in its directory, for ``reason``; the store moves to a run of its own.

    ``carried``: messages that the next hub takes first, as received: their sender may have ended.
    """

    reason: str
    carried: list[list[bytes]]


@dataclass(frozen=True, slots=True)
class Audit:
    """Write a line to the audit log. It precedes the effects that it describes."""

    line: audit.AuditLine


Effect = SendControl | Reply | AnswerFromStore | Stop | Renew | Audit


def identity(source: str, epoch: str) -> str:
    """Address of a collector on the control socket."""
    return f"{source}#{epoch}"


def send_to(source: Source, message: wire.Body) -> SendControl:
    """A control message to the current process of ``source``."""
    return SendControl(identity(source.wire_name, source.epoch), message)
