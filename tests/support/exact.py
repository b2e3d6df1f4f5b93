"""Simulated runs as their hub hears them: exact policies over a whole vocabulary, engines, a trainer, wire messages.

A policy is a table of logits, one row for each of some contexts: most of them nearly sure, some open, as of language
models (probabilities fall as a power of the rank). A token's context follows from its prompt and its place, so every
distribution that anybody samples from or computes is known in full, at the cost of a table and not of a token: a
vocabulary may have 32,000 tokens, an answer 4,096. Weights are tables too, one for each version. What is wrong is said
by ``Wrong``; for real runs see ``tests/support/tapes.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend.fleet.facts import NEUTRAL, same_text
from rltop.collectors.contract import wire
from tests.support.exact_tables import Dists, Floats, Ints, Key, bfloat16
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, engine_state, rollouts, sequences

SURE, OPEN, FLAT = (5.0, 16.0), (1.8, 3.5), (1.1, 1.5)
"""Exponents of the probabilities' fall, from and to, of three kinds of contexts; and how many there are of each."""
KINDS = (0.6, 0.3, 0.1)

COMMON = 64
"""Tokens that the likeliest of every context are among: so tokens come again within an answer."""

PREFIX = 16
"""First tokens of an answer that a stale prefix bears on."""

PADDING = 12
"""Tokens that a lost mask lets into the loss, each after an answer."""

MASKS = 4
"""Of dropout, in one step: each row has one."""

STEP_S, REPORT_S = 2.0, 1.0
"""Seconds of a step; and between two reports of an engine."""


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """What is wrong, in the rows of step ``at`` and later ones.

    Attributes:
        engine: that has it; empty: all.
        raw: the record is of the distribution before temperature and truncation. scaled: it is logprob / T.
        trainer_heat: temperature that the trainer divides by; None: that of sampling.
        top_p, top_k, min_p: of sampling. trainer_top_p: of the trainer.
        penalty: what the logits of tokens that an answer has already are lowered by.
        stuck: updates bring nothing. lies: the version moves on nevertheless.
        kept: share of the contexts whose logits no update reaches, as of a tensor that is left out.
        stale_prefix: how much of an old version's logits is in the first tokens of requests that hit the cache.
        late: versions that the weights are older than their label says. cast: weights are sent in 16 bits, which no
            fact says.
        noise: deviation of the engine's logits. rounded: to bfloat16.
        trainer_rounded: likewise, the trainer's. dropout: deviation of the trainer's logits in the pass that is
            trained on, row by row.
        shift: tokens that the trainer's copy is late by. zeros: at the end of each answer in the copy.
        unmasked: padding is in the loss.
        lag: versions that tokens are older.
        sharpens: share by which logits grow a step, whatever they are right for.
    """

    at: int = 0
    engine: str = ""
    raw: bool = False
    scaled: bool = False
    trainer_heat: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    trainer_top_p: float = 1.0
    penalty: float = 0.0
    stuck: bool = False
    lies: bool = False
    kept: float = 0.0
    stale_prefix: float = 0.0
    late: int = 0
    cast: bool = False
    noise: float = 0.0
    rounded: bool = False
    trainer_rounded: bool = False
    dropout: float = 0.0
    shift: int = 0
    zeros: int = 0
    unmasked: bool = False
    lag: int = 0
    sharpens: float = 0.0


RIGHT = Wrong()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run.

    Attributes:
        seed: of all that is drawn. steps: how many.
        vocabulary, contexts: sizes of the table. heat: temperature of sampling, and of the trainer.
        engines: how many. lag: versions that tokens are old; ragged: but in every third step.
        uneven: versions that tokens of the last engine are older than those of the others.
        step_s: seconds of a step. reports: whether engines report the version that they have, once a second, and not
            that of their rollouts at every step.
        groups, size: prompts of a step, and answers to each. shortest, longest: tokens of an answer.
        move: by what logits move in an update. coherent: share of it that has one direction throughout.
        old: whose logprobs under the version that sampled them the trainer computes too: ``all`` rows', ``some`` rows',
            or ``none``. entropy: whether it passes that.
        facts: whether engines and trainer say what they compute with; requests always say how they are sampled.
        dtype: what that is; noise of the engine's logits is as that makes it.
    """

    seed: int = 0
    steps: int = 24
    vocabulary: int = 512
    contexts: int = 192
    heat: float = 1.0
    engines: int = 2
    lag: int = 1
    ragged: bool = False
    uneven: int = 0
    step_s: float = STEP_S
    reports: bool = False
    groups: int = 8
    size: int = 8
    shortest: int = 12
    longest: int = 48
    move: float = 0.05
    coherent: float = 0.3
    old: str = "some"
    entropy: bool = True
    facts: bool = True
    dtype: str = "float32"


class Run:
    """One simulated run: ``hubs()`` is its hub after each step.

    Args:
        setting: what the run is like.
        wrong: what is wrong with it.
    """

    def __init__(self, setting: Setting, wrong: Wrong = RIGHT) -> None:
        self.setting, self.wrong = setting, wrong
        self._rng = np.random.default_rng(setting.seed)
        self._tables = {0: self._first()}
        self._direction = self._rng.normal(size=self._tables[0].shape).astype(np.float32)
        self._held = self._rng.random(setting.contexts) < wrong.kept
        self._made: dict[Key, Dists] = {}
        self._requests = 0
        self._reported: dict[str, float] = {}
        self.places: dict[int, Ints] = {}  # contexts of the tokens of each rollout of the step, by its id

    def hubs(self, hub: Hub | None = None) -> Iterator[Hub]:
        """The hub, after each step; a new one, unless another is to hear it."""
        hub = hub or Hub()
        if self.setting.facts:
            trainer = {
                "dtype": self.setting.dtype,
                "head_dtype": self.setting.dtype,
                "temperature": str(self.setting.heat),
            }
            hub.send("trainer/0", wire.TrainerFacts(0, trainer | {"top_p": "1.0"}))
        for step in range(self.setting.steps):
            self._step(hub, step)
            yield hub

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        """The rows of a step and their rollouts: a subclass changes them here."""
        return rows, written

    def under(self, version: int, places: Ints, tokens: Ints) -> list[float]:
        """Logprobs of tokens in contexts by the weights of a version."""
        found: list[float] = self._of_tokens(Key(version, self.setting.heat), places, tokens)[0].tolist()
        return found

    def likeliest(self, version: int, places: Ints) -> list[float]:
        """The highest logprob in each context by the weights of a version."""
        found: list[float] = self._dists(Key(version, self.setting.heat)).logp[places].max(axis=1).tolist()
        return found

    # --- weights ------------------------------------------------------------------------------------------------

    def _first(self) -> NDArray[np.float32]:
        setting, rng = self.setting, self._rng
        kinds = rng.choice(3, setting.contexts, p=KINDS)
        low, high = np.array((SURE, OPEN, FLAT)).T[:, kinds]
        falls = rng.uniform(low, high)[:, None]
        ranks = np.log1p(np.arange(setting.vocabulary))
        logits = (-falls * ranks + 0.3 * rng.normal(size=(setting.contexts, setting.vocabulary))).astype(np.float32)
        common = min(COMMON, setting.vocabulary)
        for row in logits:
            row[:common] = row[rng.permutation(common)]
        found: NDArray[np.float32] = logits
        return found

    def _table(self, version: int) -> NDArray[np.float32]:
        """Logits of a version [contexts, vocabulary]."""
        setting = self.setting
        while version not in self._tables:
            newest = max(self._tables)
            fresh = self._rng.standard_normal(self._direction.shape, np.float32)
            straight = np.float32(setting.coherent)
            moved = straight * self._direction + np.sqrt(1 - straight**2) * fresh
            table = self._tables[newest] + np.float32(setting.move) * moved
            if self.wrong.sharpens and newest >= self.wrong.at:
                table = table * np.float32(1 + self.wrong.sharpens)
            self._tables[newest + 1] = table
            old = newest - setting.lag - setting.uneven - self.wrong.lag - self.wrong.late - 2
            if old not in (0, self.wrong.at):
                self._tables.pop(old, None)
        return self._tables[version]

    # --- a step -------------------------------------------------------------------------------------------------

    def _step(self, hub: Hub, step: int) -> None:
        setting, rng = self.setting, self._rng
        wrong = self.wrong if step >= self.wrong.at else RIGHT
        lag = 0 if setting.ragged and step % 3 == 0 else min(setting.lag + wrong.lag, step)
        self._table(step)
        kept = rng.permutation(setting.groups * setting.size) < _matched_rows(setting)
        rows: list[Trained] = []
        written: dict[str, list[Written]] = {}
        for group in range(setting.groups):
            engine = f"e{group % setting.engines}"
            own = wrong if wrong.engine in ("", engine) else RIGHT
            version = self._sampled_by(engine, step, lag)
            prompt = [1, step, group, *rng.integers(5, setting.vocabulary, 6).tolist()]
            places = rng.integers(0, setting.contexts, setting.longest)
            for number in range(setting.size):
                matched = bool(kept[group * setting.size + number])
                row, rollout = self._row(own, prompt, places, step, version, matched)
                rollout.engine = engine
                rows.append(row)
                written.setdefault(engine, []).append(rollout)
                self.places[id(rollout)] = places[: len(rollout.tokens)]
        rows, everything = self.edited(step, rows, [w for of_engine in written.values() for w in of_engine])
        for engine in written:
            of_engine = [rollout for rollout in everything if rollout.engine == engine]
            own = wrong if wrong.engine in ("", engine) else RIGHT
            if not setting.reports:
                hub.send(engine, self._state(engine, own, self._sampled_by(engine, step, lag)))
            elif hub.now >= self._reported.get(engine, -np.inf) + REPORT_S:
                hub.send(engine, self._state(engine, own, step))
                self._reported[engine] = hub.now
            hub.send(engine, *rollouts(of_engine))
        body, arrays = sequences(
            rows, step=step, policy_version=step, temperature=setting.heat, clip_low=0.8, clip_high=1.2
        )
        hub.send("trainer/0", body, arrays)
        metrics = {"grad_norm": float(rng.lognormal(0, 0.2))}
        hub.send("trainer/0", wire.StepClosed(step, 0, 1, step + 1, metrics, hub.now))
        hub.now += setting.step_s
        hub.state.tick(hub.now)
        hub.state.next_frame(hub.now)  # the hub's picture changes by its frames; nobody watches for alarms
        self._made.clear()
        self.places.clear()

    def _sampled_by(self, engine: str, step: int, lag: int) -> int:
        """The version that samples what an engine contributes to a step."""
        last = engine == f"e{self.setting.engines - 1}"
        return max(step - lag - self.setting.uneven * last, 0)

    def _state(self, engine: str, wrong: Wrong, version: int) -> wire.EngineState:
        about: dict[str, Any] = {"policy_version": self._label(wrong, version), "weight_label": None}
        if not self.setting.facts:
            return engine_state(engine, **about, flags={}, fingerprint={})
        dtype = "bfloat16" if wrong.rounded or wrong.noise else self.setting.dtype
        flags = {
            "prefix_caching": wire.FlagState("on", True),
            "logprobs_mode": wire.FlagState("raw" if wrong.raw else "processed", True),
        }
        prints = {"vllm_version": "0.32.0", "dtype": dtype, "head_dtype": dtype}
        prints["logprobs_mode"] = "raw_logprobs" if wrong.raw else "processed_logprobs"
        return engine_state(engine, **about, flags=flags, fingerprint=prints)

    def _sampling(self, wrong: Wrong) -> dict[str, float]:
        """What a request asks for."""
        asked = {
            "temperature": self.setting.heat,
            "top_p": wrong.top_p,
            "top_k": float(wrong.top_k),
            "min_p": wrong.min_p,
            "presence_penalty": wrong.penalty,
        }
        return {name: value for name, value in asked.items() if not same_text(str(value), NEUTRAL[name])}

    def _label(self, wrong: Wrong, version: int) -> int:
        """The version that an engine says it has."""
        return min(version, self.wrong.at) if wrong.stuck and not wrong.lies else version

    def _row(
        self, wrong: Wrong, prompt: list[int], places: Ints, step: int, version: int, matched: bool
    ) -> tuple[Trained, Written]:
        setting, rng = self.setting, self._rng
        size = _length(rng, setting)
        places = places[:size]
        hit = not wrong.stale_prefix or bool(rng.random() < 0.5)
        tokens, record = self._sampled(wrong, places, version, hit)
        label = self._label(wrong, version)
        heat = setting.heat if wrong.trainer_heat is None else wrong.trainer_heat
        key = Key(step, heat, top_p=wrong.trainer_top_p, rounded=wrong.trainer_rounded)
        old = self._of_tokens(msgspec.structs.replace(key, version=label), places, tokens)[0]
        key = msgspec.structs.replace(key, noise=wrong.dropout, mask=int(rng.integers(MASKS)) if wrong.dropout else 0)
        now, entropy = self._of_tokens(key, places, tokens)
        copy = (
            np.concatenate([np.zeros(wrong.shift), record[: size - wrong.shift]])
            if 0 < wrong.shift < size
            else record.copy()
        )
        if wrong.zeros:
            copy[-wrong.zeros :] = 0.0
        pad = PADDING if wrong.unmasked else 0
        per_token: dict[str, Any] = {"rollout_versions": [label] * (size + pad)}
        if setting.old != "none":
            per_token["old_logprobs"] = [*(old if matched else np.full(size, np.nan)).tolist(), *[np.nan] * pad]
            per_token["old_versions"] = [label if matched else -1] * size + [-1] * pad
        if setting.entropy:
            per_token["entropy"] = [*entropy.tolist(), *[0.5] * pad]
        ids = [*tokens.tolist(), *[0] * pad]
        row = Trained(
            ids,
            [1] * len(ids),
            [*copy.tolist(), *[0.0] * pad],
            [*now.tolist(), *[-8.0] * pad],
            prompt,
            float(rng.random() < 0.5),
            per_token,
        )
        ends = 1.0 + 0.005 * size * float(rng.uniform(1, 1.2))
        self._requests += 1
        rollout = Written(
            prompt,
            tokens.tolist(),
            record.tolist(),
            [label] * size,
            cached=8 if hit and wrong.stale_prefix else 0,
            times=(0.5, 1.0, ends),
            request_id=f"r{self._requests}",
            sampling=self._sampling(wrong),
        )
        return row, rollout

    # --- distributions ------------------------------------------------------------------------------------------

    def _sampled(self, wrong: Wrong, places: Ints, version: int, hit: bool) -> tuple[Ints, Floats]:
        """Tokens of one answer, and what the engine records of them."""
        heat = self.setting.heat
        holds = self.wrong.at
        held = min(version, holds) if wrong.stuck else max(version - wrong.late, 0)
        key = Key(
            held, heat, wrong.top_p, wrong.top_k, wrong.min_p,
            usual=self.setting.dtype == "bfloat16" or wrong.cast, rounded=wrong.rounded, noise=wrong.noise,
            old=holds if wrong.kept else -1,
        )  # fmt: skip
        n = min(PREFIX, places.size) if wrong.stale_prefix and hit else 0
        stale = msgspec.structs.replace(key, old=holds, mixed=wrong.stale_prefix)
        shown = {} if not wrong.raw else {"heat": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        if wrong.scaled:
            shown = {"heat": 1.0}
        tokens = np.zeros(places.size, np.int64)
        record = np.zeros(places.size)
        for part, own in ((slice(0, n), stale), (slice(n, None), key)):
            if not places[part].size:
                continue
            tokens[part], extra = self._drawn(self._dists(own), places[part], wrong.penalty / heat)
            logp = self._dists(msgspec.structs.replace(own, **shown)).logp[places[part], tokens[part]]
            record[part] = logp / heat if wrong.scaled else logp + (0.0 if wrong.raw else extra)
        return tokens, record

    def _drawn(self, made: Dists, places: Ints, penalty: float) -> tuple[Ints, Floats]:
        """Tokens, and what a penalty adds to their logprobs."""
        tokens = made.drawn(places, self._rng.random(places.size))
        extra = np.zeros(places.size)
        if penalty:
            seen, kept = set[int](), np.exp(-penalty)
            for n, at in enumerate(places):
                while tokens[n] in seen and self._rng.random() > kept:
                    tokens[n] = made.drawn(places[n : n + 1], self._rng.random(1))[0]
                lost = (1 - kept) * np.exp(made.logp[at, list(seen)]).sum() if seen else 0.0
                extra[n] = -penalty * (tokens[n] in seen) - np.log1p(-lost)
                seen.add(int(tokens[n]))
        return tokens, extra

    def _of_tokens(self, key: Key, places: Ints, tokens: Ints) -> tuple[Floats, Floats]:
        """The trainer's logprobs of tokens, and the entropies."""
        made = self._dists(key)
        return made.logp[places, tokens], made.entropy[places]

    def _dists(self, key: Key) -> Dists:
        """All distributions of a version, as somebody computes them."""
        if key not in self._made:
            self._made[key] = self._computed(key)
        return self._made[key]

    def _computed(self, key: Key) -> Dists:
        logits = self._table(key.version)
        if key.old >= 0:
            held = self._table(key.old)
            share = np.where(self._held, 1.0, 0.0) if not key.mixed else np.full(len(held), key.mixed)
            logits = logits + share[:, None].astype(np.float32) * (held - logits)
        if key.usual or key.noise:
            rng = np.random.default_rng((self.setting.seed, key.version, key.mask))
            logits = logits + np.float32(key.noise or USUAL_NOISE) * rng.standard_normal(logits.shape, np.float32)
        if key.rounded:
            logits = bfloat16(logits)
        return Dists.of(logits, key)


USUAL_NOISE = 0.02
"""Deviation of logits that 16 bits make: a root mean square of d of 0.02 per root of room."""


def _matched_rows(setting: Setting) -> int:
    """Rows of a step that have old logprobs."""
    return {"all": setting.groups * setting.size, "some": max(setting.groups * setting.size // 4, 8), "none": 0}[
        setting.old
    ]


def _length(rng: np.random.Generator, setting: Setting) -> int:
    """Most answers are short, some are long."""
    low, high = np.log(setting.shortest), np.log(setting.longest + 1)
    return min(int(np.exp(rng.uniform(low, high))), setting.longest)
