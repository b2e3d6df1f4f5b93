"""Where the gap comes from, on simulated policies: what each fault must look like, and what must not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from rltop.backend import api
from rltop.backend.api.attribution import Attribution, Interval, Stratum
from rltop.backend.measure import arrays as compute
from rltop.backend.measure.intervals import interval
from rltop.backend.summary import Strata
from rltop.backend.summary.dimensions import LAG, OFFSET
from rltop.backend.summary.lagline import lag_ends
from rltop.backend.text.attribution_text import line_text
from rltop.collectors.contract import wire
from rltop.tui.cli import metrics_commands as cli_metrics
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences

VOCABULARY = 40
SIZE = 24
DRIFT = 0.12


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


class Policies:
    """A policy per version: the same logits with a step of drift between versions, at ``SIZE`` positions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._base = rng.normal(0, 1.5, (SIZE, VOCABULARY))
        self._steps = rng.normal(0, DRIFT, (64, SIZE, VOCABULARY))
        self._spoilt = rng.normal(0, 0.4, (SIZE, VOCABULARY))

    def logprobs(self, version: int, *, spoilt: bool = False) -> np.ndarray:
        return log_softmax(self._base + self._steps[:version].sum(axis=0) + spoilt * self._spoilt)


class Run:
    """Some steps of a run on two engines; faults by name."""

    def __init__(self, fault: str = "", *, lags: tuple[int, ...] = (0, 1, 2), old: bool = False) -> None:
        self.hub, self.policies, self.old = Hub(), Policies(7), old
        self.rng = np.random.default_rng(11)
        self.number = 0
        for step in range(6):
            self._step(step, 20 + step, fault, lags)

    def _step(self, step: int, version: int, fault: str, lags: tuple[int, ...]) -> None:
        written: dict[str, list[Written]] = {"e0": [], "e1": []}
        trained = []
        for number in range(48):
            engine = f"e{number % 2}"
            label = sampled_by = version - lags[number // 2 % len(lags)]
            if engine == "e1" and fault == "missed, honest":
                label = sampled_by = 18
            if engine == "e1" and fault == "missed, lying":
                sampled_by = 12
            hit = number % 4 < 2
            lp = self.policies.logprobs(sampled_by, spoilt=fault == "stale prefix" and hit)
            tokens = [int(self.rng.choice(VOCABULARY, p=np.exp(row))) for row in lp]
            rollout = [float(np.float32(row[token])) for row, token in zip(lp, tokens, strict=True)]
            now = self.policies.logprobs(version)
            trainer = [float(row[token]) for row, token in zip(now, tokens, strict=True)]
            self.number += 1
            prompt = [self.number, 1, 2]
            written[engine].append(
                Written(prompt, tokens, rollout, [label] * SIZE, engine, cached=2 if hit else 0, times=(1.0, 2.0, 3.0))
            )
            per_token: dict[str, Sequence[float]] = {}
            if self.old:
                at = self.policies.logprobs(label)
                per_token = {
                    "old_logprobs": [float(row[token]) for row, token in zip(at, tokens, strict=True)],
                    "old_versions": [label] * SIZE,
                }
            trained.append(Trained(tokens, [1] * SIZE, rollout, trainer, prompt, 0.5, per_token))
        for engine, of_engine in written.items():
            self.hub.send(engine, *rollouts(of_engine))
        self.hub.send("trainer/0", *sequences(trained, step=step, policy_version=version))

        self.hub.send("trainer/0", wire.StepClosed(step, 0, 1, version + 1))
        self.hub.later(0.1)

    @property
    def attribution(self) -> Attribution:
        answer, _ = self.hub.ask(api.AskAttribution("q", 5))
        assert answer.attribution is not None
        return answer.attribution


def at(strata: list[Stratum], dimension: str, label: str, engine: str | None = None) -> Stratum:
    (found,) = [s for s in strata if (s.dimension, s.label, s.engine) == (dimension, label, engine)]
    return found


def above(one: Interval, other: Interval) -> bool:
    """The intervals don't touch."""
    assert one.low is not None and other.high is not None
    return one.low > other.high


def holds(estimate: Interval, value: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low <= value <= estimate.high


APART = (0, 1, 2, 4)
"""Lags that a line can be told of."""


def test_a_healthy_run_has_no_outlier_engine() -> None:
    found = Run().attribution
    assert found.steps == [1, 2, 3, 4, 5]
    one, other = at(found.strata, "engine", "e0"), at(found.strata, "engine", "e1")
    assert not above(one.k3, other.k3) and not above(other.k3, one.k3)
    assert one.tokens == other.tokens == 5 * 24 * SIZE
    assert one.sequences == 5 * 24
    assert found.matched_by == "lag0"
    assert at(found.matched, "all", "all").k3.mean == pytest.approx(0, abs=1e-9)
    assert at(found.strata, "lag", "2").k3.mean > at(found.strata, "lag", "1").k3.mean > 0
    assert at(found.strata, "lag", "1", "e1").tokens == at(found.strata, "lag", "1").tokens / 2


def test_a_replica_that_reports_missed_updates_lags_and_stands_out() -> None:
    found = Run("missed, honest", lags=(0,)).attribution
    assert above(at(found.strata, "engine", "e1").k3, at(found.strata, "engine", "e0").k3)
    assert at(found.strata, "lag", "0").tokens == at(found.strata, "engine", "e0").tokens
    assert {s.label for s in found.strata if s.dimension == "lag" and s.engine == "e1"} == {"3", "4", "5", "6", "7"}
    assert at(found.matched, "all", "all").k3.mean == pytest.approx(0, abs=1e-9)


def test_a_replica_that_hides_missed_updates_stands_out_at_equal_lag() -> None:
    found = Run("missed, lying").attribution
    assert above(at(found.strata, "engine", "e1").k3, at(found.strata, "engine", "e0").k3)
    for lag in ("0", "1", "2"):
        assert above(at(found.strata, "lag", lag, "e1").k3, at(found.strata, "lag", lag, "e0").k3)
    assert above(at(found.matched, "engine", "e1").k3, at(found.matched, "engine", "e0").k3)
    of = {line.engine: line for line in Run("missed, lying", lags=APART).attribution.lines}
    wrong, right = of["e1"].at_lag0, of["e0"].at_lag0
    assert wrong is not None and right is not None and above(wrong, right)


def test_with_a_wide_range_of_lags_pure_staleness_has_intercept_0() -> None:
    found = Run(lags=APART).attribution
    assert [line.engine for line in found.lines] == [None, "e0", "e1"]
    for line in found.lines:
        assert line.at_lag0 is not None and line.per_lag is not None
        assert abs(line.at_lag0.mean) < 0.2 * line.per_lag.mean
        assert above(line.per_lag, Interval(0.0, 0.0, 0.0))
        assert (line.lags, line.why) == ((0, 4), "")


def test_a_narrow_range_of_lags_gives_no_line() -> None:
    (first, *_) = found = Run(lags=(1, 1, 2)).attribution.lines
    assert (first.at_lag0, first.per_lag, first.lags) == (None, None, (1, 2))
    assert line_text(first) == "k3 by lag: lags span too few versions for a line (1 to 2)"
    assert {line.why for line in found} == {first.why}


def test_far_from_lag_0_there_is_a_slope_and_no_intercept() -> None:
    first = Run(lags=(5, 7, 9)).attribution.lines[0]
    assert first.at_lag0 is None and first.per_lag is not None
    assert line_text(first).startswith("k3 = ? + ")
    assert line_text(first).endswith("lags too far from 0 for an intercept (5 to 9)")


def test_a_few_tokens_do_not_extend_the_range_of_lags() -> None:
    strata, lags = Strata(), LAG.strata
    for label, tokens in (("unknown", 900), ("0", 4), ("1", 50), ("2", 46), ("9", 4)):
        strata.moments[OFFSET[LAG.name] + lags.index(label), :, 1] = tokens
    assert lag_ends(strata) == (1, 2)
    strata.moments[OFFSET[LAG.name] + lags.index("ahead"), :, 1] = 8
    assert lag_ends(strata) == (-1, 2)
    assert lag_ends(Strata()) is None


@pytest.mark.parametrize("old", [False, True])
def test_a_stale_prefix_shows_in_version_matched_hits_against_misses(old: bool) -> None:
    found = Run("stale prefix", old=old).attribution
    assert found.matched_by == ("old" if old else "lag0")
    hit, miss = at(found.matched, "prefix", "hit"), at(found.matched, "prefix", "miss")
    assert above(hit.k3, miss.k3)
    assert miss.k3.mean == pytest.approx(0, abs=1e-9)
    assert hit.tokens + miss.tokens == at(found.matched, "all", "all").tokens
    assert hit.tokens == (5 * 24 * SIZE if old else 5 * 8 * SIZE)


def test_strata_of_probability_have_the_gap_per_1_minus_p() -> None:
    run = Run()
    told = {s.label: s for s in run.attribution.strata if s.dimension == "probability"}
    assert told.keys() >= {"0.01-0.1", "0.1-0.5", "0.5-0.9"}
    for label, stratum in told.items():
        low, high = map(float, label.split("-"))
        per = stratum.abs_diff_per_1_minus_p
        assert per is not None
        assert stratum.abs_diff.mean / (1 - low) <= per * (1 + 1e-9)
        assert high == 1 or per <= stratum.abs_diff.mean / (1 - high) * (1 + 1e-9)
    lines = list(cli_metrics._lines(run.attribution))
    (head,) = [at for at, line in enumerate(lines) if line.startswith("probability") and "-p)" in line][:1]
    assert lines[head + 1].split()[-1] == f"{next(iter(told.values())).abs_diff_per_1_minus_p:.3g}"
    assert lines[head].index("|d|/(1-p)") == lines[head + 1].rindex(lines[head + 1].split()[-1])


def test_times_since_the_last_update_and_the_start_have_their_own_strata() -> None:
    hub, trained = Hub(), []
    for number, (updated, started) in enumerate([(0.0, 0.0), (99.5, 10.0), (40.0, 10.0), (0.0, 99.0)]):
        body, arrays = rollouts([Written([number], [1, 2], [-1.0, -1.0], [3, 3], cached=0)])
        (rollout,) = body.rollouts
        timed = msgspec.structs.replace(rollout, scheduled=100.0, updated=updated, started=started)
        hub.send("e0", msgspec.structs.replace(body, rollouts=[timed]), arrays)
        trained.append(Trained([1, 2], [1, 1], [-1.0, -1.0], [-1.0, -1.5], [number]))
    hub.send("trainer/0", *sequences(trained))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1))
    hub.later(0.1)
    answer, _ = hub.ask(api.AskAttribution("q"))
    assert answer.attribution is not None
    told = {(s.dimension, s.label): s.tokens for s in answer.attribution.strata if s.dimension.startswith("since")}
    assert told == {
        ("since_update", "unknown"): 4, ("since_update", "0s-1s"): 2, ("since_update", "1m-2m"): 2,
        ("since_start", "unknown"): 2, ("since_start", "1m-2m"): 4, ("since_start", "1s-2s"): 2,
    }  # fmt: skip


def test_every_dimension_has_all_tokens() -> None:
    found = Run().attribution
    every = at(found.strata, "all", "all").tokens
    totals: dict[str, int] = {}
    for stratum in found.strata:
        if stratum.engine is None or stratum.dimension == "flag_epoch":
            totals[stratum.dimension] = totals.get(stratum.dimension, 0) + stratum.tokens
    assert totals.pop("prompt") == 32 * SIZE
    assert set(totals.values()) == {every}
    assert totals.keys() == {
        "all", "engine", "lag", "position", "probability", "prefix", "update", "since_update", "since_start", "length",
        "turn", "finish", "flag_epoch",
    }  # fmt: skip


def test_intervals_of_simulated_means_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    for sequences_ in (5, 40):
        hits = 0
        for _ in range(400):
            sample = rng.normal(1.0, 2.0, sequences_)
            error = float(sample.std(ddof=1)) / math.sqrt(sequences_)
            hits += holds(interval(float(sample.mean()), error, sequences_), 1.0)
        assert 0.91 < hits / 400 < 0.985


def test_sampled_divergences_match_the_full_vocabulary() -> None:
    """Within five standard errors, which the sample itself gives; contexts and vocabulary as an LM's, peaked."""
    rng = np.random.default_rng(5)
    contexts, vocabulary, samples = 400, 1000, 100
    rollout = log_softmax(rng.normal(0, 2.5, (contexts, vocabulary)))
    trainer = log_softmax(rollout + rng.normal(0, 0.15, (contexts, vocabulary)))
    p, q = np.exp(rollout), np.exp(trainer)
    middle = (p + q) / 2
    exact = {
        "kl_k1": (p * (rollout - trainer)).sum(axis=1).mean(),
        "kl_k3": (p * (rollout - trainer)).sum(axis=1).mean(),
        "js": ((p * (rollout - np.log(middle))).sum(axis=1) + (q * (trainer - np.log(middle))).sum(axis=1)).mean() / 2,
        "tv": np.abs(p - q).sum(axis=1).mean() / 2,
        "chi2_token": (q * q / p).sum(axis=1).mean() - 1,
        "ratio_mean": 1.0,
        "entropy_sample_rollout": -(p * rollout).sum(axis=1).mean(),
        "entropy_sample_trainer": -(q * trainer).sum(axis=1).mean(),
    }
    tokens = np.stack([rng.choice(vocabulary, samples, p=row) for row in p])
    r, t = (np.take_along_axis(table, tokens, axis=1) for table in (rollout, trainer))
    d = t - r
    ratio = np.exp(d)
    terms = {
        "kl_k1": -d, "kl_k3": ratio - 1 - d, "tv": np.abs(ratio - 1) / 2, "chi2_token": ratio**2, "ratio_mean": ratio,
        "js": (ratio * np.log(2 * ratio / (1 + ratio)) + np.log(2 / (1 + ratio))) / 2,
        "entropy_sample_rollout": -r, "entropy_sample_trainer": -ratio * t,
    }  # fmt: skip
    found = compute.values({"trainer_logprobs": t, "rollout_logprobs": r, "mask": np.ones_like(t)})
    for name, value in exact.items():
        error = terms[name].std() / math.sqrt(terms[name].size)
        assert found[name] == pytest.approx(value, abs=5 * error), name
    assert found["kl_k3"] == pytest.approx(exact["kl_k3"], rel=0.05)


def test_the_text_omits_dimensions_with_a_single_stratum() -> None:
    lines = list(cli_metrics._lines(Run().attribution))
    heads = [line.split()[0] for line in lines if line.split()[1:2] == ["tokens"]]
    assert heads == ["all", "lag", "position", "probability", "prefix", "engine", "lag", "flag_epoch", "prompt",
                     "all", "position", "probability", "prefix", "engine", "lag"]  # fmt: skip
    (row,) = [line for line in lines if line.split()[:2] == ["e0", "1440"] or line.startswith("  e0 2 ")]
    assert row.split()[2:4] == [str(5 * 8 * SIZE), str(5 * 8)]
