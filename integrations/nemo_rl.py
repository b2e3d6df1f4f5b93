"""NeMo-RL: ``install`` in the policy workers observes the clipped policy-gradient loss.

The loss function travels to the workers and is imported there, so a line at the end of its module reaches them all:
``nemo_rl/algorithms/loss/loss_functions.py``. rltop has to be installed in the policy workers' environments too.

    import rltop.integrations.nemo_rl; rltop.integrations.nemo_rl.install()
"""

from __future__ import annotations

from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once
from rltop.integrations.support.recorder import Ranks, torch_ranks

_VERIFIED = "0.6.0 (2026-08-22)"
_WORKERS = "nemo_rl.models.policy.workers"

LOSS = Hook("loss", "nemo_rl.algorithms.loss.loss_functions:ClippedPGLossFn", "__call__",
            ("next_token_logprobs", "data"), "the rows that are trained on", _VERIFIED)  # fmt: skip
TRAIN = tuple(
    Hook(f"train {module}", f"{_WORKERS}.{module}:{name}", "train", ("data", "loss_fn", "eval_mode"),
         "the end of steps with this worker", _VERIFIED)
    for module, name in (
        ("dtensor_policy_worker", "DTensorPolicyWorkerImpl"),
        ("dtensor_policy_worker_v2", "DTensorPolicyWorkerV2Impl"),
        ("megatron_policy_worker", "MegatronPolicyWorkerImpl"),
    )
)  # fmt: skip

HOOKS = (LOSS, *TRAIN)


def install(run: str | None = None) -> NemoRL | None:
    """Observe NeMo-RL in this process, now or when it is imported. Never raises."""
    return install_once(NemoRL, run)


class NemoRL(Adapter):
    """The hooks in one policy worker. A step is one call of its ``train``."""

    def _observe(self) -> None:
        self._worker: Any = None
        self.on(LOSS, after=self._after_loss)
        for hook in TRAIN:
            self.on(hook, before=self._before_train, after=self._after_train)

    def _ranks(self) -> Ranks:
        at = torch_ranks()
        return Ranks(at.rank, at.world_size, _replica(self._worker))

    def _before_train(self, call: Call) -> None:
        self._worker = None if call["eval_mode"] else call["self"]

    def _after_train(self, _call: Call) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self.recorder.end_step()

    def _after_loss(self, call: Call) -> None:
        loss, data = call["self"], call["data"]
        if self._worker is None:
            return
        on_policy = loss.force_on_policy_ratio
        self.recorder.rows(
            token_ids=data["input_ids"],
            shifted=True,  # next_token_logprobs has one column less
            trainer_logprobs=call["next_token_logprobs"],
            rollout_logprobs=data["generation_logprobs"],
            old_logprobs=None if on_policy else data["prev_logprobs"],
            old_version=None if on_policy else self.recorder.version,
            advantages=data["advantages"],
            mask=data["token_mask"] * data["sample_mask"][:, None],
            rewards=data.get("rewards"),
            ratio_base="current" if on_policy else "old",
            objective="gspo" if loss.sequence_level_importance_ratios else "ppo",
            **_clip(loss),
        )


def _clip(loss: Any) -> dict[str, float]:
    if loss.disable_ppo_ratio:
        return {}
    return {"clip_low": max(1 - loss.ratio_clip_min, 0.0), "clip_high": 1 + loss.ratio_clip_max}


def _replica(worker: Any) -> int:
    """Ranks of tensor and context parallelism hold the same rows."""
    meshes = (getattr(worker, name, None) for name in ("tp_mesh", "cp_mesh"))
    found = sum(mesh.get_local_rank() for mesh in meshes if mesh is not None)
    return int(found)
