"""The state machine of weight updates, and what ranks report to it: begin, end, count, version, failures."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors import weights_updated
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.patches import FAILED, Hook, InstalledPatches
from rltop.collectors.vllm.rollouts import weight_updates
from rltop.collectors.vllm.rollouts.stated_version import VARIABLE, version_in
from rltop.collectors.vllm.rollouts.tap import Tap
from rltop.collectors.vllm.rollouts.weight_updates import Moment, Part, State, WeightUpdates
from rltop.collectors.vllm.workers import rank_weights
from tests.support.engine_doubles import (
    EngineCore,
    Executor,
    Model,
    Outputs,
    Parameter,
    PauseState,
    Worker,
    output,
    request,
)

TENSORS = ["embed.weight", "q.weight", "k.weight", "v.weight", "norm.weight"]
"""What fills the double's model."""


class LoadingWorker(Worker):
    """A rank whose methods load weights, as the worker extensions of frameworks do, under names of their own."""

    def load_some(self, names: list[str], broken: str = "", after: Any = None) -> None:
        self.model_runner.model.load_weights([(name, None if name == broken else 1.0) for name in names])
        if after is not None:
            weights_updated(after)

    def swallow(self, names: list[str]) -> None:
        with contextlib.suppress(ValueError):
            self.load_some(names, names[-1])

    def raise_first(self) -> None:
        raise ValueError("nothing was touched")

    def replace(self) -> None:
        self.model_runner.model = deepcopy(self.model_runner.model)

    def copy(self, *names: str) -> None:
        for name in names:
            self.model_runner.model.parameters[name].copy_()

    def look(self) -> int:
        return len(self.model_runner.model.loads)

    def start_weight_update(self) -> None: ...

    start_draft_weight_update = finish_weight_update = start_weight_update

    def update_weights(self, update_info: Any = None) -> None: ...


class Core(EngineCore):
    """An engine core whose calls reach its workers."""

    def collective_rpc(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[Any]:
        workers = self.model_executor.workers
        return [getattr(worker, method)(*args, **(kwargs or {})) for worker in workers]


class Fleet:
    """One engine with a tap; ``steps`` runs the scheduler, ``rpc`` calls the workers."""

    def __init__(self, ranks: int = 1, *, in_caller: bool = False) -> None:
        self.engine = Core()
        if in_caller:
            del self.engine.input_queue
        self.engine.model_executor = Executor([LoadingWorker() for _ in range(ranks)])
        self.now = 0.0
        self.attach()

    def attach(self) -> None:
        scheduler = self.engine.scheduler
        self.changes = 0
        self.tap = Tap(self.engine, on_weights=self._changed, paused=lambda: scheduler.pause_state.name != "UNPAUSED")
        self.guard = ErrorBoundary()
        hooks: dict[str, Hook] = {
            "step": self.tap.on_step,
            "schedule": self.tap.on_schedule,
            "add": self.tap.on_add,
            "rpc": self.tap.on_rpc,
            "rpc" + FAILED: self.tap.on_rpc_failed,
            "pause": self.tap.on_pause,
        }
        self.patches = InstalledPatches(self.engine, hooks, self.guard)

    def detach(self) -> None:
        self.patches.undo()
        self.tap.close()

    def _changed(self) -> None:
        self.changes += 1

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.engine.scheduler.schedule()
            self.tap.step += 1

    def rpc(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return self.engine.collective_rpc(method, args=args, kwargs=kwargs)

    def pause(self, kind: PauseState = PauseState.PAUSED_ALL) -> None:
        self.engine.scheduler.set_pause_state(kind)

    def said(self) -> tuple[int, Any, bool]:
        updates = self.tap.updates
        return updates.count, updates.version, self.tap.update_open


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """A slow machine must not end an update between its parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_updates, "QUIET_S", 3600.0)
        yield


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    assert fleet.guard.faults == {}


# --- one update, however it is loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_call_of_any_name_that_loads_the_whole_model_is_one_update(ranks: int) -> None:
    fleet = Fleet(ranks)
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (1, (1, "inferred"), False)
    fleet.rpc("load_some", TENSORS)  # no step in between: all tensors came twice
    assert fleet.said() == (2, (2, "inferred"), False)
    assert fleet.changes == 2


def test_calls_that_load_nothing_are_no_updates(fleet: Fleet) -> None:
    assert fleet.rpc("look") == [0]
    with pytest.raises(ValueError, match="nothing was touched"):
        fleet.rpc("raise_first")
    fleet.step()
    assert fleet.said() == (0, None, False)
    assert fleet.tap.partial_update == ""


def test_one_call_per_tensor_is_one_update_and_open_until_the_last(fleet: Fleet) -> None:
    for number in range(1, 4):
        for name in TENSORS:
            assert not fleet.tap.update_open or name != TENSORS[0]
            fleet.rpc("load_some", [name])
            assert fleet.said() == (number, (number, "inferred"), name != TENSORS[-1])
        fleet.step()
    assert fleet.tap.updates.mixed == ""


def test_the_cost_of_a_call_does_not_grow_with_the_model(fleet: Fleet) -> None:
    """One call per tensor: only the call that completes the model looks at all its parameters."""
    model = fleet.engine.model_executor.workers[0].model_runner.model
    names = [f"layer{number}.weight" for number in range(200)]
    model.parameters.update({name: Parameter() for name in names})
    fleet.detach()
    fleet.attach()
    for number in (1, 2):
        walks = model.walks
        for name in [*TENSORS, *names[:-1]]:
            fleet.rpc("load_some", [name])
        assert model.walks == walks
        assert fleet.said() == (number, (number, "inferred"), True)
        fleet.rpc("load_some", names[-1:])
        assert fleet.said() == (number, (number, "inferred"), False)
        fleet.step()


def test_parameters_processed_between_the_parts_of_an_update_are_no_copies(fleet: Fleet) -> None:
    fleet.rpc("load_some", ["embed.weight"])
    fleet.rpc("load_some", ["q.weight", "k.weight"])
    fleet.engine.model_executor.workers[0].model_runner.model.parameters["embed.weight"].copy_()
    fleet.step()
    fleet.rpc("look")
    assert fleet.said() == (1, (1, "inferred"), True)
    fleet.rpc("load_some", ["v.weight", "norm.weight"])
    assert fleet.said() == (1, (1, "inferred"), False)
    fleet.step()
    fleet.rpc("copy", "norm.weight")
    assert fleet.said()[0] == 2


def test_tokens_sampled_between_the_parts_of_an_update_are_reported(fleet: Fleet) -> None:
    fleet.rpc("load_some", TENSORS[:2])
    fleet.step(3)
    fleet.rpc("load_some", TENSORS[2:])
    assert fleet.said() == (1, (1, "inferred"), False)
    assert fleet.tap.updates.mixed == "3 engine steps ran between the parts of update 1; 3 in all"
    fleet.step(2)
    fleet.rpc("load_some", TENSORS)
    assert fleet.said()[0] == 2
    assert fleet.tap.updates.mixed_steps == 3


def test_a_started_update_spans_its_parts_whatever_they_are_called(fleet: Fleet) -> None:
    fleet.rpc("start_weight_update")
    assert fleet.said() == (0, None, True)
    fleet.rpc("load_some", TENSORS[:3])
    fleet.step(2)
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (0, None, True)
    fleet.rpc("finish_weight_update")
    assert fleet.said() == (1, (1, "inferred"), False)
    assert "2 engine steps ran between the parts of update 1" in fleet.tap.updates.mixed


def test_a_draft_is_no_update_of_the_policy(fleet: Fleet) -> None:
    fleet.rpc("start_draft_weight_update")
    assert fleet.tap.update_open
    fleet.rpc("update_weights", update_info={"version": 4})
    fleet.rpc("finish_weight_update")
    assert fleet.said() == (0, None, False)
    fleet.rpc("update_weights")
    assert fleet.said() == (1, (1, "inferred"), False)


def test_another_model_in_the_runner_is_an_update_and_its_loads_are_seen(fleet: Fleet) -> None:
    fleet.rpc("replace")
    assert fleet.said() == (1, (1, "inferred"), False)
    fleet.step()
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (2, (2, "inferred"), False)


def test_a_pause_keeps_an_incomplete_update_open_until_generation_resumes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.pause()
    fleet.rpc("load_some", TENSORS[:1])
    later = time.monotonic() + 10 * weight_updates.QUIET_S
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert fleet.tap.update_open
    fleet.pause(PauseState.UNPAUSED)
    assert fleet.said() == (1, (1, "inferred"), False)


# --- no call ------------------------------------------------------------------------------------------------------


def in_process(fleet: Fleet) -> LoadingWorker:
    """The worker of an engine of one rank, which is in the engine's process in these tests."""
    (worker,) = fleet.engine.model_executor.workers
    assert isinstance(worker, LoadingWorker)
    return worker


def test_loads_past_every_call_are_one_update_at_the_next_step(fleet: Fleet) -> None:
    worker = in_process(fleet)
    for number in range(1, 4):
        for name in TENSORS:
            worker.load_some([name])
        fleet.step()
        assert fleet.said() == (number, (number, "inferred"), False)
        fleet.step(3)
    assert fleet.said()[0] == 3


def test_a_copy_of_the_model_loads_unseen_and_into_itself(fleet: Fleet) -> None:
    model = in_process(fleet).model_runner.model
    copy = deepcopy(model)
    copy.load_weights([(name, 1.0) for name in TENSORS])
    fleet.step()
    assert fleet.said() == (0, None, False)
    assert (model.loads, copy.loads) == ([], TENSORS)


def test_a_closed_collector_leaves_the_class_of_the_model_as_it_was() -> None:
    class Own(Model):
        pass

    fleet = Fleet()
    worker = in_process(fleet)
    worker.model_runner.model = Own(None, None)
    fleet.rpc("look")
    assert "load_weights" in vars(Own)
    fleet.tap.close()
    fleet.tap.close()  # the engine's end and the interpreter's may both call it
    assert "load_weights" not in vars(Own)


@pytest.mark.parametrize("copies_attributes", [True, False])
def test_a_wrapper_that_the_host_puts_around_ours_stays_when_the_collector_is_closed(copies_attributes: bool) -> None:
    class Own(Model):
        pass

    fleet = Fleet()
    model = in_process(fleet).model_runner.model = Own(None, None)
    fleet.rpc("look")
    inner, calls = vars(Own)["load_weights"], []

    def theirs(model: Any, weights: Any) -> Any:
        calls.append(model)
        return inner(model, weights)

    setattr(Own, "load_weights", functools.wraps(inner)(theirs) if copies_attributes else theirs)  # noqa: B010
    fleet.tap.close()
    model.load_weights([(name, 1.0) for name in TENSORS])
    assert (calls, model.loads) == ([model], TENSORS)
    fleet.attach()
    model.load_weights([(name, 1.0) for name in TENSORS])
    fleet.step()
    assert (calls, fleet.said()) == ([model, model], (1, (1, "inferred"), False))


def test_a_collector_that_attaches_after_another_sees_the_updates_from_then_on(fleet: Fleet) -> None:
    worker = in_process(fleet)
    for parts in ([TENSORS], [TENSORS[:2]], [TENSORS[:3], TENSORS[3:]]):
        fleet.detach()
        worker.load_some(TENSORS[:1])  # nobody counts it
        fleet.attach()
        for number in range(1, 4):
            for part in parts:
                worker.load_some(part)
            fleet.step()
            assert fleet.said()[:2] == (number, (number, "inferred"))
        assert fleet.tap.update_open == (parts == [TENSORS[:2]])


def test_workers_elsewhere_forget_what_an_earlier_collector_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_weights, "watch_here", lambda _answer: None)
    fleet = Fleet(ranks=2)
    fleet.step(100)
    fleet.rpc("load_some", TENSORS[:4])
    fleet.detach()
    fleet.attach()
    fleet.rpc("load_some", TENSORS[:4])
    assert fleet.said() == (1, (1, "inferred"), True)
    fleet.rpc("load_some", TENSORS[4:])
    assert fleet.said() == (1, (1, "inferred"), False)


def test_generators_of_weights_are_passed_on_one_by_one(fleet: Fleet) -> None:
    model = in_process(fleet).model_runner.model
    read = []

    def weights() -> Iterator[tuple[str, float]]:
        for name in TENSORS:
            read.append(name)
            yield name, 1.0
            assert model.loads == read

    assert model.load_weights(weights=weights()) == {"embed.weight", "qkv.weight", "norm.weight"}
    fleet.step()
    assert fleet.said() == (1, (1, "inferred"), False)


# --- copies into parameters ------------------------------------------------------------------------------------------

PARAMETERS = ["embed.weight", "qkv.weight", "norm.weight"]


def test_calls_that_copy_into_parameters_without_a_step_in_between_are_one_update(fleet: Fleet) -> None:
    for number in range(1, 4):
        for name in PARAMETERS:
            fleet.rpc("copy", name)
            assert fleet.said() == (number, (number, "inferred"), name != PARAMETERS[-1])
        fleet.rpc("look")
        fleet.step()


def test_parameters_that_are_processed_after_they_were_loaded_are_of_the_same_update(fleet: Fleet) -> None:
    for number in range(1, 3):
        for part in (TENSORS[:2], TENSORS[2:]):
            fleet.rpc("load_some", part)
            fleet.rpc("copy", "norm.weight")
        assert fleet.said() == (number, (number, "inferred"), False)
        fleet.step()


def test_an_engine_in_its_callers_process_sees_copies_when_it_gets_work() -> None:
    fleet = Fleet(in_caller=True)
    worker, scheduler = in_process(fleet), fleet.engine.scheduler
    worker.copy(*PARAMETERS)
    scheduler.add_request(request("a"))
    assert fleet.said() == (1, (1, "inferred"), False)
    fleet.step()
    worker.copy(*PARAMETERS)
    scheduler.add_request(request("b"))
    assert fleet.said()[0] == 1  # it has work: reading weights would wait for the device
    scheduler.requests.clear()
    scheduler.add_request(request("c"))
    assert fleet.said() == (2, (2, "inferred"), False)
    assert fleet.guard.faults == {}


# --- failures -----------------------------------------------------------------------------------------------------


def test_an_update_of_any_name_that_fails_tears_the_weights_until_the_next_whole_one(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="no value of norm"):
        fleet.rpc("load_some", TENSORS, "norm.weight")
    torn = "load_some failed at engine step 0 (ValueError: no value of norm.weight)"
    assert fleet.tap.partial_update == torn
    assert fleet.said() == (0, None, False)
    fleet.step()
    for name in TENSORS:
        assert fleet.tap.partial_update == torn
        fleet.rpc("load_some", [name])
    assert fleet.tap.partial_update == ""
    assert fleet.said() == (1, (1, "inferred"), False)


def test_a_load_that_a_worker_survives_after_an_error_tears_the_weights_as_well(fleet: Fleet) -> None:
    fleet.rpc("swallow", TENSORS)
    assert "swallow failed at engine step 0 (load_weights: ValueError" in fleet.tap.partial_update


@pytest.mark.parametrize("failed", range(2))
def test_a_call_that_loads_and_returns_false_on_a_rank_tears_the_weights(
    failed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(2)
    worker = fleet.engine.model_executor.workers[failed]
    monkeypatch.setattr(worker, "load_some", lambda names: (type(worker).load_some(worker, names), False)[1])
    assert False in fleet.rpc("load_some", TENSORS)
    assert "load_some failed at engine step 0 (it returned False)" in fleet.tap.partial_update
    assert fleet.said()[0] == 0
    monkeypatch.undo()
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (1, (1, "inferred"), False)
    assert fleet.tap.partial_update == ""


def test_the_retry_of_an_update_that_failed_between_its_calls_counts_once(fleet: Fleet) -> None:
    fleet.rpc("load_some", TENSORS[:2])
    with pytest.raises(ValueError, match="no value"):
        fleet.rpc("load_some", TENSORS[2:3], TENSORS[2])
    assert fleet.said() == (1, (1, "inferred"), False)
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (1, (1, "inferred"), False)
    assert fleet.tap.partial_update == ""


def test_ranks_that_return_earlier_answers_are_left_out() -> None:
    fleet = Fleet(2)
    executor: Any = fleet.engine.model_executor
    call, late = executor.collective_rpc, [[None]]

    def stale(method: Any, args: tuple[Any, ...] = ()) -> list[Any]:
        first, second = call(method, args)
        late.append([second])
        return [first, *late.pop(0)]

    executor.collective_rpc = stale
    for number in range(1, 4):
        fleet.rpc("load_some", TENSORS)
        fleet.rpc("look")
        assert fleet.said() == (number, (number, "inferred"), False)
        fleet.step()


# --- versions -----------------------------------------------------------------------------------------------------


def test_a_worker_states_the_version_that_it_loaded(fleet: Fleet) -> None:
    fleet.rpc("load_some", TENSORS, after="step-40")
    assert fleet.said() == (1, (40, "stated"), False)
    fleet.step()
    fleet.rpc("load_some", TENSORS)
    assert fleet.said() == (2, (41, "inferred"), False)  # nothing stated: a count, from the last statement


def test_the_callers_process_states_a_version_before_or_after_its_loads(fleet: Fleet) -> None:
    worker = in_process(fleet)
    worker.load_some(TENSORS)
    weights_updated(7)
    fleet.step()
    assert fleet.said() == (1, (7, "stated"), False)
    weights_updated(8)
    worker.load_some(TENSORS)
    fleet.step(2)
    assert fleet.said() == (2, (8, "stated"), False)
    worker.load_some(TENSORS)
    fleet.step()
    weights_updated(9)
    fleet.step()
    assert fleet.said() == (3, (9, "stated"), False)


def test_a_stated_version_without_a_load_that_was_seen_is_an_update(fleet: Fleet) -> None:
    for version in (3, 3, 5):
        weights_updated(version)
        fleet.step()
    assert fleet.said() == (2, (5, "stated"), False)


def test_a_version_stated_before_an_unseen_call_names_its_update(fleet: Fleet) -> None:
    weights_updated(3)
    fleet.step(0)
    fleet.rpc("load_some", TENSORS[:2])
    fleet.rpc("load_some", TENSORS[2:])
    assert fleet.said() == (1, (3, "stated"), False)


@pytest.mark.parametrize("version", [None, "", "default", object(), -1.5, float("nan"), "12" * 9, b"x", []])
def test_what_is_no_version_is_ignored(fleet: Fleet, version: Any) -> None:
    weights_updated(version)
    fleet.step()
    assert fleet.tap.updates.version in (None, (5, "stated"))


@pytest.mark.parametrize(
    ("named", "args", "kwargs", "version"),
    [
        ("", (), {"update_info": {"path": "x", "weight_version": "step-3"}}, 3),
        ("", (3,), {"step": 3}, None),
        ("global_steps", (), {"global_steps": 12}, 12),
        ("global_steps", ({"global_steps": 13},), {}, 13),
        ("global_steps", (), {"meta": {"global_steps": "v14"}}, 14),
        ("0", ("weights/step_15",), {}, 15),
        ("1", ("weights/step_15",), {}, None),
        ("global_steps", (), {"global_steps": None}, None),
        ("global_steps", None, None, None),
    ],
)
def test_the_argument_that_carries_the_version_can_be_named(
    named: str, args: Any, kwargs: Any, version: int | None
) -> None:
    assert version_in(args, kwargs, {VARIABLE: named}) == version


def test_batches_in_flight_at_an_update_keep_the_version_that_samples_them(fleet: Fleet) -> None:
    queue = fleet.engine.batch_queue
    assert queue is not None
    vars(fleet.engine.scheduler)["finished_req_ids"] = set()
    fleet.rpc("load_some", TENSORS)
    flying = [SimpleNamespace(total_num_scheduled_tokens=1) for _ in range(2)]
    queue.extend((object(), batch, object()) for batch in flying)
    fleet.step()
    fleet.rpc("load_some", TENSORS)
    queue.clear()
    for batch in (*flying, SimpleNamespace()):
        sampled = SimpleNamespace(req_ids=["a"], logprobs=None)
        fleet.tap.on_update({0: Outputs([output("a", [1])])}, batch, sampled)
    assert [record[-1] for record in fleet.tap.records] == [(1, "inferred")] * 2 + [(2, "inferred")]
    assert fleet.tap.in_flight == {}


@pytest.mark.parametrize("returns", [True, False], ids=["without-tokens", "discarded"])
def test_a_batch_in_flight_that_samples_nothing_leaves_its_version_to_no_later_batch(
    fleet: Fleet, *, returns: bool
) -> None:
    queue = fleet.engine.batch_queue
    assert queue is not None
    vars(fleet.engine.scheduler)["finished_req_ids"] = set()
    fleet.rpc("load_some", TENSORS)
    queue.append((object(), SimpleNamespace(total_num_scheduled_tokens=1), object()))
    fleet.rpc("load_some", TENSORS)
    _, batch, _ = queue.pop()
    if returns:
        fleet.tap.on_update({}, batch, SimpleNamespace(req_ids=["a"], logprobs=None))
    id_of_first = id(batch)
    del batch
    later = [SimpleNamespace() for _ in range(1000)]  # some would lie where the batch did, if it were freed
    assert id_of_first not in map(id, later) or returns
    for batch in later:
        fleet.tap.on_update({0: Outputs([output("a", [1])])}, batch, SimpleNamespace(req_ids=["a"], logprobs=None))
    assert {record[-1] for record in fleet.tap.records} == {(2, "inferred")}


# --- laws ---------------------------------------------------------------------------------------------------------

STYLES = ("whole", "parts", "started", "paused", "here", "copied")


@given(
    ranks=st.integers(1, 2),
    updates=st.lists(
        st.tuples(
            st.sampled_from(STYLES),
            st.lists(st.integers(1, len(TENSORS) - 1), max_size=3, unique=True).map(sorted),  # where parts are cut
            st.integers(0, 2),  # steps between the parts
            st.sampled_from(["", *TENSORS]),  # a first attempt fails at this tensor
            st.booleans(),  # the version is stated
            st.booleans(),  # an unrelated call comes in between
        ),
        max_size=6,
    ),
)
def test_updates_of_every_style_are_counted_once_named_and_open_between_their_parts(
    ranks: int, updates: list[tuple[str, list[int], int, str, bool, bool]]
) -> None:
    fleet = Fleet(ranks)
    mixed, version = 0, 0
    for count, (style, cuts, between, broken, states, unrelated) in enumerate(updates, 1):
        parts = [TENSORS[a:b] for a, b in zip([0, *cuts], [*cuts, len(TENSORS)], strict=True)]
        if style == "whole":
            parts = [TENSORS]
        if style == "here" and ranks > 1:
            style = "parts"  # only an engine of one rank has its worker in its own process
        if style == "here":
            worker, between = in_process(fleet), 0
        if style == "paused":
            fleet.pause()
            between = 0
        if broken:
            with pytest.raises(ValueError, match="no value"):
                fleet.rpc("load_some", TENSORS, broken)
            assert "load_some failed" in fleet.tap.partial_update
            assert not fleet.tap.update_open
        if style == "copied":
            parts, between = [PARAMETERS[:1], PARAMETERS[1:]], 0
        if style == "started":
            fleet.rpc("start_weight_update")
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            assert fleet.tap.update_open == (style == "started" or (number > 0 and (style != "here" or unrelated)))
            if style == "here":
                worker.load_some(part)
            elif style == "copied":
                fleet.rpc("copy", *part)
            else:
                fleet.rpc("load_some", part)
            if unrelated:
                fleet.rpc("look")
            if not last:
                fleet.step(between)
                mixed += between
        if style == "started":
            fleet.rpc("finish_weight_update")
        version += 1
        if states:
            weights_updated(version := version + 2)
        if style == "paused":
            fleet.pause(PauseState.UNPAUSED)
        fleet.step()
        assert not fleet.tap.update_open
        assert fleet.tap.updates.count == count
        assert fleet.tap.updates.version == (version, "stated" if states else "inferred")
        assert fleet.tap.partial_update == ""
        assert fleet.tap.updates.mixed_steps == mixed
    assert fleet.guard.faults == {}
    fleet.tap.close()


EVENTS = ("started", "draft", "loaded", "finished", "resumed", "failed", "abandoned", "stated")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.builds(Part, st.booleans(), st.booleans(), st.none() | st.integers(0, 9), st.booleans()),
            st.integers(0, 2),
            st.floats(0, 7200.0),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_any_order_of_events_keeps_the_invariants(events: list[tuple[str, Part, int, float, bool]]) -> None:
    updates = WeightUpdates()
    now = Moment(0, 0.0)
    for event, part, steps, seconds, paused in events:
        now = Moment(now.step + steps, now.seconds + seconds, paused)
        before = updates.count
        apply(updates, event, part, now)
        assert before <= updates.count <= before + 1
        assert event in ("loaded", "finished", "stated") or updates.count == before
        assert updates.count == 0 or updates.version is not None
        later = Moment(now.step, now.seconds + 2 * weight_updates.QUIET_S)
        assert updates.is_open(later) == (updates.state is State.STARTED)  # without a pause every other update ends
        assert (event == "failed") <= (not updates.is_open(now))
        assert not (event == "loaded" and part.whole) or updates.state is not State.LOADING
    updates.loaded(Part(alone=True), now) if updates.state is not State.STARTED else updates.finished(now)
    assert updates.torn(now) == "" or "draft" in {event for event, *_ in events}


def apply(updates: WeightUpdates, event: str, part: Part, now: Moment) -> None:
    if event in ("started", "draft"):
        updates.started(draft=event == "draft")
    elif event == "loaded":
        updates.loaded(part, now)
    elif event == "finished":
        updates.finished(now)
    elif event == "failed":
        updates.failed("it broke", part, now)
    elif event == "stated":
        updates.stated(part.version or 0, now)
    else:
        getattr(updates, event)()
