"""The collector inside a host: dormant by default, and its faults never change the host's results."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary
from rltop.collectors.vllm import agent, engine_name, patches
from rltop.collectors.vllm.in_process import repeats_another
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX, Record, RequestAdded, StepOutputs
from tests.support.engine_doubles import EngineCore, InProcessCore, Outputs, PauseState, launched, output, request
from tests.support.harness import HubStandIn, wait_for


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RLTOP_HUB", "RLTOP_RUN", "RLTOP_ENGINE"):
        monkeypatch.delenv(name, raising=False)


def python(code: str, **environment: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", **environment})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


HEAVY = "import sys; print(sorted(set(sys.modules) & {'torch', 'vllm', 'zmq', 'textual', 'ray', 'rltop.backend'}))"


def test_a_dormant_plugin_imports_nothing_heavy_and_touches_nothing() -> None:
    assert python(f"from rltop.collectors.vllm import register; register(); register(); {HEAVY}").strip() == "[]"


def test_the_plugin_imports_no_host_by_itself() -> None:
    assert "torch" not in python(f"import rltop.collectors.vllm.agent; {HEAVY}")


def test_an_unsupported_address_is_logged_once_and_not_raised() -> None:
    said = python("from rltop.collectors.vllm import register; register(); register()", RLTOP_HUB="tcp://1.2.3.4:5")
    assert said.count("network addresses are refused") == 1


def test_a_working_directory_that_is_gone_is_contained() -> None:
    gone = "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d); "
    said = python(f"{gone}from rltop.collectors.vllm import register; register(); print('on')", RLTOP_HUB="relative")
    assert "on" in said.splitlines()


def test_an_active_plugin_without_vllm_imports_and_breaks_nothing() -> None:
    imported = "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'vllm'))"
    said = python(
        f"import sys; from rltop.collectors.vllm import register; register(); {imported}", RLTOP_RUN="nowhere"
    )
    assert said.strip() == "[]"


@pytest.mark.parametrize("named", [{}, {"RLTOP_RUN": "nowhere"}])
def test_the_plugin_loads_no_part_of_vllm_and_patches_each_once_it_is_imported(named: dict[str, str]) -> None:
    """VLLM loads plugins also where no engine runs: in the process that inspects the class of a model."""
    code = """
import json, sys
from vllm.plugins import load_general_plugins
def modules(): return sorted(name for name in sys.modules if name.startswith("vllm.v1"))
load_general_plugins()
before = modules()
from rltop.collectors.vllm import patches
from vllm.v1.engine.core import EngineCoreProc, DPEngineCoreProc
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.worker.worker_base import WorkerBase
from vllm.v1.executor.abstract import Executor
wrapped = [EngineCoreProc.run_busy_loop, DPEngineCoreProc.run_busy_loop, InprocClient.__init__, Executor.__init__]
print(json.dumps([before, [hasattr(one, "__wrapped__") for one in wrapped], hasattr(WorkerBase, "rltop_weights")]))
"""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=environ | named | {"VLLM_PLUGINS": "rltop", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    before, wrapped, has_methods = json.loads(ran.stdout.splitlines()[-1])
    assert {"vllm.v1.engine.core", "vllm.v1.worker.worker_base"}.isdisjoint(before)
    assert wrapped == [True] * 4
    assert has_methods


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with vLLM's two loops, of which one overrides the other."""

    class EngineCoreProc(EngineCore):
        def run_busy_loop(self) -> None:
            raise SystemExit

    class DPEngineCoreProc(EngineCoreProc):
        def run_busy_loop(self) -> None:
            raise SystemExit

    class InprocClient:
        def __init__(self) -> None:
            self.engine_core = EngineCore()

    module = SimpleNamespace(**{c.__name__: c for c in (EngineCoreProc, DPEngineCoreProc, InprocClient)})
    monkeypatch.setitem(sys.modules, patches.MODULE, module)
    monkeypatch.setitem(sys.modules, patches.CLIENT_MODULE, module)
    yield module
    patches.uninstall()


def test_every_kind_of_loop_attaches_once_and_detaches_at_its_end(loops: Any) -> None:
    seen: list[str] = []

    def attach(engine: Any) -> Any:
        seen.append(f"attach {type(engine).__name__}")
        return lambda: seen.append("detach")

    for _ in range(2):  # vLLM may load plugins more than once
        patches.install(attach, ErrorBoundary())
    for name in patches.LOOPS:
        with pytest.raises(SystemExit):
            getattr(loops, name)().run_busy_loop()
    assert seen == ["attach EngineCoreProc", "detach", "attach DPEngineCoreProc", "detach"]
    client = loops.InprocClient()
    assert seen[4:] == ["attach EngineCore"]
    del client
    assert seen[5:] == ["detach"]
    patches.uninstall()
    with pytest.raises(SystemExit):
        loops.EngineCoreProc().run_busy_loop()
    assert len(seen) == 6


def test_an_in_process_engine_is_freed_with_its_client(loops: Any, tmp_path: Path, quiet: None) -> None:
    guard = ErrorBoundary()
    patches.install(lambda engine: agent.Agent(engine, RunDir(tmp_path), guard).close, guard)
    client = loops.InprocClient()
    core = client.engine_core
    assert "schedule" in vars(core.scheduler)
    engine = weakref.ref(core)
    del client
    assert "schedule" not in vars(core.scheduler)
    del core
    wait_for(lambda: gc.collect() >= 0 and engine() is None, "the engine is freed")
    assert engine() is None
    assert guard.faults == {}


def test_the_agent_in_a_forked_child_sends_nothing(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_ENGINE", "e7")
    with HubStandIn() as hub:
        watcher = agent.Agent(EngineCore(), hub.rundir, ErrorBoundary())
        wait_for(lambda: hub.knows("e7"), "the engine registers")
        child = os.fork()
        if not child:
            watcher.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        watcher.close()
        assert {envelope.epoch for envelope, _, _ in hub.messages} == {watcher.sender.epoch}


def test_an_attach_that_raises_leaves_the_loop_alone(loops: Any) -> None:
    guard = ErrorBoundary()
    patches.install(lambda engine: 1 // 0, guard)  # type: ignore[arg-type, return-value]
    with pytest.raises(SystemExit):
        loops.EngineCoreProc().run_busy_loop()
    assert guard.faults == {"attach": 1}


def test_a_missing_loop_is_reported(loops: Any, caplog: pytest.LogCaptureFixture) -> None:
    del loops.DPEngineCoreProc
    patches.install(lambda engine: lambda: None, ErrorBoundary())
    assert [record.getMessage() for record in caplog.records] == [
        f"rltop: {patches.MODULE}.DPEngineCoreProc.run_busy_loop is missing; engines of this kind are not observed"
    ]


def test_replicas_of_an_external_launcher_have_different_ids_and_their_other_ranks_repeat_the_first() -> None:
    def place(rank: int, ranks: int, replicas: int, world: int) -> tuple[str, bool]:
        engine = launched(InProcessCore(), ranks=ranks, replicas=replicas)
        environ = {"RLTOP_ENGINE": "e0", "RANK": str(rank), "WORLD_SIZE": str(world)}
        return engine_name.engine_id(engine, environ), repeats_another(engine, environ)

    assert place(0, 1, 1, 1) == ("e0", False)
    assert [place(rank, 1, 1, 2) for rank in range(2)] == [("e0/dp0", False), ("e0/dp1", False)]
    assert [place(rank, 2, 1, 2) for rank in range(2)] == [("e0", False), ("e0", True)]
    assert [place(rank, 2, 1, 4) for rank in range(4)] == [
        ("e0/dp0", False), ("e0/dp0", True), ("e0/dp1", False), ("e0/dp1", True),
    ]  # fmt: skip
    assert [place(rank, 4, 2, 4) for rank in range(4)] == [place(rank, 2, 1, 4) for rank in range(4)]
    assert not repeats_another(EngineCore(), {"RANK": "1"})


def calls(engine: EngineCore) -> list[Any]:
    """Results of every patched method, as the host receives them."""
    assert engine.batch_queue is not None
    results: list[Any] = [engine.scheduler.add_request(request("a")), engine.scheduler.schedule(throttle_prefills=True)]
    engine.batch_queue.append({0: Outputs([output("a", [5])])})
    results.append(engine.scheduler.update_from_output(None, model_runner_output=None))
    results += [engine.step_fn(), engine._handle_client_request("WAKEUP", None)]
    results += [engine.collective_rpc("start_weight_update"), engine.collective_rpc("x", 1.0, args=(), kwargs={})]
    results += [engine.pause_scheduler("keep"), engine.pause_scheduler(clear_cache=False), engine.reset_prefix_cache()]
    results.append([r.request_id for r in engine.scheduler.finish_requests(["a"], "FINISHED_ABORTED")])
    results.append(engine.scheduler.set_pause_state(PauseState.UNPAUSED))
    results.append(engine._reject_add_while_paused(request("b")))
    return results


def raises(*args: Any, **kwargs: Any) -> None:
    raise ValueError("sabotage")


def none(*args: Any, **kwargs: Any) -> None:
    return None


NAMES = [seam.name for seam in patches.PATCH_POINTS]


@pytest.mark.parametrize("hook", [raises, none])
def test_hooks_do_not_change_the_hosts_results(hook: Any) -> None:
    guard = ErrorBoundary()
    engine = EngineCore()
    taps = patches.InstalledPatches(engine, dict.fromkeys(NAMES, hook), guard)
    assert taps.missing == {}
    for _ in range(30):  # past the point where a place is switched off
        assert str(calls(engine)) == str(calls(EngineCore()))
    assert set(guard.faults) == (set(NAMES) if hook is raises else set())
    taps.undo()
    assert "step_fn" in vars(engine)
    assert not {"_handle_client_request", "collective_rpc"} & set(vars(engine))
    assert "schedule" not in vars(engine.scheduler)


def wrapped_by_another(owner: Any, method: str, seen: list[str]) -> None:
    """Wrap a method as other tools do: without regard to who wrapped it before."""
    inner = getattr(owner, method)

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append(method)
        return inner(*args, **kwargs)

    setattr(owner, method, wrapper)


def owner_of(engine: EngineCore, point: patches.PatchPoint) -> Any:
    return engine.scheduler if point.path else engine


@pytest.mark.parametrize("point", patches.PATCH_POINTS, ids=lambda point: point.name)
def test_undo_keeps_the_wrapper_of_another_tool_and_calls_no_hook_any_more(point: patches.PatchPoint) -> None:
    engine, guard, hooked, others = EngineCore(), ErrorBoundary(), list[str](), list[str]()
    hook = lambda *_args, **_kwargs: hooked.append("hook")  # noqa: E731
    taps = patches.InstalledPatches(engine, {point.name: hook, point.name + patches.AFTER: hook}, guard)
    wrapped_by_another(owner_of(engine, point), point.method, others)
    calls(engine)
    assert hooked
    assert others
    taps.undo()
    hooked.clear()
    others.clear()
    plain = EngineCore()
    assert str(calls(engine)) == str(calls(plain))
    assert others  # the other tool still sees the calls
    assert hooked == []
    again = patches.InstalledPatches(engine, {point.name: hook}, guard)
    calls(engine)
    assert hooked
    again.undo()
    others.clear()
    calls(engine)
    assert others


def test_outputs_of_steps_run_ahead_are_returned_though_the_patch_is_undone_inside_another_wrapper() -> None:
    engine, others = InProcessCore(), list[str]()
    taps = patches.InstalledPatches(engine, {"caller's step": none}, ErrorBoundary())
    ahead = vars(engine)["step_fn"].rltop_run_ahead
    wrapped_by_another(engine, "step_fn", others)
    ahead()
    taps.undo()
    steps = len(others)
    engine.step_fn()  # takes the outputs of the step that was run ahead
    assert len(others) == steps + 1


@pytest.mark.parametrize("name", ["step", "update"])
def test_a_step_hook_that_is_off_is_reported(name: str) -> None:
    guard, engine = ErrorBoundary(), EngineCore()
    patches.InstalledPatches(engine, {name: raises}, guard)
    assert patches.why_steps_unseen(engine) == ""
    for _ in range(30):
        engine.step_fn()
        engine.scheduler.update_from_output(None, None)
    assert f"failed {MAX_FAULTS} times" in patches.why_steps_unseen(engine)


def test_the_hosts_exceptions_pass_unchanged() -> None:
    engine = EngineCore()
    error = RuntimeError("the host's own")

    def dies() -> Any:
        raise error

    engine.step_fn = dies
    patches.InstalledPatches(engine, {"step": raises}, ErrorBoundary())
    with pytest.raises(RuntimeError) as caught:
        engine.step_fn()
    assert caught.value is error


CHANGES = [(seam, kind) for seam in patches.PATCH_POINTS for kind in ("renamed", "none", "other signature")]


@pytest.mark.parametrize(
    ("seam", "kind"),
    [(seam, kind) for seam, kind in CHANGES if seam.parameters or kind != "other signature"],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_changed_patch_point_costs_one_capability(seam: patches.PatchPoint, kind: str) -> None:
    engine = EngineCore()
    owner = engine.scheduler if seam.path else engine
    replacement = (lambda self, something, else_: None) if kind == "other signature" else None
    if seam.method in vars(owner):  # step_fn is set on the instance
        setattr(owner, seam.method, None)
    else:
        body = {seam.method: replacement if kind != "renamed" else property(lambda self: self.no_such_attribute)}
        owner.__class__ = type("Changed", (type(owner),), body)
    guard = ErrorBoundary()
    taps = patches.InstalledPatches(engine, dict.fromkeys(NAMES, none), guard)
    assert list(taps.missing) == [other.name for other in patches.PATCH_POINTS if other.method == seam.method]
    assert seam.provides in taps.missing[seam.name]


def test_utility_calls_still_see_the_originals_signature() -> None:
    """VLLM converts a utility call's arguments by the signature of the method, and counts them."""
    engine = EngineCore()
    patches.InstalledPatches(engine, {"rpc": none}, ErrorBoundary())
    assert list(inspect.signature(engine.collective_rpc).parameters) == ["method", "timeout", "args", "kwargs"]


def test_data_parallel_ranks_have_different_ids() -> None:
    engine = EngineCore()
    assert engine_name.engine_id(engine, {"RLTOP_ENGINE": "e0"}) == "e0"
    engine.vllm_config.parallel_config.data_parallel_index = 1
    assert engine_name.engine_id(engine, {"RLTOP_ENGINE": "e0"}) == "e0/dp1"
    engine.vllm_config.parallel_config.data_parallel_index = 0
    engine.vllm_config.parallel_config.data_parallel_size = 2
    assert engine_name.engine_id(engine, {"RLTOP_ENGINE": "e0"}) == "e0/dp0"
    engine.vllm_config.parallel_config.data_parallel_size = 1
    engine.has_coordinator = True  # type: ignore[attr-defined]
    assert engine_name.engine_id(engine, {"RLTOP_ENGINE": "e0"}) == "e0/dp0"
    assert "-" in engine_name.engine_id(engine, {})


def test_an_engine_is_observed_to_its_end_without_a_hub(tmp_path: Path, quiet: None) -> None:
    engine = EngineCore()
    guard = ErrorBoundary()
    watcher = agent.Agent(engine, RunDir(tmp_path), guard)
    expected = calls(EngineCore())
    assert str(calls(engine)) == str(expected)
    watcher.close()
    assert watcher.assembler.published == 1
    assert guard.faults == {}


def test_the_state_is_sent_without_flags_that_cannot_be_read(quiet: None, tmp_path: Path) -> None:
    guard = ErrorBoundary()
    watcher = agent.Agent(EngineCore(), RunDir(tmp_path), guard)
    watcher.close()  # its thread reads the state as well, once a second
    wait_for(lambda: watcher.sender._thread is None or not watcher.sender._thread.is_alive(), "the sender ends")

    def fails() -> Any:
        raise AttributeError("unheard of")

    vars(watcher.board)["states"] = fails
    state = watcher.state()
    assert (state.flags, state.kv_usage) == ({}, 0.25)
    assert guard.faults == {"flags": 1}


@pytest.mark.parametrize("faults", [1, MAX_FAULTS])
def test_a_record_that_cannot_be_read_drops_the_affected_requests(quiet: None, tmp_path: Path, faults: int) -> None:
    guard = ErrorBoundary()
    watcher = agent.Agent(EngineCore(), RunDir(tmp_path), guard)
    outputs = {name: {0: Outputs([output(name, [5], finish="stop")])} for name in "ab"}
    records: list[Record] = [RequestAdded(0, 1, request("a"), 0.0)]
    records += [StepOutputs(0, 1, {0: None}, 0.0, 0, None) for _ in range(faults)]
    records += [RequestAdded(0, 1, request("b"), 0.0)]
    records += [StepOutputs(0, 1, outputs[name], 0.0, 0, None) for name in "ab"]
    watcher.tap.enqueued = len(records)
    watcher.tap.records.extend(records)
    watcher.close()
    followed = 1 if faults < MAX_FAULTS else 0  # of those after it; too many, and nothing is followed any more
    assert (watcher.assembler.published, watcher.assembler.dropped) == (followed, 1)
    assert (guard.faults, watcher.tap.processed) == ({"assemble": faults}, len(records))


@pytest.mark.parametrize("queue", ["kv_holding_waiting", "skipped_waiting"])
def test_every_queue_of_a_scheduler_counts_as_waiting(quiet: None, tmp_path: Path, queue: str) -> None:
    engine = EngineCore()
    engine.scheduler.waiting = [request("a")]
    vars(engine.scheduler)[queue] = [request("b"), request("c")]
    watcher = agent.Agent(engine, RunDir(tmp_path), ErrorBoundary())
    assert watcher.state().waiting == 3
    watcher.close()


def test_a_state_that_is_read_while_probes_end_is_valid(
    quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from self.copy()
            self.clear()

    engine = EngineCore()
    watcher = agent.Agent(engine, RunDir(tmp_path), ErrorBoundary())
    monkeypatch.setattr(type(watcher.commands.prober), "in_flight", 1)
    engine.scheduler.running = Ending([request(PROBE_PREFIX + "1")])
    state = watcher.state()
    assert (state.running, state.waiting) == (0, 0)
    engine.scheduler.running = []
    watcher.close()


def test_requests_that_a_paused_engine_rejects_are_a_fact(quiet: None, tmp_path: Path) -> None:
    engine = EngineCore()
    watcher = agent.Agent(engine, RunDir(tmp_path), ErrorBoundary())
    assert engine._reject_add_while_paused(request("a")) is False
    assert "rejected requests" not in watcher.state().fingerprint
    vars(engine)["reject_new_requests"] = True
    assert [engine._reject_add_while_paused(request(name)) for name in "bc"] == [True, True]
    assert watcher.state().fingerprint["rejected requests"] == "2"
    watcher.close()


def test_rollouts_and_state_reach_the_hub_up_to_the_last_message(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_ENGINE", "e7")
    with HubStandIn() as hub:
        engine = EngineCore()
        watcher = agent.Agent(engine, hub.rundir, ErrorBoundary())
        wait_for(lambda: hub.knows("e7"), "the engine registers")
        calls(engine)
        watcher.close()
        assert [bye.source for bye in hub.byes] == ["e7"]
        (found,) = hub.rollouts().values()
        assert (found[0].request_id, found[1], found[2], found[3]) == ("a", [1, 2, 3], [5], [-5 / 8])
        state = hub.states()[-1]
        assert (state.step, state.generated_tokens, state.aborted, state.update_open) == (1, 1, 1, True)
        assert state.flags["prefix_caching"].value == "on"
        assert "step_fn" in vars(engine)
        assert "finish_requests" not in vars(engine.scheduler)
