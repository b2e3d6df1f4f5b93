"""The real hub process on real sockets: what is sent is what viewers see, through kills, stops and rubbish."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError, HubUnreachable
from rltop.backend.hub.process import VIEW_HWM
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.backend.hub.test_steps import World, assert_values
from tests.support import oracles
from tests.support.harness import ME, PATIENT_S, ended, wait_shown
from tests.support.hub_messages import Trained, Written, engine_state, rollouts, sequences
from tests.support.receiver import run_directory, wait_until

VIEWER = """
import sys
from pathlib import Path
from rltop.backend.client.live import Client
from rltop.collectors.contract.rundir import RunDir
client = Client(RunDir(Path(sys.argv[1])))
assert client.wait(lambda c: c.state == "live", 3600)
print("live", flush=True)
assert client.wait(lambda c: len(c.view.steps) == int(sys.argv[2]), 3600)
print("all steps", flush=True)
"""


def start_hub(rundir: RunDir) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@pytest.fixture
def hub(rundir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    process = start_hub(rundir)
    yield process
    end(process)


@pytest.fixture
def client(rundir: RunDir) -> Iterator[Client]:
    with Client(rundir) as found:
        yield found


class Collector:
    """A real ``Sender`` that passes on what it is given; an engine reports its state once a second."""

    def __init__(self, rundir: RunDir, name: str) -> None:
        self.name = name
        self.heard: list[wire.ControlToCollector] = []
        self.state: dict[str, Any] = {}
        role = "trainer" if name.startswith("trainer/") else "engine"
        self.sender = Sender[Message](
            rundir, name, role, lambda _, items: items, on_message=self._hear,
            periodic=self._report if role == "engine" else None,
        )  # fmt: skip
        self.sender.start()

    def _report(self) -> None:
        self.send(engine_state(self.name, **self.state))

    def _hear(self, message: wire.ControlToCollector) -> None:
        self.heard.append(message)

    def send(self, body: wire.DataBody, arrays: wire.Arrays | None = None) -> None:
        assert self.sender.offer("all", 100, (body, arrays or {}))

    @property
    def commands(self) -> list[wire.Command]:
        return [message for message in self.heard if isinstance(message, wire.Command)]


@contextlib.contextmanager
def collector(rundir: RunDir, name: str) -> Iterator[Collector]:
    one = Collector(rundir, name)
    try:
        yield one
    finally:
        one.sender.close(5)


def see(client: Client, condition: Callable[[api.Snapshot], object]) -> api.Snapshot:
    wait_shown(client, lambda c: c.view is not None and bool(condition(c.view)))
    assert client.view is not None
    return client.view


def close_step(trainer: Collector, step: int) -> None:
    trainer.send(wire.StepClosed(step, 0, 1, step))


@pytest.mark.parametrize("objective", ["ppo", "gspo"])
def test_viewers_see_the_oracles_numbers(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client, objective: str
) -> None:
    world = World(7, objective=objective, base="old")
    with collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as e0, collector(rundir, "e1") as e1:
        for engine in (e0, e1):
            written = [one for one in world.written if one.engine == engine.name]
            engine.send(*rollouts(written))
        about: dict[str, Any] = {
            "clip_low": world.clip.low,
            "clip_high": world.clip.high,
            "objective": objective,
            "ratio_base": "old",
        }
        for half in (world.trained[::2], world.trained[1::2]):
            trainer.send(*sequences(half, policy_version=world.policy, **about))
        close_step(trainer, 0)
        picture = see(client, lambda v: v.steps and len(v.engines) == 2)
    step = picture.steps[0]
    assert_values(step.values, world.rows, world.clip)
    for engine_id in ("e0", "e1"):
        assert_values(step.engines[engine_id], [r for r in world.rows if r.engine == engine_id], world.clip)
    with Client(rundir) as late:
        assert late.snapshot(PATIENT_S).steps == picture.steps


def test_a_command_reaches_the_engine_and_its_states_are_shown(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    with collector(rundir, "e0") as engine:
        see(client, lambda v: "e0" in v.engines)
        client.ask(api.AskSet("q", "prefix_caching", "off", who="ann"))
        wait_shown(client, lambda _: engine.commands)
        (command,) = engine.commands
        assert (command.flag, command.value) == ("prefix_caching", "off")
        for state in ("accepted", "accepted", "applied"):
            engine.sender.reply(wire.CommandUpdate(command.id, "e0", command.flag, state, old="on", new="off"))
        picture = see(client, lambda v: any(c.state == "applied" for c in v.changes.values()))
        assert client.answers["q"].command == command.id
        (change,) = picture.changes.values()
        assert (change.who, change.old, change.new) == (ME, "on", "off")
        assert change.author is not None and change.author.claimed == "ann@"
        with pytest.raises(CommandError, match="prefix_caching"):
            client.command(api.AskSet(api.new_id(), "speed", "on"))
        with pytest.raises(CommandError, match="e9"):
            client.command(api.AskSet(api.new_id(), "prefix_caching", "on", ["e9"]))
        (closed,) = client.command(api.AskSet(api.new_id(), "prefix_caching", "on", timeout_s=0.2))
        assert (closed.state, closed.reason) == ("timed_out", "no answer from engine e0")


def test_a_killed_hub_ends_no_other_process_and_all_find_the_next_one(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    with collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as engine:
        close_step(trainer, 0)
        first = see(client, lambda v: v.steps and v.engines).epoch
        client.ask(api.AskSet("q", "prefix_caching", "off"))
        wait_shown(client, lambda _: engine.commands)
        hub.kill()
        hub.wait()
        wait_shown(client, lambda c: c.state == "lost")
        assert client.view is not None
        assert client.view.steps  # stale, but kept
        (command,) = engine.commands
        done = wire.CommandUpdate(command.id, "e0", command.flag, "applied", old="on", new="off")
        engine.state["commands"] = [done]  # its acknowledgement has nowhere to go
        second = start_hub(rundir)
        try:
            picture = see(client, lambda v: v.epoch != first and [c.state for c in v.changes.values()] == ["applied"])
            assert client.state == "live"
            assert picture.engines["e0"].health == "live"
            close_step(trainer, 1)
            assert list(see(client, lambda v: 1 in v.steps).steps) == [0, 1]  # the first is from the store
            assert trainer.sender.close(5)  # confirmed by the new hub
        finally:
            end(second)


def test_stopped_and_killed_viewers_do_not_affect_the_others(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    steps = 3 * VIEW_HWM
    scalars = {f"scalar_{number}": float(number) for number in range(400)}
    viewers = [
        subprocess.Popen([sys.executable, "-c", VIEWER, str(rundir.path), str(steps)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    context = zmq.Context()
    hurry = context.socket(zmq.XSUB)  # a new subscription gets a frame at once
    hurry.linger = 0
    hurry.connect(rundir.view)

    def shown(picture: api.Snapshot, step: int) -> bool:
        hurry.send(b"\x01%d" % step)
        return step in picture.steps

    try:
        for viewer in viewers:
            assert viewer.stdout is not None
            assert viewer.stdout.readline() == b"live\n"
        viewers[0].send_signal(signal.SIGSTOP)
        viewers[1].kill()
        see(client, lambda v: True)
        with collector(rundir, "trainer/0") as trainer:
            # A frame for each step, of several kB: more than the kernel and the queue hold for the stopped viewer.
            for step in range(steps):
                trainer.send(wire.StepClosed(step, 0, 1, step, scalars))
                see(client, lambda v, step=step: shown(v, step))  # type: ignore[misc]
        viewers[0].send_signal(signal.SIGCONT)
        assert viewers[0].stdout is not None
        assert viewers[0].stdout.readline() == b"all steps\n"
    finally:
        hurry.close()
        context.term()
        for viewer in viewers:
            end(viewer)


def test_malformed_messages_are_counted_and_the_run_continues(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    see(client, lambda v: True)
    context = zmq.Context()
    try:
        for kind, endpoint in ((zmq.PUSH, rundir.ingest), (zmq.DEALER, rundir.control), (zmq.DEALER, rundir.query)):
            rubbish = context.socket(kind)
            rubbish.linger = 1000
            rubbish.connect(endpoint)
            for frames in ([b""], [b"\x00" * 10, b"\xff"], [b"x"] * 40):
                rubbish.send_multipart(frames)
            rubbish.close()
        see(client, lambda v: v.counters.get("invalid", 0) >= 9)
        subscriber = context.socket(zmq.XSUB)
        subscriber.linger = 0
        subscriber.connect(rundir.view)
        subscriber.send(b"no subscription")
        subscriber.close()
    finally:
        context.term()
    with collector(rundir, "trainer/0") as trainer:
        close_step(trainer, 0)
        see(client, lambda v: v.steps)
    assert hub.poll() is None


def test_a_killed_collector_becomes_silent_and_its_step_closes_as_partial(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    with collector(rundir, "trainer/0") as trainer:
        world = World(3)
        trainer.send(*sequences(world.trained, policy_version=world.policy))
        see(client, lambda v: v.trainer.health == "live")
    step = see(client, lambda v: v.steps).steps[0]  # said goodbye without closing its step
    assert step.partial
    assert step.values["tokens"] == oracles.Step(world.rows).values()["tokens"]


def test_missed_frames_lead_to_a_new_snapshot(rundir: RunDir, hub: subprocess.Popen[bytes], client: Client) -> None:
    with collector(rundir, "trainer/0") as trainer:
        see(client, lambda v: v.trainer.health == "live")
        assert client.view is not None
        client.view.seq -= 3  # as if three frames had been dropped for a slow viewer
        client.view.steps.clear()
        for step in range(3):
            close_step(trainer, step)
        see(client, lambda v: len(v.steps) == 3)
        with Client(rundir) as other:
            theirs = other.snapshot(PATIENT_S)
            wait_shown(client, lambda c: c.view is not None and c.view.seq >= theirs.seq)
            assert theirs.steps == client.view.steps


def test_a_run_has_one_hub_which_exits_cleanly(rundir: RunDir, hub: subprocess.Popen[bytes]) -> None:
    wait_until(rundir.info.exists)
    info = json.loads(rundir.info.read_text())
    assert (info["pid"], info["proto"]) == (hub.pid, wire.PROTO)
    second = start_hub(rundir)
    assert ended(second) == 0
    with Client(rundir) as client:
        assert client.snapshot(PATIENT_S).epoch == info["epoch"]
        hub.send_signal(signal.SIGTERM)
        assert ended(hub) == 0
    assert not rundir.info.exists()


def test_a_viewer_can_stop_the_hub(rundir: RunDir, hub: subprocess.Popen[bytes], client: Client) -> None:
    see(client, lambda v: True)
    client.stop_hub()
    assert ended(hub) == 0


def test_network_addresses_are_refused() -> None:
    for bad in (["tcp://127.0.0.1:5555"], [], ["a", "b"]):
        process = subprocess.run([sys.executable, "-m", "rltop.backend.hub", *bad], capture_output=True, check=False)
        assert process.returncode == 2
        assert b"network addresses are refused" in process.stderr


def test_without_a_hub_the_clients_error_says_what_to_do(rundir: RunDir) -> None:
    with Client(rundir) as client:
        assert client.state == "connecting"
        with pytest.raises(HubUnreachable, match="rltop hub"):
            client.snapshot(0.2)
        client.ask(api.AskSet("q", "prefix_caching", "off"))
        assert client.answers["q"].error


def test_a_large_batch_with_equal_prompts_is_measured(
    rundir: RunDir, hub: subprocess.Popen[bytes], client: Client
) -> None:
    written = [Written([1, 2, 3], [n % 7, n // 7, 5], [-0.5, -1.0 - n / 64, -2.0], [1, 1, 2]) for n in range(512)]
    rows = [Trained([1, 2, 3, *one.tokens], [0, 0, 0, 1, 1, 1], one.logprobs, one.logprobs) for one in written]
    with collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as engine:
        trainer.send(*sequences(rows, policy_version=2))
        engine.send(*rollouts(written))
        close_step(trainer, 0)
        values = see(client, lambda v: v.steps).steps[0].values
    assert (values["joined_fraction"], values["spanning_frac"], values["sequences"]) == (1.0, 1.0, 512.0)
