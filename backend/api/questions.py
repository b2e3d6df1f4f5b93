"""Requests of viewers, answers of the hub, and their codec: one msgpack frame each way on the query socket."""

from __future__ import annotations

import uuid

import msgspec

from rltop.backend.api.alarm import Alarm
from rltop.backend.api.attribution import Attribution
from rltop.backend.api.author import Author
from rltop.backend.api.effect import Effect
from rltop.backend.api.profiles import Mismatch
from rltop.backend.api.samples import Samples
from rltop.backend.api.snapshot import Engine, Frame, Snapshot
from rltop.backend.api.step import Step
from rltop.backend.api.verdict import Verdict
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import PROOF_BYTES


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Base of every request; the answer has the same ``id``."""

    id: str


def new_id() -> str:
    """An id for a question; sent twice with the same id, a command is executed once."""
    return uuid.uuid4().hex


class AskChallenge(Ask, frozen=True, tag="challenge"):
    """Get the challenge for one request that needs the control key. Answer: ``Answer.challenge``."""


class AskSnapshot(Ask, frozen=True, tag="snapshot"):
    """Get the whole snapshot. Answer: ``Answer.snapshot``."""


class AskAttribution(Ask, frozen=True, tag="attribution"):
    """Break the gap of the last ``steps`` steps down by source. Answer: ``Answer.attribution``."""

    steps: wire.Count = 20


class AskSet(Ask, frozen=True, tag="set"):
    """Set a flag on the named engines (None: all live ones). Answer: ``Answer.command``, or ``error``.

    Frames then report the progress of the command. ``who``, ``host`` and ``why`` are for the audit log: the hub takes
    the first two from the sender's process, and records others as a claim. ``author`` is set by the hub. ``strict``
    requests the strict form of the value. After ``revert_s`` seconds the engines revert it, unless it is kept. With
    ``fraction`` the hub chooses the engines: that share of the live ones, at least one, never all.
    """

    flag: str
    value: str
    engines: list[str] | None = None
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0
    strict: bool = False
    revert_s: float | None = None
    fraction: float | None = None
    author: Author | None = None


class AskAct(Ask, frozen=True, tag="act"):
    """Execute an action on engines: ``verb`` is one of ``collectors.contract.actions``. Otherwise as ``AskSet``.

    After ``revert_s`` seconds an engine reverts it, if the action has a guard timer.
    """

    verb: str
    engines: list[str] | None = None
    revert_s: float | None = None
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0
    author: Author | None = None


class AskKeep(Ask, frozen=True, tag="keep"):
    """Stop the revert timers of ``command`` on all engines. Otherwise as ``AskSet``.

    The answer has the id of a new command, whose ``Change.target`` is the kept command.
    """

    command: str
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0
    author: Author | None = None


class AskUndo(Ask, frozen=True, tag="undo"):
    """Revert the engines that ``command`` changed to their previous values. Otherwise as ``AskSet``.

    The answer has the id of a new command, whose ``Change.reverts`` is the reverted command. An engine whose flag was
    changed since is skipped, and its change closed as ``superseded``.
    """

    command: str
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0
    author: Author | None = None


class AskProbe(Ask, frozen=True, tag="probe"):
    """Start ``probe`` (``collectors.contract.probes``) on the named engines (None: all live ones).

    Otherwise as ``AskSet``. A frame has the result once the command has ended on every engine: ``Snapshot.probes``.
    """

    probe: str
    engines: list[str] | None = None
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 120.0
    author: Author | None = None


class AskEffect(Ask, frozen=True, tag="effect"):
    """Estimate the effect of ``command``: an id or its prefix; empty for the last command that switched something.

    Answer: ``Answer.effect``, or ``error``.
    """

    command: str = ""


class AskSamples(Ask, frozen=True, tag="samples"):
    """Get sequences or tokens of a step (None: the last with samples), of one engine if named. ``Answer.samples``.

    ``kind``: ``sample``, a random sample of sequences; ``worst``, the sequences with the highest mean k3; ``abs_diff``
    and ``k3``, the tokens with the highest |d| and k3.
    """

    step: wire.Count | None = None
    kind: str = "sample"
    engine: str | None = None
    limit: wire.Count = 32


class AskMismatch(Ask, frozen=True, tag="mismatch"):
    """Get the gap profiles of the steps ``first`` to ``last`` (None: no bound). Answer: ``Answer.mismatch``."""

    first: wire.Count | None = None
    last: wire.Count | None = None


class AskDiagnosis(Ask, frozen=True, tag="diagnosis"):
    """Diagnose the run as of ``step`` (None: the last). Answer: ``Answer.diagnosis``, or ``error``."""

    step: wire.Count | None = None


class AskAcknowledge(Ask, frozen=True, tag="acknowledge"):
    """Acknowledge an alarm: no more notifications until it changes its cause. Answer: ``Answer.alarm``, or ``error``.

    ``who``, ``host``, ``why`` and ``author`` as in ``AskSet``.
    """

    alarm: str
    who: str = ""
    host: str = ""
    why: str = ""
    author: Author | None = None


class AskSilence(Ask, frozen=True, tag="silence"):
    """Silence an alarm for ``seconds``; 0 ends a silence. Otherwise as ``AskAcknowledge``."""

    alarm: str
    seconds: float
    who: str = ""
    host: str = ""
    why: str = ""
    author: Author | None = None


class AskPast(Ask, frozen=True, tag="past"):
    """Get the run as it was when ``step`` closed. Answer: ``Answer.past``, or ``error``."""

    step: wire.Count


class AskStop(Ask, frozen=True, tag="stop"):
    """Shut the hub down cleanly."""


class PastState(msgspec.Struct, frozen=True):
    """A run as it was when a step closed: the step with all metrics, and the engines as last reported then."""

    step: Step
    engines: dict[str, Engine]


class Answer(msgspec.Struct, frozen=True):
    """Answer to the request with this ``id``; ``error`` explains a failure."""

    id: str
    error: str | None = None
    snapshot: Snapshot | None = None
    command: str | None = None
    effect: Effect | None = None
    attribution: Attribution | None = None
    samples: Samples | None = None
    mismatch: Mismatch | None = None
    diagnosis: Verdict | None = None
    alarm: Alarm | None = None
    past: PastState | None = None
    challenge: str | None = None


AskCommand = AskSet | AskAct | AskKeep | AskUndo | AskProbe
"""Requests that create a command."""

AskAlarm = AskAcknowledge | AskSilence
"""Requests that change an alarm."""

AskControl = AskCommand | AskAlarm | AskStop
"""Requests that need the control key: the frame is followed by one with a proof (``encode_proof``)."""

Question = (
    AskSnapshot
    | AskChallenge
    | AskAttribution
    | AskCommand
    | AskEffect
    | AskSamples
    | AskMismatch
    | AskDiagnosis
    | AskAlarm
    | AskPast
    | AskStop
)


class _Identified(msgspec.Struct):
    """The part of a request that an answer needs."""

    id: str


_encoder = msgspec.msgpack.Encoder()
_id_decoder = msgspec.msgpack.Decoder(_Identified)
_question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answer_decoder = msgspec.msgpack.Decoder(Answer)
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def encode(message: Frame | Answer | Question) -> bytes:
    """Encode a message of the view or query socket."""
    return _encoder.encode(message)


def decode_question(frame: bytes) -> Question:
    """Validate and decode a request. Raises ``ValueError``."""
    try:
        return _question_decoder.decode(frame)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def proven(challenge: str, frame: bytes) -> tuple[bytes, ...]:
    """The parts that the proof of an encoded request covers; see ``collectors.contract.keys``."""
    return b"rltop control", challenge.encode(), frame


def encode_proof(challenge: str, proof: bytes) -> bytes:
    """The frame after a request that needs the control key."""
    return proof + challenge.encode()


def split_proof(frame: bytes) -> tuple[str, bytes]:
    """The challenge and the proof of such a frame; anything may come out of a malformed one."""
    return frame[PROOF_BYTES:].decode(errors="replace"), frame[:PROOF_BYTES]


def refusal(frame: bytes, error: ValueError) -> Answer | None:
    """The answer to a request that can't be decoded; None if not even its id can be."""
    try:
        return Answer(_id_decoder.decode(frame).id, f"invalid request: {error}")
    except (ValueError, RecursionError):
        return None


def decode_answer(frame: bytes) -> Answer:
    """Validate and decode an answer. Raises ``ValueError``."""
    return _answer_decoder.decode(frame)


def decode_frame(frame: bytes) -> Frame:
    """Validate and decode a frame. Raises ``ValueError``."""
    return _frame_decoder.decode(frame)
