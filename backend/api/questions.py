"""Questions of viewers, answers of the hub, and their codec: one msgpack frame each way on the query socket."""

from __future__ import annotations

import uuid

import msgspec

from rltop.backend.api.alarm import Alarm
from rltop.backend.api.attribution import Attribution
from rltop.backend.api.effect import Effect
from rltop.backend.api.profiles import Mismatch
from rltop.backend.api.samples import Samples
from rltop.backend.api.snapshot import Engine, Frame, Snapshot
from rltop.backend.api.step import Step
from rltop.backend.api.verdict import Verdict


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Base of every question; ``id`` comes back in the answer."""

    id: str


def new_id() -> str:
    """An id for a question; sent twice with the same id, a command is executed once."""
    return uuid.uuid4().hex


class AskSnapshot(Ask, frozen=True, tag="snapshot"):
    """The whole picture. Answer: ``Answer.snapshot``."""


class AskAttribution(Ask, frozen=True, tag="attribution"):
    """Where the gap comes from, over the last ``steps`` steps. Answer: ``Answer.attribution``."""

    steps: int = 20


class AskSet(Ask, frozen=True, tag="set"):
    """Switch a flag on the named engines (None: all that are live). Answer: ``Answer.command``, or ``error``.

    The command's life then goes by in frames. ``who``, ``host`` and ``why`` are for the record. ``strict`` asks for the
    strict form of the value; after ``revert_s`` seconds the engines take it back by themselves, unless it is kept;
    ``fraction`` leaves the choice of engines to the hub: that share of the live ones, at least one, never all.
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


class AskAct(Ask, frozen=True, tag="act"):
    """Have engines do something else: ``verb`` is one of ``collectors.actions``. Otherwise as ``AskSet``.

    ``revert_s`` is after how many seconds an engine takes it back by itself, where the action has a guard timer.
    """

    verb: str
    engines: list[str] | None = None
    revert_s: float | None = None
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0


class AskKeep(Ask, frozen=True, tag="keep"):
    """Stop the timers of ``command`` on all engines that hold one. Otherwise as ``AskSet``.

    The answer names a command of its own, whose ``Change.target`` is the one that is kept.
    """

    command: str
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0


class AskUndo(Ask, frozen=True, tag="undo"):
    """Bring the engines that ``command`` changed back to what they had before. Otherwise as ``AskSet``.

    The answer names a command of its own, whose ``Change.reverts`` is the one that is undone. An engine whose flag was
    changed since is left alone, and its change closed as ``superseded``.
    """

    command: str
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 30.0


class AskProbe(Ask, frozen=True, tag="probe"):
    """Start ``probe`` (``collectors.probes``) on the named engines (None: all that are live). Otherwise as ``AskSet``.

    What it found out comes in a frame once the command has ended on every engine: ``Snapshot.probes``.
    """

    probe: str
    engines: list[str] | None = None
    who: str = ""
    host: str = ""
    why: str = ""
    timeout_s: float = 120.0


class AskEffect(Ask, frozen=True, tag="effect"):
    """What a command did to the run. ``command``: its id or the start of it; empty for the last that switched anything.

    Answer: ``Answer.effect``, or ``error``.
    """

    command: str = ""


class AskSamples(Ask, frozen=True, tag="samples"):
    """Sequences or tokens of a step (None: the last that any are kept of), of one engine if named. ``Answer.samples``.

    ``kind``: ``sample``, whole sequences chosen by chance alone; ``worst``, those with the highest mean k3;
    ``abs_diff`` and ``k3``, the tokens with the highest.
    """

    step: int | None = None
    kind: str = "sample"
    engine: str | None = None
    limit: int = 32


class AskMismatch(Ask, frozen=True, tag="mismatch"):
    """Where the gap of the steps ``first`` to ``last`` (None: no bound) lies. Answer: ``Answer.mismatch``."""

    first: int | None = None
    last: int | None = None


class AskDiagnosis(Ask, frozen=True, tag="diagnosis"):
    """What is wrong with the run, as of ``step`` (None: the last). Answer: ``Answer.diagnosis``, or ``error``."""

    step: int | None = None


class AskAcknowledge(Ask, frozen=True, tag="acknowledge"):
    """Take note of an alarm: nothing more is told of it, until it is another. Answer: ``Answer.alarm``, or ``error``.

    ``who``, ``host`` and ``why`` are for the record.
    """

    alarm: str
    who: str = ""
    host: str = ""
    why: str = ""


class AskSilence(Ask, frozen=True, tag="silence"):
    """Tell nothing of an alarm for ``seconds``; 0 ends a silence. Otherwise as ``AskAcknowledge``."""

    alarm: str
    seconds: float
    who: str = ""
    host: str = ""
    why: str = ""


class AskPast(Ask, frozen=True, tag="past"):
    """The run as it was when ``step`` had closed. Answer: ``Answer.past``, or ``error``."""

    step: int


class AskStop(Ask, frozen=True, tag="stop"):
    """End the hub, in good order."""


class PastState(msgspec.Struct, frozen=True):
    """A run as it was when a step had closed: the step with all its figures, and the engines as last heard of then."""

    step: Step
    engines: dict[str, Engine]


class Answer(msgspec.Struct, frozen=True):
    """Answer to the question with this ``id``; ``error`` says what was wrong with it."""

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


AskCommand = AskSet | AskAct | AskKeep | AskUndo | AskProbe
"""The questions that make a command."""

AskAlarm = AskAcknowledge | AskSilence
"""The questions that change an alarm."""

Question = (
    AskSnapshot
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

_encoder = msgspec.msgpack.Encoder()
_question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answer_decoder = msgspec.msgpack.Decoder(Answer)
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def encode(message: Frame | Answer | Question) -> bytes:
    """One message of the view or query socket."""
    return _encoder.encode(message)


def decode_question(frame: bytes) -> Question:
    """Check and decode a question. Raises ``ValueError``."""
    try:
        return _question_decoder.decode(frame)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def decode_answer(frame: bytes) -> Answer:
    """Check and decode an answer. Raises ``ValueError``."""
    return _answer_decoder.decode(frame)


def decode_frame(frame: bytes) -> Frame:
    """Check and decode a frame. Raises ``ValueError``."""
    return _frame_decoder.decode(frame)
