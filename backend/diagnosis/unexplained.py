"""Red metrics that nothing explains: as long as they come, no verdict is healthy. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rltop.backend import api
from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.weight_versions import SETTLED_K3
from rltop.backend.metrics import BY_NAME

RED_STEPS, REDS = 10, 2
"""A metric is red if it is in REDS of the latest RED_STEPS steps: a single one may be an outlier."""

NEVER_VALID = ("invalid_frac", "positive_logprob_frac")
"""Red from a single token on: no policy has such logprobs."""

OF_MATCHED = ("backend_k3", "backend_ratio_mean", "lag0_k3", "lag0_ratio_mean")
"""Of version-matched tokens: only the rounding of the stated dtypes explains them."""

OF_ALL = ("kl_k3", "ess", "ratio_mean")
"""Of all tokens: the lag explains them too, up to the k3 that a settled lag may cause."""


def unexplained(steps: Sequence[api.Step], findings: Sequence[Finding]) -> list[str]:
    """One line per metric that is red in the latest steps, although no finding says why."""
    rounding = any((f.test, f.outcome, f.engine) == ("floor", "at_floor", None) for f in findings)
    late = steps[-RED_STEPS:]
    found = [*_reds(late, NEVER_VALID, 1), *_reds([s for s in late if not rounding], OF_MATCHED, REDS)]
    found += _reds([step for step in late if not _by_lag(step, rounding=rounding)], OF_ALL, REDS)
    return found


def _reds(steps: Sequence[api.Step], names: Sequence[str], least: int) -> Iterator[str]:
    for name in names:
        red = [
            (step.step, value)
            for step in steps
            if (value := step.values.get(name)) is not None and _is_red(name, value)
        ]
        if len(red) >= least:
            step, value = red[-1]
            where = f"at step {step}" if least == 1 else f"at step {step} and in {len(red) - 1} of the steps before"
            yield f"unexplained: {name} is {value:.3g} {where}; red {_bound(name)}"


def _is_red(name: str, value: float) -> bool:
    """Whether a value is beyond the metric's red threshold."""
    metric = BY_NAME[name]
    assert metric.thresholds is not None
    if metric.bad == "low":
        return value < metric.thresholds.red
    distance = abs(value - float(metric.bad.removeprefix("away from "))) if metric.bad.startswith("away") else value
    return distance > metric.thresholds.red


def _bound(name: str) -> str:
    metric = BY_NAME[name]
    assert metric.thresholds is not None
    word = {"high": "above", "low": "below"}.get(metric.bad, f"beyond {metric.bad.removeprefix('away from ')} +-")
    return f"{word} {metric.thresholds.red:g}"


def _by_lag(step: api.Step, *, rounding: bool) -> bool:
    """Whether lag, or the rounding of the stated dtypes, may cause the step's k3."""
    k3 = step.values.get("kl_k3")
    lags = (step.values.get("lag_mean") or 0.0) > 0
    return (
        (lags or rounding) and k3 is not None and k3 <= SETTLED_K3 and not _is_red("ess", step.values.get("ess") or 1.0)
    )
