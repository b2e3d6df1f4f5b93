"""The worker's part of the refit guard: sketches the weights of its model without ever waiting for a device.

The engine calls ``SKETCH`` until all is read. On a CPU each call takes about the given time. On a device a call queues
the work behind what the device has to do, and a later one finds the result: a receive that waits for its sender, queued
before, delays the result and nothing else.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

from rltop.collectors.contract.weight_sketch import COLUMNS, TensorSketch, UnreadSketch, is_sketchable, sketch, spaced
from rltop.collectors.vllm.workers.weight_digest import packed
from rltop.collectors.vllm.workers.weight_sample import to_host
from rltop.collectors.vllm.workers.weight_watch import filled_by, model_of

SKETCH = "rltop_sketch"
"""Name of the worker's method."""

ATTRIBUTE = "rltop_sketching"

AT_ONCE = 32
"""Tensors that are read between two looks at the clock."""


class SketchPass:
    """One pass over a model: call ``advance`` until ``found`` is not None."""

    def __init__(self, model: Any, rank: int) -> None:
        self._rank = rank
        self._tensors = _batches(model)
        self._waiting: list[tuple[UnreadSketch, Any]] = []  # with the event after which it is there

    def advance(self, seconds: float) -> list[TensorSketch] | None:
        """Read for about ``seconds``, at least some tensors; the sketches once all are there."""
        until = time.perf_counter() + seconds
        for batch in self._tensors:
            if (unread := sketch(batch)) is not None:
                self._waiting.append(_to_host(unread))
            if time.perf_counter() >= until:
                return None
        if not all(event is None or event.query() for _, event in self._waiting):
            return None
        return [one for unread, _ in self._waiting for one in unread.read(self._rank)]


def _batches(model: Any) -> Iterator[list[tuple[str, Any]]]:
    """Names and tensors of all parameters and packed weights, some at a time."""
    parameters = spaced((name, tensor) for name, tensor in model.named_parameters() if _is_readable(tensor))
    for start in range(0, len(parameters), AT_ONCE):
        yield parameters[start : start + AT_ONCE]
    projecting = iter(packed(model))
    while some := list(itertools.islice(projecting, AT_ONCE)):
        read = ((name, _packed_columns(module)) for name, module in some)
        yield [(name, columns) for name, columns in read if columns is not None]


def _is_readable(tensor: Any) -> bool:
    try:
        return is_sketchable(tensor) and bool(tensor.untyped_storage().data_ptr())
    except (AttributeError, RuntimeError):  # no tensor of torch, or one that wraps another
        return False


def _packed_columns(module: Any) -> Any:
    """The first columns of a weight that is packed for the CPU: projections of unit vectors, which are exact."""
    width = getattr(module, "input_size_per_partition", None) or getattr(module, "embedding_dim", None)
    if not width:
        return None
    torch, weight = sys.modules["torch"], module.weight
    units = torch.eye(min(COLUMNS, width), width, dtype=weight.dtype, device=weight.device)
    return module.cpu_linear(units, weight, None).t()


def _to_host(unread: UnreadSketch) -> tuple[UnreadSketch, Any]:
    """The sketch with its numbers on their way to the host, and the event after which they are there."""
    hashes, _ = to_host(unread.hashes)
    sums, event = to_host(unread.sums)
    return UnreadSketch(unread.names, hashes, sums), event


def sketch_weights(worker: Any, restart: bool, seconds: float) -> dict[str, Any]:
    """Read for about ``seconds``, from the beginning if ``restart``. Never raises: see ``one_rank``."""
    began = time.thread_time()
    try:
        torch = sys.modules["torch"]
        model = model_of(worker.model_runner)
        if restart:
            setattr(worker, ATTRIBUTE, SketchPass(model, int(getattr(worker, "rank", 0) or 0)))
        reading = getattr(worker, ATTRIBUTE, None)
        if reading is None:  # complete; other ranks have more to read
            return {"done": True, "error": "", "found": [], "fused": {}, "filled": 0, "cpu_s": 0.0}
        with torch.inference_mode():
            found = reading.advance(seconds)
        if found is None:
            return {"done": False, "error": "", "cpu_s": time.thread_time() - began}
        setattr(worker, ATTRIBUTE, None)
        fused = {name: list(parts) for name, parts in (getattr(model, "packed_modules_mapping", None) or {}).items()}
        rows = [tuple(one) for one in found]  # plain: vLLM's answers know no classes of rltop
        return {
            "done": True, "error": "", "found": rows, "fused": fused, "filled": filled_by(model),
            "cpu_s": time.thread_time() - began,
        }  # fmt: skip
    except Exception as fault:  # noqa: BLE001 - never raises, as every method of a worker
        return {"done": True, "error": f"{type(fault).__name__}: {fault}"}
