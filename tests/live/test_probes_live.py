"""Probes on two real engines: findings, negative controls, and no effect on rollouts.

One hub in a process of its own, two engines, a trainer collector. Every test begins with the same weights everywhere.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.digests import weight_digests
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import PATIENT_S, ended, wait_shown
from tests.support.live_engine import ENVIRONMENT, MODEL, LiveEngine, result
from tests.support.receiver import run_directory

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]

E0, E1 = "e0", "e1"
PREFIX = [3, *range(40, 103)]
"""Two blocks that all prompts share."""

TOKENS = 24
SEQUENCES = 8


class Fleet:
    """The engines, the hub, the trainer's collector and a client."""

    def __init__(self, rundir: RunDir, patch: pytest.MonkeyPatch, other: Path) -> None:
        self.hub = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)])
        self.engines: dict[str, LiveEngine] = {}
        for name in (E0, E1):
            patch.setenv("RLTOP_ENGINE", name)
            self.engines[name] = LiveEngine()
        self.client = Client(rundir)
        self.trainer = TrainerCollector(hub=str(rundir.path), facts={"temperature": 1.0}, start_hub=False)
        self.weights = {"a": MODEL / "model.safetensors", "b": other}
        self.version = 0
        self.step = 0
        self._batches = 0

    def close(self) -> None:
        self.trainer.close()
        self.client.close()
        for engine in self.engines.values():
            engine.close()
        self.hub.terminate()
        ended(self.hub)

    def see(self, condition: Callable[[api.Snapshot], object]) -> api.Snapshot:
        wait_shown(self.client, lambda c: c.view is not None and c.state == "live" and bool(condition(c.view)))
        assert self.client.view is not None
        return self.client.view

    def update(self, engine: str, weights: str, *, clear: bool = True) -> None:
        """Load weights under the label of the present version, as trainers do."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        live = self.engines[engine]
        live.run(live.llm.pause_generation(mode="keep", clear_cache=clear))
        live.run(live.llm.start_weight_update())
        live.run(live.llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(self.weights[weights])})))
        live.run(live.llm.finish_weight_update(f"step-{self.version}"))
        live.run(live.llm.resume_generation())
        version = self.version
        self.see(lambda v: v.engines[engine].policy_version == version and not v.engines[engine].paused)

    def next_version(self) -> None:
        self.version += 1

    def roll_out(self, *names: str) -> dict[str, list[Any]]:
        """Some rollouts of each engine, finished and known to the hub."""
        self._batches += 1
        found = {}
        for name in names or (E0, E1):
            before = self.see(lambda v, name=name: name in v.engines).engines[name].finished  # type: ignore[misc]
            running = [
                self.engines[name].generate(f"r{self._batches}-{i}", [*PREFIX, 5 + i, 6 + i], TOKENS, seed=i)
                for i in range(SEQUENCES)
            ]
            found[name] = [result(work) for work in running]
            self.see(lambda v, n=name, b=before: v.engines[n].finished == b + SEQUENCES)  # type: ignore[misc]
        return found

    def probe(self, name: str, *engines: str) -> ProbeResult:
        return self.client.probe(
            api.AskProbe(api.new_id(), name, list(engines) or None, "ann", "here", timeout_s=PATIENT_S)
        )

    def train(self, outputs: list[Any], weights: str, *, digests: bool = False) -> None:
        """A step of the trainer on these rollouts, with its logprobs under ``weights``."""
        rows = [(list(output.prompt_token_ids), list(output.outputs[0].token_ids)) for output in outputs]
        recorded = [_logprobs(output) for output in outputs]
        ours = [trainer_logprobs(self.weights[weights], prompt, tokens) for prompt, tokens in rows]
        self.trainer.sequences(
            self.step,
            token_ids=np.array([tokens for _, tokens in rows]),
            rollout_logprobs=np.array(recorded, np.float32),
            trainer_logprobs=np.array(ours, np.float32),
            mask=np.ones((len(rows), TOKENS), bool),
            prompt_ids=[np.array(prompt) for prompt, _ in rows],
            policy_version=self.version,
        )
        given = weight_digests(tensors_of(self.weights[weights])) if digests else None
        self.trainer.step(self.step, policy_version=self.version, weight_digests=given)
        step = self.step
        self.step += 1
        self.see(lambda v: step in v.steps)


def tensors_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(str(path))
    return found


@functools.cache
def policy_of(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(MODEL)).eval()
    model.load_state_dict(tensors_of(path))
    return model


def trainer_logprobs(path: Path, prompt: list[int], tokens: list[int]) -> Any:
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt + tokens])
        logits = policy_of(path)(ids).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits.float(), -1).gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()


def _logprobs(output: Any) -> list[float]:
    of_tokens = zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
    return [found[token].logprob for token, found in of_tokens]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    other = tmp_path_factory.mktemp("weights") / "b.safetensors"
    tensors = tensors_of(MODEL / "model.safetensors")
    save_file({name: one + 0.1 * one.std() * torch.randn_like(one) for name, one in tensors.items()}, str(other))
    with run_directory() as rundir, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(rundir.path))
        made = Fleet(rundir, patch, other)
        try:
            made.see(lambda v: {E0, E1} <= v.engines.keys())
            yield made
        finally:
            made.close()


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    shared.next_version()
    for name in (E0, E1):
        shared.update(name, "a")
    return shared


def largest(result: ProbeResult) -> float:
    return max(entry.value or 0.0 for entry in result.evidence if entry.name.startswith("largest"))


def test_every_probe_finds_a_healthy_fleet_healthy(fleet: Fleet) -> None:
    outputs = fleet.roll_out()
    rescored = fleet.probe("prefill-rescore")
    assert (rescored.verdict, rescored.policy_version) == ("match", fleet.version), rescored
    assert largest(rescored) < 1e-4
    crossed = fleet.probe("cross-replica")
    assert crossed.verdict == "agree", crossed
    assert largest(crossed) < 1e-4
    salted = fleet.probe("cache-salt")
    assert salted.verdict == "fresh", salted
    hits = [entry for entry in salted.evidence if entry.name.startswith("cached tokens")]
    assert [(entry.value, entry.name) for entry in hits] == [(64.0, "cached tokens per hot request (cold: 0)")] * 2
    fleet.train(outputs[E0], "a", digests=True)
    digested = fleet.probe("weight-digest")
    assert digested.verdict == "agree", digested
    assert sum("match the trainer's of this version" in note for note in digested.notes) == 2
    unlike = [entry for entry in digested.evidence if entry.name == "weights that differ from the trainer's"]
    assert [entry.value for entry in unlike] == [0.0, 0.0]
    assert all(entry.n > 20 for entry in unlike)
    assert fleet.probe("config-diff").verdict == "agree"
    assert fleet.probe("token-echo").verdict == "equal"


def test_stale_kv_that_an_update_kept_is_found(fleet: Fleet) -> None:
    fleet.roll_out()
    fleet.next_version()
    fleet.update(E0, "b", clear=False)
    fleet.update(E1, "b", clear=True)
    fleet.roll_out(E1)
    found = fleet.probe("cache-salt")
    assert (found.verdict, found.odd) == ("stale", [E0]), found


def test_a_replica_that_missed_an_update_is_named_by_digest_and_scores(fleet: Fleet) -> None:
    outputs = fleet.roll_out()
    fleet.probe("weight-digest")  # the reference of the next probe
    fleet.next_version()
    fleet.update(E0, "b")
    fleet.update(E1, "a")  # the new version's label on the old weights
    digested = fleet.probe("weight-digest")
    assert (digested.verdict, digested.odd) == ("differ", [E1]), digested
    fleet.train(outputs[E0], "b")
    crossed = fleet.probe("cross-replica")
    assert (crossed.verdict, crossed.odd) == ("differ", [E1]), crossed


def test_an_update_that_no_engine_applied_is_found(fleet: Fleet) -> None:
    fleet.probe("weight-digest")
    fleet.next_version()
    fleet.update(E0, "a")
    fleet.update(E1, "a")
    found = fleet.probe("weight-digest")
    assert (found.verdict, found.odd) == ("not_applied", [E0, E1]), found


def test_probes_affect_no_rollout_and_are_not_counted(fleet: Fleet) -> None:
    fleet.roll_out()
    names = range(16)
    live = fleet.engines[E0]

    def batch(label: str) -> list[Any]:
        return [live.generate(f"{label}-{i}", [*PREFIX, 7 + i], 200, seed=100 + i) for i in names]

    begin = fleet.see(lambda v: E0 in v.engines).engines[E0].finished
    quiet = [result(work) for work in batch("quiet")]
    before = fleet.see(lambda v: v.engines[E0].finished == begin + 16).engines[E0]
    running = batch("probed")
    live.wait_running([f"probed-{i}" for i in names])
    found = [fleet.probe(name, E0) for name in ("prefill-rescore", "cache-salt", "weight-digest")]
    probed = [result(work) for work in running]
    assert [one.verdict for one in found[:2]] == ["match", "fresh"], found
    assert found[2].verdict in ("agree", "not_applied"), found  # every test starts with the previous test's weights
    assert [one.outputs[0].token_ids for one in probed] == [one.outputs[0].token_ids for one in quiet]
    for one, other in zip(probed, quiet, strict=True):
        np.testing.assert_allclose(_logprobs(one), _logprobs(other), atol=1e-5)
    after = fleet.see(lambda v: v.engines[E0].finished == before.finished + 16).engines[E0]
    assert after.tokens == before.tokens + 16 * 200
    assert (after.aborted, after.faults) == (before.aborted, before.faults)


def test_a_pause_ends_a_probe_and_loses_no_rollout(fleet: Fleet) -> None:
    fleet.roll_out(E0)
    live = fleet.engines[E0]
    running = [live.generate(f"seat-{i}", [*PREFIX, 9 + i % 40], 300, seed=i) for i in range(96)]
    live.wait_running([f"seat-{i}" for i in range(64)], 1)  # every slot is taken; requests wait ahead of the probe's
    question = api.AskProbe("q-overtaken", "prefill-rescore", [E0], "ann", "here", "", PATIENT_S)
    fleet.client.ask(question)
    wait_shown(fleet.client, lambda c: "q-overtaken" in c.answers)
    command = fleet.client.answers.pop("q-overtaken").command
    key = f"{command}@{E0}"
    fleet.see(lambda v: key in v.changes and v.changes[key].state == "running")
    live.run(live.llm.pause_generation(mode="keep", clear_cache=False))
    found = fleet.see(lambda v: command in v.probes).probes[str(command)]
    assert found.verdict == "overtaken", found
    assert fleet.see(lambda v: v.engines[E0].paused).engines[E0].running == 64
    live.run(live.llm.resume_generation())
    assert all(len(result(work).outputs[0].token_ids) == 300 for work in running)
