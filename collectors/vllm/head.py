"""The projection to the vocabulary in float32: our override of vLLM's ``head_dtype`` on a live model.

A tied embedding needs nothing of its own: vLLM casts the weight for the projection alone, so the look-up of tokens
keeps the model's dtype. Whether the setting is *bound* is seen by projecting one row through the live objects.
"""

from __future__ import annotations

import os
import sys
from typing import Any

PLAIN = frozenset({"UnquantizedEmbeddingMethod", "UnquantizedLinearMethod"})
"""Kinds of head whose weight can be cast; any other raises inside the forward, which ends the engine."""


def _parts(runner: Any) -> tuple[Any, Any]:
    """Logits processor and head; of the language model where others stand around it."""
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    if not hasattr(model, "logits_processor"):
        model = getattr(model, "language_model", None)
    return getattr(model, "logits_processor", None), getattr(model, "lm_head", None)


def _is_float32(dtype: Any) -> bool:
    return str(dtype) == "torch.float32"


def read(runner: Any) -> str | None:
    """``on`` while our override holds; None where this vLLM knows no ``head_dtype``."""
    processor, _ = _parts(runner)
    if not hasattr(processor, "head_dtype"):
        return None
    return "on" if hasattr(processor, "rltop_head_dtype") and _is_float32(processor.head_dtype) else "off"


def obstacle(runner: Any) -> str:
    """Why the head can't be switched on this rank; empty if it can."""
    processor, head = _parts(runner)
    if getattr(runner.model_config, "enable_sleep_mode", False):
        return "sleep mode is on: the head's weight may be away"
    if processor is None:
        return "this model has no logits processor that we know"
    if not hasattr(processor, "head_dtype"):
        return "this vLLM's logits processor knows no head_dtype"
    if getattr(processor, "logits_as_input", False) or not hasattr(head, "quant_method"):
        return "this model has no head that we know"
    if (kind := type(head.quant_method).__name__) not in PLAIN:
        return f"the head is quantised ({kind})"
    if hasattr(head, "base_layer"):
        return "the head goes through LoRA"
    return "" if note(runner) or hasattr(processor, "rltop_head_dtype") else _memory(runner, head)


def note(runner: Any) -> str:
    """Why a switch would change nothing; empty if it would."""
    processor, _ = _parts(runner)
    if _is_float32(runner.model_config.dtype):
        return "no effect: the model is float32"
    launched = getattr(processor, "rltop_head_dtype", processor.head_dtype)
    return "no effect: started with a float32 head" if _is_float32(launched) else ""


def write(runner: Any, value: str) -> None:
    """Put the override in or take it out, and see one row come out as asked."""
    processor, _ = _parts(runner)
    if value == "on" and not hasattr(processor, "rltop_head_dtype"):
        processor.rltop_head_dtype = processor.head_dtype
        processor.head_dtype = sys.modules["torch"].float32
    elif value == "off" and hasattr(processor, "rltop_head_dtype"):
        processor.head_dtype = processor.rltop_head_dtype
        del processor.rltop_head_dtype
    if value == "on" and not _is_float32(found := projected(runner)):
        raise RuntimeError(f"not bound: asked for float32, a projected row came out as {found}")


def projected(runner: Any) -> Any:
    """Dtype of the logits of one row, by vLLM's own projection; None where it can't be called alone."""
    processor, head = _parts(runner)
    apply = getattr(processor, "_apply_head", None)
    if apply is None:
        return None
    torch = sys.modules["torch"]
    with torch.inference_mode():
        row = torch.zeros(1, head.weight.shape[-1], dtype=runner.model_config.dtype, device=head.weight.device)
        return apply(head, row, None).dtype


def facts(runner: Any) -> dict[str, str]:
    """The dtype that logits really come in, and whether our override is what made it so."""
    found, value = projected(runner), read(runner)
    shown = "unknown" if found is None else str(found).removeprefix("torch.")
    bound = "no override" if value == "off" else "yes" if _is_float32(found) else "no"
    return {"head_dtype": shown, "lm_head_fp32 bound": bound}


def _memory(runner: Any, head: Any) -> str:
    """Float32 logits of a full batch and, off CUDA, a float32 copy of the weight at every step, have to fit."""
    rows = runner.vllm_config.scheduler_config.max_num_seqs
    need = 4 * rows * head.weight.shape[0]
    if head.weight.device.type != "cuda":
        need += 4 * head.weight.numel()
    free = free_bytes(head.weight.device)
    if free is None:
        return f"free memory of a {head.weight.device.type} device can't be read"
    return "" if free > need else f"too little memory: {free >> 20} MiB free, {need >> 20} MiB needed"


def free_bytes(device: Any) -> int | None:
    """Free memory of a device, with what torch holds and does not use; None where it can't be read."""
    if device.type == "cuda":
        cuda = sys.modules["torch"].cuda
        unused = cuda.memory_reserved(device) - cuda.memory_allocated(device)
        return int(cuda.mem_get_info(device)[0] + unused)
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
