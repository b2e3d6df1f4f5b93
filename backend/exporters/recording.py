"""Copies a run's store into one shareable file, without token text by default."""

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
"""Tables with prompts and completions."""


def record(source: Path, to: Path, *, with_text: bool = False, overwrite: bool = False) -> int:
    """Copy the store of a run, live or not, to ``to``: SQLite, compressed if the name ends in ``.gz``. Atomic.

    Args:
        source: a run directory, or a file of ``record``.
        to: the new file.
        with_text: keep the sequences with their tokens.
        overwrite: replace an existing ``to``.

    Returns:
        Its size in bytes.

    Raises:
        StoreError: there is no store at ``source``, or it is damaged.
        FileExistsError: ``to`` exists.
        OSError: writing failed.
    """
    if to.exists() and not overwrite:
        raise FileExistsError(f"{to} already exists")
    with tempfile.TemporaryDirectory(prefix=".rltop-", dir=to.parent) as directory:
        copy = Path(directory) / "copy"
        with Reader(source) as reader:
            try:
                reader.execute("VACUUM INTO ?", (str(copy),))
            except sqlite3.DatabaseError as error:
                raise _error(reader.path, to, error) from error
        if not with_text:
            _strip(copy)
        if to.suffix == ".gz":
            copy = _pack(copy)
        copy.chmod(0o600)
        os.replace(copy, to)  # noqa: PTH105 - the atomic call by its name
    return to.stat().st_size


def _error(source: Path, to: Path, error: sqlite3.DatabaseError) -> Exception:
    """Of the disk that is written to, or of the file that is read."""
    if isinstance(error, sqlite3.OperationalError):
        return OSError(f"can't copy {source} to {to}: {error}")
    return StoreError(f"{source}: damaged ({error}); nothing was written")


def _strip(file: Path) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        for table in TEXT_TABLES:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("VACUUM")  # so that free pages hold no deleted rows
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
