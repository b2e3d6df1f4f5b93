"""verl: ``install`` in the process of the task runner observes the batch before its update.

The driver sees the rollout logprobs and the recomputed (old) ones of the whole batch, so they are what is compared:
equal to the trainer's until the first optimizer step. The logprobs after it exist only in the workers, and are not
seen: ``ppo_kl`` and clip rates are verl's own figures, sent with the step. Ray starts it in every worker process:

    +ray_kwargs.ray_init.runtime_env.worker_process_setup_hook=rltop.integrations.verl.install
    +ray_kwargs.ray_init.runtime_env.env_vars.RLTOP_RUN=myrun
"""

from __future__ import annotations

from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once
from rltop.integrations.support.align import unpadded
from rltop.integrations.support.recorder import Ranks

_VERIFIED = "0.9.1"

BATCH = Hook("batch", "verl.utils.debug.metrics", "calculate_debug_metrics", ("data",),
             "rollout and old logprobs: without them no rows are sent", _VERIFIED)  # fmt: skip
REWARDS = Hook("rewards", "verl.trainer.ppo.metric_utils", "compute_data_metrics", ("batch",),
               "rewards and advantages", _VERIFIED)  # fmt: skip
LOG = Hook("log", "verl.utils.tracking:Tracking", "log", ("data", "step"),
           "step numbers and verl's own figures: without them no step is closed", _VERIFIED)  # fmt: skip

HOOKS = (BATCH, REWARDS, LOG)

SHOWN = ("actor/", "critic/rewards/mean", "training/", "rollout_corr/", "response_length/")
"""Beginnings of verl's keys that are sent with a step."""

ROWS = 256
"""Rows per call: a batch of any size is sent in parts that fit the collector's bound."""


def install(run: str | None = None) -> Verl | None:
    """Observe verl in this process, now or when it is imported. Cheap where verl is never loaded; never raises."""
    return install_once(Verl, run)


class Verl(Adapter):
    """The hooks in the process of the task runner, which is the only one that sends."""

    def _observe(self) -> None:
        self._batch: dict[str, Any] | None = None
        self.on(BATCH, after=self._after_batch)
        self.on(REWARDS, after=self._after_rewards)
        self.on(LOG, after=self._after_log)

    def _ranks(self) -> Ranks:
        return Ranks()

    def _after_batch(self, call: Call) -> None:
        data = call["data"]
        batch, extra = data.batch, getattr(data, "non_tensor_batch", {})
        width = batch["responses"].shape[1]
        mask = batch["response_mask" if "response_mask" in batch else "attention_mask"][:, -width:]
        self._batch = {
            "token_ids": batch["responses"],
            "rollout_logprobs": batch["rollout_log_probs"],
            "trainer_logprobs": batch["old_log_probs"],
            "mask": mask,
            "prompt_ids": _prompts(batch),
            "entropy": batch.get("entropy"),
            "rollout_versions": _versions(extra),
            "environments": _names(extra),
        }

    def _after_rewards(self, call: Call) -> None:
        batch, pending = call["batch"].batch, self._batch
        if pending is None or batch["responses"].shape != pending["token_ids"].shape:
            return
        pending["rewards"] = batch["token_level_rewards"].sum(-1)
        pending["advantages"] = batch["advantages"]

    def _after_log(self, call: Call) -> None:
        step, data, pending = int(call["step"]), call["data"], self._batch
        if pending is None:
            if "actor/pg_loss" in data or "actor/ppo_kl" in data:
                self.warn_once("verl trains without recomputed logprobs: set actor_rollout_ref.rollout."
                               "calculate_log_probs=True, and not bypass_mode")  # fmt: skip
            return
        self._batch = None
        self.recorder.at(step, step - 1)  # verl trains version step - 1 in step, which starts at 1
        for first in range(0, pending["token_ids"].shape[0], ROWS):
            self.recorder.rows(**{name: _part(value, first) for name, value in pending.items()})
        self.recorder.end_step({name: value for name, value in data.items() if name.startswith(SHOWN)}, step)


def _part(value: Any, first: int) -> Any:
    return None if value is None else value[first : first + ROWS]


def _prompts(batch: Any) -> list[Any] | None:
    if "prompts" not in batch or "attention_mask" not in batch:
        return None
    prompts = batch["prompts"]
    return unpadded(prompts, batch["attention_mask"][:, : prompts.shape[1]])


def _versions(extra: Any) -> Any:
    """Per row: the version of a response that one version sampled; -1 where several did, or none is stated."""
    oldest, newest = extra.get("min_global_steps"), extra.get("max_global_steps")
    if oldest is None or newest is None:
        return None
    import numpy as np

    pairs = zip(oldest, newest, strict=True)
    return np.array([low if low is not None and low == high else -1 for low, high in pairs], np.int64)


def _names(extra: Any) -> list[str] | None:
    names = extra.get("data_source")
    return None if names is None else [str(name)[:256] for name in names]
