"""Look up the keys of training frameworks: from a key to metrics, and from a metric to keys. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rltop.backend.metrics.framework_keys import SOURCES, FrameworkKey, KeySource

Entry = tuple[KeySource, FrameworkKey]

ENTRIES: tuple[Entry, ...] = tuple((source, key) for source in SOURCES for key in source.keys)


def of_metric(name: str) -> list[Entry]:
    """The keys that correspond to a metric."""
    return [entry for entry in ENTRIES if entry[1].metric == name]


def find(key: str) -> list[Entry]:
    """What a logged key stands for; empty if it is not known.

    Loggers add prefixes (``train/sampling/...``) and people leave them out (``kl_new_old`` for ``rl/kl_new_old``), so
    the longest known end of the key counts, then the known keys that end in it.
    """
    parts = key.split("/")
    for start in range(len(parts)):
        if found := [entry for entry in ENTRIES if entry[1].key == "/".join(parts[start:])]:
            return found
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        if found := [entry for entry in ENTRIES if "<" in entry[1].key and _pattern(entry[1].key).fullmatch(end)]:
            return found
    return [entry for entry in ENTRIES if entry[1].key.endswith(f"/{key}")]


def label(entry: Entry) -> str:
    """``framework: key (when; differences)`` on one line."""
    source, key = entry
    notes = "; ".join(filter(None, (key.when, key.differs)))
    return f"{source.framework}: {key.key} ({notes})" if notes else f"{source.framework}: {key.key}"


def explain(entry: Entry) -> Iterator[tuple[str, str]]:
    """Explains a key, as (label, text) lines."""
    source, key = entry
    yield "metric", f"{key.metric}, if {key.when}" if key.when else key.metric
    yield "differs", key.differs or "no: the same arrays give the same value"
    yield "averaged", source.averaged
    yield "logprobs", _logprobs(source)
    yield "read in", f"{source.framework} {source.version}, {source.place}"


def as_json(entry: Entry) -> dict[str, Any]:
    """One key as plain values."""
    source, key = entry
    return {
        "framework": source.framework,
        "version": source.version,
        "key": key.key,
        "metric": key.metric,
        "when": key.when or None,
        "differs": key.differs or None,
        "averaged": source.averaged,
        "old_logprobs": source.old,
        "place": source.place,
    }


def _logprobs(source: KeySource) -> str:
    if source.old:
        return "old - rollout, not trainer - rollout: equal until the weights change (see also backend_k3)"
    return "as in the metric"


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<\w+>", "[^/]+", re.sub(r"[^\w<>/]", lambda found: re.escape(found[0]), key)))
