"""Rollouts are published completely or not at all, each token with its logprob, version and flag epoch."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.wire import VersionRun
from rltop.collectors.vllm.rollouts.assembly import Assembler
from rltop.collectors.vllm.rollouts.request import REQUEST_BYTES, STOP_OR_ABORT, FinishedRollout, sampling_of
from rltop.collectors.vllm.rollouts.tap import Tap, version_of
from rltop.collectors.vllm.rollouts.weight_updates import PolicyVersion
from rltop.collectors.vllm.weight_journal import label_version
from tests.support.engine_doubles import EngineCore, Outputs, output, request, runner_output


class Bench:
    """A tap and an assembler, with the engine's calls by short names."""

    by_rows = False

    def __init__(self, backlog_limit: int = 1 << 16, alive_limit: int = 1 << 28) -> None:
        self.engine = EngineCore()
        self.engine.scheduler.finished_req_ids = set()
        self.tap = Tap(self.engine, backlog_limit)
        assert self.tap.reads_batches
        self.tap.reads_batches = self.by_rows
        self.assembler = Assembler(alive_limit)
        self.steps = 0

    def add(self, *names: str, **params: Any) -> None:
        for name in names:
            added = request(name, **params)
            self.engine.scheduler.requests[name] = added
            self.tap.on_add(None, added)

    def schedule(self, *names: str) -> None:
        """For the first time, but for those that were preempted."""
        scheduler = self.engine.scheduler
        new = [SimpleNamespace(req_id=name) for name in names]
        ended, scheduler.finished_req_ids = scheduler.finished_req_ids, set()
        self.tap.on_schedule(
            SimpleNamespace(scheduled_new_reqs=new, total_num_scheduled_tokens=1, finished_req_ids=ended)
        )

    def step(self, *items: Any, label: str | None = None) -> None:
        self.steps += 1
        scheduler = self.engine.scheduler
        for item in items:
            if item.request_id in scheduler.requests:
                scheduler.requests[item.request_id].output_token_ids += item.new_token_ids
            if item.finish_reason is not None:
                self.end(item.request_id)
        result = {0: Outputs(list(items), label)}
        if not self.by_rows:
            self.tap.on_step((result, True))
            return
        self.engine._weight_version = label  # type: ignore[assignment] # None before vLLM had one
        self.tap.arrays_unreadable = any(len(item.new_token_ids) > 1 for item in items)  # then the rows don't fit
        self.tap.array_types = None if self.tap.arrays_unreadable else self.tap.array_types
        idle = ["idle"] if self.steps % 3 == 0 else []  # some step takes no token of a row
        self.tap.on_update(result, None, runner_output(list(items), idle))
        scheduler.finished_req_ids.clear()

    def fault(self) -> None:
        if self.by_rows:
            self.tap.on_update({0: None}, None, None)
        else:
            self.tap.on_step(({0: None}, True))

    def end(self, name: str) -> None:
        self.engine.scheduler.finished_req_ids.add(name)
        self.engine.scheduler.requests.pop(name, None)

    def abort(self, *names: str) -> None:
        for name in names:
            self.end(name)
        self.tap.on_finish([request(name) for name in names], names, "FINISHED_ABORTED")

    def drain(self) -> dict[str, FinishedRollout]:
        while self.tap.records:
            record = self.tap.records.popleft()
            self.assembler.apply(record)
            self.tap.processed += record[1]
        self.assembler.flush()
        self.assembler.count_dropped(self.tap.dropped_requests)
        self.tap.dropped_requests = 0
        assert self.conserved()
        return {found.rollout.request_id: found for found in self.assembler.pop_finished()}

    def conserved(self) -> bool:
        a = self.assembler
        return a.added == a.published + a.dropped + a.alive


@pytest.fixture(params=[False, True], ids=["outputs", "batches"], scope="module", autouse=True)
def _read_from(request: pytest.FixtureRequest) -> None:
    """Every law here holds whichever way tokens are read."""
    Bench.by_rows = request.param


def test_tokens_logprobs_versions_and_epochs_are_per_token() -> None:
    bench = Bench()
    bench.add("a", temperature=0.7, top_p=0.9, seed=4)
    bench.schedule("a")
    bench.step(output("a", [11], cached=2), label="default")
    bench.step(output("a", [12, 13]), label="default")
    bench.tap.flag_epoch = 1
    bench.step(output("a", [14]), label="v3")
    bench.step(output("a", [15], finish="stop"), label="v3")
    found = bench.drain()["a"]
    assert found.prompt_ids.tolist() == [1, 2, 3]
    assert found.token_ids.tolist() == [11, 12, 13, 14, 15]
    assert found.logprobs.tolist() == [-token / 8 for token in [11, 12, 13, 14, 15]]
    assert found.logprobs.dtype == np.float32
    rollout = found.rollout
    assert rollout.runs == [VersionRun(0, 0, None), VersionRun(3, 1, 3)]
    assert (rollout.version_source, rollout.finish_reason, rollout.cached_tokens) == ("engine", "stop", 2)
    assert rollout.sampling == {"temperature": 0.7, "top_p": 0.9, "seed": 4.0}


def test_latencies_and_preemptions_are_counted_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 102.0  # two seconds after the requests arrived
    monkeypatch.setattr("rltop.collectors.vllm.rollouts.tap.time.time", lambda: now)
    bench = Bench()
    bench.add("a", "b")
    for one in bench.engine.scheduler.requests.values():
        one.num_preemptions = 0
    bench.schedule("a", "b")
    bench.step(output("a", [1]), output("b", [2]))
    now = 103.0
    bench.step(output("a", [3]), output("b", [4]))
    bench.engine.scheduler.requests["a"].num_preemptions += 2
    now = 106.0
    bench.step(output("a", [5], finish="stop"), output("b", [6]))
    unfinished = bench.engine.scheduler.requests["b"]
    bench.drain()
    assembler = bench.assembler
    assert (assembler.first_token_s, assembler.first_tokens) == (4.0, 2)
    assert (assembler.token_gap_s, assembler.token_gaps) == (4.0, 2)
    assert assembler.preemptions() == 2
    unfinished.num_preemptions += 1
    assert assembler.preemptions() == 3


@pytest.mark.parametrize(
    ("stop", "by_id", "tokens", "reason"),
    [
        (["</answer>"], True, 1, STOP_OR_ABORT),
        (["</answer>"], True, 0, "abort"),
        (["</answer>"], False, 1, "abort"),
        ([], True, 1, "abort"),
        (None, True, 1, "abort"),
    ],
)
def test_the_end_of_a_request_with_stop_strings_by_its_front_end_is_no_abort(
    stop: list[str] | None, by_id: bool, tokens: int, reason: str
) -> None:
    """The front end finds the string, and ends the request as it ends an aborted one; a pause aborts all requests."""
    bench = Bench()
    bench.add("a", stop=stop)
    for token in range(tokens):
        bench.step(output("a", [token]))
    bench.end("a")
    bench.tap.on_finish([request("a")], ["a"] if by_id else None, "FINISHED_ABORTED")
    assert bench.drain()["a"].rollout.finish_reason == reason
    assert (bench.assembler.aborted, bench.assembler.finished_count) == ((1, 0) if reason == "abort" else (0, 1))


def test_a_request_aborted_before_its_first_token_is_published_empty() -> None:
    bench = Bench()
    bench.add("a", "b")
    bench.step(output("b", [7]))
    bench.abort("a", "b")
    found = bench.drain()
    assert (found["a"].rollout.size, found["a"].rollout.runs, found["a"].rollout.cached_tokens) == (0, [], None)
    assert found["a"].token_ids.size == found["a"].logprobs.size == 0
    assert (found["b"].rollout.finish_reason, found["b"].token_ids.tolist()) == ("abort", [7])
    assert bench.assembler.aborted == 2


def test_outputs_after_the_end_of_a_request_are_ignored() -> None:
    bench = Bench()
    bench.add("a")
    bench.abort("a")
    bench.step(output("a", [], finish="error"))
    assert list(bench.drain()) == ["a"]
    assert not bench.drain()


def test_requests_without_logprobs_are_counted_and_their_logprobs_are_nan() -> None:
    bench = Bench()
    bench.add("a", logprobs=None)
    for item in (output("a", [5]), output("a", [6], finish="length")):
        item.new_logprobs = None
        bench.step(item)
    found = bench.drain()["a"]
    assert not found.rollout.has_logprobs
    assert found.token_ids.tolist() == [5, 6]
    assert all(math.isnan(value) for value in found.logprobs)
    assert bench.assembler.without_logprobs == 1


def test_a_logprob_of_another_token_is_recorded_as_nan() -> None:
    bench = Bench()
    bench.add("a")
    several, last = output("a", [5, 6]), output("a", [7], finish="length")
    several.new_token_ids = [5, 9]
    last.new_token_ids = [8]
    bench.step(several)
    bench.step(output("a", [4]))
    bench.step(last)
    found = bench.drain()["a"]
    assert found.token_ids.tolist() == [5, 9, 4, 8]
    assert found.logprobs[[0, 2]].tolist() == [-5 / 8, -4 / 8]
    assert np.isnan(found.logprobs[[1, 3]]).all()
    assert bench.assembler.misplaced == 2


def test_pooling_requests_and_sessions_are_not_rollouts() -> None:
    bench = Bench()
    pooling, session = request("p"), request("s")
    pooling.sampling_params = None
    session.resumable = True
    bench.tap.on_add(None, pooling)
    bench.tap.on_add(None, session)
    bench.step(output("s", [1], finish="stop"))
    assert not bench.drain()
    assert bench.assembler.added == 0


def test_the_first_scheduling_sets_time_step_and_cache_lookup() -> None:
    bench = Bench()
    bench.add("a", "b")
    bench.schedule("a")
    bench.step(output("a", [1]))
    bench.engine.scheduler.kv_cache_manager.enable_caching = False
    bench.schedule("a", "b")  # "a" was preempted and comes again
    bench.step(output("a", [2], finish="stop"), output("b", [3], finish="stop"))
    found = bench.drain()
    assert (found["a"].rollout.lookup_off, found["a"].rollout.first_step) == (False, 0)
    assert (found["b"].rollout.lookup_off, found["b"].rollout.first_step) == (True, 1)


def test_a_rollout_contains_the_engine_start_and_the_last_weight_update() -> None:
    bench = Bench()
    bench.assembler = Assembler(started=bench.tap.started)
    for name in "ab":
        bench.add(name)
        bench.schedule(name)
        bench.tap.on_rpc(None, "reload_weights")
        bench.step(output(name, [1], finish="stop"))
    a, b = (found.rollout for found in bench.drain().values())
    assert a.started == b.started == bench.tap.started <= a.scheduled
    assert a.updated == 0.0
    assert a.scheduled <= b.updated <= b.scheduled


def test_versions_are_inferred_from_update_calls_without_a_label() -> None:
    bench = Bench()
    bench.add("a")
    bench.step(output("a", [1]))
    bench.tap.on_rpc(None, "start_weight_update")
    assert bench.tap.update_open
    bench.tap.on_rpc(None, "update_weights", kwargs={"update_info": {"path": "x"}})
    bench.tap.on_rpc(None, "finish_weight_update")
    assert (bench.tap.update_open, bench.tap.updates.count) == (False, 1)
    bench.step(output("a", [2]))
    bench.tap.on_rpc(None, "update_weights", kwargs={"update_info": {"version": 9}})  # no start: whole by itself
    bench.step(output("a", [3], finish="stop"))
    rollout = bench.drain()["a"].rollout
    assert rollout.runs == [VersionRun(0, 0, None), VersionRun(1, 0, 1), VersionRun(2, 0, 9)]
    assert rollout.version_source == "stated"


def test_a_dropped_step_drops_the_requests_it_may_affect_and_no_later_one() -> None:
    bench = Bench(backlog_limit=4)
    bench.add("a", "b")
    bench.step(output("a", [1]), output("b", [1]))
    bench.step(output("a", [2]), output("b", [2]))  # finds the queue full
    bench.add("lost")
    assert (bench.tap.dropped_records, bench.tap.dropped_requests) == (2, 1)
    assert not bench.drain()
    bench.step(output("a", [3], finish="stop"), output("b", [3], finish="stop"), output("lost", [1], finish="stop"))
    assert not bench.drain()
    bench.add("c")
    bench.step(output("c", [4], finish="stop"))
    assert list(bench.drain()) == ["c"]
    assert (bench.assembler.added, bench.assembler.published, bench.assembler.dropped) == (4, 1, 3)


def test_a_fault_inside_the_step_hook_is_a_gap() -> None:
    bench = Bench()
    bench.add("a")
    bench.step(output("a", [1]))
    with pytest.raises(AttributeError):
        bench.fault()
    bench.step(output("a", [3], finish="stop"))
    assert not bench.drain()
    assert bench.assembler.dropped == 1


def test_a_request_that_exceeds_the_bound_is_dropped_completely() -> None:
    bench = Bench(alive_limit=REQUEST_BYTES + 100)
    bench.add("a")
    for token in range(30):
        bench.step(output("a", [token]))
        assert not bench.drain()
    bench.step(output("a", [1], finish="stop"))
    assert not bench.drain()
    assert (bench.assembler.dropped, bench.assembler.alive) == (1, 0)


def test_waiting_requests_stay_within_the_bound() -> None:
    bench = Bench(alive_limit=10 * REQUEST_BYTES)
    bench.add(*(f"r{number}" for number in range(1000)))
    assert not bench.drain()
    assert bench.assembler.alive <= 11
    bench.abort(*(f"r{number}" for number in range(1000)))
    assert len(bench.drain()) == bench.assembler.published == 1000 - bench.assembler.dropped
    bench.add("later")
    bench.step(output("later", [1], finish="stop"))
    assert list(bench.drain()) == ["later"]


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Interleaved events of up to 6 requests: step with so many tokens, finish, abort; and a drain now and then."""
    return draw(
        st.lists(
            st.tuples(st.sampled_from(["add", "step", "finish", "abort", "drain", "epoch"]), st.integers(0, 5)),
            max_size=60,
        )
    )


@given(lives(), st.integers(1, 40))
def test_every_published_rollout_equals_the_outputs_of_the_engine(events: list[tuple[str, int]], limit: int) -> None:
    bench = Bench(backlog_limit=limit)
    truth: dict[str, list[tuple[int, int]]] = {}
    started: dict[int, str] = {}
    published: dict[str, FinishedRollout] = {}
    seen = 0
    for number, (event, who) in enumerate(events):
        name = started.get(who)
        if event == "drain":
            published |= bench.drain()
        elif event == "epoch":
            bench.tap.flag_epoch += 1
        elif event == "add" and name is None:
            started[who] = f"r{number}"
            truth[f"r{number}"] = []
            bench.add(f"r{number}")
            seen += 1
        elif event in ("step", "finish") and name is not None:
            truth[name].append((number, bench.tap.flag_epoch))
            bench.step(output(name, [number], finish="stop" if event == "finish" else None))
            if event == "finish":
                del started[who]
        elif event == "abort" and name is not None:
            bench.abort(name)
            del started[who]
    published |= bench.drain()
    bench.assembler.check_gap(bench.tap.dropped_records)
    for name, found in published.items():
        assert found.token_ids.tolist() == [token for token, _ in truth[name]]
        assert found.logprobs.tolist() == [-token / 8 for token, _ in truth[name]]
        runs = found.rollout.runs
        epochs = [run.flag_epoch for t in range(found.rollout.size) for run in [r for r in runs if r.start <= t][-1:]]
        assert epochs == [epoch for _, epoch in truth[name]]
    assert bench.assembler.added == seen
    assert bench.conserved()
    if not bench.tap.dropped_records:
        assert set(published) == set(truth) - set(started.values())


@given(st.text(alphabet="abc-_.", max_size=5), st.integers(0, 999_999))
def test_a_label_is_read_by_its_trailing_digits(prefix: str, version: int) -> None:
    assert label_version(f"{prefix}{version}") == version
    assert label_version(f"{version}{prefix}x") is None


def test_a_label_without_digits_gives_no_version() -> None:
    assert [label_version(label) for label in (None, "", "default")] == [None] * 3
    assert version_of("default", None) == (None, "unknown")
    assert version_of("default", PolicyVersion(3, "inferred")) == (3, "inferred")
    assert version_of("7", PolicyVersion(3, "stated")) == (7, "engine")


def test_sampling_parameters_without_effect_are_omitted() -> None:
    assert sampling_of(request("a", top_k=0, min_p=0.0, repetition_penalty=1.1).sampling_params) == {
        "temperature": 1.0,
        "repetition_penalty": 1.1,
    }
