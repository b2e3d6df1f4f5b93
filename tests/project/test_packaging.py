"""What the distribution says of itself is what is on disk."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_in_the_list_and_the_other_way_round() -> None:
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    on_disk = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in folders.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(on_disk)
    modules = {file.parent for folder in folders.values() for file in (ROOT / folder).rglob("*.py")}
    assert {folder for folder in modules if not (folder / "__init__.py").exists()} == set()


def test_the_version_is_that_of_the_newest_section_of_the_changelog() -> None:
    newest = re.search(r"^## (\S+) - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    version, date = newest.groups()
    assert PROJECT["project"]["version"] == version + (".dev0" if date == "unreleased" else "")


def test_every_package_says_that_it_is_typed() -> None:
    for folder in PROJECT["tool"]["setuptools"]["package-dir"].values():
        assert (ROOT / folder / "py.typed").exists()


@pytest.mark.parametrize(("group", "name"), [("console_scripts", "rltop"), ("vllm.general_plugins", "rltop")])
def test_entry_points_are_installed_as_declared_and_resolve(group: str, name: str) -> None:
    declared = PROJECT["project"]["scripts" if group == "console_scripts" else "entry-points"]
    value = declared[name] if group == "console_scripts" else declared[group][name]
    (installed,) = entry_points(group=group, name=name)
    assert installed.value == value
    assert callable(installed.load())
