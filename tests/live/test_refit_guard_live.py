"""The refit guard on a real engine: every kind of broken update is named at the update, and a right one agrees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend import api
from rltop.backend.api.refit import RefitCheck
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import ended, wait_shown
from tests.support.live_engine import ENVIRONMENT, MODEL, LiveEngine, result
from tests.support.receiver import run_directory

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]

ENGINE = "e0"


class Refits:
    """One engine, its hub, and a trainer that states its weights."""

    def __init__(self, rundir: RunDir, folder: Path) -> None:
        from safetensors.torch import load_file

        self.hub = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)])
        self.engine = LiveEngine(worker_extension_cls="tests.support.refit_loads.Extension")
        self.client = Client(rundir)
        self.trainer = TrainerCollector(hub=str(rundir.path), start_hub=False)
        self.version = 0
        self._folder = folder
        self._weights: dict[str, Any] = load_file(str(MODEL / "model.safetensors"))
        self.see(lambda view: ENGINE in view.engines)

    def close(self) -> None:
        self.trainer.close()
        self.client.close()
        self.engine.close()
        self.hub.terminate()
        ended(self.hub)

    def see(self, condition: Callable[[api.Snapshot], object]) -> api.Snapshot:
        wait_shown(self.client, lambda c: c.view is not None and c.state == "live" and bool(condition(c.view)))
        assert self.client.view is not None
        return self.client.view

    def rpc(self, method: str, *args: Any) -> None:
        self.engine.run(self.engine.llm.collective_rpc(method, args=args))

    def train(self) -> Path:
        """The next version of the trainer's weights, as a checkpoint."""
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(self.version)
        self.version += 1
        self._weights = {name: one + 0.01 * one.std() * torch.randn_like(one) for name, one in self._weights.items()}
        path = self._folder / f"{self.version}.safetensors"
        save_file(self._weights, str(path))
        return path

    def state(self) -> None:
        self.trainer.weights(self.version, self._weights)

    def load(self, path: Path | None) -> None:
        """An update of the engine to the trainer's version, with ``path`` or without any tensor."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm, run = self.engine.llm, self.engine.run
        run(llm.pause_generation(mode="keep", clear_cache=True))
        run(llm.start_weight_update())
        run(llm.update_weights(WeightTransferUpdateRequest(update_info={"path": str(path or "")})))
        run(llm.finish_weight_update(f"step-{self.version}"))
        run(llm.resume_generation())

    def update(self, fault: str = "", *, states: bool = True) -> RefitCheck:
        """A step of the trainer and the update that follows; the guard's answer about it."""
        self.rpc("break_loading", fault)
        path = self.train()
        if states:
            self.state()
        self.load(path)
        return self.answer()

    def answer(self) -> RefitCheck:
        """The guard's answer about the newest version."""
        version = self.version
        refit: RefitCheck | None = self.see(lambda v: _version_of(v) == version).engines[ENGINE].refit
        assert refit is not None
        return refit


def _is_faulty(view: api.Snapshot) -> bool:
    refit = view.engines[ENGINE].refit
    return refit is not None and refit.is_faulty


def _version_of(view: api.Snapshot) -> int | None:
    refit = view.engines[ENGINE].refit
    return None if refit is None else refit.policy_version


@pytest.fixture(scope="module")
def refits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refits]:
    with run_directory() as rundir, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(rundir.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        made = Refits(rundir, tmp_path_factory.mktemp("weights"))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def healthy(refits: Refits) -> Refits:
    """Every test begins with an update that is right."""
    found = refits.update()
    assert (found.verdict, found.against) == ("agree", "trainer"), found
    assert found.compared > 20
    return refits


@pytest.mark.parametrize(
    ("fault", "verdict", "named"),
    [
        ("head", "head", "lm_head"),
        ("layer", "partial", ".layers.1."),
        ("scaled", "scaled", ""),
        ("attention scaled", "differs", "qkv_proj"),
        ("cast", "cast", ""),
    ],
)
def test_a_broken_update_is_named_at_once(healthy: Refits, fault: str, verdict: str, named: str) -> None:
    found = healthy.update(fault)
    assert (found.verdict, found.against) == (verdict, "trainer"), found
    assert found.tensors and all(named in name for name in found.tensors)
    version = healthy.version
    events = healthy.see(lambda v: any(event.kind == "refit" for event in v.events)).events
    assert any(event.kind == "refit" and event.engine == ENGINE and verdict in event.text for event in events), version


def test_an_update_that_loads_nothing_is_skipped(healthy: Refits) -> None:
    healthy.train()
    healthy.state()
    healthy.load(None)
    assert healthy.answer().verdict == "skipped"


def test_an_update_with_the_weights_of_the_version_before_is_late(healthy: Refits) -> None:
    before = healthy.train()
    healthy.state()
    healthy.load(before)
    assert healthy.answer().verdict == "agree"
    healthy.train()
    healthy.state()
    healthy.load(before)
    found = healthy.answer()
    assert found.verdict == "late", found
    assert f"version {healthy.version - 1}" in found.text


@pytest.mark.parametrize("kind", ["zeros", "garbage"])
def test_weights_that_are_gone_are_lost(healthy: Refits, kind: str) -> None:
    healthy.rpc("lose", kind)
    found = healthy.see(_is_faulty).engines[ENGINE].refit
    assert found is not None
    assert found.verdict == "lost", found


def test_without_the_trainers_weights_an_engine_is_compared_with_itself(healthy: Refits) -> None:
    found = healthy.update(states=False)
    assert (found.verdict, found.against) == ("changed", "itself"), found
    assert healthy.update("scaled", states=False).verdict in ("changed", "scaled")
    for expected in ("unchanged", "skipped"):
        healthy.version += 1
        healthy.load(None)
        assert healthy.answer().verdict == expected


def test_requests_run_on_while_the_guard_reads(healthy: Refits) -> None:
    running = [healthy.engine.generate(f"r{i}", [3, 40 + i, 5], 200, seed=i) for i in range(8)]
    healthy.engine.wait_running([f"r{i}" for i in range(8)])
    assert healthy.update().verdict == "agree"
    assert all(len(result(work).outputs[0].token_ids) == 200 for work in running)
    refit = healthy.see(lambda v: True).engines[ENGINE].refit
    assert refit is not None and refit.share is not None
    assert 0 < refit.share < 1
