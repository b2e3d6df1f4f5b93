"""Causes in rollout data: copies of logprobs, tokens, the join with rows."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import RECORD_GAP, CauseEntry, Variant

RECORD: tuple[CauseEntry, ...] = (
    CauseEntry(
        "A12", "shifted-logprobs", "record", "Logprobs are shifted against their tokens",
        "Each token is trained with the logprob of its neighbour: ratios are noise, and clipping discards the "
        "signal.",
        needs=("copies shifted | alignment shifted",),
        may=RECORD_GAP,
        probe="P10",
        remedy="Slice logits and labels alike (logits[:, :-1] against ids[:, 1:]), and assert len(ids) == "
        "len(logprobs) for each sequence where rollouts are packed.",
        source="prime-rl#1525, prime-rl#606, ms-swift#8196, verl#5115",
    ),
    CauseEntry(
        "A13", "padded-logprobs", "record", "Missing logprobs are filled in",
        "0.0 or -9999 replaces logprobs that were not recorded: those tokens get ratios near 0 or unbounded ones.",
        needs=("copies zero_filled | copies padded | record zeros | record fillers",),
        against=("record broken",),
        may=(*RECORD_GAP, "mask unsampled"),
        probe="P10",
        remedy="Do not pad: mask tokens that no engine sampled out of the loss (tool output, an appended EOS), "
        "and request logprobs=0 for all others.",
        source="vime#70, rllm#816, open-instruct#1041; vLLM's completions API clamps at -9999",
    ),
    CauseEntry(
        "R1", "recomputed-logprobs", "record", "The trainer's copies of rollout logprobs are recomputed",
        "The ratio uses the trainer's own logprobs and not the sampler's: differences between the two are invisible "
        "in the loss, and uncorrected.",
        needs=("copies recomputed",),
        may=("engine_gap outlier",),
        probe="P10",
        confusable_with=("changed-logprobs",),
        remedy="Pass the engine's logprobs on unchanged (verl: rollout.calculate_log_probs=True; TRL: "
        "vllm_importance_sampling_correction=True) and keep recomputed ones separately, as old_logprobs.",
        source="verl docs, rollout_corr; trl#4159",
    ),
    CauseEntry(
        "R2", "changed-logprobs", "record", "Rollout logprobs are changed on the way to the trainer",
        "A clamp or a 16-bit buffer between engine and loss: tokens of low probability get wrong ratios.",
        needs=(
            "copies clamped | copies cast | copies changed | copies other_row | copies likeliest | copies scaled",
        ),
        may=RECORD_GAP,
        probe="P10",
        confusable_with=("recomputed-logprobs",),
        remedy="Keep rollout logprobs in float32, unclamped, from the engine's output to the loss.",
        variants=(
            Variant(
                "copies likeliest",
                "The copies are never below the engine's logprobs: they are those of the likeliest token at each "
                "position, not of the sampled one. Ratios of unlikely tokens are far too small.",
                "Look up the sampled token's entry in each position's logprobs, and not the first one; or request "
                "logprobs=0, which returns the sampled token alone.",
            ),
            Variant(
                "copies other_row",
                "Rows carry the logprobs of other rows of their step: both were put into different orders.",
                "Shuffle, sort and gather logprobs with the same indices as their rows, and key both by request id.",
            ),
            Variant(
                "copies scaled",
                "The copies are the engine's logprobs times one number, such as 1 / temperature, which is no "
                "distribution.",
                "Pass logprobs on as the engine returns them: processed_logprobs include the temperature already.",
            ),
            Variant(
                "copies cast",
                "A buffer of 16 bits, or a number format with few decimals, rounds the logprobs between engine and "
                "loss.",
                "Keep rollout logprobs in float32 from the engine's output to the loss; in JSON, with all digits.",
            ),
            Variant(
                "copies clamped",
                "Low logprobs are raised to a bound between engine and loss: unlikely tokens get too small ratios.",
                "Do not clamp rollout logprobs; clip the ratio in the loss instead.",
            ),
            Variant(
                "copies changed",
                "Some values are not the engine's, by no rule that rltop knows: tokens get wrong ratios.",
                "Compare `rltop worst` with the engine's outputs, and pass the values on unchanged, in float32.",
            ),
        ),
        source="rltop: backend/join/copies.py",
    ),
    CauseEntry(
        "H1", "retokenised", "record", "Answers are converted to text and retokenised",
        "The trainer's tokens are not the sampled ones: isolated tokens have extreme ratios, and the rest of the "
        "sequence has another context.",
        needs=("join retokenised",),
        may=(*RECORD_GAP, "join unjoined", "mask unsampled"),
        probe="P10",
        remedy="Pass on token ids, never text: return_token_ids=true, or /inference/v1/generate, in every turn.",
        source="trl#5224, rllm#272, rllm#816, sglang#26555, vLLM blog 2025-10-22",
    ),
    CauseEntry(
        "H2", "other-prompt", "record", "Trainer and engine have different prompts",
        "The trainer scores answers in another context than the one that they were sampled in.",
        needs=("join other_prompt",),
        may=(*RECORD_GAP, "join unjoined", "mask unsampled"),
        probe="P10",
        confusable_with=("packing",),
        remedy="Send prompt ids instead of text; with text add_special_tokens=False if the template already has "
        "BOS.",
        variants=(
            Variant(
                "join other_prompt=prompt_of_other_row",
                "Answers stand beside the prompts of other rows of their step: both were put into different orders.",
                "Gather, shuffle and repeat prompts and answers with the same indices (over ranks too), and key both "
                "by request id.",
            ),
            Variant(
                "join other_prompt=engine_lacks",
                "The engine's prompt lacks a run of tokens that the trainer's row has, such as the reasoning of an "
                "earlier turn that the chat template drops, or a tool's output.",
                "Send the tokens of all earlier turns back unchanged (token in, token out), or train on the prompt "
                "that the engine had: split the row at the turn whose prompt changes.",
            ),
            Variant(
                "join other_prompt=trainer_lacks",
                "The trainer's prompt lacks a run of tokens that the engine's has, such as a system prompt, tool "
                "definitions or images.",
                "Build the trainer's rows from the prompt ids that the engine returns (prompt_token_ids).",
            ),
            Variant(
                "join other_prompt=trainer_has_end",
                "The trainer has only the end of the prompt: its beginning was cut.",
                "Raise the trainer's maximal prompt length, or drop longer prompts before they are sampled.",
            ),
            Variant(
                "join other_prompt=engine_has_end",
                "The engine had only the end of the prompt: its beginning was cut.",
                "Raise max_model_len or truncate_prompt_tokens of the engine, or drop longer prompts before they are "
                "sampled.",
            ),
        ),
        source="trl#3853, vllm#16976, vllm#55288",
    ),
    CauseEntry(
        "H3", "end-of-sequence", "record", "The end of answers differs from what was sampled",
        "The loss includes last tokens that the engine cut, appended or replaced: EOS learns from noise.",
        needs=("join cut | join end_lost",),
        may=("mask unsampled", "position grows", "position step", "floor above", "mean_ratio above",
             "mean_ratio below"),
        probe="P10",
        remedy="Train on the ids exactly as emitted; give vLLM all EOS ids (stop_token_ids); no stop strings.",
        variants=(
            Variant(
                "join end_lost",
                "Rows lack the last tokens, with which the engine stopped: the trainer never scores the stop token, "
                "and the policy is not trained to end its answers.",
                "Train on the ids exactly as emitted, with the stop token (vLLM's token_ids, not its text), and "
                "include it in the mask.",
            ),
        ),
        source="trl#7039, vllm#28185, open-instruct#1041, OpenRLHF#238",
    ),
    CauseEntry(
        "H4", "filtered-answers", "record", "Answers are dropped by how they ended",
        "The rest is a biased sample: the mean ratio differs from 1 although rollout logprobs are correct, and long "
        "answers are never learned from.",
        needs=("truncation many", "mean_ratio above | mean_ratio below"),
        may=("sign positive", "sign too_negative"),
        against=("floor above",),
        probe="P10",
        remedy="Pass all sampled tokens to rltop before any filter; mask overlong answers in the loss instead of "
        "dropping them, or raise max_tokens.",
        source="optional stopping: a martingale ends at selection",
    ),
    CauseEntry(
        "I5", "loss-over-unsampled", "record", "The loss includes tokens that no engine sampled",
        "Prompts, tool output or padding are trained on, with meaningless logprobs.",
        needs=("mask unsampled",),
        may=(*RECORD_GAP, "join unjoined", "record zeros", "copies zero_filled", "copies padded"),
        probe="P10",
        confusable_with=("padded-logprobs",),
        remedy="Pass the mask of sampled tokens through to the loss and to TrainerCollector.sequences(mask=...).",
        source="vime#70, rllm#816",
    ),
    CauseEntry(
        "R3", "rows-without-rollouts", "record", "Rows have no matching rollout",
        "Trained rows were not observed as rollouts, so they can't be checked and may differ from what was sampled.",
        needs=("join unjoined",),
        may=("mask unsampled",),
        probe="P10",
        confusable_with=("retokenised", "other-prompt", "loss-over-unsampled"),
        remedy="See the reasons in `rltop status --json` (steps, join); "
        "`rltop doctor` names engines that are not attached, and other values of RLTOP_HOME.",
        source="rltop: backend/join/reasons.py",
    ),
    CauseEntry(
        "R4", "no-logprobs", "record", "Engines return no logprobs",
        "The distribution that was sampled from is unknown: importance weights use the trainer's logprobs alone.",
        needs=("copies unrecorded",),
        may=("engine_gap outlier",),
        probe="P11",
        remedy='Request them: SamplingParams(logprobs=0), or "logprobs": 0 in /v1/completions.',
        source="vLLM: SamplingParams.logprobs",
    ),
)  # fmt: skip
