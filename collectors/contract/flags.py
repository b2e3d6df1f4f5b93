"""The flags of an engine as data: what they are called, which values they have, what they do and what they need.

The engine side, the hub, the CLI, the screens, the help and the docs all read this table. A further flag is one entry
here and one ``Control`` on the engine's side (``vllm/controls.py``, or ``vllm/worker.py`` where it lives in the
workers). ``python -m rltop.collectors.contract.flags > docs/flags.md`` writes the table down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rltop.collectors.contract.preconditions import BY_NAME as NEED_BY_NAME


@dataclass(frozen=True)
class Flag:
    """One engine behaviour that can be switched while the engine serves.

    Attributes:
        name: as people type it.
        values: the values a command may ask for, the usual one first.
        summary: one line, what it does.
        effect: what to expect of switching it.
        cost: what the switch itself and the value cost.
        probe: where the value is read on the live objects.
        method: what switching it changes there.
        needs: names of what must hold before it is switched, in the order in which they are looked at.
        launch: what to start the engine with so that the flag can be switched at all.
        launch_args: launch arguments that reproduce each value; empty: vLLM's default; missing: there are none.
        strict: what the strict form of the flag adds; empty where it has none.
        strict_needs: what must hold for the strict form as well.
    """

    name: str
    values: tuple[str, ...]
    summary: str
    effect: str
    cost: str
    probe: str
    method: str
    needs: tuple[str, ...]
    launch: str
    launch_args: Mapping[str, str]
    strict: str = ""
    strict_needs: tuple[str, ...] = ()


PREEMPTION = ("none_waits_with_kv", "none_finishes_in_pause", "preemption_keeps_tokens", "seeds_survive")
"""What must hold before every running request is preempted to be computed anew."""

FLAGS: tuple[Flag, ...] = (
    Flag(
        name="prefix_caching",
        values=("on", "off"),
        summary="reuse the KV cache of equal prompt prefixes",
        effect="off: every prompt is computed anew, prefill costs more; requests in flight keep what they have. "
        "Switching either way forgets cached blocks that no request holds.",
        cost="8 to 17 ms with 64 requests in flight on an H100",
        probe="scheduler.kv_cache_manager.enable_caching",
        method="evicts every hashed block that no request holds, then sets kv_cache_manager.enable_caching; the "
        "pool's and the coordinator's own setting stays, since reused blocks would keep their hash",
        needs=(
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
        summary="schedule the next step while the last one still runs",
        effect="off: one step at a time (queue depth 1), fewer tokens per second on host-bound models; the tokens "
        "of seeded requests do not change.",
        cost="9 to 35 ms with 64 requests in flight on an H100; strict also computes every running request anew",
        probe="depth of the batch queue, class of the scheduler, model_runner.use_async_scheduling of every rank",
        method="renews the batch queue, drained, with the depth as launched or of the pipeline's stages",
        needs=(
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
        strict="off as if launched so: also the scheduler's class, the engine's and the model runners' own flag. "
        "Every running request is preempted first and computed anew, and the prefix cache is forgotten; so on the way "
        "back.",
        strict_needs=(
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
        effect="processed: temperature, top-p, top-k and penalties are in the logprobs that the trainer gets, which is "
        "what an importance ratio needs; with top-p or top-k a fused sampler gives way to a slower one.",
        cost="11 to 18 ms with 64 requests in flight on an H100",
        probe="logprobs_mode of every holder on every rank of the last pipeline stage: the sampler, its top-k/top-p "
        "part, prompt logprobs, the model's configuration; and the sampling path that is bound",
        method="sets all of them, and binds the native sampling path where a fused one would assert",
        needs=(
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
        effect="on: logits and logprobs lose less to rounding. On GPUs the projection accumulates into float32, "
        "elsewhere the whole weight is cast at every step. Changes the tokens that are sampled.",
        cost="8 to 19 ms with 64 requests in flight on an H100; then memory for float32 logits, and off GPUs for a "
        "float32 copy of the head",
        probe="logits_processor.head_dtype, or the head's projection where vLLM knows no head_dtype; bound where one "
        "projected row comes out in float32; on every rank of the last pipeline stage",
        method="sets head_dtype, or wraps the projection of the head alone: a tied embedding keeps its own look-up",
        needs=(
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
        summary="forget cached prefixes at a weight update",
        effect="on: running requests are computed anew under the new weights, which costs a prefill of each. off: they "
        "go on with keys and values of the old weights. No value is right everywhere.",
        cost="nothing when it is switched; on costs a prefill of every running request at each update",
        probe="our own policy, where the live engine's pauses and worker calls go through the collector",
        method="off: a pause that asks to clear the cache does not. on: the prefix cache alone is reset after every "
        "update by vLLM's calls (finish_weight_update, reload_weights, a lone update_weights), paused or not, at the "
        "next step boundary; where a running request would not survive that it is left, and told. Explicit resets "
        "stay what they are, and calls of a trainer's own are not known to be updates",
        needs=("boundary", "sees_steps", "no_connector", "sees_updates", "no_sleep_mode", "text_only"),
        launch="a text model, without a KV connector and without sleep mode",
        launch_args={"caller": ""},
    ),
)

BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}


def document() -> str:
    """``docs/flags.md``."""
    lines = [
        "# Flags",
        "",
        "Made from the tables in [`collectors/contract/flags.py`](../collectors/contract/flags.py) and",
        "[`collectors/contract/preconditions.py`](../collectors/contract/preconditions.py):",
        "`python -m rltop.collectors.contract.flags > docs/flags.md`.",
        "",
        "A switch runs between two engine steps, with the batches in flight finished first; it is whole or undone, and",
        "what counts is what the live objects read afterwards. Where a need does not hold it is refused, and says why.",
        "Places are in vLLM's package, of 0.32.0 unless they say otherwise.",
    ]
    for flag in FLAGS:
        lines += ["", f"## {flag.name}", "", f"{flag.summary[0].upper()}{flag.summary[1:]}.", ""]
        lines += [f"- **Values**: {', '.join(f'`{value}`' for value in flag.values)}"]
        lines += [f"- **Effect**: {flag.effect}", f"- **Cost**: {flag.cost}"]
        lines += [f"- **Read from**: {flag.probe}", f"- **Switched by**: {flag.method}"]
        if flag.strict:
            lines += [f"- **Strict**: {flag.strict}"]
        lines += [f"- **Can be switched on an engine started with**: {flag.launch}"]
        for value in flag.values:
            arguments = flag.launch_args.get(value)
            text = "no launch argument" if arguments is None else f"`{arguments}`" if arguments else "the default"
            lines += [f"- **Launched as `{value}`**: {text}"]
        lines += ["", "| need | refused with | because of |", "| --- | --- | --- |"]
        lines += [_row(name) for name in flag.needs] + [_row(name, " (strict)") for name in flag.strict_needs]
    return "\n".join(lines) + "\n"


def _row(name: str, note: str = "") -> str:
    need = NEED_BY_NAME[name]
    return f"| `{need.name}`{note} | {need.reason.replace('{}', '...')} | {need.source} |"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/flags.md
