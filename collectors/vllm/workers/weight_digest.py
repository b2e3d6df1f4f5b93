"""The worker's half of a weight digest: every tensor of the model, read a little at a time.

A worker answers ``DIGEST`` again and again until all is read; each call takes about as long as it is told to. What
``named_parameters`` misses is read too: buffers, tensors that modules keep by other ways, and the weights that a linear
layer has packed for the CPU, where its parameter is left empty (or, of a tied head, shares the embedding's). Packed
weights are behind a pointer; they come out exactly by projecting unit vectors, since all other products are zero.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from rltop.collectors.contract.digests import Checksum, bits_of, chunk_elements, dtype_name, hexed, row_chunks

DIGEST = "rltop_digest"
ROOM = "rltop_free_bytes"

PARAMETER, BUFFER, OTHER, PACKED, UNREAD = "parameter", "buffer", "other", "packed", "unread"

SKIPPED = ("kv_cache", "rltop")
"""Attributes of modules whose name begins so hold no weights."""

MAX_TENSORS = 50_000
"""What fits a message; of more, the rest is not read, and told."""

Found = tuple[str, str, str, str, str, int, str]
"""Name, kind, ``whole``, ``rows``, dtype, elements, ``columns``; as ``wire.Digest``."""


class DigestPass:
    """One pass over a model: ``go`` until ``done``."""

    def __init__(self, model: Any) -> None:
        self.found: list[Found] = []
        self.done = False
        self.fused = {
            name: list(parts) for name, parts in (getattr(model, "packed_modules_mapping", None) or {}).items()
        }
        self._work = self._read(model)

    def go(self, seconds: float) -> None:
        """Read on for about so long, a chunk at least."""
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
        self.found.append((name, kind, hexed(sum_.whole), hexed(sum_.rows), dtype, elements, hexed(sum_.columns)))


def tensors(model: Any) -> Iterator[tuple[str, str, Any]]:
    """All tensors of a model with something in them, each once, with name and kind."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, kind, tensor in _named(model):
        place = (int(tensor.data_ptr()), tuple(tensor.shape))
        if tensor.numel() and not tensor.is_meta and place not in seen:
            seen.add(place)
            yield name, kind, tensor.detach()


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
    """The tensors that an attribute is, or holds directly."""
    kind = sys.modules["torch"].Tensor
    if isinstance(value, kind):
        yield "", value
    elif isinstance(value, list | tuple):
        yield from ((f"[{at}]", part) for at, part in enumerate(value) if isinstance(part, kind))
    elif isinstance(value, dict):
        yield from ((f"[{key}]", part) for key, part in value.items() if isinstance(part, kind))


def packed(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules that project by a packed copy of their weight, by the name of that weight.

    An embedding has one too, which nothing projects by unless it is the head as well.
    """
    plain = sys.modules["torch"].nn.functional.linear
    heads = {id(part) for module in model.modules() for name, part in module.named_children() if name == "lm_head"}
    for name, module in model.named_modules():
        linear = vars(module).get("cpu_linear")
        used = not hasattr(module, "embedding_dim") or id(module) in heads
        if used and linear is not None and linear is not plain and _holds_a_copy(linear):
            taken = getattr(module, "weight", None)
            yield f"{name}.weight{' (packed)' if taken is not None and taken.numel() else ''}", module


def _holds_a_copy(linear: Any) -> bool:
    """The fallback of vLLM closes over nothing, and projects by the parameter that it is given."""
    return bool(getattr(linear, "__closure__", None) or getattr(linear, "__defaults__", None))


def digest(worker: Any, anew: bool, seconds: float) -> dict[str, Any]:
    """Read on for about ``seconds``, from the start if ``anew``. Never raises: see ``worker``."""
    try:
        torch = sys.modules["torch"]
        if anew:
            runner = worker.model_runner
            worker.rltop_reading = DigestPass(runner.get_model() if hasattr(runner, "get_model") else runner.model)
        reading = worker.rltop_reading
        if reading is None:  # done; the ranks of another stage have more
            return {"done": True, "error": "", "found": [], "fused": {}}
        with torch.inference_mode():
            reading.go(seconds)
        if not reading.done:
            return {"done": False, "error": ""}
        worker.rltop_reading = None
        return {"done": True, "error": "", "found": reading.found, "fused": reading.fused}
    except Exception as fault:  # noqa: BLE001 - as all that a worker is asked by us
        return {"done": True, "error": f"{type(fault).__name__}: {fault}", "found": [], "fused": {}}


def free_bytes(worker: Any) -> int | None:
    """Free memory of the rank's device; None where it can't be read. Never raises."""
    from rltop.collectors.vllm.workers.lm_head import free_bytes as free

    try:
        return free(worker.model_runner.device)
    except Exception:  # noqa: BLE001 - as above
        return None
