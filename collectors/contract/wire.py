"""All messages between collectors and the hub: append-only structs, one version, size limits.

A data message (PUSH -> PULL) is ``[Envelope, body, array, array, ...]``: two msgpack frames and raw little-endian
arrays that the body lists in order, packed into one ZeroMQ frame (``pack``) unless it is very large. A control message
(DEALER <-> ROUTER) is one msgpack frame.

Rules: fields are only ever appended, with defaults; an unknown tag is counted, not fatal; sizes, dtypes and lengths are
checked before anything is allocated; no pickle. ``docs/wire.md`` describes the wire for other languages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

PROTO = 1
"""Major version of the wire. A hub reads no other major version; it counts and reports the sender instead."""

MAX_FRAMES = 32
MAX_FRAME_BYTES = 64 << 20
"""Limits on one data message. Larger batches are split by the sender."""

MAX_PACKED_BYTES = 16 << 20
"""Larger messages (a collector aims at 1 MiB) are sent frame by frame."""

_SIZE = 4
"""Bytes of each number at the beginning of a packed message."""

MAX_HEADER_BYTES = 8 << 20
MAX_CONTROL_BYTES = 1 << 20
"""Limits on frames that are decoded into objects: envelope or body, control message."""

DTYPES: dict[str, np.dtype[Any]] = {"i4": np.dtype("<i4"), "f4": np.dtype("<f4"), "u1": np.dtype("u1")}
"""The element types of array frames."""

UNKNOWN_VERSION = -1
"""In integer version arrays: unknown, or not computed."""

Version = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""A policy version outside of arrays; bounded so that a difference fits 64 bits."""


class WireError(ValueError):
    """A received frame that violates the rules of the wire."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Sender and sequence number of a data message.

    Attributes:
        proto: ``PROTO`` of the sender.
        source: stable name of the sender: an engine id (``e0``), or ``trainer/<rank>``.
        epoch: random id of the sender's process lifetime; ``seq`` starts at 0 in each.
        seq: number of this message within the epoch; a gap is a loss in transit.
        sent: wall clock of the sender when it first sent this message, seconds.
        oldest: the sender can resend messages from this number on (``Resend``); None if it can't resend.
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

    ``version`` is None if vLLM has none; see ``Rollout.version_source``.
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
        cached_tokens: prompt tokens read from the prefix cache; None if vLLM did not report it.
        lookup_off: the prefix-cache lookup was off when the request was first scheduled.
        sampling: the sampling parameters that shape the distribution (temperature, top_p, top_k, min_p, penalties,
            seed), if set.
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
    NaN if not recorded).
    """

    engine: str
    rollouts: list[Rollout]
    arrays: list[Array]


class FlagState(msgspec.Struct, frozen=True, array_like=True):
    """One flag as read from the live objects of an engine.

    ``value`` is one of the flag's values, or None if this engine lacks the feature; ``reason`` says why it is not
    ``switchable``, and may name the launch option that makes it so. ``detail`` is the form of the value, if there are
    several (``depth 1`` or ``strict`` of asynchronous scheduling that is off).
    """

    value: str | None
    switchable: bool
    reason: str = ""
    detail: str = ""


class CommandUpdate(Body, frozen=True, array_like=True, tag="command_update"):
    """State of a command on one engine. Sent on the control socket, and repeated in ``EngineState.commands``.

    Attributes:
        id: id of the command.
        state: ``accepted``, ``draining``, ``applied``, ``refused``, ``timed_out``, ``superseded`` (a
            revert whose target was changed since; nothing was done).
        reason: why it was refused, or remarks on how it was applied.
        old, new: the flag's value as read back before and after.
        engine_step: engine step at whose boundary it took effect.
        policy_version: weights at that moment, None if unknown.
        in_flight: requests running or waiting at that moment.
        lost_requests: of those, how many are neither alive nor properly finished afterwards; None if nothing was done.
        milliseconds: how long the engine's own thread was busy with the switch; None if nothing was done.
        time: wall clock of the engine, seconds.
        verb: as in ``Command``; ``flag`` is empty if the verb has none.
        detail: form of the new value, as in ``FlagState``.
        reverts_at: wall clock at which the engine auto-reverts it; None if it does not.
        reverts: id of the command that this one reverts: when its timer ends (then this one is the engine's own, with
            the id ``<id>/revert``), or on request.
        flag_epoch: tokens of this flag epoch and later were sampled after it; None if it changed no flag.
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
    """The engine auto-reverts ``command`` at wall clock ``at``, unless it is kept.

    ``verb`` and ``flag`` are those of the command; ``back_to`` is the flag's previous value.
    """

    command: str
    verb: str
    flag: str
    back_to: str
    at: float


class EngineState(Body, frozen=True, array_like=True, tag="engine_state"):
    """Current state of an engine. Sent once a second and after every switch; complete, so a new hub needs nothing else.

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
        fingerprint: facts read from the live objects (vLLM version, runner, dtype, ...), for display and comparison.
        commands: the last commands that this engine closed, newest last.
        paused: generation is paused. update_open: a weight update is under way.
        timers: pending auto-reverts, soonest first.
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
    """One scored request of a probe, with ``size`` logprobs in the array of ``ProbeReport``.

    Attributes:
        passage: number of the command's passage. way: ``cold``, ``hot`` or ``warm`` (``contract.probes``).
        first: index in the passage's ids of the token of the first logprob.
        size: number of logprobs, up to the passage's last token or the last that was scored.
        cached: tokens read from the prefix cache; None if vLLM did not report it.
    """

    passage: int
    way: str
    first: int
    size: int
    cached: int | None = None


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """Checksums (``contract.digests``) of one tensor on one rank, 16 hex digits each.

    ``kind``: ``parameter``; ``packed``, read by projecting unit vectors; ``buffer``; ``other``, not in
    ``named_parameters`` or ``named_buffers``; ``unread``, with empty checksums.
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
    """Raw measurements of an engine for the probe ``command``, sent before the command is closed.

    Array: ``logprobs`` f4 (nats), of all ``scores``, concatenated.

    Attributes:
        policy_version, weight_updates, flag_epoch: of the engine, constant during the probe.
        requests, tokens: sent by the probe. seconds: duration.
        stall_s, longest_s: how long the probe kept the engine's thread busy, in total and at most at once.
        fused: names of the parts, by the name of the module that fuses them into one tensor (``qkv_proj``).
        notes: what could not be measured, one sentence each.
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
"""The other arrays of ``Sequences``, with their element types."""


class Sequences(Body, frozen=True, array_like=True, tag="sequences"):
    """Rows that one rank trained on in one step, and values of every trained token.

    Arrays. Per row, concatenated: ``row_ids`` i4 and ``row_mask`` u1 (``row_sizes`` entries per row, cut after the
    last trained token), ``prompt_ids`` i4 (``prompt_sizes`` per row; absent if the rows contain their prompts).
    ``row_sizes`` i4 [rows], ``prompt_sizes`` i4 [rows], ``rewards`` f4 [rows].
    Per trained token (where ``row_mask`` is 1), concatenated in row order: ``rollout_logprobs`` f4 and
    ``trainer_logprobs`` f4 always; ``old_logprobs`` f4, ``entropy`` f4, ``advantages`` f4, ``rollout_versions`` i4,
    ``old_versions`` i4 (``UNKNOWN_VERSION`` if not computed), ``clipped`` u1 if given. Logprobs are in nats.

    ``update`` numbers the optimizer updates on the same rollouts, from 0. ``clip_low`` and ``clip_high`` bound the
    ratio; ``ratio_base`` names its denominator, ``rollout`` or ``old``; ``objective`` is ``ppo`` or ``gspo``.
    ``request_ids``: id of each row's request, of vLLM or its caller, empty if unknown; none, or [rows].
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
    """A rank has sent all its rows of ``step``. The step closes when ``world_size`` ranks have closed it.

    ``weight_digests``: of the weights after the step, by the checkpoint's names: dtype, checksums of rows and columns
    (``contract.digests``), joined with colons; empty if the trainer gave none. ``rows``: number of rows of the step,
    of all updates, delivered or not; None if the trainer did not count.
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
    """Configuration that a trainer rank states; sent at the start, on changes, and to every new hub.

    ``facts`` uses the names of ``EngineState.fingerprint`` for facts that both have (``dtype``, ``head_dtype``),
    and those of the sampling parameters (``temperature``, ``top_p``, ...), as text.
    """

    rank: int
    facts: dict[str, str]


# --- any collector -> hub ---------------------------------------------------------------------------------------


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """Counts of the records of one kind: ``offered == sent + dropped + queued``, always."""

    offered: int = 0
    sent: int = 0
    dropped: int = 0
    queued: int = 0


class Health(Body, frozen=True, array_like=True, tag="health"):
    """Once a second: what this collector lost, and whether the loop it watches still runs.

    ``loop_count`` increases with every iteration of the host's loop, ``loop_age`` is the seconds since the last;
    ``faults`` counts exceptions that the error boundary contained, by place.
    """

    counts: dict[str, Counts]
    queue_bytes: int
    queue_limit_bytes: int
    loop_count: int = 0
    loop_age: float = 0.0
    faults: dict[str, int] = {}


TRANSIENT = (EngineState, Health)
"""Messages about the current state: each supersedes earlier ones, so they are neither retained nor resent."""


class Passed(Body, frozen=True, array_like=True, tag="passed"):
    """Resent in place of a message of ``TRANSIENT``, so that no number is missing."""


# --- control socket ---------------------------------------------------------------------------------------------


class Register(Body, frozen=True, array_like=True, tag="register"):
    """First message on the control socket, and after every reconnect: identifies the source of the connection."""

    proto: int
    source: str
    epoch: str
    role: str


class Bye(Body, frozen=True, array_like=True, tag="bye"):
    """The sender disconnects after ``sent`` data messages of this epoch. The hub answers ``ByeAck``.

    ``oldest``: as in ``Envelope``.
    """

    source: str
    epoch: str
    sent: int
    oldest: int | None = None


class ByeAck(Body, frozen=True, array_like=True, tag="bye_ack"):
    """The hub has all messages up to the sender's ``Bye``, or has given up waiting for them."""

    epoch: str


class Welcome(Body, frozen=True, array_like=True, tag="welcome"):
    """Answer to ``Register``: identifies the hub. Also sent when a hub first hears from a source."""

    hub_epoch: str


class Acknowledged(Body, frozen=True, array_like=True, tag="acknowledged"):
    """Messages of this epoch up to number ``seq`` are settled and stored: no hub will request them again."""

    epoch: str
    seq: int


class Resend(Body, frozen=True, array_like=True, tag="resend"):
    """The hub lacks number ``seq`` of this epoch: resend all messages from there on, in order, as far as retained."""

    epoch: str
    seq: int


class Passage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens for a probe to score: ``ids`` is i4 [n], prompt and completion of a rollout; the latter from ``start`` on.

    ``request_id`` is the rollout's: its engine knows the cache salt.
    """

    request_id: str
    ids: bytes
    start: int


class Command(Body, frozen=True, array_like=True, tag="command"):
    """A command to an engine. Idempotent by ``id``; void after ``deadline`` (the hub's wall clock).

    Attributes:
        flag, value: of ``set``; empty for the other verbs.
        verb: ``set``; ``keep`` (stop the timer of ``target``); ``flush_cache``; ``pause``; ``resume``.
        strict: of ``set``: the strict form of the value, if the flag has one.
        revert_s: of ``set`` and ``pause``: the engine auto-reverts it after this many seconds; None: never.
        probe, passages: of ``probe``: its name, and the tokens to score, if any.
        target: of ``keep``: id of the command to keep. Of ``set`` and ``resume``: id of the command to revert;
            nothing is done (``superseded``) if its effect was changed since.
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
"""What msgspec raises on malformed bytes; ValidationError is a DecodeError."""

T = TypeVar("T")

Arrays = dict[str, NDArray[Any]]


def describe(arrays: Arrays) -> list[Array]:
    """Return the ``Array`` entries of arrays that have dtypes of the wire.

    Raises:
        WireError: a dtype or number of axes that the wire does not support.
    """
    named = {dtype: name for name, dtype in DTYPES.items()}
    described = []
    for name, array in arrays.items():
        if array.dtype not in named or array.ndim != 1:
            raise WireError(f"{name}: {array.dtype} with {array.ndim} axes; the wire carries 1-D i4, f4, u1")
        described.append(Array(name, named[array.dtype], array.size))
    return described


def encode_data(envelope: Envelope, body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """Return the frames of a data message: ``encode_envelope`` and ``encode_body``."""
    return [encode_envelope(envelope), *encode_body(body, arrays)]


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the first frame of a data message."""
    return _encoder.encode(envelope)


def encode_body(body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """Return the other frames. ``arrays`` must be contiguous and described in the body, in the same order.

    Raises:
        WireError: the message exceeds the limits of ``decode_data``.
    """
    frames: list[bytes | memoryview] = [_encoder.encode(body)]
    frames += [array.data.cast("B") if array.size else b"" for array in arrays.values()]
    _check_limits([b"", *frames])
    return frames


def pack(frames: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join a data message's frames into one (their number, sizes, bytes), unless it is very large.

    Every frame that is sent or received releases the GIL, and beside a thread that computes in Python it takes up to
    5 ms to get it back.
    """
    sizes = [len(frames), *map(len, frames)]
    if sum(sizes) > MAX_PACKED_BYTES:
        return list(frames)
    return [b"".join((struct.pack(f"<{len(sizes)}I", *sizes), *frames))]


def unpack(frames: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """Split a packed message; frames that were sent one by one are returned unchanged.

    Each frame is an object of its own: a retained array does not retain the whole message.

    Raises:
        WireError: the sizes are inconsistent.
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
        WireError: too many or too large frames, another major version, an unknown message, or arrays that
            don't match their description.
    """
    frames = unpack(frames)
    _check_limits(frames)
    try:
        envelope = _envelope_decoder.decode(frames[0])
        if envelope.proto != PROTO:
            raise WireError(f"{envelope.source} uses wire version {envelope.proto}, this hub {PROTO}")
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
    """Encode a control message."""
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
