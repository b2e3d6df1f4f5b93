"""PipelineRL: the trainer's logprobs are local variables of ``rl_step``, so one line in it passes them on.

In ``pipelinerl/finetune/rl/__init__.py``, before the last ``return`` of ``rl_step``:

    import rltop.integrations.pipelinerl; rltop.integrations.pipelinerl.record(**locals())

A step is PipelineRL's ``completed_steps``. Versions are numbers of samples, as PipelineRL counts them.
"""

from __future__ import annotations

import atexit
from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once

_VERIFIED = "2026-06-19"

ROWS = Hook("rows", "pipelinerl.finetune.rl", "rl_step", ("batch", "current_step", "config", "seq_parallel_group"),
            "the variables that the line in rl_step passes", _VERIFIED)  # fmt: skip
SYNC = Hook("sync", "pipelinerl.finetune_loop:WeightUpdateManager", "send_weight_update", ("version",),
            "versions of the weights", _VERIFIED)  # fmt: skip

HOOKS = (ROWS, SYNC)


def install(run: str | None = None) -> PipelineRL | None:
    """The adapter of this process. ``record`` calls it; call it earlier to see the versions from the start."""
    return install_once(PipelineRL, run)


def record(**variables: Any) -> None:
    """Send the rows of one call of ``rl_step``, from its local variables. Never raises."""
    if (adapter := install()) is not None:
        adapter.guard.run("rows", adapter.rows, variables)


class PipelineRL(Adapter):
    """One trainer process."""

    def _observe(self) -> None:
        self._open: int | None = None
        self._version = 0
        self.on(SYNC, after=self._after_sync)
        atexit.register(self.guard.run, "last step", self._close)

    def rows(self, v: dict[str, Any]) -> None:
        """Send one micro-batch; close the step before, if this one belongs to the next."""
        batch, config, step = v["batch"], v["config"], v["current_step"]
        if v.get("seq_parallel_group") is not None:
            self.warn_once("sequence-parallel ranks hold parts of rows: their rows are not sent")
            return
        if self._open != step:
            self._close()
            self._open = step
            self.recorder.at(step, self._version)
        if batch.sentinel:
            return
        gspo, clip = config.policy_loss == "gspo", config.policy_loss != "reinforce"
        self.recorder.rows(
            token_ids=batch.input_ids,
            shifted=True,  # rl_step's variables have one column less
            cu_seqlens=batch.seq_boundaries if batch.is_packed else None,
            trainer_logprobs=v["new_logprobs"],
            entropy=v.get("entropy"),
            rollout_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            mask=batch.labels != -100,
            rewards=_rewards(batch),
            rollout_versions=batch.model_version,
            temperature=config.temperature,
            objective="gspo" if gspo else "ppo",
            clip_low=1 - config.epsilon_low if clip else None,
            clip_high=1 + config.epsilon_high,
        )

    def _after_sync(self, call: Call) -> None:
        self._version = int(call["version"])
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            step, self._open = self._open, None
            self.recorder.at(step, self._version)
            self.recorder.end_step(version=self._version)


def _rewards(batch: Any) -> Any:
    """One reward per row: PipelineRL repeats it at each token."""
    rewards = batch.rewards
    return rewards[0, batch.seq_boundaries[:-1].long()] if batch.is_packed else rewards[:, 0]
