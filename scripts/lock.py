"""The lock of the test environment: exact versions and the hashes of all their files, in requirements/test.txt.

``make lock`` writes it from what .venv has, with uv from the package index. ``make audit`` asks the index, with pip,
for locked releases that were withdrawn (yanked) since. torch is not in it: its builds differ by platform and index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.setup import LOCK, PYTHON, environment

UNLOCKED = {"rltop", "torch", "pip"}
YANKED = re.compile(r"yanked version: '(\S+)' candidate \(version (\S+)")


def pins(lock: str) -> dict[str, str]:
    """Versions by name in the text of a lock."""
    return dict(re.findall(r"^([\w.-]+)==([^\s\\]+)", lock, re.MULTILINE))


def write(python: Path) -> None:
    """Write the lock of the environment of ``python``."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = [line for line in listed if line.partition("==")[0].lower() not in UNLOCKED]
    with tempfile.TemporaryDirectory() as scratch:
        names, locked = Path(scratch, "names.txt"), Path(scratch, "locked.txt")
        names.write_text("\n".join(wanted) + "\n")
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        own = Path(scratch, "bin", "python")
        subprocess.run([own, "-m", "pip", "install", "--quiet", "uv"], check=True)
        options = ["--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--python", str(python)]
        subprocess.run([own, "-m", "uv", "pip", "compile", "--quiet", *options, names, "-o", locked], check=True)
        LOCK.parent.mkdir(exist_ok=True)
        LOCK.write_text(f"{environment()}\n{locked.read_text()}")
    print(f"{LOCK}: {len(wanted)} releases")


def withdrawn(python: Path, releases: dict[str, str], *options: str) -> list[str]:
    """The releases, as ``name==version``, that the index marks as yanked. Asks for metadata; installs nothing.

    Raises:
        subprocess.CalledProcessError: pip can't find a release, or can't reach the index.
    """
    command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", *options]
    exact = [f"{name}=={version}" for name, version in releases.items()]
    said = subprocess.run([*command, *exact], capture_output=True, text=True, check=True)
    return [f"{name}=={version}" for name, version in YANKED.findall(" ".join(said.stderr.split()))]


def main() -> int:
    """``python -m scripts.lock`` writes the lock of .venv; with ``--check`` it looks for withdrawn releases."""
    if "--check" not in sys.argv:
        write(PYTHON)
        return 0
    releases = pins(LOCK.read_text())
    found = withdrawn(PYTHON, releases)
    print(f"withdrawn: {', '.join(found)}" if found else f"none of {len(releases)} releases is withdrawn")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
