"""Builds sdist and wheel from a copy of the checkout, checks their contents, and runs the installed wheel elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
FOLDERS = {folder: package for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}
"""Folder of the checkout -> its package."""

ESSENTIAL = {
    "backend/py.typed",
    "backend/store/sample/sort.rltop.gz",
    "backend/demo/sort-sft/config.json",
    "backend/demo/sort-sft/model.safetensors",
    "collectors/py.typed",
    "tui/py.typed",
}
"""Files without Python code that something at run time, or a type checker, looks for."""

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")


@dataclass(frozen=True)
class Distribution:
    """Where the sdist was unpacked, the wheel, and where the wheel was installed."""

    unpacked: Path
    wheel: Path
    installed: Path


def source_files() -> set[str]:
    """Every file of the packages, as its path in the checkout."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def build(kind: str, source: Path, out: Path) -> Path:
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, out], cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The sdist is built from a copy of the checkout, the wheel from the sdist: a file that one lacks, both lack."""
    home = tmp_path_factory.mktemp("distribution")
    shutil.copytree(ROOT, home / "checkout", ignore=NOT_COPIED)
    with tarfile.open(build("sdist", home / "checkout", home / "sdist")) as archive:
        archive.extractall(home, filter="data")
    unpacked = home / f"rltop-{VERSION}"
    wheel = build("wheel", unpacked, home / "wheel")
    install = ["install", "--no-deps", "--no-index", "--target", str(home / "site"), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    return Distribution(unpacked, wheel, home / "site")


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(distribution: Distribution) -> None:
    names = set(zipfile.ZipFile(distribution.wheel).namelist())
    metadata = {name for name in names if name.startswith(f"rltop-{VERSION}.dist-info/")}
    expected = {FOLDERS[folder].replace(".", "/") + f"/{rest}" for folder, _, rest in split(source_files())}
    assert names - metadata == expected
    assert {Path(name).name for name in metadata} >= {"LICENSE", "METADATA", "entry_points.txt"}


def test_the_sdist_has_the_same_files_and_what_builds_them(distribution: Distribution) -> None:
    unpacked = distribution.unpacked
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made = {name for name in files if name.split("/")[0] in ("rltop.egg-info", "build")}
    assert files - made == source_files() | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "setup.cfg"}


def test_files_that_are_needed_at_run_time_are_among_them() -> None:
    files = source_files()
    assert files >= ESSENTIAL
    assert any(name.endswith(".tcss") for name in files)


def test_the_installed_wheel_runs_away_from_the_checkout(distribution: Distribution, tmp_path: Path) -> None:
    assert run(distribution, tmp_path, "--version") == f"rltop, version {VERSION}\n"
    assert run(distribution, tmp_path, "--help").startswith("Usage: rltop ")
    assert "step 59" in run(distribution, tmp_path, "replay", "--sample")
    replayed = json.loads(run(distribution, tmp_path, "replay", "--sample", "--json"))
    assert replayed["run"] == "sort"


def test_the_installed_wheel_uses_no_code_of_the_checkout(distribution: Distribution, tmp_path: Path) -> None:
    script = "import sys, rltop.tui.cli.main; print(*{m.__file__ for n, m in sys.modules.items() if n[:6] == 'rltop.'})"
    loaded = python(distribution, tmp_path, "-c", script).split()
    assert loaded
    assert all(Path(file).is_relative_to(distribution.installed) for file in loaded)


def split(files: set[str]) -> list[tuple[str, str, str]]:
    return [file.partition("/") for file in sorted(files)]


def run(distribution: Distribution, cwd: Path, *arguments: str) -> str:
    return python(distribution, cwd, str(distribution.installed / "bin" / "rltop"), *arguments)


def python(distribution: Distribution, cwd: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(distribution.installed), "RLTOP_HOME": str(cwd)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout
