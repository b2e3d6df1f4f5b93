"""The sorting task: prompts are reproducible, and the reward is what it says."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.demo.rl import task

numbers = st.integers(0, 1000)


@given(numbers, numbers)
def test_a_prompt_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    assert task.prompt(seed, number) == task.prompt(seed, number)


@given(numbers, numbers)
def test_a_prompt_is_prefix_distinct_symbols_and_separator(seed: int, number: int) -> None:
    prompt = task.prompt(seed, number)
    symbols = prompt[task.PREFIX_SIZE : -1]
    assert tuple(prompt[: task.PREFIX_SIZE]) == task.PREFIX
    assert prompt[-1] == task.SEP
    assert task.SHORTEST <= len(symbols) <= task.LONGEST
    assert len(set(symbols)) == len(symbols)
    assert all(task.FIRST_SYMBOL <= symbol < task.FIRST_SYMBOL + task.SYMBOLS for symbol in symbols)
    assert all(0 <= token < task.VOCABULARY for token in prompt)


def test_prompts_differ() -> None:
    assert len({tuple(task.prompt(0, number)) for number in range(100)}) == 100


def test_the_prefix_is_one_block_of_distinct_roles() -> None:
    assert len(task.PREFIX) == 32
    assert task.PREFIX[0] == task.BOS


@given(numbers)
def test_the_correct_answer_earns_one_and_less_without_its_end_token(number: int) -> None:
    prompt = task.prompt(0, number)
    right = sorted(prompt[32:-1])
    assert task.reward(prompt, [*right, task.EOS]) == 1.0
    assert task.reward(prompt, right) == 0.5


def test_the_reward_is_the_share_of_correct_positions() -> None:
    prompt = [*task.PREFIX, 9, 5, 7, 6, task.SEP]
    assert task.reward(prompt, [5, 6, 7, 9, task.EOS]) == 1.0
    assert task.reward(prompt, [5, 6, 9, 7, task.EOS]) == 0.5
    assert task.reward(prompt, [5, 6, task.EOS]) == 0.5
    assert task.reward(prompt, [5, 6, 7, 9, 9, task.EOS]) == 4 / 5
    assert task.reward(prompt, [task.EOS]) == 0.0
    assert task.reward(prompt, []) == 0.0


@given(numbers, st.lists(st.integers(0, task.VOCABULARY - 1), max_size=task.MAX_ANSWER))
def test_every_reward_is_between_zero_and_one(number: int, answer: list[int]) -> None:
    assert 0.0 <= task.reward(task.prompt(0, number), answer) <= 1.0


@given(numbers, st.floats(0, 1))
def test_a_noisy_answer_is_a_permutation_of_the_symbols(number: int, noise: float) -> None:
    prompt = task.prompt(0, number)
    answer = task.noisy_answer(random.Random(number), prompt, noise)
    assert answer[-1] == task.EOS
    assert sorted(answer[:-1]) == task.solution(prompt)
    assert len(answer) <= task.MAX_ANSWER


def test_without_noise_the_answer_is_right() -> None:
    prompt = task.prompt(3, 4)
    assert task.reward(prompt, task.noisy_answer(random.Random(0), prompt, 0.0)) == 1.0
