"""Real training loops of PyTorch, accelerate and Lightning with a recorder, on recorded rollouts, measured by a hub.

The demo's model is trained by REINFORCE. Step numbers, versions and gradient accumulation come from the frameworks;
what the hub measures is compared with the same figures computed in torch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rltop.backend.demo
from rltop.backend.api import Step
from rltop.backend.client.live import Client
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.integrations import accelerate, lightning, pytorch
from rltop.integrations.support.recorder import Recorder
from tests.support.harness import wait_for
from tests.support.receiver import run_directory

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks

MODEL = Path(rltop.backend.demo.__file__).parent / "sort-sft"
STEPS, ROWS, PROMPT, WIDTH = 3, 4, 5, 6


class Policy:
    """The demo's model, rollouts sampled from it once, and their logprobs under the current weights."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        self.prompts = torch.randint(4, 40, (ROWS, PROMPT))
        self.answers, self.rollout = self.sampled()
        self.expected: list[dict[str, float]] = []

    def sampled(self) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self.prompts
        logprobs: list[torch.Tensor] = []
        for _ in range(WIDTH):
            now = self.model(ids).logits[:, -1].detach().log_softmax(-1)
            token = torch.multinomial(now.exp(), 1)
            ids, logprobs = torch.cat([ids, token], 1), [*logprobs, now.gather(-1, token)]
        return ids[:, PROMPT:], torch.cat(logprobs, 1)

    def logprobs(self, model: Any, rows: slice) -> torch.Tensor:
        ids = torch.cat([self.prompts, self.answers], 1)[rows]
        logits = model(ids).logits[:, PROMPT - 1 : -1]
        gathered: torch.Tensor = logits.log_softmax(-1).gather(-1, self.answers[rows][..., None])[..., 0]
        return gathered

    def loss(self, model: Any, recorder: Recorder, rows: slice = slice(None)) -> torch.Tensor:
        """Record the rows and return their loss."""
        now = self.logprobs(model, rows)
        recorder.rows(
            token_ids=self.answers[rows], prompt_ids=self.prompts[rows], mask=torch.ones_like(self.answers[rows]),
            rollout_logprobs=self.rollout[rows], trainer_logprobs=now, temperature=1.0,
        )  # fmt: skip
        return -now.mean()

    def expect(self, model: Any) -> None:
        """Note the figures of the whole batch under the current weights."""
        with torch.no_grad():
            d = self.logprobs(model, slice(None)) - self.rollout
        self.expected.append({"logp_abs_diff_mean": float(d.abs().mean()), "ratio_mean": float(d.exp().mean())})


@pytest.fixture
def policy() -> Iterator[Policy]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Policy()
    torch.set_num_threads(threads)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Recorder], dict[int, Step]]]:
    """Waits for the steps of a recorder's run; ends its hub."""
    with run_directory() as home:
        monkeypatch.setenv("RLTOP_HOME", str(home.path))
        seen: list[Recorder] = []

        def steps(recorder: Recorder) -> dict[int, Step]:
            seen.append(recorder)
            recorder.close()

            def complete() -> dict[int, Step] | None:
                with Client(recorder.collector.rundir) as client:
                    found = dict(client.snapshot().steps)
                whole = len(found) >= STEPS and all(step.values.get("tokens") for step in found.values())
                return found if whole else None

            return wait_for(complete, "the hub has not measured every step", poll_s=0.2)

        yield steps
        for recorder in seen:
            end_hub(recorder.collector.rundir)


def end_hub(rundir: RunDir) -> None:
    if (hub := find_hub(rundir)) is not None:
        os.kill(hub.pid, signal.SIGTERM)
        wait_for(lambda: find_hub(rundir) is None, "the hub has not ended", poll_s=0.2)


def compared(steps: dict[int, Step], policy: Policy) -> None:
    assert sorted(steps) == list(range(STEPS))
    for number, expected in enumerate(policy.expected):
        assert steps[number].policy_version == number + 1
        values = steps[number].values
        assert values["tokens"] == ROWS * WIDTH
        for name, value in expected.items():
            assert values[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (number, name)
    assert policy.expected[-1]["logp_abs_diff_mean"] > 1e-3  # it did learn


def test_a_loop_of_pytorch_closes_a_step_with_each_optimizer_step(
    policy: Policy, measured: Callable[[Recorder], dict[int, Step]]
) -> None:
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.05)
    recorder = pytorch.watch(optimizer, run="torch")
    for _ in range(STEPS):
        policy.expect(policy.model)
        policy.loss(policy.model, recorder).backward()
        optimizer.step()
        optimizer.zero_grad()
    compared(measured(recorder), policy)


def test_several_updates_on_a_batch_are_one_step(
    policy: Policy, measured: Callable[[Recorder], dict[int, Step]]
) -> None:
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.05)
    recorder = pytorch.watch(optimizer, run="updates", updates=2)
    for _ in range(STEPS):
        policy.expect(policy.model)
        for half in (slice(0, 2), slice(2, 4)):
            policy.loss(policy.model, recorder, half).backward()
            if half.start == 0:
                optimizer.zero_grad()  # a step without a gradient: the second half sees the same weights
            optimizer.step()
        optimizer.zero_grad()
    compared(measured(recorder), policy)
    with pytest.raises(ValueError, match="expected at least 1"):
        pytorch.watch(optimizer, run="none", updates=0)


def test_accelerate_closes_a_step_when_gradients_are_complete(
    policy: Policy, measured: Callable[[Recorder], dict[int, Step]]
) -> None:
    host = pytest.importorskip("accelerate", reason="the frameworks are not installed: make setup")
    accelerator = host.Accelerator(gradient_accumulation_steps=2, cpu=True)
    model, optimizer = accelerator.prepare(policy.model, torch.optim.SGD(policy.model.parameters(), lr=0.05))
    recorder = accelerate.watch(accelerator, optimizer, run="accelerate")
    for _ in range(STEPS):
        policy.expect(model)
        for half in (slice(0, 2), slice(2, 4)):
            with accelerator.accumulate(model):
                accelerator.backward(policy.loss(model, recorder, half))
                optimizer.step()
                optimizer.zero_grad()
    compared(measured(recorder), policy)


def test_lightning_closes_a_step_when_gradients_are_complete(
    policy: Policy, measured: Callable[[Recorder], dict[int, Step]], tmp_path: Path
) -> None:
    host = pytest.importorskip("lightning", reason="the frameworks are not installed: make setup")

    class Module(host.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = policy.model

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index % 2 == 0:
                policy.expect(self.model)
            return policy.loss(self.model, recorder, slice(int(batch), int(batch) + 2))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    trainer = host.Trainer(
        max_steps=STEPS, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    recorder = lightning.watch(trainer, run="lightning")
    trainer.fit(Module(), torch.utils.data.DataLoader([0, 2] * STEPS, batch_size=1))
    compared(measured(recorder), policy)
