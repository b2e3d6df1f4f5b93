"""Validates and copies the arguments of one ``TrainerCollector.sequences()`` call. On the caller's thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rltop.collectors.contract import wire
from rltop.collectors.trainer.arrays import Argument, inspect
from rltop.collectors.trainer.packing import CopiedCall, Ints, PackedColumn, row_sizes

Level = Literal["all", "row", "token"]

LEVELS: dict[str, tuple[Level, ...]] = {
    "rollout_logprobs": ("token",),
    "trainer_logprobs": ("token",),
    "old_logprobs": ("token",),
    "entropy": ("token",),
    "clipped": ("token",),
    "advantages": ("token", "row"),
    "rollout_versions": ("token", "row", "all"),
    "old_version": ("token", "row", "all"),
}
"""Allowed shapes of each argument: one value per token, one per row, or one for all. The first that fits is used: it
decides the ambiguous case of packed rows of one token each."""

NO_ROWS = (0,)
"""Shape of an empty list: a rank may have no rows in a step."""

MAX_ID = 256

WIRE_NAMES = {"old_version": "old_versions"}
"""Argument -> name of its column on the wire, where they differ."""


@dataclass(frozen=True)
class Checked:
    """Validated arguments, not copied yet."""

    head: wire.Sequences
    rows: int
    sizes: Argument | Ints
    tokens: int
    token_ids: Argument
    mask: Argument
    prompt_ids: Argument | None
    rewards: Argument | None
    columns: dict[str, tuple[Argument, Level]]
    request_ids: list[str] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the copy in bytes."""
        optional = [part for part in (self.prompt_ids, self.rewards) if part is not None]
        columns = [column for column, _ in self.columns.values()]
        ids = sum(map(len, self.request_ids or ()))
        return ids + sum(part.nbytes for part in [self.token_ids, self.mask, *optional, *columns])

    def copy(self) -> CopiedCall:
        """Copy the arguments, so that the caller may change them."""
        return CopiedCall(
            head=self.head,
            rows=self.rows,
            sizes=self.sizes.copy() if isinstance(self.sizes, Argument) else self.sizes,
            tokens=self.tokens,
            token_ids=self.token_ids.copy(),
            mask=self.mask.copy(),
            prompt_ids=self.prompt_ids.copy() if self.prompt_ids else None,
            prompt_sizes=_sizes(self.prompt_ids) if self.prompt_ids else np.zeros(self.rows, np.int64),
            rewards=self.rewards.copy() if self.rewards else None,
            columns={
                WIRE_NAMES.get(name, name): PackedColumn(column.copy(), level)
                for name, (column, level) in self.columns.items()
            },
            request_ids=self.request_ids,
        )


def check(
    head: wire.Sequences,
    token_ids: Any,
    mask: Any,
    prompt_ids: Any,
    rewards: Any,
    cu_seqlens: Any,
    columns: dict[str, Any],
    request_ids: Any = None,
) -> Checked:
    """Validate shapes and dtypes. ``columns``: the arguments named in ``LEVELS``, None if not passed.

    Raises:
        ValueError: an argument has the wrong shape or dtype; the message names it, the actual and the expected one.
    """
    ids = inspect("token_ids", token_ids, integer=True)
    sizes, rows = _rows(ids, cu_seqlens)
    passed = {name: inspect(name, value) for name, value in columns.items() if value is not None}
    for name in ("rollout_logprobs", "trainer_logprobs"):
        if name not in passed:
            raise ValueError(f"{name}: None; expected {_expected(ids, rows, ('token',))}")
    masked = inspect("mask", mask)
    _level(masked, ids, rows, ("token",))
    return Checked(
        head=head,
        rows=rows,
        sizes=sizes,
        tokens=int(np.prod(ids.shape)) if not ids.ragged else sum(ids.shape),
        token_ids=ids,
        mask=masked,
        prompt_ids=None if prompt_ids is None else _prompts(prompt_ids, rows),
        rewards=None if rewards is None else _rewards(rewards, ids, rows),
        columns={name: (column, _level(column, ids, rows, LEVELS[name])) for name, column in passed.items()},
        request_ids=None if request_ids is None else _request_ids(request_ids, rows),
    )


def _rows(ids: Argument, cu_seqlens: Any) -> tuple[Argument | Ints, int]:
    """Row sizes (or cu_seqlens, if they are on a device and have to be read later) and the number of rows."""
    if cu_seqlens is None:
        if not ids.ragged and len(ids.shape) != 2 and ids.shape != NO_ROWS:
            raise ValueError(
                f"token_ids: {ids.describe()} without cu_seqlens; expected [batch, time], or [tokens] with cu_seqlens, "
                "or a list of 1-D arrays"
            )
        return _sizes(ids), ids.shape[0] if not ids.ragged else len(ids.shape)
    if ids.ragged or len(ids.shape) != 1:
        raise ValueError(f"token_ids: {ids.describe()} with cu_seqlens; expected [tokens]")
    bounds = inspect("cu_seqlens", cu_seqlens, integer=True)
    if bounds.ragged or len(bounds.shape) != 1 or bounds.shape[0] < 1:
        raise ValueError(f"cu_seqlens: {bounds.describe()}; expected [rows + 1]")
    rows = bounds.shape[0] - 1
    return (bounds if bounds.on_device else row_sizes(bounds.copy().read(), ids.shape[0])), rows


def _sizes(argument: Argument) -> Ints:
    """Entries per row of a list of rows or of a [batch, time] array."""
    if argument.ragged or argument.shape == NO_ROWS:
        return np.array(argument.shape if argument.ragged else (), np.int64)
    return np.full(argument.shape[0], argument.shape[1], np.int64)


def _level(argument: Argument, ids: Argument, rows: int, allowed: tuple[Level, ...]) -> Level:
    """The first allowed level that fits the argument's shape; raises ``ValueError``."""
    for level in allowed:
        if level == "token":
            fits = (argument.ragged, argument.shape) == (ids.ragged, ids.shape)
        else:
            fits = not argument.ragged and argument.shape == (() if level == "all" else (rows,))
        if fits:
            return level
    raise ValueError(f"{argument.name}: {argument.describe()}; expected {_expected(ids, rows, allowed)}")


def _expected(ids: Argument, rows: int, allowed: tuple[Level, ...]) -> str:
    shapes = {"token": f"{ids.describe()} as token_ids", "row": f"[{rows}], one per row", "all": "a single number"}
    return ", or ".join(shapes[level] for level in allowed)


def _prompts(prompt_ids: Any, rows: int) -> Argument:
    prompts = inspect("prompt_ids", prompt_ids, integer=True)
    if prompts.ragged:
        fits = len(prompts.shape) == rows
    else:
        fits = prompts.shape[:1] == (rows,) and (len(prompts.shape) == 2 or prompts.shape == NO_ROWS)
    if not fits:
        raise ValueError(f"prompt_ids: {prompts.describe()}; expected [{rows}, P] or a list of {rows} 1-D arrays")
    return prompts


def _request_ids(request_ids: Any, rows: int) -> list[str]:
    """One string per row, empty for None; raises ``ValueError``."""
    ids = ["" if name is None else name for name in request_ids]
    for name in ids:
        if not isinstance(name, str) or len(name) > MAX_ID:
            raise ValueError(
                f"request_ids: {str(name)[:80]!r}; expected None or a string of at most {MAX_ID} characters"
            )
    if len(ids) != rows:
        raise ValueError(f"request_ids: {len(ids)} entries; expected {rows}, one per row")
    return ids


def _rewards(rewards: Any, ids: Argument, rows: int) -> Argument:
    values = inspect("rewards", rewards)
    _level(values, ids, rows, ("row",))
    return values
