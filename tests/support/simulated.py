"""A small simulated policy with engines and a trainer, for tests of the diagnosis: their messages, step by step.

Contexts belong to a prompt and a position: most of them nearly sure, some flat, over a vocabulary of 24. Weights move
at random from version to version. What a fault changes is said by ``Fault``; nothing here is a real run, see
``tests/support/tapes.py`` for those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.evidence import evidence
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.series import EvidenceSeries
from rltop.backend.join import copies
from rltop.backend.join.batch import Batch
from rltop.backend.join.index import RolloutIndex
from rltop.backend.measure.measure import BatchRuns, measure
from tests.support.hub_messages import Trained, Written, rollouts, sequences

Floats = NDArray[np.float64]

VOCABULARY = 24
GROUPS, GROUP_SIZE = 8, 8
SHARP, MEDIUM, FLAT = 6.0, 2.5, 0.7


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong, from step ``at`` on, and before ``until``.

    Attributes:
        engine: with the fault; empty: all.
        record_heat, trainer_heat: temperatures that the record and the trainer divide by, None: the one of sampling.
        top_p: of sampling. recorded: whether the record is of the distribution that was cut.
        stuck: versions do not arrive, and labels say they do.
        noise: of the engine's logits, as of an old tensor; with ``misses`` only in requests that hit the cache.
        bfloat16: the engine's logits are rounded.
        dropout: noise of the trainer's logits, row by row.
        penalty: what logits of tokens that stand in the answer already are lowered by.
        shift: tokens that the trainer's copy is late by. zeros: at the end of each answer in the copy.
    """

    at: int = 0
    until: int | None = None
    engine: str = ""
    record_heat: float | None = None
    trainer_heat: float | None = None
    top_p: float = 1.0
    recorded: bool = True
    stuck: bool = False
    noise: float = 0.0
    misses: bool = False
    bfloat16: bool = False
    dropout: float = 0.0
    penalty: float = 0.0
    shift: int = 0
    zeros: int = 0


HEALTHY = Fault()


@dataclass
class Policy:
    """The simulated run.

    Attributes:
        seed, heat, engines, lag: of the run; tokens are ``lag`` versions old from step ``lag`` on.
        move: how far an update moves logits.
        size: tokens of an answer, from and to.
        matched: rows of a step whose old logprobs are computed.
    """

    seed: int = 0
    heat: float = 1.0
    engines: int = 2
    lag: int = 1
    move: float = 0.05
    size: tuple[int, int] = (10, 19)
    matched: int = 16
    fault: Fault = HEALTHY

    def cases(self, steps: int) -> Iterator[DiagnosisInput]:
        """The case as of each step."""
        rng = np.random.default_rng(self.seed)
        index, course = RolloutIndex(), EvidenceSeries()
        told: list[api.Step] = []
        for step in range(steps):
            batch = self._batch(rng, index, step)
            made = BatchRuns(batch)
            parts = measure(batch, made)
            found = evidence.of(batch, made)
            kept = {e: own for e, own in found.items() if not own.is_empty}
            course.put(step, {e: evidence.with_strata(own, parts[e]) for e, own in kept.items()})
            of_copies = {engine: dict(kinds) for engine, kinds in copies.compare(batch).items()}
            told.append(api.Step(step, float(step), step + 1, False, {}, joins=dict(batch.ways()), copies=of_copies))
            yield DiagnosisInput("run", list(told), evidence=course.stretches())

    def slowness(self, rng: np.random.Generator, engine: str) -> float:
        """By how many times an engine is slower in this step."""
        return 1.0

    def _batch(self, rng: np.random.Generator, index: RolloutIndex, step: int) -> Batch:
        there = step >= self.fault.at and (self.fault.until is None or step < self.fault.until)
        fault = self.fault if there else HEALTHY
        rows: list[Trained] = []
        written: list[Written] = []
        picked = set(rng.permutation(GROUPS * GROUP_SIZE)[: self.matched].tolist())
        for group in range(GROUPS):
            engine = f"e{group % self.engines}"
            own = fault if fault.engine in ("", engine) else HEALTHY
            prompt = [VOCABULARY, step, group, *rng.integers(100, 200, 6).tolist()]
            length = int(rng.integers(*self.size))
            logits = self._contexts(rng, length)
            lag = min(self.lag, step)
            ahead = logits + self.move * np.sqrt(lag) * rng.normal(size=logits.shape)
            moved = self.move * np.sqrt(max(step - lag, 0)) * rng.normal(size=logits.shape)
            stale = logits - moved if own.stuck else logits
            for number in range(GROUP_SIZE):
                row, rollout = self._row(rng, own, prompt, logits, stale, ahead, step - lag)
                if group * GROUP_SIZE + number not in picked:
                    row.per_token["old_logprobs"] = [np.nan] * len(row.ids)
                    row.per_token["old_versions"] = [-1] * len(row.ids)
                rollout.engine = engine
                rows.append(row)
                written.append(rollout)
        for name in sorted({rollout.engine for rollout in written}):
            times = self.slowness(rng, name)
            for rollout in written:
                if rollout.engine == name:
                    rollout.times = (1.0, 2.0, 2.0 + 0.005 * times * len(rollout.tokens))
            index.add(*rollouts([rollout for rollout in written if rollout.engine == name]), "life")
        body, arrays = sequences(rows, step=step, policy_version=step, temperature=self.heat)
        batch = Batch(body, arrays)
        batch.join(index, strict=False)
        return batch

    def _contexts(self, rng: np.random.Generator, length: int) -> Floats:
        scale = rng.choice([SHARP, MEDIUM, FLAT], length, p=[0.6, 0.3, 0.1])
        logits: Floats = rng.normal(size=(length, VOCABULARY)) * np.minimum(scale, 2.5)[:, None]
        logits[np.arange(length), rng.integers(0, VOCABULARY, length)] += scale
        return logits

    def _row(
        self,
        rng: np.random.Generator,
        fault: Fault,
        prompt: list[int],
        logits: Floats,
        stale: Floats,
        ahead: Floats,
        label: int,
    ) -> tuple[Trained, Written]:
        heat = self.heat
        hit = not fault.misses or bool(rng.random() < 0.5)
        engine = stale + (fault.noise * rng.normal(size=stale.shape) if fault.noise and hit else 0.0)
        engine = _bfloat16(engine) if fault.bfloat16 else engine
        tokens: list[int] = []
        record: list[float] = []
        for at in range(len(engine)):
            here = engine[at].copy()
            if fault.penalty:
                here[list(set(tokens))] -= fault.penalty
            logp = _log_softmax(here / heat)
            cut = _cut(logp, fault.top_p)
            token = int(rng.choice(VOCABULARY, p=np.exp(cut)))
            shown = cut if fault.recorded else logp
            if fault.record_heat is not None:
                shown = _log_softmax(here / fault.record_heat)
            tokens.append(token)
            record.append(float(shown[token]))
        own_heat = heat if fault.trainer_heat is None else fault.trainer_heat
        now = ahead + (fault.dropout * rng.normal(size=ahead.shape) if fault.dropout else 0.0)
        under_old, under_now = _log_softmax(logits / own_heat), _log_softmax(now / own_heat)
        places = np.arange(len(tokens)), np.array(tokens)
        entropy = -(np.exp(under_now) * under_now).sum(axis=1)
        copy = [0.0] * fault.shift + record[: len(record) - fault.shift] if fault.shift else list(record)
        if fault.zeros:
            copy[-fault.zeros :] = [0.0] * fault.zeros
        n = len(tokens)
        per_token: dict[str, Sequence[float]] = {
            "old_logprobs": under_old[places].tolist(), "old_versions": [label] * n, "entropy": entropy.tolist(),
            "rollout_versions": [label] * n,
        }  # fmt: skip
        row = Trained(tokens, [1] * n, copy, under_now[places].tolist(), prompt, float(rng.random()), per_token)
        cached = len(prompt) if hit else 0
        return row, Written(prompt, tokens, record, [label] * n, cached=cached, times=(1.0, 2.0, 2.0 + 0.005 * n))


def _log_softmax(logits: Floats) -> Floats:
    top = logits.max(axis=-1, keepdims=True)
    found: Floats = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return found


def _cut(logp: Floats, top_p: float) -> Floats:
    if top_p >= 1:
        return logp
    order = np.argsort(-logp)
    before = np.cumsum(np.exp(logp[order])) - np.exp(logp[order])
    cut = np.full_like(logp, -np.inf)
    kept = order[before < top_p]
    cut[kept] = logp[kept] - np.log(np.exp(logp[kept]).sum())
    return cut


def _bfloat16(values: Floats) -> Floats:
    bits = values.astype(np.float32).view(np.uint32)
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    back: Floats = rounded.view(np.float32).astype(np.float64)
    return back
