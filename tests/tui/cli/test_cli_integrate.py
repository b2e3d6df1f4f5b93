"""``rltop integrate``: lines, hooks that fit or not, and errors. The frameworks are source text, not installed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rltop.integrations.support.catalogue import FRAMEWORKS, Framework
from rltop.tui.cli.main import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["integrate", *map(str, arguments)])


def written(folder: Path, modules: dict[str, str]) -> Path:
    for name, text in modules.items():
        path = folder / "verl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "verl" / "__init__.py").touch()
    return folder


FITTING = {
    "utils/debug/metrics.py": "def calculate_debug_metrics(data): ...",
    "trainer/ppo/metric_utils.py": "def compute_data_metrics(batch, use_critic=True): ...",
    "utils/tracking.py": "class Base:\n    def log(self, data, step, backend=None): ...\nclass Tracking(Base): ...",
}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda one: one.name)
def test_lines_of_python_import_what_they_name(framework: Framework) -> None:
    """What a user pastes runs: no module of rltop is used that the lines do not import."""
    try:
        tree = ast.parse("\n".join(framework.lines))
    except SyntaxError:
        return  # options of a command line
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    used = {ast.unparse(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if re.fullmatch(r"rltop\.integrations\.\w+", name)} <= imported


def test_every_framework_is_listed_with_its_proof() -> None:
    listed = run().stdout
    for framework in FRAMEWORKS:
        assert any(
            line.split()[: len(framework.name.split())] == framework.name.split() for line in listed.splitlines()
        )
    found = json.loads(run("--json").stdout)["frameworks"]
    assert [one["framework"] for one in found] == [framework.name for framework in FRAMEWORKS]
    assert all(one["lines"] and one["lost"] and one["proof"] for one in found)


def test_a_source_that_fits_prints_the_lines_and_every_function(tmp_path: Path) -> None:
    result = run("verl", "--source", written(tmp_path, FITTING))
    assert result.exit_code == 0, result.output
    assert "worker_process_setup_hook=rltop.integrations.verl.install" in result.stdout
    assert result.stdout.count(" fits\n") == 3


def test_a_function_that_changed_or_is_gone_is_named_with_what_is_lost(tmp_path: Path) -> None:
    changed = FITTING | {
        "utils/debug/metrics.py": "def calculate_debug_metrics(tensors): ...",
        "trainer/ppo/metric_utils.py": "compute_data_metrics = None",
        "utils/tracking.py": "",
    }
    result = run("verl", "--source", written(tmp_path, changed))
    assert result.exit_code == 1
    assert "calculate_debug_metrics takes tensors, without data; lost: rollout and old logprobs" in result.stdout
    assert "compute_data_metrics is no function" in result.stdout
    assert "verl.utils.tracking.Tracking is missing" in result.stdout
    found = json.loads(run("verl", "--source", tmp_path, "--json").stdout)
    assert found["fits"] is False
    assert all(hook["problem"] for hook in found["hooks"])


def test_a_name_is_found_as_people_write_it_and_an_unknown_one_has_a_suggestion() -> None:
    for name in ("prime-rl", "prime_rl", "PrimeRL", "PIPELINERL", "nemo-rl"):
        assert "add " in run(name).stdout
    result = run("openrlhff")
    assert result.exit_code == 1
    assert "did you mean 'OpenRLHF'?" in result.stderr and "examples/attach.py" in result.stderr
