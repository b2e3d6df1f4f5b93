"""A light installation: the wheel in an environment that has the required dependencies and nothing else.

Collectors, adapters and the commands that print work; what needs an extra says in one line which.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from rltop.backend.client.live import Client
from rltop.collectors.contract.extras import EXTRAS
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import for_run
from tests.project.test_distribution import (
    Distribution,
    distribution,  # noqa: F401 - a fixture
)
from tests.support.harness import wait_shown
from tests.support.receiver import run_directory

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
LIGHT = {"click", "msgspec", "numpy", "pyzmq"}
HEAVY = ("numba", "textual", "rich", "torch", "vllm", "transformers", "trl")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


@dataclass(frozen=True)
class Light:
    """An environment of its own: its Python, and the folder of its runs."""

    python: Path
    home: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RLTOP", "PYTHON"))}
        environment = kept | {"RLTOP_HOME": str(self.home)}
        command = [str(self.python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.home, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def rltop(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its command line."""
        return self.run("-m", "rltop.tui.cli.main", *arguments, check=False)


@pytest.fixture(scope="module")
def light(distribution: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Light:  # noqa: F811
    """Links to the files of the required distributions, and the wheel as it was installed elsewhere."""
    root = tmp_path_factory.mktemp("light")
    venv.create(root / "env", with_pip=False, symlinks=True)
    (site,) = (root / "env" / "lib").glob("python*/site-packages")
    for name in LIGHT:
        found = importlib.metadata.distribution(name)
        for entry in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (site / entry).symlink_to(Path(str(found.locate_file(entry))))
    for path in distribution.installed.iterdir():
        if path.name != "bin":
            (site / path.name).symlink_to(path)
    home = root / "home"
    home.mkdir()
    return Light(root / "env" / "bin" / "python", home)


def test_the_required_dependencies_are_light_and_the_extras_have_the_rest() -> None:
    extras = PROJECT["optional-dependencies"]
    assert names(PROJECT["dependencies"]) == LIGHT
    assert names(extras["hub"]) == {"numba"}
    assert names(extras["tui"]) == {"numba", "textual"}
    assert {one.name for one in EXTRAS.values()} == {"hub", "tui"}
    assert "rltop[tui]" in extras["demo"]
    assert "rltop[tui]" in extras["dev"]


def test_the_environment_has_none_of_the_heavy_modules(light: Light) -> None:
    script = f"import importlib.util as u; print([n for n in {HEAVY} if u.find_spec(n)])"
    assert light.run("-c", script).stdout == "[]\n"


@pytest.mark.parametrize("package", ["rltop.collectors", "rltop.integrations"])
def test_every_module_of_collectors_and_adapters_imports(light: Light, package: str) -> None:
    script = (
        f"import importlib, pkgutil, {package} as p\n"
        "found = [m.name for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]\n"
        "print(len([importlib.import_module(name) for name in found]))"
    )
    assert int(light.run("-c", script).stdout) > 0


@pytest.mark.parametrize("arguments", [["--help"], ["runs"], ["metrics"], ["doctor", "-h"], ["replay", "--sample"]])
def test_commands_that_print_work(light: Light, arguments: list[str]) -> None:
    done = light.rltop(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_doctor_says_what_the_environment_can_not_do(light: Light) -> None:
    done = light.rltop("doctor", "--json")
    notes = [one["text"] for one in json.loads(done.stdout)["findings"] if one["section"] == "this environment"]
    assert any("rltop[hub]" in note for note in notes)
    assert any("rltop[tui]" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["hub", "light", "--new"], "hub"), (["compute", "batch.npz"], "hub")],
)
def test_a_command_that_needs_an_extra_says_in_one_line_which(light: Light, arguments: list[str], extra: str) -> None:
    script = (
        "import numpy as n; one = n.ones((2, 3)); "
        "n.savez('batch.npz', rollout_logprobs=-one, trainer_logprobs=-one, mask=one)"
    )
    light.run("-c", script)
    done = light.rltop(*arguments)
    assert done.returncode == 1
    assert f"pip install 'rltop[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_dashboard_says_in_one_line_what_it_needs(light: Light) -> None:
    (light.home / "seen").mkdir(mode=0o700)
    (light.home / "seen" / "hub.lock").touch()
    script = "import rltop.tui.cli.main as m; m.on_terminal = lambda: True; m.main(['top', 'seen'])"
    done = light.run("-c", script, check=False)
    assert done.returncode == 1
    assert "pip install 'rltop[tui]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


TRAIN = """
import logging, numpy as np
logging.basicConfig(format="%(message)s")
from rltop.collectors import TrainerCollector
one = np.ones((1, 2))
with TrainerCollector("light") as trainer:
    trainer.sequences(0, token_ids=np.array([[1, 2]]), rollout_logprobs=-one, trainer_logprobs=-one, mask=one)
    trainer.step(0)
    print(trainer.close(timeout=60))
"""


def test_a_trainer_without_numba_continues_without_a_hub_and_says_how_to_start_one(light: Light) -> None:
    done = light.run("-c", TRAIN)
    assert done.stdout == "False\n"
    assert "training continues without a hub" in done.stderr
    assert "pip install 'rltop[hub]'" in done.stderr
    assert "rltop hub light --new" in done.stderr


def test_a_trainer_without_numba_uses_the_hub_of_another_environment(light: Light) -> None:
    with run_directory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLTOP_HOME", str(home.path))
        rundir = for_run("light")
        ensure_hub(rundir)
        with Client(rundir) as client:
            done = Light(light.python, home.path).run("-c", TRAIN)
            wait_shown(client, lambda c: c.view is not None and 0 in c.view.steps and c.view.trainer.software)
            assert client.view is not None
            assert client.view.trainer.software["rltop"] == PROJECT["version"]
            client.stop_hub()
    assert (done.stdout, done.stderr) == ("True\n", "")
