"""Roles, a forged hub and redaction on a real engine with requests in flight."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import redaction_key
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.redaction import DOMAIN, Redaction
from tests.support.harness import ME, PATIENT_S, HubStandIn, wait_for, wait_shown
from tests.support.live_engine import ENVIRONMENT, LiveEngine, result
from tests.support.receiver import run_directory

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]

ENGINE, FLAG = "e0", "prefix_caching"
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        redaction_key(found).create()
        yield found


@pytest.fixture(scope="module")
def engine(rundir: RunDir) -> Iterator[LiveEngine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(rundir.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        made = LiveEngine()
        yield made
        made.close()


def start_hub(rundir: RunDir) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=subprocess.DEVNULL)


def end(hub: subprocess.Popen[bytes]) -> None:
    hub.kill()
    hub.wait()


def value(client: Client) -> str | None:
    assert client.view is not None
    return client.view.engines[ENGINE].flags[FLAG].value


def is_live(client: Client) -> bool:
    return client.view is not None and ENGINE in client.view.engines and client.view.engines[ENGINE].health == "live"


def command_as_a_forged_hub(path: str) -> None:
    """A process with the sockets of the run; returns once the engine has refused it."""
    with HubStandIn(RunDir(Path(path))) as forged:
        wait_for(lambda: forged.knows(ENGINE), "the engine registers")
        command = wire.Command("f1", FLAG, "off", time.time() + PATIENT_S)
        for message in (wire.Welcome("forged"), command, wire.Proven("forged", wire.encode(command), bytes(32))):
            forged.send(ENGINE, message)
        assert forged.closed("f1").state == "refused"
        wait_for(forged.states, "the engine reports")
        assert forged.states()[-1].flags[FLAG].value == "on"


def test_a_real_engine_obeys_the_hub_of_its_run_on_behalf_of_a_controller_only(
    rundir: RunDir, engine: LiveEngine
) -> None:
    hub = start_hub(rundir)
    try:
        running = [engine.generate(f"r{n}", [3, 5 + n, 7], 100, seed=n) for n in range(8)]
        with Client(rundir) as client:
            wait_shown(client, is_live)
            client._questions.send(api.encode(api.AskSet("unproven", FLAG, "off")))
            wait_shown(client, lambda c: "unproven" in c.answers)
            assert "control key" in (client.answers["unproven"].error or "")
            (change,) = client.command(api.AskSet(api.new_id(), FLAG, "off", timeout_s=PATIENT_S))
            assert (change.state, change.who) == ("applied", ME), change
            wait_shown(client, lambda c: value(c) == "off")
            (back,) = client.command(api.AskSet(api.new_id(), FLAG, "on", timeout_s=PATIENT_S))
            assert back.state == "applied", back
            wait_shown(client, lambda c: value(c) == "on")
        assert all(result(work) for work in running)
    finally:
        end(hub)
    forged = SPAWN.Process(target=command_as_a_forged_hub, args=(str(rundir.path),))
    forged.start()
    wait_for(lambda: forged.exitcode is not None, "the engine refuses the forged hub")
    assert forged.exitcode == 0
    hub = start_hub(rundir)
    try:
        with Client(rundir) as client:
            wait_shown(client, lambda c: c.view and any("not from its hub" in event.text for event in c.view.events))
            wait_shown(client, is_live)
            assert value(client) == "on"
            (change,) = client.command(api.AskSet(api.new_id(), FLAG, "off", timeout_s=PATIENT_S))
            assert change.state == "applied", change
    finally:
        end(hub)


def test_a_real_engine_of_a_redacted_run_sends_pseudonyms(rundir: RunDir, engine: LiveEngine) -> None:
    with HubStandIn(rundir) as stand_in:
        output = result(engine.generate("redacted", [3, 5, 7], 20, seed=1))
        found = wait_for(
            lambda: next((r for name, r in stand_in.rollouts().items() if name.startswith("redacted")), None),
            "the rollout arrives",
        )
    _, prompt, tokens, _ = found
    assert min(prompt + tokens) >= DOMAIN
    redaction = Redaction(redaction_key(rundir).read())
    assert redaction.ids(np.array(prompt, "<i4")).tolist() == [3, 5, 7]
    assert redaction.ids(np.array(tokens, "<i4")).tolist() == list(output.outputs[0].token_ids)
