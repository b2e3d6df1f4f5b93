"""Forged engines and forged hubs, as processes of their own on real sockets: they neither command nor report."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.ingest.processes import SenderProcesses
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import RunKey, hub_key
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.hub_check import HubCheck, UnprovenError
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import HubStandIn, wait_for, wait_shown
from tests.support.hub_messages import Source, engine_state
from tests.support.receiver import run_directory

FORK = multiprocessing.get_context("fork")


class Engine:
    """A simulated engine that applies every command."""

    def __init__(self, rundir: RunDir) -> None:
        self.commands: list[wire.Command] = []
        self.sender = Sender[Message](
            rundir, "e0", "engine", lambda _, items: items, on_message=self._obey, periodic=self.report
        )
        self.sender.start()

    def report(self) -> None:
        self.sender.offer("state", 100, (engine_state("e0", generated_tokens=7), {}))

    def _obey(self, message: wire.ControlToCollector) -> None:
        if isinstance(message, wire.Command):
            self.commands.append(message)
            self.sender.reply(wire.CommandUpdate(message.id, "e0", message.flag, "applied", old="on", new="off"))


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@contextlib.contextmanager
def running_hub(rundir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rltop.backend.hub", str(rundir.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: find_hub(rundir), "the hub is ready")
            yield process
        finally:
            process.kill()


@pytest.fixture
def engine(rundir: RunDir) -> Iterator[Engine]:
    made = Engine(rundir)
    yield made
    made.sender.close(0)


def in_another_process(work: Callable[..., None], *arguments: Any) -> None:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


# --- a forged engine --------------------------------------------------------------------------------------------------


def send_as(rundir: RunDir, epoch: str, session: str, first: int) -> None:
    """What another process can do in the engine's name: its identity, its epoch, its numbers; and a guess."""
    context = zmq.Context()
    push, control = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
    control.setsockopt(zmq.ROUTING_ID, f"e0#{epoch}".encode())
    push.connect(rundir.ingest)
    control.connect(rundir.control)
    for message in (
        wire.Register(wire.PROTO, "e0", epoch, "engine", {}, session),
        wire.CommandUpdate("c1", "e0", "prefix_caching", "applied", "forged"),
        wire.Bye("e0", epoch, 10**6),
    ):
        control.send(wire.encode(message))
    for seq in range(first, first + 3):
        envelope = wire.Envelope(wire.PROTO, "e0", epoch, seq, time.time(), 0, session)
        frames = wire.encode_data(envelope, engine_state("e0", generated_tokens=10**9, policy_version=999), {})
        push.send_multipart(wire.pack(frames))
    assert not control.poll(2000), "the hub has answered the forged engine"
    control.close(500)
    push.close(500)
    context.term()


def test_a_second_process_under_an_engines_name_sends_nothing_and_gets_no_command(
    rundir: RunDir, engine: Engine
) -> None:
    with running_hub(rundir), Client(rundir) as client:
        wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)
        in_another_process(send_as, rundir, engine.sender.epoch, "", 0)
        in_another_process(send_as, rundir, engine.sender.epoch, "a guess", 10)
        wait_shown(client, lambda c: c.view and any("nothing is taken from it" in e.text for e in c.view.events))
        (change,) = client.command(api.AskSet(api.new_id(), "prefix_caching", "off"))
        assert change.state == "applied" and change.reason == ""
        assert [command.id for command in engine.commands] == [change.command]
        snapshot = client.snapshot()
        assert list(snapshot.engines) == ["e0"] and snapshot.engines["e0"].health == "live"
        assert (snapshot.engines["e0"].policy_version, snapshot.engines["e0"].tokens) == (3, 7)
        assert snapshot.counters["refused"] >= 3
        refused = next(event.text for event in snapshot.events if event.kind == "refused")
        assert f"which is process {os.getpid()}" in refused


def test_the_first_process_keeps_a_name_and_its_epoch() -> None:
    processes = SenderProcesses()
    assert processes.is_sender("e0", "life-1", 10, "s")
    assert processes.is_sender("e0", "life-1", 10, "s")
    assert processes.is_sender("e0", "life-1", 10)  # a kind of message without a session
    assert not processes.is_sender("e0", "life-1", 11, "s")  # it has seen the secret, and is another process
    assert not processes.is_sender("e0", "life-1", 10, "")
    assert not processes.is_sender("e0", "life-1", 10, "t")
    assert not processes.is_sender("e0", "life-1", None, "t")  # from another pid namespace
    assert processes.is_sender("e0", "life-1", None, "s")
    assert processes.is_sender("e0", "life-2", 11, "t")  # a new life


def test_what_is_stated_first_counts_whichever_message_came_before() -> None:
    processes = SenderProcesses()
    assert processes.is_sender("e0", "life-1", None)  # a disconnect: no session, no pid
    assert processes.is_sender("e0", "life-1", 10, "s")
    assert (processes.session("e0", "life-1"), processes.pid("e0", "life-1")) == ("s", 10)
    assert not processes.is_sender("e0", "life-1", 11, "s")


# --- a forged hub -----------------------------------------------------------------------------------------------------


def command_engine(rundir: RunDir, seal: Callable[[str, wire.Body], wire.Body] | None = None) -> None:
    """A process that takes the sockets of a run and commands the engine that comes."""
    with HubStandIn(rundir) as forged:
        wait_for(lambda: forged.knows("e0"), "the engine registers")
        for message in (
            wire.Welcome("forged"),
            wire.Command("f1", "prefix_caching", "off", time.time() + 600),
            wire.Refused("", "end"),
        ):
            forged.send("e0", message)
            for proof in (b"", bytes(32)):
                forged.send("e0", wire.Proven("forged", wire.encode(message), proof))
        closed = forged.closed("f1")
        assert (closed.state, "not from the hub" in closed.reason) == ("refused", True), closed


def test_an_engine_obeys_no_hub_but_that_of_its_run_and_the_next_one_is_told(rundir: RunDir, engine: Engine) -> None:
    with running_hub(rundir) as hub, Client(rundir) as client:
        wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)
        hub.kill()
        hub.wait()
    in_another_process(command_engine, rundir)
    assert not engine.commands
    with running_hub(rundir), Client(rundir) as client:
        wait_shown(client, lambda c: c.view and any("not from its hub" in event.text for event in c.view.events))
        (change,) = client.command(api.AskSet(api.new_id(), "prefix_caching", "off"))
        assert change.state == "applied"
        assert [command.id for command in engine.commands] == [change.command]


def sealed(key: RunKey, session: str, epoch: str, message: wire.Body) -> wire.Proven:
    encoded = wire.encode(message)
    return wire.Proven(epoch, encoded, key.proof(*wire.proven_parts(session, epoch, encoded)))


def test_a_proof_holds_for_one_process_one_hub_and_one_message(rundir: RunDir) -> None:
    key = hub_key(rundir)
    key.create()
    welcome, command = wire.Welcome("hub-1"), wire.Command("c1", "prefix_caching", "off", 0.0)
    check = HubCheck(rundir, "mine")
    with pytest.raises(UnprovenError, match="registered with"):
        check.obeyed(sealed(key, "mine", "hub-1", command))  # before any welcome
    assert check.obeyed(sealed(key, "mine", "hub-1", welcome)) == welcome
    assert check.obeyed(sealed(key, "mine", "hub-1", command)) == command
    stolen = sealed(key, "mine", "hub-1", command).proof
    for message in (
        command,
        welcome,
        wire.Refused("", "end"),
        sealed(key, "another's", "hub-1", command),
        sealed(key, "mine", "hub-2", command),  # captured from, or made for, another hub
        wire.Proven("hub-1", wire.encode(wire.Command("c2", "prefix_caching", "on", 0.0)), stolen),
        wire.Proven("hub-1", wire.encode(command), stolen[:-1]),
    ):
        with pytest.raises(UnprovenError):
            check.obeyed(message)
    old = sealed(key, "mine", "hub-1", command)
    key.rotate()
    with pytest.raises(UnprovenError, match="present hub key"):
        check.obeyed(old)
    assert check.obeyed(sealed(key, "mine", "hub-3", wire.Welcome("hub-3"))) == wire.Welcome("hub-3")
    assert check.obeyed(wire.Acknowledged("e", 3)) == wire.Acknowledged("e", 3)  # concerns its own messages only


def test_without_a_hub_key_a_hub_of_an_earlier_version_is_obeyed(rundir: RunDir) -> None:
    check = HubCheck(rundir, "mine")
    assert check.obeyed(wire.Welcome("old")) == wire.Welcome("old")
    assert check.obeyed(wire.Proven("hub", wire.encode(wire.Welcome("hub")), bytes(32))) == wire.Welcome("hub")
    hub_key(rundir).create()
    with pytest.raises(UnprovenError):
        check.obeyed(wire.Welcome("old"))
    Path(hub_key(rundir).path).chmod(0o644)
    with pytest.raises(UnprovenError, match="mode 0600"):
        check.obeyed(wire.Proven("hub", wire.encode(wire.Welcome("hub")), bytes(32)))


def test_a_collector_of_an_earlier_version_is_commanded_as_before(rundir: RunDir) -> None:
    context = zmq.Context()
    push, control = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
    try:
        with running_hub(rundir), Client(rundir) as client:
            control.setsockopt(zmq.ROUTING_ID, b"e0#life-1")
            control.connect(rundir.control)
            push.connect(rundir.ingest)
            control.send(wire.encode(wire.Register(wire.PROTO, "e0", "life-1", "engine")))
            push.send_multipart(Source("e0").frames(engine_state("e0"), sent=time.time()))
            wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)
            client.ask(api.AskSet(api.new_id(), "prefix_caching", "off"))
            heard: list[wire.ControlToCollector] = []

            def commanded(_: Client) -> bool:
                while control.poll(0):
                    heard.append(wire.decode_to_collector(control.recv()))
                return any(isinstance(message, wire.Command) for message in heard)

            wait_shown(client, commanded)
            assert not any(isinstance(message, wire.Proven) for message in heard)
    finally:
        control.close(0)
        push.close(0)
        context.term()


def test_a_connection_that_the_hub_ignores_is_made_again(rundir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub ignores a second connection of one id: if it has not noticed the end of the first, a collector is deaf."""
    monkeypatch.setattr("rltop.collectors.transport.sender.REGISTER_PERIOD_S", 0.05)
    heard: list[wire.ControlToCollector] = []
    sender = Sender[Message](rundir, "e0", "engine", lambda _, items: items, on_message=heard.append)
    register = sender._register()
    context = zmq.Context()
    holder = context.socket(zmq.DEALER)
    with running_hub(rundir):
        holder.setsockopt(zmq.ROUTING_ID, f"e0#{register.epoch}".encode())
        holder.connect(rundir.control)
        holder.send(wire.encode(register))
        wait_for(lambda: holder.poll(10), "the holder of the id is answered")
        sender.start()
        wait_for(lambda: sender._unanswered > 2, "it registers in vain")
        assert not heard
        holder.close(0)
        context.term()
        wait_for(lambda: heard, "the hub answers")
        sender.close(0)
