"""What probes send to engines to be scored: recent rollouts, and trained sequences. Pure, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.samples import Samples, Sequence, floats, ints
from rltop.backend.commands.validation import RejectedError
from rltop.backend.fleet.engines import Engines
from rltop.backend.fleet.facts import NEUTRAL
from rltop.collectors.contract import wire
from rltop.collectors.contract.probes import MAX_SEQUENCES, MAX_TOKENS

KEPT = 64
KEPT_BYTES = 4 << 20
"""Rollouts kept of each engine, the newest, and what they may hold."""

LONGEST = MAX_TOKENS // 4
"""A sequence of more tokens is not scored: a probe wants several."""

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoringInput:
    """One sequence to score.

    Attributes:
        request_id: of its rollout. prompt, tokens: i4.
        recorded: f4 [tokens], nats, as its engine recorded them. trainer: f4 [tokens] likewise, or None.
    """

    request_id: str
    prompt: Ints
    tokens: Ints
    recorded: Floats
    trainer: Floats | None = None

    @property
    def passage(self) -> wire.Passage:
        """As an engine gets it."""
        return wire.Passage(self.request_id, np.concatenate([self.prompt, self.tokens]).tobytes(), self.prompt.size)

    @property
    def size(self) -> int:
        """Tokens in all."""
        return self.prompt.size + self.tokens.size


@dataclass(frozen=True, slots=True)
class RecentRollout:
    """A rollout as it came."""

    rollout: wire.Rollout
    material: ScoringInput


class RecentRollouts:
    """The last rollouts of every engine."""

    def __init__(self) -> None:
        self._of: dict[str, deque[RecentRollout]] = {}
        self._bytes: dict[str, int] = {}

    def take(self, body: wire.Rollouts, arrays: wire.Arrays) -> None:
        """Take in finished requests; what the index has checked."""
        kept = self._of.setdefault(body.engine, deque())
        held = self._bytes.get(body.engine, 0)
        prompts, tokens, logprobs = arrays["prompt_ids"], arrays["token_ids"], arrays["logprobs"]
        prompt_at = at = 0
        for rollout in body.rollouts:
            prompt_end, end = prompt_at + rollout.prompt_size, at + rollout.size
            if rollout.size and rollout.prompt_size and rollout.prompt_size + rollout.size <= LONGEST:
                material = ScoringInput(
                    rollout.request_id, prompts[prompt_at:prompt_end].copy(), tokens[at:end].copy(),
                    logprobs[at:end].copy(),
                )  # fmt: skip
                kept.append(RecentRollout(rollout, material))
                held += 8 * material.size
            prompt_at, at = prompt_end, end
        while len(kept) > KEPT or held > KEPT_BYTES:
            held -= 8 * kept.popleft().material.size
        self._bytes[body.engine] = held

    def newest(self, engine: str) -> Iterator[RecentRollout]:
        """The newest first."""
        return reversed(self._of.get(engine, deque()))


class InputChooser:
    """Chooses what each engine is to score for a probe, and remembers it for the judge.

    Args:
        engines: what is known of them.
        samples: of a step (None: the last), as ``view.AskSamples`` of kind ``sample``. Raises ``ValueError``.
    """

    def __init__(self, engines: Engines, samples: Callable[[], Samples]) -> None:
        self.recent = RecentRollouts()
        self._engines = engines
        self._samples = samples
        self._chosen: dict[str, list[ScoringInput]] = {}

    def choose(self, probe: str, engines: list[str]) -> dict[str, list[wire.Passage]]:
        """For each engine. Raises ``RejectedError`` where there is nothing to score."""
        if probe == "cross-replica":
            same = self._trained() or _some(kept.material for engine in engines for kept in self.recent.newest(engine))
            if not same:
                raise RejectedError("no rollout has finished and no step has closed yet: there is nothing to score")
            self._chosen = dict.fromkeys(engines, same)
        elif probe == "cache-salt":
            self._chosen = {engine: self._cached(engine) for engine in engines}
            if not any(self._chosen.values()):
                raise RejectedError("no rollout of these engines has finished yet: there is nothing to score")
        else:
            why: dict[str, str] = {}
            self._chosen = {engine: self._present(engine, why) for engine in engines}
            if not any(self._chosen.values()):
                raise RejectedError("; ".join(why.values()))
        return {engine: [one.passage for one in chosen] for engine, chosen in self._chosen.items()}

    def taken(self) -> dict[str, list[ScoringInput]]:
        """What was chosen last."""
        chosen, self._chosen = self._chosen, {}
        return chosen

    def _present(self, engine: str, why: dict[str, str]) -> list[ScoringInput]:
        """Rollouts of the weights and flags that the engine has now, whose record a rescore can be held against."""
        state = self._engines.state(engine)
        newest = list(self.recent.newest(engine))
        if state is None or not newest:
            why[engine] = f"no rollout of {engine} has finished yet"
            return []
        mode = state.flags.get("logprobs_mode", wire.FlagState(None, switchable=False)).value
        usable = [kept for kept in newest if kept.rollout.has_logprobs and (mode == "raw" or is_neutral(kept.rollout))]
        if not usable:
            why[engine] = (
                f"the record of {engine} is {mode or 'of unknown mode'}, and its rollouts have no logprobs or are "
                "sampled otherwise than at temperature 1 without top-p, top-k, min-p and penalties: a prompt's "
                "logprobs know none of these, and can't be brought to them without the whole vocabulary"
            )
            return []
        found = _some(kept.material for kept in usable if is_of(kept.rollout, state.policy_version, state.flag_epoch))
        if not found:
            why[engine] = f"no rollout of {engine} began and ended under its present weights and flags; ask again later"
        return found

    def _cached(self, engine: str) -> list[ScoringInput]:
        """Rollouts that hit the cache before all others, of different prompts first."""
        newest = list(self.recent.newest(engine))
        newest.sort(key=lambda kept: not kept.rollout.cached_tokens)  # stable: the newest stay first
        prompts: set[bytes] = set()
        first: list[ScoringInput] = []
        rest: list[ScoringInput] = []
        for kept in newest:
            key = kept.material.prompt.tobytes()
            (rest if key in prompts else first).append(kept.material)
            prompts.add(key)
        return _some([*first, *rest])

    def _trained(self) -> list[ScoringInput]:
        """Sequences of the last step, where their whole prompt is kept."""
        try:
            sequences = self._samples().sequences
        except ValueError:
            return []
        return _some(found for one in sequences if (found := _of_sequence(one)) is not None)


def is_neutral(rollout: wire.Rollout) -> bool:
    """Whether the distribution sampled from is the model's own."""
    used = rollout.sampling
    return all(_same(name, used.get(name, float(idle)), float(idle)) for name, idle in NEUTRAL.items())


def _same(name: str, value: float, idle: float) -> bool:
    return value == idle or (name == "top_k" and value == -1)


def is_of(rollout: wire.Rollout, version: int | None, epoch: int) -> bool:
    """Whether all of it was sampled under one version and flag epoch, these."""
    return all((run.version, run.flag_epoch) == (version, epoch) for run in rollout.runs) and bool(rollout.runs)


def _some(materials: Iterable[ScoringInput]) -> list[ScoringInput]:
    """The first ones, as many as one probe may send."""
    found: list[ScoringInput] = []
    tokens = 0
    for material in materials:
        if len(found) == MAX_SEQUENCES or tokens + material.size > MAX_TOKENS:
            break
        found.append(material)
        tokens += material.size
    return found


def _of_sequence(one: Sequence) -> ScoringInput | None:
    context, ids, mask = ints(one.context), ints(one.ids), np.frombuffer(one.mask, "u1")
    whole = one.prompt_tokens == context.size and bool(mask.all()) and len(one.requests) == 1
    if not whole or context.size + ids.size > LONGEST or not ids.size:
        return None
    return ScoringInput(one.requests[0], context, ids, floats(one.rollout), floats(one.trainer))
