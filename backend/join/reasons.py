"""Reasons why a trainer's row is not joined, and ways in which a row is joined: two tables. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasonEntry:
    """A name in ``api.Step`` and the sentence that explains it."""

    name: str
    sentence: str


NO_PROMPT = "no_prompt"
EVICTED = "evicted"
NO_COMPLETION = "no_completion_match"
RETOKENISED = "retokenised"
OVERLONG = "overlong"
TAKEN = "already_joined"
UNSURE = "unsure"

REASONS: tuple[ReasonEntry, ...] = (
    ReasonEntry(NO_PROMPT, "no engine reported a rollout of this prompt"),
    ReasonEntry(EVICTED, "the hub had evicted the rollouts of this prompt before the row arrived"),
    ReasonEntry(NO_COMPLETION, "engines generated other completions of this prompt, not this one"),
    ReasonEntry(
        RETOKENISED,
        "an unjoined rollout has nearly the same tokens, or the same id: retokenised or edited text",
    ),
    ReasonEntry(OVERLONG, "the row continues after its rollout's last token, with tokens that no engine sampled"),
    ReasonEntry(TAKEN, "every rollout with these tokens is joined with another row of the same step and update"),
    ReasonEntry(UNSURE, "ambiguous: a rollout with these tokens has more of them, or other logprobs"),
)
"""From the farthest to the nearest miss; the nearest of several is reported."""

WHOLE, PADDED, PACKED, TRUNCATED = "whole", "padded", "packed", "truncated"
RESUMED, BY_ID, WITHOUT_PROMPT, OTHER_PROMPT = "resumed", "by_id", "without_prompt", "other_prompt"

WAYS: tuple[ReasonEntry, ...] = (
    ReasonEntry(WHOLE, "prompt and completion equal those of the engine"),
    ReasonEntry(PADDED, "after removal of tokens before the prompt: padding, or a prepended token"),
    ReasonEntry(PACKED, "from a row that packs several sequences"),
    ReasonEntry(TRUNCATED, "with fewer tokens than the engine generated: truncated, or a stop string removed"),
    ReasonEntry(RESUMED, "from several requests: one was stopped, and its tokens were resubmitted"),
    ReasonEntry(BY_ID, "by request id"),
    ReasonEntry(WITHOUT_PROMPT, "by tokens and logprobs alone: the row has no prompt"),
    ReasonEntry(OTHER_PROMPT, "by tokens and logprobs alone: the trainer's prompt differs from the engine's"),
)
"""From the usual to the most unusual way; a row of several requests counts under the most unusual."""

_NEARNESS = {reason.name: place for place, reason in enumerate(REASONS)}
_UNUSUALNESS = {way.name: place for place, way in enumerate(WAYS)}


def nearer(reason: str, other: str) -> str:
    """The nearer miss of two reasons (empty: none yet)."""
    return max(reason, other, key=lambda name: _NEARNESS.get(name, -1))


def more_unusual(way: str, other: str) -> str:
    """The more unusual of two ways (empty: none yet)."""
    return max(way, other, key=lambda name: _UNUSUALNESS.get(name, -1))
