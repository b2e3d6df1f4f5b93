"""The optional arguments of ``TrainerCollector.sequences``: which a trainer passes, and what a missing one costs."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.collectors.contract.wire import Sequences


@dataclass(frozen=True)
class OptionalArgument:
    """One argument.

    Attributes:
        name: as in ``TrainerCollector.sequences``.
        arrays: arrays of a message that carry it; any of them.
        fields: other fields of a message that carry it.
        cost: what is missing without it; empty if most trainers don't need it.
    """

    name: str
    arrays: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    cost: str = ""


ARGUMENTS: tuple[OptionalArgument, ...] = (
    OptionalArgument(
        "policy_version",
        fields=("policy_version",),
        cost="lag is unknown, so staleness and backend mismatch can't be told apart",
    ),
    OptionalArgument(
        "old_logprobs",
        arrays=("old_logprobs",),
        cost="the version-matched gap is estimated from tokens of lag 0, and the policy update is unknown",
    ),
    OptionalArgument("old_version", arrays=("old_versions",)),
    OptionalArgument("rewards", arrays=("rewards",), cost="no figures of the reward"),
    OptionalArgument("advantages", arrays=("advantages",), cost="no clip rates by the sign of the advantage"),
    OptionalArgument("entropy", arrays=("entropy",), cost="entropy is only estimated from the sampled tokens"),
    OptionalArgument(
        "clip_low and clip_high, or clipped",
        arrays=("clipped",),
        fields=("clip_low", "clip_high"),
        cost="no clip rates",
    ),
    OptionalArgument(
        "temperature",
        arrays=("temperatures",),
        fields=("temperature",),
        cost="the trainer's temperature is compared with the requests' only if it is stated as a fact",
    ),
    OptionalArgument("prompt_ids", arrays=("prompt_ids",)),
    OptionalArgument("rollout_versions", arrays=("rollout_versions",)),
    OptionalArgument("weights", arrays=("weights",)),
    OptionalArgument("request_ids", fields=("request_ids",)),
    OptionalArgument("environments", fields=("environments",)),
)
"""In the order in which they are worth adding."""


def passed_in(body: Sequences) -> set[str]:
    """Names of the optional arguments that a message carries."""
    arrays = {array.name for array in body.arrays}
    return {
        one.name
        for one in ARGUMENTS
        if not arrays.isdisjoint(one.arrays) or any(getattr(body, field) not in (None, []) for field in one.fields)
    }
