"""Weight updates of a real engine by the methods of frameworks: seen, counted once, named, never switched within."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltop.collectors.contract import wire
from tests.support import published_workers
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ENVIRONMENT, MODEL, LiveEngine, policy_logprobs, result
from tests.support.parallel import SIZES
from tests.support.switchboard import ENGINE, arrived, check_equal, fresh, prompt

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@contextmanager
def booted(hub: HubStandIn, version_argument: str = "0", **launch: Any) -> Iterator[LiveEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(hub.rundir.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        patch.setenv("RLTOP_VERSION_ARGUMENT", version_argument)
        common = {"worker_extension_cls": "tests.support.framework_loads.Extension", "weight_transfer_config": None}
        engine = LiveEngine(**common | launch)
        yield engine
        engine.close()


@pytest.fixture(scope="module")
def engine(hub: HubStandIn) -> Iterator[LiveEngine]:
    with booted(hub) as engine:
        yield engine


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The model's own checkpoint and another one, each in a folder whose name has no number."""
    from safetensors.torch import load_file, save_file

    weights = load_file(MODEL / "model.safetensors")
    found = []
    for name, factor in (("same", 1.0), ("other", 1.01)):
        folder = tmp_path_factory.mktemp(name, numbered=False)
        save_file({key: value * factor for key, value in weights.items()}, folder / "model.safetensors")
        found.append(folder)
    return found


class Loader:
    """Calls the worker's methods as the frameworks do, and says how many versions they state."""

    def __init__(self, engine: LiveEngine) -> None:
        self.engine = engine

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return self.engine.run(self.engine.llm.collective_rpc(method, args=args))

    def names(self, folder: Path) -> list[str]:
        from safetensors.torch import load_file

        return list(load_file(folder / "model.safetensors"))

    def openrlhf(self, folder: Path) -> Iterator[None]:
        names = self.names(folder)
        for name in names:
            self.rpc("update_weight", name, str(folder / "model.safetensors"), name == names[0], name == names[-1])
            yield

    def pipelinerl(self, folder: Path) -> Iterator[None]:
        self.rpc("receive_weight_update", {"path": str(folder / "model.safetensors")})
        yield

    def verl(self, folder: Path) -> Iterator[None]:
        self.rpc("update_weights_from_ipc", str(folder / "model.safetensors"))
        yield

    def nemo_rl(self, folder: Path) -> Iterator[None]:
        self.rpc("update_weights_via_ipc_zmq", str(folder / "model.safetensors"))
        yield

    def prime_rl(self, folder: Path) -> Iterator[None]:
        self.rpc("update_weights_from_path", str(folder))
        yield

    def skyrl(self, folder: Path) -> Iterator[None]:
        names = self.names(folder)
        self.rpc("skyrl_start_weight_update")
        for start in range(0, len(names), 10):
            self.rpc("update_weights_ipc", str(folder / "model.safetensors"), names[start : start + 10])
            yield
        self.rpc("skyrl_finish_weight_update")

    def digests(self) -> dict[str, Any]:
        (answer,) = self.rpc("rltop_digest", True, 600.0)
        assert not answer["error"]
        return {name: rest for name, *rest in answer["found"]}


FRAMEWORKS = ["openrlhf", "pipelinerl", "verl", "nemo_rl", "prime_rl", "skyrl"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_update_of_a_framework_counts_once_and_no_switch_is_made_within(
    engine: LiveEngine, hub: HubStandIn, checkpoints: list[Path], framework: str
) -> None:
    loader = Loader(engine)
    before = fresh(hub)
    seen = []
    for number, folder in enumerate(reversed(checkpoints), 1):
        names = [f"{framework}{number}-{i}" for i in range(8)]
        running = [engine.generate(name, prompt(i), 60, seed=i) for i, name in enumerate(names)]
        engine.wait_running(names)
        engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))
        applied = switched_within(hub, getattr(loader, framework)(folder), f"{framework}{number}")
        engine.run(engine.llm.resume_generation())
        assert applied.lost_requests == 0
        state = fresh(hub)
        assert state.weight_updates == before.weight_updates + number
        assert state.version_source == "inferred"
        assert state.policy_version is not None
        assert state.policy_version == (before.policy_version or 0) + number
        assert "weights torn" not in state.fingerprint
        assert "sampled within updates" not in state.fingerprint
        for name, work in zip(names, running, strict=True):
            rollout = check_equal(hub, name, result(work))
            assert rollout.runs[-1].version == state.policy_version
        seen.append(loader.digests())
    assert seen[0] != seen[1]
    assert fresh(hub).weight_updates == before.weight_updates + len(checkpoints)


def switched_within(hub: HubStandIn, parts: Iterator[None], name: str) -> wire.CommandUpdate:
    """Ask for a switch after the first part; it waits until the last."""
    next(parts)
    value = "off" if fresh(hub).flags["prefix_caching"].value == "on" else "on"
    hub.command(ENGINE, "prefix_caching", value, name)
    for _ in parts:
        if not fresh(hub).update_open:
            break
        assert not [u for u in hub.updates if u.id == name and u.state == "applied"]
    for _ in parts:
        pass
    applied = hub.closed(name)
    assert applied.state == "applied"
    return applied


def test_framework_loads_leave_the_weights_that_the_checkpoint_has(engine: LiveEngine, checkpoints: list[Path]) -> None:
    loader = Loader(engine)
    found = {}
    for framework in FRAMEWORKS:
        for _ in getattr(loader, framework)(checkpoints[1]):
            pass
        found[framework] = loader.digests()
    assert all(digests == found["prime_rl"] for digests in found.values())


def test_a_version_stated_in_the_worker_or_in_an_argument_names_the_update(
    engine: LiveEngine, hub: HubStandIn, checkpoints: list[Path], tmp_path: Path
) -> None:
    loader = Loader(engine)
    loader.rpc("load_and_state", str(checkpoints[0] / "model.safetensors"), 70)
    state = fresh(hub)
    assert (state.policy_version, state.version_source) == (70, "stated")
    (step := tmp_path / "step_71").symlink_to(checkpoints[1])
    loader.rpc("update_weights_from_path", str(step))
    state = fresh(hub)
    assert (state.policy_version, state.version_source) == (71, "stated")
    rollout = check_equal(hub, "stated", result(engine.generate("stated", prompt(0), 10, seed=0)))
    assert (rollout.version_source, [run.version for run in rollout.runs]) == ("stated", [71])


def test_copies_into_parameters_are_updates_however_they_are_made(
    engine: LiveEngine, hub: HubStandIn, checkpoints: list[Path]
) -> None:
    loader = Loader(engine)
    loader.rpc("update_weights_from_ipc", str(checkpoints[0] / "model.safetensors"))
    count = fresh(hub).weight_updates
    norms = [name for name in loader.names(checkpoints[0]) if "layernorm" in name]
    for folder in reversed(checkpoints):
        result(engine.generate(f"copies{count}", prompt(0), 4, seed=0))
        loader.rpc("skyrl_start_weight_update", False)
        loader.rpc("update_weights_ipc", str(folder / "model.safetensors"), norms)  # param.copy_
        loader.rpc("skyrl_finish_weight_update")
        count += 1
        assert fresh(hub).weight_updates == count
    for folder in reversed(checkpoints):
        result(engine.generate(f"copies{count}", prompt(0), 4, seed=0))
        loader.rpc("nothing")
        loader.rpc("copy_data", str(folder / "model.safetensors"), "model.norm.weight")  # param.data.copy_
        loader.rpc("nothing")
        count += 1
        assert fresh(hub).weight_updates == count


def test_tokens_of_an_update_without_a_pause_have_the_version_that_sampled_them(
    engine: LiveEngine, hub: HubStandIn, checkpoints: list[Path]
) -> None:
    loader = Loader(engine)
    loader.rpc("update_weights_from_ipc", str(checkpoints[0] / "model.safetensors"))  # the model of ``policy_logprobs``
    names = [f"flying{i}" for i in range(16)]
    running = [engine.generate(name, prompt(i), 200, seed=i) for i, name in enumerate(names)]
    engine.wait_running(names, 20)
    loader.rpc("update_weights_from_ipc", str(checkpoints[1] / "model.safetensors"))
    first = []
    for name, work in zip(names, running, strict=True):
        result(work)
        rollout, prompts, tokens, logprobs = arrived(hub, name)
        start = rollout.runs[1].start
        error = np.abs(np.array(logprobs) - policy_logprobs(prompts, tokens, 1.0))
        assert error[:start].max() < 1e-3
        first.append(error[start])
    assert np.median(first) > 1e-3  # of other weights


def test_a_failure_under_any_name_tears_the_weights_and_blocks_nothing(
    engine: LiveEngine, hub: HubStandIn, checkpoints: list[Path]
) -> None:
    loader = Loader(engine)
    result(engine.generate("before", prompt(0), 4, seed=0))  # whatever was loaded before is another update
    before = fresh(hub)
    with pytest.raises(Exception, match="collective_rpc method failed"):
        loader.rpc("load_half_and_fail", str(checkpoints[0] / "model.safetensors"))
    torn = fresh(hub)
    assert "load_half_and_fail failed" in torn.fingerprint["weights torn"]
    assert (torn.update_open, torn.weight_updates) == (False, before.weight_updates)
    loader.rpc("nothing")
    assert "weights torn" in fresh(hub).fingerprint
    loader.rpc("update_weights_from_ipc", str(checkpoints[0] / "model.safetensors"))
    mended = fresh(hub)
    assert "weights torn" not in mended.fingerprint
    assert mended.weight_updates == before.weight_updates + 1


def test_nothing_failed_in_the_collector(engine: LiveEngine, hub: HubStandIn) -> None:
    counts = wait_for(lambda: next((one for one in hub.health()[-1:] if "rollouts" in one.counts), None), "health")
    assert counts.faults == {}
    assert counts.counts["rollouts"].dropped == 0


@pytest.mark.timeout(420)
def test_an_update_of_two_ranks_counts_once_also_after_a_call_failed_on_one_of_them(checkpoints: list[Path]) -> None:
    path = str(checkpoints[1] / "model.safetensors")
    with HubStandIn() as hub, booted(hub, **SIZES["tp2"]) as engine:
        loader = Loader(engine)
        for count, folder in enumerate(reversed(checkpoints), 1):
            for _ in loader.verl(folder):
                pass
            result(engine.generate(f"two{count}", prompt(0), 4, seed=0))
            assert fresh(hub).weight_updates == count
        for count, rank in ((3, 1), (4, 0)):  # after rank 0 failed, vLLM returns earlier answers of rank 1
            with pytest.raises(Exception, match="collective_rpc method failed"):
                loader.rpc("load_and_fail_on", rank, path)
            assert f"the sender of rank {rank} disappeared" in fresh(hub).fingerprint["weights torn"]
            assert fresh(hub).weight_updates == count - 1
            for _ in loader.verl(checkpoints[0]):
                pass
            loader.rpc("nothing")
            state = fresh(hub)
            assert (state.weight_updates, state.update_open) == (count, False)
            assert "weights torn" not in state.fingerprint
        assert hub.health()[-1].faults == {}


# --- the workers of frameworks as published: see tests/support/published_workers.py -----------------------------------

Update = Callable[[Loader, Path], Iterator[None]]


def by_verl(loader: Loader, folder: Path) -> Iterator[None]:
    sender = subprocess.Popen([sys.executable, "-m", "tests.support.published_workers", "verl", str(folder)])
    try:
        loader.rpc("update_weights_from_ipc", None, False, True)
        assert sender.wait() == 0
    finally:
        sender.kill()
    yield


def by_prime_rl(loader: Loader, folder: Path) -> Iterator[None]:
    loader.rpc("update_weights_from_path", str(folder))
    yield


def by_skyrl(loader: Loader, folder: Path, call: str = "update_weights_nccl", size: int = 10) -> Iterator[None]:
    names = loader.names(folder)
    loader.rpc("skyrl_start_weight_update")
    for start in range(0, len(names), size):
        loader.rpc(call, {"path": str(folder / "model.safetensors"), "names": names[start : start + size]})
        yield
    loader.rpc("skyrl_finish_weight_update")
    yield


def by_skyrl_whole(loader: Loader, folder: Path) -> Iterator[None]:
    """As its checkpoint deltas come: one call of vLLM's between its own."""
    return by_skyrl(loader, folder, "update_weights", 10_000)


PUBLISHED: dict[str, list[Update]] = {
    "verl": [by_verl], "prime-rl": [by_prime_rl], "SkyRL": [by_skyrl, by_skyrl_whole],
}  # fmt: skip


@pytest.mark.parametrize("framework", PUBLISHED)
def test_updates_by_the_worker_of_a_framework_as_published(
    framework: str, checkpoints: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not published_workers.available(framework):
        pytest.skip("not installed, and its folder is not named in RLTOP_FRAMEWORK_SOURCES")
    from vllm.config import WeightTransferConfig

    monkeypatch.setenv("VERL_RAY_JOB_ID", uuid.uuid4().hex)
    launch: dict[str, Any] = {"worker_extension_cls": f"{published_workers.__name__}.{framework}"}
    if framework == "SkyRL":
        launch |= {"weight_transfer_config": WeightTransferConfig(backend=published_workers.CHUNKS)}
    with HubStandIn() as hub, booted(hub, "", **launch) as engine:
        loader = Loader(engine)
        original = loader.digests()
        for number, (update, folder) in enumerate(
            ((update, folder) for update in PUBLISHED[framework] for folder in reversed(checkpoints)), 1
        ):
            (step := tmp_path / f"step_{10 + number}").symlink_to(folder)
            names = [f"{number}-{i}" for i in range(8)]
            running = [engine.generate(name, prompt(i), 60, seed=i) for i, name in enumerate(names)]
            engine.wait_running(names)
            engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))
            switched_within(hub, update(loader, step), f"{framework}{number}")
            engine.run(engine.llm.resume_generation())
            state = fresh(hub)
            assert state.weight_updates == number
            stated = (10 + number, "stated") if framework == "prime-rl" else (number, "inferred")
            assert (state.policy_version, state.version_source) == stated
            assert not {"weights torn", "sampled within updates"} & set(state.fingerprint)
            for name, work in zip(names, running, strict=True):
                assert check_equal(hub, name, result(work)).runs[-1].version == stated[0]
            assert (loader.digests() == original) == (folder == checkpoints[0])
            assert fresh(hub).weight_updates == number
        rollout, prompts, tokens, logprobs = arrived_after(engine, hub)
        assert rollout.runs[0].version == stated[0]
        assert np.abs(np.array(logprobs) - policy_logprobs(prompts, tokens, 1.0)).max() < 1e-3
        assert hub.health()[-1].faults == {}


def arrived_after(engine: LiveEngine, hub: HubStandIn) -> Any:
    result(engine.generate("after", prompt(0), 30, seed=0))
    return arrived(hub, "after")
