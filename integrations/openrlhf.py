"""OpenRLHF: ``install`` in the policy's Ray actors observes the policy loss.

A step of rltop is one ``ppo_train``: a batch of rollouts with all epochs on it. The policy version is the number of
broadcasts to vLLM. Rollout logprobs exist in the trainer only with ``--algo.advantage.is_correction_level``.

    ray.init(runtime_env={"worker_process_setup_hook": "rltop.integrations.openrlhf.install",
                          "env_vars": {"RLTOP_RUN": "myrun"}})
"""

from __future__ import annotations

from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once
from rltop.integrations.support.align import pad_left
from rltop.integrations.support.recorder import Ranks, torch_ranks

_VERIFIED = "0.11.2"
_ACTOR = "openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer"

LOSS = Hook("loss", "openrlhf.models.loss:PolicyLoss", "forward",
            ("log_probs", "old_log_probs", "advantages", "action_mask", "rollout_log_probs"),
            "logprobs: without them no rows are sent", _VERIFIED)  # fmt: skip
BATCH = Hook("batch", _ACTOR, "training_step", ("experience", "step"),
             "token ids and rewards: without them no rows are sent", _VERIFIED)  # fmt: skip
TRAIN = Hook("train", _ACTOR, "ppo_train", (), "the end of steps: without it no step is closed", _VERIFIED)
SYNC = Hook("sync", _ACTOR, "broadcast_to_vllm", (), "the policy version", _VERIFIED)

HOOKS = (LOSS, BATCH, TRAIN, SYNC)


def install(run: str | None = None) -> OpenRLHF | None:
    """Observe OpenRLHF in this process, now or when it is imported. Never raises."""
    return install_once(OpenRLHF, run)


class OpenRLHF(Adapter):
    """The hooks in one process of the policy."""

    def _observe(self) -> None:
        self._trainer: Any = None
        self._experience: Any = None
        self._epoch = -1
        self._version = 0
        self.on(LOSS, after=self._after_loss)
        self.on(BATCH, before=self._before_batch, after=self._after_batch)
        self.on(TRAIN, before=self._before_train, after=self._after_train)
        self.on(SYNC, after=self._after_sync)

    def _ranks(self) -> Ranks:
        at, mesh = torch_ranks(), getattr(getattr(self._trainer, "strategy", None), "ds_device_mesh", None)
        replica = 0 if mesh is None else mesh["sp"].get_local_rank() + mesh["tp"].get_local_rank()
        return Ranks(at.rank, at.world_size, replica)

    def _before_train(self, call: Call) -> None:
        self._trainer, self._epoch = call["self"], -1
        self.recorder.version = self._version
        self.recorder.facts(temperature=getattr(getattr(call["self"], "actor", None), "temperature", None))

    def _before_batch(self, call: Call) -> None:
        self._experience = call["experience"]
        self._epoch += call["step"] == 0  # numbered within an epoch

    def _after_batch(self, _call: Call) -> None:
        self._experience = None

    def _after_loss(self, call: Call) -> None:
        experience, loss = self._experience, call["self"]
        if experience is None:
            return
        if call["rollout_log_probs"] is None:
            self.warn_once(
                "OpenRLHF keeps rollout logprobs only with --algo.advantage.is_correction_level token or seq"
            )
            return
        size = experience.sequences.shape[1]
        self.recorder.rows(
            token_ids=experience.sequences,
            **{
                name: pad_left(call[theirs], size)
                for name, theirs in (
                    ("trainer_logprobs", "log_probs"),
                    ("old_logprobs", "old_log_probs"),
                    ("rollout_logprobs", "rollout_log_probs"),
                    ("advantages", "advantages"),
                    ("mask", "action_mask"),
                )
            },
            rewards=experience.rewards,
            old_version=self._version,
            update=max(self._epoch, 0),
            ratio_base="old",
            clip_low=max(1 - loss.clip_eps_low, 0.0),
            clip_high=1 + loss.clip_eps_high,
            objective="gspo" if loss.policy_loss_type == "gspo" else "ppo",
        )

    def _after_train(self, call: Call) -> None:
        self.recorder.end_step(call.result if isinstance(call.result, dict) else None, self._version + 1)

    def _after_sync(self, _call: Call) -> None:
        self._version += 1
