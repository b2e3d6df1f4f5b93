"""TRL's trainer with a real vLLM engine and one line of rltop, in colocate and in server mode; one boot for each.

Everything that TRL and vLLM do is theirs, up to the two differences of a CPU (``tests/support/trl_live.py``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.api import Step
from rltop.backend.client.live import Client
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import ended, wait_for
from tests.support.live_engine import ENVIRONMENT
from tests.support.receiver import run_directory, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

pytest.importorskip("trl", reason="the frameworks are not installed: make setup", exc_type=ImportError)

HEALTHY_STEPS = 4
DIGITS = 1e-4
"""Relative difference of a figure; TRL sums in float32."""

NOISE_NATS = 2e-5
"""Largest mean gap of float32 logprobs between vLLM and torch on the CPU."""

ROUND_OFF = 1e-7
"""Absolute difference of mean gaps and ratios: one unit in the last place of float32 logprobs, which are of size 1."""

MOST_STALE_STEPS = 28
"""How long the first policy may sample unnamed. After a few steps, a partial update is as probable a cause."""

OTHER = {
    "prefix_caching": "off", "async_scheduling": "off", "logprobs_mode": "raw", "lm_head_fp32": "on",
    "update_clears_cache": "on",
}  # fmt: skip
"""A value of each flag that is not the launched one."""


class TrlRun:
    """A training run in processes of its own, with the directory of its files and what rltop says about it."""

    def __init__(self, mode: str, directory: Path, home: Path) -> None:
        self.mode, self.directory = mode, directory
        self.rundir = RunDir(home / "trl")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RLTOP_")}
        self._environment |= ENVIRONMENT | {"RLTOP_HOME": str(home), "RLTOP_ENGINE": "e0"}
        self._model = self._make_model()
        self._server = self._serve() if mode == "server" else None
        url = [self._wait_for_server(*self._server)] if self._server else []
        self._trainer = self._start("trl", "-m", "tests.support.trl_live", self._model, directory, *url)

    def _make_model(self) -> Path:
        from tests.support.trl_runs import make_model

        return make_model(self.directory / "model")

    def _start(self, name: str, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", *map(str, arguments)], stdout=log, stderr=log,
                env=self._environment | environment, start_new_session=True,
            )  # fmt: skip

    def _serve(self) -> tuple[subprocess.Popen[bytes], str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = self._start(
            "server", "-m", "vllm.entrypoints.openai.api_server", "--model", self._model, "--host", "127.0.0.1",
            "--port", port, "--dtype", "float32", "--max-model-len", 256, "--block-size", 32, "--enforce-eager",
            "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--worker-extension-cls",
            "rltop.backend.demo.engines.weight_transfer.WorkerExtension", "--weight-transfer-config",
            '{"backend": "rltop_file"}', VLLM_SERVER_DEV_MODE="1", RLTOP_RUN="trl",
        )  # fmt: skip
        return server, f"http://127.0.0.1:{port}"

    def _wait_for_server(self, server: subprocess.Popen[bytes], url: str) -> str:
        def answers() -> bool:
            assert server.poll() is None, (self.directory / "server.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=10):
                    return True
            except OSError:
                return False

        wait_for(answers, "the server answers", poll_s=0.5)
        return url

    def logs(self) -> dict[int, dict[str, float]]:
        """TRL's log by step."""
        path = self.directory / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {entry["step"]: entry for entry in map(json.loads, lines)}

    def wait_trained(self, steps: int) -> None:
        """Until TRL has logged this many steps."""

        def trained() -> bool:
            assert self._trainer.poll() is None, (self.directory / "trl.log").read_text()[-3000:]
            return len(self.logs()) >= steps

        wait_for(trained, f"{steps} steps of TRL", progress=lambda: len(self.logs()), poll_s=0.5)

    def steps(self, count: int) -> dict[int, Step]:
        """What the hub measured, once it has this many steps."""
        self.wait_trained(count)
        with Client(self.rundir) as client:

            def measured() -> dict[int, Step] | None:
                client.poll(0.1)
                steps = client.view.steps if client.view else {}
                return dict(steps) if len(steps) >= count else None

            return wait_for(measured, f"{count} steps in the hub")

    def rltop(self, *arguments: str) -> dict[str, Any]:
        """The answer of a command with ``--json``."""
        command = [sys.executable, "-m", "rltop.tui.cli.main", *arguments, "--json"]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def close(self) -> None:
        """End training in TRL's way, then the server and the hub."""
        (self.directory / "stop").touch()
        try:
            assert ended(self._trainer) == 0
            assert "rltop:" not in (self.directory / "trl.log").read_text()  # no fault, also at the end
        finally:
            if self._server:
                self._server[0].send_signal(signal.SIGINT)
                ended(self._server[0])
            if hub := find_hub(self.rundir):
                os.kill(hub.pid, signal.SIGKILL)
                wait_until(lambda: find_hub(self.rundir) is None)


@pytest.fixture(scope="module", params=["colocate", "server"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrlRun]:
    with run_directory() as home:
        run = TrlRun(request.param, tmp_path_factory.mktemp(request.param), home.path)
        yield run
        run.close()


def test_every_row_is_joined_and_every_figure_is_that_of_trl(run: TrlRun) -> None:
    steps = run.steps(HEALTHY_STEPS)
    for number in range(HEALTHY_STEPS):
        values, log = steps[number].values, run.logs()[number]
        assert values["joined_fraction"] == 1
        assert values["sequences"] == 32
        assert values["lag_mean"] == values["lag_max"] == values["lag_unknown_frac"] == 0
        assert values["backend_tokens"] == values["tokens"]
        gap = log["sampling/sampling_logp_difference/mean"]
        assert values["backend_abs_diff_mean"] == pytest.approx(gap, rel=DIGITS, abs=ROUND_OFF)
        assert values["logp_abs_diff_mean"] == pytest.approx(gap, rel=DIGITS, abs=ROUND_OFF)
        assert 0 < gap < NOISE_NATS
        ratio = log["sampling/importance_sampling_ratio/mean"]
        assert values["ratio_mean"] == pytest.approx(ratio, rel=DIGITS)
        assert values["weight_mean"] == pytest.approx(ratio, rel=DIGITS)
        assert values["entropy"] == pytest.approx(log["entropy"], rel=DIGITS)
        assert values["clip_frac_low"] == log["clip_ratio/low_mean"]
        assert values["clip_frac_high"] == log["clip_ratio/high_mean"]
        assert values["reward_mean"] == pytest.approx(log["reward"], rel=DIGITS)
        assert values["response_len_mean"] == pytest.approx(log["completions/mean_length"], rel=DIGITS)
    (engine,) = run.rltop("status", "trl")["engines"]
    assert engine["id"] == "e0"


def test_every_flag_is_switched_while_trl_trains(run: TrlRun) -> None:
    for flag in FLAGS:
        (change,) = run.rltop("set", flag.name, OTHER[flag.name], "--timeout", "600")["flag_changes"]
        assert change["outcome"] == "applied", change
        (back,) = run.rltop("undo", change["command"], "--timeout", "600")["flag_changes"]
        assert (back["outcome"], back["to"]) == ("applied", change["from"]), back
    steps = run.steps(len(run.logs()) + 1)
    assert {step.values["joined_fraction"] for step in steps.values()} == {1.0}


def test_syncs_without_effect_are_named(run: TrlRun) -> None:
    before = len(run.logs())
    (run.directory / "stale").touch()
    for stale in range(4, MOST_STALE_STEPS, 4):
        run.steps(before + stale)
        found = run.rltop("diagnose", "trl")
        if found["verdict"] == "fault" and found["causes"][0]["code"] == "B2":
            break
    else:
        pytest.fail(f"not named within {MOST_STALE_STEPS} steps: {found}")
    assert found["causes"][0]["since_step"] >= before
