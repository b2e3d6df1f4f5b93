"""The demo's task: sort distinct symbols. Small enough for two cores, with a reward that rises within a minute.

A prompt is a fixed prefix of one KV block (for prefix caching), 10 to 18 distinct symbols and a separator. The correct
answer is the symbols in ascending order, then the end token. Token ids: 0 pad, 1 end,
2 separator, 3 begin, 4 to 39 symbols, 64 to 127 prefix.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

PAD, EOS, SEP, BOS = 0, 1, 2, 3
FIRST_SYMBOL, SYMBOLS = 4, 36
FIRST_PREFIX, PREFIX_SIZE = 64, 32
VOCABULARY = 128
SHORTEST, LONGEST = 10, 18

PREFIX: tuple[int, ...] = (BOS, *(FIRST_PREFIX + 7 * i % 64 for i in range(PREFIX_SIZE - 1)))
"""32 tokens: exactly one KV block, in vLLM's smallest block size on the CPU."""

MAX_ANSWER = LONGEST + 2
"""Longest answer in tokens: one more than the longest correct one with its end token."""

UNFINISHED_FACTOR = 0.5
"""Factor on the reward of an answer without the end token."""


def prompt(seed: int, number: int) -> list[int]:
    """Prompt ``number`` of the run with this seed: the same on every machine, in any order of calls."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - a task, not a secret
    return make_prompt(rng)


def make_prompt(rng: random.Random) -> list[int]:
    """A random prompt."""
    symbols = rng.sample(range(FIRST_SYMBOL, FIRST_SYMBOL + SYMBOLS), rng.randint(SHORTEST, LONGEST))
    return [*PREFIX, *symbols, SEP]


def solution(prompt_ids: Sequence[int]) -> list[int]:
    """The correct answer to a prompt, without the end token."""
    return sorted(prompt_ids[PREFIX_SIZE:-1])


def reward(prompt_ids: Sequence[int], answer: Sequence[int]) -> float:
    """Share of correct positions, in [0, 1]; halved if the end token is missing."""
    correct = solution(prompt_ids)
    finished = bool(answer) and answer[-1] == EOS
    body = answer[:-1] if finished else answer
    share = sum(a == b for a, b in zip(body, correct, strict=False)) / max(len(body), len(correct))
    return share if finished else UNFINISHED_FACTOR * share


def noisy_answer(rng: random.Random, prompt_ids: Sequence[int], noise: float) -> list[int]:
    """An answer that takes, with probability ``noise`` at each position, any remaining symbol instead of the next.

    A policy trained on these is uncertain, so reinforcement learning can improve it.
    """
    remaining, answer = solution(prompt_ids), []
    while remaining:
        answer.append(remaining.pop(rng.randrange(len(remaining)) if rng.random() < noise else 0))
    return [*answer, EOS]
