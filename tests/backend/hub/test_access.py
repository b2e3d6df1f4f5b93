"""Who may command a real hub: holders of the present control key, each request once, under their real names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError, HubUnreachable
from rltop.backend.commands import audit
from rltop.collectors.contract.keys import RunKey, control_key, hub_key
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import ME, PATIENT_S, wait_for, wait_shown
from tests.support.hub_messages import engine_state
from tests.support.receiver import run_directory

STRANGER = 12345
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")

CONTROL: dict[str, Callable[[str], api.AskControl]] = {
    "set": lambda q: api.AskSet(q, "prefix_caching", "off", None, "alice", "her-laptop", "I was never here"),
    "act": lambda q: api.AskAct(q, "pause"),
    "keep": lambda q: api.AskKeep(q, "c1"),
    "undo": lambda q: api.AskUndo(q, "c1"),
    "probe": lambda q: api.AskProbe(q, "token-echo"),
    "acknowledge": lambda q: api.AskAcknowledge(q, "a1", "alice"),
    "silence": lambda q: api.AskSilence(q, "a1", 60.0, "alice"),
    "stop": lambda q: api.AskStop(q),
}


class Viewer:
    """A bare socket, as any program of the user can open it, and what it does with a key."""

    def __init__(self, rundir: RunDir) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(rundir.query)

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def ask(self, *frames: bytes) -> api.Answer:
        self.socket.send_multipart(frames)
        assert self.socket.poll(int(PATIENT_S * 1000))
        return api.decode_answer(self.socket.recv())

    def challenge(self) -> str:
        challenge = self.ask(api.encode(api.AskChallenge(api.new_id()))).challenge
        assert challenge
        return challenge

    def proven(self, question: api.AskControl, key: RunKey, challenge: str | None = None) -> tuple[bytes, bytes]:
        challenge, frame = challenge or self.challenge(), api.encode(question)
        return frame, api.encode_proof(challenge, key.proof(*api.proven(challenge, frame)))


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@pytest.fixture
def hub(rundir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: find_hub(rundir), "the hub is ready")
        yield process
        process.kill()


@pytest.fixture
def viewer(rundir: RunDir, hub: subprocess.Popen[bytes]) -> Iterator[Viewer]:
    opened = Viewer(rundir)
    yield opened
    opened.close()


@pytest.fixture
def engine(rundir: RunDir) -> Iterator[list[Any]]:
    """The messages that a simulated engine receives."""
    received: list[Any] = []

    def report() -> None:
        sender.offer("state", 100, (engine_state("e0"), {}))

    sender = Sender[Message](
        rundir, "e0", "engine", lambda _, items: items, on_message=received.append, periodic=report
    )  # fmt: skip
    sender.start()
    yield received
    sender.close(0)


def logged(rundir: RunDir) -> list[audit.AuditLine]:
    return audit.read(rundir.audit)[0]


def see_engine(rundir: RunDir) -> None:
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)


def commands(received: list[Any]) -> list[Any]:
    return [message for message in list(received) if hasattr(message, "verb")]


@pytest.mark.parametrize("name", CONTROL)
def test_a_viewers_socket_can_not_command_stop_or_answer_an_alarm(
    rundir: RunDir, hub: subprocess.Popen[bytes], viewer: Viewer, engine: list[Any], name: str
) -> None:
    see_engine(rundir)
    assert "control key" in (viewer.ask(api.encode(CONTROL[name]("q"))).error or "")
    assert viewer.ask(api.encode(CONTROL[name]("q")), b"").error
    assert viewer.ask(api.encode(CONTROL[name]("q")), os.urandom(64)).error
    snapshot = viewer.ask(api.encode(api.AskSnapshot("s"))).snapshot  # it may look, as before
    assert snapshot is not None and not snapshot.changes
    assert hub.poll() is None and not logged(rundir) and not commands(engine)
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view and any(e.kind == "refused" for e in c.view.events))
        assert client.view is not None
        refused = next(event for event in client.view.events if event.kind == "refused")
    assert f"{name} from {ME}@" in refused.text and f"process {os.getpid()}" in refused.text


def test_every_request_that_changes_something_needs_the_key() -> None:
    asked = {type(make("q")) for make in CONTROL.values()}
    reading: set[type[api.Ask]] = {
        api.AskSnapshot, api.AskChallenge, api.AskEffect, api.AskAttribution, api.AskDiagnosis, api.AskSamples,
        api.AskMismatch, api.AskPast,
    }  # fmt: skip
    assert asked == set(get_args(api.AskControl))
    assert asked | reading == set(get_args(api.Question))  # a new kind of request is sorted here


def test_a_captured_request_can_not_be_sent_again(
    rundir: RunDir, hub: subprocess.Popen[bytes], viewer: Viewer, engine: list[Any]
) -> None:
    see_engine(rundir)
    other = Viewer(rundir)
    try:
        frames = viewer.proven(CONTROL["set"]("q"), control_key(rundir))
        assert "used before" in (other.ask(*frames).error or "")  # taken from the wire before it arrived
        assert viewer.ask(*frames).command
        for sender in (viewer, other):
            assert "used before" in (sender.ask(*frames).error or "")
        wait_for(lambda: commands(engine), "the command reaches the engine")
    finally:
        other.close()
    assert [line.event for line in logged(rundir)].count("requested") == 1
    assert len(commands(engine)) == 1


def test_a_captured_request_means_nothing_to_the_next_hub(rundir: RunDir, hub: subprocess.Popen[bytes]) -> None:
    first = Viewer(rundir)
    frames = first.proven(CONTROL["stop"]("q"), control_key(rundir))
    hub.send_signal(signal.SIGKILL)
    hub.wait()
    first.close()
    with subprocess.Popen(
        [sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=subprocess.DEVNULL
    ) as second:
        try:
            wait_for(lambda: find_hub(rundir), "the second hub is ready")
            viewer = Viewer(rundir)
            assert "used before" in (viewer.ask(*frames).error or "")
            viewer.close()
            assert second.poll() is None
        finally:
            second.kill()


def test_a_proof_covers_the_whole_request(rundir: RunDir, viewer: Viewer) -> None:
    _, proof = viewer.proven(CONTROL["silence"]("q"), control_key(rundir))
    assert "proof" in (viewer.ask(api.encode(CONTROL["stop"]("q")), proof).error or "")


def test_only_the_control_key_controls(rundir: RunDir, viewer: Viewer) -> None:
    assert "control key" in (viewer.ask(*viewer.proven(CONTROL["stop"]("q"), hub_key(rundir))).error or "")


def test_a_former_controller_can_not_command(rundir: RunDir, hub: subprocess.Popen[bytes], viewer: Viewer) -> None:
    former = RunKey(rundir.path / "copied.key")
    former.path.write_bytes(control_key(rundir).path.read_bytes())
    former.path.chmod(0o600)
    prepared = viewer.challenge()
    control_key(rundir).rotate()
    assert viewer.ask(*viewer.proven(CONTROL["stop"]("q"), former)).error
    assert viewer.ask(*viewer.proven(CONTROL["stop"]("q"), former, prepared)).error  # begun before the rotation
    with Client(rundir) as client:
        client.snapshot(PATIENT_S)
        assert hub.poll() is None
        client.stop_hub()  # it has read the new key


@pytest.mark.parametrize("spoil", ["missing", "readable by others", "a link", "damaged", "a directory"])
def test_a_key_that_can_not_be_trusted_gives_no_control(
    rundir: RunDir, hub: subprocess.Popen[bytes], spoil: str
) -> None:
    path = control_key(rundir).path
    content = path.read_bytes()
    path.unlink()
    if spoil == "readable by others":
        path.write_bytes(content)
        path.chmod(0o644)
    elif spoil == "a link":
        (rundir.path / "elsewhere").write_bytes(content)
        (rundir.path / "elsewhere").chmod(0o600)
        path.symlink_to("elsewhere")
    elif spoil == "damaged":
        path.write_bytes(content[:10])
        path.chmod(0o600)
    elif spoil == "a directory":
        path.mkdir()
    with Client(rundir) as client, pytest.raises(HubUnreachable, match="--rotate"):
        client.stop_hub()
    assert hub.poll() is None


def test_a_read_only_client_sends_no_command(rundir: RunDir, hub: subprocess.Popen[bytes], engine: list[Any]) -> None:
    see_engine(rundir)
    with Client(rundir, control=False) as client:
        with pytest.raises(CommandError, match="read-only"):
            client.command(api.AskSet(api.new_id(), "prefix_caching", "off"))
        with pytest.raises(HubUnreachable, match="read-only"):
            client.stop_hub()
    assert hub.poll() is None and not commands(engine) and not logged(rundir)


def test_who_is_taken_from_the_process_and_a_claimed_name_is_shown_as_claimed(
    rundir: RunDir, viewer: Viewer, engine: list[Any]
) -> None:
    see_engine(rundir)
    forged = api.Author(4242, 1, "nobody")
    question = api.AskSet("q", "prefix_caching", "off", None, "alice", "her-laptop", author=forged)
    assert viewer.ask(*viewer.proven(question, control_key(rundir))).command
    line = logged(rundir)[0]
    assert (line.who, line.author) == (ME, api.Author(os.getuid(), os.getpid(), "alice@her-laptop"))
    assert f"by {ME}@{line.host} (claims to be alice@her-laptop)" in audit.as_text(line)
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view and any("claims to be alice" in e.text for e in c.view.events))
        assert client.view is not None
        (change,) = client.view.changes.values()
    assert (change.who, change.author) == (line.who, line.author)
    assert "claimed" not in json.loads(rundir.audit.read_text().splitlines()[0])  # only as part of the author


STRANGERS_SOCKETS = """
import os, sys, zmq
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
context = zmq.Context()
for kind, name in ((zmq.DEALER, "query"), (zmq.DEALER, "control"), (zmq.SUB, "view"), (zmq.PUSH, "ingest")):
    socket = context.socket(kind)
    socket.linger = 0
    if kind == zmq.SUB:
        socket.subscribe(b"")
    socket.connect(f"ipc://{sys.argv[1]}/{name}.sock")
    if kind == zmq.DEALER:
        socket.send(bytes.fromhex(sys.argv[3]))
    if kind != zmq.PUSH:
        print(name, socket.poll(1500), flush=True)
    socket.close()
context.term()
"""


@needs_root
def test_another_user_gets_no_answer_even_where_the_files_are_open_to_all(
    rundir: RunDir, hub: subprocess.Popen[bytes]
) -> None:
    rundir.path.chmod(0o777)
    for name in ("query", "control", "view", "ingest"):
        Path(rundir.path / f"{name}.sock").chmod(0o777)
    question = api.encode(api.AskSnapshot("q")).hex()
    command = [sys.executable, "-c", STRANGERS_SOCKETS, str(rundir.path), str(STRANGER), question]
    heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert heard == ["query 0", "control 0", "view 0"]
    assert hub.poll() is None


@needs_root
def test_another_user_can_not_read_a_key(rundir: RunDir, hub: subprocess.Popen[bytes]) -> None:
    rundir.path.chmod(0o777)
    read = "import os, sys; os.setgid(12345); os.setuid(12345); open(sys.argv[1], 'rb').read()"
    for key in (control_key(rundir), hub_key(rundir)):
        result = subprocess.run(
            [sys.executable, "-c", read, str(key.path)], capture_output=True, text=True, check=False
        )
        assert "PermissionError" in result.stderr


def test_the_command_line_shows_keys_and_renews_them(rundir: RunDir, hub: subprocess.Popen[bytes]) -> None:
    def run(*options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "rltop.tui.cli.main", "keys", str(rundir.path), "--json", *options]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert control_key(rundir).path.read_text().strip() not in shown
        return {row["role"]: row for row in json.loads(shown)["keys"]}

    before, shown, after = run(), run(), run("--rotate")
    assert before == shown and set(before) == {"control", "hub"}
    assert all(before[role]["fingerprint"] != after[role]["fingerprint"] for role in before)
    assert not list(rundir.path.glob("*.partial")) and hub.poll() is None
