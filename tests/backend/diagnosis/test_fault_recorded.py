"""Real runs with real faults, recorded: the attribution tells each from a healthy run and from the others."""

from __future__ import annotations

from functools import cache

import pytest

from rltop.backend.api.attribution import Attribution, Interval, LagRegression, Stratum
from rltop.backend.demo.faults import BY_NAME
from tests.support.fault_recordings import DATA, Row, attribution, load, replay, seed_of

MAX_BYTES = 300_000
NOISE = 2e-5
"""Nats that fp32 logprobs of one model differ by between vLLM and torch on the CPU; seen: 1e-7 mean."""

REPLICAS = ("e0", "e1")


@cache
def rows(fault: str) -> list[Row]:
    return load(f"fault-{fault}")


@cache
def told(fault: str, steps: int = 1000) -> Attribution:
    return attribution(replay(rows(fault), seed_of(f"fault-{fault}")), steps)


def at(strata: list[Stratum], dimension: str, label: str) -> Stratum:
    (found,) = [s for s in strata if (s.dimension, s.label) == (dimension, label)]
    return found


def line(fault: str, engine: str | None) -> LagRegression:
    (found,) = [line for line in told(fault).lines if line.engine == engine]
    return found


def lags(fault: str, engine: str) -> set[str]:
    return {s.label for s in told(fault).strata if s.dimension == "lag" and s.engine == engine}


def above(one: Interval, other: Interval | float) -> bool:
    """The intervals don't touch."""
    high = other if isinstance(other, float) else other.high
    assert one.low is not None and high is not None
    return one.low > high


def by_engine(fault: str, *, matched: bool = False) -> tuple[Stratum, Stratum]:
    strata = told(fault).matched if matched else told(fault).strata
    return at(strata, "engine", "e0"), at(strata, "engine", "e1")


def test_recordings_are_small_and_of_faults_that_there_are() -> None:
    names = {path.stem for path in DATA.glob("fault-*.npz")}
    assert names <= {f"fault-{name or 'healthy'}" for name in BY_NAME}
    assert sum((DATA / f"{name}.npz").stat().st_size for name in names) < MAX_BYTES
    for fault in names:
        kept = load(fault)
        assert {row.engine for row in kept} == set(REPLICAS)
        assert len({row.step for row in kept}) * 64 == len(kept)


def test_every_recorded_row_finds_its_rollout_again() -> None:
    hub = replay(rows("healthy"), seed_of("fault-healthy"))
    assert hub.counters.get("unjoined_rows", 0) == 0
    assert at(attribution(hub).strata, "all", "all").tokens == sum(row.tokens.size for row in rows("healthy"))


def test_in_a_healthy_run_no_engine_is_apart_and_versions_match_to_rounding() -> None:
    one, other = by_engine("healthy")
    assert not above(one.k3, other.k3) and not above(other.k3, one.k3)
    assert told("healthy").matched_by == "old"
    for stratum in by_engine("healthy", matched=True):
        assert stratum.abs_diff.mean < NOISE


def test_a_replica_that_missed_its_updates_and_says_so_is_ever_further_behind() -> None:
    steps = {row.step for row in rows("stale-replica")}
    assert lags("stale-replica", "e1") == {str(step) for step in steps}
    assert lags("stale-replica", "e0") <= {"0", "1", "2"}
    one, other = by_engine("stale-replica")
    assert above(other.k3, one.k3)
    _, matched = by_engine("stale-replica", matched=True)
    assert matched.sequences > 20
    assert matched.abs_diff.mean < NOISE


def test_a_replica_that_missed_its_updates_and_hides_it_is_off_where_versions_match() -> None:
    assert lags("lying-replica", "e1") <= {"0", "1", "2"}
    one, other = by_engine("lying-replica")
    assert above(other.k3, one.k3)
    right, wrong = by_engine("lying-replica", matched=True)
    assert above(wrong.k3, right.k3) and above(wrong.k3, 0.0)
    assert right.abs_diff.mean < NOISE < wrong.abs_diff.mean


def test_a_stale_prefix_is_in_the_hits_of_every_engine_and_hardly_in_the_misses() -> None:
    found = told("stale-prefix").matched
    hit, miss = at(found, "prefix", "hit"), at(found, "prefix", "miss")
    assert above(hit.abs_diff, miss.abs_diff)
    assert above(hit.k3, miss.k3)
    healthy = at(told("healthy").matched, "prefix", "hit")
    assert above(hit.abs_diff, healthy.abs_diff)
    one, other = by_engine("stale-prefix", matched=True)
    assert above(one.abs_diff, NOISE) and above(other.abs_diff, NOISE)
    assert not above(one.abs_diff, other.abs_diff) and not above(other.abs_diff, one.abs_diff)


@pytest.mark.parametrize("engine", [None, *REPLICAS])
def test_pure_staleness_is_in_the_slope_of_the_line_and_nothing_is_left_above_0_at_its_foot(engine: str | None) -> None:
    """k3 grows faster than in proportion to lag, so that the line meets 0 by lag 1, not at 0."""
    fit = line("lag", engine)
    assert fit.per_lag is not None and fit.at_lag0 is not None
    assert above(fit.per_lag, 0.0)
    assert not above(fit.at_lag0, 0.0)
    assert 0 <= -fit.at_lag0.mean / fit.per_lag.mean <= 1


@pytest.mark.parametrize("fault", ["healthy", "lying-replica", "stale-prefix"])
def test_no_line_is_told_where_nearly_all_tokens_have_lag_1_or_2(fault: str) -> None:
    for engine in (None, *REPLICAS):
        fit = line(fault, engine)
        assert (fit.at_lag0, fit.per_lag) == (None, None)
        assert fit.why == "lags span too few versions for a line (1 to 2)"


def test_a_replica_far_behind_has_a_slope_and_nothing_is_told_of_lag_0_where_it_has_no_tokens() -> None:
    fit = line("stale-replica", "e1")
    assert fit.at_lag0 is None and fit.per_lag is not None
    assert fit.lags == (6, 17)


def test_lag_alone_is_on_all_engines_alike_and_versions_match() -> None:
    one, other = by_engine("lag")
    assert not above(one.k3, other.k3) and not above(other.k3, one.k3)
    assert above(one.k3, by_engine("healthy")[0].k3)
    for stratum in by_engine("lag", matched=True):
        assert stratum.abs_diff.mean < NOISE
