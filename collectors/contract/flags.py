"""The flags of an engine as data: names, values, effects, costs and preconditions.

The engine side, the hub, the CLI, the dashboard and the docs all read this table. A new flag is one entry here and one
``FlagControl`` in ``vllm/control/flag_controls.py``, with an entry in ``vllm/workers/one_rank.py`` if it lives in the
workers. ``python -m rltop.collectors.contract.flags > docs/flags.md`` generates its page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rltop.collectors.contract.preconditions import BY_NAME as PRECONDITION_BY_NAME


@dataclass(frozen=True)
class Flag:
    """One engine behaviour that can be switched while the engine serves requests.

    Attributes:
        name: as typed in commands.
        values: the values that a command may set, the default first.
        summary: one line: what the flag controls.
        effect: consequences of each value.
        cost: cost of switching, and of the value itself.
        read_from: live objects from which the value is read.
        switched_by: changes that a switch makes to them.
        preconditions: names of the preconditions, in the order in which they are checked.
        launch: launch options with which the flag can be switched.
        launch_args: launch arguments that reproduce each value. Empty: vLLM's default; missing: there are none.
        strict: what the strict form does in addition; empty if there is none.
        strict_preconditions: additional preconditions of the strict form.
    """

    name: str
    values: tuple[str, ...]
    summary: str
    effect: str
    cost: str
    read_from: str
    switched_by: str
    preconditions: tuple[str, ...]
    launch: str
    launch_args: Mapping[str, str]
    strict: str = ""
    strict_preconditions: tuple[str, ...] = ()


PREEMPTION = ("none_waits_with_kv", "none_finishes_in_pause", "preemption_keeps_tokens", "seeds_survive")
"""Preconditions of preempting every running request, to be recomputed."""

FLAGS: tuple[Flag, ...] = (
    Flag(
        name="prefix_caching",
        values=("on", "off"),
        summary="reuse the KV cache of equal prompt prefixes",
        effect="off: every prompt is prefilled completely, which costs more; requests in flight keep their blocks. "
        "Switching in either direction evicts cached blocks that no request uses.",
        cost="8 to 17 ms with 64 requests in flight on an H100",
        read_from="scheduler.kv_cache_manager.enable_caching",
        switched_by="evicts every hashed block that no request uses, then sets kv_cache_manager.enable_caching; the "
        "settings of the pool and the coordinator stay, because reused blocks would keep their hash",
        preconditions=(
            "boundary",
            "sees_steps",
            "no_connector",
            "causal",
            "launched_caching",
            "one_kind_of_cache",
            "evictable_blocks",
        ),
        launch="--enable-prefix-caching",
        launch_args={"on": "--enable-prefix-caching", "off": "--no-enable-prefix-caching"},
    ),
    Flag(
        name="async_scheduling",
        values=("on", "off"),
        summary="schedule the next step while the current one runs",
        effect="off: one step at a time (queue depth 1), fewer tokens per second on host-bound models; the tokens "
        "of seeded requests do not change.",
        cost="9 to 35 ms with 64 requests in flight on an H100; strict also recomputes every running request",
        read_from="depth of the batch queue, class of the scheduler, model_runner.use_async_scheduling of every rank",
        switched_by="replaces the drained batch queue by one of the launch depth, or with one batch per pipeline stage",
        preconditions=(
            "boundary",
            "sees_steps",
            "no_connector",
            "launched_async",
            "batch_queue",
            "no_speculation",
            "no_drafts",
            "depth_to_spare",
        ),
        launch="--async-scheduling",
        launch_args={"on": "--async-scheduling", "off": "--no-async-scheduling"},
        strict="off as if launched with it off: also sets the scheduler's class and the flags of the engine and the "
        "model runners. Every running request is preempted and recomputed, and the prefix cache is reset; the same "
        "happens when it is reverted.",
        strict_preconditions=(
            *PREEMPTION,
            "one_stage",
            "no_lockstep",
            "known_scheduler",
            "one_kind_of_cache",
            "generates",
            "no_structured_output",
            "workers_answer",
            "ranks_agree",
            "known_runner",
        ),
    ),
    Flag(
        name="logprobs_mode",
        values=("processed", "raw"),
        summary="logprobs before (raw) or after temperature, top-p and top-k",
        effect="processed: logprobs are those after temperature, top-p, top-k and penalties, as an importance ratio "
        "needs them; with top-p or top-k a slower sampler replaces a fused one.",
        cost="11 to 18 ms with 64 requests in flight on an H100",
        read_from="logprobs_mode of every object that has one (the sampler, its top-k/top-p part, prompt logprobs, the "
        "model's configuration), and the bound sampling path, on every rank of the last pipeline stage",
        switched_by="sets all of them, and binds the native sampling path if the fused one would fail an assertion",
        preconditions=(
            "boundary",
            "sees_steps",
            "no_speculation",
            "workers_answer",
            "ranks_agree",
            "sampler_mode",
            "plain_sampler",
            "returns_logprobs",
            "no_rejection_sampler",
            "no_mask_replay",
            "native_sampling",
        ),
        launch="--logprobs-mode raw_logprobs or processed_logprobs, without speculative decoding",
        launch_args={"processed": "--logprobs-mode processed_logprobs", "raw": "--logprobs-mode raw_logprobs"},
    ),
    Flag(
        name="lm_head_fp32",
        values=("off", "on"),
        summary="project to the vocabulary in float32",
        effect="on: logits and logprobs have smaller rounding errors. On GPUs the projection accumulates in float32, "
        "elsewhere the whole weight is cast in every step. Changes the sampled tokens.",
        cost="8 to 19 ms with 64 requests in flight on an H100; then memory for float32 logits, and except on GPUs for "
        "a float32 copy of the head",
        read_from="logits_processor.head_dtype, or the head's projection in vLLM versions without head_dtype; verified "
        "by the dtype of one projected row; on every rank of the last pipeline stage",
        switched_by="sets head_dtype, or wraps the projection of the head only: the look-up of a tied embedding stays",
        preconditions=(
            "boundary",
            "sees_steps",
            "no_speculation",
            "no_lora",
            "workers_answer",
            "ranks_agree",
            "weights_present",
            "known_head",
            "plain_head",
            "provable_head",
            "head_memory",
        ),
        launch="""--hf-overrides '{"head_dtype": "float32"}'""",
        launch_args={"off": "", "on": """--hf-overrides '{"head_dtype": "float32"}'"""},
    ),
    Flag(
        name="update_clears_cache",
        values=("caller", "on", "off"),
        summary="reset the prefix cache at a weight update",
        effect="on: running requests are recomputed under the new weights, which costs a prefill of each. off: they "
        "continue with stale KV of the old weights. No value is right for every run.",
        cost="nothing when it is switched; on costs a prefill of every running request at each update",
        read_from="the collector's own policy, if pauses and worker calls of the live engine go through the collector",
        switched_by="off: a pause never clears the cache. on: the prefix cache alone is reset after every load "
        "of weights, by whatever call, or, if a call started the update, when it finishes; paused or not, at the next "
        "step boundary; if a running request would not survive, the reset is skipped and reported. Explicit resets are "
        "unaffected",
        preconditions=("boundary", "sees_steps", "no_connector", "sees_updates", "no_sleep_mode", "text_only"),
        launch="a text model, no KV connector, no sleep mode",
        launch_args={"caller": ""},
    ),
)

BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}


def document() -> str:
    """``docs/flags.md``."""
    lines = [
        "# Flags",
        "",
        "Generated from the tables in [`collectors/contract/flags.py`](../collectors/contract/flags.py) and",
        "[`collectors/contract/preconditions.py`](../collectors/contract/preconditions.py):",
        "`python -m rltop.collectors.contract.flags > docs/flags.md`.",
        "",
        "A switch runs between two engine steps, after the batches in flight have finished. It completes or is undone;",
        "the result is what is read back from the live objects. If a precondition does not hold, the switch is refused",
        "with the reason.",
        "Source locations are paths in vLLM's package, of version 0.32.0 unless stated otherwise.",
    ]
    for flag in FLAGS:
        lines += ["", f"## {flag.name}", "", f"{flag.summary[0].upper()}{flag.summary[1:]}.", ""]
        lines += [f"- **Values**: {', '.join(f'`{value}`' for value in flag.values)}"]
        lines += [f"- **Effect**: {flag.effect}", f"- **Cost**: {flag.cost}"]
        lines += [f"- **Read from**: {flag.read_from}", f"- **Switched by**: {flag.switched_by}"]
        if flag.strict:
            lines += [f"- **Strict form**: {flag.strict}"]
        lines += [f"- **Switchable on an engine started with**: {flag.launch}"]
        for value in flag.values:
            arguments = flag.launch_args.get(value)
            text = "no launch argument" if arguments is None else f"`{arguments}`" if arguments else "the default"
            lines += [f"- **Launched as `{value}`**: {text}"]
        lines += ["", "| precondition | reason if refused | source in vLLM |", "| --- | --- | --- |"]
        lines += [_row(name) for name in flag.preconditions]
        lines += [_row(name, " (strict)") for name in flag.strict_preconditions]
    return "\n".join(lines) + "\n"


def _row(name: str, note: str = "") -> str:
    entry = PRECONDITION_BY_NAME[name]
    return f"| `{entry.name}`{note} | {entry.reason.replace('{}', '...')} | {entry.source} |"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/flags.md
