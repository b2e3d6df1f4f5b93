"""Attaching to a server that runs: it was started without a variable, has requests in flight, and never notices."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.api import Engine
from rltop.backend.client.live import Client
from rltop.backend.store.writer_launch import wait_for_writer
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import wait_for, wait_shown
from tests.support.live_server import LANES, LiveServer, Traffic
from tests.support.switchboard import prompt

pytestmark = pytest.mark.engine

TOKENS = 160
PROMPTS = [prompt(place) for place in range(LANES)]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as directory:
        server = LiveServer(Path(directory))
        try:
            yield server
        finally:
            server.close()


def start(server: LiveServer, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, as a user does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RLTOP_")}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "rltop.tui.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {"RLTOP_HOME": str(server.home)},
    )


def hub_beside(command: subprocess.Popen[str], rundir: RunDir) -> object:
    """The hub that a command starts, if it is up; fails with the command's output if that has ended."""
    assert command.poll() is None, command.communicate()
    return find_hub(rundir)


def rltop(server: LiveServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(server, *arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def answer(server: LiveServer, *arguments: str) -> Any:
    return answer_of(server, 0, *arguments)


def answer_of(server: LiveServer, code: int, *arguments: str) -> Any:
    """The JSON that a command prints, which ends with this exit code."""
    done = rltop(server, *arguments)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def processes(server: LiveServer) -> list[Any]:
    found: list[Any] = answer(server, "runs", "--json")["processes"]
    return found


def engine_of(client: Client, name: str) -> Engine:
    assert client.view is not None
    return client.view.engines[name]


def test_a_loading_engine_is_shown_and_then_a_dormant_one(server: LiveServer) -> None:
    (loading,) = wait_for(lambda: processes(server), "the engine loads", poll_s=0.2)
    assert (loading["state"], loading["engines"]) in [("loading", []), ("dormant", loading["engines"])]
    if loading["state"] == "loading":  # a small model may load faster than the command starts
        said = rltop(server, "status")
        assert said.returncode == 1
        assert f"pid {loading['pid']}" in said.stderr
    server.wait()
    (dormant,) = processes(server)
    assert (dormant["pid"], dormant["state"], dormant["run"]) == (loading["pid"], "dormant", None)
    assert f"`rltop attach RUN --pid {dormant['pid']}`" in rltop(server, "status").stderr
    assert rltop(server, "detach").returncode == 1
    assert "name a new one" in rltop(server, "attach").stderr


def test_attach_switch_and_detach_lose_no_request_and_change_no_seeded_output(server: LiveServer) -> None:
    server.wait()
    traffic = Traffic(server, PROMPTS, TOKENS)
    try:
        traffic.wait(2)  # dormant
        attached = answer(server, "attach", "myrun", "--json")
        (engine,) = attached["engines"]
        name = engine["engine"]
        assert (attached["run"], engine["state"]) == ("myrun", "attached")
        assert engine["in_flight"] > 0
        with Client(RunDir(server.home / "myrun")) as client:
            traffic.wait(2)
            wait_shown(client, lambda c: c.view and name in c.view.engines, "the engine reports")
            wait_shown(client, lambda c: engine_of(c, name).finished > LANES, "requests are counted")
            early = engine_of(client, name).fingerprint["requests before attach"]
            assert early.startswith(f"{engine['in_flight']} were in flight, 0 still are")

            assert f"{name}: {early}" in rltop(server, "status").stdout

            switch = answer(server, "set", "prefix_caching", "off", "--json")
            (change,) = switch["flag_changes"]
            assert (change["outcome"], change["lost_requests"]) == ("applied", 0)
            assert change["in_flight"] > 0
            traffic.wait(1)
            refused = rltop(server, "detach")
            assert refused.returncode == 1
            assert "prefix_caching is off (at launch on)" in refused.stderr
            assert rltop(server, "set", "prefix_caching", "on").returncode == 0

            assert [one["state"] for one in answer(server, "detach", "--json")["engines"]] == ["dormant"]
            wait_shown(client, lambda c: engine_of(c, name).health == "gone", "the engine is gone")
            seen = engine_of(client, name).tokens
            traffic.wait(2)
            assert engine_of(client, name).tokens == seen  # nothing observes the engine any more
    finally:
        outputs = traffic.finish()
    assert [one["state"] for one in processes(server)] == ["dormant"]
    for of_lane in outputs:
        first, *others = [tokens for tokens, _ in of_lane]
        assert len(first) == TOKENS
        assert others == [first] * len(others)


def test_a_second_attach_works_on_an_idle_engine_and_names_the_run(server: LiveServer) -> None:
    server.wait()
    (engine,) = answer(server, "attach", "myrun", "--all", "--json")["engines"]
    assert engine["in_flight"] == 0
    other = rltop(server, "attach", "another", "--pid", str(engine["pid"]))
    assert other.returncode == 1
    assert "reports to the run in" in other.stderr
    again = answer(server, "attach", "myrun", "--pid", str(engine["pid"]), "--json")
    assert again["engines"][0]["state"] == "attached"
    assert rltop(server, "set", "prefix_caching", "off").returncode == 0
    kept = answer(server, "detach", "--keep", "--json")
    assert kept["engines"][0]["notes"] == ["left as it is: prefix_caching is off (at launch on)"]
    assert answer(server, "attach", "myrun", "--json")["engines"][0]["state"] == "attached"
    assert rltop(server, "detach").returncode == 1  # the value at launch is known still
    assert rltop(server, "set", "prefix_caching", "on").returncode == 0
    assert rltop(server, "detach").returncode == 0


def test_the_server_is_attached_by_its_url_as_if_it_had_no_plugin(server: LiveServer) -> None:
    server.wait()
    by_url = start(server, "attach", server.url, "byurl")
    traffic = Traffic(server, PROMPTS, TOKENS)
    name = f"127.0.0.1:{server.port}"
    try:
        wait_for(lambda: hub_beside(by_url, RunDir(server.home / "byurl")), "the hub")
        with Client(RunDir(server.home / "byurl")) as client:
            wait_shown(client, lambda c: c.view and name in c.view.engines, "the server reports")
            wait_shown(client, lambda c: engine_of(c, name).running, "requests are running")
            wait_shown(client, lambda c: engine_of(c, name).tokens_per_s, "tokens per second")
            shown = engine_of(client, name)
            assert shown.ttft
            assert shown.itl
            assert (shown.preemptions, shown.vllm_version) == (0, "0.32.0")
            assert {flag.value for flag in shown.flags.values()} == {None}

            paused = answer(server, "pause", "--run", "byurl", "--for", "60s", "--json")["flag_changes"]
            assert [change["outcome"] for change in paused] == ["applied"]
            wait_shown(client, lambda c: engine_of(c, name).paused, "generation is paused")
            assert rltop(server, "resume", "--run", "byurl").returncode == 0
            traffic.wait(1)
            refused = answer_of(server, 1, "set", "prefix_caching", "off", "--run", "byurl", "--json")["flag_changes"]
            assert "only the plugin" in refused[0]["reason"]
    finally:
        outputs = traffic.finish()
        by_url.send_signal(signal.SIGINT)
        out, err = by_url.communicate()
    assert by_url.returncode == 130, (out, err)
    assert f"engine {name} attached to run 'byurl'" in out
    for of_lane in outputs:
        assert all(tokens == of_lane[0][0] for tokens, _ in of_lane)


@pytest.fixture(scope="module", autouse=True)
def hubs(server: LiveServer) -> Iterator[None]:
    """Ends the hubs that the tests started."""
    yield
    for name in ("myrun", "another", "byurl"):
        rundir = RunDir(server.home / name)
        if find_hub(rundir) is not None:
            with Client(rundir) as client:
                client.stop_hub()
            wait_for(functools.partial(_has_no_hub, rundir), "the hub ends")
            wait_for_writer(rundir.path)


def _has_no_hub(rundir: RunDir) -> bool:
    return find_hub(rundir) is None
