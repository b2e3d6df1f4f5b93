"""The metrics of arrays at hand: what the hub computes of a step, of a ``.npz`` file. Pure but for reading the file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.backend import metrics
from rltop.backend.join.batch import Batch
from rltop.backend.measure.measure import measure
from rltop.backend.summary import Summary
from rltop.backend.summary.groups import Groups
from rltop.collectors.contract import wire
from rltop.collectors.trainer import arguments, packing

REQUIRED = ("trainer_logprobs", "rollout_logprobs", "mask")
_NUMBERS = ("policy_version", "clip_low", "clip_high", "temperature")
_WORDS = {"ratio_base": ("rollout", "old"), "objective": ("ppo", "gspo")}
_ARRAYS = ("token_ids", "mask", "prompt_ids", "rewards", "cu_seqlens", *arguments.LEVELS)
NAMES = frozenset({*_ARRAYS, *_NUMBERS, *_WORDS})
"""The arguments of ``TrainerCollector.sequences`` that say something here."""

_EXACT = tuple(name for name, kind in wire.TOKEN_COLUMNS.items() if kind == "f4")


class ComputeError(ValueError):
    """The file or its arrays are not what is asked for; the message says which and what was expected."""


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz`` file. Nothing in it is executed: pickled arrays are refused.

    Raises:
        ComputeError: no such file, not a .npz, or an array that can't be read.
    """
    try:
        file = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ComputeError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # numpy takes any other file for a pickle, and says so
        raise ComputeError(f"{path}: not a .npz, as numpy.savez writes it") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ComputeError(f"{path}: one array without a name; expected a .npz (numpy.savez)")
    with file:
        return {name: _array(path, file, name) for name in file.files}


def _array(path: Path, file: Mapping[str, Any], name: str) -> NDArray[Any]:
    try:
        return np.asarray(file[name])
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise ComputeError(f"{path}: {name}: {error}") from error


def values(arrays: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric of arrays, named and shaped as the arguments of ``TrainerCollector.sequences``.

    ``trainer_logprobs``, ``rollout_logprobs`` and ``mask`` are required; 1-D arrays without ``cu_seqlens`` are one
    sequence. Logprobs are used in the precision they come in.

    Raises:
        ComputeError: an array is missing or does not fit.
    """
    return metrics.values(summary(arrays))


def summary(arrays: Mapping[str, Any]) -> Summary:
    """The summary that ``values`` are read from; raises likewise."""
    for name in REQUIRED:
        if name not in arrays:
            raise ComputeError(f"{name}: missing; required are {', '.join(REQUIRED)}")
    given = {name: np.asarray(arrays[name]) for name in _ARRAYS if name in arrays}
    like = given["trainer_logprobs"]
    if like.ndim == 1 and "cu_seqlens" not in given:
        given["cu_seqlens"] = np.array([0, like.size])
    ids = given.setdefault("token_ids", np.zeros(like.shape, np.int32))
    try:
        checked = arguments.check(
            _head(arrays), ids, given["mask"], given.get("prompt_ids"), given.get("rewards"), given.get("cu_seqlens"),
            {name: given.get(name) for name in arguments.LEVELS},
        )  # fmt: skip
        total = _summed(checked.copy(), ids_known="token_ids" in arrays)
    except ComputeError:
        raise
    except ValueError as error:
        told = str(error) if "token_ids" in arrays else str(error).replace("as token_ids", "as trainer_logprobs")
        raise ComputeError(told) from error
    total.joinable = 0  # there is nothing to join with
    if not {"token_ids", "prompt_ids"} & arrays.keys():
        total.groups = Groups()
    return total


def _head(arrays: Mapping[str, Any]) -> wire.Sequences:
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        if name in arrays:
            value = np.asarray(arrays[name])
            if value.size != 1 or value.dtype.kind not in "iuf":
                raise ComputeError(f"{name}: {value.dtype} of shape {list(value.shape)}; expected a single number")
            numbers[name] = value.item()
    if "policy_version" in numbers:
        numbers["policy_version"] = int(numbers["policy_version"])
    for name, choices in _WORDS.items():
        if name in arrays:
            word = str(np.asarray(arrays[name]).item()) if np.asarray(arrays[name]).size == 1 else ""
            if word not in choices:
                raise ComputeError(f"{name}: {arrays[name]!s}; expected one of {', '.join(choices)}")
            numbers[name] = word
    return wire.Sequences(step=0, update=0, rank=0, rows=0, arrays=[], **numbers)


def _summed(batch: packing.CopiedCall, *, ids_known: bool) -> Summary:
    """Block after block of rows, each as the hub would get it, but with the logprobs as precise as they came."""
    sizes = batch.sizes if isinstance(batch.sizes, np.ndarray) else batch.sizes.read()
    mask = batch.mask.read() != 0
    exact = {name: _whole(column, sizes)[mask] for name, column in batch.columns.items() if name in _EXACT}
    total, at = Summary(), 0
    for body, block in packing.pack(batch):
        rows = Batch(body, block)
        rows.arrays = block | {name: column[at : at + rows.tokens] for name, column in exact.items()}
        at += rows.tokens
        total = sum(measure(rows, ids_known=ids_known).values(), total)
    return total


def _whole(column: packing.PackedColumn, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """A column's values, one per token, in float64 unless they came in float32."""
    found = column.values.read()
    if found.dtype != np.float32:
        found = found.astype(np.float64)
    if column.level == "row":
        return np.repeat(found, sizes)
    return found if column.level == "token" else np.repeat(found, sizes.sum())
