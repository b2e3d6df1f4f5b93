"""Sequences that end in a repetition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.measure import arrays as compute
from rltop.backend.measure.repetition import LAST, SHORTEST, ends_in_repetition


def text(size: int, seed: int = 0) -> np.ndarray:
    """Ids with a distribution like that of text."""
    return (np.random.default_rng(seed).zipf(1.3, size) % 150_000).astype(np.int32)


def repeats(ids: np.ndarray) -> bool:
    """Whether a sequence is detected, placed between two others."""
    parts = [text(300), ids.astype(np.int32), np.zeros(300, np.int32)]
    first, found, last = ends_in_repetition(np.concatenate(parts), np.array([part.size for part in parts]))
    assert (first, last) == (False, True)
    return bool(found)


@given(st.integers(1, 100), st.integers(0, 4000), st.integers(0, 2**32 - 1))
def test_a_repetition_at_the_end_is_found_whatever_precedes_it(period: int, before: int, seed: int) -> None:
    loop = np.resize(text(period, seed), LAST)
    assert repeats(np.concatenate([text(before, seed + 1), loop]))


@given(st.integers(0, 6000), st.integers(0, 2**32 - 1))
def test_text_is_no_repetition(size: int, seed: int) -> None:
    assert not repeats(text(size, seed))


@pytest.mark.parametrize("distinct", [2, 3, 12])
def test_random_tokens_of_a_small_vocabulary_are_no_repetition(distinct: int) -> None:
    assert not repeats(np.random.default_rng(distinct).integers(0, distinct, LAST))


def test_an_earlier_repetition_does_not_count_and_a_short_sequence_is_not_examined() -> None:
    assert not repeats(np.concatenate([np.resize(text(7), LAST), text(LAST)]))
    assert not repeats(np.zeros(SHORTEST - 1, np.int32))
    assert repeats(np.zeros(SHORTEST, np.int32))


def test_repetition_frac_covers_trained_tokens_and_is_none_without_ids() -> None:
    ids = np.stack([text(800), np.resize(text(5), 800), np.resize(text(5), 800), text(800)])
    mask = np.ones(ids.shape, bool)
    mask[2, 100:] = False
    arrays = {name: np.full(ids.shape, -1.0) for name in ("trainer_logprobs", "rollout_logprobs")} | {"mask": mask}
    assert compute.values(arrays)["repetition_frac"] is None
    assert compute.values(arrays | {"token_ids": ids})["repetition_frac"] == 1 / 4
    assert compute.values(arrays | {"prompt_ids": ids[:, :2]})["repetition_frac"] is None
