"""The metric table is complete and matches its page."""

from __future__ import annotations

import re

from rltop.backend import metrics
from rltop.backend.metrics import document, elsewhere
from rltop.backend.metrics.absent import ABSENT
from rltop.backend.summary import Summary
from rltop.backend.text import status

ASKED = {
    "reward_mean",
    "logp_diff_mean",
    "logp_diff_p50",
    "logp_diff_p95",
    "logp_diff_p99",
    "logp_diff_min",
    "logp_diff_max",
    "logp_abs_diff_mean",
    "logp_abs_diff_p50",
    "logp_abs_diff_p95",
    "logp_abs_diff_p99",
    "logp_abs_diff_max",
    "ratio_mean",
    "kl_k1",
    "kl_k3",
    "clip_frac_low",
    "clip_frac_high",
    "ess",
    "entropy",
    "lag_mean",
    "lag_max",
    "tokens",
    "sequences",
    "joined_fraction",
    "prefix_hit_rate",
    "spanning_frac",
    "aborted",
    "invalid_frac",
    "clamped_frac",
    "backend_abs_diff_mean",
    "backend_k3",
    "backend_ratio_mean",
    "backend_tokens",
    "update_abs_diff_mean",
}


def test_every_metric_is_in_the_table_once_with_unit_formula_and_source() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(names) == len(set(names)) == len(metrics.BY_NAME)
    assert set(names) >= ASKED
    for metric in metrics.METRICS:
        assert metric.formula
        assert metric.source
        assert metric.level
        assert metric.bad in {"high", "low", "away from 0", "away from 1", "none"}
        if metric.thresholds:
            assert metric.thresholds.source


def test_every_key_of_a_framework_names_a_metric_and_is_found() -> None:
    for source, key in elsewhere.ENTRIES:
        assert key.metric in metrics.BY_NAME, key
        assert source.place and source.version and source.averaged
        assert (source, key) in elsewhere.find(key.key.replace("<env>", "math"))
    meanings = [(source.framework, key.key, key.metric, key.when) for source, key in elsewhere.ENTRIES]
    assert len(set(meanings)) == len(meanings)


def test_an_empty_step_has_every_metric_and_no_invented_value() -> None:
    values = metrics.values(Summary())
    assert set(values) == set(metrics.BY_NAME)
    assert {value for value in values.values() if value is not None} == {0.0}  # counts alone


def test_reports_name_only_metrics_of_the_table() -> None:
    assert set(status.STEP_METRICS) <= set(metrics.BY_NAME)


def test_the_manual_lists_every_metric_and_every_absent_one() -> None:
    manual = document.page()
    for metric in metrics.METRICS:
        assert f"| `{metric.name}` |" in manual
    for _, key in elsewhere.ENTRIES:
        assert f"| `{key.key}` | `{key.metric}` |" in manual
    for absent in ABSENT:
        assert absent.name not in metrics.BY_NAME
        assert f"| `{absent.name}` |" in manual
        assert set(re.findall(r"\w+_\w+", absent.instead)) <= set(metrics.BY_NAME)
