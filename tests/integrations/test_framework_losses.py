"""The frameworks' own loss functions with their adapters on: a real hub measures what they log.

Their packages do not install beside vLLM, so their folders are named: ``RLTOP_FRAMEWORK_SOURCES`` has ``NAME=FOLDER``
entries separated by ``:``, such as ``verl=/checkouts/verl:prime-rl=/checkouts/prime-rl/src``; small packages that they
import are installed beside rltop, others get stand-ins (``tests/support/framework_losses.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rltop.backend.metrics import elsewhere
from tests.support.receiver import run_directory

SCRIPT = Path(__file__).parents[1] / "support" / "framework_losses.py"
FOLDERS = dict(
    entry.split("=", 1) for entry in os.environ.get("RLTOP_FRAMEWORK_SOURCES", "").split(os.pathsep) if "=" in entry
)
LEAST = {
    "verl": (19, 3), "prime-rl": (3, 3), "OpenRLHF": (2, 1), "SkyRL": (5, 2), "NeMo-RL": (4, 1), "PipelineRL": (5, 5),
    "slime": (2, 0),
}  # fmt: skip
"""Keys that are compared: all, and those that are equal after the weights have moved too."""


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("framework", LEAST)
def test_a_framework_and_the_hub_have_the_same_figures(framework: str, moved: bool) -> None:
    if framework not in FOLDERS:
        pytest.skip("its folder is not named in RLTOP_FRAMEWORK_SOURCES")
    with run_directory() as home:
        environment = os.environ | {
            "RLTOP_HOME": str(home.path), "RLTOP_RUN": "run", "PYTHONPATH": FOLDERS[framework], "PYTHONOPTIMIZE": "1",
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", str(SCRIPT), framework, *(["moved"] if moved else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    theirs, ours, compared = found["theirs"], found["ours"], 0
    for source, key in elsewhere.ENTRIES:
        name = next((name for name in theirs if key.key in (name, f"rl/{name}")), None)
        if source.framework != framework or key.differs or name is None or (moved and source.old):
            continue
        compared += 1
        assert ours[key.metric] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (name, key.metric)
    assert ("old_logprobs" in found["passed"]) == ("old_version" in found["passed"])  # else nothing is version-matched
    assert compared >= LEAST[framework][moved]
