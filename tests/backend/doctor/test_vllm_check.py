"""The check of an installed vLLM, on the installed source and on copies in which a name is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import vllm_smoke as smoke
from bench import vllm_versions as versions
from rltop.backend.doctor import vllm_check
from rltop.backend.doctor.package_source import PackageSource, installed
from rltop.collectors.vllm.patches import PATCH_POINTS, PatchPoint
from rltop.collectors.vllm.vllm_names import CAPABILITIES, NEWER, OBJECTS, PARAMETERS, name_of
from rltop.tui.cli import main as cli

SOURCE = installed("vllm")
pytestmark = pytest.mark.skipif(SOURCE is None, reason="vLLM is not installed")


def lost(source: PackageSource) -> dict[str, tuple[str, ...]]:
    return {one.capability.name: one.missing for one in vllm_check.check_capabilities(source) if one.missing}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Python files of the installed vLLM, which a test may change and has to restore."""
    assert SOURCE is not None
    root = tmp_path_factory.mktemp("source") / "vllm"
    for part in ("v1", "config", "model_executor/layers", "distributed"):
        shutil.copytree(
            SOURCE.root / part,
            root / part,
            ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    for name in ("__init__.py", "_version.py", "sampling_params.py"):
        shutil.copy(SOURCE.root / name, root / name)
    return root


def test_the_vllm_that_the_tests_use_has_every_name() -> None:
    assert SOURCE is not None
    assert lost(SOURCE) == {}
    assert set(vllm_check.check_patch_points(SOURCE).values()) == {""}
    assert vllm_check.absent_guards(SOURCE) == {}


def test_the_version_is_that_of_the_package() -> None:
    assert SOURCE is not None
    script = "import vllm.version as v; print(v.__version__)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert vllm_check.version_of(SOURCE) == shown.split()[-1]


@pytest.mark.parametrize(
    "point", [one for one in PATCH_POINTS if name_of(one) not in NEWER], ids=lambda point: point.name
)
@pytest.mark.parametrize("change", ["renamed", "other parameters"])
def test_a_patch_point_that_changed_is_named_with_what_is_lost(point: PatchPoint, change: str, copied: Path) -> None:
    if change == "other parameters" and not point.parameters:
        pytest.skip("the hook reads no argument of it")
    module = OBJECTS[name_of(point).partition(".")[0]].partition(":")[0]
    texts = {path: path.read_text() for path in copied.joinpath(*module.split(".")).parent.glob("*.py")}
    first = point.parameters[0] if point.parameters else ""
    pattern, to = {
        "renamed": (rf"(def |self\.){point.method}\b", rf"\g<1>{point.method}_2"),
        "other parameters": (rf"(def {point.method}\(\s*self,\s*){first}\b", rf"\g<1>{first}_2"),
    }[change]
    try:
        for path, text in texts.items():
            path.write_text(re.sub(pattern, to, text))
        source = PackageSource(copied)
        fault = vllm_check.check_patch_points(source)[point.name]
        assert point.method in fault
        assert vllm_check.why_missing(source, name_of(point)) == fault  # for each capability that needs it
        unusable = {name for name, why in vllm_check.check_patch_points(source).items() if why}
        assert unusable == {one.name for one in PATCH_POINTS if name_of(one) == name_of(point)}
    finally:
        for path, text in texts.items():
            path.write_text(text)


def test_a_vllm_without_its_v1_engine_has_lost_everything_essential(copied: Path) -> None:
    moved = (copied / "v1").rename(copied / "v2")
    try:
        found = vllm_check.findings(PackageSource(copied))
    finally:
        moved.rename(copied / "v1")
    essential = {one.name for one in CAPABILITIES if one.essential}
    assert {one.text.partition(":")[0] for one in found if one.level == "problem"} == essential


def test_alternatives_and_absent_names(tmp_path: Path) -> None:
    module, _, owner = OBJECTS["engine"].partition(":")
    path = tmp_path / "vllm" / f"{module.replace('.', '/')}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"class {owner}:\n    a = 1\n")
    source = PackageSource(tmp_path / "vllm")
    assert vllm_check.why_missing(source, "engine.b or engine.a") == ""
    assert vllm_check.why_missing(source, "engine.b or not engine.c") == ""
    assert vllm_check.why_missing(source, "not engine.a") == f"it has {owner}.a"
    assert vllm_check.why_missing(source, "engine.b or engine.c") == f"no {owner}.b and no {owner}.c"


def test_a_patch_point_that_is_gone_costs_the_capabilities_that_need_it(copied: Path) -> None:
    folder = copied / "v1" / "core" / "sched"
    texts = {folder / name: (folder / name).read_text() for name in ("scheduler.py", "interface.py")}
    try:
        for path, text in texts.items():
            path.write_text(text.replace("def set_pause_state(", "def set_pause_state_2("))
        assert list(lost(PackageSource(copied))) == ["pause"]
    finally:
        for path, text in texts.items():
            path.write_text(text)


def test_every_patch_point_belongs_to_a_capability() -> None:
    needed = {need for capability in CAPABILITIES for need in capability.needs}
    assert {name_of(point) for point in PATCH_POINTS} - needed <= {"scheduler.reset_prefix_cache", *NEWER}
    assert PARAMETERS.keys() <= needed | NEWER.keys()


def test_the_command_prints_the_check_without_importing_vllm() -> None:
    script = (
        "import sys, rltop.tui.cli.main as m\n"
        "try: m.main(['doctor', '--vllm', '--json'], standalone_mode=False)\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'vllm', 'torch', 'numba', 'textual'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    answer = json.loads(shown.stdout)
    assert answer["problems"] == 0
    assert [one["name"] for one in answer["vllm"]["capabilities"]] == [one.name for one in CAPABILITIES]


def test_the_text_fits_80_columns() -> None:
    result = CliRunner().invoke(cli.main, ["doctor", "--vllm"])
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert all(one.name in result.output for one in CAPABILITIES)


def test_the_tables_of_the_docs_have_every_capability_and_every_step() -> None:
    page = versions.PAGE.read_text()
    of_releases, of_engines = (
        page.partition(begin)[2].partition(versions.END)[0] for begin in (versions.BEGIN, smoke.BEGIN)
    )
    rows = re.findall(r"^\| ([^|]+) \|", of_releases, re.MULTILINE)
    assert rows == ["capability", *(one.name for one in CAPABILITIES)], "run bench/vllm_versions.py --write"
    results = [json.loads(line) for line in smoke.RESULTS.read_text().splitlines()]
    assert of_engines.strip() == smoke.page(results), "run bench/vllm_smoke.py --page"


@pytest.mark.parametrize("releases", [{"1": {}}, {"1": {"pause": ("x",)}, "2": {"pause": ("x",)}, "3": {}}])
def test_releases_that_lack_the_same_share_a_column(releases: versions.Releases) -> None:
    heads = versions.table(releases).splitlines()[0].split(" | ")[1:]
    assert heads == (["1 |"] if len(releases) == 1 else ["1 to 2", "3 |"])
