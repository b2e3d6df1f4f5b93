"""What must hold before a flag may be switched, as data: several switches would end or silently poison an engine.

Each entry names its check, one function of that name on the engine's side (``vllm/needs.py``) or on the workers'
(``vllm/worker_needs.py``), which answers with what it found where the need does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precondition:
    """One precondition.

    Attributes:
        name: of the entry and of its check.
        reason: what to say where it does not hold; ``{}`` stands for what was found.
        source: the place in vLLM that makes it one; of 0.32.0 unless it says otherwise.
        relaunch: starting the engine with the flag's launch option is the way out.
    """

    name: str
    reason: str
    source: str
    relaunch: bool = False


NEEDS: tuple[Precondition, ...] = (
    # --- of every switch
    Precondition(
        "boundary",
        "nothing can run between two steps of this engine: {}",
        "v1/engine/core.py:1674 EngineCoreProc._handle_client_request",
    ),
    Precondition(
        "sees_steps",
        "it could not be told whether a request is lost: {}",
        "v1/engine/core.py:1603 EngineCoreProc._process_engine_step",
    ),
    # --- of the scheduler
    Precondition(
        "no_connector",
        "a KV connector ({}) is in use, whose own cache and transfers this switch does not cover",
        "v1/core/sched/scheduler.py:977: external matching ignores enable_caching",
    ),
    Precondition(
        "causal",
        "the model does not attend causally ({}), so vLLM turned prefix caching off after launch",
        "v1/engine/core.py:286 _initialize_kv_caches",
    ),
    Precondition(
        "launched_caching",
        "started with prefix caching off ({}): there are no block hashes to look up",
        "v1/engine/core.py:232: no request_block_hasher; v1/core/kv_cache_coordinator.py: NoPrefixCache",
        relaunch=True,
    ),
    Precondition(
        "one_kind_of_cache",
        "not proven for {} (hybrid attention or Mamba)",
        "v1/core/kv_cache_coordinator.py: groups of different block sizes share hashes",
    ),
    Precondition(
        "evictable_blocks", "this vLLM's block pool can't evict single blocks: no {}", "v1/core/block_pool.py"
    ),
    Precondition(
        "launched_async", "started with it off: the scheduler is a {}", "config/scheduler.py:231", relaunch=True
    ),
    Precondition("batch_queue", "started without a batch queue", "v1/engine/core.py:214", relaunch=True),
    Precondition(
        "no_speculation",
        "speculative decoding is on ({}): draft tokens travel with the batches in flight, the rejection sampler keeps "
        "modes of its own, and head_dtype sizes the draft logits",
        "v1/engine/core.py:693 post_step; v1/sample/rejection_sampler.py:76",
    ),
    Precondition(
        "no_drafts", "this model drafts tokens, which travel with the batches in flight", "v1/engine/core.py:166, 774"
    ),
    Precondition("depth_to_spare", "the batch queue is {} deep either way (pipeline stages)", "config/vllm.py:578"),
    # --- of preempting every running request
    Precondition(
        "none_waits_with_kv",
        "{} hold KV blocks while they wait (for KV from elsewhere, or for the next input of a session), and can't be "
        "preempted",
        "v1/core/sched/scheduler.py:2445, 2869: reset_prefix_cache raises after it has preempted the others",
    ),
    Precondition(
        "none_finishes_in_pause",
        "a pause lets {} finish: preempted, they would stay unfinished until it ends",
        "v1/core/sched/scheduler.py:916, 2807 PauseState.PAUSED_NEW",
    ),
    Precondition(
        "preemption_keeps_tokens",
        "this vLLM drops the next token of a request that was preempted with nothing in flight",
        "0.18.1 v1/core/sched/scheduler.py:1859 discard_latest_async_tokens",
    ),
    Precondition(
        "seeds_survive",
        "{} would be recomputed in chunks, which ends an engine on the CPU (its generators have no offset); try with "
        "fewer in flight, or a larger --max-num-batched-tokens",
        "v1/worker/gpu_model_runner.py:3502 set_offset",
    ),
    # --- of the strict form of async_scheduling
    Precondition("one_stage", "not proven with pipeline parallelism ({} stages)", "v1/core/sched/scheduler.py:1716"),
    Precondition("no_lockstep", "data-parallel ranks run in lockstep ({})", "v1/engine/core.py:2328 DPEngineCoreProc"),
    Precondition("known_scheduler", "not proven for the scheduler {}", "v1/core/sched/async_scheduler.py"),
    Precondition("generates", "not proven for a {} model", "model_executor/layers/pooler/tokwise/methods.py:46"),
    Precondition(
        "no_structured_output",
        "{} with structured output are under way",
        "v1/core/sched/async_scheduler.py:40 pending_structured_output_tokens",
    ),
    Precondition(
        "known_runner",
        "the model runner keeps state of asynchronous scheduling that is not known here ({})",
        "v1/worker/gpu_model_runner.py:1435, 3546, 4345; v1/worker/gpu_input_batch.py:306",
    ),
    # --- of the workers
    Precondition("workers_answer", "the workers can't be asked: {}", "v1/worker/worker_base.py WorkerBase"),
    Precondition("ranks_agree", "the ranks differ: {}", "v1/executor/multiproc_executor.py collective_rpc"),
    Precondition("sampler_mode", "this vLLM's sampler has no logprobs_mode", "v1/sample/sampler.py:70", relaunch=True),
    Precondition("plain_sampler", "not proven for a {}", "v1/sample/sampler.py", relaunch=True),
    Precondition(
        "returns_logprobs", "the sampler returns {}, not logprobs", "config/model.py LogprobsMode", relaunch=True
    ),
    Precondition(
        "no_rejection_sampler",
        "speculative decoding is on: its {} keeps modes of its own",
        "v1/sample/rejection_sampler.py:76 is_processed_logprobs_mode",
        relaunch=True,
    ),
    Precondition(
        "no_mask_replay",
        "the replay of sampling masks needs processed logprobs",
        "v1/worker/gpu/model_runner.py return_sampling_mask",
    ),
    Precondition(
        "native_sampling",
        "the fused sampler ({}) can't return processed logprobs, and there is no native one",
        "v1/sample/ops/topk_topp_sampler.py:216 forward_cuda, :307 its assertion; forward_hip likewise",
        relaunch=True,
    ),
    Precondition(
        "no_lora",
        "LoRA is on ({}): the head goes through its base layer",
        "lora/layers/logits_processor.py:174",
        relaunch=True,
    ),
    Precondition("weights_present", "sleep mode is on: the head's weight may be away", "v1/worker/gpu_worker.py sleep"),
    Precondition("known_head", "this model has no {} that we know", "model_executor/models: lm_head, logits_processor"),
    Precondition(
        "plain_head",
        "the head is quantised ({}), and casting it raises inside the forward",
        "model_executor/layers/logits_processor.py:150",
    ),
    Precondition(
        "provable_head",
        "this vLLM projects in {}, where one row can't be seen alone",
        "model_executor/layers/logits_processor.py:139 _apply_head",
        relaunch=True,
    ),
    Precondition(
        "head_memory",
        "too little memory: {}",
        "model_executor/layers/logits_processor.py:171: the whole weight is cast at every step",
    ),
    # --- of weight updates
    Precondition(
        "sees_updates", "the collector does not see {}", "v1/engine/core.py:921 pause_scheduler, 1073 collective_rpc"
    ),
    Precondition(
        "no_sleep_mode",
        "sleep mode is on: it discards the KV cache's memory and counts on the reset of its own pause",
        "v1/engine/core.py:959 sleep",
    ),
    Precondition(
        "text_only",
        "the model takes other inputs than text: a pause that clears drops their encoder outputs too",
        "v1/engine/core.py:898 _reset_caches",
    ),
)

BY_NAME: dict[str, Precondition] = {need.name: need for need in NEEDS}
