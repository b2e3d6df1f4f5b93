"""Red is never healthy: what the metrics call red, and no finding explains, leaves no healthy verdict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Finding
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.diagnosis.unexplained import OF_ALL, OF_MATCHED, REDS, unexplained
from rltop.backend.metrics import BY_NAME
from tests.support.exact import Run, Setting
from tests.support.hub_messages import Trained, Written

FINE = {"kl_k3": 1e-5, "ess": 0.99, "ratio_mean": 1.0, "invalid_frac": 0.0, "lag_mean": 0.0}
AT_FLOOR = Finding("floor", "at_floor")


def _steps(*values: Mapping[str, float]) -> list[api.Step]:
    return [api.Step(n, float(n), n, False, {**FINE, **own}) for n, own in enumerate(values)]


def _red(name: str) -> float:
    metric = BY_NAME[name]
    assert metric.thresholds is not None
    return metric.thresholds.red / 2 if metric.bad == "low" else 8e5


@pytest.mark.parametrize("name", [*OF_ALL, *OF_MATCHED])
def test_a_metric_that_stays_red_is_named_with_its_value_and_threshold(name: str) -> None:
    red = {name: _red(name)}
    assert unexplained(_steps({}, red, {}), []) == []
    (line,) = unexplained(_steps({}, red, {}, red), [])
    assert name in line
    assert f"{_red(name):.3g}" in line
    assert "red" in line


@pytest.mark.parametrize("name", OF_MATCHED)
def test_rounding_of_the_stated_dtypes_explains_a_matched_gap(name: str) -> None:
    assert unexplained(_steps(*[{name: _red(name)}] * 4), [AT_FLOOR]) == []


@given(st.floats(0.011, 1e6), st.sampled_from([0.0, 1.0, 8.0]))
def test_lag_explains_a_k3_up_to_what_a_settled_lag_may_cause(k3: float, lag: float) -> None:
    found = unexplained(_steps(*[{"kl_k3": k3, "lag_mean": lag}] * REDS), [])
    assert bool(found) == (not lag or k3 > 0.1)


@pytest.mark.parametrize("findings", [[], [AT_FLOOR]])
def test_a_single_invalid_logprob_is_never_explained(findings: list[Finding]) -> None:
    assert unexplained(_steps({}, {"invalid_frac": 1e-5}, {}), findings)


class Damaged(Run):
    """A run in which the trainer's own logprobs of one row are wrong from step 4 on, past every check."""

    value = float("nan")

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        if step >= 4:
            rows[0].trainer = np.full(len(rows[0].trainer), self.value).tolist()
        return rows, written


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -25.0])
def test_no_step_of_a_run_with_red_metrics_is_healthy(value: float) -> None:
    run = Damaged(Setting(steps=10, old="none", lag=0))
    run.value = value
    for number, hub in enumerate(run.hubs()):
        verdict = diagnose(hub.state.frames.diagnosis_input())
        if number >= 6:
            assert verdict.verdict in (UNDECIDED, FAULT)
            assert verdict.verdict == FAULT or any(need.startswith("unexplained: ") for need in verdict.needs)


def test_without_version_matched_tokens_a_run_is_not_healthy_and_the_verdict_says_what_it_takes() -> None:
    *_, hub = Run(Setting(steps=10, old="none", lag=2)).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    assert verdict.verdict == UNDECIDED
    assert any("weights and caches were not judged" in need and "old_logprobs=" in need for need in verdict.needs)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(steps=12, lag=1),
        Setting(steps=14, lag=8, old="all"),
        Setting(steps=12, lag=3, dtype="bfloat16", heat=0.7),
        Setting(steps=12, lag=0, old="none"),
    ],
    ids=["plain", "heavy-lag", "bfloat16", "on-policy"],
)
def test_a_healthy_run_stays_healthy(setting: Setting) -> None:
    for number, hub in enumerate(Run(setting).hubs()):
        verdict = diagnose(hub.state.frames.diagnosis_input())
        assert number < setting.lag + 3 or verdict.verdict == HEALTHY, verdict.needs
