"""Runs a framework's own loss or batch functions with its adapter on, and prints its figures beside a real hub's.

``python framework_losses.py NAME [moved]`` prints {"theirs": by key, "ours": by metric}, with the framework on the path
and ``RLTOP_HOME`` and ``RLTOP_RUN`` set; with ``moved`` the trainer's logprobs differ from the old ones. Imports that a
CPU can't satisfy (flash-attn, DeepSpeed) get empty stand-ins: the functions that are run do not use them.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import signal
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import rltop.backend.demo
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract.launch import find_hub
from rltop.collectors.contract.rundir import for_run
from rltop.integrations.hooks import Call

BATCH, PROMPT, WIDTH, WORDS = 6, 4, 9, 40
MODEL = str(Path(rltop.backend.demo.__file__).parent / "sort-sft")

Theirs = dict[str, float]


class Rows:
    """Random rows: prompts [B, P], responses [B, R] with padding, and logprobs of three policies.

    ``moved``: the weights have changed since the old logprobs; else the trainer's are the old ones.
    """

    def __init__(self, moved: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(3, WORDS, (BATCH, PROMPT), generator=generator)
        self.responses = torch.randint(3, WORDS, (BATCH, WIDTH), generator=generator)
        self.lengths = torch.tensor([9, 5, 7, 9, 3, 6])
        self.mask = torch.arange(WIDTH)[None] < self.lengths[:, None]
        self.rollout = -torch.rand(BATCH, WIDTH, generator=generator) * 3 - 0.1
        self.old = (self.rollout + 0.3 * torch.randn(BATCH, WIDTH, generator=generator)).clamp(max=-0.01)
        step = 0.2 * torch.randn(BATCH, WIDTH, generator=generator) * moved
        self.new = (self.old + step).clamp(max=-0.01)
        self.advantages = torch.randn(BATCH, 1, generator=generator).expand(BATCH, WIDTH).clone()
        self.rewards = torch.randint(0, 2, (BATCH,), generator=generator).float()

    @property
    def sequences(self) -> torch.Tensor:
        return torch.cat([self.prompts, self.responses], 1)

    def wide(self, values: torch.Tensor) -> torch.Tensor:
        """[B, P + R], zeros at the prompts."""
        return torch.nn.functional.pad(values, (PROMPT, 0))


def stand_in(*names: str) -> None:
    """Empty modules whose attributes are mocks."""
    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.__getattr__ = lambda attribute: _mock(attribute)  # type: ignore[method-assign]
        sys.modules[name] = module


def load(module: str) -> Any:
    """Import a module of a framework; third-party packages that are missing get stand-ins."""
    for _ in range(60):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == module.partition(".")[0]:
                raise
            stand_in(error.name)
    raise ImportError(module)


def _mock(attribute: str) -> Any:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return mock.MagicMock(name=attribute)


def verl(rows: Rows) -> Theirs:
    from rltop.integrations import verl as adapter

    adapter.install()
    from verl.protocol import DataProto
    from verl.trainer.ppo import metric_utils, rollout_corr_helper
    from verl.utils.debug import metrics
    from verl.utils.tracking import Tracking

    mask = rows.mask.long()
    tensors = {
        "prompts": rows.prompts, "responses": rows.responses, "response_mask": mask,
        "attention_mask": torch.cat([torch.ones_like(rows.prompts), mask], 1), "rollout_log_probs": rows.rollout,
        "old_log_probs": rows.old, "advantages": rows.advantages, "returns": rows.advantages,
        "token_level_scores": rows.rewards[:, None] * torch.nn.functional.one_hot(rows.lengths - 1, WIDTH),
    }  # fmt: skip
    tensors["token_level_rewards"] = tensors["token_level_scores"]
    batch = DataProto.from_dict(tensors=tensors)
    figures = metrics.calculate_debug_metrics(batch)
    helper = rollout_corr_helper.compute_offpolicy_metrics(rows.old, rows.rollout, mask)
    figures |= {f"rollout_corr/{key}": value for key, value in helper.items()}
    figures |= metric_utils.compute_data_metrics(batch, use_critic=False)
    Tracking("project", "experiment", "console").log(data=figures | {"actor/pg_loss": 0.5}, step=1)
    return dict(figures)


def prime_rl(rows: Rows) -> Theirs:
    from rltop.integrations import prime_rl as adapter

    stand_in("prime_rl.configs", "prime_rl.configs.trainer")
    adapter.install()
    from prime_rl.trainer.rl import loss, token_export

    keep = rows.wide(rows.mask.float()).bool()
    flat: Any = lambda values: rows.wide(values).reshape(1, -1)  # noqa: E731
    batch = {
        "input_ids": rows.sequences.reshape(1, -1), "inference_logprobs": flat(rows.rollout),
        "loss_mask": keep.reshape(1, -1), "advantages": flat(rows.advantages), "rl_weights": None,
        "temperatures": torch.full((1, keep.numel()), 0.7), "env_names": ["sort"] * keep.numel(),
    }  # fmt: skip
    out = {"logprobs": flat(rows.new), "entropy": flat(-rows.new)}
    lengths = [PROMPT + WIDTH] * BATCH
    token_export.DisabledTokenExporter().export(1, 0, batch, out, lengths, None)
    _, _, kl = loss.compute_importance_ratio_and_mismatch_kl(out["logprobs"], batch["inference_logprobs"])
    mean = kl[batch["loss_mask"]].mean().item()
    entropy = out["entropy"][batch["loss_mask"]].mean().item()
    by_row = [kl.split(lengths, 1)[n][0][keep[n]].mean().item() for n in range(BATCH)]
    adapter.install()._close()  # type: ignore[union-attr]
    return {"mismatch_kl/all/mean": mean, "entropy/all/mean": entropy, "mismatch_kl/mean": sum(by_row) / BATCH}


def openrlhf(rows: Rows) -> Theirs:
    from rltop.integrations import openrlhf as adapter

    watching = adapter.install()
    actors = load("openrlhf.trainer.ray.ppo_actor")
    from openrlhf.models.loss import PolicyLoss
    from openrlhf.trainer.ppo_utils.experience import Experience

    action = torch.nn.functional.pad(rows.mask, (PROMPT - 1, 0))
    wide: Any = lambda values: torch.nn.functional.pad(values, (PROMPT - 1, 0))  # noqa: E731
    experience = Experience(
        sequences=rows.sequences, attention_mask=torch.ones_like(rows.sequences), action_mask=action,
        action_log_probs=wide(rows.old), rollout_log_probs=wide(rows.rollout), advantages=wide(rows.advantages),
        rewards=rows.rewards,
    )  # fmt: skip
    trainer: Any = object.__new__(actors.ActorPPOTrainer)
    args = mock.MagicMock()
    args.actor.entropy_coef, args.algo.kl.use_loss, args.train.dynamic_batch_enable = None, False, False
    trainer.args, trainer.strategy, trainer.aux_loss, trainer.ema_model = args, mock.MagicMock(), False, None
    trainer.strategy.ds_device_mesh = None
    trainer.actor_loss_fn = PolicyLoss(is_correction_level="token")
    trainer.actor = mock.MagicMock(return_value=(wide(rows.new), mock.MagicMock()), temperature=0.7)
    trainer.actor_optim, trainer.actor_scheduler = mock.MagicMock(), mock.MagicMock()
    trainer.actor_scheduler.get_last_lr.return_value = [1e-6]
    trainer.strategy.get_grad_norm.return_value = 1.0
    assert watching is not None
    watching._before_train(Call({"self": trainer}))
    figures = trainer.training_step(experience, 0.0, 0, {"dp_size": 1})["metrics"]
    watching._after_train(Call({}, {"actor_lr": 1e-6}))
    return {
        "ppo_kl": float(figures["ppo_kl"]),
        "vllm_kl": float(figures["vllm_kl"]),
        "ppo_clip_ratio": float(figures["ppo_clip_ratio"]),
    }


def nemo_rl(rows: Rows) -> Theirs:
    from rltop.integrations import nemo_rl as adapter

    watching = adapter.install()
    stand_in("torch.utils.tensorboard")
    losses = load("nemo_rl.algorithms.loss.loss_functions")
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    mask = rows.wide(rows.mask.float())
    data = BatchedDataDict(
        input_ids=rows.sequences, advantages=rows.wide(rows.advantages), prev_logprobs=rows.wide(rows.old),
        generation_logprobs=rows.wide(rows.rollout), token_mask=mask, sample_mask=torch.ones(BATCH),
        reference_policy_logprobs=rows.wide(rows.old), rewards=rows.rewards,
    )  # fmt: skip
    loss = losses.ClippedPGLossFn(losses.ClippedPGLossConfig(reference_policy_kl_penalty=0.0))
    assert watching is not None
    watching._before_train(Call({"self": SimpleNamespace(), "eval_mode": False}))
    count = mask[:, 1:].sum()
    _, figures = loss(rows.wide(rows.new)[:, 1:], data, torch.tensor(float(BATCH)), count)
    watching._after_train(Call({}))
    return {key: float(value) for key, value in figures.items()}


def pipelinerl(rows: Rows) -> Theirs:
    import inspect

    from transformers import AutoModelForCausalLM

    from rltop.integrations import pipelinerl as adapter

    stand_in("deepspeed")
    from pipelinerl.finetune import rl
    from pipelinerl.finetune.types import PipelineBatchEncoding

    line = "import rltop.integrations.pipelinerl; rltop.integrations.pipelinerl.record(**locals())"
    source = textwrap.dedent(inspect.getsource(rl.rl_step))
    head, _, tail = source.rpartition("    return final_loss, stats")
    exec(compile(f"{head}    {line}\n    return final_loss, stats{tail}", "rl_step", "exec"), rl.__dict__)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    keep = [torch.cat([rows.sequences[n, : PROMPT + int(length)]]) for n, length in enumerate(rows.lengths)]
    flat: Any = lambda values: torch.cat([rows.wide(values)[n, : len(row)] for n, row in enumerate(keep)])[None]  # noqa: E731
    ids, trained = torch.cat(keep)[None], flat(rows.mask.float()).bool()
    counts = torch.cat([torch.full((len(row),), float(rows.lengths[n])) for n, row in enumerate(keep)])[None]
    batch = PipelineBatchEncoding(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.where(trained, ids, -100),
        position_ids=torch.cat([torch.arange(len(row)) for row in keep])[None],
        segment_ids=torch.cat([torch.full((len(row),), n) for n, row in enumerate(keep)])[None],
        rewards=torch.cat([torch.full((len(row),), float(rows.rewards[n])) for n, row in enumerate(keep)])[None],
        advantages=flat(rows.advantages), ref_logprobs=flat(rows.rollout), old_logprobs=flat(rows.rollout),
        group_tokens=torch.ones_like(ids).float(), num_labels=counts, overflow=torch.zeros_like(ids).float(),
        model_version=0, is_packed=True,
        seq_boundaries=torch.tensor([0, *[len(row) for row in keep]]).cumsum(0),
    )  # fmt: skip
    _, stats = rl.rl_step(model, batch, 0, 10, rl.RLConfig(batch_size=BATCH, kl_coef=0.0))
    ratio, squares = stats["ratio_new_old_sum"], stats["ratio_new_old_squared_sum"]
    adapter.install()._close()  # type: ignore[union-attr]
    mean = ("kl_new_old", "ratio_new_old", "mean_abs_log_ratio_new_old", "reward")
    return {f"rl/{key}": stats[key] / BATCH for key in mean} | {
        "rl/ess": ratio**2 / squares / stats["num_output_tokens_sum"]
    }


def slime(rows: Rows) -> Theirs:
    return _megatron("slime.backends.megatron_utils.loss", rows)


def _megatron(module: str, rows: Rows) -> Theirs:
    from rltop.integrations import slime as adapter

    watching = adapter.install()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    from megatron.core import mpu

    mpu.initialize_model_parallel(1)
    loss = importlib.import_module(module)
    lengths = [int(length) for length in rows.lengths]
    tokens = [rows.sequences[n, : PROMPT + length] for n, length in enumerate(lengths)]
    totals = [len(row) for row in tokens]
    logits = torch.randn(1, sum(totals), WORDS, generator=torch.Generator().manual_seed(1))
    cut: Any = lambda values: [values[n, :length] for n, length in enumerate(lengths)]  # noqa: E731
    args = SimpleNamespace(
        use_rollout_logprobs=False, use_opsm=False, advantage_estimator="grpo", eps_clip=0.2, eps_clip_high=0.2,
        eps_clip_c=None, get_mismatch_metrics=True, use_tis=False, custom_tis_function_path=None, tis_clip_low=0.0,
        tis_clip=2.0, calculate_per_token_loss=False, entropy_coef=0.0, use_kl_loss=False, allgather_cp=False,
        log_probs_chunk_size=-1, rollout_temperature=1.0, rollout_top_p=1.0, qkv_format="thd",
        true_on_policy_mode=False,
    )  # fmt: skip
    now = loss.get_log_probs_and_entropy(
        logits, args=args, unconcat_tokens=tokens, total_lengths=totals, response_lengths=lengths
    )[1]["log_probs"]
    gap, moved = cut(rows.old - rows.rollout), cut(rows.new - rows.old)
    old = [one.detach() - step for one, step in zip(now, moved, strict=True)]
    batch = {
        "advantages": cut(rows.advantages), "log_probs": old,
        "rollout_log_probs": [one - step for one, step in zip(old, gap, strict=True)],
        "unconcat_tokens": tokens, "response_lengths": lengths, "total_lengths": totals,
        "loss_masks": [torch.ones(length) for length in lengths],
        "rollout_mask_sums": [torch.tensor(float(length)) for length in lengths],
    }  # fmt: skip
    from slime.backends.megatron_utils.cp_utils import get_sum_of_sample_mean

    reduce = get_sum_of_sample_mean(totals, lengths, batch["loss_masks"], batch["rollout_mask_sums"], False)
    assert watching is not None
    watching._before_train(Call({"rollout_id": 3}))
    _, figures = loss.policy_loss_function(args, batch, logits, reduce)
    watching._after_train(Call({}))
    return {f"train/{key}": float(value) / BATCH for key, value in figures.items()}


def skyrl(rows: Rows) -> Theirs:
    import typing

    import typing_extensions

    from rltop.integrations import skyrl as adapter

    typing.TypedDict = typing_extensions.TypedDict  # SkyRL needs Python 3.12 for pydantic's sake only
    watching = adapter.install()
    wrapper = load("skyrl.backends.skyrl_train.workers.model_wrapper")
    workers = load("skyrl.backends.skyrl_train.workers.worker")
    Experience = load("skyrl.train.dataset.replay_buffer").Experience  # noqa: N806
    losses = load("skyrl.backends.skyrl_train.utils.ppo_utils")
    config = load("skyrl.train.config.config")

    model = wrapper.HFModelWrapper(MODEL, use_flash_attention_2=False, bf16=False)
    lengths = rows.mask.long()
    attention = torch.cat([torch.ones_like(rows.prompts), lengths], 1)
    with torch.no_grad():
        now = model(rows.sequences, WIDTH, attention_mask=attention)
    old = now - (rows.new - rows.old)
    experience = Experience(
        sequences=rows.sequences, action_log_probs=old, base_action_log_probs=old, values=None, returns=None,
        advantages=rows.advantages, attention_mask=attention, loss_mask=lengths, response_mask=lengths,
        rollout_logprobs=old - (rows.old - rows.rollout), num_actions=WIDTH, info={}, rollout_expert_indices=None,
    )  # fmt: skip
    trainer = config.TrainerConfig()
    trainer.algorithm.temperature = 1.0
    trainer.algorithm.off_policy_correction.tis_ratio_type = "token"
    worker: Any = object.__new__(workers.PolicyWorkerBase)
    worker.__dict__ |= {
        "model": model, "cfg": trainer, "strategy": mock.MagicMock(), "optimizer": None, "scheduler": mock.MagicMock(),
        "mesh_rank": SimpleNamespace(dp_size=1, sp=0, tp=0), "policy_loss_fn": losses.ppo_policy_loss,
        "_modules": {}, "_parameters": {}, "_buffers": {},
    }  # fmt: skip
    worker.scheduler.get_last_lr.return_value = [1e-6]
    with mock.patch("torch.cuda.current_device", lambda: "cpu"):
        figures = worker._forward_backward_micro(experience, 1.0)
    assert watching is not None
    watching._before_sync(Call({}))
    return {f"policy/{key}": float(value) for key, value in figures.items() if isinstance(value, float)}


FRAMEWORKS: dict[str, Callable[[Rows], Theirs]] = {
    "verl": verl, "prime-rl": prime_rl, "OpenRLHF": openrlhf, "SkyRL": skyrl, "NeMo-RL": nemo_rl,
    "PipelineRL": pipelinerl, "slime": slime,
}  # fmt: skip


def measured() -> dict[str, float | None]:
    """The metrics of the first step that the run's hub measures."""
    import time

    rundir = for_run(os.environ["RLTOP_RUN"])
    while True:
        with Client(rundir) as client:
            steps = list(client.snapshot().steps.values())
        if steps and steps[0].values.get("tokens"):
            return dict(steps[0].values)
        time.sleep(0.5)


def main() -> None:
    """Run one framework, and end the hub that its adapter started."""
    passed: set[str] = set()
    send = TrainerCollector.sequences

    def sequences(self: TrainerCollector, step: int, **arrays: Any) -> None:
        passed.update(name for name, value in arrays.items() if value is not None)
        send(self, step, **arrays)

    TrainerCollector.sequences = sequences  # type: ignore[method-assign]
    theirs = FRAMEWORKS[sys.argv[1]](Rows(moved="moved" in sys.argv[2:]))
    print(json.dumps({"theirs": theirs, "ours": measured(), "passed": sorted(passed)}, default=float), flush=True)
    if (hub := find_hub(for_run(os.environ["RLTOP_RUN"]))) is not None:
        os.kill(hub.pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
