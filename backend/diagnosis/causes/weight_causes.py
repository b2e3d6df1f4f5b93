"""Causes in weight updates: missing, partial, or with a wrong version."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, RECORD_GAP, CauseEntry, Variant

_LATER = ("trend jump", "trend ramp")

_OTHER_FITS = ("fit partial", "fit late", "fit rounding", "fit constant")
_WHOLE = tuple(symptom for symptom in GAP if symptom not in _OTHER_FITS)
"""Symptoms of weights that are old as a whole."""

_UPDATED = ("weight_digest agree", "weight_digest updated", "refit agree")
"""Probes found that updates change every weight."""

_EQUAL = (*_UPDATED, "weight_digest alike", "cross_replica agree", "refit alike")
"""Probes found the same weights on all engines."""

_FIX_UPDATES = (
    "Fix the call that updates the weights (it often depends on a flag such as sleep mode), and assert after each "
    "update that a digest of the weights has changed."
)

WEIGHTS: tuple[CauseEntry, ...] = (
    CauseEntry(
        "B1", "policy-lag", "weights", "Trained tokens are old",
        "Tokens were sampled many versions ago: ratios spread, more is clipped, ESS falls, and each step learns less.",
        needs=("lag high",),
        may=(*GAP, "lag_slope grows"),
        probe="P6",
        remedy="Bound the age of consumed rollouts, queue included (prime-rl: max_off_policy_steps; verl: "
        "staleness_threshold), or correct for it: truncated importance sampling.",
        source="molt#124, prime-rl#2674, prime-rl#3310; rl-on-cpu",
    ),
    CauseEntry(
        "B2", "never-updated", "weights", "No engine ever receives new weights",
        "Updates are called, or counted, without effect: engines keep sampling from the first policy, and the gap "
        "grows with every step.",
        needs=("fit frozen | calibration flatter | weight_digest not_applied | refit skipped",),
        may=("floor above", "lag high", *GAP, *_LATER, "lag_slope grows"),
        against=("floor at_floor", *_UPDATED),
        all_engines=True,
        probe="P5",
        confusable_with=("cached-reload", "partial-update", "trainer-without-temperature"),
        remedy=_FIX_UPDATES,
        source="trl#5312, verl#4248, OpenRLHF#660",
    ),
    CauseEntry(
        "B2", "stuck-fleet", "weights", "No engine receives new weights any more, as their versions show",
        "The trainer advances while the whole fleet samples from one version: tokens are older with every step.",
        needs=("versions stuck",),
        may=("weight_digest not_applied", "refit skipped", "floor above", "lag high", *GAP, *_LATER, "lag_slope grows"),
        all_engines=True,
        probe="P5",
        confusable_with=("policy-lag",),
        remedy=_FIX_UPDATES,
        source="trl#5312, OpenRLHF#660",
    ),
    CauseEntry(
        "B3", "partial-update", "weights", "Updates leave out part of the weights",
        "Tensors that the loader does not know, or the trainer does not send, keep their old values: engines sample "
        "from a model that was never trained.",
        needs=("floor above | weight_digest partial | refit head | refit partial",),
        proof=("fit partial | weight_digest partial | refit head | refit partial",),
        may=("weight_digest not_the_trainer", *GAP, *_LATER),
        against=("repeat differs", *_UPDATED),
        probe="P5",
        confusable_with=("stale-prefix-cache", "tied-embeddings", "bad-export", "layout-corruption", "derived-tensors",
                         "never-updated", "rope-config"),
        remedy="Send every tensor, compare the names that load_weights returns with those sent, and "
        "bracket each update with start_weight_update and finish_weight_update.",
        source="prime-rl#2714, trl#5269, vllm#48312, nemo#3403",
    ),
    CauseEntry(
        "B4", "layout-corruption", "weights", "A second load writes weights in the wrong layout",
        "Weights that were repacked after the first load are overwritten in checkpoint layout: gibberish after the "
        "first update.",
        needs=("floor above", "trend jump"),
        may=("weight_digest not_the_trainer", "refit differs", *GAP, *_LATER, "mean_ratio below"),
        against=("weight_digest agree", "refit agree"),
        where=("moe is on",),
        probe="P5",
        confusable_with=("partial-update",),
        remedy="Bracket each update once with initialize_layerwise_reload and finalize_layerwise_reload "
        "(/start_weight_update, /finish_weight_update); --moe-backend triton until then.",
        source="vllm#42821, vllm#42823, vllm#48284, skyrl#1680, verl#7986",
    ),
    CauseEntry(
        "B5", "derived-tensors", "weights", "Tensors derived from the weights keep their old values",
        "CUDA graphs, MLA's projected weights, float32 copies of the head or KV scales are not refreshed: decode is "
        "wrong, prefill right.",
        needs=("floor above", "trend jump | trend ramp"),
        may=(*GAP, *_LATER, "batch_load grows"),
        where=("device has cuda", "enforce_eager is off"),
        probe="P13",
        confusable_with=("partial-update",),
        remedy="--enforce-eager until vLLM is updated (#48251, #52626); refresh such tensors in place (copy_).",
        source="vllm#48941, vllm#48312, prime-rl#3543, Megatron-LM#6723, verl#7455",
    ),
    CauseEntry(
        "B6", "stale-replica", "weights", "An engine misses weight updates, as its version shows",
        "Its rollouts are sampled from weights that grow older with every step: ratios of those sequences are useless, "
        "and most clipped tokens are theirs.",
        needs=("versions stuck",),
        may=("refit skipped", "refit late", "weight_digest differ", "weight_digest not_applied",
             "cross_replica differ", *GAP, *_LATER, "lag behind",
             "lag_slope grows", "engine_gap outlier", "lag high"),
        one_engine=True,
        probe="P3",
        confusable_with=("lying-replica",),
        remedy="Restart the engine from the newest checkpoint or send it the update again; fail loudly where a "
        "worker does not acknowledge, and publish a version only after all have. Until then `rltop pause --engine ID "
        "--for 10m` keeps it from sampling; its requests wait, "
        "and a synchronous trainer waits with them.",
        source="vime#66, vime#329, nemo#3403, vllm#54443; rl-on-cpu",
    ),
    CauseEntry(
        "B6", "lying-replica", "weights", "An engine misses weight updates, and its version hides it",
        "Its version advances while its weights stay the same: its rollouts count as fresh, and are not.",
        # An engine that differs is a place: that its weights are old takes evidence of its own.
        needs=("engine_gap outlier | floor above | weight_digest differ | refit skipped",
               "fit frozen | calibration flatter | weight_digest differ | weight_digest not_applied | refit skipped"),
        may=("floor above", "refit late", "refit differs", "weight_digest not_applied", "cross_replica differ",
             *_WHOLE, *_LATER, "lag_slope grows"),
        against=("versions stuck", "mean_ratio above", *_OTHER_FITS, *_EQUAL),
        one_engine=True,
        probe="P5",
        confusable_with=("stale-replica", "mislabelled-version"),
        remedy="Restart the engine or send the update again; set its version from what its workers acknowledge. "
        "Until then `rltop "
        "pause --engine ID --for 10m` keeps it from sampling; its requests wait, "
        "and a synchronous trainer waits with them.",
        source="nemo#3403, vllm#54443; rl-on-cpu: the label may advance without the weights",
    ),
    CauseEntry(
        "B7", "bad-export", "weights", "Engines receive other weights than the trainer's",
        "A converter or a cast changes them: there is a gap before the first training step.",
        needs=("floor above | weight_digest not_the_trainer | refit scaled | refit cast | refit differs",),
        proof=("weight_digest not_the_trainer | refit scaled | refit cast | refit differs",),
        may=GAP,
        against=("trend jump", "trend ramp", "repeat differs", "weight_digest agree",
                 "refit agree"),
        probe="P5",
        confusable_with=("partial-update", "rope-config", "attention-kernel", "op-definitions"),
        remedy="Load one engine from the original checkpoint and one by a null update (learning rate 0): they must "
        "agree to the bit.",
        source="vime#274, prime-rl#2438, vllm-ascend#15666",
    ),
    CauseEntry(
        "B7", "cast-weights", "weights", "Engines receive the trainer's weights in a lower precision",
        "A cast or a quantised export rounds every update: a constant gap of the size of rounding, which clips some "
        "tokens needlessly.",
        needs=("fit rounding | fit constant",),
        may=("floor above", "floor rounding", "weight_digest not_the_trainer", "trend jump", *GAP),
        against=("repeat differs", "weight_digest agree"),
        probe="P5",
        confusable_with=("late-weights", "other-rounding"),
        remedy="Send weights in the dtype in which the trainer computes, or compute in the engines' dtype on both "
        "sides; look for a cast that was added to the export or the transfer.",
        source="vime#274, Fast-LLM#525",
    ),
    CauseEntry(
        "B7", "weights-lost", "weights", "Engines hold no weights",
        "All tokens are equally likely: the engine samples noise, as after a sleep that dropped its weights, or before "
        "the first load.",
        needs=("record uniform | refit lost",),
        may=(*RECORD_GAP, "reward falling", "truncation many", "join unjoined"),
        probe="P5",
        remedy="Load the weights after wake_up and before the first request (sleep level 2 drops them): wake up "
        "tags=['weights'], send all tensors, then wake up the cache. Drop the rows sampled since.",
        source="trl#5142, vllm#29341",
    ),
    CauseEntry(
        "B8", "update-race", "weights", "Weights are written while engines compute",
        "Running requests see a mixture of two versions: extreme tokens around each update.",
        needs=("floor above", "tail heavy", "in_flight before_worse | in_flight after_worse"),
        may=("refit differs", *GAP, *_LATER, "mean_ratio above", "mean_ratio below"),
        where=("updates_pause is off",),
        probe="P5",
        remedy='Bracket updates with pause_generation(mode="keep") and resume_generation().',
        source="nemo#3839",
    ),
    CauseEntry(
        "B9", "mislabelled-version", "weights", "Tokens carry the wrong version",
        "A request that spans an update has one version for all its tokens: the older ones are corrected for the "
        "wrong policy.",
        needs=("in_flight before_worse | join other_version | refit late",),
        may=("floor above", *GAP, *_LATER),
        probe="P6",
        confusable_with=("lying-replica", "kept-kv"),
        remedy="Take versions per token (CompletionOutput.weight_versions, vLLM 0.32 on) and finish updates with "
        'their version; or drain before each update (mode="wait").',
        variants=(
            Variant(
                "join other_version",
                "Trainer and engine state different policy versions for the same tokens: staleness is measured and "
                "corrected against the wrong policy.",
                "Count versions from the same start and in the same unit on both sides, label each update with the "
                "trainer's version, and take a row's versions from its rollout.",
            ),
        ),
        source="vllm#54443, rllm#622, molt#124, miles#2589",
    ),
    CauseEntry(
        "B9", "late-weights", "weights", "Weights are some versions older than their label",
        "An update is labelled before it is loaded, or engines load the one before: every token is corrected for the "
        "wrong policy, by the same number of versions throughout.",
        needs=("fit late | fit constant",),
        may=("floor above", "trend jump", "engine_gap outlier", *GAP),
        against=("repeat differs", "weight_digest agree"),
        probe="P5",
        confusable_with=("cast-weights", "mislabelled-version"),
        remedy="Finish an update before its version is published, and wait for all workers; compare the version in "
        "which weights were gathered with the label that they are sent under.",
        source="molt#124, vllm#54443; a label set before the load",
    ),
    CauseEntry(
        "B10", "cached-reload", "weights", "Reloading returns the weights of the first load",
        "reload_weights succeeds but reads the path of the first call: nothing changes.",
        needs=("fit frozen | trend ramp | weight_digest not_applied | refit skipped | refit late",),
        may=("floor above", *GAP, *_LATER, "lag high"),
        against=_UPDATED,
        where=("update_call is reload_weights",),
        all_engines=True,
        probe="P5",
        confusable_with=("never-updated",),
        remedy="Pass weights_path at every call, or update vLLM.",
        source="vllm#32718",
    ),
    CauseEntry(
        "B11", "tied-embeddings", "weights", "A tied head keeps its old weights",
        "The body is new and the head old: on CPU vLLM 0.32 does not repack a tied lm_head after a layerwise "
        "reload.",
        needs=("floor above",),
        proof=("fit partial | weight_digest partial | refit head",),
        may=("refit head", "weight_digest partial", "weight_digest not_the_trainer", *GAP, *_LATER),
        against=("repeat differs", *_UPDATED),
        where=("tie_word_embeddings is on",),
        probe="P5",
        confusable_with=("partial-update",),
        remedy="Send the tied weight once and tie again after the load; on CPU run dispatch_cpu_unquantized_gemm on "
        "the head.",
        source="prime-rl#2823, vllm#6758, open-instruct#1387; rl-on-cpu",
    ),
)  # fmt: skip
