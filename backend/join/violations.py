"""Rules that hold exactly for joined sequences, and the ways in which trainers and engines break them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from rltop.backend.join.batch import Batch, Span
from rltop.backend.join.reasons import OTHER_PROMPT, PADDED, ReasonEntry
from rltop.backend.join.records import Hit, Ints, prompt_key
from rltop.backend.join.versions import UNKNOWN, Versions, is_stated, stated_by_trainer

END_LOST, OTHER_VERSION, BROKEN_RECORD = "end_lost", "other_version", "broken_record"
PROMPT_OF_OTHER_ROW, ENGINE_LACKS, TRAINER_LACKS = "prompt_of_other_row", "engine_lacks", "trainer_lacks"
ENGINE_HAS_END, TRAINER_HAS_END, PROMPT_DIFFERS = "engine_has_end", "trainer_has_end", "prompt_differs"

MAX_END = 4
"""Last tokens that count as the end of an answer: a stop token, or a stop string of a few."""

PADDING_TOKENS = 2
"""Different tokens before a prompt that are taken for padding: the padding token, and a first token of all prompts."""

KINDS: tuple[ReasonEntry, ...] = (
    ReasonEntry(END_LOST, "the row lacks the last tokens of its rollout, up to 4, with which the engine stopped"),
    ReasonEntry(PROMPT_OF_OTHER_ROW, "the trainer's prompt is that of another row of the step"),
    ReasonEntry(ENGINE_LACKS, "the engine's prompt lacks a run of tokens that the trainer's has"),
    ReasonEntry(TRAINER_LACKS, "the trainer's prompt lacks a run of tokens that the engine's has"),
    ReasonEntry(ENGINE_HAS_END, "the engine's prompt is only the end of the trainer's: its beginning was cut"),
    ReasonEntry(TRAINER_HAS_END, "the trainer's prompt is only the end of the engine's: its beginning was cut"),
    ReasonEntry(PROMPT_DIFFERS, "the trainer's prompt has other tokens than the engine's"),
    ReasonEntry(OTHER_VERSION, "the trainer states another policy version than the engine for the same tokens"),
    ReasonEntry(
        BROKEN_RECORD, "finished since the step before, trained on or not, with NaN or infinity among logprobs"
    ),
)

PROMPTS = frozenset(kind.name for kind in KINDS[1:7])
"""Kinds whose trainer logprobs are of another context than the engine's."""

_BY_NAME = {kind.name: kind for kind in KINDS}


def describe(kind: str) -> str:
    """The sentence that explains a kind."""
    return _BY_NAME[kind].sentence if kind in _BY_NAME else kind


def find(batch: Batch, of_prompts: Mapping[int, str]) -> dict[str, Counter[str]]:
    """Number of joined spans by engine and kind of violation, with the kinds of ``prompts``."""
    found: dict[str, Counter[str]] = {}
    for number, kind in (*of_prompts.items(), *_ends(batch), *_versions(batch)):
        hit = batch.hits[number]
        assert hit is not None
        found.setdefault(hit.record.engine, Counter())[kind] += 1
    return found


def prompts(batch: Batch) -> dict[int, str]:
    """How the prompt of each span that was joined despite it differs from the engine's, by number of the span."""
    others = [(number, hit) for number, hit in enumerate(batch.hits) if hit and _has_other_prompt(batch, number, hit)]
    if not others:
        return {}
    rows = {prompt_key(batch.context(number)) for number in range(len(batch.spans))}
    found = {}
    for number, hit in others:
        engine, trainer = hit.record.prompt_ids, batch.context(number)
        swapped = prompt_key(engine) in rows or (batch.index and batch.index.knows(prompt_key(trainer)))
        found[number] = PROMPT_OF_OTHER_ROW if swapped else _compare(engine, trainer)
    return found


def _has_other_prompt(batch: Batch, number: int, hit: Hit) -> bool:
    """Whether more than padding and a prepended token distinguishes the prompt that the trainer states for a span."""
    if hit.way != PADDED or batch.spans[number].start or hit.offset:
        return hit.way == OTHER_PROMPT
    trainer = batch.context(number)
    return np.unique(trainer[: trainer.size - hit.record.prompt_ids.size]).size > PADDING_TOKENS


def _compare(engine: Ints, trainer: Ints) -> str:
    """The kind of difference between two prompts."""
    short, long = sorted((engine, trainer), key=len)
    if short.size == long.size:
        return PROMPT_DIFFERS
    begin, end = _common(short, long), _common(short[::-1], long[::-1])
    if short.size == end:
        return ENGINE_HAS_END if short is engine else TRAINER_HAS_END
    if begin + end < short.size or not (begin and end):
        return PROMPT_DIFFERS
    return ENGINE_LACKS if short is engine else TRAINER_LACKS


def _common(short: Ints, long: Ints) -> int:
    """Number of equal first tokens."""
    differ = np.flatnonzero(short != long[: short.size])
    return int(differ[0]) if differ.size else short.size


def _ends(batch: Batch) -> Iterator[tuple[int, str]]:
    for number, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)):
        if hit and hit.record.rollout.finish_reason == "stop" and batch.is_cut(number):
            missing = hit.record.tokens.size - hit.offset - (span.end - span.start)
            if missing <= MAX_END:
                yield number, END_LOST


def _versions(batch: Batch) -> Iterator[tuple[int, str]]:
    stated = stated_by_trainer(batch)
    for number, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)):
        if hit and is_stated(hit.record.rollout.version_source) and _conflict(span, hit, stated):
            yield number, OTHER_VERSION


def _conflict(span: Span, hit: Hit, stated: Versions) -> bool:
    """Whether the trainer states a version outside those that the engine states for the rollout."""
    theirs, own = stated[span.token : span.token + span.end - span.start], hit.record.versions
    own, theirs = own[own != UNKNOWN], theirs[theirs != UNKNOWN]
    return bool(own.size and theirs.size and ((theirs < own.min()) | (theirs > own.max())).any())
