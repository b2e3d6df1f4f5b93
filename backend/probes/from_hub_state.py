"""Probes that the hub answers from its own state: configuration and token ids. Pure."""

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
"""Number of recent steps that token-echo covers."""

OTHER_IDS = (NO_PROMPT, NO_COMPLETION, RETOKENISED, OVERLONG)
"""Reasons for an unjoined row that prove its ids differ from every engine's."""

_SENTENCE = {named.name: named.sentence for named in (*REASONS, *WAYS)}


def config_diff(picture: api.Snapshot, engines: Sequence[str]) -> ProbeFinding:
    """Whether the facts of ``engines`` agree with each other and with the trainer's."""
    known = {name: facts.of_engine(picture.engines[name]) for name in engines if name in picture.engines}
    mismatches = facts.compare(known, picture.trainer.facts)
    stated = [*known.values(), picture.trainer.facts]
    compared = sum(sum(fact.name in one for one in stated) > 1 for fact in facts.FACTS)
    names = list(dict.fromkeys(one.fact for one in mismatches))
    evidence = [ProbeEvidence("facts that differ", float(len(names)), n=compared, of="compared")]
    notes = [] if picture.trainer.facts else ["The trainer stated no facts: see TrainerCollector(facts=...)."]
    if len(known) < 2:
        notes.append("One engine alone: compared only with the trainer.")
    if not compared:
        return ProbeFinding("unclear", "no fact is stated by at least two sides", evidence=[], notes=notes)
    if not mismatches:
        return ProbeFinding(
            "agree", f"{compared} facts that at least two sides state are equal.", [], evidence, None, notes
        )
    notes = [
        f"{one.fact}: {one.engine} has {one.value}, {one.explanation}{facts.because(one.fact)}." for one in mismatches
    ] + notes
    text = f"{len(names)} of {compared} facts differ: {facts.some(names)}."
    return ProbeFinding("differ", text, sorted({one.engine for one in mismatches}), evidence, None, notes)


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
    undecided = sum(unjoined.values()) - sum(unjoined[reason] for reason in OTHER_IDS)
    compared = rows - undecided
    where = f"steps {steps[-1].step} to {steps[0].step}" if len(steps) > 1 else f"step {steps[0].step}"
    notes = []
    if joins[TRUNCATED]:
        notes.append(f"{joins[TRUNCATED]} rows are equal up to their end: {_SENTENCE[TRUNCATED]}.")
    if undecided:
        notes.append(f"{undecided} rows are undecided ({', '.join(sorted(unjoined.keys() - set(OTHER_IDS)))}).")
    evidence = [share("rows with different ids", sum(wrong.values()), compared, f"rows of {where}")]
    evidence += [share(name, count, compared, "rows") for name, count in wrong.most_common()]
    copy_notes, copy_evidence = _copies(steps)
    evidence += copy_evidence
    notes += copy_notes
    if not compared:
        return ProbeFinding(
            "unclear", f"none of {rows} rows of {where} could be compared: {EVICTED} or undecided.", notes=notes
        )
    if not wrong:
        text = f"{compared} rows of {where} have the ids that their engines recorded, prompt and completion."
        return ProbeFinding("equal", text, [], evidence, None, notes)
    details = "; ".join(f"{count} {name} ({_SENTENCE[name]})" for name, count in wrong.most_common())
    return ProbeFinding(
        "differ",
        f"{sum(wrong.values())} of {compared} rows of {where} have different ids: {details}.",
        [],
        evidence,
        None,
        notes,
    )


def _copies(steps: Sequence[api.Step]) -> tuple[list[str], list[ProbeEvidence]]:
    """Notes and evidence on the trainer's copies of the rollout logprobs, which come with the ids."""
    kinds = sum((Counter(of) for step in steps for of in step.copies.values()), Counter[str]())
    bad = Counter({kind: count for kind, count in kinds.items() if kind not in copies.FINE})
    total = sum(kinds.values())
    notes = [
        f"{count} of {total} copies of the rollout logprobs are {kind}: {copies.describe(kind)}."
        for kind, count in bad.most_common()
    ]
    return notes, [
        share("logprob copies that differ from the rollout logprobs", sum(bad.values()), total, "copies")
    ] if total else []
