"""The experiments that a person can start on a live run, as data: what each isolates, costs and risks, and its answers.

The engine side, the hub, the CLI, the help and the docs all read this table. The codes are those of the catalogue that
the causes of a diagnosis refer to.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB, ENGINES, SWITCH = "hub", "engines", "switch"
"""Who carries a probe out: the hub, from what it knows; engines, on command; or the switchboard, as a timed switch."""

COLD, HOT, WARM = "cold", "hot", "warm"
"""Ways of scoring: no cache is read; that which the rollout read; one that was filled for this just before."""

SUBJECT = "probe"
"""What a probe's command is about: of one subject an engine has one command under way, so one probe at a time."""

MAX_SEQUENCES = 8
"""Sequences that one probe sends, at most."""

MAX_TOKENS = 16_384
"""Their tokens together."""

TOKENS_PER_S = 4096
"""Tokens of probes that an engine computes per second, on average over a probe."""

MAX_IN_FLIGHT = 4
"""Requests of probes in an engine at once."""

MAX_KV_USAGE = 0.9
"""Beyond this share of the KV cache no probe sends requests: its blocks would push out those of rollouts."""

WAITING_PER_SEAT = 4
"""So many waiting requests for each that can run are a long queue, in which a probe would only wait."""

MIN_SEQUENCES = 4
"""With fewer whole sequences a probe's answer is ``unclear``: they are its observations, not their tokens."""


@dataclass(frozen=True)
class ProbeAnswer:
    """A word that a probe may answer, and what it means."""

    word: str
    means: str


UNCLEAR = ProbeAnswer("unclear", "too little came back to tell; the text says what was missing")
OVERTAKEN = ProbeAnswer("overtaken", "a weight update, a pause or a switch came in between; ask again")
REFUSED = ProbeAnswer("refused", "it could not be done; the text says why, and what would let it")
COMMON = (UNCLEAR, OVERTAKEN, REFUSED)
"""Words that every probe may answer."""


@dataclass(frozen=True)
class Probe:
    """One experiment.

    Attributes:
        name: as people type it, ``rltop probe <name>``, and as causes name it.
        code: in the catalogue.
        summary: one line, what it does.
        isolates: what its answer separates from what else it could be.
        method: how it is done, step by step.
        cost: what it takes from the run. risk: what may go wrong by it.
        needs: what must hold, in words.
        takes: about how long.
        answers: its words, beside ``COMMON``.
        by: ``HUB``, ``ENGINES`` or ``SWITCH``.
        requests: it sends requests of its own.
        engines: how many engines it takes at least.
        timeout_s: how long is waited for engines, unless told otherwise.
    """

    name: str
    code: str
    summary: str
    isolates: str
    method: str
    cost: str
    risk: str
    needs: str
    takes: str
    answers: tuple[ProbeAnswer, ...]
    by: str = ENGINES
    requests: bool = False
    engines: int = 1
    timeout_s: float = 30.0

    @property
    def words(self) -> tuple[ProbeAnswer, ...]:
        """All that it may answer."""
        return self.answers + COMMON


_REQUESTS_COST = (
    f"at most {MAX_SEQUENCES} sequences of recent rollouts, {MAX_TOKENS} tokens in all, {MAX_IN_FLIGHT} requests at a "
    f"time, {TOKENS_PER_S} tokens a second on average: prefill alone, one token sampled of each"
)
_REQUESTS_RISK = (
    "its requests stand in the scheduler's queue like any other, behind those that wait. They are not rollouts: no "
    "front end, statistic, join or hit rate of rltop sees them. vLLM's own metrics do"
)
_REQUESTS_NEED = (
    "no speculative decoding, KV connector, LoRA, several modalities or data-parallel ranks that step together; no "
    f"long queue; the KV cache at most {MAX_KV_USAGE:.0%} full"
)

PROBES: tuple[Probe, ...] = (
    Probe(
        name="config-diff",
        code="P0",
        summary="compare what all engines and the trainer compute with",
        isolates="a fleet whose members differ in configuration, from one that differs in weights or numerics",
        method="the fingerprints that engines read from their live objects, held against each other and against what "
        "the trainer stated; the table is in docs/facts.md",
        cost="none: the hub has the facts",
        risk="none",
        needs="engines that have reported",
        takes="at once",
        answers=(
            ProbeAnswer("agree", "all facts that two of them state are the same"),
            ProbeAnswer("differ", "some are not; the text names them, with their engines"),
        ),
        by=HUB,
    ),
    Probe(
        name="token-echo",
        code="P10",
        summary="compare the token ids that engines saw with those that the trainer trains on",
        isolates="text tokenised anew, another template, cut or prolonged answers, from a gap between equal tokens",
        method="the join of the last steps: every row's prompt and completion were compared with the engine's record "
        "token by token, and so was the trainer's copy of the recorded logprobs",
        cost="none: the hub has joined them",
        risk="none",
        needs="a step that has closed",
        takes="at once",
        answers=(
            ProbeAnswer("equal", "every row has the ids that its engine recorded"),
            ProbeAnswer("differ", "some rows do not; the text says how many, and in what way"),
        ),
        by=HUB,
    ),
    Probe(
        name="weight-digest",
        code="P5",
        summary="digest every parameter on every engine, and compare",
        isolates="a missed, partial or never applied weight update, from a difference in configuration or numerics",
        method="two 64-bit checksums of every parameter, buffer and other tensor of the model on each rank, with those "
        "that named_parameters misses, and of linear layers packed for the CPU by projecting unit vectors; compared "
        "over the fleet, with the last digest of the same engine (did an update change them?), and with the trainer's "
        "where it passed some (`TrainerCollector.step(weight_digests=...)`)",
        cost="the engine stands still for some 20 ms at a time, a few times a second, until all weights are "
        "read once; the answer says how long in all, and the longest",
        risk="none for the weights: they are only read. Equal digests do not prove equal behaviour: what is captured "
        "in CUDA graphs is not seen",
        needs="engines whose workers run the collector",
        takes="seconds; for large models on the CPU minutes",
        answers=(
            ProbeAnswer("agree", "all engines with the same version have the same weights; the text says whether they "
                   "changed since the digest before, and whether they are the trainer's"),
            ProbeAnswer("differ", "engines of one version have other weights; the text names engines and tensors"),
            ProbeAnswer("not_applied", "an update was counted, and not one weight has changed since before it"),
            ProbeAnswer("partial", "an update changed some weights and left others, of which the text names some"),
            ProbeAnswer("not_the_trainer", "all engines agree, and on other weights than the trainer's of that version"),
        ),
        timeout_s=300.0,
    ),
    Probe(
        name="prefill-rescore",
        code="P1",
        summary="score recorded rollouts again on their engine, by prefill",
        isolates="the decode path, its cache and its sampler, from weights and configuration: those a rescore shares",
        method="prompt and completion of recent rollouts of the present weights, as one prompt that reads no cache; "
        "the logprobs of its tokens are compared with those recorded while they were decoded",
        cost=_REQUESTS_COST,
        risk=_REQUESTS_RISK,
        needs="finished rollouts of the version that the engine has now, whose record is raw or of temperature 1, "
        "without top-p, top-k, min-p and penalties: prompt logprobs know none of these. " + _REQUESTS_NEED,
        takes="some seconds",
        answers=(
            ProbeAnswer("match", "the record is what prefill gives, up to the rounding of the engine's dtype"),
            ProbeAnswer("differ", "it is not: decode path, stale cache, or a record that is not of the distribution"),
        ),
        requests=True,
        timeout_s=120.0,
    ),
    Probe(
        name="cache-salt",
        code="P4",
        summary="score the same tokens with the cached prefix and without",
        isolates="stale keys and values in the prefix cache, from everything else",
        method="for each of some recent prompts: with its own salt, so that it hits what rollouts hit (hot); without "
        "reading the cache (cold); and with a fresh salt after its prefix was computed anew under that salt (warm). "
        "Hot and warm take the same path and differ in the age of the cached prefix alone; cold and warm in nothing "
        "but the path. Every position after the prefix counts. Cached tokens prove hit and miss",
        cost="four requests for each sequence: " + _REQUESTS_COST,
        risk=_REQUESTS_RISK,
        needs="the prefix cache on, and rollouts that hit it. " + _REQUESTS_NEED,
        takes="ten seconds or so",
        answers=(
            ProbeAnswer("fresh", "a cached prefix gives what one computed now gives"),
            ProbeAnswer("stale", "it does not: cached keys and values are of other weights"),
            ProbeAnswer("not_cached", "no sequence hit the cache, so there was nothing to compare"),
        ),
        requests=True,
        timeout_s=120.0,
    ),
    Probe(
        name="cross-replica",
        code="P3",
        summary="score the same tokens on several engines",
        isolates="an engine that differs from the others in weights or configuration, without sampling in between",
        method="as prefill-rescore, with the same sequences on every engine; pairs of engines are compared sequence by "
        "sequence. Of three or more the odd one is that which is far from all others; of two, the one that is farther "
        "from the trainer's logprobs",
        cost=_REQUESTS_COST + ", on each engine",
        risk=_REQUESTS_RISK,
        needs="two engines of the same version. " + _REQUESTS_NEED,
        takes="some seconds",
        answers=(
            ProbeAnswer("agree", "all engines give the same, up to the rounding of their dtype"),
            ProbeAnswer("differ", "they do not; the text names the odd engine, or says what would"),
        ),
        requests=True,
        engines=2,
        timeout_s=120.0,
    ),
    Probe(
        name="canary-flip",
        code="P8",
        summary="switch one flag on one engine for a time, and measure what that does",
        isolates="one flag's part in the gap",
        method="`rltop set` on one engine with --for, and `rltop effect` on it; the engine takes it back by itself",
        cost="that of the flag: docs/flags.md",
        risk="that of the flag, on one engine, for a time",
        needs="a flag that this engine can switch, and another engine to compare with",
        takes="some steps",
        answers=(
            ProbeAnswer("changed", "a figure moved by more than chance"),
            ProbeAnswer("no_effect", "no figure that matters moved"),
            ProbeAnswer("not_yet", "too few steps so far; `rltop probe --result` again later"),
        ),
        by=SWITCH,
        engines=2,
    ),
)  # fmt: skip

BY_NAME: dict[str, Probe] = {probe.name: probe for probe in PROBES}


def document() -> str:
    """``docs/probes.md``."""
    lines = [
        "# Probes",
        "",
        "Made from the table in [`collectors/contract/probes.py`](../collectors/contract/probes.py):",
        "`python -m rltop.collectors.contract.probes > docs/probes.md`.",
        "",
        "A probe is an experiment on the live run that tells causes apart which look alike in the rollouts.",
        "`rltop probe --list` shows them, `rltop probe NAME` starts one after a question, `rltop probe --result ID`",
        "shows what came of it. A probe is a command: on record in `rltop audit`, one at a time on each engine,",
        "refused with a reason.",
        "",
        "Requests of a probe are made inside the engine core, at a step boundary, through vLLM's own `add_request`.",
        "They are named `rltop-probe-...`, read no prefix cache or bear a salt of their own (but for the one request",
        "that is meant to hit), and their outputs are taken out before they leave for the front end. What overtakes a",
        "probe (an update, a pause, a switch) ends it at that boundary: its requests are aborted, and the answer says",
        "so.",
        "",
        "Every probe may also answer:",
        "",
        *(f"- `{answer.word}`: {answer.means}" for answer in COMMON),
    ]
    for probe in PROBES:
        lines += ["", f"## {probe.name} ({probe.code})", "", f"{probe.summary[0].upper()}{probe.summary[1:]}.", ""]
        lines += [f"- **Isolates**: {probe.isolates}", f"- **How**: {probe.method}", f"- **Cost**: {probe.cost}"]
        lines += [f"- **Risk**: {probe.risk}", f"- **Needs**: {probe.needs}", f"- **Takes**: {probe.takes}"]
        lines += ["- **Answers**:", *(f"  - `{answer.word}`: {answer.means}" for answer in probe.answers)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/probes.md
