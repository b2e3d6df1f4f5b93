"""The checks that evaluate the refit guard and answers of probes, as data. Imports nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import DETERMINISTIC, Check

_FORMULA = (
    "the latest answer, while the last 5 steps have tokens of versions up to the probed one; of cache-salt, "
    "until a switch or a flush"
)


def _answer(probe: str, outcomes: tuple[str, ...], meaning: dict[str, str], mild: tuple[str, ...] = ()) -> Check:
    """The check that evaluates the answers of a probe; its name is that of the probe, with underscores."""
    return Check(
        name=probe.replace("-", "_"),
        title=f"answer of {probe}",
        outcomes=outcomes,
        meaning=meaning,
        on=f"answers of the probe {probe}",
        formula=_FORMULA,
        rate=DETERMINISTIC,
        source="docs/probes.md",
        by_engine=True,
        mild=mild,
        on_request=True,
    )


CHECKS: tuple[Check, ...] = (
    Check(
        name="refit",
        title="weights after an update",
        outcomes=(
            "agree",
            "alike",
            "changed",
            "unchanged",
            "skipped",
            "late",
            "head",
            "partial",
            "scaled",
            "cast",
            "lost",
            "differs",
        ),
        meaning={
            "alike": "the engines of this version have the same weights; the trainer stated none",
            "changed": "the update changed every tensor; neither the trainer nor another engine can be compared",
            "unchanged": "the update left some tensors, or for the first time all, as they were",
            "skipped": "the update loaded nothing",
            "late": "the engine loaded weights of an earlier version",
            "head": "the update left out the head",
            "partial": "the update left out some tensors, such as a layer",
            "scaled": "the weights are multiplied by a factor",
            "cast": "the weights are rounded to another type",
            "lost": "the engine holds no weights, as after sleep: zeros, no numbers, or a change without an update",
            "differs": "the weights are neither the trainer's of any version nor those of the other engines",
        },
        on="8 columns of every tensor of each engine, after every update",
        formula="equal hashes and sums of these columns; docs/refit-guard.md",
        rate=DETERMINISTIC,
        source="docs/refit-guard.md",
        by_engine=True,
        mild=("alike", "changed", "unchanged"),
        on_request=True,
    ),
    _answer(
        "weight-digest",
        ("agree", "updated", "alike", "differ", "not_applied", "partial", "not_the_trainer"),
        {
            "updated": "the engines have the same weights, and updates changed all of them",
            "alike": "the engines have the same weights; the probe saw no update and no digests of the trainer",
            "differ": "engines of one version have different weights",
            "not_applied": "an update changed no weight",
            "partial": "an update left some weights unchanged",
            "not_the_trainer": "the engines have other weights than the trainer at that version",
        },
        mild=("updated", "alike"),
    ),
    _answer("cache-salt", ("fresh", "stale"), {"stale": "the prefix cache holds keys and values of other weights"}),
    _answer(
        "prefill-rescore",
        ("match", "differ"),
        {"differ": "an engine's own prefill gives other logprobs than it recorded while decoding"},
    ),
    _answer(
        "cross-replica",
        ("agree", "differ"),
        {"differ": "engines of one version score the same tokens differently"},
    ),
)
