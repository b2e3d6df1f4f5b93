"""The names of vLLM that the collector uses, by what each makes possible: a table for a check that imports no vLLM.

A name is written ``object.attribute``; ``OBJECTS`` says which class of vLLM the object is. ``a or b`` means that one of
them is enough, because vLLM versions differ; ``not a`` means that the name must be absent. The live collector decides
by the objects themselves; this table predicts its decisions for an installed vLLM. A test fails if the collector uses a
name that is not in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rltop.collectors.vllm.patches import ESSENTIAL, PATCH_POINTS, PatchPoint

ALTERNATIVE, ABSENT = " or ", "not "

OBJECTS: dict[str, str] = {
    "engine": "v1.engine.core:EngineCoreProc",
    "lockstep_engine": "v1.engine.core:DPEngineCoreProc",
    "client": "v1.engine.core_client:InprocClient",
    "scheduler": "v1.core.sched.scheduler:Scheduler",
    "async_scheduler": "v1.core.sched.async_scheduler:AsyncScheduler",
    "pause": "v1.core.sched.interface:PauseState",
    "scheduled": "v1.core.sched.output:SchedulerOutput",
    "new_request": "v1.core.sched.output:NewRequestData",
    "cache": "v1.core.kv_cache_manager:KVCacheManager",
    "coordinator": "v1.core.kv_cache_coordinator:UnitaryKVCacheCoordinator",
    "cache_config_of_engine": "v1.kv_cache_interface:KVCacheConfig",
    "cache_group": "v1.kv_cache_interface:KVCacheGroupSpec",
    "attention_spec": "v1.kv_cache_interface:FullAttentionSpec",
    "pool": "v1.core.block_pool:BlockPool",
    "block": "v1.core.kv_cache_utils:KVCacheBlock",
    "request": "v1.request:Request",
    "status": "v1.request:RequestStatus",
    "outputs": "v1.engine:EngineCoreOutputs",
    "output": "v1.engine:EngineCoreOutput",
    "core_request": "v1.engine:EngineCoreRequest",
    "message": "v1.engine:EngineCoreRequestType",
    "sampled": "v1.outputs:ModelRunnerOutput",
    "logprobs": "v1.outputs:LogprobsLists",
    "prompt_logprobs": "v1.outputs:LogprobsTensors",
    "prefill": "v1.metrics.stats:PrefillStats",
    "params": "sampling_params:SamplingParams",
    "executor": "v1.executor.abstract:Executor",
    "worker": "v1.worker.worker_base:WorkerBase",
    "runner": "v1.worker.gpu_model_runner:GPUModelRunner",
    "batch": "v1.worker.gpu_input_batch:InputBatch",
    "cached_request": "v1.worker.gpu_input_batch:CachedRequestState",
    "sampler": "v1.sample.sampler:Sampler",
    "top_k_top_p": "v1.sample.ops.topk_topp_sampler:TopKTopPSampler",
    "runner_v2": "v1.worker.gpu.model_runner:GPUModelRunner",
    "sampler_v2": "v1.worker.gpu.sample.sampler:Sampler",
    "prompt_logprobs_v2": "v1.worker.gpu.sample.prompt_logprob:PromptLogprobsWorker",
    "attention_group": "v1.worker.utils:AttentionGroup",
    "attention": "v1.attention.backend:AttentionBackend",
    "logits_processor": "model_executor.layers.logits_processor:LogitsProcessor",
    "head": "model_executor.layers.vocab_parallel_embedding:ParallelLMHead",
    "head_method": "model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod",
    "linear": "model_executor.layers.linear:ColumnParallelLinear",
    "pipeline": "distributed.parallel_state:GroupCoordinator",
    "config": "config.vllm:VllmConfig",
    "model": "config.model:ModelConfig",
    "parallel": "config.parallel:ParallelConfig",
    "scheduling": "config.scheduler:SchedulerConfig",
    "caching": "config.cache:CacheConfig",
    "device": "config.device:DeviceConfig",
}
"""By the name of an object in this table: module in the package vllm, and class."""


@dataclass(frozen=True)
class Capability:
    """Something the collector does, and the names that it needs for that.

    Attributes:
        name: as in the report.
        lost: what is missing if one of the names is.
        needs: names; all are needed.
        essential: without it rltop measures nothing on such engines.
    """

    name: str
    lost: str
    needs: tuple[str, ...]
    essential: bool = False


def _owner(point: PatchPoint) -> str:
    return point.path[-1] if point.path else "engine"


def name_of(point: PatchPoint) -> str:
    """A patch point as a name of this table."""
    return f"{_owner(point)}.{point.method}"


PARAMETERS: dict[str, tuple[str, ...]] = {name_of(point): point.parameters for point in PATCH_POINTS}
"""Leading parameters that a method must have."""

_BOUNDARY = ("engine._handle_client_request", "engine._process_engine_step", "engine.input_queue",
             "scheduler.has_requests", "scheduler.requests", "message.WAKEUP or message.ABORT")  # fmt: skip
_STEPS = ("engine.step_fn", "output.request_id", "output.new_token_ids", "output.finish_reason", "outputs.outputs")
_WORKERS = ("engine.model_executor", "executor.collective_rpc", "worker.model_runner")
_PREEMPT = ("scheduler.reset_prefix_cache", "scheduler.running", "request.status", "request.num_computed_tokens",
            "request.num_tokens", "request.sampling_params", "params.seed", "device.device_type",
            "scheduling.long_prefill_token_threshold", "scheduling.max_num_batched_tokens")  # fmt: skip
_CONFIG = ("engine.vllm_config", "config.model_config", "config.speculative_config", "config.lora_config")

CAPABILITIES: tuple[Capability, ...] = (
    Capability(
        "attach",
        "engines in their own process are not observed at all",
        ("engine.run_busy_loop", "lockstep_engine.run_busy_loop", "engine.vllm_config", "engine.scheduler",
         "config.parallel_config"),
        essential=True,
    ),
    Capability("attach in process", "engines inside their caller's process are not observed", ("client.engine_core",)),
    Capability(
        "rollouts",
        "no rollouts are published, only the engine's state",
        (*(name_of(point) for point in PATCH_POINTS if point.name in ESSENTIAL), *_STEPS,
         "request.request_id", "request.prompt_token_ids", "request.sampling_params"),
        essential=True,
    ),
    Capability(
        "logprobs", "rollouts have no logprobs, so no gap is measured",
        ("output.new_logprobs", "logprobs.logprobs", "logprobs.logprob_token_ids",
         "params.num_logprobs or params.logprobs"),
        essential=True,
    ),
    Capability(
        "whole batches",
        "tokens are read from each request's outputs, which takes the engine longer",
        ("scheduler.update_from_output", "scheduler.schedule", "scheduler.finished_req_ids", "sampled.req_ids",
         "sampled.logprobs", "scheduled.scheduled_new_reqs", "scheduled.finished_req_ids",
         "scheduled.total_num_scheduled_tokens", "new_request.req_id", "request.output_token_ids",
         "config.speculative_config"),
    ),
    Capability(
        "aborts", "aborted requests stay open until the collector's memory bound", ("scheduler.finish_requests",)
    ),
    Capability(
        "cached tokens", "the prefix hit rate is unknown",
        ("output.prefill_stats or output.num_cached_tokens", "prefill.num_cached_tokens or output.num_cached_tokens"),
    ),
    Capability(
        "version per token", "versions come from the framework or the trainer, else from observed updates (inferred)",
        ("engine._weight_version or outputs.weight_version",),
    ),
    Capability(
        "weight updates", "weight updates are not seen: versions are unknown, commands don't wait for an open update",
        ("engine.collective_rpc",),
    ),
    Capability(
        "load", "waiting requests and the use of the KV cache are unknown",
        ("scheduler.running", "scheduler.waiting", "scheduler.kv_holding_waiting or scheduler.skipped_waiting",
         "scheduler.kv_cache_manager", "cache.usage"),
    ),
    Capability("step boundary", "nothing can be switched, flushed, paused or probed", _BOUNDARY),
    Capability(
        "step boundary in process", "engines inside their caller's process can't be switched", ("engine.post_step",)
    ),
    Capability(
        "prefix_caching", "prefix_caching can't be switched, the cache can't be flushed",
        ("scheduler.kv_cache_manager", "cache.enable_caching", "cache.coordinator", "cache.block_pool", "pool.blocks",
         "pool.evict_blocks", "pool.enable_caching", "block.block_hash", "block.block_id", "block.ref_cnt",
         "engine.request_block_hasher"),
    ),
    Capability(
        "async_scheduling", "async_scheduling can't be switched",
        ("engine.batch_queue", "engine.batch_queue_size", "engine.async_scheduling", "async_scheduler.schedule",
         "parallel.pipeline_parallel_size"),
    ),
    Capability(
        "async_scheduling strict", "the strict form of async_scheduling off is refused",
        (*_WORKERS, *_PREEMPT, "runner.use_async_scheduling", "runner.requests", "runner.input_batch",
         "batch.prev_sampled_token_ids", "batch.prev_req_id_to_index", "cached_request.output_token_ids",
         "request.structured_output_request", "model.runner_type", "not request.discard_latest_async_tokens"),
    ),
    Capability(
        "logprobs_mode", "logprobs_mode can't be switched",
        (*_WORKERS, *_CONFIG, "runner.sampler", "runner.model_config", "runner.vllm_config", "sampler.logprobs_mode",
         "sampler.topk_topp_sampler", "top_k_top_p.logprobs_mode", "top_k_top_p.forward", "top_k_top_p.forward_native",
         "model.logprobs_mode"),
    ),
    Capability(
        "logprobs_mode, runner V2", "prompt logprobs keep the mode of the launch",
        ("runner_v2.sampler", "runner_v2.prompt_logprobs_worker", "sampler_v2.logprobs_mode",
         "prompt_logprobs_v2.logprobs_mode", "runner_v2.is_last_pp_rank"),
    ),
    Capability(
        "lm_head_fp32", "lm_head_fp32 can't be switched",
        (*_WORKERS, *_CONFIG, "runner.get_model or runner.model", "runner.model_config", "runner.vllm_config",
         "logits_processor._apply_head or not logits_processor.head_dtype", "head_method.apply", "head.quant_method",
         "scheduling.max_num_seqs"),
    ),
    Capability(
        "lm_head_fp32 by head_dtype", "lm_head_fp32 wraps the head's quantisation method instead",
        ("logits_processor.head_dtype", "logits_processor._apply_head"),
    ),
    Capability(
        "update_clears_cache", "update_clears_cache can't be switched",
        ("engine.pause_scheduler", "engine.collective_rpc", *_PREEMPT, "model.is_multimodal_model",
         "model.enable_sleep_mode"),
    ),
    Capability(
        "pause", "`rltop pause` and `rltop resume` are refused",
        ("scheduler.set_pause_state", "scheduler.pause_state", "pause.UNPAUSED", "pause.PAUSED_ALL",
         "pause.PAUSED_NEW"),
    ),
    Capability(
        "scoring probes", "probes that score sequences are refused",
        ("engine.preprocess_add_request", "engine.add_request", "core_request.request_id",
         "core_request.prompt_token_ids", "core_request.sampling_params", "core_request.arrival_time",
         "core_request.cache_salt", "core_request.client_index", "core_request.current_wave",
         "params.skip_reading_prefix_cache", "params.prompt_logprobs", "output.new_prompt_logprobs_tensors",
         "outputs.finished_requests", "outputs.scheduler_stats", "prompt_logprobs.logprobs",
         "status.FINISHED_ABORTED", "scheduler.waiting", "scheduler.kv_cache_manager", "cache.usage",
         "request.cache_salt", "model.is_encoder_decoder", "model.is_multimodal_model", "model.runner_type",
         "model.max_model_len", "model.get_vocab_size", *_WORKERS),
    ),
    Capability(
        "weight digests", "`rltop probe weight-digest` is refused", (*_WORKERS, "runner.get_model or runner.model"),
    ),
    Capability(
        "configuration",
        "some facts of `rltop fingerprint` are missing",
        ("model.model", "model.dtype", "model.quantization", "model.head_dtype", "model.enforce_eager",
         "model.get_diff_sampling_param", "model.generation_config", "model.override_generation_config",
         "caching.cache_dtype", "caching.block_size", "config.cache_config", "config.scheduler_config",
         "parallel.data_parallel_size", "parallel.tensor_parallel_size", "parallel.data_parallel_index",
         "parallel.world_size", "parallel.enable_eplb",
         "engine.engine_index", "engine.has_coordinator", "runner.attn_groups", "runner.device",
         "attention_group.backend", "attention.get_name"),
    ),
)  # fmt: skip

NEWER: dict[str, str] = {
    "engine._reject_add_while_paused": "requests that a paused engine rejects, from 0.33 on",
}
"""Names of newer versions: on an older one there is nothing to observe."""

GUARDS: dict[str, str] = {
    "lockstep_engine.dp_group": "data-parallel ranks in lockstep",
    "engine.check_for_draft_tokens": "models that draft tokens",
    "request.num_preemptions": "preempted requests",
    "params.stop": "requests with stop strings",
    "request.resumable": "sessions of several turns",
    "request.skip_reading_prefix_cache": "requests that don't read the prefix cache",
    "scheduler.num_sampled_tokens_per_step": "several sampled tokens per step",
    "scheduler.connector": "KV connectors",
    "scheduler.kv_cache_config": "attention that looks ahead",
    "cache_config_of_engine.kv_cache_groups": "attention that looks ahead",
    "cache_group.kv_cache_spec": "attention that looks ahead",
    "attention_spec.non_causal": "attention that looks ahead",
    "coordinator.block_pool": "hybrid caches, which have another coordinator",
    "batch.async_copy_ready_event": "copies of sampled tokens in flight",
    "batch.sampled_token_ids_cpu": "copies of sampled tokens in flight",
    "runner.rejection_sampler": "speculative decoding",
    "model.return_sampling_mask": "replayed sampling masks",
    "executor.is_sleeping": "engines that sleep",
    "caching.kv_sharing_fast_prefill": "shared KV with fast prefill",
    "logits_processor.logits_as_input": "heads outside the logits processor",
    "linear.input_size_per_partition": "weights that are packed for the CPU",
    "head.embedding_dim": "weights that are packed for the CPU",
    "lockstep_engine.current_wave": "waves of requests in lockstep",
    "pipeline.is_last_rank": "the last stage of a pipeline",
}
"""Names that only show an obstacle or a special case. A vLLM without the name has no such thing, or renamed it."""
