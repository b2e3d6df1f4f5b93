"""What a viewer sees of a run: the structs the hub serves, and how a frame changes them. Pure.

The hub sends one ``Snapshot`` on demand and small ``Frame`` deltas a few times a second. ``Snapshot.apply`` is the only
way a viewer's picture changes, so every viewer that saw the same frames shows the same thing.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from rltop.backend import coarse, headline
from rltop.backend.diagnosis.alarm import MAX_ALARMS, Alarm
from rltop.backend.diagnosis.verdict import Verdict
from rltop.backend.gaps.attributed import Attribution
from rltop.backend.gaps.profiles import Mismatch
from rltop.backend.gaps.sampled import Samples
from rltop.backend.probes.result import ProbeResult
from rltop.collectors.wire import Counts, FlagState, Timer

MAX_EVENTS = 2_000
MAX_CHANGES = 1_000
MAX_PROBES = 200
"""Bounds on what a viewer (and the hub, for serving) holds; the oldest go first. Of steps: ``coarse``."""

TERMINAL = frozenset({"applied", "refused", "timed_out", "superseded"})
"""States in which a change is closed."""


class Step(msgspec.Struct, frozen=True):
    """One training step, measured.

    Attributes:
        step: the trainer's number, from 0.
        closed: wall clock of the hub when it closed, seconds.
        policy_version: weights after the step; None if the trainer did not say.
        partial: closed by a timeout with ranks missing, or rows of it are missing.
        values: by metric name (``rltop.backend.metrics``); a metric that can't be computed is None, never NaN.
        engines: the per-engine subset of the metrics, by engine id; tokens whose engine is not known are absent.
        unjoined: trainer sequences without their rollout, by reason.
        trainer: the scalars the trainer passed to ``step(metrics=...)``.
        joins: joined sequences by how they were found (``rltop.backend.join.unjoined.WAYS``).
        reused: joined sequences that an earlier step has trained on too.
        unused: rollouts that no step has trained on, by engine, counted when they become too old for it.
        copies: by engine, how the trainer's copies of the recorded logprobs came out (``join.copies.KINDS``).
        level: in how coarse a part of a picture it stands (``coarse``); 0 has every step.
        missing_rows: rows that the trainer passed for it and that never came.
        lost: messages, by source, that never came and may have been about it; 0 where nobody knows how many.
    """

    step: int
    closed: float
    policy_version: int | None
    partial: bool
    values: dict[str, float | None]
    engines: dict[str, dict[str, float | None]] = {}
    unjoined: dict[str, int] = {}
    trainer: dict[str, float] = {}
    joins: dict[str, int] = {}
    reused: int = 0
    unused: dict[str, int] = {}
    copies: dict[str, dict[str, int]] = {}
    level: int = 0
    missing_rows: int = 0
    lost: dict[str, int] = {}


class Engine(msgspec.Struct, frozen=True):
    """One engine as last heard of.

    ``health`` is ``live``, ``silent`` (no word for some seconds) or ``gone`` (said goodbye). ``lag`` is in versions
    behind the trainer. ``tokens_per_s`` is over the last few seconds; ``prefix_hit_rate`` cached over prompt tokens,
    likewise recent; ``gap`` is the last step's ``logp_abs_diff_mean`` of this engine. ``differs`` names the facts
    (``rltop.backend.fleet.facts``) that do not agree with the other engines or with the trainer, and what those say.
    """

    id: str
    health: str
    last_seen: float
    host: str
    pid: int
    vllm_version: str
    step: int
    policy_version: int | None
    version_source: str
    lag: int | None
    tokens: int
    tokens_per_s: float | None
    running: int
    waiting: int
    kv_usage: float | None
    prefix_hit_rate: float | None
    gap: float | None
    flags: dict[str, FlagState]
    flag_epoch: int
    fingerprint: dict[str, str]
    finished: int = 0
    aborted: int = 0
    without_logprobs: int = 0
    paused: bool = False
    update_open: bool = False
    counts: dict[str, Counts] = {}
    faults: dict[str, int] = {}
    timers: list[Timer] = []
    differs: dict[str, str] = {}


class Trainer(msgspec.Struct, frozen=True):
    """The trainer as last heard of; ``ranks`` maps rank to the wall clock of its last word.

    ``facts`` is what it says it computes with (``wire.TrainerFacts``), of the lowest rank.
    """

    health: str = "absent"
    world_size: int = 0
    ranks: dict[str, float] = {}
    step: int | None = None
    policy_version: int | None = None
    counts: dict[str, Counts] = {}
    facts: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True):
    """Something that happened: a flag change, an engine that came or went, a weight update, lost records.

    ``severity`` is ``info``, ``warn`` or ``error``; ``step`` the last closed step at the time; ``number`` rises by one
    per event of this hub.
    """

    number: int
    time: float
    severity: str
    kind: str
    text: str
    step: int | None = None
    engine: str | None = None


class Change(msgspec.Struct, frozen=True):
    """A command's life on one engine. ``command`` is shared by the engines of one fleet-wide command.

    ``state``: requested, accepted, draining, then one of ``TERMINAL``. ``step`` is the last closed step when it was
    requested. ``verb``, ``strict``, ``revert_s`` and ``target`` are as in ``wire.Command``, the rest as in
    ``wire.CommandUpdate``. ``kept_by`` says who stopped its timer; ``probe`` is the probe that it begins.
    """

    command: str
    engine: str
    flag: str
    wanted: str
    state: str
    requested: float
    who: str = ""
    host: str = ""
    why: str = ""
    step: int | None = None
    reason: str = ""
    old: str | None = None
    new: str | None = None
    engine_step: int | None = None
    policy_version: int | None = None
    in_flight: int | None = None
    lost_requests: int | None = None
    milliseconds: float | None = None
    closed: float | None = None
    verb: str = "set"
    strict: bool = False
    revert_s: float | None = None
    target: str = ""
    detail: str = ""
    reverts_at: float | None = None
    reverts: str = ""
    flag_epoch: int | None = None
    kept_by: str = ""
    probe: str = ""


class Frame(msgspec.Struct, frozen=True):
    """What changed since the last frame. ``seq`` rises by one per frame within a hub's ``epoch``.

    A changed engine, step, change or alarm is sent whole; an empty frame is a heartbeat.
    """

    epoch: str
    seq: int
    time: float
    engines: dict[str, Engine] = {}
    trainer: Trainer | None = None
    steps: list[Step] = []
    events: list[Event] = []
    changes: list[Change] = []
    counters: dict[str, int] = {}
    probes: list[ProbeResult] = []
    alarms: dict[str, Alarm] = {}


def has_news(frame: Frame) -> bool:
    """Whether there is something in it that is kept whole: no later frame says it again."""
    return bool(frame.steps or frame.events or frame.changes or frame.alarms)


class Snapshot(msgspec.Struct):
    """The whole picture as of frame ``seq`` of hub ``epoch``.

    ``steps`` and ``changes`` are keyed (by step number; by command and engine) and in order of arrival. The newest
    ``WHOLE_STEPS`` steps are whole; older ones have their ``HEADLINE`` left (``rltop.backend.headline``), and still
    older ones are there if they stand out (``rltop.backend.coarse``).
    ``counters`` are the hub's own: messages, bytes, gaps, invalid and unjoined records. ``probes``: what they found
    out, by command. ``alarms`` are by id, oldest first.
    """

    run: str
    epoch: str
    seq: int
    started: float
    time: float
    engines: dict[str, Engine] = {}
    trainer: Trainer = Trainer()
    steps: dict[int, Step] = {}
    events: list[Event] = []
    changes: dict[str, Change] = {}
    counters: dict[str, int] = {}
    probes: dict[str, ProbeResult] = {}
    alarms: dict[str, Alarm] = {}

    def apply(self, frame: Frame) -> None:
        """Take in the next frame.

        Raises:
            ValueError: the frame is of another epoch, or one was missed; ask for a snapshot again.
        """
        if frame.epoch != self.epoch or frame.seq != self.seq + 1:
            raise ValueError(f"frame {frame.epoch}/{frame.seq} does not follow {self.epoch}/{self.seq}")
        self.seq = frame.seq
        self.time = frame.time
        self.engines.update(frame.engines)
        if frame.trainer is not None:
            self.trainer = frame.trainer
        self._take(frame.steps)
        self.events.extend(frame.events)
        self.changes.update({change_key(change): change for change in frame.changes})
        self.counters.update(frame.counters)
        self.probes.update({result.command: result for result in frame.probes})
        while len(self.changes) > MAX_CHANGES:
            del self.changes[next(iter(self.changes))]
        while len(self.probes) > MAX_PROBES:
            del self.probes[next(iter(self.probes))]
        del self.events[:-MAX_EVENTS]
        self.alarms.update(frame.alarms)
        while len(self.alarms) > MAX_ALARMS:
            del self.alarms[next(iter(self.alarms))]

    @property
    def alarm(self) -> Alarm | None:
        """The alarm that is not over, if any."""
        last = next(reversed(self.alarms.values()), None)
        return last if last is not None and last.cleared is None else None

    def _take(self, steps: list[Step]) -> None:
        had = len(self.steps)
        for step in steps:
            self.steps.pop(step.step, None)  # one that comes again, from a restarted trainer, is the newest
            self.steps[step.step] = step
        whole = headline.WHOLE_STEPS
        like = None
        for number in list(islice(reversed(self.steps), whole, whole + len(steps) + 1))[::-1]:
            like = self.steps[number] = headline.headline(self.steps[number], like)
        if len(self.steps) > coarse.ROOM[0] and len(self.steps) // coarse.LOOK_EVERY != had // coarse.LOOK_EVERY:
            coarse.thin(self.steps)


def change_key(change: Change) -> str:
    """The key of a change in ``Snapshot.changes``."""
    return f"{change.command}@{change.engine}"


def moved(change: Change) -> bool:
    """Whether it changed its engine, if only from one form of a value to another: there is something to take back."""
    return (
        change.state == "applied"
        and change.old is not None
        and (change.old != change.new or change.flag_epoch is not None)
    )


# --- questions a viewer may ask (query socket, one msgpack frame each way) -------------------------------------------


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Base of every question; ``id`` comes back in the answer."""

    id: str


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


class Past(msgspec.Struct, frozen=True):
    """A run as it was when a step had closed: the step with all its figures, and the engines as last heard of then."""

    step: Step
    engines: dict[str, Engine]


class EffectEstimate(msgspec.Struct, frozen=True):
    """A figure's fitted levels right before and after a switch, their difference, and its 95 % interval."""

    before: float
    after: float
    difference: float
    low: float
    high: float


class EffectRow(msgspec.Struct, frozen=True):
    """What a switch did to one figure.

    Attributes:
        figure, unit: a name of ``rltop.backend.effects.judge.FIGURES``, and what it is measured in.
        own: of the engines that were switched, with the run's own trend taken out. None: see ``reason``.
        against: of the differences to the engines that were not; None where there are none.
        verdict: ``up``, ``down``, ``none`` (no effect of a size that matters), ``not_yet``, ``unclear`` (too few
            observations, and no more will come, or too noisy), ``confounded``, ``unknown`` (not measured). By
            ``against`` where there is one.
        reason: of every verdict but up, down and none.
        more: for ``not_yet``, about how many more observations it takes; None if that can't be told.
        before, after: observations on either side; ``every`` says what one is: ``step``, or a time such as ``5 s``.
        samples_before, samples_after: what they are means over, in ``samples`` (tokens, requests, s).
        pulled: odd observations that were given less weight.
    """

    figure: str
    unit: str
    own: EffectEstimate | None
    against: EffectEstimate | None
    verdict: str
    reason: str = ""
    more: int | None = None
    every: str = "step"
    before: int = 0
    after: int = 0
    samples: str = ""
    samples_before: int = 0
    samples_after: int = 0
    pulled: int = 0


class Effect(msgspec.Struct, frozen=True):
    """What a command did to the run, as far as it can be told by now.

    Attributes:
        command, flag, old, new: the command and what it switched. reverts: the command that it took back, if it did.
        engines: that were switched. against: that were not, and are compared with.
        first_step, last_step: of the window. mixed: steps left out of it, with tokens from before and after.
        ended: why no later step will count; empty while the window is open.
        confounds: what else changed with the switch.
        rows: one per figure.
    """

    command: str
    flag: str
    old: str | None
    new: str | None
    engines: list[str]
    against: list[str]
    first_step: int | None
    last_step: int | None
    mixed: int
    ended: str
    confounds: list[str]
    rows: list[EffectRow]
    reverts: str = ""


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
    past: Past | None = None


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
