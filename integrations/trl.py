"""TRL: ``watch`` attaches rltop to a ``GRPOTrainer`` with vLLM, in server and in colocate mode.

```python
trainer = GRPOTrainer(...)
rltop.integrations.trl.watch(trainer, run="myrun")
trainer.train()
```

Methods of this trainer are wrapped (``HOOKS``) and a callback is added; TRL's classes stay as they are. Evaluation is
ignored. A step of rltop is an optimizer step of TRL, ``global_step``; with ``num_iterations`` above 1 it is a
generation with all optimizer steps on it. The policy version is ``global_step``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.collectors import TrainerCollector, weights_updated
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.integrations.hooks import Call, Hook, Hooks

log = logging.getLogger("rltop")

_VERIFIED = "0.29.0 1.0.0 1.8.0 1.16.0"

GENERATION = Hook(
    "generation",
    ".",
    "_generate_and_score_completions",
    ("inputs",),
    "prompts, rewards and environments of the rows, and the versions that sampled them",
    _VERIFIED,
)
REWARDS = Hook("rewards", ".", "_calculate_rewards", (), "rewards", _VERIFIED)
LOGPROBS = Hook(
    "logprobs",
    ".",
    "_get_per_token_logps_and_entropies",
    (),
    "the trainer's logprobs and entropies: without them no rows are sent",
    _VERIFIED,
)
LOSS = Hook("loss", ".", "_compute_loss", ("inputs",), "the rows that are trained on", _VERIFIED)
SYNC = Hook("sync", ".vllm_generation", "sync_weights", (), "the policy version that samples", _VERIFIED)
ENTROPY_MASK = Hook(
    "entropy mask", ".", "get_high_entropy_mask", (), "tokens left out of the loss by top_entropy_quantile", _VERIFIED
)
OFF_POLICY_MASK = Hook(
    "off-policy mask", ".", "get_off_policy_mask", (), "rows left out of the loss by off_policy_mask_threshold",
    _VERIFIED,
)  # fmt: skip
GAMMA = Hook("gamma weights", ".", "get_gamma_weights", (), "weights of the vespo loss", "1.0.0 1.8.0 1.16.0")

HOOKS = (GENERATION, REWARDS, LOGPROBS, LOSS, SYNC, ENTROPY_MASK, OFF_POLICY_MASK, GAMMA)

ROWS = "rltop_rows"
"""Key that is added to TRL's batch: the place of each row in its generation. TRL shuffles and splits it too."""

LOGGED = ("loss", "grad_norm", "learning_rate", "kl")
"""Figures of TRL's log that are sent with a step, if it logs them."""

UNCLIPPED = frozenset({"sapo", "vespo"})
"""Loss types without bounds on the ratio."""


def watch(
    trainer: Any, run: str | None = None, *, environment: str = "environment", facts: Mapping[str, Any] | None = None
) -> Watcher:
    """Attach rltop to a ``GRPOTrainer`` after its construction. Call it in every process, before ``train``.

    A second call for the same trainer returns the first one's watcher. What the installed version of TRL does not have
    is one warning and a lost capability; training is never affected.

    Args:
        trainer: a ``GRPOTrainer`` with ``use_vllm=True``, or an instance of a subclass.
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        environment: column of the dataset that names the environment or task of a prompt, if there is one.
        facts: of the trainer's configuration, in addition to those read from ``trainer``; see ``TrainerCollector``.

    Raises:
        ValueError: no run is named, its name is invalid, or its directory can't be used; or a fact is invalid.
    """
    watcher = getattr(trainer, "_rltop_watcher", None)
    if not isinstance(watcher, Watcher):
        watcher = trainer._rltop_watcher = Watcher(trainer, run, environment, facts or {})
    return watcher


@dataclass(frozen=True)
class Generation:
    """What is kept of a generation batch while its rows are trained on; entries by row, in the order before shuffling.

    Attributes:
        version: of the trainer's weights when the batch was generated.
        sampled_by: version of the weights that sampled it; None if unknown.
        prompts: token ids without padding.
        rewards: [rows], weighted sums over the reward functions, NaN where none returned one; None if not seen.
        environments: names; None if the dataset has no such column.
    """

    version: int
    sampled_by: int | None
    prompts: list[Any]
    rewards: Any
    environments: list[str | None] | None


@dataclass
class Scored:
    """What TRL computed inside one call of its loss function."""

    logprobs: Any = None
    entropy: Any = None
    factors: list[Any] = field(default_factory=list)


class Watcher:
    """Observes one trainer and sends what it trains on.

    Attributes:
        collector: the trainer collector of this process.
    """

    def __init__(self, trainer: Any, run: str | None, environment: str, facts: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self._environment = environment
        self._guard = ErrorBoundary()
        accelerator = trainer.accelerator
        self.collector = TrainerCollector(
            run=run,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            facts={**(self._guard.run("facts", _facts, trainer) or {}), **facts},
        )
        self._hooks = Hooks(self._guard, trainer)
        self._generation: Generation | None = None
        self._rewards: Any = None  # of the generation in progress, over all processes: [rows, functions]
        self._scored: Scored | None = None  # while the loss of a training batch is computed
        self._synced: int | None = None
        self._batches = 0  # trained on since the generation
        self._open: int | None = None
        self._warned = False
        self._closing: tuple[int, int] | None = None  # step and version; waits for TRL's log
        self._guard.run("install", self._install)

    @property
    def missing(self) -> dict[str, str]:
        """Hooks that could not be installed, with the reason."""
        return self._hooks.missing

    def undo(self) -> None:
        """Leave the trainer as it was, and disconnect."""
        self._hooks.undo()
        self._trainer.remove_callback(self._callback)
        del self._trainer._rltop_watcher
        self.collector.close()

    def _install(self) -> None:
        trainer, add = self._trainer, self._hooks.add
        self._callback = _callback(self, self._guard)
        trainer.add_callback(self._callback)
        if not getattr(trainer, "use_vllm", False):
            log.warning("rltop: this trainer generates without vLLM: there are no rollouts to compare with")
            return
        add(GENERATION, before=self._before_generation, after=self._after_generation)
        add(REWARDS, after=self._after_rewards)
        add(LOSS, before=self._before_loss, after=self._after_loss)
        add(LOGPROBS, after=self._after_logprobs)
        add(SYNC, after=self._after_sync)
        if getattr(trainer.vllm_generation, "llm", None) is not None:
            self._guard.run("engine", self._attach_engine)
        if getattr(trainer, "top_entropy_quantile", 1.0) < 1.0:
            add(ENTROPY_MASK, after=self._after_factor)
        if getattr(trainer, "off_policy_mask_threshold", None) is not None:
            add(OFF_POLICY_MASK, after=self._after_factor)
        if trainer.loss_type == "vespo":
            add(GAMMA, after=self._after_factor)

    def _attach_engine(self) -> None:
        """Attach the engine inside this process; ranks that share a model have one that reports for all."""
        from rltop.collectors.vllm.attachable import attach_engines_here

        path = str(self.collector.rundir.path)
        engines = attach_engines_here(self.collector.rundir)
        others = [f"engine {engine} reports to {run or 'no run'}" for engine, run in engines.items() if run != path]
        if not engines and self._trainer.accelerator.process_index % self._trainer.vllm_tensor_parallel_size == 0:
            others = ["it was started without rltop's plugin, or with RLTOP_DORMANT=0"]
        if others:
            log.warning("rltop: the engine in this process is not attached to %s: %s", path, "; ".join(others))

    # --- generation -----------------------------------------------------------------------------------------------

    @property
    def _training(self) -> bool:
        return bool(self._trainer.model.training)

    @property
    def _version(self) -> int:
        return int(self._trainer.state.global_step)

    def _after_sync(self, _call: Call) -> None:
        self._synced = self._version
        if self._trainer.vllm_mode == "colocate":
            weights_updated(self._synced)  # the engine is in this process
        if self._trainer.accelerator.is_main_process and _holds_all_weights(self._trainer):
            self.collector.weights(self._synced, self._trainer.model.named_parameters())

    def _before_generation(self, _call: Call) -> None:
        if not self._training:
            return
        self._rewards = None
        if self._open is not None and self._open != self._number(self._version):
            self._end_step()  # the generation before did not end with an optimizer step
        self._close()

    def _after_rewards(self, call: Call) -> None:
        self._rewards = call.result

    def _after_generation(self, call: Call) -> None:
        if not self._training:
            return
        inputs, batch = call["inputs"], call.result
        ids, mask = (batch[name].cpu().numpy() for name in ("prompt_ids", "prompt_mask"))
        names = [row.get(self._environment) for row in inputs]
        self._generation = Generation(
            version=self._version,
            sampled_by=self._synced,
            prompts=[row[kept != 0] for row, kept in zip(ids, mask, strict=True)],
            rewards=self._own_rewards(len(inputs)),
            environments=[None if name is None else str(name) for name in names] if any(names) else None,
        )
        self._batches = 0
        import torch

        batch[ROWS] = torch.arange(len(inputs))  # on the CPU, so that reading it never waits for a device

    def _own_rewards(self, rows: int) -> Any:
        """Rewards of this process's rows, as TRL logs them."""
        if self._rewards is None:
            return None
        each = self._rewards
        rewards = (each * self._trainer.reward_weights.to(each.device)).nansum(1)
        rewards[each.isnan().all(1)] = math.nan
        first = self._trainer.accelerator.process_index * rows
        return rewards[first : first + rows].cpu().numpy()

    # --- loss -----------------------------------------------------------------------------------------------------

    def _before_loss(self, _call: Call) -> None:
        self._scored = Scored() if self._training else None

    def _after_logprobs(self, call: Call) -> None:
        if self._scored is not None:
            logprobs, entropy = call.result[:2]
            self._scored.logprobs = logprobs.detach()
            self._scored.entropy = None if entropy is None else entropy.detach()

    def _after_factor(self, call: Call) -> None:
        if self._scored is not None:
            self._scored.factors.append(call.result)

    def _after_loss(self, call: Call) -> None:
        scored, self._scored = self._scored, None
        generation = self._generation
        if scored is None or generation is None:
            return
        update = self._batches // self._trainer.args.steps_per_generation
        self._batches += 1
        self._open = self._number(self._version if self._once else generation.version)
        if scored.logprobs is not None and "sampling_per_token_logps" in call["inputs"]:
            self._send(self._open, update, generation, call["inputs"], scored)

    def _send(self, step: int, update: int, generation: Generation, inputs: Any, scored: Scored) -> None:
        trainer = self._trainer
        mask = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask = mask * inputs["tool_mask"]
        old = inputs.get("old_per_token_logps")
        old = scored.logprobs if old is None else old  # as TRL does
        rows = inputs[ROWS].tolist()
        rewards, environments = generation.rewards, generation.environments
        self.collector.sequences(
            step,
            update=update,
            token_ids=inputs["completion_ids"],
            mask=mask,
            prompt_ids=[generation.prompts[row] for row in rows],
            rollout_logprobs=inputs["sampling_per_token_logps"],
            trainer_logprobs=scored.logprobs,
            old_logprobs=old,
            old_version=generation.version,
            entropy=scored.entropy,
            advantages=inputs["advantages"],
            rewards=None if rewards is None else rewards[rows],
            environments=None if environments is None else [environments[row] for row in rows],
            policy_version=self._version,
            rollout_versions=generation.sampled_by,
            temperature=trainer.temperature,
            weights=_weights(trainer, inputs, scored),
            ratio_base="old",
            objective="gspo" if trainer.importance_sampling_level == "sequence" else "ppo",
            **_clip(trainer, inputs["advantages"], scored.logprobs - old),
        )

    # --- steps ----------------------------------------------------------------------------------------------------

    def _number(self, version: int) -> int:
        """Number of the step that begins at ``version``: of an update if rows are used once, else of a generation."""
        per_step = 1 if self._once else self._batches_per_generation // self._trainer.args.gradient_accumulation_steps
        return version // max(per_step, 1)

    @property
    def _once(self) -> bool:
        """Whether each row is trained on once."""
        return int(self._trainer.num_iterations) == 1

    @property
    def _batches_per_generation(self) -> int:
        return int(self._trainer.args.steps_per_generation * self._trainer.num_iterations)

    def on_step_end(self, logs_follow: bool) -> None:
        """After an optimizer step: ``global_step`` is already raised."""
        if not self._once and self._batches < self._batches_per_generation:
            return
        if self._open is None and not self._warned:
            self._warned = True
            log.warning("rltop: an optimizer step ended, but no loss was seen: TRL computed it in another method")
        self._end_step()
        if not logs_follow:
            self._close()

    def on_log(self, logs: Mapping[str, Any]) -> None:
        """After TRL logged."""
        self._close({name: logs[name] for name in LOGGED if isinstance(logs.get(name), int | float)})

    def _end_step(self) -> None:
        """No more rows are trained on in the open step."""
        if self._open is not None:
            self._closing, self._open = (self._open, self._version), None

    def _close(self, metrics: Mapping[str, float] | None = None) -> None:
        """Close the step that waits for its log, if there is one."""
        if self._closing is not None:
            (step, version), self._closing = self._closing, None
            self.collector.step(step, policy_version=version, metrics=metrics)

    def on_train_end(self) -> None:
        """Close what is open; the collector sends the rest when the process ends."""
        self._close()
        self._end_step()
        self._close()


def _callback(watcher: Watcher, guard: ErrorBoundary) -> Any:
    """A ``TrainerCallback`` that passes events on; the class is made here because transformers is imported lazily."""
    from transformers import TrainerCallback

    class RltopCallback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, _state: Any, control: Any, **_kwargs: Any) -> None:
            guard.run("step end", watcher.on_step_end, bool(control.should_log))

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_kwargs: Any) -> None:
            guard.run("log", watcher.on_log, logs or {})

        def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
            guard.run("train end", watcher.on_train_end)

    return RltopCallback()


def _holds_all_weights(trainer: Any) -> bool:
    """Whether this process has the weights that engines receive: not sharded, and not as adapters."""
    sharded = str(getattr(trainer.accelerator.distributed_type, "value", "")) in ("FSDP", "DEEPSPEED")
    return not sharded and not hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config")


def _facts(trainer: Any) -> dict[str, Any]:
    """Of the distribution whose logprobs TRL computes: it scales by the temperature and ignores top-p and the like."""
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(trainer.accelerator.mixed_precision)
    dtype = precision or trainer.model.dtype
    return {
        "model": trainer.model.name_or_path or None,
        "dtype": dtype,
        "head_dtype": "float32" if getattr(trainer.args, "cast_lm_head_to_fp32", False) else dtype,
        "temperature": trainer.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def _clip(trainer: Any, advantages: Any, log_ratio: Any) -> dict[str, Any]:
    """Bounds of the ratio. For cispo ``epsilon_high`` is the upper bound itself, and there is no lower one.

    Where that is below 1 (its default is ``epsilon``, 0.2), the clipped tokens instead: a bound below 1 is no bound for
    the collector.
    """
    high = trainer.epsilon_high
    if trainer.loss_type in UNCLIPPED:
        return {}
    if trainer.loss_type != "cispo":
        return {"clip_low": max(1 - trainer.epsilon_low, 0.0), "clip_high": 1 + high}
    if high >= 1:
        return {"clip_high": high}
    return {"clipped": (log_ratio.exp() > high) & (advantages.reshape(len(advantages), -1) > 0)}


def _weights(trainer: Any, inputs: Any, scored: Scored) -> Any:
    """Product of the factors of the loss per token [B, T] or row [B]; None if there are none.

    The vespo loss has the importance-sampling ratio within its own weights.
    """
    factors = list(scored.factors)
    if trainer.loss_type != "vespo" and inputs.get("importance_sampling_ratio") is not None:
        factors.append(inputs["importance_sampling_ratio"])
    if not factors:
        return None
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product.squeeze(1) if product.shape[1] == 1 else product
