"""Findings about a run, from its snapshot: engines, trainer, join. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rltop.backend import api
from rltop.backend.doctor.findings import Finding
from rltop.backend.fleet.arguments import ARGUMENTS
from rltop.backend.join import reasons
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.vllm.patches import ESSENTIAL

TRAINER, JOIN = "trainer", "join"
STEPS = 8
"""The newest steps over which the join is reported."""

MISSING = "missing "
"""Prefix of the facts of an engine that name patch points that could not be used."""

ADVICE: dict[str, str] = {
    reasons.NO_PROMPT: "check that all engines are attached to this run (sections above), and that prompt_ids are the "
    "engine's token ids: pass a list of unpadded prompts, not re-encoded text",
    reasons.EVICTED: "the rows arrive too long after their rollouts: train sooner",
    reasons.NO_COMPLETION: "an engine of this run may not be attached; or the rows are not what the engine returned",
    reasons.RETOKENISED: "pass the token ids that the engine returned instead of encoding its text again",
    reasons.OVERLONG: "set the mask to 0 for tokens that no engine sampled, such as tool output or an appended end",
    reasons.TAKEN: "the same rows are passed twice: by two ranks (let one pass them, or state replica), or without "
    "update= for later updates on them",
    reasons.UNSURE: "pass request_ids, which decides between rollouts with equal beginnings",
}
"""What to do about each reason in ``join.reasons``."""


def run(snapshot: api.Snapshot) -> Iterator[Finding]:
    """All findings."""
    if not snapshot.engines:
        text = f"no engine reports to the hub of run {snapshot.run}"
        advice = "start engines with RLTOP_RUN set, in an environment with rltop; see the sections above"
        yield Finding("engines", "problem", text, advice)
    for _, engine in sorted(snapshot.engines.items()):
        yield from of_engine(engine)
    yield from mixed_software(snapshot)
    yield from trainer(snapshot.trainer)
    yield from join(snapshot)


def of_engine(engine: api.Engine) -> Iterator[Finding]:
    """What an engine reports about itself."""
    section = f"engine {engine.id}"
    software = _listed(engine.software or {"vllm": engine.vllm_version or "unknown"})
    yield Finding(section, "ok", f"{api.health_text(engine.health)}, pid {engine.pid} on {engine.host}: {software}")
    if engine.health == "silent":
        yield Finding(section, "problem", "no report for some seconds", "the process hangs, or holds the GIL")
    yield from _patches(section, engine)
    for place, count in sorted(engine.faults.items()):
        text = f"{count} errors of the collector in {place} were contained; after 20 it is off there"
        yield Finding(section, "problem", text, "the engine's log has the first traceback; please report it")
    yield from _requests(section, engine)
    for flag in FLAGS:
        state = engine.flags.get(flag.name)
        if state is not None and state.switchable:
            yield Finding(section, "ok", f"{flag.name} is {state.value}, and can be switched")
        else:
            reason = "not known to this version of the collector" if state is None else state.reason
            yield Finding(section, "note", f"{flag.name} can't be switched: {reason}")


def _patches(section: str, engine: api.Engine) -> Iterator[Finding]:
    for fact, reason in sorted(engine.fingerprint.items()):
        if fact.startswith(MISSING):
            name = fact.removeprefix(MISSING)
            yield Finding(section, "problem" if name in ESSENTIAL else "note", f"{name} can't be observed: {reason}")
    if engine.fingerprint.get("tokens read from", "batches") != "batches":
        yield Finding(section, "note", "tokens are read from each request's outputs, which takes the engine longer")


def _requests(section: str, engine: api.Engine) -> Iterator[Finding]:
    ended = engine.finished + engine.aborted
    if ended and engine.without_logprobs == ended:
        text = f"none of its {ended} requests asked for logprobs: there is no gap to measure"
        yield Finding(section, "problem", text, "SamplingParams(logprobs=0) records that of the sampled token alone")
    elif engine.without_logprobs:
        yield Finding(section, "note", f"{engine.without_logprobs} of {ended} requests asked for no logprobs")
    if not ended:
        yield Finding(section, "note", "no request has finished yet")
    if lost := sum(counts.dropped for counts in engine.counts.values()):
        yield Finding(section, "note", f"{lost} records did not fit the collector's queue and were dropped")


def mixed_software(snapshot: api.Snapshot) -> Iterator[Finding]:
    """Versions that differ between engines and trainer."""
    sources = {engine.id: engine.software for engine in snapshot.engines.values() if engine.health != "gone"}
    sources["trainer"] = snapshot.trainer.software
    for name in ("rltop", "torch"):
        values: dict[str, list[str]] = {}
        for source, software in sources.items():
            if name in software:
                values.setdefault(software[name], []).append(source)
        if len(values) > 1:
            where = "; ".join(f"{version} in {', '.join(ids)}" for version, ids in sorted(values.items()))
            yield Finding("versions", "note", f"{name} differs: {where}")


def trainer(seen: api.Trainer) -> Iterator[Finding]:
    """The calls of the trainer, and what each argument that it does not pass costs."""
    if seen.health == "absent":
        advice = (
            "add the line that `rltop integrate NAME` prints for your framework, or "
            "call TrainerCollector.sequences and step in the trainer, with the same run (and RLTOP_HOME)"
        )
        yield Finding(TRAINER, "problem", "no trainer reports to this hub", advice)
        return
    software = f": {_listed(seen.software)}" if seen.software else ""
    yield Finding(
        TRAINER, "ok", f"{api.health_text(seen.health)}, {len(seen.ranks)} of {seen.world_size or '?'} ranks{software}"
    )
    calls = {kind: seen.counts[kind].offered if kind in seen.counts else 0 for kind in ("sequences", "step")}
    yield Finding(TRAINER, "ok", f"calls: {calls['sequences']} of sequences, {calls['step']} of step")
    if calls["step"] and not calls["sequences"]:
        yield Finding(
            TRAINER, "problem", "step is called, sequences is not", "pass the rows where the loss is computed"
        )
    if calls["sequences"] and not calls["step"]:
        yield Finding(TRAINER, "problem", "sequences is called, step is not", "call step after the optimizer step")
    yield from _arguments(seen, calls["sequences"])
    if not seen.facts.keys() - {"temperature"}:
        text = "it states no facts, so its configuration is not compared with the engines'"
        yield Finding(TRAINER, "note", text, "TrainerCollector(facts={...}); `rltop fingerprint` lists the names")
    if lost := sum(counts.dropped for counts in seen.counts.values()):
        yield Finding(TRAINER, "note", f"{lost} calls did not fit the collector's queue and were dropped")


def _arguments(seen: api.Trainer, calls: int) -> Iterator[Finding]:
    if not calls:
        return
    yield Finding(TRAINER, "ok", f"optional arguments passed: {', '.join(seen.passed) or 'none'}")
    for argument in ARGUMENTS:
        if argument.cost and argument.name not in seen.passed:
            yield Finding(TRAINER, "note", f"without {argument.name}: {argument.cost}")


def join(snapshot: api.Snapshot) -> Iterator[Finding]:
    """The share of the trainer's rows that joined a rollout in the newest steps, and why the others did not."""
    steps = sorted(snapshot.steps.values(), key=lambda step: step.step)[-STEPS:]
    if not steps:
        yield Finding(JOIN, "note", "no step has closed yet")
        return
    joined, unjoined = _total(step.joins for step in steps), _total(step.unjoined for step in steps)
    rows = joined.total() + unjoined.total()
    ways = ", ".join(f"{count} {way}" for way, count in joined.most_common())
    text = f"{joined.total()} of {rows} rows of the last {len(steps)} steps joined{f' ({ways})' if ways else ''}"
    yield Finding(JOIN, "ok" if not unjoined else "problem" if 2 * joined.total() < rows else "note", text)
    sentences = {reason.name: reason.sentence for reason in reasons.REASONS}
    for reason, count in unjoined.most_common():
        yield Finding(JOIN, "note", f"{count} {reason}: {sentences.get(reason, reason)}", ADVICE.get(reason, ""))
    if missing := sum(step.missing_rows for step in steps):
        yield Finding(JOIN, "note", f"{missing} rows that the trainer passed never arrived")


def _total(counts: Iterator[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def _listed(software: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in software.items())
