"""Probes that the hub answers from what it knows: configuration, and token ids. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeEvidence, ProbeFinding, share
from rltop.backend.fleet import facts
from rltop.backend.join import copies
from rltop.backend.join.reasons import (
    EVICTED,
    NO_COMPLETION,
    NO_PROMPT,
    OTHER_PROMPT,
    OVERLONG,
    REASONS,
    RETOKENISED,
    TRUNCATED,
    WAYS,
)

ECHO_STEPS = 20
"""How many of the last steps a token echo looks at."""

OTHER_IDS = (NO_PROMPT, NO_COMPLETION, RETOKENISED, OVERLONG)
"""Reasons for having no rollout that say of a row that its ids are not an engine's."""

_SENTENCE = {named.name: named.sentence for named in (*REASONS, *WAYS)}


def config_diff(picture: api.Snapshot, engines: Sequence[str]) -> ProbeFinding:
    """Whether the facts of ``engines`` agree with each other and with what the trainer stated."""
    known = {name: facts.of_engine(picture.engines[name]) for name in engines if name in picture.engines}
    found = facts.compare(known, picture.trainer.facts)
    stated = [*known.values(), picture.trainer.facts]
    compared = sum(sum(fact.name in one for one in stated) > 1 for fact in facts.FACTS)
    names = list(dict.fromkeys(one.fact for one in found))
    evidence = [ProbeEvidence("facts that differ", float(len(names)), n=compared, of="compared")]
    notes = [] if picture.trainer.facts else ["The trainer stated no facts: see TrainerCollector(facts=...)."]
    if len(known) < 2:
        notes.append("One engine alone: only what the trainer states can differ.")
    if not compared:
        return ProbeFinding("unclear", "no fact is stated by two of them", evidence=[], notes=notes)
    if not found:
        return ProbeFinding(
            "agree", f"{compared} facts that at least two state are the same.", [], evidence, None, notes
        )
    notes = [
        f"{one.fact}: {one.engine} has {one.value}, {one.explanation}{facts.because(one.fact)}." for one in found
    ] + notes
    text = f"{len(names)} of {compared} facts differ: {facts.some(names)}."
    return ProbeFinding("differ", text, sorted({one.engine for one in found}), evidence, None, notes)


def token_echo(picture: api.Snapshot) -> ProbeFinding:
    """Whether trainer rows of the last steps have the token ids that engines recorded."""
    steps = list(islice(reversed(picture.steps.values()), ECHO_STEPS))
    joins = sum((Counter(step.joins) for step in steps), Counter[str]())
    unjoined = sum((Counter(step.unjoined) for step in steps), Counter[str]())
    rows = sum(joins.values()) + sum(unjoined.values())
    if not rows:
        return ProbeFinding("unclear", "no step with rows has closed yet")
    wrong = Counter({reason: unjoined[reason] for reason in OTHER_IDS if unjoined[reason]})
    if joins[OTHER_PROMPT]:
        wrong[OTHER_PROMPT] = joins[OTHER_PROMPT]
    untold = sum(unjoined.values()) - sum(unjoined[reason] for reason in OTHER_IDS)
    compared = rows - untold
    where = f"steps {steps[-1].step} to {steps[0].step}" if len(steps) > 1 else f"step {steps[0].step}"
    notes = []
    if joins[TRUNCATED]:
        notes.append(f"{joins[TRUNCATED]} rows are equal as far as they go: {_SENTENCE[TRUNCATED]}.")
    if untold:
        notes.append(f"{untold} rows can't be told ({', '.join(sorted(unjoined.keys() - set(OTHER_IDS)))}).")
    evidence = [share("rows with other ids", sum(wrong.values()), compared, f"rows of {where}")]
    evidence += [share(name, count, compared, "rows") for name, count in wrong.most_common()]
    odd, of_copies = _copies(steps)
    evidence += of_copies
    notes += odd
    if not compared:
        return ProbeFinding(
            "unclear", f"none of {rows} rows of {where} could be compared: {EVICTED} or unsure.", notes=notes
        )
    if not wrong:
        text = f"{compared} rows of {where} have the ids that their engines recorded, prompt and completion."
        return ProbeFinding("equal", text, [], evidence, None, notes)
    said = "; ".join(f"{count} {name} ({_SENTENCE[name]})" for name, count in wrong.most_common())
    return ProbeFinding(
        "differ", f"{sum(wrong.values())} of {compared} rows of {where} do not: {said}.", [], evidence, None, notes
    )


def _copies(steps: Sequence[api.Step]) -> tuple[list[str], list[ProbeEvidence]]:
    """What is to be said of the trainer's copies of the recorded logprobs, which stand beside the ids."""
    kinds = sum((Counter(of) for step in steps for of in step.copies.values()), Counter[str]())
    bad = Counter({kind: count for kind, count in kinds.items() if kind not in copies.FINE})
    total = sum(kinds.values())
    notes = [
        f"{count} of {total} copies of the recorded logprobs are {kind}: {copies.describe(kind)}."
        for kind, count in bad.most_common()
    ]
    return notes, [share("logprob copies that are not the record", sum(bad.values()), total, "copies")] if total else []
