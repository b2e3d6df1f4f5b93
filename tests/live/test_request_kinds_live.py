"""Every kind of request on real engines: trained rows join, and counts and logprobs are those the caller received."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rltop.backend.api import Engine, Step
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.launch import find_hub
from tests.support import tiny_model
from tests.support.harness import wait_for, wait_shown
from tests.support.in_process import (
    InProcessEngine,
    Returned,
    count_preemptions,
    generate,
    generate_and_abort,
    preemptions,
    search_beams,
)
from tests.support.live_engine import ON_CPU
from tests.support.receiver import run_directory
from tests.support.switchboard import ENGINE

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not ON_CPU, reason="boots engines for the CPU")]

CHUNK = 128
"""Tokens of a step. A seeded request that is cut into chunks ends vLLM's engine on the CPU, whoever observes it."""

SHAPES: dict[str, dict[str, Any]] = {
    "in process": {},
    "own process": {"enable_prefix_caching": False},
    "ngram": {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1,
        },
        "async_scheduling": False,
    },
    "adapter": {"enable_lora": True, "max_lora_rank": tiny_model.RANK},
    "small cache": {"scheduling_policy": "priority", "num_gpu_blocks_override": 24},
}  # fmt: skip
UNSWITCHABLE = {
    "in process": set[str](),
    "own process": {"prefix_caching"},
    "ngram": {"async_scheduling", "logprobs_mode", "lm_head_fp32"},
    "adapter": {"lm_head_fp32"},
    "small cache": set[str](),
}
PLAIN = frozenset({"in process", "own process"})
EVERYWHERE = frozenset(SHAPES)


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Attributes:
        params: of ``generate``.
        requests, size: their number, and tokens of a prompt.
        copies: what the trainer's copies of the logprobs may be found to be.
        shapes: the engines it is tried on.
    """

    params: dict[str, Any]
    requests: int = 6
    size: int = 20
    copies: frozenset[str] = frozenset({"equal"})
    shapes: frozenset[str] = PLAIN


KINDS = {
    "plain": Kind({}, shapes=EVERYWHERE),
    "four completions": Kind({"n": 4}, shapes=EVERYWHERE),
    "no logprobs": Kind({"logprobs": None}, copies=frozenset({"unrecorded"}), shapes=EVERYWHERE),
    "5 logprobs": Kind({"logprobs": 5}, shapes=EVERYWHERE),
    "20 logprobs": Kind({"logprobs": 20}),
    "all logprobs": Kind({"logprobs": -1}),
    "prompt logprobs": Kind({"prompt_logprobs": 2}),
    "stop strings": Kind({"stop": ["a", "e", "q"]}, copies=frozenset({"equal", "cut"}), shapes=PLAIN | {"ngram"}),
    "stop tokens": Kind({"stop_token_ids": list(range(60, 100))}, shapes=PLAIN | {"ngram"}),
    "end of sequence": Kind({"ignore_eos": False, "logit_bias": {1: 6.0}}),
    "structured output": Kind({"regex": "[0-9]{6,20}", "ignore_eos": False}),
    "chunked prefill": Kind({}, size=3 * CHUNK, shapes=EVERYWHERE - {"small cache"}),
    "repeated prompts": Kind({"n": 2, "max_tokens": 8}, requests=8, size=0),
    "one token": Kind({"max_tokens": 1}, shapes=EVERYWHERE),
    "truncated sampling": Kind({"temperature": 0.7, "top_p": 0.9, "top_k": 50}),
    "greedy": Kind({"temperature": 0.0}, shapes=EVERYWHERE),
    "penalties": Kind({"repetition_penalty": 1.3, "presence_penalty": 0.5}),
    "masked tokens": Kind({"min_tokens": 10, "allowed_token_ids": list(range(4, 200)), "bad_words": ["a"]}),
    "seeds": Kind({"seed": 5}, requests=4),
    "adapter": Kind({"adapter": "ADAPTER"}, shapes=frozenset({"adapter"})),
    "priorities": Kind({"priorities": True, "max_tokens": 120}, requests=12, shapes=frozenset({"small cache"})),
}


@dataclass
class Run:
    """An engine, its trainer and their hub. ``sent``: completions that the caller asked for."""

    shape: str
    adapter: str
    engine: InProcessEngine
    trainer: TrainerCollector
    client: Client
    step: int = 0
    sent: int = 0
    rng: Any = field(default_factory=lambda: np.random.default_rng(0))

    def prompts(self, requests: int, size: int) -> list[list[int]]:
        """Random bytes; ``size`` 0: the same for all."""
        if not size:
            return [self.prompts(1, 20)[0]] * requests
        return [self.rng.integers(tiny_model.FIRST_BYTE, tiny_model.VOCABULARY, size).tolist() for _ in range(requests)]

    def train(self, rows: list[Returned]) -> Step:
        """Train on the rows; the hub's measurements. Rows without logprobs get the trainer's own."""
        logprobs = [np.array(row.logprobs or [-1.0] * len(row.tokens)) for row in rows]
        self.trainer.sequences(
            self.step,
            token_ids=[np.array(row.tokens) for row in rows],
            prompt_ids=[np.array(row.prompt) for row in rows],
            rollout_logprobs=logprobs,
            trainer_logprobs=logprobs,
            mask=[np.ones(len(row.tokens)) for row in rows],
        )
        self.trainer.step(self.step)
        self.step += 1
        wait_shown(self.client, lambda c: self.step - 1 in c.snapshot().steps, f"step {self.step - 1}")
        step: Step = self.client.snapshot().steps[self.step - 1]
        return step

    def seen(self) -> Engine:
        """The engine, once the hub has all its rollouts."""
        wait_shown(self.client, lambda c: ended(c) >= self.sent, "all rollouts")
        engine: Engine = self.client.snapshot().engines[ENGINE]
        return engine


def ended(client: Client) -> int:
    """Requests that the engine has reported."""
    engine = client.snapshot().engines[ENGINE]
    return engine.finished + engine.aborted


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=SHAPES)
def run(request: pytest.FixtureRequest, paths: tuple[Path, Path]) -> Iterator[Run]:
    model, adapter = paths
    shape: str = request.param
    with run_directory() as rundir:
        trainer = TrainerCollector(hub=str(rundir.path))
        environment = {"RLTOP_ENGINE": ENGINE, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(shape == "own process"))}
        common = {"max_logprobs": -1, "max_num_batched_tokens": CHUNK, "max_model_len": 512}
        try:
            with (
                InProcessEngine(str(model), rundir, environment, **common | SHAPES[shape]) as engine,
                Client(rundir) as client,
            ):
                wait_shown(client, lambda c: c.view is not None and ENGINE in c.view.engines, "the engine")
                yield Run(shape, str(adapter), engine, trainer, client)
        finally:
            trainer.close()
            if hub := find_hub(rundir):
                os.kill(hub.pid, signal.SIGKILL)
                wait_for(lambda: find_hub(rundir) is None, "the hub ends")


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_kind_join_and_their_counts_and_logprobs_are_the_callers(run: Run, name: str) -> None:
    kind = KINDS[name]
    if run.shape not in kind.shapes:
        pytest.skip(f"not tried on {run.shape}")
    params = kind.params | ({"adapter": run.adapter} if "adapter" in kind.params else {})
    rows: list[Returned] = run.engine.call(generate, run.prompts(kind.requests, kind.size), **params)
    run.sent += len(rows)
    step = run.train(rows)
    assert (step.unjoined, step.values["joined_fraction"]) == ({}, 1.0)
    assert step.values["tokens"] == sum(len(row.tokens) for row in rows)
    assert sum(step.joins.values()) == len(rows)
    assert set(step.copies[ENGINE]) <= kind.copies
    assert sum(step.copies[ENGINE].values()) == len(rows)
    check_engine(run)
    if name == "stop strings":
        assert (run.seen().aborted, step.values["aborted"]) == (0, 0.0)


def check_engine(run: Run) -> None:
    """The engine reported each completion once, with correct counts, and no fault."""
    engine = run.seen()
    assert engine.finished + engine.aborted == run.sent
    assert engine.faults == {}
    assert all(counts.dropped == 0 for counts in engine.counts.values())
    assert not {"misplaced logprobs", "unmatched requests"} & set(engine.fingerprint)


def test_aborted_requests_join_with_what_the_caller_had_received(run: Run) -> None:
    before = run.seen().aborted
    rows: list[Returned] = run.engine.call(generate_and_abort, run.prompts(6, 12), 8)
    run.sent += len(rows)
    step = run.train(rows)
    assert (step.unjoined, len(rows), step.values["aborted"]) == ({}, 6, 6.0)
    assert set(step.copies[ENGINE]) <= {"equal", "cut"}
    assert step.values["tokens"] == sum(len(row.tokens) for row in rows)
    check_engine(run)
    assert run.seen().aborted == before + len(rows)


def test_priorities_preempt_and_no_token_is_lost_or_repeated(run: Run) -> None:
    if run.shape != "small cache":
        pytest.skip("its cache holds all requests")
    run.engine.call(count_preemptions)
    rows: list[Returned] = run.engine.call(generate, run.prompts(12, 30), priorities=True, max_tokens=120)
    run.sent += len(rows)
    assert run.engine.call(preemptions) > 0
    step = run.train(rows)
    assert (step.unjoined, step.copies[ENGINE]) == ({}, {"equal": 12})
    assert step.values["tokens"] == 12 * 120
    check_engine(run)


def test_beams_are_counted_as_the_engines_requests_and_their_rows_do_not_raise_an_alarm(run: Run) -> None:
    if run.shape not in PLAIN:
        pytest.skip("tried on the plain engines")
    run.seen()
    rows: list[Returned] = run.engine.call(search_beams, run.prompts(2, 20), 3)
    step = run.train(rows)
    requests = 2 * (1 + 5 * 3)  # the front end sends a request of one token for each beam and token
    assert wait_for(lambda: ended(run.client) >= run.sent + requests, "the requests of the beams")
    run.sent += requests
    assert step.unjoined == {"no_completion_match": len(rows)}  # the front end chose their tokens
    check_engine(run)


def test_flags_that_this_shape_cannot_switch_are_reported_with_a_reason(run: Run) -> None:
    flags = run.client.snapshot().engines[ENGINE].flags
    assert {name for name, state in flags.items() if not state.switchable} == UNSWITCHABLE[run.shape]
    assert all(state.switchable or state.reason for state in flags.values())


def test_no_kind_of_request_raised_an_alarm_about_the_record(run: Run) -> None:
    alarms = run.client.snapshot().alarms.values()
    assert [alarm.cause for alarm in alarms if alarm.cause in {"no-logprobs", "rows-without-rollouts"}] == []
