"""Real engines inside their caller's process: switched between its steps, never held up, and freed with it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rltop.backend.api import TERMINAL
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import PROBE
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.vllm.control.command_executor import NO_STEP_IN_TIME, WAITS_FOR_CALLER
from tests.support import tiny_model
from tests.support.harness import HubStandIn, wait_for
from tests.support.in_process import InProcessEngine, Returned, copy_directly, drop, generate, load_directly
from tests.support.live_engine import ON_CPU
from tests.support.switchboard import ENGINE, fresh, prompt

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not ON_CPU, reason="boots engines for the CPU")]

PROMPTS = [prompt(number, 20 + number) for number in range(8)]
TOKENS = 32
LATER_S = 3600.0

SWITCHES = [
    (flag.name, value, strict)
    for flag in FLAGS
    for strict in ([False, True] if flag.strict else [False])
    for value in (*flag.values, flag.values[0])
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model.make(tmp_path_factory.mktemp("model"))[0])


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def engine(hub: HubStandIn, model: str) -> Iterator[InProcessEngine]:
    with InProcessEngine(model, hub.rundir, {"RLTOP_ENGINE": ENGINE}) as engine:
        yield engine


def updates_of(hub: HubStandIn, command: str) -> list[wire.CommandUpdate]:
    return [update for update in list(hub.updates) if update.id == command]


def end_of(hub: HubStandIn, command: str) -> wire.CommandUpdate | None:
    return next((update for update in updates_of(hub, command) if update.state in TERMINAL), None)


def ends_while_generating(
    hub: HubStandIn, engine: InProcessEngine, command: str
) -> tuple[wire.CommandUpdate, list[Returned]]:
    """How the command ended, and what its caller received until then."""
    received: list[Returned] = []

    def ended() -> wire.CommandUpdate | None:
        received.extend(engine.call(generate, PROMPTS))
        return end_of(hub, command)

    return wait_for(ended, f"{command} ends"), received


def check_arrived(hub: HubStandIn, received: list[Returned]) -> None:
    """Each completion arrived, with the caller's tokens and logprobs to the last bit of float32."""
    Found = dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]]  # noqa: N806 - a type

    def find() -> Found | None:
        found = {(tuple(prompt), tuple(tokens)): logprobs for _, prompt, tokens, logprobs in hub.rollouts().values()}
        return found if all((tuple(item.prompt), tuple(item.tokens)) in found for item in received) else None

    found = wait_for(find, "the rollouts")
    assert all(found[tuple(item.prompt), tuple(item.tokens)] == item.logprobs for item in received)


def test_every_flag_is_switched_while_the_caller_generates_and_its_outputs_stay_whole(
    engine: InProcessEngine, hub: HubStandIn
) -> None:
    for number, (flag, value, strict) in enumerate(SWITCHES):
        command = f"{flag}{number}"
        hub.command(ENGINE, flag, value, command, strict=strict)
        update, received = ends_while_generating(hub, engine, command)
        assert (update.state, update.new) == ("applied", value), update
        assert not update.lost_requests
        assert {len(item.tokens) for item in received} == {TOKENS}
        check_arrived(hub, received)
    assert {update.in_flight for update in hub.updates if update.lost_requests == 0} == {len(PROMPTS)}
    assert hub.health()[-1].faults == {}


def test_while_the_caller_does_other_work_a_command_waits_and_says_so(engine: InProcessEngine, hub: HubStandIn) -> None:
    hub.command(ENGINE, "prefix_caching", "off", "late", timeout=2.0)
    hub.command(ENGINE, "prefix_caching", "off", "waits")
    wait_for(lambda: end_of(hub, "late"), "the deadline passes")
    assert [(u.state, u.reason) for u in updates_of(hub, "late")] == [
        ("accepted", WAITS_FOR_CALLER), ("timed_out", NO_STEP_IN_TIME),
    ]  # fmt: skip
    assert [u.state for u in updates_of(hub, "waits")] == ["accepted"]
    check_arrived(hub, engine.call(generate, PROMPTS))
    assert wait_for(lambda: end_of(hub, "waits"), "the next step").state == "applied"
    assert fresh(hub).flags["prefix_caching"].value == "off"


def test_a_timer_that_ends_while_the_caller_does_other_work_reverts_before_its_next_step(
    engine: InProcessEngine, hub: HubStandIn
) -> None:
    deadline = time.time() + LATER_S
    hub.send(ENGINE, wire.Command("timed", "prefix_caching", "on", deadline, revert_s=0.5))
    assert ends_while_generating(hub, engine, "timed")[0].state == "applied"
    wait_for(lambda: updates_of(hub, "timed/revert"), "the timer ends")
    update, _ = ends_while_generating(hub, engine, "timed/revert")
    assert (update.state, update.new) == ("applied", "off")


def test_a_flush_is_executed_and_a_pause_refused(engine: InProcessEngine, hub: HubStandIn) -> None:
    hub.send(ENGINE, wire.Command("back", "prefix_caching", "on", time.time() + LATER_S))
    hub.send(ENGINE, wire.Command("flush", "", "", time.time() + LATER_S, "flush_cache"))
    hub.send(ENGINE, wire.Command("pause", "", "", time.time() + LATER_S, "pause"))
    assert ends_while_generating(hub, engine, "flush")[0].state == "applied"
    update = wait_for(lambda: end_of(hub, "pause"), "the answer")
    assert (update.state, "its caller would wait" in update.reason) == ("refused", True)


def test_probes_run_in_the_callers_steps_and_leave_no_request_behind(engine: InProcessEngine, hub: HubStandIn) -> None:
    def passages() -> tuple[wire.Passage, ...]:
        found = list(hub.rollouts().values())[-4:]
        import numpy as np

        return tuple(
            wire.Passage(rollout.request_id, np.array(prompt + tokens, "<i4").tobytes(), len(prompt))
            for rollout, prompt, tokens, _ in found
        )

    hub.send(ENGINE, wire.Command("digest", "", "", time.time() + LATER_S, PROBE, probe="weight-digest"))
    assert ends_while_generating(hub, engine, "digest")[0].state == "applied"
    rescore = wire.Command(
        "rescore", "", "", time.time() + LATER_S, PROBE, probe="prefill-rescore", passages=passages()
    )
    hub.send(ENGINE, rescore)
    update, received = ends_while_generating(hub, engine, "rescore")
    assert update.state == "applied", update
    check_arrived(hub, received)
    state = fresh(hub)
    assert (state.running, state.waiting) == (0, 0)
    assert hub.health()[-1].faults == {}


def test_weights_that_the_caller_changes_past_every_call_are_updates_of_its_engine(
    engine: InProcessEngine, hub: HubStandIn, model: str
) -> None:
    path = str(Path(model) / "model.safetensors")
    before = fresh(hub)
    expected = [(before.weight_updates + 1, 40, "stated"), (before.weight_updates + 2, 41, "inferred")]
    for version, wanted in zip((40, None), expected, strict=True):
        engine.call(load_directly, path, version)
        engine.call(generate, PROMPTS)
        state = fresh(hub)
        assert (state.weight_updates, state.policy_version, state.version_source) == wanted
        assert not state.update_open
    engine.call(copy_directly)
    engine.call(generate, PROMPTS)
    assert fresh(hub).weight_updates == before.weight_updates + 3
    assert "sampled within updates" not in fresh(hub).fingerprint


def test_the_engine_is_freed_when_its_caller_deletes_it(engine: InProcessEngine, hub: HubStandIn) -> None:
    assert engine.call(drop)
    wait_for(lambda: [bye for bye in hub.byes if bye.source == ENGINE], "the collector says goodbye")
    assert hub.health()[-1].faults == {}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def launched(hub: HubStandIn, model: str, **launch: int) -> Iterator[list[InProcessEngine]]:
    """Two ranks of an external launcher, as TRL's colocated engines are."""
    common = {"RLTOP_ENGINE": "colocated", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    engines = [
        InProcessEngine(
            model, hub.rundir, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            distributed_executor_backend="external_launcher", **launch,
        )
        for rank in range(2)
    ]  # fmt: skip
    with ExitStack() as stack:
        yield [stack.enter_context(engine) for engine in engines]


def test_replicas_of_an_external_launcher_are_engines_of_their_own(hub: HubStandIn, model: str) -> None:
    names = [f"colocated/dp{rank}" for rank in range(2)]
    with launched(hub, model) as engines:
        for name in names:
            hub.command(name, "prefix_caching", "off", f"off {name}")
        for engine, name in zip(engines, names, strict=True):
            update, received = ends_while_generating(hub, engine, f"off {name}")
            assert (update.engine, update.state) == (name, "applied")
            check_arrived(hub, received)


def test_ranks_that_share_a_model_are_reported_once_and_not_switched(hub: HubStandIn, model: str) -> None:
    before = len(hub.rollouts())
    with launched(hub, model, tensor_parallel_size=2) as engines:
        hub.command("colocated", "prefix_caching", "off", "off together")
        update = wait_for(lambda: end_of(hub, "off together"), "the answer")
        assert (update.state, "schedule in lockstep" in update.reason) == ("refused", True)
        for engine in engines:
            engine.start(generate, PROMPTS)
        received = [engine.wait() for engine in engines]
        assert [item.tokens for item in received[0]] == [item.tokens for item in received[1]]
    wait_for(lambda: [bye for bye in hub.byes if bye.source == "colocated"], "the collector says goodbye")
    check_arrived(hub, received[0])
    assert len(hub.rollouts()) == before + len(PROMPTS)
