"""Causes that lie in the record: its copy, its tokens, its join."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import RECORD_GAP, CauseEntry

RECORD: tuple[CauseEntry, ...] = (
    CauseEntry(
        "A12", "shifted-logprobs", "record", "The logprobs are shifted against their tokens",
        "Each token is trained with the logprob of its neighbour: ratios are noise, and clipping throws the signal "
        "away.",
        needs=("copies shifted | alignment shifted",),
        may=RECORD_GAP,
        probe="P10",
        remedy="Slice logits and labels alike (logits[:, :-1] against ids[:, 1:]), and assert len(ids) == "
        "len(logprobs) for each sequence where rollouts are packed.",
        source="prime-rl#1525, prime-rl#606, ms-swift#8196, verl#5115",
    ),
    CauseEntry(
        "A13", "padded-logprobs", "record", "Missing logprobs are filled in",
        "0.0 or -9999 stands for a probability that nobody recorded: those tokens get ratios near 0 or beyond all "
        "bounds.",
        needs=("copies zero_filled | copies padded | record zeros | record fillers",),
        may=(*RECORD_GAP, "mask unsampled"),
        probe="P10",
        remedy="Refuse to pad: mask tokens that no engine sampled out of the loss (tool output, an EOS put there by "
        "hand), and request logprobs=0 for all others.",
        source="vime#70, rllm#816, open-instruct#1041; vLLM's completions API clamps at -9999",
    ),
    CauseEntry(
        "R1", "recomputed-logprobs", "record", "The trainer's copy of the record was computed again",
        "The ratio is held against the trainer's own logprobs and not the sampler's: whatever is wrong between the "
        "two is invisible in the loss, and uncorrected.",
        needs=("copies recomputed",),
        may=("engine_gap outlier",),
        probe="P10",
        confusable_with=("changed-logprobs",),
        remedy="Pass the engine's logprobs on as they came (verl: rollout.calculate_log_probs=True; TRL: "
        "vllm_importance_sampling_correction=True) and keep recomputed ones as old_logprobs beside them.",
        source="verl docs, rollout_corr; trl#4159",
    ),
    CauseEntry(
        "R2", "changed-logprobs", "record", "The record is changed on its way to the trainer",
        "A bound or a 16-bit buffer stands between engine and loss: tokens of low probability lose their ratio.",
        needs=("copies clamped | copies cast | copies changed",),
        may=RECORD_GAP,
        probe="P10",
        confusable_with=("recomputed-logprobs",),
        remedy="Keep rollout logprobs in float32, unclamped, from the engine's output to the loss.",
        source="rltop: backend/join/copies.py",
    ),
    CauseEntry(
        "H1", "retokenised", "record", "Answers were turned into text and tokenised anew",
        "The trainer's tokens are not those that were sampled: isolated tokens have catastrophic ratios, the rest of "
        "the sequence is conditioned on another history.",
        needs=("join retokenised",),
        may=(*RECORD_GAP, "join unjoined", "mask unsampled"),
        probe="P10",
        remedy="Hand on token ids, never text: return_token_ids=true, or /inference/v1/generate, in every turn.",
        source="trl#5224, rllm#272, rllm#816, sglang#26555, vLLM blog 2025-10-22",
    ),
    CauseEntry(
        "H2", "other-prompt", "record", "Trainer and engine have different prompts",
        "The first tokens of every answer have the largest gap: a second BOS or another chat template stands before "
        "them on one side.",
        needs=("join other_prompt",),
        may=(*RECORD_GAP, "join unjoined"),
        probe="P10",
        confusable_with=("packing",),
        remedy="Send prompt ids instead of text; with text add_special_tokens=False where the template already has "
        "BOS.",
        source="trl#3853, vllm#16976, vllm#55288",
    ),
    CauseEntry(
        "H3", "end-of-sequence", "record", "The end of answers is not what was sampled",
        "Last tokens are in the loss that the engine cut, appended or named otherwise: EOS learns from noise.",
        needs=("join cut",),
        may=("mask unsampled", "position grows", "position step", "floor above", "mean_ratio above",
             "mean_ratio below"),
        probe="P10",
        remedy="Train on the ids exactly as emitted; give vLLM all EOS ids (stop_token_ids); no stop strings.",
        source="trl#7039, vllm#28185, open-instruct#1041, OpenRLHF#238",
    ),
    CauseEntry(
        "H4", "filtered-answers", "record", "Answers are dropped for how they ended",
        "What is left is no fair sample: the mean ratio is off 1 without anything wrong in the record, and long "
        "answers are never learned from.",
        needs=("truncation many", "mean_ratio above | mean_ratio below"),
        may=("sign positive", "sign too_negative"),
        against=("floor above",),
        probe="P10",
        remedy="Hand rltop all sampled tokens before any filter; mask overlong answers in the loss instead of "
        "dropping them, or raise max_tokens.",
        source="optional stopping: a martingale ends at selection",
    ),
    CauseEntry(
        "I5", "loss-over-unsampled", "record", "Tokens are in the loss that no engine sampled",
        "Prompts, tool output or padding are trained on with logprobs that belong to nothing.",
        needs=("mask unsampled",),
        may=(*RECORD_GAP, "join unjoined", "record zeros", "copies zero_filled", "copies padded"),
        probe="P10",
        confusable_with=("padded-logprobs",),
        remedy="Hand the mask of sampled tokens through to the loss and to TrainerCollector.sequences(mask=...).",
        source="vime#70, rllm#816",
    ),
    CauseEntry(
        "R3", "rows-without-rollouts", "record", "Rows can't be found among the rollouts",
        "What is trained on was not seen being sampled: nothing can be said of it, and it may not be what was sampled.",
        needs=("join unjoined",),
        may=("mask unsampled",),
        probe="P10",
        confusable_with=("retokenised", "other-prompt", "loss-over-unsampled"),
        remedy="Look at the reasons in `rltop status --json` (steps, join); have all engines started with RLTOP_RUN.",
        source="rltop: backend/join/reasons.py",
    ),
    CauseEntry(
        "R4", "no-logprobs", "record", "Engines record no logprobs",
        "There is no record of what was sampled from: importance weights are made of the trainer's word alone.",
        needs=("copies unrecorded",),
        may=("engine_gap outlier",),
        probe="P11",
        remedy='Ask for them: SamplingParams(logprobs=0), or "logprobs": 0 in /v1/completions.',
        source="vLLM: SamplingParams.logprobs",
    ),
)  # fmt: skip
