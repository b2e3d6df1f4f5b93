"""Attaching to engines that run and detaching from them: on their own thread, between two steps, without a trace."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.backend.attach.processes import request_attach, request_detach
from rltop.collectors.contract import attach, engine_processes, wire
from rltop.collectors.contract.attach import AttachError
from rltop.collectors.contract.engine_processes import ATTACHED, DORMANT, LOADING, EngineProcess
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm import listener, patches, presence
from rltop.collectors.vllm.attachable import AttachableProcess
from tests.collectors.vllm.test_engine_switches import Kinds
from tests.support.engine_doubles import EngineCore, InProcessCore, Outputs, launched, output, request
from tests.support.harness import PATIENT_S, HubStandIn, wait_for


class Loop:
    """A busy loop as vLLM's, with an engine double: blocks on the input queue while it is idle."""

    def __init__(self, process: AttachableProcess) -> None:
        self.engine = EngineCore()
        self.threads: list[int] = []
        self._thread = threading.Thread(target=self._run, args=(process,))
        self._thread.start()

    def _run(self, process: AttachableProcess) -> None:
        self.threads.append(threading.get_ident())
        ended = process.begin(self.engine)
        while (message := self.engine.input_queue.get()) is not None:
            self.engine._handle_client_request(*message)
        ended()

    def end(self) -> None:
        self.engine.input_queue.put(None)
        self._thread.join()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    for name in ("RLTOP_HUB", "RLTOP_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RLTOP_ENGINE", "e7")
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))
    yield tmp_path


@pytest.fixture
def guard() -> ErrorBoundary:
    return ErrorBoundary()


@pytest.fixture
def process(guard: ErrorBoundary) -> AttachableProcess:
    return AttachableProcess(guard, None, is_reachable=True)


@pytest.fixture
def loop(process: AttachableProcess) -> Iterator[Loop]:
    loop = Loop(process)
    wait_for(lambda: [one.state for one in engine_processes.engine_processes()] == [DORMANT], "the engine is dormant")
    yield loop
    loop.end()
    assert engine_processes.engine_processes() == []
    assert [path.name for path in engine_processes.directory().iterdir()] == []


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


def here() -> EngineProcess:
    (found,) = engine_processes.engine_processes()
    return found


def ask(message: dict[str, Any], timeout_s: float = PATIENT_S) -> dict[str, Any]:
    return attach.request(here().socket, message, timeout_s)


def snapshot(engine: EngineCore) -> tuple[set[str], set[str]]:
    return set(vars(engine)), set(vars(engine.scheduler))


# --- attach and detach --------------------------------------------------------------------------------------------


def test_an_idle_engine_is_attached_on_its_own_thread_and_left_as_it_was_found(
    loop: Loop, hub: HubStandIn, guard: ErrorBoundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(loop.engine)
    added_by: list[int] = []
    original = loop.engine.collective_rpc
    monkeypatch.setattr(
        loop.engine.model_executor, "collective_rpc", _noting(added_by, loop.engine.model_executor.collective_rpc)
    )
    for _ in range(2):
        assert request_attach(here(), hub.rundir, PATIENT_S) == [{"engine": "e7", "state": ATTACHED, "in_flight": 0}]
        assert "schedule" in vars(loop.engine.scheduler)
        assert (here().state, here().run) == (ATTACHED, str(hub.rundir.path))
        wait_for(lambda: hub.knows("e7"), "the engine registers")
        assert request_detach(here(), PATIENT_S, keep=False) == [{"engine": "e7", "state": DORMANT, "notes": []}]
        assert snapshot(loop.engine) == before
        assert (here().state, here().run) == (DORMANT, "")
    assert set(added_by) == set(loop.threads)
    assert loop.engine.collective_rpc == original
    assert [bye.source for bye in hub.byes] == ["e7", "e7"]
    assert guard.faults == {}


def _noting(threads: list[int], call: Any) -> Any:
    def noting(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return call(*args, **kwargs)

    return noting


def test_requests_in_flight_are_counted_and_not_published(loop: Loop, hub: HubStandIn) -> None:
    engine = loop.engine
    for name in ("early", "cut"):
        engine.scheduler.add_request(request(name))
    request_attach(here(), hub.rundir, PATIENT_S)
    engine.scheduler.add_request(request("late"))
    sampled = {0: SimpleNamespace(outputs=[output(name, [5, 6], finish="stop") for name in ("early", "late")])}
    engine.batch_queue.append(sampled)  # type: ignore[union-attr]
    engine._process_engine_step()
    engine.scheduler.finish_requests(["cut"], "FINISHED_ABORTED")
    request_detach(here(), PATIENT_S, keep=False)
    assert list(hub.rollouts()) == ["late"]
    state = hub.states()[-1]
    assert (state.generated_tokens, state.finished, state.aborted) == (4, 2, 1)
    assert state.fingerprint["requests before attach"].startswith("2 were in flight, 0 still are")


def test_a_second_attach_to_the_same_run_changes_nothing_and_another_run_is_refused(
    loop: Loop, hub: HubStandIn, tmp_path: Path
) -> None:
    request_attach(here(), hub.rundir, PATIENT_S)
    patched = vars(loop.engine.scheduler)["schedule"]
    request_attach(here(), hub.rundir, PATIENT_S)
    assert vars(loop.engine.scheduler)["schedule"] is patched
    other = RunDir(tmp_path / "other")
    other.create()
    with pytest.raises(AttachError, match="`rltop detach` it first"):
        request_attach(here(), other, PATIENT_S)


def test_detach_is_refused_while_a_flag_is_switched_unless_it_is_to_stay(loop: Loop, hub: HubStandIn) -> None:
    request_attach(here(), hub.rundir, PATIENT_S)
    hub.command("e7", "prefix_caching", "off", "c1")
    hub.closed("c1")
    patched = snapshot(loop.engine)
    for _ in range(2):
        with pytest.raises(AttachError, match=r"prefix_caching is off \(at launch on\).*--keep"):
            request_detach(here(), PATIENT_S, keep=False)
        assert snapshot(loop.engine) == patched
    (kept,) = request_detach(here(), PATIENT_S, keep=True)
    assert kept["notes"] == ["left as it is: prefix_caching is off (at launch on)"]
    request_attach(here(), hub.rundir, PATIENT_S)
    with pytest.raises(AttachError, match="at launch on"):  # the launch value outlives the agent
        request_detach(here(), PATIENT_S, keep=False)


def test_detach_is_refused_while_rltop_pauses_generation(loop: Loop, hub: HubStandIn) -> None:
    request_attach(here(), hub.rundir, PATIENT_S)
    wait_for(lambda: hub.knows("e7"), "the engine registers")
    hub.send("e7", wire.Command("p1", "", "", time.time() + PATIENT_S, "pause", revert_s=60.0))
    hub.closed("p1")
    for keep in (False, True):
        with pytest.raises(AttachError, match="`rltop resume` first"):
            request_detach(here(), PATIENT_S, keep=keep)
    hub.send("e7", wire.Command("r1", "", "", time.time() + PATIENT_S, "resume"))
    hub.closed("r1")
    request_detach(here(), PATIENT_S, keep=False)


def test_detaching_a_dormant_engine_says_so(loop: Loop) -> None:
    assert request_detach(here(), PATIENT_S, keep=False)[0]["notes"] == ["it was not attached"]


def test_an_engine_that_ends_while_attached_sends_its_last_rollouts(
    process: AttachableProcess, hub: HubStandIn
) -> None:
    loop = Loop(process)
    wait_for(engine_processes.engine_processes, "the engine is dormant")
    request_attach(here(), hub.rundir, PATIENT_S)
    loop.end()
    assert [bye.source for bye in hub.byes] == ["e7"]
    assert engine_processes.engine_processes() == []


def test_a_failing_agent_is_an_answer_and_the_engine_runs_on(
    loop: Loop, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, guard: ErrorBoundary
) -> None:
    before = snapshot(loop.engine)

    def fails(*_: Any) -> Any:
        raise ValueError("sabotage")

    with monkeypatch.context() as patch:
        patch.setattr("rltop.collectors.vllm.agent.Switchboard", fails)
        with pytest.raises(AttachError, match="ValueError: sabotage"):
            request_attach(here(), hub.rundir, PATIENT_S)
    assert (snapshot(loop.engine), here().state) == (before, DORMANT)
    request_attach(here(), hub.rundir, PATIENT_S)
    request_detach(here(), PATIENT_S, keep=False)
    assert guard.faults == {}


def test_a_step_boundary_that_does_not_fit_is_a_refusal(loop: Loop, hub: HubStandIn) -> None:
    loop.engine.__class__ = type("Changed", (EngineCore,), {"_handle_client_request": lambda self, other: None})
    with pytest.raises(AttachError, match="no step boundary on this vLLM"):
        request_attach(here(), hub.rundir, PATIENT_S)


# --- engines inside their caller's process ------------------------------------------------------------------------


def test_an_engine_in_its_callers_process_is_attached_at_its_next_step_by_the_caller(
    process: AttachableProcess, hub: HubStandIn, guard: ErrorBoundary
) -> None:
    engine = InProcessCore()
    ended = process.begin(engine)
    before, step = snapshot(engine), engine.step_fn
    waits = [{"engine": "e7", "state": "pending"}]
    assert request_attach(here(), hub.rundir, 0.1) == waits
    assert request_attach(here(), hub.rundir, 0.1) == waits  # replaces the first
    assert here().state == DORMANT
    engine.get_output()
    assert here().state == ATTACHED
    assert "schedule" in vars(engine.scheduler)
    assert request_detach(here(), 0.1, keep=False)[0]["state"] == "pending"
    engine.get_output()
    assert (here().state, snapshot(engine), engine.step_fn) == (DORMANT, before, step)
    ended()
    assert guard.faults == {}


def test_a_detach_waits_until_the_caller_has_taken_the_outputs_of_steps_run_ahead(
    process: AttachableProcess, hub: HubStandIn
) -> None:
    engine = InProcessCore()
    ended = process.begin(engine)
    request_attach(here(), hub.rundir, 0.1)
    engine.get_output()
    assert engine.batch_queue is not None
    engine.batch_queue.append({0: Outputs([output("a", [5])])})
    engine.batch_queue.append({0: Outputs([output("b", [6])])})
    patches.run_step(engine)
    request_detach(here(), 0.1, keep=False)
    taken = [item.request_id for _ in range(2) for item in engine.get_output().outputs]
    assert (sorted(taken), here().state) == (["a", "b"], DORMANT)
    ended()


def test_a_rank_that_repeats_another_is_neither_listed_nor_attached(
    process: AttachableProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = process.begin(launched(InProcessCore(), ranks=2))
    assert engine_processes.engine_processes() == []
    ended()


def test_a_dormant_engine_is_freed_with_its_client(process: AttachableProcess) -> None:
    engine = InProcessCore()
    reference, ended = weakref.ref(engine), process.begin(engine)
    del engine
    wait_for(lambda: gc.collect() >= 0 and reference() is None, "the engine is freed")
    with pytest.raises(AttachError, match="has ended"):
        ask({"do": attach.DETACH})
    ended()


# --- the process --------------------------------------------------------------------------------------------------


def test_a_process_that_loads_is_listed_with_its_run_and_has_no_thread(guard: ErrorBoundary, tmp_path: Path) -> None:
    threads = threading.active_count()
    process = AttachableProcess(guard, RunDir(tmp_path / "myrun"), is_reachable=True)
    process.loading()
    assert (here().state, here().run, here().engines) == (LOADING, str(tmp_path / "myrun"), ())
    assert threading.active_count() == threads
    process.failed()
    assert engine_processes.engine_processes() == []


def test_an_engine_whose_run_is_named_attaches_at_its_start_and_can_be_detached(
    guard: ErrorBoundary, hub: HubStandIn
) -> None:
    loop = Loop(AttachableProcess(guard, hub.rundir, is_reachable=True))
    wait_for(lambda: [one.state for one in engine_processes.engine_processes()] == [ATTACHED], "it reports")
    request_detach(here(), PATIENT_S, keep=False)
    assert here().state == DORMANT
    loop.end()


@pytest.mark.parametrize("named", [True, False])
def test_an_unreachable_process_leaves_no_file_and_still_reports(
    guard: ErrorBoundary, hub: HubStandIn, named: bool
) -> None:
    process = AttachableProcess(guard, hub.rundir if named else None, is_reachable=False)
    process.loading()
    loop = Loop(process)
    if named:
        wait_for(lambda: hub.knows("e7"), "the engine registers")
    loop.end()
    assert not engine_processes.directory().exists()


def test_a_directory_that_can_not_be_used_costs_only_the_attach(
    guard: ErrorBoundary, process: AttachableProcess, home: Path
) -> None:
    (home / ".engines").write_text("a file")
    process.loading()
    loop = Loop(process)
    loop.end()
    assert guard.faults == {}


@contextlib.contextmanager
def a_file_in_its_place(home: Path) -> Iterator[None]:
    (home / ".engines").write_text("a file")
    yield
    (home / ".engines").unlink()


@contextlib.contextmanager
def open_to_others(home: Path) -> Iterator[None]:
    (home / ".engines").mkdir()
    (home / ".engines").chmod(0o777)
    yield
    (home / ".engines").chmod(0o700)


@contextlib.contextmanager
def failing(target: Any, name: str, error: Exception) -> Iterator[None]:
    def fails(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, fails)
        yield


TROUBLE: dict[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "a file in its place": a_file_in_its_place,
    "open to others": open_to_others,
    "a full disk": lambda _home: failing(engine_processes, "write", OSError(errno.ENOSPC, "no space")),
    "no descriptors": lambda _home: failing(socket, "socket", OSError(errno.EMFILE, "too many files")),
    "no thread": lambda _home: failing(presence, "Listener", RuntimeError("can't start new thread")),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_process_that_could_not_be_reached_is_reached_once_the_trouble_ends(
    trouble: str, guard: ErrorBoundary, process: AttachableProcess, home: Path, monkeypatch: pytest.MonkeyPatch,
    hub: HubStandIn,
) -> None:  # fmt: skip
    monkeypatch.setattr(presence, "RETRY_S", 0.01)
    with TROUBLE[trouble](home):
        process.loading()
        loop = Loop(process)
        wait_for(lambda: process._presence._retry is not None, "it tries again")
    wait_for(lambda: [one.state for one in engine_processes.engine_processes()] == [DORMANT], "the engine is dormant")
    (answer,) = request_attach(here(), hub.rundir, PATIENT_S)
    assert answer["state"] == ATTACHED
    wait_for(lambda: process._presence._retry is None, "the thread that tried again ends")
    loop.end()
    assert engine_processes.engine_processes() == []
    assert guard.faults == {}


def test_an_engine_that_ends_in_trouble_leaves_no_thread_and_no_file(
    process: AttachableProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "RETRY_S", 0.01)
    with failing(engine_processes, "write", OSError(errno.ENOSPC, "no space")):
        loop = Loop(process)
        wait_for(lambda: process._presence._retry is not None, "it tries again")
        loop.end()
    wait_for(lambda: process._presence._retry is None, "the thread that tried again ends")
    assert list(engine_processes.directory().iterdir()) == []


def hooked_since(engines: list[InProcessCore]) -> Callable[[], bool]:
    """Whether the step function of every engine is another one than now."""
    before = [vars(engine)["step_fn"] for engine in engines]
    return lambda: all(vars(engine)["step_fn"] is not was for engine, was in zip(engines, before, strict=True))


def test_a_request_begins_on_every_engine_of_a_process_before_it_waits_for_one(
    process: AttachableProcess, hub: HubStandIn
) -> None:
    engines = [InProcessCore(), InProcessCore()]
    ends = [process.begin(engine) for engine in engines]
    for message, state in (({"do": "attach", "run": str(hub.rundir.path)}, ATTACHED), ({"do": "detach"}, DORMANT)):
        hooked = hooked_since(engines)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, message)
            wait_for(hooked, "both wait for a step")
            for engine in reversed(engines):
                engine.get_output()
            assert [one["state"] for one in answer.result()["engines"]] == [state, state]
    for end in ends:
        end()


def test_one_engine_that_refuses_does_not_hide_the_answers_of_the_others(
    process: AttachableProcess, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits, changed = InProcessCore(), InProcessCore()
    ends = [process.begin(engine) for engine in (fits, changed)]
    del changed.step_fn
    with ThreadPoolExecutor(1) as pool:
        hooked = hooked_since([fits])
        answer = pool.submit(ask, {"do": "attach", "run": str(hub.rundir.path)})
        wait_for(hooked, "it waits for a step")
        fits.get_output()
        attached, refused = answer.result()["engines"]
    assert attached["state"] == ATTACHED
    assert "no step boundary" in refused["error"]
    for end in ends:
        end()


def test_a_forked_child_neither_listens_nor_removes_its_parents_record(
    loop: Loop, process: AttachableProcess, hub: HubStandIn
) -> None:
    listening = process._presence._listener
    assert listening is not None
    child = os.fork()
    if not child:
        closed = listening._socket.fileno() == -1 and process._presence._listener is None and process._engines == []
        os._exit(0 if closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    request_attach(here(), hub.rundir, PATIENT_S)
    request_detach(here(), PATIENT_S, keep=False)


def test_a_stale_socket_of_an_earlier_process_with_this_pid_is_replaced(process: AttachableProcess) -> None:
    engine_processes.create_directory()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(engine_processes.socket_of(os.getpid())))
    loop = Loop(process)
    wait_for(engine_processes.engine_processes, "the engine is dormant")
    with pytest.raises(AttachError, match="unknown request"):
        ask({"do": "dance"})
    loop.end()


# --- the protocol -------------------------------------------------------------------------------------------------

GOOD = {"protocol": attach.PROTOCOL, "timeout_s": 1.0}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (GOOD, "unknown request None"),
        (GOOD | {"do": "dance"}, "unknown request 'dance'"),
        (GOOD | {"do": "detach", "protocol": 9}, "protocol 9"),
        (GOOD | {"do": "detach", "timeout_s": 0}, "timeout_s 0"),
        (GOOD | {"do": "detach", "timeout_s": "1"}, "timeout_s '1'"),
        (GOOD | {"do": "detach", "timeout_s": 1e9}, "timeout_s"),
        (GOOD | {"do": "detach", "keep": "yes"}, "keep 'yes'"),
        (GOOD | {"do": "attach"}, "run None"),
        (GOOD | {"do": "attach", "run": "relative"}, "run 'relative'"),
        (GOOD | {"do": "attach", "run": "/no/such/run"}, "No such file"),
        (GOOD | {"do": "attach", "run": "/tmp"}, "mode 0700"),
        ([], "not a JSON object"),
    ],
    ids=str,
)
def test_a_malformed_request_is_refused_with_the_reason(loop: Loop, message: Any, reason: str) -> None:
    before = snapshot(loop.engine)
    said = raw(json.dumps(message).encode() + b"\n")
    assert said["ok"] is False
    assert reason in said["reason"]
    assert snapshot(loop.engine) == before


@pytest.mark.parametrize("line", [b"", b"\n", b"{", b"{}", b"\xff\xfe\n", b"[" * 40_000 + b"\n", b"x" * 70_000])
def test_bytes_that_are_no_request_are_refused(loop: Loop, line: bytes) -> None:
    said = raw(line)
    assert said["ok"] is False
    assert "malformed" in said["reason"] or "protocol None" in said["reason"]


def raw(line: bytes) -> Any:
    """The answer to a line of bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(here().socket))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        return json.loads(connection.makefile().readline())


def test_clients_that_hang_up_do_not_end_the_listener(loop: Loop, guard: ErrorBoundary) -> None:
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(here().socket))
            connection.sendall(b'{"do"')
    assert request_detach(here(), PATIENT_S, keep=False)
    assert guard.faults == {}


def test_a_lack_of_file_descriptors_does_not_end_the_listener(
    guard: ErrorBoundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, "too many open files") for _ in range(3)]

    class Scarce(socket.socket):
        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return super().accept()

    monkeypatch.setattr(listener, "ACCEPT_AGAIN_S", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Scarce)
        listening = listener.Listener(lambda _message: {"ok": True}, guard)
    path = engine_processes.socket_of(os.getpid())
    assert attach.request(path, {"do": attach.DETACH}, PATIENT_S)["ok"]
    listening.close()
    assert (failures, path.exists()) == ([], False)


def test_another_users_connection_is_closed_unread(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here().socket
    with monkeypatch.context() as patch:
        patch.setattr(attach, "peer_of", lambda connection: (1, os.getuid() + 1))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert connection.recv(1) == b""
        with pytest.raises(AttachError, match="another user"):
            attach.request(path, {"do": attach.DETACH}, PATIENT_S)
    assert request_detach(here(), PATIENT_S, keep=False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_real_other_user_is_refused(loop: Loop) -> None:
    engine_processes.directory().chmod(0o755)  # even if the directory lets it in
    engine_processes.directory().parent.chmod(0o755)
    here_path = engine_processes.socket_of(os.getpid())
    here_path.chmod(0o777)
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        "s.connect(sys.argv[1]); s.sendall(b'{}\\n'); print(s.recv(9))"
    )
    link = Path(f"/tmp/rl-{os.getpid()}.sock")  # the test's own directory is closed to others
    os.link(here_path, link)
    try:
        done = subprocess.run([sys.executable, "-c", code, str(link)], capture_output=True, text=True, check=False)
    finally:
        link.unlink()
        engine_processes.directory().chmod(0o700)
    assert done.stdout.strip() == "b''" or "ConnectionReset" in done.stderr or "BrokenPipe" in done.stderr, done


def test_a_process_that_does_not_listen_or_answer_is_reported(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AttachError, match="can't reach the process"):
        attach.request(tmp_path / "none.sock", {"do": attach.DETACH}, PATIENT_S)
    monkeypatch.setattr(attach, "ANSWER_MARGIN_S", 0.0)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf.sock"))
        deaf.listen()
        with pytest.raises(AttachError, match="no answer"):
            attach.request(tmp_path / "deaf.sock", {"do": attach.DETACH}, 0.1)


def test_credentials_are_those_of_this_process() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert attach.peer_of(one) == (os.getpid(), os.getuid())
    assert struct.calcsize("=3i") == 12


def test_the_hook_of_a_boundary_removes_itself_and_keeps_the_hosts_exception() -> None:
    engine = EngineCore()
    seen: list[float] = []
    patches.at_next_boundary(engine, lambda: seen.append(time.monotonic()))
    assert engine._handle_client_request("WAKEUP", None) == "handled"
    assert engine._handle_client_request("WAKEUP", None) == "handled"
    assert len(seen) == 1
    assert "_handle_client_request" not in vars(engine)


@pytest.mark.parametrize("core", [EngineCore, InProcessCore])
def test_the_hook_of_a_boundary_leaves_a_wrapper_that_came_after_it(core: type[EngineCore]) -> None:
    engine, seen, others = core(), list[str](), list[str]()
    method = "_handle_client_request" if core is EngineCore else "step_fn"
    message = ("WAKEUP", None) if core is EngineCore else ()
    patches.at_next_boundary(engine, lambda: seen.append("boundary"))
    inner = getattr(engine, method)

    def wrapper(*args: Any) -> Any:
        others.append("other")
        return inner(*args)

    setattr(engine, method, wrapper)
    for _ in range(3):
        getattr(engine, method)(*message)
    assert seen == ["boundary"]
    assert others == ["other"] * 3
    patches.at_next_boundary(engine, lambda: seen.append("boundary"))
    getattr(engine, method)(*message)
    assert len(seen) == 2
    assert len(others) == 4
