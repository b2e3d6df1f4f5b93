"""Overrides the projection to the vocabulary on a live model, to compute it in float32.

vLLM versions with ``head_dtype`` (from 0.26.0) cast the weight for the projection only, so ``head_dtype`` is set. In
older ones (0.18.1) the ``apply`` of the head's quant method is wrapped and does the same. A tied embedding keeps the
model's dtype in both cases: its look-up uses ``embedding``, not ``apply``. Whether the override is *bound* (effective)
is verified by projecting one row through the live objects.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

PLAIN = frozenset({"UnquantizedEmbeddingMethod", "UnquantizedLinearMethod"})
"""Quant methods whose weight can be cast; any other raises in the forward pass, which ends the engine."""


def parts(runner: Any) -> tuple[Any, Any]:
    """Logits processor and head of the model, or of its language model if it is multimodal."""
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    if not hasattr(model, "logits_processor"):
        model = getattr(model, "language_model", None)
    return getattr(model, "logits_processor", None), getattr(model, "lm_head", None)


def _is_float32(dtype: Any) -> bool:
    return str(dtype) == "torch.float32"


def read(runner: Any) -> str | None:
    """``on`` while the override is in place; None if there is no head for it."""
    processor, head = parts(runner)
    if hasattr(processor, "head_dtype"):
        return "on" if hasattr(processor, "rltop_head_dtype") and _is_float32(processor.head_dtype) else "off"
    method = getattr(head, "quant_method", None)
    if processor is None or not hasattr(method, "apply"):
        return None
    return "on" if hasattr(vars(method).get("apply"), "rltop_head") else "off"


def note(runner: Any) -> str:
    """Why a switch has no effect; empty if it has one."""
    processor, _ = parts(runner)
    if _is_float32(runner.model_config.dtype):
        return "no effect: the model is float32"
    launched = getattr(processor, "rltop_head_dtype", getattr(processor, "head_dtype", None))
    return "no effect: started with a float32 head" if _is_float32(launched) else ""


def write(runner: Any, value: str, _extra: Any) -> None:
    """Install or remove the override, and verify the dtype of one projected row."""
    if read(runner) != value:
        processor, head = parts(runner)
        if hasattr(processor, "head_dtype"):
            _set_dtype(processor, value)
        elif value == "on":
            head.quant_method.apply = _in_float32(head, head.quant_method.apply)
        else:
            del head.quant_method.apply
    if value == "on" and not _is_float32(found := projected(runner)):
        raise RuntimeError(f"not bound: expected float32, a projected row has dtype {found}")


def _set_dtype(processor: Any, value: str) -> None:
    if value == "on":
        processor.rltop_head_dtype = processor.head_dtype
        processor.head_dtype = sys.modules["torch"].float32
    else:
        processor.head_dtype = processor.rltop_head_dtype
        del processor.rltop_head_dtype


def _in_float32(head: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``apply``: project in float32 if the layer is ``head``, as vLLM does for ``head_dtype``; else unchanged.

    On CUDA the product accumulates in float32 without a copy of the weight.
    """
    torch = sys.modules["torch"]

    @functools.wraps(original)
    def apply(layer: Any, x: Any, bias: Any = None) -> Any:
        if layer is not head:
            return original(layer, x, bias)
        if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
            flat = torch.mm(x.reshape(-1, x.shape[-1]), layer.weight.t(), out_dtype=torch.float32)
            logits = flat.reshape(*x.shape[:-1], -1)
            return logits if bias is None else logits + bias.float()
        return torch.nn.functional.linear(x.float(), layer.weight.float(), None if bias is None else bias.float())

    apply.rltop_head = True  # type: ignore[attr-defined] # recognised by ``read``
    return apply


def projected(runner: Any) -> Any:
    """Dtype of one row projected by vLLM's own code; None if a single row can't be projected."""
    processor, head = parts(runner)
    if hasattr(processor, "_apply_head"):
        project: Callable[[Any], Any] = lambda row: processor._apply_head(head, row, None)  # noqa: E731 - one of two
    elif not hasattr(processor, "head_dtype"):
        project = lambda row: head.quant_method.apply(head, row, bias=None)  # noqa: E731
    else:
        return None
    torch = sys.modules["torch"]
    with torch.inference_mode():
        row = torch.zeros(1, head.weight.shape[-1], dtype=runner.model_config.dtype, device=head.weight.device)
        return project(row).dtype


def facts(runner: Any) -> dict[str, str]:
    """The actual dtype of logits, and whether the override is effective."""
    found, value = projected(runner), read(runner)
    shown = "unknown" if found is None else str(found).removeprefix("torch.")
    bound = "no override" if value == "off" else "yes" if _is_float32(found) else "no"
    return {"head_dtype": shown, "lm_head_fp32 bound": bound}


def memory(runner: Any) -> str:
    """Why float32 logits of a full batch (except on CUDA also a float32 weight) don't fit; empty if they do."""
    _, head = parts(runner)
    rows = runner.vllm_config.scheduler_config.max_num_seqs
    need = 4 * rows * head.weight.shape[0]
    if head.weight.device.type != "cuda":
        need += 4 * head.weight.numel()
    free = free_bytes(head.weight.device)
    if free is None:
        return f"free memory of a {head.weight.device.type} device can't be read"
    return "" if free > need else f"{free >> 20} MiB free, {need >> 20} MiB needed"


def free_bytes(device: Any) -> int | None:
    """Free memory of a device in bytes, including torch's unused cache; None if it can't be read."""
    if device.type == "cuda":
        cuda = sys.modules["torch"].cuda
        unused = cuda.memory_reserved(device) - cuda.memory_allocated(device)
        return int(cuda.mem_get_info(device)[0] + unused)
    if device.type == "cpu":
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
