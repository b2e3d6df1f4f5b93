"""Inputs of scoring probes: recent rollouts and trained sequences. Pure, bounded."""

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

MAX_ROLLOUTS = 64
MAX_BYTES = 4 << 20
"""Newest rollouts kept per engine, and their size limit."""

LONGEST = MAX_TOKENS // 4
"""Longer sequences are not scored, so that several fit into one probe."""

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ScoringInput:
    """One sequence to score.

    Attributes:
        request_id: of its rollout. prompt, tokens: i4.
        recorded: rollout logprobs, f4 [tokens], nats. trainer: trainer logprobs, f4 [tokens], nats, or None.
    """

    request_id: str
    prompt: Ints
    tokens: Ints
    recorded: Floats
    trainer: Floats | None = None

    @property
    def passage(self) -> wire.Passage:
        """The wire form."""
        return wire.Passage(self.request_id, np.concatenate([self.prompt, self.tokens]).tobytes(), self.prompt.size)

    @property
    def size(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt.size + self.tokens.size


@dataclass(frozen=True, slots=True)
class RecentRollout:
    """A finished rollout and its scoring input."""

    rollout: wire.Rollout
    scored: ScoringInput


class RecentRollouts:
    """The newest rollouts of every engine."""

    def __init__(self) -> None:
        self._by_engine: dict[str, deque[RecentRollout]] = {}
        self._bytes: dict[str, int] = {}

    def add(self, body: wire.Rollouts, arrays: wire.Arrays) -> None:
        """Add finished requests that the rollout index has validated."""
        recent = self._by_engine.setdefault(body.engine, deque())
        size = self._bytes.get(body.engine, 0)
        prompts, tokens, logprobs = arrays["prompt_ids"], arrays["token_ids"], arrays["logprobs"]
        prompt_at = at = 0
        for rollout in body.rollouts:
            prompt_end, end = prompt_at + rollout.prompt_size, at + rollout.size
            if rollout.size and rollout.prompt_size and rollout.prompt_size + rollout.size <= LONGEST:
                scored = ScoringInput(
                    rollout.request_id, prompts[prompt_at:prompt_end].copy(), tokens[at:end].copy(),
                    logprobs[at:end].copy(),
                )  # fmt: skip
                recent.append(RecentRollout(rollout, scored))
                size += 8 * scored.size
            prompt_at, at = prompt_end, end
        while len(recent) > MAX_ROLLOUTS or size > MAX_BYTES:
            size -= 8 * recent.popleft().scored.size
        self._bytes[body.engine] = size

    def newest(self, engine: str) -> Iterator[RecentRollout]:
        """The rollouts of an engine, newest first."""
        return reversed(self._by_engine.get(engine, deque()))


class InputChooser:
    """Chooses the inputs that each engine scores for a probe, and keeps them for the verdict.

    Args:
        engines: the known state of the engines.
        samples: the sample of the last step, as for ``api.AskSamples``. Raises ``ValueError``.
    """

    def __init__(self, engines: Engines, samples: Callable[[], Samples]) -> None:
        self.recent = RecentRollouts()
        self._engines = engines
        self._samples = samples
        self._chosen: dict[str, list[ScoringInput]] = {}
        self._choices: dict[str, Callable[[list[str]], dict[str, list[ScoringInput]]]] = {
            "cross-replica": self._same_for_all,
            "cache-salt": self._cached_by_engine,
            "prefill-rescore": self._current_by_engine,
        }

    def choose(self, probe: str, engines: list[str]) -> dict[str, list[wire.Passage]]:
        """The passages for each engine. Raises ``RejectedError`` if there is nothing to score."""
        self._chosen = self._choices[probe](engines)
        return {engine: [one.passage for one in chosen] for engine, chosen in self._chosen.items()}

    def take_chosen(self) -> dict[str, list[ScoringInput]]:
        """The inputs chosen last; they are handed out once."""
        chosen, self._chosen = self._chosen, {}
        return chosen

    def _same_for_all(self, engines: list[str]) -> dict[str, list[ScoringInput]]:
        same = self._trained() or _within_limits(one.scored for engine in engines for one in self.recent.newest(engine))
        if not same:
            raise RejectedError("nothing to score yet: no rollout has finished and no step has closed")
        return dict.fromkeys(engines, same)

    def _cached_by_engine(self, engines: list[str]) -> dict[str, list[ScoringInput]]:
        chosen = {engine: self._cached(engine) for engine in engines}
        if not any(chosen.values()):
            raise RejectedError("nothing to score yet: no rollout of these engines has finished")
        return chosen

    def _current_by_engine(self, engines: list[str]) -> dict[str, list[ScoringInput]]:
        why: dict[str, str] = {}
        chosen = {engine: self._current(engine, why) for engine in engines}
        if not any(chosen.values()):
            raise RejectedError("; ".join(why.values()))
        return chosen

    def _current(self, engine: str, why: dict[str, str]) -> list[ScoringInput]:
        """Rollouts under the engine's current weights and flags whose logprobs are comparable with prefill logprobs."""
        state = self._engines.state(engine)
        newest = list(self.recent.newest(engine))
        if state is None or not newest:
            why[engine] = f"no rollout of {engine} has finished yet"
            return []
        mode = state.flags.get("logprobs_mode", wire.FlagState(None, switchable=False)).value
        usable = [one for one in newest if one.rollout.has_logprobs and (mode == "raw" or is_neutral(one.rollout))]
        if not usable:
            why[engine] = (
                f"rollout logprobs of {engine} are {mode or 'of unknown mode'}, and its rollouts have no logprobs or "
                "other sampling parameters than temperature 1 without top-p, top-k, min-p and penalties: prefill "
                "logprobs have none of these applied, and applying them needs the logits of the whole vocabulary"
            )
            return []
        current = _within_limits(
            one.scored for one in usable if is_sampled_under(one.rollout, state.policy_version, state.flag_epoch)
        )
        if not current:
            why[engine] = f"no rollout of {engine} began and ended under its current weights and flags; retry later"
        return current

    def _cached(self, engine: str) -> list[ScoringInput]:
        """Rollouts that hit the cache first, then the others; different prompts before repeated ones."""
        newest = list(self.recent.newest(engine))
        newest.sort(key=lambda one: not one.rollout.cached_tokens)  # stable: newest first within both groups
        prompts: set[bytes] = set()
        first: list[ScoringInput] = []
        rest: list[ScoringInput] = []
        for one in newest:
            key = one.scored.prompt.tobytes()
            (rest if key in prompts else first).append(one.scored)
            prompts.add(key)
        return _within_limits([*first, *rest])

    def _trained(self) -> list[ScoringInput]:
        """Sequences of the last step whose whole prompt is stored."""
        try:
            sequences = self._samples().sequences
        except ValueError:
            return []
        return _within_limits(scored for one in sequences if (scored := _from_sequence(one)) is not None)


def is_neutral(rollout: wire.Rollout) -> bool:
    """Whether the sampling parameters leave the model's distribution unchanged."""
    used = rollout.sampling
    return all(_same(name, used.get(name, float(idle)), float(idle)) for name, idle in NEUTRAL.items())


def _same(name: str, value: float, idle: float) -> bool:
    return value == idle or (name == "top_k" and value == -1)


def is_sampled_under(rollout: wire.Rollout, version: int | None, epoch: int) -> bool:
    """Whether every token was sampled under this version and flag epoch."""
    return all((run.version, run.flag_epoch) == (version, epoch) for run in rollout.runs) and bool(rollout.runs)


def _within_limits(inputs: Iterable[ScoringInput]) -> list[ScoringInput]:
    """The first inputs, as many as one probe may send."""
    chosen: list[ScoringInput] = []
    tokens = 0
    for one in inputs:
        if len(chosen) == MAX_SEQUENCES or tokens + one.size > MAX_TOKENS:
            break
        chosen.append(one)
        tokens += one.size
    return chosen


def _from_sequence(one: Sequence) -> ScoringInput | None:
    context, ids, mask = ints(one.context), ints(one.ids), np.frombuffer(one.mask, "u1")
    whole = one.prompt_tokens == context.size and bool(mask.all()) and len(one.requests) == 1
    if not whole or context.size + ids.size > LONGEST or not ids.size:
        return None
    return ScoringInput(one.requests[0], context, ids, floats(one.rollout), floats(one.trainer))
