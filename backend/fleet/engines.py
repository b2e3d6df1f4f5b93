"""The engines and the trainer of a run, from their periodic reports. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np

from rltop.backend import api
from rltop.backend.api.refit import RefitCheck
from rltop.backend.fleet import facts
from rltop.backend.fleet.arguments import passed_in
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB
from rltop.collectors.contract.facts import as_text

RATE_WINDOW_S = 5.0
"""Window of tokens per second and of the recent prefix hit rate."""

MIN_RATE_S = 0.5
"""Least window for a rate: a new hub receives queued states at once, with many tokens between them."""

MAX_TEMPERATURES = 8
"""Different temperatures of the trainer that are shown."""

SILENT_S = 5.0
"""Seconds without a report after which an engine is silent; collectors report once a second."""


class Versions(Protocol):
    """How the versions of engines and trainer compare; see ``join.versions.VersionAlignment``."""

    def version(self, life: tuple[str, str], version: int | None, source: str) -> int | None:
        """A version that an engine process reports, in the numbers of the trainer; None if it is not known."""

    def lag(self, now: int | None, version: int | None) -> int | None:
        """Updates between a version and the trainer's version ``now``."""


class RecentMean:
    """The mean of what was added to a sum and its count over the rate window.

    Attributes:
        value: None before the first addition; unchanged while nothing is added.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self._samples: deque[tuple[float, float, int]] = deque([(-math.inf, 0.0, 0)])

    def observe(self, sent: float, total: float, count: int) -> None:
        """Apply the sum and count at the sender's time; they start at 0."""
        self._samples.append((sent, total, count))
        while len(self._samples) > 2 and self._samples[1][0] <= sent - RATE_WINDOW_S:
            self._samples.popleft()
        _, first_total, first_count = self._samples[0]
        if count > first_count:
            self.value = (total - first_total) / (count - first_count)


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
    first_tokens: RecentMean = field(default_factory=RecentMean)
    token_gaps: RecentMean = field(default_factory=RecentMean)
    sampled: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)

    def observe(self, sent: float) -> None:
        """Add the counters of ``state`` at the sender's time."""
        state = self.state
        if self.samples and sent <= self.samples[-1][0]:
            return
        self.samples.append((sent, state.generated_tokens, state.prompt_tokens, state.cached_tokens))
        self.first_tokens.observe(sent, state.first_token_s, state.first_tokens)
        self.token_gaps.observe(sent, state.token_gap_s, state.token_gaps)
        while len(self.samples) > 2 and self.samples[1][0] <= sent - RATE_WINDOW_S:
            self.samples.popleft()

    def _rates(self) -> tuple[float | None, float | None]:
        if len(self.samples) < 2:
            return None, None
        (t0, g0, p0, c0), (t1, g1, p1, c1) = self.samples[0], self.samples[-1]
        if t1 - t0 < MIN_RATE_S:
            return None, None
        return (g1 - g0) / (t1 - t0), (c1 - c0) / (p1 - p0) if p1 > p0 else None

    def version(self, versions: Versions) -> int | None:
        """The engine's policy version in the numbers of the trainer."""
        state = self.state
        return versions.version((state.engine, self.epoch), state.policy_version, state.version_source)

    def view(
        self, trainer_version: int | None, versions: Versions, software: dict[str, str], refit: RefitCheck | None
    ) -> api.Engine:
        """The engine as viewers see it: if its version is not known in the trainer's numbers, its own count."""
        state, record = self.state, self.health_record
        tokens_per_s, hit_rate = self._rates() if self.health == "live" else (None, None)
        version = self.version(versions)
        return api.Engine(
            id=state.engine,
            health=self.health,
            last_seen=self.last_seen,
            host=state.host,
            pid=state.pid,
            vllm_version=state.fingerprint.get("vllm_version", ""),
            step=state.step,
            policy_version=state.policy_version if version is None else version,
            version_source=state.version_source,
            lag=versions.lag(trainer_version, version),
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
            software=software,
            preemptions=state.preemptions,
            ttft=self.first_tokens.value,
            itl=self.token_gaps.value,
            refit=refit,
        )


class Engines:
    """All engines of the run, by id, and which of them changed since ``take_changed``."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self.trainer_version: int | None = None
        self._known: dict[str, Tracked] = {}
        self._software: dict[str, dict[str, str]] = {}
        self._refits: dict[str, RefitCheck] = {}
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
        """Largest difference between the policy versions of live engines, in updates."""
        versions = [self._known[e].version(self._versions) for e in self.live]
        known = [version for version in versions if version is not None]
        return self._versions.lag(max(known), min(known)) or 0 if known else 0

    def set_state(self, envelope: wire.Envelope, state: wire.EngineState, now: float) -> None:
        """Apply a state report of an engine."""
        tracked = self._known.get(state.engine)
        if tracked is None or tracked.epoch != envelope.epoch:
            gap = tracked.gap if tracked else None
            tracked = self._known[state.engine] = Tracked(state, envelope.epoch, now, gap=gap)
        tracked.state, tracked.last_seen, tracked.health = state, now, "live"
        tracked.observe(envelope.sent)
        self._changed.add(state.engine)

    def set_software(self, engine: str, software: dict[str, str]) -> None:
        """Set the software of an engine's process; the engine may not have reported its state yet."""
        if self._software.get(engine) != software:
            self._software[engine] = software
            self._changed.update({engine} & self._known.keys())

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

    def set_refit(self, engine: str, check: RefitCheck) -> RefitCheck | None:
        """Set the latest answer of the refit guard; return the one before. It keeps the step since which it holds."""
        before = self._refits.get(engine)
        if before is not None and before.verdict == check.verdict:
            check = msgspec.structs.replace(check, since_step=before.since_step)
        self._refits[engine] = check
        if engine in self._known:
            self._changed.add(engine)
        return before

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
        changed = {
            engine: self._known[engine].view(
                self.trainer_version, self._versions, self._software.get(engine, {}), self._refits.get(engine)
            )
            for engine in sorted(self._changed)
        }
        self._changed.clear()
        return changed


class TrainerRanks:
    """The trainer as viewers see it, from the messages of its ranks."""

    def __init__(self) -> None:
        self._view = api.Trainer()
        self._counts: dict[str, dict[str, wire.Counts]] = {}
        self._facts: dict[int, dict[str, str]] = {}
        self._software: dict[str, dict[str, str]] = {}
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
        self._set(policy_version=None, step=None, facts={}, passed=[])

    def rows(self, body: wire.Sequences, arrays: wire.Arrays) -> None:
        """Apply version and temperature of rows, and which arguments the trainer passed with them.

        Rows carry the version before the update, a close that after it: the version never goes back.
        """
        if new := passed_in(body) - set(self._view.passed):
            self._set(passed=sorted(new | set(self._view.passed)))
        temperature = _temperature_of(body, arrays)
        if temperature and self._view.facts.get("temperature") != temperature:
            self._set(facts={**self._view.facts, "temperature": temperature})
        version, known = body.policy_version, self._view.policy_version
        if version is not None and (known is None or version > known):
            self._set(policy_version=version)

    def facts(self, body: wire.TrainerFacts) -> None:
        """Apply the facts of a rank; those of the lowest rank are shown."""
        self._facts[body.rank] = body.facts
        self._set(facts=self._facts[min(self._facts)])

    def set_software(self, source: str, software: dict[str, str]) -> None:
        """Set the software of a rank's process; that of the lowest rank is shown."""
        if self._software.get(source) == software:
            return
        self._software[source] = software
        self._set(software=self._software[min(self._software, key=lambda name: (len(name), name))])

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


def _temperature_of(body: wire.Sequences, arrays: wire.Arrays) -> str:
    """The temperatures of rows, as of an engine's requests; empty if the trainer states none."""
    stated = arrays.get("temperatures", np.zeros(0)) if body.temperature is None else np.array([body.temperature])
    values = np.unique(stated[np.isfinite(stated)])[:MAX_TEMPERATURES]
    return facts.MIXED.join(as_text(float(str(value))) or "" for value in values)
