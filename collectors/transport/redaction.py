"""Redaction: token ids leave a process only as pseudonyms, so that no text of a run can be read from what is sent.

All collectors of a run replace each id by the same pseudonym: a permutation that the run's redaction key selects. Equal
ids stay equal, so rows are joined and figures computed as ever. Pseudonyms are larger than any vocabulary. Whoever has
the key, or knows enough text of the run to count frequencies, can reverse it.
"""

from __future__ import annotations

import hashlib
import os

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import redaction_key
from rltop.collectors.contract.rundir import RunDir

VARIABLE = "RLTOP_REDACT"
"""If set, other than to 0, a collector sends nothing before its run has a redaction key; it makes one."""

ID_ARRAYS = frozenset({"prompt_ids", "token_ids", "row_ids"})
"""Arrays of the wire that hold token ids."""

HALF_BITS = 14
DOMAIN = 1 << 2 * HALF_BITS
"""Ids from 0 to below this are replaced, by numbers from this to below twice this; other entries are no token ids."""

_HALF = (1 << HALF_BITS) - 1
_ROUNDS = 4

Ids = NDArray[np.int32]


class Redaction:
    """The pseudonyms of one run.

    Args:
        key: of the run.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        stream = [hashlib.shake_256(key + bytes([number])).digest(2 << HALF_BITS) for number in range(_ROUNDS)]
        self._tables = [np.frombuffer(table, "<u2").astype(np.int32) & _HALF for table in stream]

    def pseudonyms(self, ids: Ids) -> Ids:
        """Replace token ids; shape and type stay."""
        is_id = (ids >= 0) & (ids < DOMAIN)
        left, right = (ids >> HALF_BITS) & _HALF, ids & _HALF
        for table in self._tables:
            left, right = right, left ^ table[right]
        return np.where(is_id, ((left << HALF_BITS) | right) + DOMAIN, ids).astype(np.int32)

    def ids(self, pseudonyms: Ids) -> Ids:
        """The inverse of ``pseudonyms``."""
        is_pseudonym = (pseudonyms >= DOMAIN) & (pseudonyms < 2 * DOMAIN)
        left, right = ((pseudonyms - DOMAIN) >> HALF_BITS) & _HALF, pseudonyms & _HALF
        for table in reversed(self._tables):
            left, right = right ^ table[left], left
        return np.where(is_pseudonym, (left << HALF_BITS) | right, pseudonyms).astype(np.int32)

    def arrays(self, arrays: wire.Arrays) -> wire.Arrays:
        """The arrays of a message, without token ids."""
        return {name: self.pseudonyms(array) if name in ID_ARRAYS else array for name, array in arrays.items()}

    def command(self, command: wire.Command) -> wire.Command:
        """A command of the hub, which knows pseudonyms only, as the engine can execute it."""
        passages = tuple(msgspec.structs.replace(one, ids=self._opened(one.ids)) for one in command.passages)
        return msgspec.structs.replace(command, passages=passages)

    def _opened(self, raw: bytes) -> bytes:
        whole = np.frombuffer(raw[: len(raw) // 4 * 4], "<i4")  # a malformed one is refused later
        return self.ids(whole).astype("<i4").tobytes() + raw[len(raw) // 4 * 4 :]


def is_required() -> bool:
    """Whether this process must redact."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def redaction_of(rundir: RunDir, known: Redaction | None = None, *, awaited: bool = False) -> Redaction | None:
    """The redaction of a run; None if it has no key and this process need not redact.

    ``known``: from before; its key is put back if it is gone, as when the directory was removed and made again.
    ``awaited``: there was a key that can't be used; while it is removed and made again, nothing may be sent in clear.

    Raises:
        RunKeyError: the key can't be used.
        OSError: it can't be made.
    """
    key = redaction_key(rundir)
    if known is not None or is_required():
        key.create(None if known is None else known._key)
    return known or (Redaction(key.read()) if key.exists or awaited else None)
