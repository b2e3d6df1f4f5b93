"""A trainer's arrays: torch tensors (any device, any float dtype) or numpy arrays, whole or as a list of rows.

The caller's thread inspects shapes and dtypes (``inspect``) and copies (``Argument.copy``). It reads no values, so it
never waits for a device. The sender's thread reads the values (``Copy.read``). Torch is used only if the caller
imported it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract.checked import ArgumentError, named, shown


@dataclass(frozen=True)
class Argument:
    """One argument as the caller passed it.

    Attributes:
        name: name of the argument, for messages.
        parts: torch tensors or numpy arrays: a single one, or one [time] per row if ``ragged``.
        shape: shape of the single part; if ``ragged``, the length of each row.
        ragged: the argument is a list of rows.
    """

    name: str
    parts: tuple[Any, ...]
    shape: tuple[int, ...]
    ragged: bool = False

    @property
    def nbytes(self) -> int:
        """Size of a copy in bytes."""
        return sum(int(part.nbytes) for part in self.parts)

    @property
    def on_device(self) -> bool:
        """Whether reading a value would wait for a device."""
        return any(is_tensor(part) and part.device.type != "cpu" for part in self.parts)

    def describe(self) -> str:
        """The shape, for messages."""
        return f"rows of lengths {short(self.shape)}" if self.ragged else f"shape {list(self.shape)}"

    def copy(self) -> Copy:
        """Copy the values, flattened. Copying from CUDA is asynchronous; other devices are waited for."""
        if not is_tensor(self.parts[0] if self.parts else None):
            flat = [np.ravel(part) for part in self.parts] or [np.empty(0)]
            return Copy(np.concatenate(flat))
        return _copy_tensors(self.parts)


@dataclass(frozen=True)
class Copy:
    """The flat copy of an argument.

    It is a numpy array: an interpreter that exits while a daemon thread is inside torch aborts.

    Attributes:
        host: [entries], in the argument's own dtype; int16 if ``bfloat16``, which numpy lacks.
        bfloat16: ``host`` contains the bits of bfloat16 values.
        ready: a ``torch.cuda.Event`` after which ``host`` is complete; None if it is complete already.
    """

    host: NDArray[Any]
    bfloat16: bool = False
    ready: Any = None

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Entries ``start`` to ``stop``, converted to a dtype that numpy can compute with. Waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        part = self.host[start:stop]
        if self.bfloat16:  # the upper half of a float32
            return (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return part if part.dtype.kind in "biuf" else part.astype(np.float32)


@named
def inspect(name: str, value: Any, *, integer: bool = False) -> Argument:
    """Inspect an argument's type, shape and dtype.

    Args:
        name: name of the argument, for messages.
        value: a torch tensor, anything that numpy converts to a numeric array, or a list of 1-D ones of these.
        integer: require integers.

    Raises:
        ArgumentError: not numeric; not integers; or a list of rows that are not 1-D, or differ in library or device.
    """
    if isinstance(value, list | tuple) and value and is_row(value[0]):
        parts = tuple(_part(f"{name}[{index}]", item, integer) for index, item in enumerate(value))
        for index, part in enumerate(parts):
            if part.ndim != 1 or type(part) is not type(parts[0]) or _device(part) != _device(parts[0]):
                raise ArgumentError(
                    f"{name}[{index}]: {type(part).__name__} of shape {list(part.shape)} on {_device(part)}; expected "
                    f"1-D rows of one library on one device ({_device(parts[0])})"
                )
        return Argument(name, parts, tuple(int(part.shape[0]) for part in parts), ragged=True)
    part = _part(name, value, integer)
    return Argument(name, (part,), tuple(part.shape))


def short(values: Any) -> str:
    """The first six values, for messages."""
    shown = [value.item() if isinstance(value, np.generic) else value for value in values[:6]]
    return f"[{', '.join(map(str, shown))}{', ...' if len(values) > 6 else ''}]"


def _part(name: str, value: Any, integer: bool) -> Any:
    """Convert to a tensor or numpy array of numeric dtype; raises ``ArgumentError``."""
    if is_tensor(value):
        if value.is_nested or str(value.layout) != "torch.strided":
            raise ArgumentError(f"{name}: a nested or sparse tensor; expected a dense one")
        if value.is_meta or value.is_quantized:
            raise ArgumentError(f"{name}: a meta or quantized tensor; expected one with plain values")
        part = value.detach()
        kind = "f" if part.is_floating_point() else "c" if part.is_complex() else "i"
    else:
        try:
            part = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"{name}: numpy can't read it: {shown(error)}") from error
        kind = part.dtype.kind
        if kind == "V" and "float" in part.dtype.name:  # ml_dtypes (bfloat16, float8) have kind V (raw bytes)
            kind = "f"
    if kind not in "biuf" or (integer and kind == "f" and math.prod(part.shape)):
        raise ArgumentError(f"{name}: dtype {part.dtype}; expected {'integers' if integer else 'numbers'}")
    return part


def _copy_tensors(parts: tuple[Any, ...]) -> Copy:
    torch = sys.modules["torch"]
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    bfloat16 = dtype == torch.bfloat16
    if dtype.itemsize == 1 and dtype.is_floating_point:  # float8 of any kind: not in numpy, not promotable
        dtype = torch.float32
    stored = torch.int16 if bfloat16 else dtype
    count = sum(part.numel() for part in parts)
    if parts[0].device.type == "cuda":
        pinned = torch.empty(
            count, dtype=stored, device="cpu", pin_memory=True
        )  # device: overrides torch.set_default_device
        _fill(pinned.view(dtype), parts, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(parts[0].device))
        return Copy(pinned.numpy(), bfloat16, ready)
    host = np.empty(count, str(stored).removeprefix("torch."))
    _fill(torch.from_numpy(host).view(dtype), parts, non_blocking=False)
    return Copy(host, bfloat16)


def _fill(target: Any, parts: tuple[Any, ...], *, non_blocking: bool) -> None:
    start = 0
    for part in parts:
        stop = start + part.numel()
        target[start:stop].view(part.shape).copy_(part, non_blocking=non_blocking)
        start = stop


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@named
def has_axis(_name: str, value: Any) -> bool:
    """``is_row`` of an argument, whose own code may raise."""
    return is_row(value)


def is_row(value: Any) -> bool:
    """Whether a value is an array with an axis, or a list, rather than a single number."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _device(part: Any) -> str:
    return str(part.device) if is_tensor(part) else "cpu"
