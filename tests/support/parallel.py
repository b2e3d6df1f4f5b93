"""Engines of several ranks: digests of weights that are cut, and data-parallel ranks that are switched or killed.

Needs no pytest: ``bench/gpu_suite.py`` uses it where there is none.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeFinding
from rltop.backend.client.live import Client
from rltop.backend.commands import audit
from rltop.backend.probes.digest_verdict import KnownDigests
from rltop.backend.probes.reports import Report
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import PROBE
from rltop.collectors.contract.digests import weight_digests
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import MODEL, LiveEngine
from tests.support.switchboard import AT_LEAST, TOKENS_BETWEEN, Traffic, fresh, prompt, whole

DIGEST = "weight-digest"

SIZES: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2": {"tensor_parallel_size": 2},
    "pp2": {"pipeline_parallel_size": 2},
    "dp2": {"data_parallel_size": 2},
}
"""What an engine of each size is launched with."""

_numbers = itertools.count()


def tensors_of(folder: Path) -> dict[str, Any]:
    """The checkpoint's tensors, by name."""
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(str(folder / "model.safetensors"))
    return found


def moved(tensors: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The weights of a trainer after a step: every tensor a little different."""
    import torch

    torch.manual_seed(seed)
    return {name: one + 0.02 * one.float().std().nan_to_num(1.0).to(one.dtype) * torch.randn_like(one)
            for name, one in tensors.items()}  # fmt: skip


def save(tensors: Mapping[str, Any], folder: Path) -> None:
    """A checkpoint of these tensors beside the configuration of ``MODEL``."""
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    save_file(dict(tensors), str(folder / "model.safetensors"), metadata={"format": "pt"})


def digest(hub: HubStandIn, source: str) -> wire.ProbeReport:
    """What all ranks of an engine read of their weights."""
    name = f"digest{next(_numbers)}"
    wait_for(lambda: hub.knows(source), f"{source} registers")
    hub.send(source, wire.Command(name, "", "", time.time() + 60.0, PROBE, probe=DIGEST))

    def find() -> wire.ProbeReport | None:
        assert not [u for u in hub.updates if u.id == name and u.state in {"refused", "timed_out"}], hub.updates[-1]
        bodies = [body for _, body, _ in list(hub.messages)]
        return next((b for b in bodies if isinstance(b, wire.ProbeReport) and b.command == name), None)

    return wait_for(find, f"the digest of {source}")


def beside_trainer(report: wire.ProbeReport, tensors: Mapping[str, Any]) -> ProbeFinding:
    """What the report says beside a trainer that has ``tensors`` at the engine's version."""
    weights = KnownDigests()
    digests = weight_digests(tensors)
    weights.add_trainer_digests(wire.StepClosed(0, 0, 1, report.policy_version, weight_digests=digests))
    return weights.judge({report.engine: Report(report, [])}, {})


def update_and_compare(
    engine: LiveEngine, hub: HubStandIn, source: str, folder: Path
) -> tuple[ProbeFinding, ProbeFinding]:
    """Load new weights with requests in flight; what a digest says beside the right trainer, and beside a wrong one."""
    right = moved(tensors_of(MODEL), 1)
    save(right, folder)
    traffic = Traffic(engine, f"update{next(_numbers)}-")
    try:
        traffic.start()
        load(engine, folder)
        version = fresh(hub).policy_version
        report = digest(hub, source)
    finally:
        traffic.finish()
        load(engine, MODEL)
    assert report.policy_version == version is not None
    wrong = right | {"model.layers.1.mlp.down_proj.weight": right["model.layers.1.mlp.down_proj.weight"] * 1.01}
    return beside_trainer(report, right), beside_trainer(report, wrong)


def load(engine: LiveEngine, folder: Path) -> None:
    """vLLM's own reload between two steps, with what runs kept."""
    engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))
    engine.run(engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)}))
    engine.run(engine.llm.resume_generation())


# --- data parallel ------------------------------------------------------------------------------------------------

TOKENS = 480
SWITCHES = (
    ("async_scheduling", "off", "depth 1"),
    ("async_scheduling", "off", "strict"),
    ("async_scheduling", "on", ""),
    ("prefix_caching", "off", ""),
    ("logprobs_mode", "processed", ""),
    ("lm_head_fp32", "on", ""),
    ("update_clears_cache", "on", ""),
    ("update_clears_cache", "caller", ""),
    ("lm_head_fp32", "off", ""),
    ("logprobs_mode", "raw", ""),
    ("prefix_caching", "on", ""),
)


def switch_together(engine: LiveEngine, hub: HubStandIn, ranks: tuple[str, ...]) -> list[wire.CommandUpdate]:
    """Every flag on all data-parallel ranks under load; nothing is lost, and the record is the front end's."""
    traffic, updates = Traffic(engine, "dp"), []
    try:
        traffic.start()
        wait_for(lambda: all(running(hub, rank) >= AT_LEAST for rank in ranks), "enough requests on every rank")
        for number, (flag, value, form) in enumerate(SWITCHES):
            traffic.wait_tokens(TOKENS_BETWEEN)
            for rank in ranks:
                hub.command(rank, flag, value, f"{number}@{rank}", strict=form == "strict")
            for rank in ranks:
                update = hub.closed(f"{number}@{rank}")
                assert (update.engine, update.state) == (rank, "applied"), update
                assert (update.new, update.detail, update.lost_requests) == (value, form, 0)
                updates.append(update)
    finally:
        traffic.finish()
    whole(hub, traffic)
    return updates


def running(hub: HubStandIn, source: str) -> int:
    """Requests that an engine ran when it last said so."""
    return next((state.running for state in reversed(hub.states()) if state.engine == source), 0)


@dataclass(frozen=True)
class Killed:
    """What a switch of all ranks came to that one did not survive. ``seconds`` from the kill to the command's end."""

    states: dict[str, str]
    reasons: dict[str, str]
    events: list[str]
    bad_lines: int
    seconds: float


def kill_mid_switch(engine: LiveEngine, rundir: RunDir, ranks: tuple[str, str]) -> Killed:
    """Stop the last rank, ask both to switch, and kill the one that is stopped once the other has switched."""
    processes = engine.llm.engine_core.resources.engine_manager.processes
    hub = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)])
    try:
        with Client(rundir) as client, ThreadPoolExecutor(1) as pool:
            assert client.wait(lambda c: c.view is not None and _live(c.view, ranks), 60.0)
            names = [f"k{i}" for i in range(32)]
            running = [engine.generate(name, prompt(i), TOKENS, seed=None) for i, name in enumerate(names)]
            engine.wait_running(names, 1)
            os.kill(processes[-1].pid, signal.SIGSTOP)
            asked = pool.submit(_switch, rundir)
            assert client.wait(lambda c: c.view is not None and _applied(c.view, ranks[0]), 60.0)
            os.kill(processes[-1].pid, signal.SIGKILL)
            began = time.monotonic()
            changes = asked.result(90)
            seconds = time.monotonic() - began
            for work in running:
                work.cancel()
        lines, bad = audit.read(rundir.audit)
        events = [f"{line.engine or 'all'} {line.event}" for line in lines if line.command == changes[0].command]
        states = {change.engine: change.state for change in changes}
        return Killed(states, {c.engine: c.reason for c in changes}, events, bad, seconds)
    finally:
        hub.terminate()
        hub.wait(20)


def _live(seen: api.Snapshot, ranks: tuple[str, ...]) -> bool:
    return all(rank in seen.engines and seen.engines[rank].health == "live" for rank in ranks)


def _applied(seen: api.Snapshot, rank: str) -> bool:
    return any(change.engine == rank and change.state == "applied" for change in seen.changes.values())


def _switch(rundir: RunDir) -> list[api.Change]:
    with Client(rundir) as client:
        return client.command(
            api.AskSet(api.new_id(), "prefix_caching", "off", who="bench", host="here", timeout_s=20.0)
        )
