"""Every message between collectors and the hub: append-only structs, one version, size limits.

A data message (PUSH -> PULL) is ``[Envelope, body, array, array, ...]``: two msgpack frames and raw little-endian
arrays that the body names in order, packed into one frame of ZeroMQ (``pack``) unless it is very large. A control
message (DEALER <-> ROUTER) is one msgpack frame.

Rules of the wire: fields are only ever appended, with defaults; an unknown tag is counted, not fatal; nothing is
allocated before sizes, dtypes and lengths were checked; no pickle. ``docs/wire.md`` says the same for other languages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

PROTO = 1
"""Major version of the wire. A hub reads no other major version; it counts and names the sender instead."""

MAX_FRAMES = 32
MAX_FRAME_BYTES = 64 << 20
"""Limits on one data message. Larger batches are split by the sender."""

MAX_PACKED_BYTES = 16 << 20
"""Larger messages (a collector aims at 1 MiB) are not packed, but sent frame by frame."""

_SIZE = 4
"""Of each number at the beginning of a packed message."""

MAX_HEADER_BYTES = 8 << 20
MAX_CONTROL_BYTES = 1 << 20
"""Limits on a frame that is decoded into objects: an envelope or body, a control message."""

DTYPES: dict[str, np.dtype[Any]] = {"i4": np.dtype("<i4"), "f4": np.dtype("<f4"), "u1": np.dtype("u1")}
"""The element types an array frame may have."""

UNKNOWN_VERSION = -1
"""In integer version arrays: not known, or not computed."""


Version = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""A policy version outside of arrays: any number that a trainer counts by, such that a difference fits 64 bits."""


class WireError(ValueError):
    """A frame from outside that does not keep to the wire's rules."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Who sent a data message, and where it stands in what that sender sent.

    Attributes:
        proto: ``PROTO`` of the sender.
        source: stable name of the sender: an engine id (``e0``), or ``trainer/<rank>``.
        epoch: random id of this life of the sender's process; ``seq`` starts at 0 in each.
        seq: number of this message within the epoch; a hole is a loss in transit.
        sent: wall clock of the sender when it first sent this message, seconds.
        oldest: the sender can send again what it sent from this number on (``Resend``); None if it resends nothing.
    """

    proto: int
    source: str
    epoch: str
    seq: int
    sent: float
    oldest: int | None = None


class Array(msgspec.Struct, frozen=True, array_like=True):
    """One array frame: its name in the body's documentation, its dtype (a key of ``DTYPES``), its length."""

    name: str
    dtype: str
    size: int


class Body(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every tagged message."""


# --- engine -> hub ----------------------------------------------------------------------------------------------


class VersionRun(msgspec.Struct, frozen=True, array_like=True):
    """Tokens from ``start`` to the next run were sampled under one flag epoch and one policy version.

    ``version`` is None where vLLM carries none; see ``Rollout.version_source``.
    """

    start: int
    flag_epoch: int
    version: Version | None = None


class Rollout(msgspec.Struct, frozen=True, array_like=True):
    """One finished or aborted request.

    Attributes:
        request_id: as in the engine core (vLLM appends 8 hex digits to the caller's).
        prompt_size: prompt tokens, in ``Rollouts.prompt_ids``.
        size: sampled tokens, in ``Rollouts.token_ids`` and ``Rollouts.logprobs``.
        finish_reason: ``stop``, ``length``, ``abort`` or ``error``.
        runs: per-token flag epoch and policy version, run-length encoded; empty when ``size`` is 0.
        version_source: ``engine`` (vLLM's own label), ``inferred`` (from observed update calls) or ``unknown``.
        has_logprobs: False if the request did not ask for logprobs; its entries in ``logprobs`` are NaN.
        cached_tokens: prompt tokens read from the prefix cache; None where vLLM did not say.
        lookup_off: the prefix-cache lookup was off when the request was first scheduled.
        sampling: the sampling parameters that shape the distribution (temperature, top_p, top_k, min_p, penalties,
            seed), where set.
        arrived, scheduled, finished: wall clock of the engine, seconds; ``scheduled`` is 0.0 if it never was.
        first_step: engine step at which the request was first scheduled; -1 if it never was.
        updated: wall clock of the engine's last weight update before ``scheduled``; 0.0 if none was seen.
        started: wall clock at which the collector attached to the engine.
    """

    request_id: str
    prompt_size: int
    size: int
    finish_reason: str
    runs: list[VersionRun]
    version_source: str
    has_logprobs: bool
    cached_tokens: int | None = None
    lookup_off: bool = False
    sampling: dict[str, float] = {}
    arrived: float = 0.0
    scheduled: float = 0.0
    finished: float = 0.0
    first_step: int = -1
    updated: float = 0.0
    started: float = 0.0


class Rollouts(Body, frozen=True, array_like=True, tag="rollouts"):
    """Finished requests of one engine.

    Arrays, concatenated in the order of ``rollouts``: ``prompt_ids`` i4, ``token_ids`` i4, ``logprobs`` f4 (nats;
    NaN where not recorded).
    """

    engine: str
    rollouts: list[Rollout]
    arrays: list[Array]


class FlagState(msgspec.Struct, frozen=True, array_like=True):
    """One flag as read from the live objects of an engine.

    ``value`` is one of the flag's values, or None where this engine has no such thing; ``reason`` says why it is not
    ``switchable``, and may carry the launch option that would make it so. ``detail`` says which form of the value it
    is, where there are several (``depth 1`` or ``strict`` of an asynchronous scheduling that is off).
    """

    value: str | None
    switchable: bool
    reason: str = ""
    detail: str = ""


class CommandUpdate(Body, frozen=True, array_like=True, tag="command_update"):
    """What became of a command on one engine. Sent on the control socket, and repeated in ``EngineState.commands``.

    Attributes:
        id: id of the command.
        state: ``accepted``, ``draining``, ``applied``, ``refused``, ``timed_out``, ``superseded`` (it was to take
            something back that was changed since, and left it alone).
        reason: why it was refused, or what there is to know about how it was applied.
        old, new: the flag's value as read back before and after.
        engine_step: engine step at whose boundary it happened.
        policy_version: weights at that moment, None if unknown.
        in_flight: requests running or waiting at that moment.
        lost_requests: of those, how many are neither alive nor properly finished afterwards; None where nobody counted,
            since nothing was done.
        milliseconds: how long the engine's own thread was busy with the switch; None where nothing was done.
        time: wall clock of the engine, seconds.
        verb: what was asked, as in ``Command``; ``flag`` is empty where it names none.
        detail: form of the new value, as in ``FlagState``.
        reverts_at: wall clock at which the engine will take it back by itself; None if it will not.
        reverts: id of the command that this one takes back: at its timer's end (then this one is the engine's own,
            with the id ``<id>/revert``), or because somebody wants it undone.
        flag_epoch: tokens of this flag epoch and later were sampled after it; None if it changed none.
    """

    id: str
    engine: str
    flag: str
    state: str
    reason: str = ""
    old: str | None = None
    new: str | None = None
    engine_step: int | None = None
    policy_version: Version | None = None
    in_flight: int | None = None
    lost_requests: int | None = None
    milliseconds: float | None = None
    time: float = 0.0
    verb: str = "set"
    detail: str = ""
    reverts_at: float | None = None
    reverts: str = ""
    flag_epoch: int | None = None


class Timer(msgspec.Struct, frozen=True, array_like=True):
    """The engine will take back what ``command`` did at wall clock ``at``, unless it is kept.

    ``verb`` and ``flag`` are those of the command, ``back_to`` the value that the flag had before.
    """

    command: str
    verb: str
    flag: str
    back_to: str
    at: float


class EngineState(Body, frozen=True, array_like=True, tag="engine_state"):
    """An engine as it is now. Sent once a second and after every switch; complete, so a new hub needs nothing else.

    Attributes:
        engine: id of the engine.
        step: engine steps executed since the collector attached.
        policy_version: version of the weights in use; None if unknown.
        version_source: as in ``Rollout``.
        weight_label: vLLM's own label of the weights, verbatim.
        running, waiting: requests in the scheduler.
        kv_usage: used share of the KV cache, 0 to 1.
        prompt_tokens, generated_tokens: counters since the collector attached.
        cached_tokens: counter, prompt tokens read from the prefix cache.
        flags: by flag name.
        flag_epoch: number of applied switches since the collector attached.
        fingerprint: facts read from the live objects (vLLM version, runner, dtype, ...), for people and for comparison.
        commands: the last commands this engine closed, newest last.
        paused: generation is paused. update_open: a weight update is under way.
        timers: what the engine will take back by itself, soonest first.
    """

    engine: str
    host: str
    pid: int
    step: int
    policy_version: Version | None
    version_source: str
    weight_label: str | None
    running: int
    waiting: int
    kv_usage: float | None
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    finished: int
    aborted: int
    without_logprobs: int
    flags: dict[str, FlagState]
    flag_epoch: int
    fingerprint: dict[str, str]
    commands: list[CommandUpdate] = []
    paused: bool = False
    update_open: bool = False
    weight_updates: int = 0
    timers: list[Timer] = []


class Score(msgspec.Struct, frozen=True, array_like=True):
    """The logprobs of one request of a probe, ``size`` of them in ``ProbeReport``'s array.

    Attributes:
        passage: number of the command's passage. way: ``cold``, ``hot`` or ``warm`` (``collectors.probes``).
        first: place in the passage's ids of the token that the first logprob is of.
        size: how many follow; the last is of the passage's last token, or of the last that was scored.
        cached: tokens read from the prefix cache; None where vLLM did not say.
    """

    passage: int
    way: str
    first: int
    size: int
    cached: int | None = None


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """Checksums (``collectors.digests``) of one tensor on one rank, 16 hex digits each.

    ``kind``: ``parameter``; ``packed``, read by projecting unit vectors; ``buffer``; ``other``, which
    ``named_parameters`` and ``named_buffers`` miss; ``unread``, with the checksums empty.
    """

    name: str
    kind: str
    whole: str
    rows: str
    dtype: str
    elements: int
    rank: int = 0
    columns: str = ""


class ProbeReport(Body, frozen=True, array_like=True, tag="probe_report"):
    """What an engine measured for the probe ``command``; sent before the command is closed. Raw: the hub judges.

    Array: ``logprobs`` f4 (nats), of all ``scores`` one after another.

    Attributes:
        policy_version, weight_updates, flag_epoch: of the engine, the same from the probe's begin to its end.
        requests, tokens: that it sent. seconds: from begin to end.
        stall_s, longest_s: how long the engine's thread was busy with the probe, in all and at once.
        fused: parts of a module's name, by the name of the module that has them in one tensor (``qkv_proj``).
        notes: what could not be done, one sentence each.
    """

    command: str
    engine: str
    probe: str
    arrays: list[Array]
    policy_version: Version | None = None
    weight_updates: int = 0
    flag_epoch: int = 0
    scores: list[Score] = []
    digests: list[Digest] = []
    fused: dict[str, list[str]] = {}
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stall_s: float = 0.0
    longest_s: float = 0.0
    notes: list[str] = []


# --- trainer -> hub ---------------------------------------------------------------------------------------------

TOKEN_COLUMNS: dict[str, str] = {
    "rollout_logprobs": "f4",
    "trainer_logprobs": "f4",
    "old_logprobs": "f4",
    "entropy": "f4",
    "advantages": "f4",
    "rollout_versions": "i4",
    "old_versions": "i4",
    "clipped": "u1",
}
"""The arrays of ``Sequences`` that have one entry per trained token, with their element types."""

ROW_COLUMNS: dict[str, str] = {
    "row_ids": "i4",
    "row_mask": "u1",
    "row_sizes": "i4",
    "prompt_ids": "i4",
    "prompt_sizes": "i4",
    "rewards": "f4",
}
"""The other arrays of ``Sequences``, likewise."""


class Sequences(Body, frozen=True, array_like=True, tag="sequences"):
    """Rows that one rank trained on in one step, and what is known of every trained token.

    Arrays. Per row, concatenated: ``row_ids`` i4 and ``row_mask`` u1 (``row_sizes`` entries per row, cut after the
    last trained token), ``prompt_ids`` i4 (``prompt_sizes`` per row; absent if the rows contain their prompts).
    ``row_sizes`` i4 [rows], ``prompt_sizes`` i4 [rows], ``rewards`` f4 [rows].
    Per trained token (where ``row_mask`` is 1), concatenated in row order: ``rollout_logprobs`` f4 and
    ``trainer_logprobs`` f4 always; ``old_logprobs`` f4, ``entropy`` f4, ``advantages`` f4, ``rollout_versions`` i4,
    ``old_versions`` i4 (``UNKNOWN_VERSION`` where not computed), ``clipped`` u1 where given. All in nats.

    ``update`` numbers the optimizer updates on the same rollouts, from 0. ``clip_low`` and ``clip_high`` bound the
    ratio; ``ratio_base`` names its denominator, ``rollout`` or ``old``; ``objective`` is ``ppo`` or ``gspo``.
    ``request_ids`` are what vLLM or its caller named the request of each row by, empty where not kept; none, or [rows].
    """

    step: int
    update: int
    rank: int
    rows: int
    arrays: list[Array]
    policy_version: Version | None = None
    temperature: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    ratio_base: str = "rollout"
    objective: str = "ppo"
    request_ids: list[str] = []


class StepClosed(Body, frozen=True, array_like=True, tag="step_closed"):
    """A rank has passed all it had for ``step``. The step closes when ``world_size`` ranks have said so.

    ``weight_digests``: of the weights after the step, by the checkpoint's names: dtype, checksums of rows and columns
    (``collectors.digests``), with colons; empty where the trainer gave none. ``rows``: passed for the step, those of
    all updates, whatever became of them; None if it did not count.
    """

    step: int
    rank: int
    world_size: int
    policy_version: Version | None = None
    metrics: dict[str, float] = {}
    time: float = 0.0
    weight_digests: dict[str, str] = {}
    rows: int | None = None


class TrainerFacts(Body, frozen=True, array_like=True, tag="trainer_facts"):
    """What a trainer rank says it computes with; sent at the start, when it changes, and to every new hub.

    ``facts`` uses the names of ``EngineState.fingerprint`` where both have the same fact (``dtype``, ``head_dtype``),
    and those of the sampling parameters (``temperature``, ``top_p``, ...), as text.
    """

    rank: int
    facts: dict[str, str]


# --- any collector -> hub ---------------------------------------------------------------------------------------


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """What became of the records of one kind: ``offered == sent + dropped + queued``, always."""

    offered: int = 0
    sent: int = 0
    dropped: int = 0
    queued: int = 0


class Health(Body, frozen=True, array_like=True, tag="health"):
    """Once a second: what this collector lost, and whether the loop it watches still turns.

    ``loop_count`` rises with every turn of the host's loop, ``loop_age`` is the seconds since it last rose;
    ``faults`` counts exceptions that the guard kept from the host, by place.
    """

    counts: dict[str, Counts]
    queue_bytes: int
    queue_limit_bytes: int
    loop_count: int = 0
    loop_age: float = 0.0
    faults: dict[str, int] = {}


PASSING = (EngineState, Health)
"""Messages about the present, each of which makes those before it void: not kept, and never sent again."""


class Passed(Body, frozen=True, array_like=True, tag="passed"):
    """Sent again in place of a message of ``PASSING``, so that no number is missing."""


# --- control socket ---------------------------------------------------------------------------------------------


class Register(Body, frozen=True, array_like=True, tag="register"):
    """First message on the control socket, and after every reconnect: which source this connection belongs to."""

    proto: int
    source: str
    epoch: str
    role: str


class Bye(Body, frozen=True, array_like=True, tag="bye"):
    """The sender's last word: ``sent`` data messages left in this epoch. The hub answers ``ByeAck``.

    ``oldest``: as in ``Envelope``.
    """

    source: str
    epoch: str
    sent: int
    oldest: int | None = None


class ByeAck(Body, frozen=True, array_like=True, tag="bye_ack"):
    """The hub has everything up to the sender's ``Bye``."""

    epoch: str


class Welcome(Body, frozen=True, array_like=True, tag="welcome"):
    """Answer to ``Register``: which hub this is. Also sent when a new hub hears from a source it does not know."""

    hub_epoch: str


class Acknowledged(Body, frozen=True, array_like=True, tag="acknowledged"):
    """No hub will ask again for what the sender sent in this epoch, up to number ``seq``: it is stored, or settled."""

    epoch: str
    seq: int


class Resend(Body, frozen=True, array_like=True, tag="resend"):
    """The hub lacks number ``seq`` of this epoch: send again from there on, all of it and in order, as far as kept."""

    epoch: str
    seq: int


class Passage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens for a probe to score: ``ids`` is i4 [n], prompt and completion of a rollout; the latter from ``start`` on.

    ``request_id`` is the rollout's: the engine that had it knows under which cache salt.
    """

    request_id: str
    ids: bytes
    start: int


class Command(Body, frozen=True, array_like=True, tag="command"):
    """What the receiving engine is to do. Idempotent by ``id``; void after ``deadline`` (hub's wall clock).

    Attributes:
        flag, value: of ``set``: which flag, and to what; empty for the other verbs.
        verb: ``set``; ``keep`` (stop the timer of ``target``); ``flush_cache``; ``pause``; ``resume``.
        strict: of ``set``: the strict form of the value, where the flag has one.
        revert_s: of ``set`` and ``pause``: the engine takes it back by itself after so many seconds; None: never.
        probe, passages: of ``probe``: which one, and the tokens that it scores, where it scores any.
        target: of ``keep``: id of the command to keep. Of ``set`` and ``resume``: this takes back what that command
            did, and does nothing (``superseded``) if that does not stand any more as it was left.
    """

    id: str
    flag: str
    value: str
    deadline: float
    verb: str = "set"
    strict: bool = False
    revert_s: float | None = None
    target: str = ""
    probe: str = ""
    passages: tuple[Passage, ...] = ()


DataBody = Rollouts | EngineState | Sequences | StepClosed | Health | TrainerFacts | ProbeReport | Passed
ControlToHub = Register | CommandUpdate | Bye
ControlToCollector = Welcome | Command | ByeAck | Acknowledged | Resend

_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_data_decoder: msgspec.msgpack.Decoder[DataBody] = msgspec.msgpack.Decoder(DataBody)
_to_hub_decoder: msgspec.msgpack.Decoder[ControlToHub] = msgspec.msgpack.Decoder(ControlToHub)
_to_collector_decoder: msgspec.msgpack.Decoder[ControlToCollector] = msgspec.msgpack.Decoder(ControlToCollector)

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises on bytes from outside; ValidationError is a DecodeError."""

T = TypeVar("T")

Arrays = dict[str, NDArray[Any]]


def describe(arrays: Arrays) -> list[Array]:
    """The ``Array`` entries for arrays whose dtypes are already those of the wire.

    Raises:
        WireError: a dtype or a number of axes that the wire does not carry.
    """
    named = {dtype: name for name, dtype in DTYPES.items()}
    described = []
    for name, array in arrays.items():
        if array.dtype not in named or array.ndim != 1:
            raise WireError(f"{name}: {array.dtype} with {array.ndim} axes; the wire carries 1-D i4, f4, u1")
        described.append(Array(name, named[array.dtype], array.size))
    return described


def encode_data(envelope: Envelope, body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """The frames of one data message: ``encode_envelope`` and ``encode_body``."""
    return [encode_envelope(envelope), *encode_body(body, arrays)]


def encode_envelope(envelope: Envelope) -> bytes:
    """The first frame of a data message."""
    return _encoder.encode(envelope)


def encode_body(body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """The other frames. ``arrays`` must be contiguous and described in the body, in the same order.

    Raises:
        WireError: the message is beyond the limits that ``decode_data`` sets.
    """
    frames: list[bytes | memoryview] = [_encoder.encode(body)]
    frames += [array.data.cast("B") if array.size else b"" for array in arrays.values()]
    _check_limits([b"", *frames])
    return frames


def pack(frames: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join a data message's frames into one, unless it is very large: their number, their sizes, their bytes.

    Every frame that is sent or received releases the GIL, and beside a thread that computes in Python it takes up to
    5 ms to get it back.
    """
    sizes = [len(frames), *map(len, frames)]
    if sum(sizes) > MAX_PACKED_BYTES:
        return list(frames)
    return [b"".join((struct.pack(f"<{len(sizes)}I", *sizes), *frames))]


def unpack(frames: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """Undo ``pack``; frames that were sent one by one are returned as they are.

    Each frame is an object of its own, so that keeping one array does not keep the whole message.

    Raises:
        WireError: the sizes do not fit.
    """
    if len(frames) != 1:
        return frames
    packed = memoryview(frames[0])
    number = struct.unpack_from("<I", packed)[0] if len(packed) >= _SIZE else 0
    if not 2 <= number <= MAX_FRAMES or len(packed) < (at := _SIZE * (number + 1)):
        raise WireError(f"a packed message of {len(packed)} bytes and {number} frames; it has 2 to {MAX_FRAMES}")
    sizes = struct.unpack_from(f"<{number}I", packed, _SIZE)
    if at + sum(sizes) != len(packed):
        raise WireError(f"frames of {sum(sizes)} bytes packed into {len(packed) - at}")
    return [bytes(packed[at : (at := at + size)]) for size in sizes]


def decode_data(frames: Sequence[bytes | memoryview]) -> tuple[Envelope, DataBody, Arrays]:
    """Check and decode one data message, packed or not; the arrays are views of the frames, read-only.

    Raises:
        WireError: too many or too large frames, another major version, an unknown message, or arrays that do not fit
            their description.
    """
    frames = unpack(frames)
    _check_limits(frames)
    try:
        envelope = _envelope_decoder.decode(frames[0])
        if envelope.proto != PROTO:
            raise WireError(f"{envelope.source} speaks wire version {envelope.proto}, this hub {PROTO}")
        body = _data_decoder.decode(frames[1])
    except _MALFORMED as error:
        raise WireError(str(error)) from error
    described = getattr(body, "arrays", [])
    if len(described) != len(frames) - 2:
        raise WireError(f"{len(described)} arrays described, {len(frames) - 2} sent")
    arrays: Arrays = {}
    for entry, frame in zip(described, frames[2:], strict=True):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None or entry.size < 0 or entry.name in arrays or len(frame) != entry.size * dtype.itemsize:
            raise WireError(f"array {entry.name!r}: {entry.dtype} x {entry.size} does not fit {len(frame)} bytes")
        arrays[entry.name] = np.frombuffer(frame, dtype)
    return envelope, body, arrays


def _check_limits(frames: Sequence[bytes | memoryview]) -> None:
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"{len(frames)} frames; a data message has 2 to {MAX_FRAMES}")
    if any(len(frame) > MAX_HEADER_BYTES for frame in frames[:2]):
        raise WireError(f"a header frame of more than {MAX_HEADER_BYTES} bytes")
    if any(len(frame) > MAX_FRAME_BYTES for frame in frames[2:]):
        raise WireError(f"an array frame of more than {MAX_FRAME_BYTES} bytes")


def encode(body: Body) -> bytes:
    """One control message."""
    return _encoder.encode(body)


def decode_to_hub(frame: bytes) -> ControlToHub:
    """Check and decode a control message from a collector. Raises ``WireError``."""
    return _decode_control(_to_hub_decoder, frame)


def decode_to_collector(frame: bytes) -> ControlToCollector:
    """Check and decode a control message from the hub. Raises ``WireError``."""
    return _decode_control(_to_collector_decoder, frame)


def _decode_control(decoder: msgspec.msgpack.Decoder[T], frame: bytes) -> T:
    if len(frame) > MAX_CONTROL_BYTES:
        raise WireError(f"a control message of {len(frame)} bytes; at most {MAX_CONTROL_BYTES}")
    try:
        return decoder.decode(frame)
    except _MALFORMED as error:
        raise WireError(str(error)) from error
