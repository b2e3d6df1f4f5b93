"""Recognises copies into a model's parameters, past ``load_weights``: by version counters and by sums over samples.

``param.copy_`` raises the counter of a tensor, ``param.data.copy_`` does not, so values are compared too: the bits of
up to ``SAMPLED`` elements per parameter, summed on its device. That takes 4 ms for 16 GB in 195 parameters on an H200;
sums over all elements take 42 ms. An update in bf16 at a learning rate of 1e-7 changes 180 of these samples. Nothing
waits for the device: a call may have queued a receive whose sender waits for the answer to that call. What a device
compares is found by a later question.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

SAMPLED = 4096
"""Elements of a parameter whose bits are summed, evenly spaced. An update of a trainer changes many more."""

MOVED_BY_VLLM = (("parallel_config", "enable_eplb"), ("model_config", "enable_sleep_mode"))
"""Options with which vLLM itself moves or unmaps weights between steps: then no values are read."""


class WeightSample:
    """The last sample of a model's parameters."""

    def __init__(self, model: Any, vllm_config: Any) -> None:
        self._reads = not any(_option(vllm_config, path) for path in MOVED_BY_VLLM)
        self._counters: dict[str, int] = {}
        self._sums: Any = None
        self._names: list[str] = []
        self._compared: list[tuple[list[str], Any, Any]] = []  # names, whether each differs, event once that is there
        self.renew(model)

    @property
    def pending(self) -> bool:
        """Whether a comparison on a device is not finished, or was not asked for since."""
        return bool(self._compared)

    def renew(self, model: Any, values: bool = True) -> None:
        """Sample the present weights. Without ``values``, only counters are compared the next time."""
        self._counters = {name: counter_of(tensor) for name, tensor in model.named_parameters()}
        readable = list(_readable(model)) if values and self._reads else []
        self._names, self._compared = [name for name, _ in readable], []
        self._sums = sums_of([tensor for _, tensor in readable])

    def renew_counters(self, model: Any, names: Iterable[str]) -> None:
        """Take the counters of some parameters only; of others, and values, the next comparison knows no more."""
        self._sums = None
        for name in names:
            with contextlib.suppress(AttributeError):  # a name that is no parameter's
                self._counters[name] = counter_of(model.get_parameter(name))

    def changed(self, model: Any) -> set[str]:
        """The parameters that changed since the last sample, which this one replaces.

        Values on a device are compared there: ``take_compared`` has what differs once ``pending`` comparisons are done.
        """
        counters, names, sums, compared = self._counters, self._names, self._sums, self._compared
        self.renew(model)
        if sums is not None and names == self._names:
            compared.append((names, *to_host(sums != self._sums)))
        self._compared = compared
        found = {name for name, counter in self._counters.items() if counters.get(name) != counter}
        return found | self.take_compared()

    def take_compared(self) -> set[str]:
        """The parameters whose values differ, by the comparisons that are done."""
        done = [one for one in self._compared if one[2] is None or one[2].query()]
        self._compared = [one for one in self._compared if not any(one is other for other in done)]
        return {name for names, differ, _ in done for name, one in zip(names, differ.tolist(), strict=True) if one}


def to_host(values: Any) -> tuple[Any, Any]:
    """Values on their way to the host, and the event after which they are there; None if they are."""
    if values.device.type == "cpu":
        return values, None
    torch = sys.modules["torch"]
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    event = getattr(torch, values.device.type).Event()
    event.record()
    return copy, event


def sums_of(tensors: list[Any]) -> Any:
    """One sum per tensor, on their device; None if there are none."""
    if not tensors:
        return None
    torch = sys.modules["torch"]
    with torch.inference_mode():
        return torch.stack([_sum(torch, tensor.detach()) for tensor in tensors])


def _sum(torch: Any, tensor: Any) -> Any:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    size = tensor.numel()
    taken = min(size, SAMPLED)
    sample = torch.as_strided(tensor, (taken,), (size // taken,))  # whatever the order of its dimensions
    return sample.view(kinds[tensor.element_size()]).sum(dtype=torch.int64)


def _readable(model: Any) -> Iterator[tuple[str, Any]]:
    """Parameters with elements, all on the device of the first: some layers empty or offload theirs."""
    device = None
    for name, tensor in model.named_parameters():
        if tensor.numel() and tensor.element_size() <= 8 and is_in_memory(tensor, tensor.numel()):
            device = tensor.device if device is None else device
            if tensor.device == device:
                yield name, tensor


def is_in_memory(tensor: Any, elements: int) -> bool:
    """Whether its storage has ``elements`` from its first on; false for meta, sparse, released, wrapping ones."""
    try:
        storage = tensor.untyped_storage()
        needed = (tensor.storage_offset() + elements) * tensor.element_size()
        return bool(storage.data_ptr()) and bool(storage.nbytes() >= needed)
    except RuntimeError:  # it has none
        return False


def counter_of(tensor: Any) -> int:
    """How often a tensor was changed in place; -1 if torch does not count it."""
    try:
        return int(tensor._version)
    except RuntimeError:
        return -1


def _option(config: Any, path: tuple[str, str]) -> bool:
    return bool(getattr(getattr(config, path[0], None), path[1], False))
