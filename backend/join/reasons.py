"""Why a trainer's row has no rollout, and how the others found theirs: two small tables. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasonEntry:
    """A name in ``view.Step`` and the sentence that says what it means."""

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
    ReasonEntry(EVICTED, "the rollouts of this prompt had left the hub's memory before the row came"),
    ReasonEntry(NO_COMPLETION, "engines wrote other completions of this prompt, not this one"),
    ReasonEntry(
        RETOKENISED,
        "a rollout that no row answers for has nearly the same tokens, or the same id: text tokenised anew, or edited",
    ),
    ReasonEntry(OVERLONG, "the row goes on after its rollout's last token, with tokens that no engine sampled"),
    ReasonEntry(TAKEN, "every rollout with these tokens answers for another row of the same step and update"),
    ReasonEntry(UNSURE, "a rollout has these tokens and more of them, or other logprobs: it may not be this row's"),
)
"""From the farthest to the nearest miss; of several the nearest is told."""

WHOLE, PADDED, PACKED, TRUNCATED = "whole", "padded", "packed", "truncated"
RESUMED, BY_ID, OTHER_PROMPT = "resumed", "by_id", "other_prompt"

WAYS: tuple[ReasonEntry, ...] = (
    ReasonEntry(WHOLE, "prompt and completion as the engine recorded them"),
    ReasonEntry(PADDED, "after tokens before the prompt were left out: padding, or a token put in front"),
    ReasonEntry(PACKED, "from a row that holds several sequences one after another"),
    ReasonEntry(TRUNCATED, "with fewer tokens than the engine recorded: cut, or a stop string left out"),
    ReasonEntry(RESUMED, "from several requests: the engine was stopped in the middle, and what was there sent again"),
    ReasonEntry(BY_ID, "by the request's id"),
    ReasonEntry(OTHER_PROMPT, "by tokens and logprobs alone: the trainer's prompt is not the one that the engine had"),
)
"""From the plainest way to the oddest; a row of several requests counts under the oddest of theirs."""

_NEARNESS = {reason.name: place for place, reason in enumerate(REASONS)}
_ODDNESS = {way.name: place for place, way in enumerate(WAYS)}


def nearer(reason: str, other: str) -> str:
    """Of two reasons (empty: none yet) the nearer miss."""
    return max(reason, other, key=lambda name: _NEARNESS.get(name, -1))


def odder(way: str, other: str) -> str:
    """Of two ways (empty: none yet) the odder one."""
    return max(way, other, key=lambda name: _ODDNESS.get(name, -1))
