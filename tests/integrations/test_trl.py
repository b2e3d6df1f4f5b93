"""``rltop.integrations.trl.watch`` on TRL's real trainer and a real hub, with a stand-in for the engine.

Where TRL logs a figure that means the same, rltop's is equal. TRL averages over micro-batches, rltop over all tokens,
so there is one micro-batch in each optimizer step here.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.api import Step
from rltop.backend.client.live import Client
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.integrations import hooks
from rltop.integrations.hooks import Hook
from rltop.integrations.trl import watch
from tests.support.harness import wait_for
from tests.support.receiver import run_directory, wait_until

pytest.importorskip("trl", reason="the frameworks are not installed: make setup", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL, transformers and torch

STEPS = 4
DIGITS = 1e-5
"""Relative difference: TRL sums in float32, rltop in float64."""

OFF_POLICY: dict[str, Any] = {"steps_per_generation": 2, "epsilon": 0.02, "learning_rate": 3e-3}
"""Two optimizer steps on each generation, so that ratios of the second one differ from 1."""


CLIP = {"clip_frac_low": "clip_ratio/low_mean", "clip_frac_high": "clip_ratio/high_mean"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        steps: as the hub measured them. logs: as TRL logged them, by optimizer step. calls: arguments of each
        ``TrainerCollector.sequences``. trainer, watcher: the live objects.
    """

    steps: dict[int, Step]
    logs: dict[int, dict[str, float]]
    calls: list[dict[str, Any]]
    trainer: Any
    watcher: Any


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.trl_runs import make_model

    return make_model(tmp_path_factory.mktemp("trl") / "model")


@pytest.fixture
def trained(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Trains a watched trainer of the given configuration; ends its hub."""
    import torch
    import trl.trainer.grpo_trainer as host

    from tests.support.trl_runs import Sampler, trainer

    monkeypatch.setattr(host, "VLLMGeneration", Sampler)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with run_directory() as home:
        monkeypatch.setenv("RLTOP_HOME", str(home.path))
        numbers = itertools.count()
        runs: list[RunDir] = []

        def train(prepare: Callable[[Any], object] = lambda made: None, *, wait: bool = True, **changes: Any) -> Run:
            made, log = trainer(model, tmp_path, **{"max_steps": STEPS, **changes})
            watcher = watch(made, run=f"run{next(numbers)}")
            runs.append(watcher.collector.rundir)
            calls = spied(watcher.collector)
            prepare(made)
            made.train()
            assert watcher.collector.close(60)
            steps = steps_of(runs[-1], made.state.global_step) if wait else {}
            return Run(steps, log.steps, calls, made, watcher)

        yield train
        torch.set_num_threads(threads)
        for rundir in runs:
            end_hub(rundir)


def end_hub(rundir: RunDir) -> None:
    if hub := find_hub(rundir):
        os.kill(hub.pid, signal.SIGKILL)
        wait_until(lambda: find_hub(rundir) is None)


def spied(collector: Any) -> list[dict[str, Any]]:
    """The arguments of each call of ``sequences`` from now on."""
    calls: list[dict[str, Any]] = []
    original = collector.sequences

    def sequences(step: int, **arguments: Any) -> None:
        calls.append({"step": step, **arguments})
        original(step, **arguments)

    collector.sequences = sequences
    return calls


def steps_of(rundir: RunDir, version: int) -> dict[int, Step]:
    """The steps up to a policy version."""
    with Client(rundir) as client:

        def complete() -> dict[int, Step] | None:
            client.poll(0.1)
            steps = client.view.steps if client.view else {}
            return dict(steps) if version in {step.policy_version for step in steps.values()} else None

        return wait_for(complete, "the hub measures all steps")


def mean_over(steps: list[Step], name: str, weight: str = "tokens") -> float:
    """A metric over several steps."""
    values = [(step.values[name], step.values[weight]) for step in steps]
    total = sum(count for _, count in values if count)
    return sum(value * count for value, count in values if value is not None and count) / total


def check_sampling(run: Run, per_generation: int = 1) -> None:
    """What TRL logs when it has generated: over a generation, of its old logprobs and the rollouts."""
    for first in range(0, len(run.logs), per_generation):
        log = run.logs[first]
        steps = [run.steps[step] for step in range(first, first + per_generation)]
        assert mean_over(steps, "reward_mean", "sequences") == pytest.approx(log["reward"], rel=DIGITS)
        lengths = mean_over(steps, "response_len_mean", "sequences")
        assert lengths == pytest.approx(log["completions/mean_length"], rel=DIGITS)
        if "sampling/sampling_logp_difference/mean" in log:
            gap = mean_over(steps, "backend_abs_diff_mean", "backend_tokens")
            assert gap == pytest.approx(log["sampling/sampling_logp_difference/mean"], rel=DIGITS)
            worst = max(step.values["backend_abs_diff_max"] or 0.0 for step in steps)
            assert worst == pytest.approx(log["sampling/sampling_logp_difference/max"], rel=DIGITS)


def check_loss(run: Run, clip: dict[str, str] = CLIP) -> None:
    """What TRL logs in each optimizer step."""
    for number, log in run.logs.items():
        values = run.steps[number].values
        assert values["entropy"] == pytest.approx(log["entropy"], rel=DIGITS)
        for ours, theirs in clip.items():
            assert values[ours] == pytest.approx(log[theirs], rel=DIGITS, abs=1e-9)


def test_a_run_is_seen_as_trl_logs_it(trained: Callable[..., Run]) -> None:
    run = trained()
    assert run.watcher.missing == {}
    assert list(run.steps) == list(range(STEPS)) == list(run.logs)
    check_sampling(run)
    check_loss(run)
    for number, step in run.steps.items():
        assert (step.policy_version, step.partial) == (number + 1, False)
        assert step.trainer == {name: run.logs[number][name] for name in ("loss", "grad_norm", "learning_rate")}
        assert step.values["lag_mean"] == 0
        assert step.values["logp_abs_diff_mean"] == step.values["backend_abs_diff_mean"]
        ratio = run.logs[number]["sampling/importance_sampling_ratio/mean"]
        if run.trainer.vllm_importance_sampling_mode.startswith("token"):
            assert step.values["ratio_mean"] == pytest.approx(ratio, rel=DIGITS)
        assert (
            step.values["clip_frac_low"] == step.values["clip_frac_high"] == 0
        )  # the weights are those of the rollouts


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_clip_rates_and_entropy_are_those_of_trl(trained: Callable[..., Run], loss_type: str) -> None:
    run = trained(loss_type=loss_type, epsilon_high=0.05, **OFF_POLICY)
    check_sampling(run, per_generation=2)
    check_loss(run)
    assert any(run.logs[step]["clip_ratio/region_mean"] > 0 for step in (1, 3))
    assert [run.steps[step].values["lag_mean"] for step in range(STEPS)] == [0, 1, 0, 1]
    assert all(step.values["backend_tokens"] == step.values["tokens"] for step in run.steps.values())


def test_cispo_bounds_the_ratio_itself(trained: Callable[..., Run]) -> None:
    run = trained(loss_type="cispo", epsilon_high=1.02, **OFF_POLICY)
    check_loss(run, clip={"clip_frac_high": "cispo_clip_ratio"})
    assert any(run.logs[step]["cispo_clip_ratio"] > 0 for step in (1, 3))


def test_cispo_with_a_bound_below_1_clips_almost_all(trained: Callable[..., Run]) -> None:
    run = trained(loss_type="cispo", max_steps=2)
    check_loss(run, clip={"clip_frac_high": "cispo_clip_ratio"})
    assert run.logs[0]["cispo_clip_ratio"] > 0


def test_gspo_clips_sequences(trained: Callable[..., Run]) -> None:
    run = trained(importance_sampling_level="sequence", loss_type="grpo", **{**OFF_POLICY, "epsilon": 1e-3})
    check_loss(run)
    assert any(run.logs[step]["clip_ratio/region_mean"] > 0 for step in (1, 3))


@pytest.mark.parametrize("loss_type", ["sapo", "vespo"])
def test_losses_without_bounds_have_no_clip_rate(trained: Callable[..., Run], loss_type: str) -> None:
    run = trained(loss_type=loss_type, vllm_importance_sampling_mode="token_truncate", max_steps=2, **OFF_POLICY)
    check_loss(run, clip={})
    assert all(step.values["clip_frac_low"] is None for step in run.steps.values())
    if loss_type == "vespo":
        for call in run.calls:
            logged = run.logs[call["step"]]["vespo/phi_seq_mean"]
            assert float(call["weights"].mean()) == pytest.approx(logged, rel=DIGITS)


def test_a_generation_that_is_used_twice_is_one_step(trained: Callable[..., Run]) -> None:
    run = trained(num_iterations=2, epsilon=0.02, learning_rate=3e-3)
    assert [(step.step, step.policy_version) for step in run.steps.values()] == [(0, 2), (1, 4)]
    assert [(call["step"], call["update"], call["policy_version"]) for call in run.calls] == [
        (0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3),
    ]  # fmt: skip
    for number, step in run.steps.items():
        first, second = run.logs[2 * number], run.logs[2 * number + 1]
        assert step.values["sequences"] == 8
        assert step.values["entropy"] == pytest.approx(first["entropy"], rel=DIGITS)
        gap = first["sampling/sampling_logp_difference/mean"]
        assert step.values["logp_abs_diff_mean"] == pytest.approx(gap, rel=DIGITS)
        assert step.values["reward_mean"] == pytest.approx(first["reward"], rel=DIGITS)
        for ours, theirs in CLIP.items():
            assert step.values[ours] == pytest.approx((first[theirs] + second[theirs]) / 2, rel=DIGITS)
        assert second["clip_ratio/region_mean"] > 0


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_weights_are_the_importance_sampling_ratios_that_trl_applies(
    trained: Callable[..., Run], mode: str
) -> None:
    run = trained(vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.001, max_steps=2)
    check_sampling(run)
    check_loss(run)
    for call in run.calls:
        log, weights = run.logs[call["step"]], call["weights"]
        applied = weights[call["mask"].bool()] if mode.startswith("token") else weights
        assert float(applied.mean()) == pytest.approx(log["sampling/importance_sampling_ratio/mean"], rel=DIGITS)
        assert float(applied.max()) == pytest.approx(log["sampling/importance_sampling_ratio/max"], rel=DIGITS)
        assert float(applied.min()) == pytest.approx(log["sampling/importance_sampling_ratio/min"], rel=DIGITS)
        assert mode.endswith("truncate") or float(applied.min()) == 0
        values = run.steps[call["step"]].values
        cut = (weights == 0).float().reshape(8, -1).expand_as(call["mask"])[call["mask"].bool()].mean()
        assert values["weight_cut_frac"] == pytest.approx(float(cut), rel=DIGITS)
        if mode.startswith("token"):
            ratio = log["sampling/importance_sampling_ratio/mean"]
            assert values["weight_mean"] == pytest.approx(ratio, rel=DIGITS)
            assert values["weight_max"] == pytest.approx(log["sampling/importance_sampling_ratio/max"], rel=DIGITS)


def test_without_correction_trl_takes_its_own_logprobs_as_old_ones(trained: Callable[..., Run]) -> None:
    run = trained(vllm_importance_sampling_correction=False, max_steps=2)
    check_sampling(run)
    check_loss(run)
    for step in run.steps.values():
        assert step.values["clip_frac_low"] == step.values["clip_frac_high"] == 0
        assert step.values["backend_abs_diff_mean"] == step.values["logp_abs_diff_mean"]
        assert (step.values["logp_abs_diff_mean"] or 0) > 0
    assert all(call["weights"] is None for call in run.calls)


def test_without_correction_off_policy_steps_clip_as_trl_does(trained: Callable[..., Run]) -> None:
    run = trained(vllm_importance_sampling_correction=False, **OFF_POLICY)
    check_loss(run)
    assert any(run.logs[step]["clip_ratio/region_mean"] > 0 for step in (1, 3))


def test_masks_of_the_loss_become_weights(trained: Callable[..., Run]) -> None:
    run = trained(
        top_entropy_quantile=0.25,
        off_policy_mask_threshold=-1.0,
        vllm_importance_sampling_correction=False,
        max_steps=2,
    )
    for call in run.calls:
        mask, weights = call["mask"].bool(), call["weights"]
        positive = (call["advantages"] >= 0)[:, None]
        threshold = call["entropy"][mask].float().quantile(0.75)
        expected = ((call["entropy"] >= threshold) & mask & positive).float()
        assert bool((weights == expected).all())
        assert 0 < float(weights.sum()) < 0.3 * float(mask.sum())
    check_loss(run, clip={})


def test_micro_batches_of_an_optimizer_step_are_one_step(trained: Callable[..., Run]) -> None:
    run = trained(gradient_accumulation_steps=3, per_device_train_batch_size=4, max_steps=2)
    check_sampling(run)
    assert [call["step"] for call in run.calls] == [0, 0, 0, 1, 1, 1]
    assert [step.values["sequences"] for step in run.steps.values()] == [12, 12]


@pytest.mark.parametrize(
    ("accumulated", "per_generation", "passes"),
    [(4, 1, 1), (2, 1, 2), (3, 2, 2), (3, 2, 1), (1, 4, 2)],
    ids=lambda number: str(number),
)
def test_each_row_is_counted_once_however_updates_and_generations_interleave(
    trained: Callable[..., Run], accumulated: int, per_generation: int, passes: int
) -> None:
    run = trained(
        gradient_accumulation_steps=accumulated, steps_per_generation=per_generation, num_iterations=passes,
        per_device_train_batch_size=4, max_steps=8,
    )  # fmt: skip
    assert len(run.calls) == 8 * accumulated
    assert [step.partial for step in run.steps.values()] == [False] * len(run.steps)
    assert all(step.missing_rows == 0 for step in run.steps.values())
    assert {call["step"] for call in run.calls} == set(run.steps)
    rows = sum(step.values["sequences"] or 0 for step in run.steps.values())
    assert rows == 4 * sum(call["update"] == 0 for call in run.calls)
    assert all(0 <= call["update"] < passes for call in run.calls)


def test_prompts_and_environments_follow_their_rows(trained: Callable[..., Run]) -> None:
    from rltop.backend.demo.rl import task

    run = trained(max_steps=2, **{**OFF_POLICY, "learning_rate": 5e-4})
    seen = set()
    for call in run.calls:
        for row, prompt in enumerate(call["prompt_ids"]):
            answer = call["token_ids"][row][call["mask"][row].bool()].tolist()
            assert tuple(prompt[: task.PREFIX_SIZE]) == task.PREFIX
            assert prompt[-1] == task.SEP
            assert call["rewards"][row] == pytest.approx(task.reward(prompt.tolist(), answer), rel=DIGITS)
            assert call["environments"][row] == ("short", "long")[len(prompt) > 47]
            seen.add(call["environments"][row])
    assert seen == {"short", "long"}


def test_evaluation_is_ignored(trained: Callable[..., Run]) -> None:
    run = trained(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8, max_steps=3)
    assert any("eval_reward" in entry for entry in run.trainer.state.log_history)
    assert len(run.calls) == 3
    check_sampling(run)
    check_loss(run)
    assert [step.partial for step in run.steps.values()] == [False] * 3


def test_steps_without_a_log_are_closed_too(trained: Callable[..., Run]) -> None:
    run = trained(logging_steps=2)
    assert [bool(step.trainer) for step in run.steps.values()] == [False, True, False, True]


def test_a_temperature_is_stated(trained: Callable[..., Run]) -> None:
    run = trained(temperature=0.7, top_p=0.9, max_steps=1)
    check_sampling(run)
    check_loss(run)
    assert {call["temperature"] for call in run.calls} == {0.7}


def without(method: str) -> Callable[[Any, Hook], str]:
    """As if the installed TRL did not have the method."""
    return lambda owner, hook: f"{method} is missing" if hook.function == method else ""


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rltop"]


def test_what_a_version_of_trl_lacks_is_one_warning_and_a_lost_capability(
    trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "why_unusable", without("_calculate_rewards"))
    run = trained(max_steps=2)
    assert run.watcher.missing == {"rewards": "_calculate_rewards is missing"}
    assert warnings_of(caplog) == ["rltop: rewards: _calculate_rewards is missing (unavailable: rewards)"]
    check_loss(run)
    assert all(step.values["reward_mean"] is None for step in run.steps.values())


def test_a_trainer_whose_loss_is_not_seen_says_so_once(
    trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "why_unusable", without("_compute_loss"))
    run = trained(max_steps=2, wait=False)
    assert run.trainer.state.global_step == 2
    missing, unseen = warnings_of(caplog)
    assert missing == "rltop: loss: _compute_loss is missing (unavailable: the rows that are trained on)"
    assert "no loss was seen" in unseen


def test_an_engine_that_cannot_be_attached_is_one_warning(
    trained: Callable[..., Run], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.trl_runs import Sampler

    monkeypatch.setattr(Sampler, "llm", object(), raising=False)  # an engine that no plugin of rltop has seen
    run = trained(max_steps=1)
    (warning,) = warnings_of(caplog)
    assert f"the engine in this process is not attached to {run.watcher.collector.rundir.path}" in warning
    check_loss(run)


def test_the_rows_of_all_ranks_make_up_a_step(model: Path, tmp_path: Path) -> None:
    with run_directory() as home:
        environment = {**os.environ, "RLTOP_HOME": str(home.path), "OMP_NUM_THREADS": "1"}
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "tests.support.trl_ranks", str(model), str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        logs = json.loads((tmp_path / "log.json").read_text())
        steps = steps_of(RunDir(home.path / "ranks"), 3)
        end_hub(RunDir(home.path / "ranks"))
    for number, step in steps.items():
        log = logs[str(number)]
        assert (step.values["sequences"], step.partial) == (16, False)
        assert step.values["reward_mean"] == pytest.approx(log["reward"], rel=DIGITS)
        assert step.values["entropy"] == pytest.approx(log["entropy"], rel=DIGITS)
        assert step.values["response_len_mean"] == pytest.approx(log["completions/mean_length"], rel=DIGITS)
        worst = log["sampling/sampling_logp_difference/max"]
        assert step.values["backend_abs_diff_max"] == pytest.approx(worst, rel=DIGITS)


def test_a_fault_of_the_watcher_never_reaches_trl(
    trained: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    def break_it(made: Any) -> None:
        made._rltop_watcher.collector.sequences = None

    run = trained(break_it, max_steps=2, wait=False)
    assert run.trainer.state.global_step == 2
    (warning,) = warnings_of(caplog)
    assert "a fault in loss was contained" in warning


def test_watching_twice_is_watching_once_and_undo_leaves_the_trainer_as_it_was(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl.trainer.grpo_trainer as host

    from tests.support.trl_runs import Sampler, trainer

    monkeypatch.setattr(host, "VLLMGeneration", Sampler)
    with run_directory() as home:
        monkeypatch.setenv("RLTOP_HOME", str(home.path))
        made, _ = trainer(model, tmp_path)
        before = dict(vars(made)), list(made.callback_handler.callbacks)
        watcher = watch(made, run="twice")
        assert watch(made, run="twice") is watcher
        assert len(made.callback_handler.callbacks) == len(before[1]) + 1
        watcher.undo()
        assert (dict(vars(made)), list(made.callback_handler.callbacks)) == before
        end_hub(watcher.collector.rundir)
