"""The flags of an engine as data: what they are called, which values they have, what they do.

The engine side, the hub, the CLI, the screens, the help and the docs all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One engine behaviour that can be switched while the engine serves.

    Attributes:
        name: as people type it.
        values: the values a command may ask for, the usual one first.
        summary: one line, what it does.
        effect: what to expect of switching it, with its cost.
        launch: what to start the engine with so that the flag can be switched at all.
        strict: what the strict form of a value does beyond the plain one; empty: there is none.
    """

    name: str
    values: tuple[str, ...]
    summary: str
    effect: str
    launch: str
    strict: str = ""


FLAGS: tuple[Flag, ...] = (
    Flag(
        name="prefix_caching",
        values=("on", "off"),
        summary="reuse the KV cache of equal prompt prefixes",
        effect="off: every prompt is computed anew, prefill costs more; requests in flight keep what they have. "
        "Switching either way forgets cached blocks that no request holds.",
        launch="--enable-prefix-caching",
    ),
    Flag(
        name="async_scheduling",
        values=("on", "off"),
        summary="schedule the next step while the last one still runs",
        effect="off: one step at a time (queue depth 1), fewer tokens per second on host-bound models; the tokens "
        "of seeded requests do not change.",
        launch="--async-scheduling",
    ),
    Flag(
        name="logprobs_mode",
        values=("processed", "raw"),
        summary="logprobs before (raw) or after temperature, top-p and top-k",
        effect="processed: temperature, top-p, top-k and penalties are in the logprobs that the trainer gets, which is "
        "what an importance ratio needs; with top-p or top-k a fused sampler gives way to a slower one.",
        launch="--logprobs-mode raw_logprobs or processed_logprobs, without speculative decoding",
    ),
    Flag(
        name="lm_head_fp32",
        values=("off", "on"),
        summary="project to the vocabulary in float32",
        effect="on: logits and logprobs lose less to rounding. On GPUs the projection accumulates into float32, "
        "elsewhere the whole weight is cast at every step. Changes the tokens that are sampled.",
        launch="""--hf-overrides '{"head_dtype": "float32"}'""",
    ),
)

BY_NAME: dict[str, Flag] = {flag.name: flag for flag in FLAGS}
