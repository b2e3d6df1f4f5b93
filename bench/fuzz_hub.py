"""Sends hostile frames to hubs beside a healthy run; no hub may end, and no step of that run may be missing.

    .venv/bin/python -m bench.fuzz_hub [--frames 1000000] [--round 100000] [--state FILE] [--seed 0] [--core]

Run it from the root of a checkout. Each round has a new hub process, a seed of its own and ``--round`` frames on the
hub's sockets (``tests/support/hostile.py``). Meanwhile a healthy trainer and two engines (``Witness``) send through
real senders. At the end of a round the hub must be the process that began, every step that the witness closed must be
stored, and the hub must diagnose its last step. ``--core`` feeds the hub's state in this process instead, with its
answers, frames and ticks: each exception that the hub would contain is printed with its place. ``--state``: totals are
added to this file after each round, and the next call continues with the next seed.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError, HubUnreachable
from rltop.backend.hub.outputs import AnswerFromStore, Effect, Renew, Reply, SendControl
from rltop.backend.store.read import Reader
from rltop.backend.store.schema import StoreError
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import wait_for
from tests.support.hostile import Hostile
from tests.support.hub_core import Hub as Core
from tests.support.receiver import run_directory
from tests.support.training import Training

FIRST_STEP = 1000
"""Steps of the witness begin here: hostile frames name steps below and above."""

STEP_S = 2.0
SNAPSHOT_S = 120.0
BURST = 200
PAUSE_S = 0.002
"""Pause when a socket takes no more."""

SETTLE_S = 100.0
"""After this long without messages every step must be closed."""

CORE_LIFE = 2000
"""Frames that one state takes in this process."""


T = TypeVar("T")


class Totals(msgspec.Struct):
    """What all rounds found.

    Attributes:
        seed: of the next round.
        frames: sent. hubs: that began. ended: those that did not survive their round.
        mute: those that answered no viewer at its end.
        renewed: times that a frame made a hub begin another run, as a trainer does that starts again from step 0.
        steps, blind: that the witness closed, and those of them that the hub did not store.
        partial: stored without some of their rows.
        verdicts: on the witness's last step, by name. faults: contained exceptions, by place and error.
    """

    seed: int = 0
    frames: int = 0
    hubs: int = 0
    ended: int = 0
    mute: int = 0
    renewed: int = 0
    steps: int = 0
    blind: int = 0
    partial: int = 0
    verdicts: dict[str, int] = {}
    faults: dict[str, int] = {}

    def line(self) -> str:
        """All figures in one line."""
        return ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(self).items())


class Witness:
    """A healthy run that sends through real senders, and the steps that it closed."""

    def __init__(self, rundir: RunDir) -> None:
        self._training = Training(engines=2)
        roles = {"e0": "engine", "e1": "engine", "trainer/0": "trainer"}
        self._senders = {
            name: Sender[Message](rundir, name, role, lambda _, items: items) for name, role in roles.items()
        }
        self._next = 0.0
        self.closed: list[int] = []

    def go_on(self) -> None:
        """Send a step if one is due."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + STEP_S
        for source, body, arrays in self._training.step():
            if isinstance(body, wire.Sequences | wire.StepClosed):
                body = msgspec.structs.replace(body, step=body.step + FIRST_STEP)
            self._senders[source].offer("all", 1000, (body, arrays))
        self.closed.append(FIRST_STEP + self._training.steps - 1)

    def close(self) -> None:
        """End its senders."""
        for sender in self._senders.values():
            sender.close(5)


class Attack:
    """The sockets through which hostile frames reach a hub."""

    def __init__(self, rundir: RunDir, seed: int) -> None:
        self._hostile = Hostile(seed)
        self._rundir = rundir
        self._context = zmq.Context()
        self._data = self._socket(zmq.PUSH, rundir.ingest)
        self._query = self._socket(zmq.DEALER, rundir.query)
        self._view = self._socket(zmq.XSUB, rundir.view)
        self._peers: dict[str, zmq.Socket[bytes]] = {}

    def _socket(self, kind: int, endpoint: str, name: str = "") -> zmq.Socket[bytes]:
        opened: zmq.Socket[bytes] = self._context.socket(kind)
        opened.linger = 0
        if name:
            opened.setsockopt(zmq.ROUTING_ID, name.encode())
        opened.connect(endpoint)
        return opened

    def burst(self, number: int) -> int:
        """Send about ``BURST`` frames; returns how many the sockets took."""
        for sent in range(BURST):
            try:
                self._one((number + sent) % 100)
            except zmq.Again:
                time.sleep(PAUSE_S)
                return sent
        return BURST

    def _one(self, kind: int) -> None:
        """Of 100 frames 86 are data, 6 control messages, 7 questions and one is a subscription."""
        if kind < 86:
            self._data.send_multipart(self._hostile.data(), zmq.NOBLOCK)
        elif kind < 92:
            name, frame = self._hostile.control()
            if name not in self._peers:
                self._peers[name] = self._socket(zmq.DEALER, self._rundir.control, name)
            self._peers[name].send(frame, zmq.NOBLOCK)
        elif kind < 99:
            self._query.send(self._hostile.question(), zmq.NOBLOCK)
            with contextlib.suppress(zmq.Again):
                while True:
                    self._query.recv_multipart(zmq.NOBLOCK)
        else:
            self._view.send(b"\1" + self._hostile.question()[:40], zmq.NOBLOCK)

    def close(self) -> None:
        """Close all sockets."""
        self._context.destroy(linger=0)


@contextlib.contextmanager
def hub_of(rundir: RunDir) -> Iterator[subprocess.Popen[bytes]]:
    """A hub process; its log is ``hub.log`` in the directory."""
    rundir.create()
    with rundir.log.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=log)
    try:
        wait_for(rundir.info.exists, "the hub is ready")
        yield process
    finally:
        process.terminate()
        process.wait()


def attack_hub(totals: Totals, frames: int) -> None:
    """One round against a real hub."""
    with run_directory() as parent, hub_of(RunDir(parent.path / "run")) as hub:
        rundir = RunDir(parent.path / "run")
        witness, attack, sent = Witness(rundir), Attack(rundir, totals.seed), 0
        try:
            while sent < frames and hub.poll() is None:
                witness.go_on()
                sent += attack.burst(sent)
            _finish(totals, rundir, hub, witness)
        finally:
            attack.close()
            witness.close()
        totals.frames += sent
        totals.hubs += 1
        totals.seed += 1


def _finish(totals: Totals, rundir: RunDir, hub: subprocess.Popen[bytes], witness: Witness) -> None:
    """Add what a hub made of the witness's steps, once it has stored the last of them."""
    last = witness.closed[-1]
    with contextlib.suppress(AssertionError):  # it is counted as blind
        wait_for(lambda: hub.poll() is not None or last in _stored(rundir), "the last step is stored", poll_s=0.5)
    stored = _stored(rundir)
    totals.steps += len(witness.closed)
    totals.blind += len(set(witness.closed) - set(stored))
    totals.partial += sum(stored.get(step, 0) for step in witness.closed)
    if hub.poll() is not None:
        totals.ended += 1
        print("".join(rundir.log.read_text(errors="replace").splitlines(keepends=True)[-30:]))
        return
    with Client(rundir) as client:
        _add(totals.verdicts, _verdict(client, last))
        try:
            events = client.snapshot(SNAPSHOT_S).events
        except HubUnreachable as error:
            print(error)
            totals.mute += 1
            return
        for event in events:
            if event.text.startswith("the hub contained"):
                _add(totals.faults, event.text[:160])


def _verdict(client: Client, step: int) -> str:
    try:
        return client.diagnosis(step).verdict
    except (CommandError, HubUnreachable) as error:
        return f"none: {error}"[:100]


def _stored(rundir: RunDir) -> dict[int, int]:
    """The witness's steps in the stores of the run and of those that it was renewed from: whether each is partial."""
    found = dict[int, int]()
    for path in rundir.path.parent.glob(f"{rundir.run}*"):
        with contextlib.suppress(StoreError), Reader(path) as reader:
            found |= dict(reader.execute("SELECT step, partial FROM step WHERE step BETWEEN 1000 AND 60000").fetchall())
    return found


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def attack_core(totals: Totals, frames: int) -> None:
    """One round against hub states in this process."""
    hostile, sent = Hostile(totals.seed), 0
    while sent < frames:
        core, witness = Core(now=1e9), Training(engines=2)
        sent += _one_life(totals, core, witness, hostile)
        totals.hubs += 1
    totals.frames += sent
    totals.seed += 1


def _one_life(totals: Totals, core: Core, witness: Training, hostile: Hostile) -> int:
    """Feed one state until ``CORE_LIFE`` or until another run begins; returns the number of frames."""
    for number in range(CORE_LIFE):
        if _contained(totals, _one_to_core, core, hostile, number % 100):
            totals.renewed += 1
            return number
        if number % 100 == 0:
            _witness_step(totals, core, witness)
            _contained(totals, core.later, 0.5)
    _contained(totals, core.later, SETTLE_S)
    totals.steps += witness.steps
    totals.blind += len({FIRST_STEP + step for step in range(witness.steps)} - set(core.steps))
    return CORE_LIFE


def _one_to_core(core: Core, hostile: Hostile, kind: int) -> bool:
    """Pass one message; returns whether another run begins, for which a hub starts again."""
    if kind < 86:
        effects = core.state.data(hostile.data(), core.now)
    elif kind < 93:
        effects = core.state.control(*hostile.control(), core.now)
    else:
        effects = core.state.ask(b"viewer", hostile.question(), core.now)
    _encode(effects)
    return any(isinstance(effect, Renew) for effect in effects)


def _encode(effects: list[Effect]) -> None:
    """Encode what the hub's thread would send."""
    for effect in effects:
        if isinstance(effect, SendControl):
            wire.encode(effect.message)
            effect.to.encode()
        elif isinstance(effect, Reply | AnswerFromStore):
            api.encode(effect.answer)


def _witness_step(totals: Totals, core: Core, witness: Training) -> None:
    for source, body, arrays in witness.step():
        if isinstance(body, wire.Sequences | wire.StepClosed):
            body = msgspec.structs.replace(body, step=body.step + FIRST_STEP)
        _contained(totals, core.send, source, body, arrays)


def _contained(totals: Totals, call: Callable[..., T], *args: Any) -> T | None:
    """Return ``call(*args)``, contained as in the hub's thread; count what it raises by place."""
    try:
        return call(*args)
    except Exception as error:  # noqa: BLE001 - counting them is the purpose
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).stem}.{last.name}:{last.lineno}"
        if place not in totals.faults:
            traceback.print_exc()
        _add(totals.faults, place)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--round", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--core", action="store_true")
    options = parser.parse_args()
    totals = Totals(options.seed)
    if options.state and options.state.exists():
        totals = msgspec.json.decode(options.state.read_bytes(), type=Totals)
    end = totals.frames + options.frames
    while totals.frames < end:
        (attack_core if options.core else attack_hub)(totals, min(options.round, end - totals.frames))
        print(totals.line(), flush=True)
        if options.state:
            options.state.write_bytes(msgspec.json.encode(totals))
    sys.exit(1 if totals.ended or totals.blind or totals.mute else 0)


if __name__ == "__main__":
    main()
