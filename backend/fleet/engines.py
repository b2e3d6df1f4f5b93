"""The engines and the trainer of a run, from their periodic reports. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from rltop.backend import api
from rltop.backend.fleet import facts
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB
from rltop.collectors.contract.facts import as_text

RATE_WINDOW_S = 5.0
"""Window of tokens per second and of the recent prefix hit rate."""

MIN_RATE_S = 0.5
"""Least window for a rate: a new hub receives queued states at once, with many tokens between them."""

SILENT_S = 5.0
"""Seconds without a report after which an engine is silent; collectors report once a second."""


@dataclass(slots=True)
class Tracked:
    """One engine: its latest state, and its counters over the rate window.

    ``gap`` is that of the last step, ``sampled`` the sampling facts of recent requests, ``differs`` the mismatching
    facts (``facts``).
    """

    state: wire.EngineState
    epoch: str
    last_seen: float
    health: str = "live"
    health_record: wire.Health | None = None
    gap: float | None = None
    samples: deque[tuple[float, int, int, int]] = field(default_factory=deque)
    sampled: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)

    def observe(self, sent: float) -> None:
        """Add the counters of ``state`` at the sender's time."""
        state = self.state
        if self.samples and sent <= self.samples[-1][0]:
            return
        self.samples.append((sent, state.generated_tokens, state.prompt_tokens, state.cached_tokens))
        while len(self.samples) > 2 and self.samples[1][0] <= sent - RATE_WINDOW_S:
            self.samples.popleft()

    def _rates(self) -> tuple[float | None, float | None]:
        if len(self.samples) < 2:
            return None, None
        (t0, g0, p0, c0), (t1, g1, p1, c1) = self.samples[0], self.samples[-1]
        if t1 - t0 < MIN_RATE_S:
            return None, None
        return (g1 - g0) / (t1 - t0), (c1 - c0) / (p1 - p0) if p1 > p0 else None

    def view(self, trainer_version: int | None) -> api.Engine:
        """The engine as viewers see it."""
        state, record = self.state, self.health_record
        tokens_per_s, hit_rate = self._rates() if self.health == "live" else (None, None)
        lag = None
        if trainer_version is not None and state.policy_version is not None:
            lag = trainer_version - state.policy_version
        return api.Engine(
            id=state.engine,
            health=self.health,
            last_seen=self.last_seen,
            host=state.host,
            pid=state.pid,
            vllm_version=state.fingerprint.get("vllm_version", ""),
            step=state.step,
            policy_version=state.policy_version,
            version_source=state.version_source,
            lag=lag,
            tokens=state.generated_tokens,
            tokens_per_s=tokens_per_s,
            running=state.running,
            waiting=state.waiting,
            kv_usage=state.kv_usage,
            prefix_hit_rate=hit_rate,
            gap=self.gap,
            flags=state.flags,
            flag_epoch=state.flag_epoch,
            fingerprint=state.fingerprint | self.sampled,
            finished=state.finished,
            aborted=state.aborted,
            without_logprobs=state.without_logprobs,
            paused=state.paused,
            update_open=state.update_open,
            counts=record.counts if record else {},
            faults=record.faults if record else {},
            timers=state.timers,
            differs=self.differs,
        )


class Engines:
    """All engines of the run, by id, and which of them changed since ``take_changed``."""

    def __init__(self) -> None:
        self.trainer_version: int | None = None
        self._known: dict[str, Tracked] = {}
        self._changed: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __contains__(self, engine: str) -> bool:
        return engine in self._known

    @property
    def live(self) -> list[str]:
        """Ids of the live engines."""
        return [engine for engine, tracked in self._known.items() if tracked.health == "live"]

    def health(self, engine: str) -> str:
        """``live``, ``silent``, ``gone``, or ``unknown``."""
        return self._known[engine].health if engine in self._known else "unknown"

    def reads(self, engine: str, subject: str) -> str | None:
        """The value of a flag on an engine, or whether it generates; None if unknown."""
        if (tracked := self._known.get(engine)) is None:
            return None
        state = tracked.state
        if subject == BY_VERB["pause"].subject:
            return (BY_VERB["pause"] if state.paused else BY_VERB["resume"]).value
        return state.flags[subject].value if subject in state.flags else None

    def state(self, engine: str) -> wire.EngineState | None:
        """The latest report of an engine."""
        return self._known[engine].state if engine in self._known else None

    def timers(self, engine: str) -> list[wire.Timer]:
        """The pending auto-reverts of an engine."""
        return self._known[engine].state.timers if engine in self._known else []

    def skew(self) -> int:
        """Largest difference between the policy versions of live engines."""
        versions = [self._known[e].state.policy_version for e in self.live]
        known = [version for version in versions if version is not None]
        return max(known) - min(known) if known else 0

    def set_state(self, envelope: wire.Envelope, state: wire.EngineState, now: float) -> None:
        """Apply a state report of an engine."""
        tracked = self._known.get(state.engine)
        if tracked is None or tracked.epoch != envelope.epoch:
            gap = tracked.gap if tracked else None
            tracked = self._known[state.engine] = Tracked(state, envelope.epoch, now, gap=gap)
        tracked.state, tracked.last_seen, tracked.health = state, now, "live"
        tracked.observe(envelope.sent)
        self._changed.add(state.engine)

    def set_counters(self, engine: str, health: wire.Health, now: float) -> None:
        """Apply a health record of an engine's collector."""
        if tracked := self._known.get(engine):
            tracked.health_record, tracked.last_seen = health, now

    def set_health(self, engine: str, health: str) -> None:
        """Set the health of an engine: silent, or gone."""
        if engine in self._known and self._known[engine].health != health:
            self._known[engine].health = health
            self._changed.add(engine)

    def set_trainer_version(self, version: int | None) -> None:
        """Set the trainer's version, which changes every lag."""
        if version != self.trainer_version:
            self.trainer_version = version
            self._changed.update(self._known)

    def set_gap(self, engine: str, gap: float | None) -> None:
        """Set the engine's gap in the last step."""
        if engine in self._known:
            self._known[engine].gap = gap
            self._changed.add(engine)

    def facts(self, sampled: Callable[[str], dict[str, str]]) -> dict[str, dict[str, str]]:
        """The facts of every engine that is not gone, with the sampling facts of its requests."""
        found = {}
        for engine, tracked in self._known.items():
            if tracked.health != "gone":
                tracked.sampled = sampled(engine)
                found[engine] = facts.of_engine(tracked.state) | tracked.sampled
        return found

    def set_differences(self, differs: Mapping[str, dict[str, str]]) -> None:
        """Set the mismatching facts by engine; engines that are absent have none."""
        for engine, tracked in self._known.items():
            if tracked.differs != (marks := differs.get(engine, {})):
                tracked.differs = marks
                self._changed.add(engine)

    def take_changed(self) -> dict[str, api.Engine]:
        """The engines that changed since the last call."""
        changed = {e: self._known[e].view(self.trainer_version) for e in sorted(self._changed)}
        self._changed.clear()
        return changed


class TrainerRanks:
    """The trainer as viewers see it, from the messages of its ranks."""

    def __init__(self) -> None:
        self._view = api.Trainer()
        self._counts: dict[str, dict[str, wire.Counts]] = {}
        self._facts: dict[int, dict[str, str]] = {}
        self._changed = False

    @property
    def version(self) -> int | None:
        """Policy version of the trainer, if stated."""
        return self._view.policy_version

    @property
    def stated(self) -> dict[str, str]:
        """The facts that the trainer states."""
        return self._view.facts

    def _set(self, **changes: object) -> None:
        self._view = msgspec.structs.replace(self._view, **changes)
        self._changed = True

    def new_epoch(self) -> None:
        """A rank restarted: forget progress and facts, which may belong to the earlier process."""
        self._facts.clear()
        self._set(policy_version=None, step=None, facts={})

    def rows(self, body: wire.Sequences) -> None:
        """Apply version and temperature of rows.

        Rows carry the version before the update, a close that after it: the version never goes back.
        """
        temperature = as_text(body.temperature)
        if temperature is not None and self._view.facts.get("temperature") != temperature:
            self._set(facts={**self._view.facts, "temperature": temperature})
        version, known = body.policy_version, self._view.policy_version
        if version is not None and (known is None or version > known):
            self._set(policy_version=version)

    def facts(self, body: wire.TrainerFacts) -> None:
        """Apply the facts of a rank; those of the lowest rank are shown."""
        self._facts[body.rank] = body.facts
        self._set(facts=self._facts[min(self._facts)])

    def closed(self, body: wire.StepClosed) -> None:
        """Apply the end of a step on a rank."""
        version = self._view.policy_version if body.policy_version is None else body.policy_version
        self._set(step=body.step, policy_version=version, world_size=body.world_size)

    def set_counters(self, source: str, health: wire.Health, now: float) -> None:
        """Apply a health record of a rank; counts are summed over ranks."""
        self._counts[source] = health.counts
        totals: dict[str, wire.Counts] = {}
        for counts in self._counts.values():
            for kind, count in counts.items():
                before = totals.get(kind, wire.Counts())
                totals[kind] = wire.Counts(
                    before.offered + count.offered,
                    before.sent + count.sent,
                    before.dropped + count.dropped,
                    before.queued + count.queued,
                )
        self._set(counts=totals, ranks={**self._view.ranks, source.removeprefix("trainer/"): now})

    def set_health(self, health: str) -> None:
        """Set the health: the best of the ranks."""
        if health != self._view.health:
            self._set(health=health)

    def take_changed(self) -> api.Trainer | None:
        """The trainer, if it changed since the last call."""
        changed, self._changed = self._changed, False
        return self._view if changed else None
