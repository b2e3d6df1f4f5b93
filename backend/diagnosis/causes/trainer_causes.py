"""Causes in the trainer, its configuration and the objective."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, RECORD_GAP, CauseEntry

_LATER = ("trend jump", "trend ramp")

TRAINER: tuple[CauseEntry, ...] = (
    CauseEntry(
        "G1", "rope-config", "trainer", "Positions are encoded differently (RoPE, YaRN)",
        "A scale or a factor of the position encoding differs: a gap from the first step on that often grows with "
        "the position.",
        needs=("floor above",),
        may=("position grows", "turn_gap later_worse", *GAP),
        against=(*_LATER, "repeat differs"),
        probe="P13",
        confusable_with=("bad-export", "attention-kernel", "rope-in-bf16"),
        remedy="Compare rope_scaling, rope_theta and partial_rotary_factor of both configurations, and their cos and "
        "sin tables.",
        source="prime-rl#2802, nemo#869, vllm#27722",
    ),
    CauseEntry(
        "G2", "rope-in-bf16", "trainer", "The trainer's position encoding is in bfloat16",
        "inv_freq was cast with the model: phases are wrong in proportion to the position, up to a half turn at 4,096.",
        needs=("position grows", "floor rounding | floor above"),
        may=("turn_gap later_worse", *GAP),
        against=(*_LATER, "repeat differs"),
        probe="P13",
        confusable_with=("rope-config",),
        remedy="Keep buffers in float32 (FSDP: buffer_dtype=float32; no model.to(bfloat16) over rotary_emb.inv_freq).",
        source="modalities#462, automodel#2549, transformers#25681",
    ),
    CauseEntry(
        "G3", "packing", "trainer", "Packed sequences see each other, or have wrong positions",
        "The logprob of a token depends on the rest of its pack: the starts of sequences are wrong.",
        needs=("position falls", "floor above"),
        may=("repeat differs", "turn_gap first_worse", *GAP),
        against=_LATER,
        probe="P9",
        confusable_with=("other-prompt", "dropout"),
        remedy='Pass position_ids and cu_seqlens (attn_implementation="flash_attention_2"); check one row packed '
        "against alone.",
        source="trl#6800, trl#6819, trl#5785",
    ),
    CauseEntry(
        "G4", "attention-window", "trainer", "Attention reaches farther on one side",
        "A sliding window or a length limit differs: no gap up to it, a gap beyond it.",
        needs=("position step",),
        may=("floor above", "floor rounding", "turn_gap later_worse", *GAP),
        against=_LATER,
        probe="P13",
        remedy="Use the same sliding_window, max_model_len and sparse-attention index on both sides.",
        source="vllm#48305",
    ),
    CauseEntry(
        "H6", "turn-context", "trainer", "Later turns are scored in another context than they were sampled in",
        "Only later turns have a gap: what lies between turns differs on one side, in its text (template, tool output, "
        "dropped reasoning), attention mask or positions.",
        needs=("turn_gap later_worse=alone",),
        may=RECORD_GAP,
        against=("join other_prompt",),
        probe="P10",
        confusable_with=("stale-prefix-cache", "rope-config", "attention-window"),
        remedy="Compare a row's ids, attention mask and positions with the engine's prompt of its second turn; mask "
        "tool output out of the loss, never out of the attention.",
        source="TimeSearch-R#7, slime#2288, ART#726",
    ),
    CauseEntry(
        "H5", "multimodal-input", "trainer", "Images are preprocessed differently",
        "Resizing or patching differs: prompts with images are wrong, others not.",
        needs=("floor above",),
        may=("turn_gap later_worse", "turn_gap first_worse", *GAP),
        against=(*_LATER, "repeat differs"),
        where=("multimodal is on",),
        probe="P10",
        confusable_with=("bad-export",),
        remedy="Use one processor for both sides; compare hashes of pixel_values.",
        source="prime-rl docs/advanced.md",
    ),
    CauseEntry(
        "I1", "dropout", "trainer", "Dropout is on in the trainer",
        "Every forward of the trainer is another model: ratios are noise, and many tokens are clipped from the first "
        "step.",
        needs=("floor above | repeat differs", "repeat differs"),
        # The few ratios that are large enough to make the mean 1 are above the clamp of mean_ratio.
        may=("mean_ratio below", "position grows", "position falls", *_LATER, *GAP),
        against=("mean_ratio above",),
        probe="P9",
        confusable_with=("trainer-batch", "packing"),
        remedy="Set attention_dropout and hidden_dropout to 0 (Megatron: --attention-dropout 0 --hidden-dropout 0); "
        "model.eval() when only logprobs are computed.",
        source="reef#536, trl#3234",
    ),
    CauseEntry(
        "I2", "trainer-batch", "trainer", "The trainer's logprobs depend on its micro-batches",
        "Old and current logprobs of equal weights differ: ratios differ from 1 with nothing stale.",
        needs=("repeat differs",),
        may=("floor rounding", "tail heavy"),
        against=("floor above",),
        probe="P9",
        confusable_with=("dropout",),
        remedy="Equal micro-batches and packing for old and current logprobs.",
        source="NeMo dtensor-tp-accuracy, verl#2996, verl#6280",
    ),
    CauseEntry(
        "I3", "lora-merge", "trainer", "Adapters are merged with rounding, or not applied",
        "Engines sample from a merge rounded to bfloat16, or from the base model: the gap grows from 0 with the "
        "adapter.",
        needs=("floor above", "trend ramp"),
        may=("fit frozen", *GAP),
        where=("lora is on",),
        probe="P5",
        confusable_with=("never-updated", "partial-update"),
        remedy="Send the adapter itself, or merge in float32; never unmerge in bfloat16.",
        source="automodel#3845, nemo#3696, trl#6688, skyrl#1776",
    ),
    CauseEntry(
        "I4", "normaliser", "trainer", "The trainer's softmax covers other logits",
        "Padded vocabulary, a logit scale or a soft cap on one side: all logprobs are shifted to one side.",
        needs=("one_sided negative | one_sided positive",),
        may=("mean_ratio below", "mean_ratio above", "sign positive", "floor above", *GAP),
        where=("padded_vocabulary is on",),
        probe="P13",
        confusable_with=("truncation-in-record", "truncation-in-trainer", "logprob-over-temperature"),
        remedy="Slice logits to vocab_size, and apply logit scale and soft cap as the model's configuration says.",
        source="marin#2458",
    ),
    CauseEntry(
        "I6", "truncation-in-trainer", "trainer", "The trainer filters by top-p, rollout logprobs do not",
        "Kept tokens are likelier in the trainer than in the rollout: every ratio is above 1.",
        needs=("one_sided positive",),
        may=("mean_ratio above", "sign positive", "floor above", "nll_minus_entropy below", *GAP,
             "facts differs=logprobs_mode", "facts shaped=logprobs_mode"),
        against=("mean_ratio below", "slope sharper", "slope flatter"),
        probe="P11",
        confusable_with=("logprob-over-temperature", "normaliser"),
        remedy="--logprobs-mode processed_logprobs, so that rollout logprobs include the filter too.",
        command="rltop set logprobs_mode processed{engines}",
        source="rltop",
    ),
)  # fmt: skip

OBJECTIVE: tuple[CauseEntry, ...] = (
    CauseEntry(
        "J1", "entropy-collapse", "objective", "The policy's entropy collapses",
        "All answers become alike: groups have equal rewards, advantages are 0 and learning stops. The backend is not "
        "the cause; a smaller gap is a consequence.",
        needs=("entropy collapsed",),
        may=("entropy falling", "gradient vanished", "reward falling", "reward rising"),
        probe="lr0",
        remedy="Look at the entropy term's sign and weight, then raise the upper clip bound (clip-higher, 0.28), "
        "lower the learning rate, and start from an earlier checkpoint.",
        source="DAPO, arXiv 2503.14476; LightRFT#53",
    ),
    CauseEntry(
        "J2", "answers-cut", "objective", "Answers reach the length limit",
        "Cut answers are rewarded as wrong, or dropped: length and reward conflict.",
        needs=("truncation many",),
        may=("reward falling", "position grows"),
        probe="lr0",
        remedy="Raise max_tokens, or shape the reward for length (overlong reward shaping).",
        source="DAPO, arXiv 2503.14476",
    ),
    CauseEntry(
        "J6", "entropy-explosion", "objective", "The policy's entropy keeps growing",
        "The policy degrades: answers become noise, and the reward falls.",
        needs=("entropy rising",),
        may=("gradient rising", "gradient spike", "reward falling", "clip high"),
        probe="lr0",
        remedy="Lower the entropy bonus and the learning rate; add a KL term to the reference policy.",
        source="PPO folklore; rltop",
    ),
    CauseEntry(
        "J7", "unstable-gradient", "objective", "Gradients blow up",
        "Single batches move the policy far: reward and entropy jump.",
        needs=("gradient spike | gradient rising",),
        may=("entropy rising", "entropy falling", "reward falling", "clip high", "tail heavy"),
        probe="lr0",
        remedy="Clip the gradient's norm at 1, lower the learning rate, inspect the worst sequences: `rltop worst`.",
        source="PPO, arXiv 1707.06347",
    ),
    CauseEntry(
        "J8", "no-signal", "objective", "No learning signal",
        "The gradient is 0: advantages are 0 (all answers of a group alike), or the loss is masked.",
        needs=("gradient vanished",),
        may=("entropy falling",),
        probe="lr0",
        remedy="Look at rewards within groups; drop groups without spread and sample others (dynamic sampling).",
        source="DAPO, arXiv 2503.14476",
    ),
    CauseEntry(
        "J9", "reward-falls", "objective", "The reward falls, and the backend is fine",
        "Logprobs, weights and engines are correct: inspect the objective, the data and the reward.",
        needs=("reward falling | reward collapsed",),
        may=("gradient rising", "gradient spike", "entropy rising", "entropy falling", "clip high"),
        probe="lr0",
        remedy="Compare with the last good run (`rltop parity GOOD RUN`); check reward functions, data order, "
        "learning rate.",
        source="rltop",
    ),
    CauseEntry(
        "J10", "clipped-updates", "objective", "More tokens are clipped than noise explains, and the backend is fine",
        "Steps are too large for the clip range, or too many per batch.",
        needs=("clip high",),
        may=("gradient rising", "entropy falling", "lag_slope grows"),
        probe="lr0",
        remedy="Lower the learning rate or the number of updates per batch; else widen the clip range.",
        source="PPO, arXiv 1707.06347",
    ),
)  # fmt: skip
