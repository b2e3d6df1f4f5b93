"""Keys of a run: secrets in its directory, by which a controller and a hub prove who they are.

A key is a file of mode 0600 with 32 random bytes as hex. A proof is an HMAC: it shows that its maker could read the
key, without sending it. The files are read again for every proof, so a rotated key counts at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from rltop.collectors.contract.rundir import RunDir

KEY_BYTES = 32
PROOF_BYTES = 32
MODE = 0o600

_MAX_FILE_BYTES = 1024
_FINGERPRINT_LETTERS = 12


class RunKeyError(ValueError):
    """A key can't be used; the message says why, and how to make a new one."""


@dataclass(frozen=True)
class RunKey:
    """One key of a run. Creates nothing by itself. ``advice``: what to do if it can't be used."""

    path: Path
    advice: str = "`rltop keys {run} --rotate` makes new keys"

    @property
    def exists(self) -> bool:
        """Whether there is something at its path, also if it can't be used."""
        return os.path.lexists(self.path)

    def create(self, key: bytes | None = None) -> None:
        """Make the key, or put ``key`` there, unless it exists; processes that do so at once get the same one.

        Raises:
            OSError: it can't be written.
        """
        if not self.exists:
            partial = self._written(key)
            with contextlib.suppress(FileExistsError):
                os.link(partial, self.path)
            partial.unlink()

    def rotate(self) -> None:
        """Replace the key by a new one, at once and whole. Raises ``OSError``."""
        self._written(None).replace(self.path)

    def _written(self, key: bytes | None) -> Path:
        """A file with ``key``, or with a new one."""
        partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write((key or secrets.token_bytes(KEY_BYTES)).hex() + "\n")
        return partial

    def read(self) -> bytes:
        """The key's bytes.

        Raises:
            RunKeyError: it is missing, damaged, not a file of this user alone, or can't be read.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                found, content = os.fstat(file.fileno()), file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise self._unusable(f"it must be a file of yours with mode 0600, not {stat.S_IMODE(found.st_mode):04o}")
        try:
            key = bytes.fromhex(content.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise self._unusable("it is damaged")
        return key

    def proof(self, *parts: bytes) -> bytes:
        """Prove possession of the key for these parts, of which the first names the purpose. Raises ``RunKeyError``."""
        message = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        return hmac.digest(self.read(), message, "sha256")

    def verifies(self, proof: bytes, *parts: bytes) -> bool:
        """Whether ``proof`` was made of these parts with this key. Raises ``RunKeyError``."""
        return hmac.compare_digest(proof, self.proof(*parts))

    def fingerprint(self) -> str:
        """Letters by which people can compare two keys; they don't reveal it. Raises ``RunKeyError``."""
        return hashlib.sha256(self.read()).hexdigest()[:_FINGERPRINT_LETTERS]

    def _unusable(self, reason: str) -> RunKeyError:
        advice = self.advice.format(run=RunDir(self.path.parent).argument)
        return RunKeyError(f"{self.path} can't be used: {reason}; {advice}")


def control_key(rundir: RunDir) -> RunKey:
    """Its holders may command: switch flags, act on engines, answer alarms, stop the hub."""
    return RunKey(rundir.path / "control.key")


def hub_key(rundir: RunDir) -> RunKey:
    """Its holders may act as the hub of the run: engines obey no other."""
    return RunKey(rundir.path / "hub.key")


def redaction_key(rundir: RunDir) -> RunKey:
    """If it exists, collectors replace token ids by pseudonyms that it selects (``transport.redaction``)."""
    advice = "collectors send nothing until then; remove it, and `rltop hub {run} --redact` makes another"
    return RunKey(rundir.path / "redact.key", advice)


def run_keys(rundir: RunDir) -> dict[str, RunKey]:
    """The keys of a run that give a role, by that role."""
    return {"control": control_key(rundir), "hub": hub_key(rundir)}
