"""What `examples/` promises, on a real engine: the run is seen whole, and its gap grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.receiver import run_directory, wait_until

ATTACH = Path(__file__).parents[2] / "examples" / "attach.py"
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.mark.engine
def test_the_attached_run_is_seen_whole_and_its_gap_grows() -> None:
    with run_directory() as home:
        environment = {**os.environ, **ENGINE, "RLTOP_HOME": str(home.path)}
        for name in ("RLTOP_RUN", "RLTOP_HUB", "RLTOP_ENGINE"):
            environment.pop(name, None)
        rundir = RunDir(home.path / "example")
        try:
            run = subprocess.run(
                [sys.executable, str(ATTACH)], env=environment, capture_output=True, text=True, check=False
            )
            assert run.returncode == 0, run.stderr[-4000:]
            said = subprocess.run(
                [sys.executable, "-m", "rltop.tui.cli.main", "status", "example", "--json"],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        finally:
            if hub := find_hub(rundir):
                os.kill(hub.pid, signal.SIGKILL)
                wait_until(lambda: find_hub(rundir) is None)
    report = json.loads(said.stdout)
    assert [engine["id"] for engine in report["engines"]] == ["e0"]
    steps = report["steps"]
    assert [step["step"] for step in steps] == list(range(20))
    assert min(step["joined_fraction"] for step in steps) == 1.0
    assert steps[0]["logp_abs_diff_mean"] < 1e-4 < steps[-1]["logp_abs_diff_mean"]
