"""Reads vLLM's Prometheus metrics: numbers by engine of the server."""

from __future__ import annotations

import math
from collections.abc import Mapping

SERIES: dict[str, tuple[str, ...]] = {
    "steps": ("vllm:iteration_tokens_total_count",),
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generated_tokens": ("vllm:generation_tokens_total",),
    "cached_tokens": (
        "vllm:prompt_tokens_cached_total",
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
    ),
    "preemptions": ("vllm:num_preemptions_total",),
    "first_token_s": ("vllm:time_to_first_token_seconds_sum",),
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
    "token_gap_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
    "token_gaps": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
    "ended": ("vllm:request_success_total",),
}
"""Number -> its series, from the newest name to the oldest. The first that the server has is read."""

ABORTED = "aborted"
"""The part of ``ended`` whose finished_reason is ``abort``."""


class MetricsError(ValueError):
    """The text has no metrics of vLLM; the message says why."""


Numbers = Mapping[str, float]
"""By the names of ``SERIES`` and ``ABORTED``; what the server does not report is absent."""


def read(text: str) -> dict[str, Numbers]:
    """The numbers of each engine of a server, by vLLM's ``engine`` label ("0" if there is none).

    Raises:
        MetricsError: it is not in the Prometheus text format, or has no engine of vLLM.
    """
    by_engine: dict[str, dict[str, float]] = {}
    for name, labels, value in _samples(text):
        if name.startswith("vllm:") and math.isfinite(value):
            series = by_engine.setdefault(labels.get("engine", "0"), {})
            series[name] = series.get(name, 0.0) + value
            if name in SERIES["ended"] and labels.get("finished_reason") == "abort":
                series[ABORTED] = series.get(ABORTED, 0.0) + value
    found = {engine: _numbers(series) for engine, series in by_engine.items()}
    engines = {engine: numbers for engine, numbers in found.items() if "running" in numbers}
    if not engines:
        raise MetricsError("no metrics of a vLLM engine (the server may run with --disable-log-stats)")
    return engines


def _numbers(series: Mapping[str, float]) -> Numbers:
    numbers = {
        number: series[next(name for name in names if name in series)]
        for number, names in SERIES.items()
        if any(name in series for name in names)
    }
    return numbers | ({ABORTED: series[ABORTED]} if ABORTED in series else {})


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise MetricsError("reading metrics needs prometheus_client: pip install 'rltop[url]'") from error
    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsError(f"not the Prometheus text format: {error}") from error
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
