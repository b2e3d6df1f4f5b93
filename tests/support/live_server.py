"""A real vLLM API server in a process of its own, started as a user would: no variable of rltop but the home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.harness import PATIENT_S, ended, wait_for
from tests.support.live_engine import BLOCK, ENVIRONMENT, MODEL

LANES = 32
"""Requests in flight."""

Sampled = tuple[list[int], list[float]]
"""Tokens and their logprobs as the server returned them."""


class LiveServer:
    """Starts on construction, in its own directory; ``wait`` until it answers, ``close`` ends it.

    Args:
        directory: of its log and its ``RLTOP_HOME``.
        dev: with vLLM's development routes.
        environment: further variables.
    """

    def __init__(self, directory: Path, *, dev: bool = True, **environment: str) -> None:
        self.home = directory / "home"
        self.log = directory / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RLTOP_")}
        clean |= ENVIRONMENT | {"RLTOP_HOME": str(self.home), "VLLM_SERVER_DEV_MODE": str(int(dev))} | environment
        clean.pop("RLTOP_DEMO_ASYNC", None)
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--model", str(MODEL), "--skip-tokenizer-init", "--dtype", "float32"]
        command += ["--max-model-len", "512", "--max-num-seqs", "64", "--max-num-batched-tokens", "16384"]
        command += ["--enforce-eager", "--block-size", str(BLOCK), "--generation-config", "vllm", "--enable-scale-out"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=clean, cwd=directory, start_new_session=True
            )

    def wait(self) -> None:
        """Until the server answers."""
        wait_for(self.is_up, "the server answers", progress=lambda: self.log.stat().st_size, poll_s=0.5)

    def is_up(self) -> bool:
        """Whether it answers; fails if it has ended."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            self.get("/health")
        except OSError:
            return False
        return True

    def get(self, path: str) -> bytes:
        """The body of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=PATIENT_S) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a POST request, from JSON."""
        data = json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENT_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error

    def sample(self, prompt: list[int], tokens: int, seed: int) -> Sampled:
        """Sample exactly ``tokens`` tokens at temperature 1."""
        params = {"max_tokens": tokens, "seed": seed, "temperature": 1.0, "ignore_eos": True, "logprobs": 0}
        body = {"token_ids": prompt, "sampling_params": params | {"detokenize": False}}
        choice = self.post("/inference/v1/generate", body)["choices"][0]
        return choice["token_ids"], [entry["logprob"] for entry in choice["logprobs"]["content"]]

    def close(self) -> None:
        """End the server and its engine."""
        self.process.send_signal(signal.SIGINT)
        ended(self.process)


class Traffic:
    """Keeps ``LANES`` requests in flight; each lane repeats one seeded request, whose output must never change."""

    def __init__(self, server: LiveServer, prompts: list[list[int]], tokens: int) -> None:
        self._server, self._prompts, self._tokens = server, prompts, tokens
        self._stopping = False
        self.outputs: list[list[Sampled]] = [[] for _ in prompts]
        self._lanes = ThreadPoolExecutor(len(prompts))
        self._work = [self._lanes.submit(self._lane, place) for place in range(len(prompts))]

    def _lane(self, place: int) -> None:
        while not self._stopping:
            self.outputs[place].append(self._server.sample(self._prompts[place], self._tokens, 1000 + place))

    def wait(self, rounds: int) -> None:
        """Until every lane has finished so many more requests."""
        goals = [len(done) + rounds for done in self.outputs]
        wait_for(lambda: self._reached(goals), "requests of every lane", poll_s=0.1)

    def _reached(self, goals: list[int]) -> bool:
        for lane in self._work:
            assert not lane.done(), lane.result()
        return all(len(done) >= goal for done, goal in zip(self.outputs, goals, strict=True))

    def finish(self) -> list[list[Sampled]]:
        """Wait for the requests in flight; the outputs of each lane, every one complete."""
        self._stopping = True
        self._lanes.shutdown()
        for lane in self._work:
            lane.result()
        return self.outputs
