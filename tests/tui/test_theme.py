"""Text in cells: cut to a width, never into its opposite."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.tui.widgets import theme

REASONS = [
    "async scheduling is not supported with this executor", "the flag can't be switched", "weights were never loaded",
    "a run without version-matched tokens", "requests were not lost",
]  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("width", range(12, 60))
def test_a_cut_clause_keeps_its_negation(reason: str, width: int) -> None:
    shown = theme.clean(reason, width)
    negation = next(word for word in ("not", "can't", "never", "without") if word in reason)
    assert len(shown) == width
    assert negation in shown
    assert shown.rstrip() == reason or shown.endswith("…")


def test_a_negation_of_another_clause_is_not_moved_into_this_one() -> None:
    assert theme.clean("prefix_caching on -> off at step 1204, no request lost", 30) == "prefix_caching on -> off at s…"


@given(st.text(max_size=60), st.integers(0, 40))
def test_the_width_is_exact(text: str, width: int) -> None:
    assert theme.length([(theme.clean(text, width), theme.PLAIN)]) == width
