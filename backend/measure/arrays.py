"""Computes the metrics of given arrays or of a ``.npz`` file, as the hub does for a step. Pure but for the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend import metrics
from rltop.backend.join.batch import Batch
from rltop.backend.measure.measure import measure
from rltop.backend.summary import Summary
from rltop.backend.summary.groups import Groups
from rltop.backend.util.printable import one_line
from rltop.collectors.contract import wire
from rltop.collectors.trainer import arguments, packing

REQUIRED = ("trainer_logprobs", "rollout_logprobs", "mask")
_NUMBERS = ("policy_version", "clip_low", "clip_high", "temperature")
_WORDS = {"ratio_base": ("rollout", "old", "current"), "objective": ("ppo", "gspo")}
_ARRAYS = ("token_ids", "mask", "prompt_ids", "rewards", "cu_seqlens", *arguments.LEVELS)
NAMES = frozenset({*_ARRAYS, *_NUMBERS, *_WORDS, "shifted", "environments"})
"""Arguments of ``TrainerCollector.sequences`` that are used here."""

_EXACT = tuple(name for name, kind in wire.TOKEN_COLUMNS.items() if kind == "f4")


MAX_SHOWN = 200
"""Characters of an error's text in a message."""


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
    except Exception as error:  # a damaged file raises many types; numpy reports any other file as a pickle
        raise ComputeError(f"{path}: not a .npz, as numpy.savez writes it") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ComputeError(f"{path}: one array without a name; expected a .npz (numpy.savez)")
    with file:
        return {name: _array(path, file, name) for name in file.files}


def _array(path: Path, file: Mapping[str, Any], name: str) -> NDArray[Any]:
    try:
        return np.asarray(file[name])
    except Exception as error:  # as above: of zip, zlib, a header that numpy parses as Python, or memory
        raise ComputeError(f"{path}: {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:MAX_SHOWN]


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
    shifted, environments = _shifted(arrays), _environments(arrays)
    ids = given.setdefault("token_ids", np.zeros(_ids_shape(given, shifted), np.int32))
    if ids.ndim == 1 and "cu_seqlens" not in given:
        given["cu_seqlens"] = np.array([0, ids.size])
    numbers = _numbers(arrays)
    try:
        head = wire.Sequences(step=0, update=0, rank=0, rows=0, arrays=[], **numbers)
        columns = {name: given.get(name) for name in arguments.LEVELS if name not in numbers}
        prompts, rewards, bounds = map(given.get, ("prompt_ids", "rewards", "cu_seqlens"))
        checked = arguments.check(
            head, ids, given["mask"], prompts, rewards, bounds, columns, None, environments, shifted
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


def _ids_shape(given: Mapping[str, NDArray[Any]], shifted: bool) -> tuple[int, ...]:
    """The shape of ``token_ids`` that are not given: that of the logprobs, or with the first tokens that they lack."""
    shape = given["trainer_logprobs"].shape
    if not shifted or not shape:
        return shape
    lengths = [given[name].shape[-1] for name in REQUIRED if given[name].ndim]
    return (*shape[:-1], max(*lengths, min(lengths) + 1))


def _shifted(arrays: Mapping[str, Any]) -> bool:
    given = np.asarray(arrays.get("shifted", False))
    if given.size != 1 or given.dtype.kind not in "biu" or given.item() not in (0, 1):
        raise ComputeError(f"shifted: {given.dtype} of shape {list(given.shape)}; expected a single bool")
    return bool(given.item())


def _environments(arrays: Mapping[str, Any]) -> list[Any] | None:
    found: list[Any] | None = np.atleast_1d(arrays["environments"]).tolist() if "environments" in arrays else None
    return found


def _numbers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are a single number or word."""
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        if name in arrays:
            value = np.asarray(arrays[name])
            if name in arguments.LEVELS and value.size > 1:
                continue
            if value.size != 1 or value.dtype.kind not in "iuf":
                raise ComputeError(f"{name}: {value.dtype} of shape {list(value.shape)}; expected a single number")
            numbers[name] = value.item()
    if "policy_version" in numbers:
        numbers["policy_version"] = _version(numbers["policy_version"])
    for name, choices in _WORDS.items():
        if name in arrays:
            given = np.asarray(arrays[name])
            word = str(given.item()) if given.size == 1 else f"{given.dtype} of shape {list(given.shape)}"
            if word not in choices:
                raise ComputeError(f"{name}: {one_line(word[:MAX_SHOWN])}; expected one of {', '.join(choices)}")
            numbers[name] = word
    return numbers


def _version(value: float) -> int:
    try:
        return msgspec.convert(value, wire.Version, strict=False)
    except msgspec.ValidationError as error:
        raise ComputeError(f"policy_version: {value}; expected a whole number from -2^62 to 2^62") from error


def _total(batch: packing.CopiedCall, *, ids_known: bool) -> Summary:
    """Sum over blocks of rows, as the hub receives them, but with the logprobs in the given precision."""
    exact = {name: _floats(batch.trained(name)) for name in batch.columns if name in _EXACT}
    total, at = Summary(), 0
    for body, block in packing.pack(batch):
        rows = Batch(body, block)
        rows.arrays = block | {name: column[at : at + rows.tokens] for name, column in exact.items()}
        at += rows.tokens
        total = sum(measure(rows, ids_known=ids_known).values(), total)
    return total


def _floats(values: NDArray[Any]) -> NDArray[Any]:
    """As float64 unless they are float32."""
    return values if values.dtype == np.float32 else values.astype(np.float64)
