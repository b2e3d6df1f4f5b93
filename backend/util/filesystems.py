"""Detects the file system of a directory."""

from __future__ import annotations

from pathlib import Path

NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "afs", "9p", "pvfs2",
    "orangefs", "ocfs2", "gfs2", "wekafs", "panfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs", "fuse.mount-s3",
})  # fmt: skip
"""File systems shared between machines or without shared memory: SQLite's write-ahead log does not work there."""


def kind_of(directory: Path, mounts: str | None = None) -> str:
    """Type of the file system at ``directory`` in the kernel's terms; empty if not known.

    ``mounts``: text of ``/proc/self/mountinfo``; read if None.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return ""
    resolved = directory.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        if len(fields) < 5 or not rest:
            continue
        mounted = Path(fields[4].encode().decode("unicode_escape"))  # a space is escaped as \040
        if resolved.is_relative_to(mounted) and len(mounted.parts) >= best:  # a later mount covers an equal earlier one
            best, kind = len(mounted.parts), rest[0]
    return kind


def is_network(directory: Path) -> bool:
    """Whether the directory is on one of ``NETWORK``."""
    return kind_of(directory) in NETWORK
