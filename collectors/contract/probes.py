"""The probes as data: experiments on a live run, with their method, cost, risk and possible answers.

The engine side, the hub, the CLI, the dashboard and the docs all read this table. The causes of a diagnosis refer to
probes by name and code.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB, ENGINES, SWITCH = "hub", "engines", "switch"
"""Executors of a probe: the hub, from data that it has; engines, on command; or the user, by a temporary switch."""

COLD, HOT, WARM = "cold", "hot", "warm"
"""Ways of scoring: without the prefix cache; with the prefix that the rollout hit; with a prefix cached just before."""

SUBJECT = "probe"
"""Subject of probe commands. An engine has one pending command per subject, so one probe at a time."""

MAX_SEQUENCES = 8
"""Sequences that one probe sends, at most."""

MAX_TOKENS = 16_384
"""Total tokens of these sequences, at most."""

TOKENS_PER_S = 4096
"""Tokens per second that a probe sends to an engine, averaged over the probe."""

MAX_IN_FLIGHT = 4
"""Concurrent requests of a probe on an engine."""

MAX_KV_USAGE = 0.9
"""Above this usage of the KV cache no probe sends requests: its blocks would evict those of rollouts."""

WAITING_PER_SEAT = 4
"""With more waiting requests than this per running slot (``max_num_seqs``) no probe sends requests."""

MIN_SEQUENCES = 4
"""With fewer complete sequences the answer is ``unclear``: sequences are the independent samples, not tokens."""


@dataclass(frozen=True)
class ProbeAnswer:
    """A possible answer of a probe, and its meaning."""

    word: str
    meaning: str


UNCLEAR = ProbeAnswer("unclear", "not enough data for an answer; the text says what is missing")
OVERTAKEN = ProbeAnswer("overtaken", "interrupted by a weight update, a pause or a switch; run it again")
REFUSED = ProbeAnswer("refused", "it could not be executed; the text gives the reason and the remedy")
COMMON = (UNCLEAR, OVERTAKEN, REFUSED)
"""Answers that every probe may give."""


@dataclass(frozen=True)
class Probe:
    """One experiment.

    Attributes:
        name: as typed in ``rltop probe <name>``, and as causes refer to it.
        code: short id in the catalogue of causes.
        summary: one line: what it does.
        isolates: the hypothesis that it tests, and the alternatives that it separates it from.
        method: the steps.
        cost: load on the run. risk: possible side effects.
        requirements: conditions, in words.
        duration: approximate duration, in words.
        answers: possible answers in addition to ``COMMON``.
        executed_by: ``HUB``, ``ENGINES`` or ``SWITCH``.
        sends_requests: it sends requests of its own.
        min_engines: number of engines that it needs.
        timeout_s: default time to wait for engines, seconds.
    """

    name: str
    code: str
    summary: str
    isolates: str
    method: str
    cost: str
    risk: str
    requirements: str
    duration: str
    answers: tuple[ProbeAnswer, ...]
    executed_by: str = ENGINES
    sends_requests: bool = False
    min_engines: int = 1
    timeout_s: float = 30.0

    @property
    def all_answers(self) -> tuple[ProbeAnswer, ...]:
        """All possible answers."""
        return self.answers + COMMON


_REQUESTS_COST = (
    f"at most {MAX_SEQUENCES} sequences of recent rollouts, {MAX_TOKENS} tokens in total, {MAX_IN_FLIGHT} requests at "
    f"a time, {TOKENS_PER_S} tokens per second on average: prefill only, with one sampled token each"
)
_REQUESTS_RISK = (
    "its requests wait in the scheduler's queue behind those that wait already. They are not rollouts: no front end, "
    "statistic, join or hit rate of rltop contains them. vLLM's own metrics do"
)
_REQUESTS_NEED = (
    "No speculative decoding, KV connector, LoRA, multimodal model or data-parallel ranks in lockstep; no long queue; "
    f"the KV cache at most {MAX_KV_USAGE:.0%} full"
)

PROBES: tuple[Probe, ...] = (
    Probe(
        name="config-diff",
        code="P0",
        summary="compare the configuration of all engines and the trainer",
        isolates="a difference in configuration from one in weights or numerics",
        method="compares the fingerprints that engines read from their live objects with each other and with the facts "
        "that the trainer passed; the table is in docs/facts.md",
        cost="none: the hub has the facts",
        risk="none",
        requirements="engines that have reported",
        duration="immediate",
        answers=(
            ProbeAnswer("agree", "all facts that at least two of them have are equal"),
            ProbeAnswer("differ", "some facts differ; the text names them and their engines"),
        ),
        executed_by=HUB,
    ),
    Probe(
        name="token-echo",
        code="P10",
        summary="compare the token ids of engines and trainer",
        isolates="retokenised text, another chat template, truncated or extended answers from a gap between equal "
        "tokens",
        method="evaluates the join of the last steps, which compared each row's prompt and completion with the "
        "engine's rollout token by token, and the trainer's copy of the rollout logprobs with the engine's",
        cost="none: the hub has joined them",
        risk="none",
        requirements="a closed step",
        duration="immediate",
        answers=(
            ProbeAnswer("equal", "every row has the token ids that its engine recorded"),
            ProbeAnswer("differ", "some rows have others; the text says how many, and how they differ"),
        ),
        executed_by=HUB,
    ),
    Probe(
        name="weight-digest",
        code="P5",
        summary="compute checksums of every parameter on every engine, and compare them",
        isolates="a missed or partial weight update from a difference in configuration or numerics",
        method="computes 64-bit checksums of every parameter, buffer and other tensor of the model on each rank, "
        "including tensors that named_parameters misses and weights of linear layers packed for the CPU (read by "
        "projecting unit vectors); compares them between engines, with the last digest of the same engine (did an "
        "update change them?), and with the trainer's if it passed any (`TrainerCollector.step(weight_digests=...)`)",
        cost="occupies the engine's thread for about 20 ms at a time, a few times per second, until all weights are "
        "read once; the answer contains the total and the longest time",
        risk="none for the weights: they are only read. Equal digests do not prove equal behaviour: tensors captured "
        "in CUDA graphs are not read",
        requirements="engines whose workers run the collector",
        duration="seconds; minutes for large models on the CPU",
        answers=(
            ProbeAnswer("agree", "all engines of the same version have the same weights; the text says whether they "
                   "changed since the digest before, and whether they are the trainer's"),
            ProbeAnswer("differ", "engines of the same version have different weights; the text names engines and "
                   "tensors"),
            ProbeAnswer("not_applied", "an update was counted, but no weight has changed since the digest before it"),
            ProbeAnswer("partial", "an update changed some weights and not others, of which the text names some"),
            ProbeAnswer("not_the_trainer", "all engines agree, but differ from the trainer's weights of that version"),
        ),
        timeout_s=300.0,
    ),
    Probe(
        name="prefill-rescore",
        code="P1",
        summary="rescore recorded rollouts on their engine, by prefill",
        isolates="the decode path, its cache and its sampler from weights and configuration, which a rescore shares",
        method="sends prompt and completion of recent rollouts of the current weights as one prompt without reading "
        "the prefix cache, and compares the logprobs of its tokens with the rollout logprobs recorded while decoding",
        cost=_REQUESTS_COST,
        risk=_REQUESTS_RISK,
        requirements="finished rollouts of the engine's current version whose logprobs are raw or of temperature 1, "
        "without top-p, top-k, min-p and penalties, because prompt logprobs ignore these. " + _REQUESTS_NEED,
        duration="a few seconds",
        answers=(
            ProbeAnswer("match", "the rollout logprobs equal those of prefill, up to rounding in the engine's dtype"),
            ProbeAnswer("differ", "they differ: decode path, stale cache, or logprobs of another distribution"),
        ),
        sends_requests=True,
        timeout_s=120.0,
    ),
    Probe(
        name="cache-salt",
        code="P4",
        summary="score the same tokens with and without the cached prefix",
        isolates="stale KV in the prefix cache from everything else",
        method="scores each of some recent prompts: with its own salt, so that it hits the same blocks as rollouts "
        "(hot); without reading the cache (cold); and with a new salt after its prefix was recomputed under that salt "
        "(warm). Hot and warm take the same path and differ only in the age of the cached prefix; cold and warm differ "
        "only in the path. Every position after the prefix is compared. Counts of cached tokens prove hits and misses",
        cost="four requests per sequence: " + _REQUESTS_COST,
        risk=_REQUESTS_RISK,
        requirements="the prefix cache on, and rollouts that hit it. " + _REQUESTS_NEED,
        duration="about ten seconds",
        answers=(
            ProbeAnswer("fresh", "the cached prefix gives the same logprobs as a recomputed one"),
            ProbeAnswer("stale", "it does not: the cached KV is of other weights"),
            ProbeAnswer("not_cached", "no sequence hit the cache, so there was nothing to compare"),
        ),
        sends_requests=True,
        timeout_s=120.0,
    ),
    Probe(
        name="cross-replica",
        code="P3",
        summary="score the same tokens on several engines",
        isolates="an engine with different weights or configuration, without sampling noise",
        method="as prefill-rescore, with the same sequences on every engine; compares pairs of engines sequence by "
        "sequence. Of three or more engines, the deviating one is far from all others; of two, it is the one farther "
        "from the trainer's logprobs",
        cost=_REQUESTS_COST + ", on each engine",
        risk=_REQUESTS_RISK,
        requirements="two engines of the same version. " + _REQUESTS_NEED,
        duration="a few seconds",
        answers=(
            ProbeAnswer("agree", "all engines give the same logprobs, up to rounding in their dtype"),
            ProbeAnswer("differ", "they differ; the text names the deviating engine, or says how to find it"),
        ),
        sends_requests=True,
        min_engines=2,
        timeout_s=120.0,
    ),
    Probe(
        name="canary-flip",
        code="P8",
        summary="switch one flag on one engine temporarily, and measure the effect",
        isolates="the contribution of one flag to the gap",
        method="`rltop set` on one engine with --for, and `rltop effect` on it; the flag auto-reverts",
        cost="that of the flag: docs/flags.md",
        risk="that of the flag, on one engine, temporarily",
        requirements="a flag that this engine can switch, and another engine as control group",
        duration="some steps",
        answers=(
            ProbeAnswer("changed", "a metric changed by more than chance"),
            ProbeAnswer("no_effect", "no relevant metric changed"),
            ProbeAnswer("not_yet", "not enough steps yet; run `rltop probe --result` later"),
        ),
        executed_by=SWITCH,
        min_engines=2,
    ),
)  # fmt: skip

BY_NAME: dict[str, Probe] = {probe.name: probe for probe in PROBES}


def document() -> str:
    """``docs/probes.md``."""
    lines = [
        "# Probes",
        "",
        "Generated from the table in [`collectors/contract/probes.py`](../collectors/contract/probes.py):",
        "`python -m rltop.collectors.contract.probes > docs/probes.md`.",
        "",
        "A probe is an experiment on the live run. It distinguishes causes that look alike in the rollouts.",
        "`rltop probe --list` lists them, `rltop probe NAME` starts one after confirmation, `rltop probe --result ID`",
        "shows its result. A probe is a command: it appears in `rltop audit`, an engine runs one at a time, and a",
        "refusal has a reason.",
        "",
        "An answer is evidence of the diagnosis: it confirms causes or rules them out, for the versions up to the",
        "probed one. It counts until a later answer about the same engines, or until the last 5 steps trained on",
        "tokens of later versions only; one about the prefix cache also ends with a switch or a flush. A cause names",
        "only probes that this fleet's engines can run; what takes a person, it calls an experiment.",
        "",
        "Requests of a probe are created inside the engine core, at a step boundary, through vLLM's own `add_request`.",
        "Their ids begin with `rltop-probe-`. They read no prefix cache or have a salt of their own, except for the",
        "one request that is meant to hit. Their outputs are removed before they reach the front end. An update, a",
        "pause or a switch ends a probe at that boundary: its requests are aborted, and the answer is `overtaken`.",
        "",
        "Every probe may also answer:",
        "",
        *(f"- `{answer.word}`: {answer.meaning}" for answer in COMMON),
    ]
    for probe in PROBES:
        lines += ["", f"## {probe.name} ({probe.code})", "", f"{probe.summary[0].upper()}{probe.summary[1:]}.", ""]
        lines += [f"- **Isolates**: {probe.isolates}", f"- **Method**: {probe.method}", f"- **Cost**: {probe.cost}"]
        lines += [f"- **Risk**: {probe.risk}", f"- **Requirements**: {probe.requirements}"]
        lines += [f"- **Duration**: {probe.duration}"]
        lines += ["- **Answers**:", *(f"  - `{answer.word}`: {answer.meaning}" for answer in probe.answers)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/probes.md
