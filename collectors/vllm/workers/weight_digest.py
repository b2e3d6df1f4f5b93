"""The worker's part of a weight digest: reads every tensor of the model in slices.

The engine calls ``DIGEST`` repeatedly until everything is read; each call takes about the given time. Tensors that
``named_parameters`` misses are read too: buffers, other attributes of modules, and weights that a linear layer has
packed for the CPU, whose parameter is empty (or, for a tied head, is the embedding's). Packed weights are not
accessible as tensors; projecting unit vectors returns them exactly, because all other products are zero.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from rltop.collectors.contract.digests import Checksum, as_hex, bits_of, chunk_elements, dtype_name, row_chunks
from rltop.collectors.vllm.workers.weight_sample import is_in_memory

DIGEST = "rltop_digest"
FREE_BYTES = "rltop_free_bytes"

PARAMETER, BUFFER, OTHER, PACKED, UNREAD = "parameter", "buffer", "other", "packed", "unread"

SKIPPED = ("kv_cache", "rltop")
"""Attributes with these prefixes contain no weights."""

MAX_TENSORS = 50_000
"""Limit of a message; further tensors are reported as unread."""

Found = tuple[str, str, str, str, str, int, str]
"""Name, kind, ``whole``, ``rows``, dtype, elements, ``columns``; see ``wire.Digest``."""


class DigestPass:
    """One pass over a model: call ``advance`` until ``done``."""

    def __init__(self, model: Any) -> None:
        self.found: list[Found] = []
        self.done = False
        self.fused = {
            name: list(parts) for name, parts in (getattr(model, "packed_modules_mapping", None) or {}).items()
        }
        self._work = self._read(model)

    def advance(self, seconds: float) -> None:
        """Read for about ``seconds``, at least one chunk."""
        until = time.perf_counter() + seconds
        while not self.done and next(self._work, self) is not self:
            if time.perf_counter() >= until:
                return
        self.done = True

    def _read(self, model: Any) -> Iterator[None]:
        """Yields after every chunk."""
        for number, (name, kind, tensor) in enumerate(tensors(model)):
            if number >= MAX_TENSORS:
                self.found.append((f"more than {MAX_TENSORS} tensors", UNREAD, "", "", "", 0, ""))
                return
            if not is_readable(tensor):
                self.found.append((name, UNREAD, "", "", "", 0, ""))
                continue
            sum_ = Checksum()
            for first, bits in row_chunks(tensor):
                sum_.add_rows(first, bits)
                yield
            sum_.end()
            self._add(name, kind, sum_, dtype_name(tensor), int(tensor.numel()))
        for name, module in packed(model):
            yield from self._project(name, module)

    def _project(self, name: str, module: Any) -> Iterator[None]:
        width = getattr(module, "input_size_per_partition", None) or getattr(module, "embedding_dim", None)
        if not width:
            self.found.append((name, UNREAD, "", "", "", 0, ""))
            return
        torch, weight = sys.modules["torch"], module.weight
        sum_, first, step, elements = Checksum(), 0, 1, 0
        while first < width:
            units = torch.zeros(min(step, width - first), width, dtype=weight.dtype, device=weight.device)
            units[range(units.shape[0]), range(first, first + units.shape[0])] = 1
            columns = module.cpu_linear(units, weight, None).t()
            sum_.add_columns(first, bits_of(columns))
            first, elements = first + units.shape[0], elements + int(columns.numel())
            step = max(chunk_elements(weight) // int(columns.shape[0]), 1)
            yield
        sum_.end()
        self._add(name, PACKED, sum_, dtype_name(weight), elements)

    def _add(self, name: str, kind: str, sum_: Checksum, dtype: str, elements: int) -> None:
        self.found.append((name, kind, as_hex(sum_.whole), as_hex(sum_.rows), dtype, elements, as_hex(sum_.columns)))


def tensors(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield name, kind and tensor of all non-empty tensors of a model, each once; see ``is_readable``."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, kind, tensor in _named(model):
        if not tensor.numel() or tensor.is_meta:
            continue
        readable = is_readable(tensor)
        place = (int(tensor.data_ptr()) if readable else id(tensor), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            yield name, kind, tensor.detach() if readable else tensor


def is_readable(tensor: Any) -> bool:
    """Whether a tensor has elements of at most 8 bytes in memory: reading a released one would end the process."""
    try:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    except RuntimeError:  # it has no strides: sparse
        return False
    return tensor.element_size() <= 8 and is_in_memory(tensor, last + 1)


def _named(model: Any) -> Iterator[tuple[str, str, Any]]:
    for name, tensor in model.named_parameters():
        yield name, PARAMETER, tensor
    for name, tensor in model.named_buffers():
        yield name, BUFFER, tensor
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith((*SKIPPED, "_parameters", "_buffers", "_modules")):
                for part, tensor in _within(value):
                    yield f"{name}.{attribute}{part}".lstrip("."), OTHER, tensor


def _within(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensor that an attribute is, or those that it contains directly, with a suffix for the name."""
    kind = sys.modules["torch"].Tensor
    if isinstance(value, kind):
        yield "", value
    elif isinstance(value, list | tuple):
        yield from ((f"[{at}]", part) for at, part in enumerate(value) if isinstance(part, kind))
    elif isinstance(value, dict):
        yield from ((f"[{key}]", part) for key, part in value.items() if isinstance(part, kind))


def packed(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules that project with a packed copy of their weight, with the name of that weight.

    An embedding has such a copy too, but it is used only if the embedding is also the head.
    """
    plain = sys.modules["torch"].nn.functional.linear
    heads = {id(part) for module in model.modules() for name, part in module.named_children() if name == "lm_head"}
    for name, module in model.named_modules():
        linear = vars(module).get("cpu_linear")
        used = not hasattr(module, "embedding_dim") or id(module) in heads
        if used and linear is not None and linear is not plain and _holds_a_copy(linear):
            weight = getattr(module, "weight", None)
            yield f"{name}.weight{' (packed)' if weight is not None and weight.numel() else ''}", module


def _holds_a_copy(linear: Any) -> bool:
    """VLLM's fallback has no closure: it projects with the parameter that it is passed."""
    return bool(getattr(linear, "__closure__", None) or getattr(linear, "__defaults__", None))


def digest(worker: Any, restart: bool, seconds: float) -> dict[str, Any]:
    """Read for about ``seconds``, from the beginning if ``restart``. Never raises: see ``one_rank``."""
    try:
        torch = sys.modules["torch"]
        if restart:
            runner = worker.model_runner
            worker.rltop_reading = DigestPass(runner.get_model() if hasattr(runner, "get_model") else runner.model)
        digest_pass = worker.rltop_reading
        if digest_pass is None:  # complete; ranks of another stage have more to read
            return {"done": True, "error": "", "found": [], "fused": {}}
        with torch.inference_mode():
            digest_pass.advance(seconds)
        if not digest_pass.done:
            return {"done": False, "error": ""}
        worker.rltop_reading = None
        return {"done": True, "error": "", "found": digest_pass.found, "fused": digest_pass.fused}
    except Exception as fault:  # noqa: BLE001 - never raises, as every method of a worker
        return {"done": True, "error": f"{type(fault).__name__}: {fault}", "found": [], "fused": {}}


def free_bytes(worker: Any) -> int | None:
    """Free memory of the rank's device in bytes; None if it can't be read. Never raises."""
    from rltop.collectors.vllm.workers.lm_head import free_bytes as free

    try:
        return free(worker.model_runner.device)
    except Exception:  # noqa: BLE001 - as above
        return None
