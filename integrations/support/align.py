"""Brings the arrays of frameworks into the forms that ``TrainerCollector.sequences`` takes."""

from __future__ import annotations

from typing import Any


def pad_left(values: Any, size: int) -> Any:
    """[B, A] with zeros in front, so that it is [B, size]: for arrays of the last A tokens of each row."""
    if values is None or values.shape[-1] == size:
        return values
    import torch

    return torch.nn.functional.pad(values.detach(), (size - values.shape[-1], 0))


def offsets(lengths: Any) -> Any:
    """[rows + 1] from the lengths of packed rows."""
    import numpy as np

    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])


def unpadded(ids: Any, mask: Any) -> list[Any]:
    """Rows of [B, T] without the tokens whose mask is 0: a list of 1-D arrays."""
    return [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
