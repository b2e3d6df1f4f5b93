"""slime and miles: ``install`` in the Megatron actors observes the policy loss. Their engines run SGLang.

rltop has no collector for SGLang: there are no rollouts to join with and no engines to switch, so what is shown is the
trainer's side, its logprobs against the copy of the rollout logprobs that it holds. With context parallelism each rank
has a part of a row, and no rows are sent.

At the end of ``slime/backends/megatron_utils/loss.py``, or of ``miles/backends/training_utils/loss_hub/losses.py``:

    import rltop.integrations.slime; rltop.integrations.slime.install()
"""

from __future__ import annotations

from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once

_SLIME, _MILES = "slime 0.3.1 (2026-08-21)", "miles 0.1.0 (2026-08-21)"
_ROWS = "the rows that are trained on"
_PLACES = (
    ("slime.backends.megatron_utils.loss", "slime.backends.megatron_utils.model", _SLIME),
    ("miles.backends.training_utils.loss_hub.losses", "miles.backends.megatron_utils.model", _MILES),
)

LOSS = tuple(
    Hook(f"loss {place}", place, "policy_loss_function", ("args", "batch"), _ROWS, seen) for place, _, seen in _PLACES
)
LOGPROBS = tuple(
    Hook(f"logprobs {place}", place, "get_log_probs_and_entropy", ("response_lengths",), _ROWS, seen)
    for place, _, seen in _PLACES
)
TRAIN = tuple(
    Hook(f"train {place}", place, "train", ("rollout_id",), "the end of steps", seen) for _, place, seen in _PLACES
)

HOOKS = (*LOSS, *LOGPROBS, *TRAIN)


def install(run: str | None = None) -> Slime | None:
    """Observe slime and miles in this process, now or when they are imported. Never raises."""
    return install_once(Slime, run)


class Slime(Adapter):
    """The hooks in one actor. A step is one rollout id."""

    def _observe(self) -> None:
        self._found: Any = None
        self._inside = False
        for hook in LOSS:
            self.on(hook, before=self._before_loss, after=self._after_loss)
        for hook in LOGPROBS:
            self.on(hook, after=self._after_logprobs)
        for hook in TRAIN:
            self.on(hook, before=self._before_train, after=self._after_train)

    def _before_train(self, call: Call) -> None:
        self.recorder.at(int(call["rollout_id"]), int(call["rollout_id"]))

    def _after_train(self, _call: Call) -> None:
        self.recorder.end_step()

    def _before_loss(self, _call: Call) -> None:
        self._inside, self._found = True, None

    def _after_logprobs(self, call: Call) -> None:
        if self._inside:
            self._found = call.result[1] if isinstance(call.result, tuple) else call.result

    def _after_loss(self, call: Call) -> None:
        self._inside = False
        found, args, batch = self._found, call["args"], call["batch"]
        if found is None or not batch.get("rollout_log_probs"):
            self.warn_once("no rollout logprobs in the batch: set --use-tis or --get-mismatch-metrics")
            return
        lengths = [int(length) for length in batch["response_lengths"]]
        if [len(row) for row in found["log_probs"]] != lengths:
            self.warn_once("context-parallel ranks hold parts of rows: their rows are not sent")
            return
        tokens, old = batch["unconcat_tokens"], batch.get("log_probs")
        self.recorder.rows(
            token_ids=[row[-length:] for row, length in zip(tokens, lengths, strict=True)],
            prompt_ids=[row[:-length] for row, length in zip(tokens, lengths, strict=True)],
            trainer_logprobs=list(found["log_probs"]),
            entropy=list(found["entropy"]) if "entropy" in found else None,
            rollout_logprobs=list(batch["rollout_log_probs"]),
            old_logprobs=list(old) if old else None,
            old_version=self.recorder.version if old and not getattr(args, "keep_old_actor", False) else None,
            advantages=list(batch["advantages"]),
            mask=list(batch["loss_masks"]),
            temperature=getattr(args, "rollout_temperature", None),
            ratio_base="rollout" if args.use_rollout_logprobs else "old",
            objective="gspo" if args.advantage_estimator == "gspo" else "ppo",
            clip_low=max(1 - args.eps_clip, 0.0),
            clip_high=1 + args.eps_clip_high,
        )
