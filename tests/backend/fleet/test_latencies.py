"""Latencies of engines: means over the requests of the last seconds that had any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.fleet.engines import RATE_WINDOW_S, RecentMean


def observed(*samples: tuple[float, float, int]) -> float | None:
    """The mean after samples of time, sum and count."""
    mean = RecentMean()
    for sample in samples:
        mean.observe(*sample)
    return mean.value


def test_there_is_no_mean_before_the_first_request_and_the_last_one_stays() -> None:
    first = [(100.0, 0.0, 0), (101.0, 3.0, 2)]
    quiet = [(float(second), 3.0, 2) for second in range(102, 130)]
    assert observed(first[0]) is None
    assert observed(*first) == 1.5
    assert observed(*first, *quiet) == 1.5
    assert observed(*first, *quiet, (130.0, 7.0, 3)) == 4.0


@given(st.lists(st.lists(st.floats(0.001, 100.0), max_size=4), min_size=1, max_size=40))
def test_the_mean_is_that_of_the_latencies_in_the_window(arrivals: list[list[float]]) -> None:
    mean, total, count, expected = RecentMean(), 0.0, 0, None
    for second, latencies in enumerate(arrivals):
        total, count = total + sum(latencies), count + len(latencies)
        mean.observe(float(second), total, count)
        first = max(0, second - int(RATE_WINDOW_S) + 1) if second >= RATE_WINDOW_S else 0
        recent = [one for of_second in arrivals[first : second + 1] for one in of_second]
        expected = sum(recent) / len(recent) if recent else expected
    assert mean.value == (None if expected is None else pytest.approx(expected))
