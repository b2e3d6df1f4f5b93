"""Durations: what is printed can be typed, and what can't be is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.util.durations import UNITS, seconds_of, span


@given(st.floats(0, 1e8))
def test_formatted_durations_are_exact_in_their_two_largest_units(seconds: float) -> None:
    unit = next((size for size in UNITS.values() if seconds >= size), 1)
    smaller = next((size for size in UNITS.values() if size < unit), 0.01)
    assert abs(seconds_of(span(seconds)) - seconds) <= max(smaller, 0.5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1.5h", 5400)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-5s", "1e3s", "nans", "10m!", "1..5h"])
def test_invalid_durations_raise_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match="use 90s, 10m, 1h"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (90, "1m30s"),
        (600, "10m"),
        (4000, "1h6m"),
        (0.5, "0.5s"),
        (86_400, "1d"),
        (59.99, "60s"),
        (-1, "0s"),
        (3600, "1h"),
    ],
)
def test_durations_are_formatted_short(seconds: float, text: str) -> None:
    assert span(seconds) == text
