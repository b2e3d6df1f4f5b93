"""Preconditions of switching a flag, as data. Without them several switches would end an engine or corrupt its output.

Each entry has one check, registered under its name with ``@check("name")``: in ``vllm/control/engine_checks.py`` if it
inspects the engine core, in ``vllm/workers/rank_checks.py`` if it inspects a worker. The check returns its finding; it
returns an empty string if the precondition holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Precondition:
    """One precondition.

    Attributes:
        name: of the entry and of its check.
        reason: message if it does not hold; ``{}`` stands for the check's finding.
        source: place in vLLM's code that makes it necessary; of 0.32.0 unless stated otherwise.
        relaunch: starting the engine with the flag's launch option fulfils it.
    """

    name: str
    reason: str
    source: str
    relaunch: bool = False


PRECONDITIONS: tuple[Precondition, ...] = (
    # --- every switch
    Precondition(
        "boundary",
        "this engine has no usable step boundary: {}",
        "v1/engine/core.py:1674 EngineCoreProc._handle_client_request",
    ),
    Precondition(
        "sees_steps",
        "lost requests could not be counted: {}",
        "v1/engine/core.py:1603 EngineCoreProc._process_engine_step",
    ),
    # --- the scheduler
    Precondition(
        "no_connector",
        "a KV connector ({}) is in use; this switch does not cover its cache and transfers",
        "v1/core/sched/scheduler.py:977: external matching ignores enable_caching",
    ),
    Precondition(
        "causal",
        "the model's attention is not causal ({}), so vLLM disabled prefix caching after launch",
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
        "not tested with {} (hybrid attention or Mamba)",
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
        "speculative decoding is on ({}): batches in flight contain draft tokens, the rejection sampler has its own "
        "logprobs mode, and head_dtype sizes the draft logits",
        "v1/engine/core.py:693 post_step; v1/sample/rejection_sampler.py:76",
    ),
    Precondition(
        "no_drafts", "this model drafts tokens, which are part of the batches in flight", "v1/engine/core.py:166, 774"
    ),
    Precondition(
        "depth_to_spare", "pipeline parallelism needs a batch queue of depth {} in either mode", "config/vllm.py:578"
    ),
    # --- preempting every running request
    Precondition(
        "none_waits_with_kv",
        "{} hold KV blocks while they wait (for KV transfer, or for the next input of a session) and can't be "
        "preempted",
        "v1/core/sched/scheduler.py:2445, 2869: reset_prefix_cache raises after it has preempted the others",
    ),
    Precondition(
        "none_finishes_in_pause",
        "a pause lets {} finish; if preempted, they would stay unfinished until it ends",
        "v1/core/sched/scheduler.py:916, 2807 PauseState.PAUSED_NEW",
    ),
    Precondition(
        "preemption_keeps_tokens",
        "this vLLM drops the next token of a request that is preempted while nothing is in flight",
        "0.18.1 v1/core/sched/scheduler.py:1859 discard_latest_async_tokens",
    ),
    Precondition(
        "seeds_survive",
        "{} would be recomputed in chunks, which ends an engine on the CPU (its generators have no offset); retry with "
        "fewer requests in flight or a larger --max-num-batched-tokens",
        "v1/worker/gpu_model_runner.py:3502 set_offset",
    ),
    # --- the strict form of async_scheduling
    Precondition("one_stage", "not tested with pipeline parallelism ({} stages)", "v1/core/sched/scheduler.py:1716"),
    Precondition("no_lockstep", "data-parallel ranks run in lockstep ({})", "v1/engine/core.py:2328 DPEngineCoreProc"),
    Precondition("known_scheduler", "not tested with the scheduler {}", "v1/core/sched/async_scheduler.py"),
    Precondition("generates", "not tested with a {} model", "model_executor/layers/pooler/tokwise/methods.py:46"),
    Precondition(
        "no_structured_output",
        "{} with structured output are in progress",
        "v1/core/sched/async_scheduler.py:40 pending_structured_output_tokens",
    ),
    Precondition(
        "known_runner",
        "the model runner has unknown state for asynchronous scheduling ({})",
        "v1/worker/gpu_model_runner.py:1435, 3546, 4345; v1/worker/gpu_input_batch.py:306",
    ),
    # --- the workers
    Precondition("workers_answer", "the workers can't be queried: {}", "v1/worker/worker_base.py WorkerBase"),
    Precondition("ranks_agree", "the ranks differ: {}", "v1/executor/multiproc_executor.py collective_rpc"),
    Precondition("sampler_mode", "this vLLM's sampler has no logprobs_mode", "v1/sample/sampler.py:70", relaunch=True),
    Precondition("plain_sampler", "not tested with a {}", "v1/sample/sampler.py", relaunch=True),
    Precondition(
        "returns_logprobs", "the sampler returns {}, not logprobs", "config/model.py LogprobsMode", relaunch=True
    ),
    Precondition(
        "no_rejection_sampler",
        "speculative decoding is on: its {} has its own logprobs mode",
        "v1/sample/rejection_sampler.py:76 is_processed_logprobs_mode",
        relaunch=True,
    ),
    Precondition(
        "no_mask_replay",
        "replaying sampling masks needs processed logprobs",
        "v1/worker/gpu/model_runner.py return_sampling_mask",
    ),
    Precondition(
        "native_sampling",
        "the fused sampler ({}) can't return processed logprobs, and there is no native one",
        "v1/sample/ops/topk_topp_sampler.py:216 forward_cuda, :307 its assertion; forward_hip",
        relaunch=True,
    ),
    Precondition(
        "no_lora",
        "LoRA is on ({}): the head is called through its base layer",
        "lora/layers/logits_processor.py:174",
        relaunch=True,
    ),
    Precondition(
        "weights_present", "sleep mode is on: the head's weight may be offloaded", "v1/worker/gpu_worker.py sleep"
    ),
    Precondition("known_head", "this model has no known {}", "model_executor/models: lm_head, logits_processor"),
    Precondition(
        "plain_head",
        "the head is quantised ({}); casting it raises in the forward pass",
        "model_executor/layers/logits_processor.py:150",
    ),
    Precondition(
        "provable_head",
        "this vLLM projects in {}, so a single row can't be verified",
        "model_executor/layers/logits_processor.py:139 _apply_head",
        relaunch=True,
    ),
    Precondition(
        "head_memory",
        "not enough memory: {}",
        "model_executor/layers/logits_processor.py:171: the whole weight is cast at every step",
    ),
    # --- weight updates
    Precondition(
        "sees_updates",
        "the collector does not observe {}",
        "v1/engine/core.py:921 pause_scheduler, 1073 collective_rpc",
    ),
    Precondition(
        "no_sleep_mode",
        "sleep mode is on: it frees the KV cache's memory and relies on the reset in its own pause",
        "v1/engine/core.py:959 sleep",
    ),
    Precondition(
        "text_only",
        "the model takes inputs other than text: a pause that clears also drops their encoder outputs",
        "v1/engine/core.py:898 _reset_caches",
    ),
)

BY_NAME: dict[str, Precondition] = {entry.name: entry for entry in PRECONDITIONS}


def registry(
    checks: dict[str, Callable[[Subject], str]],
) -> Callable[[str], Callable[[Callable[[Subject], str]], Callable[[Subject], str]]]:
    """Return the decorator ``check("name")``, which adds a function to ``checks`` as the check of a precondition.

    The decorator raises ``ValueError`` if no precondition has this name, or if it has a check already.
    """

    def check(name: str) -> Callable[[Callable[[Subject], str]], Callable[[Subject], str]]:
        if name not in BY_NAME or name in checks:
            raise ValueError(f"check {name!r}: {'defined twice' if name in checks else 'no such precondition'}")

        def register(function: Callable[[Subject], str]) -> Callable[[Subject], str]:
            checks[name] = function
            return function

        return register

    return check
