"""The weight changes and version statements of this process, whether it runs a trainer, an engine or a worker.

An engine in the same process compares ``JOURNAL.number`` once per step; other engines ask their workers for theirs.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Statement(NamedTuple):
    """A version stated in process ``pid``, the ``number``-th there; 0: none yet."""

    pid: int
    number: int
    version: int


class Journal:
    """Counts what happened to the weights in this process.

    Attributes:
        number: rises with every entry.
    """

    def __init__(self) -> None:
        self.number = 0
        self._statements = 0
        self._version = 0

    def changed(self) -> None:
        """Weights were loaded."""
        self.number += 1

    def stated(self, version: int) -> None:
        """The framework stated a version."""
        self._version = version
        self._statements += 1
        self.number += 1

    def statement(self) -> Statement:
        """The last statement in this process."""
        return Statement(os.getpid(), self._statements, self._version)


JOURNAL = Journal()


def weights_updated(version: Any) -> None:
    """State that this process's engine or worker samples with weights ``version`` from its next step on.

    For frameworks that know the version of the weights that they load: call it after each update, in the process of a
    worker, of the engine, or of the caller of an engine without processes of its own. Cheap, never raises, and without
    effect where rltop is not active.

    Args:
        version: an integer, or a label that ends in one, such as ``step-12``.
    """
    number = label_version(version)
    if number is not None:
        JOURNAL.stated(number)


def label_version(label: Any) -> int | None:
    """The number at the end of an opaque weight label; None for ``default`` or if it ends in no number.

    >>> label_version("step-12"), label_version("default"), label_version(None)
    (12, None, None)
    """
    try:
        text = str(label) if label is not None else ""
    except Exception:  # noqa: BLE001 - any object may come here, and none may raise into its owner
        return None
    digits = text[len(text.rstrip("0123456789")) :]
    return int(digits) if digits and len(digits) < 10 else None
