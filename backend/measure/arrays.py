"""Computes the metrics of given arrays or of a ``.npz`` file, as the hub does for a step. Pure but for the file."""

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
"""Arguments of ``TrainerCollector.sequences`` that are used here."""

_EXACT = tuple(name for name, kind in wire.TOKEN_COLUMNS.items() if kind == "f4")


class ComputeError(ValueError):
    """The file or an array is invalid; the message names it and what was expected."""


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays of a ``.npz`` file. Pickled arrays are refused, so nothing in the file is executed.

    Raises:
        ComputeError: no such file, not a .npz, or an array that can't be read.
    """
    try:
        file = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ComputeError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # numpy reports any other file as a pickle
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
    """Every metric of ``arrays``, which have the names and shapes of the arguments of ``TrainerCollector.sequences``.

    ``trainer_logprobs``, ``rollout_logprobs`` and ``mask`` are required; 1-D arrays without ``cu_seqlens`` are one
    sequence. Logprobs are used in the given precision.

    Raises:
        ComputeError: an array is missing or does not fit.
    """
    return metrics.values(summary(arrays))


def summary(arrays: Mapping[str, Any]) -> Summary:
    """The summary that ``values`` are computed from; raises as it does."""
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
        total = _total(checked.copy(), ids_known="token_ids" in arrays)
    except ComputeError:
        raise
    except ValueError as error:
        text = str(error) if "token_ids" in arrays else str(error).replace("as token_ids", "as trainer_logprobs")
        raise ComputeError(text) from error
    total.joinable = 0  # there are no rollouts to join with
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


def _total(batch: packing.CopiedCall, *, ids_known: bool) -> Summary:
    """Sum over blocks of rows, as the hub receives them, but with the logprobs in the given precision."""
    sizes = batch.sizes if isinstance(batch.sizes, np.ndarray) else batch.sizes.read()
    mask = batch.mask.read() != 0
    exact = {name: _per_token(column, sizes)[mask] for name, column in batch.columns.items() if name in _EXACT}
    total, at = Summary(), 0
    for body, block in packing.pack(batch):
        rows = Batch(body, block)
        rows.arrays = block | {name: column[at : at + rows.tokens] for name, column in exact.items()}
        at += rows.tokens
        total = sum(measure(rows, ids_known=ids_known).values(), total)
    return total


def _per_token(column: packing.PackedColumn, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """A column's values per token; float64 unless they are float32."""
    found = column.values.read()
    if found.dtype != np.float32:
        found = found.astype(np.float64)
    if column.level == "row":
        return np.repeat(found, sizes)
    return found if column.level == "token" else np.repeat(found, sizes.sum())
