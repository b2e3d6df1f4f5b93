"""Causes in the inference path: caches, kernels and precision, mixtures of experts, quantisation."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, CauseEntry

_CONTEXT = tuple(symptom for symptom in GAP if symptom != "fit frozen")
"""Of a stale context: it never makes a gap as large as the trainer's whole path."""
_STALE = (*_CONTEXT, "turn_gap later_worse", "trend jump", "trend ramp", "prefill_rescore differ")
_HITS = ("floor above | cache_salt stale", "cache_gap hit_worse | cache_salt stale")
_FRESH = ("cache_salt fresh", "prefill_rescore match")
"""Probes found that engines compute what they recorded without the cache, too."""
_NUMERIC = (*GAP, "turn_gap later_worse", "engine_gap outlier")
_FROM_START = ("trend jump", "trend ramp", "repeat differs")

CACHES: tuple[CauseEntry, ...] = (
    CauseEntry(
        "C1", "stale-prefix-cache", "inference path", "The prefix cache survives weight updates",
        "Prompts use keys and values computed by older weights: engines sample from a policy that never existed, "
        "while gap, clip rate and reward look normal.",
        needs=_HITS,
        may=_STALE,
        against=("repeat differs", *_FRESH),
        where=("prefix_caching is on",),
        probe="P4",
        confusable_with=("partial-update", "refused-reset", "stale-connector", "kept-kv", "prefix-numerics"),
        remedy="Clear it at each update: pause_generation(clear_cache=True), /reset_prefix_cache, or cache_salt = "
        "policy version. For now: `rltop flush`.",
        command="rltop set update_clears_cache on{engines}",
        source="nemo#4018, nemo#3152, vllm#9744, lmdeploy#4917; rl-on-cpu",
    ),
    CauseEntry(
        "C2", "kept-kv", "inference path", "Running requests keep stale KV across updates",
        "Tokens after an update come from new weights with an old context: a small gap, by design of keep without "
        "clear_cache.",
        needs=("floor above", "in_flight after_worse"),
        may=("prefill_rescore differ", *_CONTEXT, "turn_gap later_worse", "trend jump", "trend ramp", "tail heavy"),
        against=("cache_gap hit_worse", "in_flight after_worse=elsewhere too"),
        probe="P1",
        confusable_with=("stale-prefix-cache", "mislabelled-version"),
        remedy='Recompute running requests: pause_generation(mode="keep", clear_cache=True). It costs a '
        "prefill of each at every update, and so some lag.",
        command="rltop set update_clears_cache on{engines}",
        source="nemo#1455, PipelineRL#19, skyrl#979; rl-on-cpu",
    ),
    CauseEntry(
        "C2b", "refused-reset", "inference path", "Resets of the prefix cache are refused silently",
        "reset_prefix_cache fails while requests run: it is configured, without effect.",
        needs=_HITS,
        may=_STALE,
        against=_FRESH,
        where=("cache_reset is refused",),
        probe="P4",
        confusable_with=("stale-prefix-cache",),
        remedy='Pause first, or reset_running_requests=true; check for "Successfully reset prefix cache" at each '
        "update.",
        command="rltop set update_clears_cache on{engines}",
        source="nemo#3839",
    ),
    CauseEntry(
        "C3", "stale-connector", "inference path", "An external KV cache survives weight updates",
        "LMCache, Mooncake or offloaded blocks are keyed by tokens alone; the local reset does not clear them.",
        needs=_HITS,
        may=_STALE,
        against=_FRESH,
        where=("kv_connector not none",),
        probe="P4",
        confusable_with=("stale-prefix-cache",),
        remedy="vLLM 0.25 on resets it with the pause; before: reset_connector=true, or cache_salt = policy version.",
        source="vllm#42695",
    ),
    CauseEntry(
        "C4", "lora-cache", "inference path", "Cached prefixes of an adapter outlive its reload",
        "The block hash contains the adapter's name, not its weights.",
        needs=_HITS,
        may=_STALE,
        against=_FRESH,
        where=("lora is on",),
        probe="P4",
        confusable_with=("stale-prefix-cache",),
        remedy="A new adapter name or path for each version, or cache_salt = policy version.",
        command="rltop set update_clears_cache on{engines}",
        source="vllm#42125, vllm#48352",
    ),
    CauseEntry(
        "C5", "multimodal-cache", "inference path", "Cached images outlive the encoder that computed them",
        "Prompts with images are wrong after updates of the vision tower.",
        needs=("floor above", "trend jump"),
        may=(*GAP, "cache_gap hit_worse"),
        against=("cache_gap hit_worse=alone",),
        where=("multimodal is on",),
        probe="P4",
        confusable_with=("stale-prefix-cache",),
        remedy="/reset_encoder_cache and /reset_mm_cache at each update; a pause with clear_cache does both.",
        source="vllm#44939, vllm#46125",
    ),
    CauseEntry(
        "C6", "prefix-numerics", "inference path", "Prompts with a cached prefix are computed with other tiles",
        "Hits differ from misses by rounding; hybrid models may be wrong from the first token.",
        needs=("cache_gap hit_worse",),
        may=("prefill_rescore differ", "floor rounding", "floor above", "tail heavy", "position falls"),
        against=("trend jump", "trend ramp", "cache_salt stale"),
        where=("prefix_caching is on",),
        probe="P4",
        confusable_with=("stale-prefix-cache",),
        remedy="--no-enable-prefix-caching on hybrid models; on dense ones it is noise.",
        command="rltop set prefix_caching off{engines}",
        source="vllm#45699, prime-rl#2808",
    ),
)  # fmt: skip

NUMERICS: tuple[CauseEntry, ...] = (
    CauseEntry(
        "D1", "other-rounding", "inference path", "Engine and trainer round differently (dtype or kernels)",
        "Logits differ in their last digits: a symmetric gap without bias, which clips some tokens needlessly.",
        needs=("floor rounding | facts differs=dtype",),
        may=(*_NUMERIC, "facts differs=head_dtype", "logit_lattice engine_coarse", "logit_lattice trainer_coarse"),
        against=_FROM_START,
        probe="P8",
        confusable_with=("head-precision", "half-precision", "attention-kernel", "compiled-kernels", "op-definitions",
                         "batch-dependence", "parallel-sums"),
        remedy="Compute in one dtype on both sides (--dtype float32 or the trainer in bfloat16) and with the same "
        "kernels; truncated importance sampling corrects the rest.",
        source="Fast-LLM#525, verl-omni#637; rl-on-cpu",
    ),
    CauseEntry(
        "D2", "head-precision", "inference path", "The head is in float32 on one side only",
        "Logits of one side are rounded to 16 bits, 0.02 to 0.04 nats a token: the main reason for clips on long "
        "answers.",
        needs=("facts differs=head_dtype | logit_lattice engine_coarse | logit_lattice trainer_coarse",),
        may=("floor rounding", "floor above=16 bits", *_NUMERIC),  # a larger gap has another cause, too
        against=("facts differs=dtype", *_FROM_START),
        probe="P12",
        confusable_with=("other-rounding", "half-precision"),
        remedy="Use the same on both sides: --hf-overrides '{\"head_dtype\": \"float32\"}' (vLLM 0.28 on) and a "
        "float32 head in the trainer; matching counts more than float32.",
        command="rltop set lm_head_fp32 {head}{engines}",
        source="vllm#48390, nemo#3936, trl#4303, MiniMax-M1, ScaleRL; rl-on-cpu",
    ),
    CauseEntry(
        "D3", "half-precision", "inference path", "One side computes in float16, the other in bfloat16",
        "8 against 11 bits: the worst of both.",
        needs=("facts differs=dtype",),
        may=("floor rounding", *_NUMERIC, "facts differs=head_dtype"),
        against=_FROM_START,
        where=("dtype is float16",),
        probe="P8",
        confusable_with=("other-rounding", "head-precision"),
        remedy="float16 on both sides with loss scaling, or bfloat16 on both: --dtype.",
        source="arXiv 2510.26788, Precision-RL#10",
    ),
    CauseEntry(
        "D4", "attention-kernel", "inference path", "Attention uses another kernel, or lacks a feature",
        "Missing sinks, soft caps or windows on one side cause a large gap from the start; another backend alone "
        "causes rounding.",
        needs=("facts differs=attention_backend | floor above",),
        may=("floor rounding", *_NUMERIC),
        against=_FROM_START,
        probe="P8",
        confusable_with=("bad-export", "rope-config", "other-rounding", "op-definitions"),
        remedy="Use the same family of kernels on both sides (--attention-backend), with support for the "
        "model's sinks.",
        source="miles#1500, verl#3894, vllm#28561, prime-rl#3424",
    ),
    CauseEntry(
        "D5", "cascade-attention", "inference path", "Cascade attention on a GPU where it is wrong",
        "Groups with a long shared prefix have spikes, more in longer answers (vLLM up to 0.30, not on Hopper).",
        needs=("tail heavy", "floor rounding | floor above", "batch_load grows | position grows"),
        may=("position grows", "batch_load grows"),
        against=_FROM_START,
        where=("cascade_attention is on",),
        probe="P8",
        confusable_with=("batch-dependence",),
        remedy="--disable-cascade-attn.",
        source="verl FAQ, vllm#22103, flash-attention#87, vllm#15243",
    ),
    CauseEntry(
        "D6", "compiled-kernels", "inference path", "Compiled or captured kernels round differently",
        "Fused operations omit casts that the trainer applies.",
        needs=("facts differs=enforce_eager | floor rounding",),
        may=_NUMERIC,
        against=(*_FROM_START, "facts differs=dtype"),
        where=("device has cuda",),
        probe="P8",
        confusable_with=("other-rounding",),
        remedy='compilation_config={"backend": "eager"} keeps CUDA graphs; --enforce-eager to be sure.',
        source="NeMo adding-new-models, pytorch#158699, verl#2953",
    ),
    CauseEntry(
        "D7", "chunked-prefill", "inference path", "Chunks of a prefill lose their state",
        "On hybrid models prompts longer than a chunk are wrong from the first token on.",
        needs=("tail heavy", "floor above"),
        may=("position falls", "position grows", *GAP),
        against=_FROM_START,
        where=("hybrid is on",),
        probe="P8",
        confusable_with=("hybrid-kernels",),
        remedy="--no-enable-chunked-prefill or a larger --max-num-batched-tokens; vLLM 0.17 on.",
        source="nemo#2100, nemo#2141, nemo#2128",
    ),
    CauseEntry(
        "D8", "batch-dependence", "inference path", "Logprobs depend on what else is in the batch",
        "Kernels are chosen by the batch's shape: the same tokens get other logprobs under load.",
        needs=("batch_load grows | repeat_engine differs",),
        may=("floor rounding", "tail heavy", "engine_gap outlier", "facts differs=dtype"),
        against=("floor above",),
        probe="P7",
        confusable_with=("async-scheduling", "other-rounding", "cascade-attention"),
        remedy="VLLM_BATCH_INVARIANT=1 with VLLM_USE_FLASHINFER_SAMPLER=0; it costs speed.",
        source="thinkingmachines.ai, vllm#51187, vllm#47069, verl#7688",
    ),
    CauseEntry(
        "D9", "parallel-sums", "inference path", "Sums over devices are computed in another order",
        "Tensor or expert parallelism rounds differently from the trainer's sharding.",
        needs=("floor rounding | facts differs=parallel",),
        may=(*_NUMERIC, "trend ramp"),
        against=("repeat differs", "facts differs=dtype"),
        where=("parallel has tensor 2|tensor 4|tensor 8",),
        probe="P8",
        confusable_with=("other-rounding",),
        remedy="The same tensor parallelism on all engines, and equal micro-batches for training and for logprobs.",
        source="NeMo dtensor-tp-accuracy, automodel#1839, arXiv 2511.17826",
    ),
    CauseEntry(
        "D10", "op-definitions", "inference path", "An operation is defined differently (norm, rope, router)",
        "Casts in RMSNorm, rope or the router are in another order than in the trainer.",
        needs=("floor rounding",),
        may=_NUMERIC,
        against=(*_FROM_START, "facts differs=dtype"),
        where=("model_code is other",),
        probe="P13",
        confusable_with=("other-rounding", "bad-export", "attention-kernel"),
        remedy="Use vLLM's own operations in the trainer, or one model definition for both.",
        source="verl-omni#637, UniRL#430",
    ),
    CauseEntry(
        "D11", "hybrid-kernels", "inference path", "Decode and prefill of a recurrent layer differ",
        "Mamba or GDN states drift from what a prefill computes, slowly, with the position.",
        needs=("floor above | floor rounding",),
        may=("position grows", "tail heavy", *GAP),
        against=_FROM_START,
        where=("hybrid is on",),
        probe="P13",
        confusable_with=("chunked-prefill",),
        remedy="vLLM 0.17 on, and the state cache in float32 (--mamba-ssm-cache-dtype float32).",
        source="nemo#2141, vllm#42259, vllm#55627",
    ),
)  # fmt: skip

EXPERTS: tuple[CauseEntry, ...] = (
    CauseEntry(
        "E1", "routing-flips", "inference path", "Tokens are routed to other experts",
        "Rounding flips near ties in the router: few tokens with an enormous gap, and a mean ratio of 1.",
        needs=("tail heavy", "floor rounding | floor above"),
        may=("position grows", *_NUMERIC),
        against=("repeat differs",),
        where=("moe is on",),
        probe="P8",
        confusable_with=("expert-parallel", "wrong-replay"),
        remedy="Replay the engine's routing in the trainer (enable_return_routed_experts); a float32 router on both "
        "sides.",
        source="arXiv 2510.11370, prime-rl#2808, prime-rl#3543, nemo#2590",
    ),
    CauseEntry(
        "E2", "wrong-replay", "inference path", "Replayed routing differs from the engine's",
        "Routes are dropped, shifted or belong to another request: the gap is as large as without replay.",
        needs=("tail heavy", "floor rounding | floor above"),
        may=("position grows", "position step", *_NUMERIC),
        where=("router_replay is on",),
        probe="P8",
        confusable_with=("routing-flips",),
        remedy="Count the routes of -1 and trace them (NRL_R3_TRACE=1); turn replay off to compare.",
        source="verl#6029, verl#4562, nemo#2963",
    ),
    CauseEntry(
        "E3", "expert-parallel", "inference path", "Expert parallelism combines in a wrong order",
        "Most sequences are wrong, depending on the placement of experts.",
        needs=("tail heavy", "floor above"),
        may=(*GAP, "trend jump"),
        where=("moe is on",),
        probe="P13",
        confusable_with=("routing-flips",),
        remedy="Vary the expert parallelism of engine and trainer separately; --moe-backend triton.",
        source="nemo#4243",
    ),
)  # fmt: skip

QUANTISED: tuple[CauseEntry, ...] = (
    CauseEntry(
        "F1", "fp8-weights", "inference path", "Engines sample from FP8 weights",
        "The sampled policy is the trained one plus quantisation noise: a gap that is flat over steps and engines.",
        needs=("facts differs=quantization | floor above | floor rounding",),
        may=(*_NUMERIC, "facts differs=dtype"),
        against=_FROM_START,
        where=("quantization has fp8",),
        probe="P8",
        confusable_with=("broken-refit",),
        remedy="Truncated importance sampling (C = 2); keep first and last layers, router and head in bfloat16; or "
        "train in FP8 too.",
        source="miles#1678, verl fp8.md, arXiv 2601.18150",
    ),
    CauseEntry(
        "F2", "fp8-kv", "inference path", "Keys and values are cached in FP8",
        "Decode reads quantised values that prefill does not; with FlashAttention 3 the gap steps up at position 97.",
        needs=("floor rounding | floor above | position step",),
        may=("position step", "position grows", *_NUMERIC),
        where=("kv_cache_dtype has fp8",),
        probe="P1",
        remedy="--kv-cache-dtype auto; else recompute its scales at each update.",
        source="vllm#54035, flash-attention#184, sglang#25790",
    ),
    CauseEntry(
        "F3", "int4-weights", "inference path", "Engines sample from 4-bit weights",
        "As with FP8, and larger.",
        needs=("facts differs=quantization | floor above",),
        may=(*_NUMERIC, "facts differs=dtype"),
        against=_FROM_START,
        where=("quantization has awq|gptq|nvfp4|int4|w4a|bitsandbytes",),
        probe="P8",
        confusable_with=("broken-refit",),
        remedy="Train with quantisation in the loop, or sample from 8 bits.",
        source="NeMo test suites",
    ),
    CauseEntry(
        "F4", "broken-refit", "inference path", "Quantised weights are wrong after an update",
        "Scales or packing are not recomputed: like quantisation noise, but many times larger, from the first update "
        "on.",
        needs=("floor above", "trend jump"),
        may=(*GAP, "facts differs=quantization"),
        where=("quantization not none",),
        probe="P5",
        confusable_with=("fp8-weights", "int4-weights"),
        remedy="Reload layerwise (initialize_layerwise_reload, finalize_layerwise_reload); compare a loaded with an "
        "updated engine.",
        source="verl#7986, verl#5459, NeMo qwen3-5.md",
    ),
)  # fmt: skip

PATH: tuple[CauseEntry, ...] = CACHES + NUMERICS + EXPERTS + QUANTISED
