"""Reading many steps together gives the same as reading each; a step that can't be read is a gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.wire import VersionRun
from rltop.collectors.vllm.rollouts.assembly import BUFFERED_OUTPUTS, Assembler
from rltop.collectors.vllm.rollouts.columns import read_outputs
from rltop.collectors.vllm.rollouts.request import FinishedRollout
from rltop.collectors.vllm.rollouts.tap import Record, RequestAdded, RequestsEnded, SampledTokens, StepOutputs, Tap
from tests.support.engine_doubles import EngineCore, LogprobsLists, Output, Outputs, output, request


def recorded(tokens: list[int], told: list[int], width: int, *, contiguous: bool = True) -> LogprobsLists:
    """Logprobs -t/8 of the tokens, in column 0 of ``width``, with the token ids ``told``."""
    ids, logprobs = np.full((len(tokens), width), -1, np.int32), np.full((len(tokens), width), 9.0, np.float32)
    ids[:, 0], logprobs[:, 0] = told, np.array(tokens, np.float32) / -8
    if contiguous:
        return LogprobsLists(ids, logprobs)
    wide_ids, wide_logprobs = np.full((len(tokens), width + 3), -2, np.int32), np.zeros((len(tokens), width + 3), "f4")
    wide_ids[:, :width], wide_logprobs[:, :width] = ids, logprobs
    return LogprobsLists(wide_ids[:, :width], wide_logprobs[:, :width])


@dataclass
class Case:
    """Records and the expected rollouts: per request and token its id, logprob (None: NaN), epoch and version."""

    records: list[Record]
    truth: dict[str, list[tuple[int, float | None, int, int | None]]]
    misplaced: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Steps of up to 5 requests, 0 to 3 tokens each, of changing layouts, versions and flag epochs; all end."""
    names = [f"r{i}" for i in range(draw(st.integers(1, 5)))]
    with_logprobs = {name: draw(st.booleans()) for name in names}
    records: list[Record] = [RequestAdded(0, 1, request(name), 0.0) for name in names]
    case = Case(records, {name: [] for name in names}, 0)
    running, epoch, label = list(names), 0, None
    for number in range(draw(st.integers(0, 12))):
        epoch += draw(st.integers(0, 5)) == 5
        label = draw(st.sampled_from([label, label, label, "default", "v7"]))
        width, contiguous = draw(st.sampled_from([1, 1, 3])), draw(st.booleans())
        outputs = []
        for name in draw(st.permutations(running)):
            tokens = draw(st.lists(st.integers(0, 9), max_size=3))
            astray = [draw(st.integers(0, 8)) == 8 for _ in tokens]
            told = [token + wrong for token, wrong in zip(tokens, astray, strict=True)]
            lists = recorded(tokens, told, width, contiguous=contiguous) if with_logprobs[name] else None
            version = 7 if label == "v7" else None
            for token, wrong in zip(tokens, astray, strict=True):
                known = with_logprobs[name] and not wrong
                case.truth[name].append((token, -token / 8 if known else None, epoch, version))
                case.misplaced += with_logprobs[name] and wrong
            ended = draw(st.integers(0, 6)) == 6
            outputs.append(Output(name, tokens, lists, "stop" if ended else None))
        running = [o.request_id for o in outputs if o.finish_reason is None]
        case.records.append(StepOutputs(0, len(outputs), {0: Outputs(outputs, label)}, float(number), epoch, None))
    case.records.append(RequestsEnded(0, len(running), [(name, "abort") for name in running], 99.0))
    return case


@given(cases(), st.integers(1, 20))
def test_reading_any_number_of_steps_together_gives_the_same_rollouts(case: Case, together: int) -> None:
    assembler = Assembler()
    for number, record in enumerate(case.records):
        assembler.apply(record)
        if number % together == 0:
            assembler.flush()
    assembler.flush()
    found = {finished.rollout.request_id: finished for finished in assembler.pop_finished()}
    assert found.keys() == case.truth.keys()
    for name, truth in case.truth.items():
        assert tokens_of(found[name]) == truth
    assert (assembler.misplaced, assembler.dropped, assembler.alive) == (case.misplaced, 0, 0)
    assert assembler.generated_tokens == sum(map(len, case.truth.values()))


class Batches:
    """An engine of single tokens a step, and the truth about every request: see ``Case``."""

    def __init__(self, with_logprobs: dict[str, bool]) -> None:
        self.engine = EngineCore()
        self.scheduler = self.engine.scheduler
        self.scheduler.finished_req_ids = set()
        self.tap = Tap(self.engine)
        self.with_logprobs = with_logprobs
        self.truth: dict[str, list[tuple[int, float | None, int, int | None]]] = {name: [] for name in with_logprobs}
        self.firsts: dict[str, int] = {}
        self.misplaced = 0
        self.running = list(with_logprobs)
        for name in with_logprobs:
            added = request(name, logprobs=0 if with_logprobs[name] else None)
            self.scheduler.requests[name] = added
            self.tap.on_add(None, added)
        self.schedule(self.running)

    def schedule(self, new: list[str]) -> None:
        ended, self.scheduler.finished_req_ids = self.scheduler.finished_req_ids, set()
        reqs = [SimpleNamespace(req_id=name) for name in new]
        self.tap.on_schedule(
            SimpleNamespace(scheduled_new_reqs=reqs, total_num_scheduled_tokens=1, finished_req_ids=ended)
        )

    def step(self, draw: Any, number: int) -> None:
        """Some requests are in the batch, some of these take their token, some end with it or with an error."""
        tap, width = self.tap, draw(st.sampled_from([1, 1, 3]))
        self.schedule([])
        label = self.engine._weight_version = draw(st.sampled_from(["default", "default", "v7"]))
        tap.flag_epoch += draw(st.integers(0, 5)) == 5
        ids = [name for name in draw(st.permutations(self.running)) if draw(st.integers(0, 4))]
        tokens = np.array([draw(st.integers(0, 9)) for _ in ids], np.int32)
        told = tokens + np.array([draw(st.integers(0, 8)) == 8 for _ in ids], np.int32)
        outputs, ends = [], []
        for name, token, of in zip(ids, tokens.tolist(), told.tolist(), strict=True):
            if not draw(st.integers(0, 4)):
                continue  # a prompt that isn't through, or a token that was sampled in vain
            known = self.with_logprobs[name]
            self.truth[name].append(
                (token, -token / 8 if known and of == token else None, tap.flag_epoch, 7 if label == "v7" else None)
            )
            self.misplaced += known and of != token
            self.scheduler.requests[name].output_token_ids.append(token)
            ended = draw(st.integers(0, 6)) == 6
            stats = None
            if name not in self.firsts:
                stats = SimpleNamespace(num_cached_tokens=self.firsts.setdefault(name, number))
            outputs.append(Output(name, [token], None, "stop" if ended else None, stats))
            ends += [name] if ended else []
        for name in [name for name in self.running if name not in [o.request_id for o in outputs]]:
            if not draw(st.integers(0, 9)):
                outputs.append(Output(name, [], None, "error"))
                ends.append(name)
        self.running = [name for name in self.running if name not in ends]
        self.scheduler.finished_req_ids.update(ends)
        lists = recorded(tokens.tolist(), told.tolist(), width, contiguous=draw(st.booleans()))
        logprobs = lists if any(self.with_logprobs[name] for name in ids) else None
        clients = {0: Outputs(outputs[::2]), 1: Outputs(outputs[1::2])}  # vLLM orders them by client
        tap.on_update(clients, None, SimpleNamespace(req_ids=ids, logprobs=logprobs))
        if draw(st.integers(0, 9)) == 9 and self.running:
            name = self.running.pop()
            self.scheduler.finished_req_ids.add(name)
            tap.on_finish([request(name)], [name], "FINISHED_ABORTED")
        if draw(st.integers(0, 3)) == 3:
            self.schedule(self.running[:1])  # it was preempted, and is listed as new again


@given(st.data(), st.integers(1, 20))
def test_batches_give_the_tokens_that_the_engine_accepted(data: st.DataObject, together: int) -> None:
    names = [f"r{i}" for i in range(data.draw(st.integers(1, 5)))]
    engine = Batches({name: data.draw(st.booleans()) for name in names})
    for number in range(data.draw(st.integers(0, 12))):
        engine.step(data.draw, number)
    engine.tap.on_finish([request(name) for name in engine.running], engine.running, "FINISHED_ABORTED")
    assembler = Assembler()
    assert not any(isinstance(record, StepOutputs) for record in engine.tap.records)
    for number, record in enumerate(engine.tap.records):
        assembler.apply(record)
        if number % together == 0:
            assembler.flush()
    assembler.flush()
    found = {finished.rollout.request_id: finished for finished in assembler.pop_finished()}
    assert found.keys() == engine.truth.keys()
    for name, truth in engine.truth.items():
        assert tokens_of(found[name]) == truth
        assert found[name].rollout.cached_tokens == engine.firsts.get(name)
        assert found[name].rollout.has_logprobs == engine.with_logprobs[name]
    assert (assembler.misplaced, assembler.dropped, assembler.alive) == (engine.misplaced, 0, 0)
    assert assembler.generated_tokens == sum(map(len, engine.truth.values()))


def sampled(ids: list[str], taken: list[str], ended: list[Output], time: float = 0.0) -> SampledTokens:
    told, logprobs = recorded([1] * len(ids), [1] * len(ids), 1)
    rows = told.tobytes(), logprobs.tobytes(), (told.dtype, logprobs.dtype)
    return SampledTokens(0, len(taken), ids, taken, ended, time, *rows, 0, None, None)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_request_with_another_number_of_tokens_than_rows_is_dropped(rows: int) -> None:
    odd, even = request("odd"), request("even")
    odd.output_token_ids, even.output_token_ids = [1, 1], [1] * rows
    last = [Output(name, [1], None, "stop") for name in ("odd", "even")]
    steps = [sampled(["odd", "even"], ["odd", "even"], last if k == rows - 1 else []) for k in range(rows)]
    assembler = fed(RequestAdded(0, 1, odd, 0.0), RequestAdded(0, 1, even, 0.0), *steps)
    assert [f.rollout.request_id for f in assembler.pop_finished()] == ["even"]
    assert (assembler.unmatched, assembler.dropped, assembler.alive) == (1, 1, 0)


def test_a_token_without_a_row_is_a_gap() -> None:
    assembler = Assembler()
    for name in "ab":
        assembler.apply(added(name))
    assembler.apply(sampled(["a"], ["a", "b"], []))
    with pytest.raises(ValueError, match="have a row"):
        assembler.flush()
    assembler.drop_alive()
    assert (assembler.dropped, assembler.alive) == (2, 0)


def test_without_one_row_per_request_outputs_are_read_instead() -> None:
    engine = Batches({"a": True, "b": True})
    assembler = Assembler()
    for name in "ab":
        item = output(name, [5, 6], finish="stop")
        engine.scheduler.requests[name].output_token_ids += [5, 6]
        engine.scheduler.finished_req_ids.add(name)
        engine.tap.on_update({0: Outputs([item])}, None, SimpleNamespace(req_ids=[name], logprobs=item.new_logprobs))
        assert engine.tap.arrays_unreadable
    while engine.tap.records:
        assembler.apply(engine.tap.records.popleft())
    assembler.flush()
    found = assembler.pop_finished()
    assert [(f.rollout.request_id, f.token_ids.tolist()) for f in found] == [("a", [5, 6]), ("b", [5, 6])]


def test_a_batch_with_another_number_of_rows_than_requests_is_a_gap() -> None:
    assembler = Assembler()
    for name in "ab":
        assembler.apply(added(name))
    assembler.apply(sampled(["a", "b"], ["a", "b"], []))
    assembler.apply(sampled(["a", "b"], ["a", "b"], [])._replace(id_bytes=b"123456789"))
    with pytest.raises(ValueError, match="17 bytes recorded for 4 rows"):
        assembler.flush()
    assembler.drop_alive()
    assert (assembler.dropped, assembler.alive) == (2, 0)


def tokens_of(found: FinishedRollout) -> list[tuple[int, float | None, int, int | None]]:
    rollout = found.rollout
    run = [max(k for k, run in enumerate(rollout.runs) if run.start <= t) for t in range(rollout.size)]
    return [
        (token, None if math.isnan(logprob) else logprob, rollout.runs[k].flag_epoch, rollout.runs[k].version)
        for token, logprob, k in zip(found.token_ids.tolist(), found.logprobs.tolist(), run, strict=True)
    ]


def stepped(*outputs: Output, time: float = 0.0, label: str | None = None) -> StepOutputs:
    return StepOutputs(0, len(outputs), {0: Outputs(list(outputs), label)}, time, 0, None)


def fed(*records: Record) -> Assembler:
    assembler = Assembler()
    for record in records:
        assembler.apply(record)
    assembler.flush()
    return assembler


def added(name: str, **params: Any) -> RequestAdded:
    return RequestAdded(0, 1, request(name, **params), 0.0)


def test_a_rollout_ends_at_the_time_of_its_last_output() -> None:
    assembler = fed(
        added("a"), added("b"),
        stepped(output("a", [1]), output("b", [2], finish="length"), time=5.0),
        stepped(output("a", [3], finish="stop"), time=6.0),
        stepped(time=7.0),
    )  # fmt: skip
    ends = [(f.rollout.request_id, f.rollout.finished, f.rollout.finish_reason) for f in assembler.pop_finished()]
    assert ends == [("b", 5.0, "length"), ("a", 6.0, "stop")]


def test_a_reused_request_id_makes_two_rollouts() -> None:
    assembler = fed(added("a"), stepped(output("a", [1], finish="stop")), added("a"),
                    stepped(output("a", [2], finish="length")))  # fmt: skip
    assert [f.token_ids.tolist() for f in assembler.pop_finished()] == [[1], [2]]
    assert (assembler.added, assembler.published) == (2, 2)


def test_outputs_after_the_end_belong_to_another_request() -> None:
    assembler = fed(added("a"), added("b"), stepped(output("a", [1], finish="stop"), output("b", [4])),
                    stepped(output("a", [2]), output("b", [5])), stepped(output("a", [3], finish="error")),
                    stepped(output("b", [6], finish="stop")))  # fmt: skip
    found = [(f.token_ids.tolist(), f.logprobs.tolist(), f.rollout.finish_reason) for f in assembler.pop_finished()]
    assert found == [([1], [-1 / 8], "stop"), ([4, 5, 6], [-4 / 8, -5 / 8, -6 / 8], "stop")]


def test_unknown_requests_are_skipped() -> None:
    assembler = fed(added("a"), stepped(output("x", [8]), output("a", [1]), output("y", [9])),
                    stepped(output("a", [2], finish="stop"), output("x", [7], finish="stop")))  # fmt: skip
    assert [f.token_ids.tolist() for f in assembler.pop_finished()] == [[1, 2]]
    assert (assembler.generated_tokens, assembler.published) == (2, 1)


def test_missing_rows_are_a_fault_and_drop_the_affected_requests() -> None:
    short = output("a", [1, 2])
    short.new_logprobs = recorded([1], [1], 2)
    with pytest.raises(ValueError, match="1 ids and 1 logprobs recorded for 2 tokens"):
        read_outputs([short])
    assembler = Assembler()
    for record in (added("a"), added("b"), stepped(short, output("b", [3], finish="stop"))):
        assembler.apply(record)
    with pytest.raises(ValueError, match="recorded for 3 tokens"):
        assembler.flush()
    assembler.drop_alive()
    assembler.apply(added("c"))
    assembler.apply(stepped(output("a", [4], finish="stop"), output("c", [5], finish="stop")))
    assembler.flush()
    assert [f.rollout.request_id for f in assembler.pop_finished()] == ["c"]
    assert (assembler.added, assembler.published, assembler.dropped, assembler.alive) == (3, 1, 2, 0)


def test_a_gap_spares_requests_that_ended_before_it() -> None:
    assembler = fed(added("a"), added("b"), stepped(output("a", [1], finish="stop"), output("b", [2])))
    late = stepped(output("b", [3], finish="stop"))._replace(drops_before=1)
    assembler.apply(stepped(output("b", [9])))  # unsettled when the hole is seen
    assembler.apply(late)
    assembler.flush()
    assert [f.rollout.request_id for f in assembler.pop_finished()] == ["a"]
    assert (assembler.published, assembler.dropped) == (1, 1)


def test_buffered_outputs_are_bounded() -> None:
    assembler = Assembler()
    assembler.apply(added("a"))
    for token in range(BUFFERED_OUTPUTS + 1):
        assembler.apply(stepped(output("a", [token])))
    assert assembler.generated_tokens == BUFFERED_OUTPUTS
    assembler.apply(RequestsEnded(0, 1, [("a", "abort")], 1.0))
    found = assembler.pop_finished()[0]
    assert found.token_ids.tolist() == list(range(BUFFERED_OUTPUTS + 1))
    assert found.rollout.runs == [VersionRun(0, 0, None)]
