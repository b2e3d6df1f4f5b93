"""The demo with real engines and a real trainer, switched live, also without its hub for a while."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.api import Step
from rltop.backend.client.live import Client
from rltop.backend.demo.supervisor import Demo, DemoOptions, parse_setting, start
from rltop.collectors.contract.launch import ensure_hub, find_hub
from tests.backend.hub.test_hub_report import REPORT_KEYS, STEP_KEYS
from tests.support.harness import wait_for

pytestmark = pytest.mark.engine

SEQUENCES = 64
NOISE_NATS = 2e-5
"""Largest difference of fp32 logprobs between vLLM and torch on the CPU; observed mean: 1e-7."""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    monkeypatch.setenv("RLTOP_HOME", str(path))
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def running(options: DemoOptions) -> Iterator[tuple[Demo, Client]]:
    demo = start(options)
    try:
        with Client(demo.rundir) as client:
            yield demo, client
    finally:
        demo.stop()


def until(demo: Demo, client: Client, condition: Callable[[], object]) -> None:
    """Poll until the condition holds; the demo must not fail before."""

    def holds() -> bool:
        client.poll(0.1)
        assert demo.exit_code in (None, 0), demo.log.read_text()
        return bool(condition())

    wait_for(holds, "the demo", progress=demo.log.stat)


def processes_of(home: Path) -> list[str]:
    """Live processes with this test's directory in their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(home).encode() in text and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def check_report(report: dict[str, Any], steps: int) -> None:
    assert set(report) == REPORT_KEYS
    assert [engine["id"] for engine in report["engines"]] == ["e0", "e1"]
    for engine in report["engines"]:
        assert engine["vllm_version"].startswith("0.")
        assert engine["policy_version"] == steps
        assert engine["tokens"] > 0
        assert engine["flags"]["prefix_caching"] == {"value": "off", "switchable": True, "reason": None, "detail": None}
        assert engine["flags"]["async_scheduling"]["value"] == "off"
    assert [step["step"] for step in report["steps"]] == list(range(steps))
    for step in report["steps"]:
        assert set(step) == STEP_KEYS
        unknown = {name for name, value in step.items() if value is None}
        assert unknown <= {"weight_cut_frac", "lag0_abs_diff_mean", "lag0_k3"}  # no weights; a step may have no lag 0
        assert step["joined_fraction"] >= 0.99
        assert step["policy_version"] == step["step"] + 1
        assert step["lag_mean"] <= 2.0


def check_changes(changes: list[dict[str, Any]], wanted: list[tuple[str, str]]) -> None:
    expected = sorted((flag, value, engine) for flag, value in wanted for engine in ("e0", "e1"))
    assert sorted((change["flag"], change["to"], change["engine"]) for change in changes) == expected
    for change in changes:
        assert change["outcome"] == "applied", change
        assert change["lost_requests"] == 0, change
        assert change["from"] == "on"


def check_steps(steps: list[Step]) -> None:
    spanning = [step.trainer["spanning_share"] for step in steps]
    assert sum(spanning) / len(spanning) >= 0.05, spanning
    for step in steps:
        assert step.values["backend_tokens"]
        gap = step.values["backend_abs_diff_mean"]
        assert gap is not None
        assert gap < NOISE_NATS, step


def test_a_headless_run_is_switched_live_and_fully_reported(home: Path) -> None:
    steps = 10
    options = DemoOptions(
        run="whole",
        steps=steps,
        settings=(parse_setting("2:prefix_caching=off"), parse_setting("4:async_scheduling=off")),
        json_path=home / "out.json",
    )
    with running(options) as (demo, client):
        until(demo, client, lambda: demo.exit_code is not None and client.view and steps - 1 in client.view.steps)
        assert client.view is not None
        assert client.view.trainer.health == "gone"
        check_steps([client.view.steps[step] for step in range(steps)])
    report = json.loads((home / "out.json").read_text())
    check_report(report, steps)
    check_changes(report["flag_changes"], [("prefix_caching", "off"), ("async_scheduling", "off")])
    hits = [step["prefix_hit_rate"] for step in report["steps"]]
    assert min(hits[:3]) > 0.3
    assert max(hits[6:]) == 0.0
    assert processes_of(home) == []
    assert not list((home / "whole").glob("*.safetensors"))


def test_a_replica_with_a_wrong_version_is_named_by_the_attribution(home: Path) -> None:
    steps = 8
    with running(DemoOptions(run="lying", steps=steps, matched=32, fault="lying-replica")) as (demo, client):
        until(demo, client, lambda: demo.exit_code is not None and client.view and steps - 1 in client.view.steps)
        assert "started with the fault lying-replica" in demo.log.read_text()
        found = client.attribution(steps)
        assert client.view is not None
        assert [client.view.engines[engine].policy_version for engine in ("e0", "e1")] == [steps, steps]
    assert found.matched_by == "old"
    e0, e1 = (next(s for s in found.matched if (s.dimension, s.label) == ("engine", name)) for name in ("e0", "e1"))
    assert e0.abs_diff.mean < NOISE_NATS < e1.abs_diff.mean
    assert e0.k3.high is not None and e1.k3.low is not None
    assert e1.k3.low > max(e0.k3.high, 0.0)
    whole = {s.label: s.k3 for s in found.strata if s.dimension == "engine"}
    assert whole["e0"].high is not None and whole["e1"].low is not None
    assert whole["e1"].low > whole["e0"].high


def test_a_fault_that_starts_late_is_in_the_rows_from_its_step_on(home: Path) -> None:
    steps, at = 6, 3
    with running(DemoOptions(run="nucleus", steps=steps, fault="top-p-processed", fault_at=at)) as (demo, client):
        until(demo, client, lambda: demo.exit_code is not None and client.view and steps - 1 in client.view.steps)
        assert client.view is not None
        found = [client.view.steps[step].values for step in range(steps)]
    off = [values["backend_abs_diff_max"] for values in found]
    assert all(gap is not None and gap < 10 * NOISE_NATS for gap in off[:at]), off
    # What top_p 0.9 leaves has a tenth more probability at most, and never less.
    assert all(gap is not None and 0.01 < gap < -math.log(0.9) + NOISE_NATS for gap in off[at:]), off
    assert all(values["backend_diff_mean"] is not None and values["backend_diff_mean"] < -0.01 for values in found[at:])


def test_training_continues_without_its_hub_and_another_takes_over(home: Path) -> None:
    steps = 12
    with running(DemoOptions(run="hubless", steps=steps, engines=1, json_path=home / "out.json")) as (demo, client):
        # As the run itself saw it: a killed hub's last frame may have reached us and not the run, or the other way.
        until(demo, client, lambda: re.search(r"\] +2 ", demo.log.read_text()))
        hub = find_hub(demo.rundir)
        assert hub is not None
        os.kill(hub.pid, signal.SIGKILL)
        until(demo, client, lambda: find_hub(demo.rundir) is None)
        second = ensure_hub(demo.rundir)
        assert second.epoch != hub.epoch
        until(demo, client, lambda: client.view and client.view.epoch == second.epoch and client.view.steps)
        until(demo, client, lambda: demo.exit_code is not None)
        assert demo.exit_code == 0
        os.kill(second.pid, signal.SIGTERM)
        until(demo, client, lambda: find_hub(demo.rundir) is None)
    seen = [step["step"] for step in json.loads((home / "out.json").read_text())["steps"]]
    assert seen[:3] == [0, 1, 2]
    assert seen[-1] == steps - 1
    assert processes_of(home) == []


def test_a_run_that_is_stopped_during_boot_leaves_no_processes(home: Path) -> None:
    with running(DemoOptions(run="stopped")) as (demo, client):
        until(demo, client, lambda: (demo.rundir.path / "e1.log").exists())
    assert demo.exit_code == 128 + signal.SIGTERM
    assert processes_of(home) == []
