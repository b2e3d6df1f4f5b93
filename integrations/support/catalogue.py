"""The frameworks with an adapter: the lines to add, the hooks, how well each is proven, what is lost. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rltop.integrations import engine, nemo_rl, openrlhf, pipelinerl, prime_rl, skyrl, slime, trl, verl
from rltop.integrations.hooks import Hook

Proof = Literal["run", "loss run", "contract"]

PROOFS: dict[Proof, str] = {
    "run": "a real training run, its figures compared with what the collector sent",
    "loss run": "the framework's own loss or batch functions run on tensors on the CPU, observed by the adapter",
    "contract": "the functions exist with the expected parameters in the framework's source; nothing was run",
}


@dataclass(frozen=True)
class Framework:
    """One framework.

    Attributes:
        name: as its authors write it.
        package: what is imported.
        distribution: what is installed; empty if it is used from a checkout.
        place: where the lines go.
        lines: the lines to add.
        hooks: functions that the adapter observes; none where the user's own code calls the recorder.
        proof: the strongest proof.
        proven: versions, date, and what exactly was run.
        lost: what the adapter does not see.
        roots: where hooks of an object are looked up in the source: attribute path from the object -> its class.
    """

    name: str
    package: str
    distribution: str
    place: str
    lines: tuple[str, ...]
    hooks: tuple[Hook, ...]
    proof: Proof
    proven: str
    lost: str
    roots: Mapping[str, str] = field(default_factory=dict)


_RECORD = (
    "recorder.rows(token_ids=ids, prompt_ids=prompts, mask=mask, rollout_logprobs=rollout, trainer_logprobs=logprobs)"
)
_LOOP = "nothing: what is passed to rows is seen"


def _ray(module: str) -> tuple[str, ...]:
    return (
        f'ray.init(runtime_env={{"worker_process_setup_hook": "rltop.integrations.{module}.install",',
        '                      "env_vars": {"RLTOP_RUN": "myrun"}})',
    )


FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "TRL", "trl", "trl", "after GRPOTrainer is made, before train()",
        ("import rltop.integrations.trl", 'rltop.integrations.trl.watch(trainer, run="myrun")'),
        trl.HOOKS, "run", "1.16.0, 2026-11-30: GRPOTrainer with vLLM, see docs/integrations/trl.md",
        "what docs/integrations/trl.md lists",
        {"": "trl.trainer.grpo_trainer:GRPOTrainer",
         "vllm_generation": "trl.generation.vllm_generation:VLLMGeneration"},
    ),
    Framework(
        "PyTorch", "torch", "torch", "in the training loop",
        ("import rltop.integrations.pytorch",
         'recorder = rltop.integrations.pytorch.watch(optimizer, run="myrun")', _RECORD),
        (), "run", "2.13.0, 2026-11-30: the demo's model trained on recorded rollouts", _LOOP,
    ),
    Framework(
        "accelerate", "accelerate", "accelerate", "in the training loop",
        ("import rltop.integrations.accelerate",
         'recorder = rltop.integrations.accelerate.watch(accelerator, optimizer, run="myrun")', _RECORD),
        (), "run", "1.15.0, 2026-11-30: a run with gradient accumulation", _LOOP,
    ),
    Framework(
        "Lightning", "lightning", "lightning", "before Trainer.fit, and in training_step",
        ("import rltop.integrations.lightning",
         'module.recorder = rltop.integrations.lightning.watch(trainer, run="myrun")', "self." + _RECORD),
        (), "run", "2.6.6, 2026-11-30: a run with gradient accumulation", _LOOP,
    ),
    Framework(
        "verl", "verl", "verl", "to the command line of verl.trainer.main_ppo",
        ("+ray_kwargs.ray_init.runtime_env.worker_process_setup_hook=rltop.integrations.verl.install",
         "+ray_kwargs.ray_init.runtime_env.env_vars.RLTOP_RUN=myrun",
         "actor_rollout_ref.rollout.calculate_log_probs=True"),
        verl.HOOKS, "loss run", "0.9.1, 2026-11-30: its debug metrics and data metrics on a DataProto",
        "the logprobs during the update: ppo_kl and clip rates are verl's own figures; bypass_mode; with "
        "trainer v1 prompts, versions per row and environments",
    ),
    Framework(
        "prime-rl", "prime_rl", "", "at the top of src/prime_rl/trainer/rl/train.py, above the other imports",
        ("import rltop.integrations.prime_rl; rltop.integrations.prime_rl.install()",),
        (*prime_rl.HOOKS, *engine.PRIME_RL), "loss run",
        "0.8.0 (2026-08-21), 2026-11-30: its mismatch KL and exporter on packed rows",
        "rewards, which the trainer does not have; the masks of its trust region",
    ),
    Framework(
        "OpenRLHF", "openrlhf", "openrlhf", "to the call of ray.init in openrlhf/cli/train_ppo_ray.py",
        _ray("openrlhf"), openrlhf.HOOKS, "loss run",
        "0.11.2, 2026-11-30: ActorPPOTrainer.training_step with PolicyLoss",
        "rows without rollout logprobs (is_correction_level off); entropy; the weights of its corrections",
    ),
    Framework(
        "SkyRL", "skyrl", "skyrl", "to the call of ray.init in skyrl/train/utils/utils.py",
        _ray("skyrl"), skyrl.HOOKS, "loss run",
        "0.4.0, 2026-11-30: PolicyWorkerBase._forward_backward_micro with HFModelWrapper and a real model",
        "workers with Megatron; rewards; the weights of its corrections",
    ),
    Framework(
        "NeMo-RL", "nemo_rl", "", "at the end of nemo_rl/algorithms/loss/loss_functions.py",
        ("import rltop.integrations.nemo_rl; rltop.integrations.nemo_rl.install()",),
        nemo_rl.HOOKS, "loss run", "0.6.0 (2026-08-22), 2026-11-30: ClippedPGLossFn",
        "entropy; the weights of its corrections; rltop has to be in the policy workers' environment",
    ),
    Framework(
        "PipelineRL", "pipelinerl", "", "in pipelinerl/finetune/rl/__init__.py, before the last return of rl_step",
        ("import rltop.integrations.pipelinerl; rltop.integrations.pipelinerl.record(**locals())",),
        (*pipelinerl.HOOKS, engine.PIPELINE_RL), "loss run",
        "2026-06-19, 2026-11-30: rl_step with the line in it and a real model",
        "sequence-parallel ranks; versions per row: PipelineRL has one per micro-batch",
    ),
    Framework(
        "slime", "slime", "", "at the end of slime/backends/megatron_utils/loss.py",
        ("import rltop.integrations.slime; rltop.integrations.slime.install()",),
        tuple(h for h in slime.HOOKS if "slime" in h.owner), "loss run",
        "0.3.1 (2026-08-21), 2026-11-30: policy_loss_function with Megatron's parallel state on the CPU",
        "engines: they run SGLang, so nothing is joined or switched; context-parallel ranks; rewards",
    ),
    Framework(
        "miles", "miles", "", "at the end of miles/backends/training_utils/loss_hub/losses.py",
        ("import rltop.integrations.slime; rltop.integrations.slime.install()",),
        tuple(h for h in slime.HOOKS if "miles" in h.owner), "contract",
        "0.1.0 (2026-08-21), 2026-11-30: the source was read",
        "engines: they run SGLang, so nothing is joined or switched; context-parallel ranks; rewards",
    ),
)  # fmt: skip

BY_NAME: dict[str, Framework] = {framework.name.lower(): framework for framework in FRAMEWORKS}
