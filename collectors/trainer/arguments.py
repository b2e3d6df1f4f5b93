"""Validates and copies the arguments of one ``TrainerCollector.sequences()`` call. On the caller's thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rltop.collectors.contract import wire
from rltop.collectors.contract.checked import ArgumentError, is_text, named, shown
from rltop.collectors.trainer.arrays import Argument, inspect
from rltop.collectors.trainer.packing import CopiedCall, Ints, Level, PackedColumn, row_sizes

LEVELS: dict[str, tuple[Level, ...]] = {
    "rollout_logprobs": ("token",),
    "trainer_logprobs": ("token",),
    "old_logprobs": ("token",),
    "entropy": ("token",),
    "clipped": ("token",),
    "advantages": ("token", "row"),
    "weights": ("token", "row"),
    "temperature": ("token", "row"),
    "rollout_versions": ("token", "row", "all"),
    "old_version": ("token", "row", "all"),
}
"""Allowed shapes of each argument: one value per token, one per row, or one for all. The first that fits is used: it
decides the ambiguous case of packed rows of one token each."""

NO_ROWS = (0,)
"""Shape of an empty list: a rank may have no rows in a step."""

MAX_NAME = 256
"""Longest request id or name of an environment, characters."""

WIRE_NAMES = {"old_version": "old_versions", "temperature": "temperatures"}
"""Argument -> name of its column on the wire, where they differ."""

Column = tuple[Argument, Level]


@dataclass(frozen=True)
class Form:
    """The form that all per-token arrays of a call have.

    Attributes:
        ids: the token ids; without the axis of length 1 of a [1, tokens] array.
        sizes: entries per row, or cu_seqlens, if they are on a device and have to be read later.
        rows: number of rows.
        packed: the rows are one array.
        shifted: arrays may have one entry per next token: none for the first token of a row.
    """

    ids: Argument
    sizes: Argument | Ints
    rows: int
    packed: bool
    shifted: bool

    @property
    def tokens(self) -> int:
        """Number of tokens, trained on or not."""
        return sum(self.ids.shape) if self.ids.ragged else int(np.prod(self.ids.shape))

    def column(self, argument: Argument, allowed: tuple[Level, ...]) -> Column:
        """The argument with the first allowed level that fits its shape; raises ``ArgumentError``."""
        flat = _flat(argument) if self.packed else argument
        for level in self._levels(allowed):
            if (flat.ragged, flat.shape) in self._shapes(level):
                return flat, level
        hint = ""
        if "token" in allowed and (flat.ragged, flat.shape) in self._shapes("next"):
            hint = "; pass shifted=True if it belongs to the next tokens"
        raise ArgumentError(f"{argument.name}: {argument.describe()}; expected {self.expected(allowed)}{hint}")

    def expected(self, allowed: tuple[Level, ...]) -> str:
        """The allowed shapes, for messages."""
        shapes = {
            "token": f"{self.ids.describe()} as token_ids",
            "next": "one entry less per row, of the next tokens",
            "row": f"[{self.rows}], one per row",
            "all": "a single number",
        }
        return ", or ".join(shapes[level] for level in self._levels(allowed))

    def _levels(self, allowed: tuple[Level, ...]) -> tuple[Level, ...]:
        if not self.shifted:
            return allowed
        at = allowed.index("token") + 1 if "token" in allowed else 0
        return (*allowed[:at], *(("next",) if at else ()), *allowed[at:])

    def _shapes(self, level: Level) -> tuple[tuple[bool, tuple[int, ...]], ...]:
        """What a level's arrays may be: ragged or not, and the shape."""
        ids = self.ids
        if level == "token":
            return ((ids.ragged, ids.shape),)
        if level == "next":
            short = tuple(max(size - 1, 0) for size in ids.shape)
            return ((ids.ragged, short if ids.ragged else (*ids.shape[:-1], *short[-1:])),)
        return ((False, () if level == "all" else (self.rows,)),)


@dataclass(frozen=True)
class Checked:
    """Validated arguments, not copied yet."""

    head: wire.Sequences
    form: Form
    mask: Column
    prompt_ids: Argument | None
    rewards: Column | None
    columns: dict[str, Column]
    request_ids: list[str] | None = None
    environments: list[str] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.form.rows

    @property
    def nbytes(self) -> int:
        """Size of the copy in bytes."""
        columns = [self.mask, *self.columns.values(), *([self.rewards] if self.rewards else [])]
        arrays = [self.form.ids, *(column for column, _ in columns), *([self.prompt_ids] if self.prompt_ids else [])]
        names = [*(self.request_ids or ()), *(self.environments or ())]
        return sum(map(len, names)) + sum(array.nbytes for array in arrays)

    def copy(self) -> CopiedCall:
        """Copy the arguments, so that the caller may change them."""
        form, prompts = self.form, self.prompt_ids
        return CopiedCall(
            head=self.head,
            rows=form.rows,
            sizes=form.sizes.copy() if isinstance(form.sizes, Argument) else form.sizes,
            tokens=form.tokens,
            token_ids=form.ids.copy(),
            mask=_copied(self.mask),
            prompt_ids=prompts.copy() if prompts else None,
            prompt_sizes=_sizes(prompts) if prompts else np.zeros(form.rows, np.int64),
            rewards=_copied(self.rewards) if self.rewards else None,
            columns={WIRE_NAMES.get(name, name): _copied(column) for name, column in self.columns.items()},
            request_ids=self.request_ids,
            environments=self.environments,
            packed=form.packed,
            shifted=form.shifted,
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
    environments: Any = None,
    shifted: bool = False,
) -> Checked:
    """Validate shapes and dtypes. ``columns``: the arguments named in ``LEVELS``, None if not passed.

    Raises:
        ArgumentError: an argument has the wrong shape or dtype; the message names it, the actual and the expected one.
    """
    form = _form(inspect("token_ids", token_ids, integer=True), cu_seqlens, shifted)
    passed = {name: inspect(name, value) for name, value in columns.items() if value is not None}
    for name in ("rollout_logprobs", "trainer_logprobs"):
        if name not in passed:
            raise ArgumentError(f"{name}: None; expected {form.expected(('token',))}")
    return Checked(
        head=head,
        form=form,
        mask=form.column(inspect("mask", mask), ("token",)),
        prompt_ids=None if prompt_ids is None else _prompts(prompt_ids, form.rows),
        rewards=None if rewards is None else form.column(inspect("rewards", rewards), ("row", "token")),
        columns={name: form.column(column, LEVELS[name]) for name, column in passed.items()},
        request_ids=None if request_ids is None else _names("request_ids", request_ids, form.rows),
        environments=None if environments is None else _names("environments", environments, form.rows),
    )


def _form(ids: Argument, cu_seqlens: Any, shifted: bool) -> Form:
    if cu_seqlens is None:
        if not ids.ragged and len(ids.shape) != 2 and ids.shape != NO_ROWS:
            raise ArgumentError(
                f"token_ids: {ids.describe()} without cu_seqlens; expected [batch, time], or [tokens] with cu_seqlens, "
                "or a list of 1-D arrays"
            )
        return Form(ids, _sizes(ids), len(ids.shape) if ids.ragged else ids.shape[0], packed=False, shifted=shifted)
    flat = _flat(ids)
    if flat.ragged or len(flat.shape) != 1:
        raise ArgumentError(f"token_ids: {ids.describe()} with cu_seqlens; expected [tokens] or [1, tokens]")
    bounds = inspect("cu_seqlens", cu_seqlens, integer=True)
    if bounds.ragged or len(bounds.shape) != 1 or bounds.shape[0] < 1:
        raise ArgumentError(f"cu_seqlens: {bounds.describe()}; expected [rows + 1]")
    sizes = bounds if bounds.on_device else row_sizes(bounds.copy().read(), flat.shape[0])
    return Form(flat, sizes, bounds.shape[0] - 1, packed=True, shifted=shifted)


def _flat(argument: Argument) -> Argument:
    """Without the axis of a packed batch of one: [1, tokens] is [tokens]."""
    if argument.ragged or len(argument.shape) != 2 or argument.shape[0] != 1:
        return argument
    return replace(argument, shape=argument.shape[1:])


def _sizes(argument: Argument) -> Ints:
    """Entries per row of a list of rows or of a [batch, time] array."""
    if argument.ragged or argument.shape == NO_ROWS:
        return np.array(argument.shape if argument.ragged else (), np.int64)
    return np.full(argument.shape[0], argument.shape[1], np.int64)


def _copied(column: Column) -> PackedColumn:
    argument, level = column
    return PackedColumn(argument.copy(), level)


def _prompts(prompt_ids: Any, rows: int) -> Argument:
    prompts = inspect("prompt_ids", prompt_ids, integer=True)
    if prompts.ragged:
        fits = len(prompts.shape) == rows
    else:
        fits = prompts.shape[:1] == (rows,) and (len(prompts.shape) == 2 or prompts.shape == NO_ROWS)
    if not fits:
        raise ArgumentError(f"prompt_ids: {prompts.describe()}; expected [{rows}, P] or a list of {rows} 1-D arrays")
    return prompts


@named
def _names(argument: str, value: Any, rows: int) -> list[str]:
    """One string per row, empty for None; raises ``ArgumentError``."""
    try:
        names = None if isinstance(value, str) else ["" if name is None else name for name in value]
    except TypeError:
        names = None
    if names is None:
        raise ArgumentError(f"{argument}: {shown(value)}; expected a list of {rows} strings, one per row")
    for name in names:
        if not is_text(name) or len(name) > MAX_NAME:
            raise ArgumentError(
                f"{argument}: {shown(name)}; expected None or a string of at most {MAX_NAME} characters"
            )
    if len(names) != rows:
        raise ArgumentError(f"{argument}: {len(names)} entries; expected {rows}, one per row")
    return names
