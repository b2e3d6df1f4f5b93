"""Output of the commands. Everything that a command prints goes through here.

Names, reasons and facts come from other processes: an escape sequence in them must not reach the terminal.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import sys
from pathlib import Path

import click

from rltop.backend.util.printable import escaped


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text on standard output, or on standard error."""
    click.echo(escaped(text), err=err, nl=nl)


def print_json(value: object) -> None:
    """Print one JSON object on standard output. JSON has no infinite numbers and no NaN: they become null."""
    click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_private(path: Path, text: str) -> None:
    """Write a text file that only this user can read, also if it replaces one that others can. Raises ``OSError``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)
        file.write(text)


def print_all_characters() -> None:
    """Print characters that the encoding of an output lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def print_error(error: OSError) -> None:
    """Print an error of a file or of standard output; what could not be printed is dropped."""
    where = error.filename or ("standard output" if error.errno in _WRITING else "")
    with contextlib.suppress(OSError):
        echo(f"Error: {where}{': ' * bool(where)}{error.strerror or error}", err=True)
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the interpreter's exit would fail at the old one
