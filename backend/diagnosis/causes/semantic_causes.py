"""Causes that lie in what a recorded logprob means: temperature, truncation, penalties, the sampler."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, CauseEntry

SHAPES = ("temperature", "top_p", "top_k", "min_p")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def _facts(*names: str) -> tuple[str, ...]:
    """Every way in which facts say that something is off."""
    return tuple(f"facts {outcome}={name}" for name in names for outcome in ("differs", "shaped"))


_POWERS = ("slope sharper", "slope flatter")
"""One side's distribution is a power of the other's. Where d is a constant of the context (a normaliser that is left
out, the share that was kept), it does not go with how likely a token is within it."""

_TILTED_TRAINER = (*GAP, *_POWERS, "floor above", "floor rounding", "T8 ramp", "T8 jump")
_TILTED = (*_TILTED_TRAINER, "T10 outlier")
"""What a distribution that is shaped on one side alone looks like, whichever the side; the trainer's is the same to all
engines."""

_PENALISED = " | ".join(("repetition favoured", "repetition disfavoured", *_facts(*PENALTIES, "logit_bias")))

SEMANTIC: tuple[CauseEntry, ...] = (
    CauseEntry(
        "A1", "raw-logprobs", "semantic", "The record is of the distribution before temperature",
        "Engines sample at a temperature and record logprobs without it, the trainer has it: every ratio is biased, "
        "and the clip rate is up from the first step.",
        needs=("T1 above",),
        # Below 1 the rare tokens whose d is negative may be too few to be seen: T3 positive does not rule it out.
        may=("T2 positive", "T3 positive", *_TILTED, *_facts("logprobs_mode", *SHAPES)),
        against=("T3 negative", "T1 above=old"),
        probe="P11",
        confusable_with=("generation-config", "truncation-in-trainer"),
        remedy="Record what is sampled from: --logprobs-mode processed_logprobs (vLLM 0.10.2 on), or train at "
        "temperature 1. Never rescale the logprob of the chosen token alone.",
        command="rltop set logprobs_mode processed{engines}",
        source="trl#4159, trl#4163, vime#64, verl#4162, open-instruct#1678",
    ),
    CauseEntry(
        "A2", "trainer-without-temperature", "semantic", "The trainer computes without the sampling temperature",
        "The trainer's policy is flatter or sharper than the one that sampled: ratios are far off 1 while their mean "
        "is 1, ESS is low and gradients are large, from the first step.",
        needs=("slope sharper | slope flatter | T4 sharper | T4 flatter", "floor above | floor rounding"),
        may=("T3 negative", "T4 truncated", "T2 too_negative", *_TILTED_TRAINER, *_facts("temperature")),
        against=("slope flat", "T1 above", "T3 positive", "T2 positive", "T10 outlier"),
        probe="P9",
        confusable_with=("penalties", "generation-config"),
        remedy="Divide logits by the temperature in every logprob path of the trainer (current, old, entropy), and "
        'state it: TrainerCollector(facts={"temperature": T}).',
        source="nemo#316, nemo#935, nemo#902, ms-swift#8427",
    ),
    CauseEntry(
        "A3", "logprob-over-temperature", "semantic", "The record is logprob / T where logits / T was meant",
        "The record is no distribution: every ratio is above 1 (T < 1), the more so the less certain the policy is.",
        needs=("T3 positive",),
        may=("T1 above", "T2 positive", *GAP, "floor above", "floor rounding", "T8 ramp", "T8 jump", "T10 outlier",
             *_facts(*SHAPES)),
        against=("T1 below", *_POWERS),
        probe="P11",
        confusable_with=("truncation-in-trainer", "normaliser"),
        remedy="Take the engine's own: --logprobs-mode processed_logprobs; never divide a logprob.",
        command="rltop set logprobs_mode processed{engines}",
        source="prime-rl#697",
    ),
    CauseEntry(
        "A4", "truncation-in-record", "semantic",
        "Sampling is cut off (top-p, top-k, min-p), the trainer has all tokens",
        "The engine's distribution is renormalised over the tokens that were kept, the trainer's is not: every ratio "
        "is at most 1, their mean is the share that was kept.",
        # Of rounding as large as the share that is cut off, d has both signs.
        needs=("T3 negative | T4 truncated | T5 below", "T3 negative | T1 below | T2 too_negative"),
        # A token that is left alone has a recorded logprob of 0.0; once old, the trainer may be far below it.
        may=(*GAP, "floor above", "floor rounding", "T8 jump", "T8 ramp", "T10 outlier", "record zeros",
             *_facts("top_p", "top_k", "min_p")),
        against=("T1 above", "T2 positive"),
        probe="P8",
        confusable_with=("structured-output", "generation-config", "normaliser"),
        remedy="Sample with top_p=1, top_k=0, min_p=0; or have vLLM return the mask (return_sampling_mask, 0.28 on) "
        "and apply it in the trainer.",
        source="trl#6789, trl#7269, prime-rl#3431, verl#6240, vllm#42259",
    ),
    CauseEntry(
        "A5", "shaped-in-silence", "semantic", "Sampling is shaped, and neither the record nor the trainer knows",
        "Tokens come from a sharper distribution (top-p, top-k or a temperature) than either side computes: no ratio "
        "shows it, the gradient is biased.",
        needs=("T5 below | T5 above | T4 truncated",),
        # Updates make likely what was sampled, and that was sampled more often than the record says.
        may=("T4 sharper", "T4 flatter", "floor rounding", "T1 above=old", *_facts(*SHAPES, "logprobs_mode")),
        against=("floor above", "T1 above=all", "T1 below", "T3 negative", "T3 positive", "T2 positive",
                 "T2 too_negative"),
        probe="P11",
        confusable_with=("generation-config",),
        remedy="Sample with temperature=1, top_p=1, top_k=0; or shape on both sides: --logprobs-mode "
        "processed_logprobs, and the same temperature and filter in the trainer.",
        source="nemo#69, nemo#766",
    ),
    CauseEntry(
        "A6", "generation-config", "semantic", "The model's generation_config.json shapes sampling",
        "Requests that leave a parameter unset get it from the checkpoint (temperature, top-p, penalties): the run "
        "samples otherwise than its own configuration says.",
        needs=("facts shaped=default_sampling | facts differs=default_sampling",),
        may=("T4 truncated", "T1 above", "T1 below", "T2 positive", "T2 too_negative", "T3 negative", "T3 positive",
             "T12 heavy", *_TILTED, "floor rounding", *_facts(*SHAPES, *PENALTIES, "logprobs_mode")),
        probe="P11",
        confusable_with=("raw-logprobs", "trainer-without-temperature", "truncation-in-record", "shaped-in-silence",
                         "penalties"),
        remedy="Start vLLM with --generation-config vllm, and set every sampling parameter in every request.",
        source="nemo#3497, nemo#3685, ART#140, verl#7270, vllm#50767",
    ),
    CauseEntry(
        "A7", "penalties", "semantic", "Penalties or other edits of logits that the trainer does not make",
        "Tokens that already occurred are sampled with another probability than is trained: the gap sits on repeated "
        "tokens.",
        needs=(_PENALISED,),
        may=(*GAP, "T1 above", "T1 below", "T2 positive", "floor above", "floor rounding", "T8 jump", "T8 ramp",
             "T10 outlier", *_facts("logprobs_mode")),
        against=_facts("default_sampling"),
        probe="P11",
        confusable_with=("generation-config", "trainer-without-temperature"),
        remedy="Turn them off in training rollouts: repetition_penalty=1, presence_penalty=0, frequency_penalty=0, "
        "no logit_bias, bad_words or min_tokens.",
        source="vLLM: order of the sampler; nemo#3497",
    ),
    CauseEntry(
        "A8", "structured-output", "semantic", "A grammar masks tokens that the trainer gives probability to",
        "At constrained positions the record is of few tokens, the trainer's of all: large ratios below 1 there, "
        "none elsewhere.",
        needs=("T3 negative", "T12 heavy"),
        may=("T4 truncated", "T1 below", "T2 too_negative", *_TILTED),
        against=("T1 above",),
        where=("structured_output not none",),
        probe="P8",
        confusable_with=("truncation-in-record",),
        remedy="Mask those tokens out of the loss, or replay the set of allowed tokens in the trainer.",
        source="vLLM 0.33: the bitmask comes before the raw logprobs; nemo#827",
    ),
    CauseEntry(
        "A9", "speculative-logprobs", "semantic", "Logprobs of speculative decoding are wrong",
        "Rows of the rejection sampler are mixed up: some sequences, often near the length limit, have a wrong record.",
        needs=("T1 above | T1 below | T12 heavy | record zeros",),
        may=("T2 positive", "T2 too_negative", "T7 grows", "T7 step", "floor above", "fit partial", "T14 grows",
             "T10 outlier", *_facts("speculative")),
        where=("speculative not none",),
        probe="P8",
        remedy="Update vLLM (fixes #30846, #33391, #38711) and keep prompt + max_tokens + drafts below "
        "--max-model-len; else sample for training without --speculative-config.",
        source="vllm#34497, vllm#38711, vllm#17876, vllm#48296",
    ),
    CauseEntry(
        "A10", "sampler-kernel", "semantic", "Sampler kernels differ",
        "A fused sampler draws from a slightly other distribution than it records: a bias in the tail.",
        needs=("facts differs=sampling_path",),
        may=("T14 grows", "floor rounding", "T10 outlier"),
        against=("T1 above", "T5 below", "T5 above"),
        probe="P8",
        confusable_with=("shaped-in-silence",),
        remedy="VLLM_USE_FLASHINFER_SAMPLER=0 on all engines; the processed mode uses the native sampler too.",
        command="rltop set logprobs_mode processed{engines}",
        source="vllm#51187, vllm#40376, vllm#42472",
    ),
    CauseEntry(
        "A11", "async-scheduling", "semantic", "Asynchronous scheduling loses what a step depends on",
        "Penalties and stateful processors see placeholders, preempted requests repeat or drop a token: the more the "
        "fuller the engine.",
        needs=("T14 grows", "floor above | T1 above | T1 below"),
        may=("T12 heavy", "T2 too_negative", "T10 outlier", "repeat_engine differs", *_facts(*PENALTIES)),
        where=("async_scheduling is on",),
        probe="P8",
        confusable_with=("batch-dependence",),
        remedy="Switch it off (--no-async-scheduling), and update vLLM; no stateful logits processors in training "
        "rollouts.",
        command="rltop set async_scheduling off{engines}",
        source="vllm#26467, vllm#27878, vllm#28787, vllm#38624, vllm#48245, vllm#52461",
    ),
)  # fmt: skip
