"""The demo's trainer: GRPO on the sorting task, in a process of its own, with an ordinary ``TrainerCollector``.

``python -m rltop.backend.demo.rl.demo_trainer JOB`` with ``JOB`` a JSON ``TrainerJob``. Prints one JSON ``Progress``
per line.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from rltop.backend.demo import messages
from rltop.backend.demo.engines.engine_pool import EnginePool
from rltop.backend.demo.faults import Fault
from rltop.backend.demo.jobs import (
    AHEAD,
    GRADIENT_NORM,
    LEARNING_RATE,
    SNAPSHOTS,
    EngineUp,
    Progress,
    StepDone,
    TrainerJob,
    decode,
    end_with_parent,
)
from rltop.backend.demo.rl import policy, task
from rltop.backend.demo.rl.objective import OBJECTIVES, group_advantages
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.digests import weight_digests


@dataclass(frozen=True)
class TrainingBatch:
    """The rollouts of one step; per token ``[batch, time]``, ``rewards`` and ``advantages`` ``[batch]``."""

    prompts: list[Tensor]
    batch: policy.PaddedAnswers
    logprobs: Tensor
    versions: Tensor
    rewards: Tensor
    advantages: Tensor


def gather(groups: list[messages.Group]) -> TrainingBatch:
    """Stack the samples of all groups and compute rewards and advantages."""
    prompts = [group.prompt for group in groups for _ in group.samples]
    samples = [sample for group in groups for sample in group.samples]
    rewards = torch.tensor(
        [task.reward(prompt, sample.token_ids) for prompt, sample in zip(prompts, samples, strict=True)]
    )
    return TrainingBatch(
        prompts=[torch.tensor(prompt) for prompt in prompts],
        batch=policy.make_batch(prompts, [sample.token_ids for sample in samples]),
        logprobs=policy.padded([sample.logprobs for sample in samples], 0.0),
        versions=policy.padded([sample.versions for sample in samples], -1).long(),
        rewards=rewards,
        advantages=group_advantages(rewards.view(len(groups), -1)).flatten(),
    )


def spanning_share(rollouts: TrainingBatch) -> float:
    """Share of the sequences with tokens of more than one version."""
    real = rollouts.batch.mask > 0
    newest = rollouts.versions.masked_fill(~real, -1).amax(1)
    oldest = rollouts.versions.masked_fill(~real, torch.iinfo(torch.long).max).amin(1)
    return float((newest > oldest).float().mean())


def pick_matched(seed: int, step: int, size: int, batch: int) -> Tensor:
    """The rows whose ``old_logprobs`` are recomputed: ``size`` of ``batch``, determined by seed and step."""
    rng = random.Random(f"matched/{seed}/{step}")  # noqa: S311 - a sample, not a secret
    return torch.tensor(sorted(rng.sample(range(batch), min(size, batch))), dtype=torch.long)


def steps_to_grant(step: int, fault: Fault, steps: int) -> range:
    """The steps, of ``steps``, whose tickets go out when ``step`` is done: ``AHEAD`` steps ahead, and in bursts."""
    first, burst = step + AHEAD, fault.during(step).burst
    return range(first, min(first + burst, steps)) if (step - fault.at) % burst == 0 else range(0)


def last_sampled(step: int, fault: Fault, steps: int) -> int:
    """The last step that is sampled before ``step`` is trained on: itself, or the last of its burst."""
    offset = step - (fault.at + AHEAD)  # from the start of the first burst
    return min(step + fault.burst - 1 - offset % fault.burst, steps - 1) if offset >= 0 else step


def rollout_logprobs(rollouts: TrainingBatch, fault: Fault) -> Tensor:
    """The trainer's copy of the rollout logprobs, with the fault applied."""
    copy, mask = rollouts.logprobs, rollouts.batch.mask
    if fault.shift:
        copy = torch.nn.functional.pad(copy, (fault.shift, 0))[:, : copy.shape[1]] * mask
    if fault.zeroed:
        to_end = mask.flip(1).cumsum(1).flip(1)  # of real tokens: n, n - 1, ..., 1
        copy = copy.masked_fill(to_end <= fault.zeroed, 0.0)
    return copy


class DemoTrainer:
    """Trains one optimizer step per batch of rollouts and publishes the weights after every step."""

    def __init__(self, job: TrainerJob) -> None:
        self._job = job
        self._objective = OBJECTIVES[job.objective]
        self._model = load_model(job.model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self._snapshots = policy.Snapshots(self._model, SNAPSHOTS)
        self._snapshots.take(0)
        self._precision = {"bf16": job.fault.bf16, "head_fp32": job.fault.trainer_head_fp32}
        computed = policy.facts(self._model, job.temperature, **self._precision)
        self._collector = TrainerCollector(
            run=job.run, rank=0, world_size=1, facts={"model": job.model, **computed} if job.facts else None
        )
        self._fleet = EnginePool(
            job.socket, job.engines, Path(job.weights), lambda ready: report(EngineUp(ready.engine, ready.boot_s))
        )

    def run(self) -> None:
        """Train all steps, then wait until the engines have loaded the last weights."""
        self._fleet.wait_ready()
        for before in range(-AHEAD, 0):
            for step in self._steps_to_grant(before):
                self._fleet.grant(step)
        for step in range(self._job.steps):
            began = time.perf_counter()
            rollouts = gather(self._fleet.collect(step, last_sampled(step, self._job.fault, self._job.steps)))
            waited = time.perf_counter()
            grad_norm = self._train(step, rollouts)
            trained = time.perf_counter()
            metrics = {
                "grad_norm": grad_norm,
                "spanning_share": spanning_share(rollouts),
                "wait_s": waited - began,
                "train_s": trained - waited,
                **self._update_metrics(),
            }
            self._collector.weights(step + 1, self._model.state_dict())
            digests = weight_digests(self._model.state_dict())  # about 20 ms at this size
            self._collector.step(step, policy_version=step + 1, metrics=metrics, weight_digests=digests)
            self._fleet.publish(step + 1, self._update(step), self._steps_to_grant(step))
            report(StepDone(step, {**metrics, "step_s": time.perf_counter() - began}))
        self._fleet.settle()

    def close(self) -> None:
        """Disconnect from the hub and the engines."""
        self._collector.close()
        self._fleet.close()

    def _steps_to_grant(self, step: int) -> range:
        """The steps whose tickets go out when ``step`` is done (negative steps: at the start)."""
        return steps_to_grant(step, self._job.fault, self._job.steps)

    def _update(self, step: int) -> dict[str, Tensor]:
        """The weights to publish when ``step`` is done."""
        weights, missing = self._snapshots.take(step + 1), self._job.fault.during(step).withheld
        return {name: value for name, value in weights.items() if name not in missing}

    def _train(self, step: int, rollouts: TrainingBatch) -> float:
        """One optimizer step; returns the norm of the gradient before clipping."""
        batch, job, fault = rollouts.batch, self._job, self._job.fault.during(step)
        temperature, bonus = fault.trainer_temperature or job.temperature, fault.entropy_bonus
        mask = torch.ones_like(batch.mask) if fault.trains_padding else batch.mask
        rollout = rollout_logprobs(rollouts, fault)
        policy.set_dropout(self._model, fault.dropout)
        new, entropy = policy.logprobs_and_entropy(
            self._model, batch, temperature, **self._precision, entropy_grad=bonus != 0
        )
        loss = self._objective.loss(new, rollout, rollouts.advantages, mask)
        if bonus:
            loss = loss - bonus * (entropy * mask).sum() / mask.sum()
        rows = pick_matched(job.seed, step, job.matched, len(rollouts.prompts))
        old, old_version = self._snapshots.logprobs(batch, rollouts.versions, rows, temperature, **self._precision)
        self._collector.sequences(
            step,
            token_ids=batch.answers,
            rollout_logprobs=rollout,
            trainer_logprobs=new,
            mask=mask,
            prompt_ids=rollouts.prompts,
            old_logprobs=old,
            advantages=rollouts.advantages,
            rewards=rollouts.rewards,
            entropy=entropy,
            policy_version=step,
            rollout_versions=rollouts.versions,
            old_version=old_version,
            temperature=job.temperature,
            clip_low=self._objective.clip_low,
            clip_high=self._objective.clip_high,
            ratio_base="rollout",
            objective="gspo" if self._objective.name == "gspo" else "ppo",
        )
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), GRADIENT_NORM)
        self._optimizer.step()
        return float(norm)

    def _update_metrics(self) -> dict[str, float]:
        updates = self._fleet.take_updates()
        if not updates:
            return {}
        return {
            "update_ms": statistics.fmean(update.pause_ms + update.load_ms for update in updates),
            "interrupted": float(sum(update.in_flight for update in updates)),
        }


def load_model(path: str) -> Any:
    """The checkpoint in fp32, for training on the CPU."""
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).train()


def report(progress: Progress) -> None:
    """Print one line for the supervisor."""
    sys.stdout.buffer.write(msgspec.json.encode(progress) + b"\n")
    sys.stdout.flush()


def main(argument: str) -> None:
    """Run the job to its end; an exception ends the process with its traceback in the log."""
    job = decode(argument, TrainerJob)
    torch.manual_seed(job.seed)
    torch.set_num_threads(1)
    trainer = DemoTrainer(job)
    trainer.run()
    trainer.close()


if __name__ == "__main__":
    end_with_parent()
    main(sys.argv[1])
