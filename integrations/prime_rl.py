"""prime-rl: ``install`` at the top of ``src/prime_rl/trainer/rl/train.py``, before its other imports.

The trainer hands each micro-batch and its logprobs to its token exporter, in every configuration: that call is
observed. A step has prime-rl's number, which starts at 1 and trains version step - 1.

    import rltop.integrations.prime_rl; rltop.integrations.prime_rl.install()
"""

from __future__ import annotations

import atexit
from itertools import pairwise
from typing import Any

from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once
from rltop.integrations.support.align import offsets
from rltop.integrations.support.recorder import Ranks, torch_ranks

_VERIFIED = "0.8.0 (2026-08-21)"
_EXPORT = "prime_rl.trainer.rl.token_export"

SETUP = Hook("setup", _EXPORT, "setup_token_exporter", ("parallel_dims",),
             "context-parallel ranks: without it their rows count several times", _VERIFIED)  # fmt: skip
EXPORT = Hook("export", f"{_EXPORT}:TokenExporter", "export",
              ("step", "micro_batch", "model_output", "sequence_lengths"), "rows, if tokens are exported",
              _VERIFIED)  # fmt: skip
NO_EXPORT = Hook("no export", f"{_EXPORT}:DisabledTokenExporter", "export", (),
                 "rows, if tokens are not exported", _VERIFIED)  # fmt: skip
FILES = Hook("files", "prime_rl.transports.weights.filesystem:FileSystemWeightBroadcast", "broadcast_weights",
             ("step",), "the end of steps: else a step ends when the next begins", _VERIFIED)  # fmt: skip
NCCL = Hook("nccl", "prime_rl.transports.weights.nccl:NCCLWeightBroadcast", "broadcast_weights", ("step",),
            "the end of steps: else a step ends when the next begins", _VERIFIED)  # fmt: skip

HOOKS = (SETUP, EXPORT, NO_EXPORT, FILES, NCCL)


def install(run: str | None = None) -> PrimeRL | None:
    """Observe prime-rl in this process, now or when it is imported. Never raises."""
    return install_once(PrimeRL, run)


class PrimeRL(Adapter):
    """The hooks in one trainer process."""

    def _observe(self) -> None:
        self._open: int | None = None
        self._replica = 0
        self.on(SETUP, before=self._before_setup)
        self.on(EXPORT, before=self._before_export)
        self.on(NO_EXPORT, before=self._before_no_export)
        self.on(FILES, after=self._after_broadcast)
        self.on(NCCL, after=self._after_broadcast)
        atexit.register(self.guard.run, "last step", self._close)

    def _ranks(self) -> Ranks:
        at = torch_ranks()
        return Ranks(at.rank, at.world_size, self._replica)

    def _before_setup(self, call: Call) -> None:
        dims = call["parallel_dims"]
        self._replica = dims.world_mesh["cp"].get_local_rank() if dims.cp_enabled else 0

    def _before_no_export(self, call: Call) -> None:
        step, _micro_step, batch, output, lengths, *_ = call["args"]
        self._rows(step, batch, output, lengths)

    def _before_export(self, call: Call) -> None:
        self._rows(call["step"], call["micro_batch"], call["model_output"], call["sequence_lengths"])

    def _rows(self, step: int, batch: Any, output: Any, lengths: list[int]) -> None:
        if self._open != step:
            self._close()
            self._open = step
            self.recorder.at(step, step - 1)
        bounds = offsets(lengths)
        self.recorder.rows(
            token_ids=batch["input_ids"],
            cu_seqlens=bounds,
            rollout_logprobs=batch["inference_logprobs"],
            trainer_logprobs=output["logprobs"],
            mask=batch["loss_mask"],
            entropy=output.get("entropy"),
            advantages=batch["advantages"],
            temperature=batch["temperatures"],
            weights=batch.get("rl_weights"),
            environments=_environments(batch.get("env_names"), bounds),
        )

    def _after_broadcast(self, call: Call) -> None:
        if call["step"] == self._open:  # at the start, the version before the first step is broadcast
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            step, self._open = self._open, None
            self.recorder.end_step(version=step)


def _environments(names: list[str] | None, bounds: Any) -> list[str | None] | None:
    """The environment of each packed row, from one name per token."""
    if not names:
        return None
    return [next((name for name in names[first:last] if name), None) for first, last in pairwise(bounds)]
