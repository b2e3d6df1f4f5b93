"""Probes on duck-typed engines: one at a time, removed from the outputs, ended by interruptions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rltop.collectors.contract.actions import PROBE
from rltop.collectors.contract.probes import MAX_IN_FLIGHT, PROBES
from rltop.collectors.contract.wire import Arrays, Command, CommandUpdate, Passage, ProbeReport
from rltop.collectors.vllm.probes import work as probe_work
from rltop.collectors.vllm.probes.injection import Injection
from rltop.collectors.vllm.probes.probe_executor import Prober
from rltop.collectors.vllm.probes.scoring import PLANS, Plan, ScoringResult, hot_and_cold, ids_of, rescore
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX
from rltop.collectors.vllm.workers import weight_digest
from rltop.collectors.vllm.workers.one_rank import METHODS
from tests.collectors.vllm.test_engine_switches import Desk, Kinds
from tests.support.engine_doubles import EngineCore, Outputs, PauseState, Worker, output, request
from tests.support.harness import wait_for

VOCABULARY = 128


class CoreRequest:
    """As much of vLLM's as is read: which fields there are, and which must be given."""

    __struct_fields__ = ("request_id", "prompt_token_ids", "sampling_params", "pooling_params", "arrival_time",
                         "cache_salt", "client_index")  # fmt: skip
    __struct_defaults__ = (0,)

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: Any
    cache_salt: str | None
    client_index: int

    def __init__(self, **fields: Any) -> None:
        assert fields["pooling_params"] is None
        vars(self).update(fields)


class ServingCore(EngineCore):
    """Accepts requests, and returns the logprobs of scored ones on demand."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        config = self.vllm_config.model_config
        config.max_model_len, config.get_vocab_size = 512, lambda: vocabulary
        self.vllm_config.scheduler_config.max_num_seqs = 8
        self.vllm_config.cache_config = SimpleNamespace()
        self.cached = 0
        module = torch.nn.Linear(8, 4)
        for worker in self.model_executor.workers:
            worker.model_runner.model = module
            worker.model_runner.device = SimpleNamespace(type="odd")

    def preprocess_add_request(self, made: CoreRequest) -> tuple[Any, int]:
        self.made = made
        return SimpleNamespace(
            request_id=made.request_id, prompt_token_ids=made.prompt_token_ids, sampling_params=made.sampling_params,
            cache_salt=made.cache_salt,
        ), 0  # fmt: skip

    def add_request(self, made: Any, wave: int) -> None:
        assert wave == 0
        self.scheduler.add_request(made)

    @property
    def probing(self) -> list[Any]:
        return [one for name, one in self.scheduler.requests.items() if name.startswith(PROBE_PREFIX)]

    def serve(self, *others: Any) -> dict[int, Any]:
        """A step in which all requests of probes end, beside the outputs ``others``."""
        found = list(others)
        for one in self.probing:
            del self.scheduler.requests[one.request_id]
            size = len(one.prompt_token_ids)
            cached = 0 if one.sampling_params.skip_reading_prefix_cache else self.cached
            answer: Any = output(one.request_id, [7], finish="length", cached=cached)
            scored = one.sampling_params.prompt_logprobs is not None
            values = -torch.arange(1, size, dtype=torch.float32).reshape(-1, 1)
            answer.new_prompt_logprobs_tensors = SimpleNamespace(logprobs=values) if scored else None
            found.append(answer)
        self.scheduler.next = {0: Outputs(found)}
        outputs = self.scheduler.update_from_output(None, None)
        return dict(outputs)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SimpleNamespace(SamplingParams=lambda **fields: SimpleNamespace(**fields))
    ended = SimpleNamespace(RequestStatus=SimpleNamespace(FINISHED_ABORTED="aborted"))
    engine = SimpleNamespace(EngineCoreRequestType=Kinds, EngineCoreRequest=CoreRequest)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", engine)
    monkeypatch.setitem(sys.modules, "vllm.v1.request", ended)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    for name, method in METHODS.items():
        monkeypatch.setattr(Worker, name, method, raising=False)


def next_outputs(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
    return self.next


class Bench(Desk):
    """A desk whose reports are kept."""

    def __init__(self, engine: ServingCore | None = None) -> None:
        self.core = engine or ServingCore()
        scheduler = self.core.scheduler
        scheduler.next = {}
        type(scheduler).update_from_output = next_outputs
        super().__init__(self.core)
        self.reports: list[tuple[ProbeReport, Arrays]] = []
        prober = Prober(
            self.core, "e0", self.tap, lambda: (3, "engine"), self.guard, {"r0": "salt"}.get,
            lambda report, arrays: self.reports.append((report, arrays)),
        )  # fmt: skip
        prober.end = self.commands._close_probe
        self.commands.prober = prober

    def ask(self, probe: str, *passages: Passage, id: str = "p", seconds: float = 60.0) -> list[CommandUpdate]:  # noqa: A002
        self.commands.receive(
            Command(id, "", "", time.time() + seconds, PROBE, probe=probe, passages=passages)
        )  # fmt: skip
        return self.commands.pop_updates()

    def states(self) -> list[str]:
        return [update.state for update in self.boundary()]

    def on(self) -> list[str]:
        """Serve, and come to the boundary at which the probe goes on."""
        self.core.serve()
        wait_for(lambda: not self.commands.prober.busy or self.commands.prober.due(), "the probe is due", poll_s=0.001)
        return self.states()


def passage(name: str = "r0", size: int = 10, start: int = 4) -> Passage:
    return Passage(name, np.arange(size, dtype="<i4").tobytes(), start)


@pytest.fixture
def bench() -> Iterator[Bench]:
    original = vars(type(ServingCore().scheduler).__mro__[1])["update_from_output"]
    made = Bench()
    yield made
    kind = type(made.core.scheduler)
    if "update_from_output" in vars(kind):
        del kind.update_from_output
    assert kind.update_from_output is original


def test_a_rescore_sends_its_passages_and_reports_their_logprobs(bench: Bench) -> None:
    assert [u.state for u in bench.ask("prefill-rescore", passage(), passage("r1", 6, 2))] == ["accepted"]
    assert bench.states() == ["running"]
    first, second = bench.core.probing
    params = first.sampling_params
    assert (params.max_tokens, params.temperature, params.prompt_logprobs) == (1, 1.0, 0)
    assert params.skip_reading_prefix_cache
    assert first.cache_salt != second.cache_salt
    assert bench.core.made.client_index == 0  # an output that got away would be let go by the front end
    ours = output("mine", [9])
    assert [one.request_id for one in bench.core.serve(ours)[0].outputs] == ["mine"]
    assert bench.on() == ["applied"]
    ((report, arrays),) = bench.reports
    assert [(one.passage, one.way, one.first, one.size, one.cached) for one in report.scores] == [
        (0, "cold", 1, 9, 0), (1, "cold", 1, 5, 0),
    ]  # fmt: skip
    assert arrays["logprobs"].tolist() == [*range(-1, -10, -1), *range(-1, -6, -1)]
    assert (report.requests, report.tokens, report.policy_version) == (2, 16, 3)
    assert "update_from_output" not in vars(bench.core.scheduler) or not bench.core.probing


def test_a_step_with_nothing_but_a_probes_outputs_leaves_nothing_for_the_front_end(bench: Bench) -> None:
    bench.ask("prefill-rescore", passage())
    bench.boundary()
    assert bench.core.serve() == {}


def test_the_scheduler_is_left_as_it_was_found(bench: Bench) -> None:
    before = vars(bench.core.scheduler).get("update_from_output")
    bench.ask("prefill-rescore", passage())
    bench.boundary()
    assert vars(bench.core.scheduler).get("update_from_output") is not before
    bench.on()
    assert vars(bench.core.scheduler).get("update_from_output") is before


def test_hot_requests_use_the_rollouts_salt_and_warm_ones_their_own_fill(bench: Bench) -> None:
    bench.core.cached = 4
    bench.ask("cache-salt", passage())
    bench.boundary()
    hot, cold = bench.core.probing
    assert (hot.cache_salt, hot.sampling_params.skip_reading_prefix_cache) == ("salt", False)
    assert cold.sampling_params.skip_reading_prefix_cache
    assert cold.cache_salt.startswith(PROBE_PREFIX)
    bench.on()
    (fill,) = bench.core.probing
    assert (len(fill.prompt_token_ids), fill.sampling_params.prompt_logprobs) == (5, None)
    bench.on()
    (warm,) = bench.core.probing
    assert warm.cache_salt == fill.cache_salt != cold.cache_salt
    assert bench.on() == ["applied"]
    scores = bench.reports[0][0].scores
    assert [(one.way, one.first, one.size, one.cached) for one in scores] == [
        ("hot", 5, 5, 4), ("cold", 1, 9, 0), ("warm", 5, 5, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["update", "pause", "switch", "abort", "deadline"])
def test_an_interrupted_probe_ends_at_that_boundary_and_aborts_its_requests(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.ask("prefill-rescore", passage(), seconds=60.0)
    bench.boundary()
    assert len(bench.core.probing) == 1
    if how == "update":
        bench.tap.on_rpc(None, "start_weight_update")
    elif how == "pause":
        bench.core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    elif how == "abort":
        bench.core.scheduler.finish_requests([bench.core.probing[0].request_id], "aborted")
    elif how == "deadline":
        late = time.time() + 61.0
        monkeypatch.setattr(time, "time", lambda: late)
    else:
        bench.send("prefix_caching", "off", "s")
    ended = next(update for update in bench.boundary() if update.id == "p")
    assert ended.state == ("timed_out" if how == "deadline" else "superseded")
    assert bench.core.probing == []
    assert bench.reports == []
    assert not bench.commands.prober.busy
    assert bench.core.serve(output("mine", [9]))[0].outputs[0].request_id == "mine"


def test_a_switch_that_interrupts_a_probe_loses_no_request(bench: Bench) -> None:
    bench.core.scheduler.add_request(request("mine"))
    bench.ask("prefill-rescore", passage())
    bench.boundary()
    bench.send("prefix_caching", "off", "s")
    switched = next(update for update in bench.boundary() if update.id == "s")
    assert (switched.state, switched.lost_requests, switched.in_flight) == ("applied", 0, 1)


def test_a_probe_ends_with_the_last_request_of_a_caller_that_runs_the_steps_itself(bench: Bench) -> None:
    bench.core.scheduler.add_request(request("mine"))
    bench.ask("prefill-rescore", passage())
    bench.boundary()
    bench.commands.prober.after_step()
    assert bench.commands.prober.busy
    del bench.core.scheduler.requests["mine"]
    bench.commands.prober.after_step()
    (ended,) = bench.commands.pop_updates()
    assert (ended.state, "no more steps" in ended.reason) == ("superseded", True)
    assert bench.core.scheduler.requests == {}


def test_one_probe_runs_at_a_time_with_bounded_requests(bench: Bench) -> None:
    bench.ask("prefill-rescore", *(passage(f"r{n}") for n in range(MAX_IN_FLIGHT + 1)))
    bench.boundary()
    assert len(bench.core.probing) == MAX_IN_FLIGHT
    (refused,) = bench.ask("weight-digest", id="q")
    assert (refused.state, "is running here" in refused.reason) == ("refused", True)
    bench.on()
    assert len(bench.core.probing) == 1


def test_tokens_per_second_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_work, "TOKENS_PER_S", 1.0)
    bench.ask("prefill-rescore", *(passage(f"r{n}") for n in range(MAX_IN_FLIGHT + 1)))
    bench.boundary()
    bench.core.serve()
    bench.boundary()
    assert bench.core.probing == []  # 40 tokens are 40 s of them
    assert not bench.commands.prober.due()
    later = time.monotonic() + 45.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert bench.commands.prober.due()
    bench.boundary()
    assert len(bench.core.probing) == 1


UNFIT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "speculative": (lambda core: setattr(core.vllm_config, "speculative_config", object()), "speculative"),
    "adapters": (lambda core: setattr(core.vllm_config, "lora_config", object()), "adapter"),
    "connector": (lambda core: setattr(core.scheduler, "connector", object()), "KV connector"),
    "lockstep": (lambda core: setattr(core, "dp_group", object()), "in lockstep"),
    "images": (lambda core: setattr(core.vllm_config.model_config, "is_multimodal_model", True), "token ids"),
    "paused": (lambda core: core.scheduler.set_pause_state(PauseState.PAUSED_ALL), "paused"),
    "full": (lambda core: setattr(core.scheduler.kv_cache_manager, "usage", 0.95), "95% full"),
    "queue": (lambda core: core.scheduler.waiting.extend([0] * 33), "33 requests wait"),
    "fast prefill": (
        lambda core: setattr(core.vllm_config, "cache_config", SimpleNamespace(kv_sharing_fast_prefill=True)),
        "fast-prefill",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
def test_an_engine_that_cannot_score_gives_the_reason_and_can_still_digest(bench: Bench, what: str) -> None:
    change, words = UNFIT[what]
    change(bench.core)
    (refused,) = bench.ask("prefill-rescore", passage())
    assert refused.state == "refused"
    assert words in refused.reason
    assert [u.state for u in bench.ask("weight-digest", id="d")] == ["accepted"]


@pytest.mark.parametrize("probe", ["prefill-rescore", "weight-digest"])
def test_a_sleeping_engine_refuses_probes(bench: Bench, probe: str) -> None:
    bench.core.vllm_config.model_config.enable_sleep_mode = True
    executor: Any = bench.core.model_executor
    executor.is_sleeping = True
    assert "sleeps" in bench.ask(probe, passage())[0].reason
    executor.is_sleeping = False
    bench.ask("prefill-rescore", passage(), id="q")
    bench.boundary()
    executor.is_sleeping = True
    assert bench.states() == ["superseded"]


def test_a_worker_without_the_collector_refuses_probes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ask("weight-digest")
    monkeypatch.delattr(Worker, "rltop_read_flags")
    assert bench.boundary()[-1].reason == "the collector is not loaded in every worker of this engine"


def test_an_unknown_engine_refuses_probes(bench: Bench) -> None:
    del bench.core.vllm_config.model_config
    assert "differs from known vLLM versions" in bench.ask("prefill-rescore", passage())[0].reason


def test_a_probe_without_a_cache_or_of_an_unknown_name_is_refused(bench: Bench) -> None:
    assert "knows weight-digest" in bench.ask("nonsense")[0].reason
    assert "knows weight-digest" in bench.ask("config-diff", id="q")[0].reason
    bench.core.scheduler.kv_cache_manager.enable_caching = False
    assert bench.ask("cache-salt", passage(), id="r")[0].reason == "the prefix cache is off"


def test_prompts_are_cut_to_the_memory_for_their_logits() -> None:
    bench = Bench(ServingCore(vocabulary=10_000_000))
    try:
        bench.ask("prefill-rescore", passage(size=20, start=4), passage("r1", size=20, start=15))
        bench.boundary()
        (only,) = bench.core.probing
        assert len(only.prompt_token_ids) == 8  # of 1 GiB at 12 bytes a logit
        bench.on()
        assert bench.reports[0][0].notes == [
            "2 sequences were cut to their first 8 tokens (free memory or model length)"
        ]
    finally:
        del type(bench.core.scheduler).update_from_output


def test_a_fault_in_a_probe_becomes_its_answer(bench: Bench) -> None:
    def broken(made: Any) -> Any:
        raise KeyError("no such field")

    bench.core.preprocess_add_request = broken  # type: ignore[method-assign]
    bench.ask("prefill-rescore", passage())
    assert [(u.state, u.reason) for u in bench.boundary()][-1] == ("refused", "KeyError: 'no such field'")
    assert bench.guard.faults == {}
    assert bench.core.probing == []


def test_probe_requests_are_not_recorded_as_rollouts(bench: Bench) -> None:
    bench.tap.on_add(None, SimpleNamespace(request_id=f"{PROBE_PREFIX}p-0"))
    assert not bench.tap.records
    bench.tap.on_add(None, SimpleNamespace(request_id="mine"))
    assert len(bench.tap.records) == 1


# --- digests ------------------------------------------------------------------------------------------------------


def test_a_digest_is_read_in_slices_and_says_how_long_it_took(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_work, "SLICE_S", 0.0)
    monkeypatch.setattr(probe_work, "REST", 0.0)
    bench.ask("weight-digest")
    states = bench.states()
    for _ in range(10):
        states += bench.states()
    assert states == ["running", "applied"]
    ((report, _),) = bench.reports
    assert {(one.name, one.kind, one.rank) for one in report.digests} == {
        (name, "parameter", rank) for name in ("weight", "bias") for rank in (0, 1)
    }
    assert report.stall_s >= report.longest_s > 0


def test_an_update_in_the_middle_of_a_digest_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_work, "SLICE_S", 0.0)
    bench.ask("weight-digest")
    bench.boundary()
    bench.tap.on_rpc(None, "reload_weights")
    assert bench.states() == ["superseded"]


def test_the_error_of_a_rank_becomes_the_answer(bench: Bench) -> None:
    del bench.core.model_executor.workers[1].model_runner
    bench.ask("weight-digest")
    (_, ended) = bench.boundary()
    assert ended.state == "refused"
    assert ended.reason.startswith("RuntimeError: rank 1: AttributeError")


class Model(torch.nn.Module):  # type: ignore[misc] # torch has no types here
    """A model with a KV cache and tensors that ``named_parameters`` misses: a buffer, attributes, packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.scale = torch.tensor(2.0)
        self.absorbed = [torch.ones(2, 2), None]
        self.kv_cache = torch.zeros(4)
        self.proj = torch.nn.Linear(6, 5, bias=False)
        self.lm_head = torch.nn.Linear(6, 5, bias=False)
        self.packed_modules_mapping = {"proj": ["a", "b"]}
        pack(self.proj, 6)


def pack(module: Any, width: int) -> None:
    """As vLLM packs a linear layer on the CPU: behind a closure, the parameter left empty."""
    held = module.weight.detach().clone()
    module.cpu_linear = lambda x, _weight, _bias: torch.nn.functional.linear(x, held)
    module.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    module.input_size_per_partition = width


def read(model: Any) -> dict[str, tuple[str, str, str]]:
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    answer = weight_digest.digest(worker, True, 0.0)
    while not answer["done"]:
        answer = weight_digest.digest(worker, False, 0.0)
    assert answer["error"] == ""
    return {name: (kind, whole, rows) for name, kind, whole, rows, *_ in answer["found"]}


def test_all_tensors_of_a_model_are_read_and_the_cache_is_not() -> None:
    model = Model()
    found = read(model)
    assert {name: kind for name, (kind, _, _) in found.items()} == {
        "norm": "parameter", "lm_head.weight": "parameter", "table": "buffer", "scale": "other",
        "absorbed[0]": "other", "proj.weight": "packed",
    }  # fmt: skip


def test_a_packed_weight_has_the_digest_that_it_has_unpacked() -> None:
    model = Model()
    plain = torch.nn.Linear(6, 5, bias=False)
    weight = plain.weight.detach().clone()
    model.proj = plain
    unpacked = read(model)["proj.weight"]
    pack(model.proj, 6)
    assert read(model)["proj.weight"][1:] == unpacked[1:]
    model.proj.weight = torch.nn.Parameter(weight, requires_grad=False)  # a tied head keeps its parameter
    assert {"proj.weight", "proj.weight (packed)"} <= read(model).keys()


def test_a_rank_that_has_read_all_waits_for_those_that_have_more() -> None:
    """The stages of a pipeline hold different tensors."""
    short, long = torch.nn.Sequential(torch.nn.Linear(2, 2)), Model()
    workers = [SimpleNamespace(model_runner=SimpleNamespace(model=one)) for one in (short, long)]
    engine = SimpleNamespace(
        model_executor=SimpleNamespace(
            collective_rpc=lambda _method, args: [weight_digest.digest(one, args[0], 0.0) for one in workers]
        )
    )
    work = probe_work.Digesting(engine)
    rounds = 1
    while not work.advance():
        rounds += 1
    assert rounds > len(read(short))
    found = [{one.name for one in work.digests if one.rank == rank} for rank in (0, 1)]
    assert found == [read(short).keys(), read(long).keys()]
    assert len(work.digests) == sum(map(len, found))


def test_a_packed_weight_that_cannot_be_read_is_reported() -> None:
    model = Model()
    del model.proj.input_size_per_partition
    assert read(model)["proj.weight"] == ("unread", "", "")


# --- plans --------------------------------------------------------------------------------------------------------


def drive(plan: Plan, cached: int) -> list[list[str]]:
    lots, got = [], None
    try:
        wanted = next(plan)
        while True:
            lots.append([one.way for one in wanted])
            got = [ScoringResult(cached if one.reads_cache else 0, np.empty(0, np.float32)) for one in wanted]
            wanted = plan.send(got)
    except StopIteration:
        return lots


def test_every_probe_that_sends_requests_has_a_plan() -> None:
    assert set(PLANS) == {probe.name for probe in PROBES if probe.sends_requests}


def test_plans_yield_their_batches_in_order() -> None:
    count = iter(range(100))
    fresh = lambda: f"s{next(count)}"  # noqa: E731 - shorter than a function
    assert drive(rescore([[1, 2]] * 5, [None] * 5, fresh), 0) == [["cold"] * 4, ["cold"]]
    one = [["hot", "cold"], ["fill"], ["warm"]]
    assert drive(hot_and_cold([[1, 2, 3]] * 2, [None, "x"], fresh), 2) == one * 2
    assert drive(hot_and_cold([[1, 2, 3]], [None], fresh), 0) == one[:1]


def test_a_passage_cut_before_its_completion_is_left_out() -> None:
    assert ids_of(passage(size=10, start=4), 6) == [0, 1, 2, 3, 4, 5]
    assert ids_of(passage(size=10, start=4), 4) == []


def test_stopping_an_injection_twice_is_harmless(bench: Bench) -> None:
    made = Injection(bench.core, bench.guard, "x")
    made.stop()
    made.stop()
    assert made.complete
