"""Bounds the hub's log file, which is its standard error: a hub may run for months, and log at every message."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LOG_BYTES = 8 << 20
"""A longer log is cut to its last ``KEPT_BYTES``; between two checks it may exceed this."""

KEPT_BYTES = 1 << 20

STDERR = 2


def bound_log(path: Path, descriptor: int = STDERR) -> None:
    """Cut the file at ``path`` if ``descriptor`` writes to it and it is too long.

    It is cut in place: other processes of the hub append to the same open file.
    """
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        if found.st_size <= LOG_BYTES or not os.path.samestat(found, path.stat()):
            return
        with path.open("rb") as file:
            file.seek(-KEPT_BYTES, os.SEEK_END)
            kept = file.read(KEPT_BYTES)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"(earlier lines were removed)\n" + kept.partition(b"\n")[2])
