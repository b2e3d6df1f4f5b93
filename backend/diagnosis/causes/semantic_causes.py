"""Causes in the meaning of rollout logprobs: temperature, truncation, penalties, the sampler."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, CauseEntry

SHAPES = ("temperature", "top_p", "top_k", "min_p")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def _facts(*names: str) -> tuple[str, ...]:
    """All symptoms of the check ``facts`` for these facts."""
    return tuple(f"facts {outcome}={name}" for name in names for outcome in ("differs", "shaped"))


_POWERS = ("slope sharper", "slope flatter")
"""One side's distribution is a power of the other's. A constant of the context (a missing normaliser, the kept share)
does not depend on how likely a token is within it."""

_TILTED_TRAINER = (*GAP, *_POWERS, "floor above", "floor rounding", "trend ramp", "trend jump")
_TILTED = (*_TILTED_TRAINER, "engine_gap outlier")
"""Symptoms of a distribution that is shaped on one side only; a trainer's affects all engines alike."""

_PENALISED = " | ".join(("repetition favoured", "repetition disfavoured", *_facts(*PENALTIES, "logit_bias")))

SEMANTIC: tuple[CauseEntry, ...] = (
    CauseEntry(
        "A1", "raw-logprobs", "semantic", "Engines return raw logprobs (before temperature)",
        "Engines sample at a temperature and return logprobs without it; the trainer applies it: every ratio is "
        "biased, and the clip rate is high from the first step.",
        needs=("mean_ratio above",),
        # Below temperature 1, tokens with a negative d may be too rare to be seen, so "one_sided positive" may show.
        may=("sign positive", "one_sided positive", *_TILTED, *_facts("logprobs_mode", *SHAPES)),
        against=("one_sided negative", "mean_ratio above=old"),
        shaped_by=(*SHAPES, *PENALTIES, "logit_bias"),
        probe="P11",
        confusable_with=("generation-config", "truncation-in-trainer"),
        remedy="Return the sampled distribution: --logprobs-mode processed_logprobs (vLLM 0.10.2 on), or train at "
        "temperature 1. Never rescale the logprob of the chosen token alone.",
        command="rltop set logprobs_mode processed{engines}",
        source="trl#4159, trl#4163, vime#64, verl#4162, open-instruct#1678",
    ),
    CauseEntry(
        "A2", "trainer-without-temperature", "semantic", "The trainer computes without the sampling temperature",
        "The trainer's policy is flatter or sharper than the one that sampled: ratios are far from 1 while their mean "
        "is 1, ESS is low and gradients are large, from the first step.",
        needs=("slope sharper | slope flatter | calibration sharper | calibration flatter",
               "floor above | floor rounding"),
        may=("one_sided negative", "calibration truncated", "sign too_negative", *_TILTED_TRAINER,
             *_facts("temperature")),
        against=("slope flat", "mean_ratio above", "one_sided positive", "sign positive"),
        shaped_by=("temperature",),
        probe="P9",
        confusable_with=("penalties", "generation-config"),
        remedy="Divide logits by the temperature in every logprob path of the trainer (current, old, entropy), and "
        'state it: TrainerCollector(facts={"temperature": T}).',
        source="nemo#316, nemo#935, nemo#902, ms-swift#8427",
    ),
    CauseEntry(
        "A3", "logprob-over-temperature", "semantic", "Rollout logprobs are logprob / T instead of logits / T",
        "Rollout logprobs are not normalised: every ratio is above 1 (T < 1), and more so the less certain the policy.",
        needs=("one_sided positive",),
        may=("mean_ratio above", "sign positive", *GAP, "floor above", "floor rounding", "trend ramp", "trend jump",
             "engine_gap outlier", *_facts(*SHAPES)),
        against=("mean_ratio below", *_POWERS),
        shaped_by=("temperature",),
        probe="P11",
        confusable_with=("truncation-in-trainer", "normaliser"),
        remedy="Use the engine's own: --logprobs-mode processed_logprobs; never divide a logprob.",
        command="rltop set logprobs_mode processed{engines}",
        source="prime-rl#697",
    ),
    CauseEntry(
        "A4", "truncation-in-record", "semantic",
        "Sampling is truncated (top-p, top-k, min-p), the trainer is not",
        "The engine's distribution is renormalised over the kept tokens, the trainer's is not: every ratio is at most "
        "1, and their mean is the kept share.",
        # If rounding is as large as the truncated share, d has both signs.
        needs=("one_sided negative | calibration truncated | nll_minus_entropy below",
               "one_sided negative | mean_ratio below | sign too_negative"),
        # The only candidate left has a logprob of 0.0; for an old token the trainer may be far below.
        may=(*GAP, "floor above", "floor rounding", "trend jump", "trend ramp", "engine_gap outlier", "record zeros",
             *_facts("top_p", "top_k", "min_p")),
        against=("mean_ratio above", "sign positive"),
        shaped_by=("top_p", "top_k", "min_p"),
        probe="P8",
        confusable_with=("structured-output", "generation-config", "normaliser"),
        remedy="Sample with top_p=1, top_k=0, min_p=0; or have vLLM return the mask (return_sampling_mask, 0.28 on) "
        "and apply it in the trainer.",
        source="trl#6789, trl#7269, prime-rl#3431, verl#6240, vllm#42259",
    ),
    CauseEntry(
        "A5", "shaped-in-silence", "semantic", "Sampling is shaped, but neither logprobs nor trainer show it",
        "Tokens come from a sharper distribution (top-p, top-k or a temperature) than either side computes: ratios do "
        "not show it, and the gradient is biased.",
        needs=("nll_minus_entropy below | nll_minus_entropy above | calibration truncated",),
        # Updates raise what was sampled, which was sampled more often than the logprobs say.
        may=("calibration sharper", "calibration flatter", "floor rounding", "mean_ratio above=old",
             *_facts(*SHAPES, "logprobs_mode")),
        against=("floor above", "mean_ratio above=all", "mean_ratio below", "one_sided negative", "one_sided positive",
                 "sign positive", "sign too_negative"),
        shaped_by=SHAPES,
        probe="P11",
        confusable_with=("generation-config",),
        remedy="Sample with temperature=1, top_p=1, top_k=0; or shape on both sides: --logprobs-mode "
        "processed_logprobs, and the same temperature and filter in the trainer.",
        source="nemo#69, nemo#766",
    ),
    CauseEntry(
        "A6", "generation-config", "semantic", "The model's generation_config.json shapes sampling",
        "Requests without a parameter get it from the checkpoint (temperature, top-p, penalties): sampling differs "
        "from the run's configuration.",
        needs=("facts shaped=default_sampling | facts differs=default_sampling",),
        may=("calibration truncated", "mean_ratio above", "mean_ratio below", "sign positive", "sign too_negative",
             "one_sided negative", "one_sided positive", "tail heavy", *_TILTED, "floor rounding",
             *_facts(*SHAPES, *PENALTIES, "logprobs_mode")),
        probe="P11",
        confusable_with=("raw-logprobs", "trainer-without-temperature", "truncation-in-record", "shaped-in-silence",
                         "penalties"),
        remedy="Start vLLM with --generation-config vllm, and set every sampling parameter in every request.",
        source="nemo#3497, nemo#3685, ART#140, verl#7270, vllm#50767",
    ),
    CauseEntry(
        "A7", "penalties", "semantic", "Penalties or other logit edits that the trainer does not apply",
        "Repeated tokens are sampled with another probability than is trained: the gap is in repeated tokens.",
        needs=(_PENALISED,),
        may=(*GAP, "mean_ratio above", "mean_ratio below", "sign positive", "floor above", "floor rounding",
             "turn_gap later_worse", "trend jump", "trend ramp", "engine_gap outlier", *_facts("logprobs_mode")),
        against=_facts("default_sampling"),
        shaped_by=(*PENALTIES, "logit_bias"),
        probe="P11",
        confusable_with=("generation-config", "trainer-without-temperature"),
        remedy="Turn them off in training rollouts: repetition_penalty=1, presence_penalty=0, frequency_penalty=0, "
        "no logit_bias, bad_words or min_tokens.",
        source="vLLM: order of the sampler; nemo#3497",
    ),
    CauseEntry(
        "A8", "structured-output", "semantic", "A grammar masks tokens that have probability in the trainer",
        "At constrained positions rollout logprobs cover few tokens, the trainer's all: ratios far below 1 there, and "
        "1 elsewhere.",
        needs=("one_sided negative", "tail heavy"),
        may=("turn_gap later_worse", "turn_gap first_worse", "calibration truncated", "mean_ratio below",
             "sign too_negative", *_TILTED),
        against=("mean_ratio above",),
        where=("structured_output not none",),
        probe="P8",
        confusable_with=("truncation-in-record",),
        remedy="Mask those tokens out of the loss, or replay the set of allowed tokens in the trainer.",
        source="vLLM 0.33: the bitmask comes before the raw logprobs; nemo#827",
    ),
    CauseEntry(
        "A9", "speculative-logprobs", "semantic", "Logprobs of speculative decoding are wrong",
        "The rejection sampler mixes up rows: some sequences, often near the length limit, have wrong logprobs.",
        needs=("mean_ratio above | mean_ratio below | tail heavy | record zeros",),
        may=("sign positive", "sign too_negative", "position grows", "position step", "floor above", "fit partial",
             "batch_load grows", "engine_gap outlier", *_facts("speculative")),
        where=("speculative not none",),
        probe="P8",
        remedy="Update vLLM (fixes #30846, #33391, #38711) and keep prompt + max_tokens + drafts below "
        "--max-model-len; else sample for training without --speculative-config.",
        source="vllm#34497, vllm#38711, vllm#17876, vllm#48296",
    ),
    CauseEntry(
        "A10", "sampler-kernel", "semantic", "Sampler kernels differ",
        "A fused sampler draws from a slightly different distribution than it reports: a bias in the tail.",
        needs=("facts differs=sampling_path",),
        may=("batch_load grows", "floor rounding", "engine_gap outlier"),
        against=("mean_ratio above", "nll_minus_entropy below", "nll_minus_entropy above"),
        probe="P8",
        confusable_with=("shaped-in-silence",),
        remedy="VLLM_USE_FLASHINFER_SAMPLER=0 on all engines; the processed mode uses the native sampler too.",
        command="rltop set logprobs_mode processed{engines}",
        source="vllm#51187, vllm#40376, vllm#42472",
    ),
    CauseEntry(
        "A11", "async-scheduling", "semantic", "Asynchronous scheduling loses the state that a step depends on",
        "Penalties and stateful processors see placeholders, preempted requests repeat or drop a token; more so under "
        "load.",
        needs=("batch_load grows", "floor above | mean_ratio above | mean_ratio below"),
        may=("tail heavy", "sign too_negative", "engine_gap outlier", "repeat_engine differs", *_facts(*PENALTIES)),
        where=("async_scheduling is on",),
        probe="P8",
        confusable_with=("batch-dependence",),
        remedy="Switch it off (--no-async-scheduling), and update vLLM; no stateful logits processors in training "
        "rollouts.",
        command="rltop set async_scheduling off{engines}",
        source="vllm#26467, vllm#27878, vllm#28787, vllm#38624, vllm#48245, vllm#52461",
    ),
)  # fmt: skip
