"""SkyRL: ``install`` in the policy workers (FSDP) observes the model's forward pass inside a training micro-batch.

A step of rltop lies between two weight syncs: a batch of rollouts with all mini-batches and epochs on it.

    ray.init(runtime_env={"worker_process_setup_hook": "rltop.integrations.skyrl.install",
                          "env_vars": {"RLTOP_RUN": "myrun"}})
"""

from __future__ import annotations

from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once
from rltop.integrations.support.align import pad_left
from rltop.integrations.support.recorder import Ranks, torch_ranks

_VERIFIED = "0.4.0"
_WORKER = "skyrl.backends.skyrl_train.workers.worker:PolicyWorkerBase"

BATCH = Hook("batch", _WORKER, "_forward_backward_micro", ("experience",),
             "token ids, old and rollout logprobs: without them no rows are sent", _VERIFIED)  # fmt: skip
FORWARD = Hook("forward", "skyrl.backends.skyrl_train.workers.model_wrapper:HFModelWrapper", "forward",
               ("sequences", "num_actions", "temperature", "return_output"),
               "the trainer's logprobs: without them no rows are sent", _VERIFIED)  # fmt: skip
UPDATE = Hook("update", _WORKER, "optim_step", (), "the number of the update, if there are several epochs", _VERIFIED)
SYNC = Hook("sync", "skyrl.backends.skyrl_train.workers.fsdp.fsdp_worker:FSDPPolicyWorkerBase",
            "broadcast_to_inference_engines", (), "the end of steps: without it no step is closed",
            _VERIFIED)  # fmt: skip

HOOKS = (BATCH, FORWARD, UPDATE, SYNC)


def install(run: str | None = None) -> SkyRL | None:
    """Observe SkyRL in this process, now or when it is imported. Never raises."""
    return install_once(SkyRL, run)


class SkyRL(Adapter):
    """The hooks in one policy worker."""

    def _observe(self) -> None:
        self._worker: Any = None
        self._experience: Any = None
        self._updates = 0
        self._rows = False
        self.on(BATCH, before=self._before_batch, after=self._after_batch)
        self.on(FORWARD, after=self._after_forward)
        self.on(UPDATE, after=self._after_update)
        self.on(SYNC, before=self._before_sync)

    def _ranks(self) -> Ranks:
        at, mesh = torch_ranks(), getattr(self._worker, "mesh_rank", None)
        return Ranks(at.rank, at.world_size, 0 if mesh is None else mesh.sp + mesh.tp)

    def _before_batch(self, call: Call) -> None:
        self._worker, self._experience = call["self"], call["experience"]

    def _after_batch(self, _call: Call) -> None:
        self._experience = None

    def _after_update(self, _call: Call) -> None:
        self._updates += 1

    def _after_forward(self, call: Call) -> None:
        experience = self._experience
        if experience is None or not call["return_output"]:
            return
        if experience.rollout_logprobs is None:
            self.warn_once("SkyRL's batch has no rollout logprobs: set generator.sampling_params.logprobs")
            return
        logprobs, output = call.result
        algorithm, size = self._worker.cfg.algorithm, experience.sequences.shape[1]
        actions = logprobs.shape[1]
        entropy = output.get("entropy") if hasattr(output, "get") else None
        arrays = {
            "trainer_logprobs": logprobs,
            "old_logprobs": experience.action_log_probs,
            "rollout_logprobs": experience.rollout_logprobs,
            "advantages": experience.advantages,
            "mask": experience.loss_mask,
            "entropy": None if entropy is None else entropy[:, -actions - 1 : -1],  # of the next token
        }
        self.recorder.rows(
            token_ids=experience.sequences,
            **{name: pad_left(values, size) for name, values in arrays.items()},
            old_version=self.recorder.version,  # computed before the step's first update
            temperature=call["temperature"],
            update=self._epoch(),
            ratio_base="old",
            clip_low=max(1 - algorithm.eps_clip_low, 0.0),
            clip_high=1 + algorithm.eps_clip_high,
            objective="gspo" if algorithm.policy_loss_type == "gspo" else "ppo",
        )
        self._rows = True

    def _epoch(self) -> int:
        """Times that these rows were trained on before."""
        config = self._worker.cfg
        per_epoch = max(config.train_batch_size // config.policy_mini_batch_size, 1)
        return int(min(self._updates // per_epoch, config.update_epochs_per_batch - 1))

    def _before_sync(self, _call: Call) -> None:
        if self._rows:  # the weights are also sent before the first step
            self.recorder.end_step()
        self._updates, self._rows = 0, False
