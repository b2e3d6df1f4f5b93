"""The check of stated facts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import certain, unknown
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.fleet import facts
from rltop.backend.fleet.agreement import SETTLE_S


def facts_agree(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``facts``: mismatches of engines and trainer, and sampling parameters that the trainer does not state."""
    live = {name: facts.of_engine(engine) for name, engine in evidence.input.present.items()}
    if not live:
        yield unknown("facts", "no engine has reported")
        return
    trainer = evidence.input.trainer.facts
    mismatches = 0
    for one in facts.compare(live, trainer):
        mismatches += 1
        text = f"{one.fact} of {one.engine} is {one.value}: {one.explanation}{facts.because(one.fact)}"
        detail = f"{one.fact}" + ("" if one.against == facts.TRAINER else "/fleet")
        yield certain("facts", "differs", _fact_since(evidence, one.fact, one.engine), one.engine, 0, text, detail)
    for engine, own in live.items():
        for name, idle in facts.NEUTRAL.items():
            value = own.get(name)
            if value is None or name in trainer or all(facts.same_text(x, idle) for x in value.split(facts.MIXED)):
                continue
            mismatches += 1
            text = f"{name} of {engine}'s requests is {value}; the trainer states none"
            yield certain("facts", "shaped", _fact_since(evidence, name, engine), engine, 0, text, name)
        if filled := [
            f"{name} {value}" for name, value in facts.defaults(own).items() if _unstated(name, value, own, trainer)
        ]:
            mismatches += 1
            text = f"requests of {engine} without their own value get {facts.some(filled)}; the trainer states none"
            since = _fact_since(evidence, "default_sampling", engine)
            yield certain("facts", "shaped", since, engine, 0, text, "default_sampling")
    if not mismatches:
        yield certain("facts", "agree", None, None, 0, f"{len(live)} engines and the trainer state matching facts", "")


def _unstated(name: str, value: str, own: facts.Facts, trainer: facts.Facts) -> bool:
    """Whether a default changes the sampling of an engine's requests, and the trainer does not state it."""
    idle = facts.NEUTRAL.get(name)
    shapes = idle is not None and not facts.same_text(value, idle)
    return shapes and name not in trainer and value in own.get(name, value).split(facts.MIXED)


def _fact_since(evidence: EvidenceByEngine, fact: str, engine: str) -> int | None:
    """The step after which a fact changed, by commands and events; the run's first if neither shows a change."""
    for change in reversed(evidence.input.changes):
        if change.flag == fact and change.engine == engine and change.state == "applied" and change.step is not None:
            return change.step + 1
    steps = evidence.input.steps
    for event in reversed(evidence.input.events):
        if event.kind == "facts" and event.text.startswith(fact) and "no longer" not in event.text:
            began = event.time - SETTLE_S
            return next((step.step for step in steps if step.closed > began), steps[-1].step if steps else None)
    return steps[0].step if steps else None
