"""Sequences that go round in circles, by their token ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.measure import arrays as compute
from rltop.backend.measure.repetition import LAST, SHORTEST, repeating


def text(size: int, seed: int = 0) -> np.ndarray:
    """Ids about as unevenly spread as those of text."""
    return (np.random.default_rng(seed).zipf(1.3, size) % 150_000).astype(np.int32)


def repeats(ids: np.ndarray) -> bool:
    """Of a sequence between two others."""
    parts = [text(300), ids.astype(np.int32), np.zeros(300, np.int32)]
    first, found, last = repeating(np.concatenate(parts), np.array([part.size for part in parts]))
    assert (first, last) == (False, True)
    return bool(found)


@given(st.integers(1, 100), st.integers(0, 4000), st.integers(0, 2**32 - 1))
def test_a_loop_at_the_end_is_found_whatever_stands_before_it(period: int, before: int, seed: int) -> None:
    loop = np.resize(text(period, seed), LAST)
    assert repeats(np.concatenate([text(before, seed + 1), loop]))


@given(st.integers(0, 6000), st.integers(0, 2**32 - 1))
def test_text_is_no_loop(size: int, seed: int) -> None:
    assert not repeats(text(size, seed))


@pytest.mark.parametrize("kinds", [2, 3, 12])
def test_few_kinds_of_tokens_in_no_order_are_no_loop(kinds: int) -> None:
    assert not repeats(np.random.default_rng(kinds).integers(0, kinds, LAST))


def test_a_loop_that_was_left_is_none_and_a_short_sequence_is_not_judged() -> None:
    assert not repeats(np.concatenate([np.resize(text(7), LAST), text(LAST)]))
    assert not repeats(np.zeros(SHORTEST - 1, np.int32))
    assert repeats(np.zeros(SHORTEST, np.int32))


def test_the_share_is_of_trained_tokens_and_not_known_without_ids() -> None:
    ids = np.stack([text(800), np.resize(text(5), 800), np.resize(text(5), 800), text(800)])
    mask = np.ones(ids.shape, bool)
    mask[2, 100:] = False
    arrays = {name: np.full(ids.shape, -1.0) for name in ("trainer_logprobs", "rollout_logprobs")} | {"mask": mask}
    assert compute.values(arrays)["repetition_frac"] is None
    assert compute.values(arrays | {"token_ids": ids})["repetition_frac"] == 1 / 4
    assert compute.values(arrays | {"prompt_ids": ids[:, :2]})["repetition_frac"] is None
