"""The messages between collectors and the hub: append-only structs with one version and size limits.

A data message (PUSH → PULL) is ``[Envelope, body, array, array, ...]``: two msgpack frames and raw little-endian arrays
that the body describes in order. The frames are packed into one ZeroMQ frame (``pack``) unless the message is very
large. A control message (DEALER ↔ ROUTER) is one msgpack frame.

Rules: fields are only appended, with defaults. An unknown tag is counted, not fatal. Sizes, dtypes and lengths are
checked before anything is allocated. No pickle. ``docs/wire.md`` describes the format for other languages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

PROTO = 1
"""Major version of the wire. A hub rejects messages of other versions; it counts them and reports the sender."""

MAX_FRAMES = 32
MAX_FRAME_BYTES = 64 << 20
"""Limits of one data message. Collectors split larger batches."""

MAX_PACKED_BYTES = 16 << 20
"""Larger messages are not packed but sent as separate frames. Collectors aim at 1 MiB."""

_SIZE = 4
"""Bytes of each number in the header of a packed message."""

MAX_HEADER_BYTES = 8 << 20
MAX_CONTROL_BYTES = 1 << 20
"""Limits of frames that are decoded into objects: envelope and body; control message."""

DTYPES: dict[str, np.dtype[Any]] = {"i4": np.dtype("<i4"), "f4": np.dtype("<f4"), "u1": np.dtype("u1")}
"""Element types of array frames."""

UNKNOWN_VERSION = -1
"""In integer version arrays: unknown, or not computed."""


Version = Annotated[int, msgspec.Meta(ge=-(2**62 - 1), le=2**62 - 1)]
"""A policy version outside of arrays; limited so that a difference of two fits 64 bits."""

VersionUnit = Annotated[int, msgspec.Meta(ge=1, le=2**61)]
"""How many counts of the policy version are one update: more than 1 if a framework counts, say, samples."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of things, or the number of one of them: doubles hold it, and sums over 1024 sources fit 64 bits."""

Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
"""A number that is neither infinite nor NaN, and whose differences are not either."""

Seconds = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]
"""A wall clock or a duration that a calendar can represent."""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
"""The name of a sender or of an engine, or a random id of a process."""


class WireError(ValueError):
    """A received frame violates the rules of the wire."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """The sender of a data message and its sequence number.

    Attributes:
        proto: ``PROTO`` of the sender.
        source: stable name of the sender: an engine id (``e0``), or ``trainer/<rank>``.
        epoch: random id of the sender's process; ``seq`` starts at 0 in each epoch.
        seq: number of this message within the epoch; a gap is a loss in transit.
        sent: wall clock of the sender when it first sent this message, seconds.
        oldest: the oldest message that the sender can resend (``Resend``); None if it can't resend.
        session: secret of the sender's process, random and constant within the epoch: only the process itself and its
            hub know it, so another process can't send in its name. Empty if the sender has none.
    """

    proto: int
    source: Name
    epoch: Name
    seq: Count
    sent: Seconds
    oldest: Count | None = None
    session: str = ""


class Array(msgspec.Struct, frozen=True, array_like=True):
    """Description of one array frame: its name, its dtype (a key of ``DTYPES``) and its number of elements."""

    name: str
    dtype: str
    size: Count


class Body(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every tagged message."""


# --- engine -> hub ----------------------------------------------------------------------------------------------


class VersionRun(msgspec.Struct, frozen=True, array_like=True):
    """The tokens from ``start`` up to the next run were sampled with one flag epoch and one policy version.

    ``version`` is None if it is unknown; see ``Rollout.version_source``.
    """

    start: Count
    flag_epoch: Count
    version: Version | None = None


class Rollout(msgspec.Struct, frozen=True, array_like=True):
    """One finished or aborted request.

    Attributes:
        request_id: as in the engine core (vLLM appends 8 hex digits to the caller's).
        prompt_size: prompt tokens, in ``Rollouts.prompt_ids``.
        size: sampled tokens, in ``Rollouts.token_ids`` and ``Rollouts.logprobs``.
        finish_reason: ``stop``, ``length``, ``abort``, ``error``, or ``stop_or_abort``: the front end ended a request
            with stop strings, which it also does where it finds one.
        runs: flag epoch and policy version per token, run-length encoded; empty if ``size`` is 0.
        version_source: ``engine`` (vLLM's weight label), ``stated`` (by the framework, in ``weights_updated`` or an
            argument of the update call), ``inferred`` (observed updates, counted from the last statement) or
            ``unknown``.
        has_logprobs: False if the request did not ask for logprobs; its entries in ``logprobs`` are NaN.
        cached_tokens: prompt tokens read from the prefix cache; None if vLLM did not report it.
        lookup_off: the prefix-cache lookup was off when the request was first scheduled.
        sampling: the sampling parameters that shape the distribution (temperature, top_p, top_k, min_p, penalties,
            seed), as far as they are set.
        arrived, scheduled, finished: wall clock of the engine, seconds; ``scheduled`` is 0.0 if it never was.
        first_step: engine step at which the request was first scheduled; -1 if it never was.
        updated: wall clock of the engine's last weight update before ``scheduled``; 0.0 if none was observed.
        started: wall clock at which the collector attached to the engine.
    """

    request_id: str
    prompt_size: Count
    size: Count
    finish_reason: str
    runs: list[VersionRun]
    version_source: str
    has_logprobs: bool
    cached_tokens: Count | None = None
    lookup_off: bool = False
    sampling: dict[str, Finite] = {}
    arrived: Seconds = 0.0
    scheduled: Seconds = 0.0
    finished: Seconds = 0.0
    first_step: Annotated[int, msgspec.Meta(ge=-1, le=2**53)] = -1
    updated: Seconds = 0.0
    started: Seconds = 0.0


class Rollouts(Body, frozen=True, array_like=True, tag="rollouts"):
    """Finished requests of one engine.

    Arrays, concatenated in the order of ``rollouts``: ``prompt_ids`` i4, ``token_ids`` i4, ``logprobs`` f4 (nats;
    NaN if not recorded).
    """

    engine: Name
    rollouts: list[Rollout]
    arrays: list[Array]


class FlagState(msgspec.Struct, frozen=True, array_like=True):
    """The state of one flag, as read from the live objects of an engine.

    Attributes:
        value: one of the flag's values; None if this engine has no such setting.
        switchable: whether the flag can be switched now.
        reason: why it can't, possibly with the launch option that would help; empty if it can.
        detail: form of the value, if there are several (``depth 1`` or ``strict`` if asynchronous scheduling is off).
    """

    value: str | None
    switchable: bool
    reason: str = ""
    detail: str = ""


class CommandUpdate(Body, frozen=True, array_like=True, tag="command_update"):
    """The state of a command on one engine. Sent on the control socket, and repeated in ``EngineState.commands``.

    Attributes:
        id: id of the command.
        state: ``accepted``, ``draining``, ``running`` (a probe), ``applied``, ``refused``, ``timed_out``, or
            ``superseded`` (a revert or undo whose subject was changed since, or an interrupted probe).
        reason: why it was refused, or additional information about how it was applied.
        old, new: the flag's value as read back before and after.
        engine_step: engine step at whose boundary it happened.
        policy_version: version of the weights at that moment; None if unknown.
        in_flight: requests running or waiting at that moment.
        lost_requests: how many of them were neither alive nor properly finished afterwards; None if not counted.
        milliseconds: how long the switch occupied the engine's thread; None if nothing was done.
        time: wall clock of the engine, seconds.
        verb: as in ``Command``; ``flag`` is empty if it names none.
        detail: form of the new value, as in ``FlagState``.
        reverts_at: wall clock at which the engine reverts it; None if it has no timer.
        reverts: id of the command that this one reverts: when its timer expired (then this is the engine's own command
            ``<id>/revert``), or because of an undo.
        flag_epoch: tokens of this flag epoch and later were sampled after it; None if it changed no flag.
        wanted: the value that the command sets its subject to; empty if the subject has none to read.
    """

    id: str
    engine: Name
    flag: str
    state: str
    reason: str = ""
    old: str | None = None
    new: str | None = None
    engine_step: Count | None = None
    policy_version: Version | None = None
    in_flight: Count | None = None
    lost_requests: Count | None = None
    milliseconds: Seconds | None = None
    time: Seconds = 0.0
    verb: str = "set"
    detail: str = ""
    reverts_at: Seconds | None = None
    reverts: str = ""
    flag_epoch: Count | None = None
    wanted: str = ""


class Timer(msgspec.Struct, frozen=True, array_like=True):
    """The engine will revert ``command`` at wall clock ``at`` (seconds), unless it is kept.

    ``verb`` and ``flag`` are those of the command, ``back_to`` is the value that the flag had before.
    """

    command: str
    verb: str
    flag: str
    back_to: str
    at: Seconds


class EngineState(Body, frozen=True, array_like=True, tag="engine_state"):
    """The current state of an engine. Sent once a second and after every switch; complete by itself.

    Attributes:
        engine: id of the engine.
        step: engine steps executed since the collector attached.
        policy_version: version of the weights in use; None if unknown.
        version_source: as in ``Rollout``.
        weight_label: vLLM's weight label, verbatim.
        running, waiting: requests in the scheduler.
        kv_usage: used share of the KV cache, 0 to 1.
        prompt_tokens, generated_tokens: counters since the collector attached.
        cached_tokens: counter, prompt tokens read from the prefix cache.
        flags: by flag name.
        flag_epoch: number of applied switches since the collector attached.
        fingerprint: facts read from the live objects (vLLM version, runner, dtype, ...).
        commands: the last commands this engine closed, newest last.
        paused: generation is paused. update_open: a weight update is in progress.
        weight_updates: updates that the collector observed, whatever their calls are named.
        timers: running timers, the next to expire first.
        preemptions: counter, requests that lost their KV cache and are recomputed; None if unknown.
        first_token_s, first_tokens: time from arrival to the first token, summed over this number of requests.
        token_gap_s, token_gaps: time between consecutive tokens of a request, summed over this number of gaps.
    """

    engine: Name
    host: str
    pid: Count
    step: Count
    policy_version: Version | None
    version_source: str
    weight_label: str | None
    running: Count
    waiting: Count
    kv_usage: Share | None
    prompt_tokens: Count
    generated_tokens: Count
    cached_tokens: Count
    finished: Count
    aborted: Count
    without_logprobs: Count
    flags: dict[str, FlagState]
    flag_epoch: Count
    fingerprint: dict[str, str]
    commands: list[CommandUpdate] = []
    paused: bool = False
    update_open: bool = False
    weight_updates: Count = 0
    timers: list[Timer] = []
    preemptions: Count | None = None
    first_token_s: Seconds = 0.0
    first_tokens: Count = 0
    token_gap_s: Seconds = 0.0
    token_gaps: Count = 0


class Score(msgspec.Struct, frozen=True, array_like=True):
    """The logprobs of one request of a probe: ``size`` entries of ``ProbeReport``'s array.

    Attributes:
        passage: index of the command's passage.
        way: ``cold``, ``hot`` or ``warm``; see ``contract.probes``.
        first: position in the passage's ids of the token that the first logprob belongs to.
        size: number of logprobs; the last belongs to the passage's last token, or to the last one that was scored.
        cached: tokens read from the prefix cache; None if vLLM did not report it.
    """

    passage: Count
    way: str
    first: Count
    size: Count
    cached: Count | None = None


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """Checksums (``contract.digests``) of one tensor on one rank, 16 hex digits each.

    ``kind``: ``parameter``; ``packed`` (read by projecting unit vectors); ``buffer``; ``other`` (neither in
    ``named_parameters`` nor in ``named_buffers``); ``unread`` (with empty checksums).
    """

    name: str
    kind: str
    whole: str
    rows: str
    dtype: str
    elements: Count
    rank: Count = 0
    columns: str = ""


class ProbeReport(Body, frozen=True, array_like=True, tag="probe_report"):
    """The measurements of an engine for the probe ``command``, without a verdict; sent before the command is closed.

    Array: ``logprobs`` f4 (nats), of all ``scores`` concatenated.

    Attributes:
        policy_version, weight_updates, flag_epoch: of the engine; constant from the probe's start to its end.
        requests, tokens: sent by the probe. seconds: from start to end.
        stall_s, longest_s: how long the probe occupied the engine's thread, in total and at most at once.
        fused: names of a module's parts, by the name of the module that holds them in one tensor (``qkv_proj``).
        notes: steps that could not be done, one sentence each.
    """

    command: str
    engine: Name
    probe: str
    arrays: list[Array]
    policy_version: Version | None = None
    weight_updates: Count = 0
    flag_epoch: Count = 0
    scores: list[Score] = []
    digests: list[Digest] = []
    fused: dict[str, list[str]] = {}
    requests: Count = 0
    tokens: Count = 0
    seconds: Seconds = 0.0
    stall_s: Seconds = 0.0
    longest_s: Seconds = 0.0
    notes: list[str] = []


class WeightSketch(msgspec.Struct, frozen=True, array_like=True):
    """The sketch of one tensor (``contract.weight_sketch.TensorSketch``), of an engine's rank or of the trainer."""

    name: str
    dtype: str
    rows: Count
    hashes: list[str]
    square: Finite
    sums: list[Finite]
    bad: Count = 0
    rank: Count = 0


class RefitReport(Body, frozen=True, array_like=True, tag="refit_report"):
    """Sketches of an engine's weights, taken when it started, after a weight update, or after it woke up.

    Attributes:
        reason: ``start``, ``update`` or ``wake``.
        weight_updates, policy_version, version_source: of the engine, from the first sketch to the last.
        filled: counter of its process: parameters that calls of ``load_weights`` filled, over all ranks.
        fused: as in ``ProbeReport``.
        stall_s, longest_s: how long it occupied the engine's thread, in total and at most at once.
        spent_s: time of the thread that runs the model, over all reports of this process so far; of the slowest rank.
        up_s: how long the guard has run.
        notes: what could not be read, one sentence each.
    """

    engine: str
    reason: str
    weight_updates: Count
    policy_version: Version | None
    version_source: str
    filled: Count
    sketches: list[WeightSketch]
    fused: dict[str, list[str]] = {}
    stall_s: Seconds = 0.0
    longest_s: Seconds = 0.0
    spent_s: Seconds = 0.0
    up_s: Seconds = 0.0
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
    "weights": "f4",
    "temperatures": "f4",
}
"""Arrays of ``Sequences`` with one entry per trained token, and their element types."""

ROW_COLUMNS: dict[str, str] = {
    "row_ids": "i4",
    "row_mask": "u1",
    "row_sizes": "i4",
    "prompt_ids": "i4",
    "prompt_sizes": "i4",
    "rewards": "f4",
}
"""The other arrays of ``Sequences``, and their element types."""


class Sequences(Body, frozen=True, array_like=True, tag="sequences"):
    """Rows that one rank trained on in one step, with data per trained token.

    Arrays. Per row, concatenated: ``row_ids`` i4 and ``row_mask`` u1 (``row_sizes`` entries per row, cut after the
    last trained token), ``prompt_ids`` i4 (``prompt_sizes`` per row; absent if the rows contain their prompts).
    ``row_sizes`` i4 [rows], ``prompt_sizes`` i4 [rows], ``rewards`` f4 [rows].
    Per trained token (where ``row_mask`` is 1), concatenated in row order: ``rollout_logprobs`` f4 and
    ``trainer_logprobs`` f4 always; ``old_logprobs`` f4, ``entropy`` f4, ``advantages`` f4, ``rollout_versions`` i4,
    ``old_versions`` i4 (``UNKNOWN_VERSION`` where not computed), ``clipped`` u1, ``weights`` f4 (factors of the loss;
    a token with 0 is not in the loss), ``temperatures`` f4 if passed. Logprobs and entropy in nats.

    ``update`` numbers the optimizer updates on the same rollouts, from 0; ``first_update`` is the first one that the
    rank passed for this step. ``clip_low`` and ``clip_high`` bound the ratio; ``ratio_base`` is its denominator,
    ``rollout``, ``old`` or ``current``; ``objective`` is ``ppo`` or ``gspo``. ``temperature``: of all tokens.
    ``request_ids``: the request id of each row, from vLLM or its caller, "" if unknown; [rows], or empty if none is.
    ``environments``: the environment or task of each row, in the same form. ``version_unit``: how many counts of the
    policy version are one update; 1 if not stated.
    """

    step: Count
    update: Count
    rank: Count
    rows: Count
    arrays: list[Array]
    policy_version: Version | None = None
    temperature: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    ratio_base: str = "rollout"
    objective: str = "ppo"
    request_ids: list[str] = []
    environments: list[str] = []
    version_unit: VersionUnit = 1
    first_update: Count = 0


class StepClosed(Body, frozen=True, array_like=True, tag="step_closed"):
    """A rank has closed ``step``. The step closes when ``world_size`` ranks have.

    ``weight_digests``: of the weights after the step, by checkpoint name: dtype and checksums of rows and columns,
    separated by colons (``contract.digests``); empty if the trainer passed none. ``rows``: number of rows that the rank
    passed for the step, over all updates, including dropped ones; None if not counted. ``version_unit``: as in
    ``Sequences``.
    """

    step: Count
    rank: Count
    world_size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    policy_version: Version | None = None
    metrics: dict[str, float] = {}
    time: Seconds = 0.0
    weight_digests: dict[str, str] = {}
    rows: Count | None = None
    version_unit: VersionUnit = 1


class TrainerFacts(Body, frozen=True, array_like=True, tag="trainer_facts"):
    """The configuration that a trainer rank computes with; sent at the start, after a change, and to every new hub.

    ``facts`` maps names to text. The names are those of ``EngineState.fingerprint`` (``dtype``, ``head_dtype``) and of
    sampling parameters (``temperature``, ``top_p``, ...).
    """

    rank: Count
    facts: dict[str, str]


class TrainerWeights(Body, frozen=True, array_like=True, tag="trainer_weights"):
    """Sketches of the trainer's weights of ``policy_version``, under the names of the checkpoint."""

    rank: Count
    policy_version: Version
    sketches: list[WeightSketch]


# --- any collector -> hub ---------------------------------------------------------------------------------------


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """Counts of the records of one kind; ``offered == sent + dropped + queued`` at all times."""

    offered: Count = 0
    sent: Count = 0
    dropped: Count = 0
    queued: Count = 0


class Health(Body, frozen=True, array_like=True, tag="health"):
    """Sent once a second: how many records the collector dropped, and whether the host's loop makes progress.

    ``loop_count`` increases with every iteration of the host's loop; ``loop_age`` is the time since the last increase,
    in seconds. ``faults`` counts the exceptions contained by the error boundary, by place. ``unproven`` counts the
    control messages that it did not obey, since they were not from its hub (``Proven``).
    """

    counts: dict[str, Counts]
    queue_bytes: Count
    queue_limit_bytes: Count
    loop_count: Count = 0
    loop_age: Seconds = 0.0
    faults: dict[str, Count] = {}
    unproven: Count = 0


TRANSIENT = (EngineState, Health)
"""Messages about the present state, which replace all earlier ones: they are not kept for resending."""


class Passed(Body, frozen=True, array_like=True, tag="passed"):
    """Resent in place of a message of ``TRANSIENT``, so that no sequence number is missing."""


# --- control socket ---------------------------------------------------------------------------------------------


class Register(Body, frozen=True, array_like=True, tag="register"):
    """Identifies the source of a connection: first message on the control socket, and repeated every few seconds.

    ``software``: versions of rltop, Python and loaded modules, by name. ``session``: as in ``Envelope``; to a process
    that states one, the hub sends what it must obey as ``Proven``.
    """

    proto: int
    source: Name
    epoch: Name
    role: str
    software: dict[str, str] = {}
    session: str = ""


class Bye(Body, frozen=True, array_like=True, tag="bye"):
    """The sender disconnects after ``sent`` data messages in this epoch. The hub answers ``ByeAck``.

    ``oldest``: as in ``Envelope``.
    """

    source: Name
    epoch: Name
    sent: Count
    oldest: Count | None = None


class ByeAck(Body, frozen=True, array_like=True, tag="bye_ack"):
    """The hub has all messages up to the sender's ``Bye``, or has given up waiting for them."""

    epoch: Name


class Welcome(Body, frozen=True, array_like=True, tag="welcome"):
    """Identifies the hub: the answer to ``Register``; also sent by a new hub to a source that it does not know."""

    hub_epoch: Name


class Refused(Body, frozen=True, array_like=True, tag="refused"):
    """The hub takes nothing from this process, for ``reason``: another one sends under its name. It should end."""

    epoch: Name
    reason: str


class Acknowledged(Body, frozen=True, array_like=True, tag="acknowledged"):
    """The messages of this epoch up to number ``seq`` are stored or settled: no hub will ask for them again."""

    epoch: Name
    seq: Count


class Resend(Body, frozen=True, array_like=True, tag="resend"):
    """The hub lacks message ``seq`` of this epoch: resend it and all following ones in order, as far as kept."""

    epoch: Name
    seq: Count


class Passage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens for a probe to score: prompt and completion of a rollout.

    ``ids``: i4 [n], of which the completion starts at ``start``. ``request_id``: the rollout's, from which the engine
    that sampled it knows the cache salt.
    """

    request_id: str
    ids: bytes
    start: Count


class Command(Body, frozen=True, array_like=True, tag="command"):
    """A command to the receiving engine. Idempotent by ``id``; void after ``deadline`` (hub's wall clock, seconds).

    Attributes:
        flag, value: for ``set``: the flag and its new value; empty for other verbs.
        verb: ``set``; ``keep`` (stop the timer of ``target``); ``flush_cache``; ``pause``; ``resume``; ``probe``.
        strict: for ``set``: the strict form of the value, if the flag has one.
        revert_s: for ``set`` and ``pause``: the engine reverts it after this time, seconds; None: no timer for ``set``,
            the default for ``pause``.
        probe, passages: for ``probe``: its name, and the tokens that it scores, if any.
        target: for ``keep``: id of the command to keep. For ``set`` and ``resume``: id of the command to undo; if its
            change is not in place any more, nothing is done (``superseded``).
    """

    id: str
    flag: str
    value: str
    deadline: Seconds
    verb: str = "set"
    strict: bool = False
    revert_s: Seconds | None = None
    target: str = ""
    probe: str = ""
    passages: tuple[Passage, ...] = ()


class Proven(Body, frozen=True, array_like=True, tag="proven"):
    """A control message with the proof that the hub of the run sent it, to this process.

    Attributes:
        hub_epoch: of the hub.
        message: the control message, encoded: ``Welcome``, ``Command`` or ``Refused``.
        proof: HMAC-SHA256 with the run's hub key (``contract.keys``) over the parts of ``proven_parts``.
    """

    hub_epoch: str
    message: bytes
    proof: bytes


DataBody = (
    Rollouts
    | EngineState
    | Sequences
    | StepClosed
    | Health
    | TrainerFacts
    | ProbeReport
    | Passed
    | RefitReport
    | TrainerWeights
)
ControlToHub = Register | CommandUpdate | Bye
ControlToCollector = Welcome | Command | ByeAck | Acknowledged | Resend | Refused | Proven

MUST_BE_PROVEN = (Welcome, Command, Refused)
"""What a collector obeys only if the hub of its run sent it."""

_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_data_decoder: msgspec.msgpack.Decoder[DataBody] = msgspec.msgpack.Decoder(DataBody)
_to_hub_decoder: msgspec.msgpack.Decoder[ControlToHub] = msgspec.msgpack.Decoder(ControlToHub)
_to_collector_decoder: msgspec.msgpack.Decoder[ControlToCollector] = msgspec.msgpack.Decoder(ControlToCollector)

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions of msgspec for malformed input; ValidationError is a DecodeError."""

T = TypeVar("T")

Arrays = dict[str, NDArray[Any]]


def describe(arrays: Arrays) -> list[Array]:
    """Make the ``Array`` entries for arrays with dtypes of the wire.

    Raises:
        WireError: another dtype, or not 1-D.
    """
    named = {dtype: name for name, dtype in DTYPES.items()}
    described = []
    for name, array in arrays.items():
        if array.dtype not in named or array.ndim != 1:
            raise WireError(f"{name}: {array.dtype} with {array.ndim} axes; the wire carries 1-D i4, f4, u1")
        described.append(Array(name, named[array.dtype], array.size))
    return described


def encode_data(envelope: Envelope, body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """Encode the frames of one data message: ``encode_envelope`` and ``encode_body``."""
    return [encode_envelope(envelope), *encode_body(body, arrays)]


def encode_envelope(envelope: Envelope) -> bytes:
    """Encode the first frame of a data message."""
    return _encoder.encode(envelope)


def encode_body(body: DataBody, arrays: Arrays) -> list[bytes | memoryview]:
    """Encode the other frames. ``arrays`` must be contiguous and described in the body, in the same order.

    Raises:
        WireError: the message exceeds the limits of ``decode_data``.
    """
    frames: list[bytes | memoryview] = [_encoder.encode(body)]
    frames += [array.data.cast("B") if array.size else b"" for array in arrays.values()]
    _check_limits([b"", *frames])
    return frames


def pack(frames: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join a data message's frames into one, unless it is very large: number of frames, their sizes, their bytes.

    Sending or receiving a frame releases the GIL; if another thread computes in Python, it takes up to 5 ms to get it
    back.
    """
    sizes = [len(frames), *map(len, frames)]
    if sum(sizes) > MAX_PACKED_BYTES:
        return list(frames)
    return [b"".join((struct.pack(f"<{len(sizes)}I", *sizes), *frames))]


def unpack(frames: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    """Split a packed message into its frames; frames that were sent separately are returned unchanged.

    Each frame is a copy, so that keeping one array does not keep the whole message in memory.

    Raises:
        WireError: the sizes do not match the message.
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
    """Check and decode one data message, packed or not. The arrays are read-only views of the frames.

    Raises:
        WireError: too many or too large frames, another major version, an unknown message, or arrays that do not match
            their description.
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


def proven_parts(session: str, hub_epoch: str, message: bytes) -> tuple[bytes, ...]:
    """What the proof of ``Proven`` covers: the receiver's session, the hub, and the encoded message."""
    return b"rltop hub", session.encode(), hub_epoch.encode(), message


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
