"""One shareable file of a run: its store, whole and closed, without token text unless asked for."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from rltop.backend.store.read import Reader
from rltop.backend.store.schema import StoreError

TEXT_TABLES = ("sample",)
"""Tables whose rows hold what a model read or wrote."""


def record(source: Path, to: Path, *, with_text: bool = False, overwrite: bool = False) -> int:
    """Copy the store of a run, live or not, to ``to``: an SQLite file, packed with gzip if the name ends in ``.gz``.

    A file is there whole or not at all.

    Args:
        source: a run directory, or a file of ``record``.
        to: the new file.
        with_text: keep the sequences with their tokens.
        overwrite: ``to`` may be there.

    Returns:
        Its size in bytes.

    Raises:
        StoreError: there is no store at ``source``.
        FileExistsError: ``to`` is there.
        OSError: it can't be written.
    """
    if to.exists() and not overwrite:
        raise FileExistsError(f"{to} is there already")
    with tempfile.TemporaryDirectory(prefix=".rltop-", dir=to.parent) as directory:
        copy = Path(directory) / "copy"
        with Reader(source) as reader:
            try:
                reader.execute("VACUUM INTO ?", (str(copy),))
            except sqlite3.Error as error:
                raise OSError(f"can't copy {reader.path} to {to}: {error}") from error
        if not with_text:
            _strip(copy)
        if to.suffix == ".gz":
            copy = _pack(copy)
        copy.chmod(0o600)
        os.replace(copy, to)  # noqa: PTH105 - said as what it is
    return to.stat().st_size


def _strip(file: Path) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        for table in TEXT_TABLES:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("VACUUM")  # what was deleted is not to be found in free pages either
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from error
    finally:
        connection.close()


def _pack(file: Path) -> Path:
    packed = file.with_suffix(".gz")
    with file.open("rb") as plain, gzip.GzipFile(packed, "wb", compresslevel=9, mtime=0) as out:
        shutil.copyfileobj(plain, out)
    return packed


__all__ = ["TEXT_TABLES", "StoreError", "record"]
