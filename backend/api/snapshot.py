"""The state of a run as viewers see it, and the frames that update it. Pure.

The hub sends one ``Snapshot`` on demand and small ``Frame`` deltas a few times a second. ``Snapshot.apply`` is the only
way in which a viewer's snapshot changes, so all viewers that received the same frames show the same state.
"""

from __future__ import annotations

from itertools import islice

import msgspec

from rltop.backend.api import downsample
from rltop.backend.api.alarm import MAX_ALARMS, Alarm
from rltop.backend.api.author import Author
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.refit import RefitCheck
from rltop.backend.api.step import Step
from rltop.collectors.contract.wire import Counts, FlagState, Timer

MAX_EVENTS = 2_000
MAX_CHANGES = 1_000
MAX_PROBES = 200
"""Bounds of a snapshot in the hub and in viewers; the oldest are dropped first. ``downsample`` bounds the steps."""

TERMINAL = frozenset({"applied", "refused", "timed_out", "superseded"})
"""States in which a change is closed."""


class Engine(msgspec.Struct, frozen=True):
    """An engine as last reported.

    ``health`` is ``live``, ``silent`` (no message for some seconds) or ``gone`` (disconnected). ``lag``: updates
    behind the trainer; None if not known. ``policy_version`` is in the numbers of the trainer; if it ``is_inferred``
    and ``lag`` is None, it is the engine's own count of updates. ``tokens_per_s`` and ``prefix_hit_rate`` (cached over
    prompt tokens) cover the last few seconds.
    ``gap``: ``logp_abs_diff_mean`` of this engine in the last step. ``differs``: facts (``rltop.backend.fleet.facts``)
    that disagree with the other engines or the trainer, with the values of those. ``software``: versions of
    rltop, Python and modules in its process (``collectors.transport.software``). ``preemptions``: counter, None if
    unknown. ``ttft`` (time to first token) and ``itl`` (time between tokens of a request): means in seconds over the
    requests of the last few seconds that had any, None before the first. ``refit``: the latest answer of the refit
    guard; None before its first.
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
    software: dict[str, str] = {}
    preemptions: int | None = None
    ttft: float | None = None
    itl: float | None = None
    refit: RefitCheck | None = None

    @property
    def is_inferred(self) -> bool:
        """Whether the version comes from the engine's count of updates: neither it nor its framework states one."""
        return self.policy_version is not None and self.version_source in ("inferred", "unknown")


class Trainer(msgspec.Struct, frozen=True):
    """The trainer as last reported; ``ranks`` maps a rank to the wall clock of its last message.

    ``facts``: its configuration (``wire.TrainerFacts``), from the lowest rank. ``software``: as in ``Engine``, of the
    same rank. ``passed``: the optional arguments of ``sequences`` (``fleet.arguments``) that it has passed so far.
    """

    health: str = "absent"
    world_size: int = 0
    ranks: dict[str, float] = {}
    step: int | None = None
    policy_version: int | None = None
    counts: dict[str, Counts] = {}
    facts: dict[str, str] = {}
    software: dict[str, str] = {}
    passed: list[str] = []


FAULT_EVENT = "fault"
"""Kind of the events about exceptions that the hub contained."""


class Event(msgspec.Struct, frozen=True):
    """An event: a flag change, an engine connecting or disconnecting, a weight update, lost records.

    ``severity`` is ``info``, ``warn`` or ``error``; ``step`` the last closed step at the time; ``number`` rises by one
    per event of this hub. ``probe``: the answer that the event reports.
    """

    number: int
    time: float
    severity: str
    kind: str
    text: str
    step: int | None = None
    engine: str | None = None
    probe: ProbeResult | None = None


class Change(msgspec.Struct, frozen=True):
    """The state of a command on one engine. The engines of a fleet-wide command share ``command``.

    ``state``: requested, accepted, draining, then one of ``TERMINAL``. ``step`` is the last closed step when it was
    requested. ``verb``, ``strict``, ``revert_s`` and ``target`` are as in ``wire.Command``, the rest as in
    ``wire.CommandUpdate``. ``kept_by``: who stopped its revert timer. ``probe``: the probe that it starts. ``who`` and
    ``host`` are those of the requesting process, ``author`` has the rest that is known of it.
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
    author: Author | None = None


class Frame(msgspec.Struct, frozen=True):
    """The changes since the last frame. ``seq`` rises by one per frame within a hub's ``epoch``.

    A changed engine, step, change or alarm is sent in full; an empty frame is a heartbeat.
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


def has_records(frame: Frame) -> bool:
    """Whether the frame has entries that no later frame repeats."""
    return bool(frame.steps or frame.events or frame.changes or frame.alarms)


class Snapshot(msgspec.Struct):
    """The state of a run as of frame ``seq`` of hub ``epoch``.

    ``steps`` and ``changes`` are keyed (by step number; by command and engine) and in order of arrival. The newest
    ``WHOLE_STEPS`` steps are complete, older ones have ``HEADLINE`` metrics, and the oldest are downsampled
    (``rltop.backend.api.downsample``). ``counters``: of the hub: messages, bytes, gaps, invalid and unjoined records.
    ``probes``: results by command. ``alarms``: by id, oldest first.
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
        """Apply the next frame.

        Raises:
            ValueError: the frame is of another epoch, or one was missed; a new snapshot is needed.
        """
        if frame.epoch != self.epoch or frame.seq != self.seq + 1:
            raise ValueError(f"frame {frame.epoch}/{frame.seq} does not follow {self.epoch}/{self.seq}")
        self.seq = frame.seq
        self.time = frame.time
        self.engines.update(frame.engines)
        if frame.trainer is not None:
            self.trainer = frame.trainer
        self._add_steps(frame.steps)
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
        """The open alarm, if any."""
        last = next(reversed(self.alarms.values()), None)
        return last if last is not None and last.cleared is None else None

    def _add_steps(self, steps: list[Step]) -> None:
        before = len(self.steps)
        for step in steps:
            self.steps.pop(step.step, None)  # a step repeated by a restarted trainer is the newest
            self.steps[step.step] = step
        whole = downsample.WHOLE_STEPS
        like = None
        for number in list(islice(reversed(self.steps), whole, whole + len(steps) + 1))[::-1]:
            like = self.steps[number] = downsample.headline(self.steps[number], like)
        if (
            len(self.steps) > downsample.ROOM[0]
            and len(self.steps) // downsample.CHECK_EVERY != before // downsample.CHECK_EVERY
        ):
            downsample.downsample(self.steps)


def is_over(snapshot: Snapshot) -> bool:
    """Whether the run has ended: its trainer and all engines have exited, none was lost."""
    parts = [snapshot.trainer.health, *(engine.health for engine in snapshot.engines.values())]
    return bool(snapshot.steps) and all(health == "gone" for health in parts)


def change_key(change: Change) -> str:
    """The key of a change in ``Snapshot.changes``."""
    return f"{change.command}@{change.engine}"


def health_text(health: str) -> str:
    """The health of an engine or trainer as people read it."""
    return "exited" if health == "gone" else health


def changed_engine(change: Change) -> bool:
    """Whether the change was applied and can be reverted, even if only the form of a value changed."""
    return (
        change.state == "applied"
        and change.old is not None
        and (change.old != change.new or change.flag_epoch is not None)
    )
