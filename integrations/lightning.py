"""Lightning: ``watch`` adds a callback that closes a step after each optimizer step.

```python
trainer = lightning.Trainer(...)
module.rltop = rltop.integrations.lightning.watch(trainer, run="myrun")  # before fit
...
def training_step(self, batch, index):
    self.rltop.rows(token_ids=ids, rollout_logprobs=rollout, trainer_logprobs=logprobs, mask=mask, prompt_ids=prompts)
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.integrations.support.recorder import Ranks, Recorder


def watch(
    trainer: Any, run: str | None = None, *, updates: int = 1, facts: Mapping[str, Any] | None = None
) -> Recorder:
    """A recorder whose steps end with the optimizer steps of ``trainer``, also in manual optimization.

    Args:
        trainer: a ``Trainer`` of ``lightning`` or ``pytorch_lightning``.
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        updates: optimizer steps on each batch of rollouts.
        facts: of the trainer's configuration: see ``TrainerCollector``.

    Raises:
        ValueError: ``updates`` below 1.
    """
    if updates < 1:
        raise ValueError(f"updates: {updates}; expected at least 1")
    recorder = Recorder(run, ranks=lambda: Ranks(trainer.global_rank, trainer.world_size), facts=facts)
    trainer.callbacks.append(_callback(trainer, recorder, updates))
    return recorder


def _callback(trainer: Any, recorder: Recorder, updates: int) -> Any:
    """A ``Callback`` of the trainer's own package; the class is made here because Lightning is imported lazily."""
    base = type(trainer).__mro__
    package = "pytorch_lightning" if any(c.__module__.startswith("pytorch_lightning") for c in base) else "lightning"
    import importlib

    callback: Any = importlib.import_module(f"{package}.pytorch" if package == "lightning" else package).Callback
    guard, closed = ErrorBoundary(), [0]

    def catch_up(steps: int) -> None:
        while closed[0] < steps:
            closed[0] += 1
            recorder.end_step()

    class RltopCallback(callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, _module: Any) -> None:
            closed[0] = trainer.global_step // updates  # a run that is resumed

        def on_train_batch_end(self, trainer: Any, *_args: Any, **_kwargs: Any) -> None:
            guard.run("batch end", catch_up, trainer.global_step // updates)

        def on_train_end(self, *_args: Any) -> None:
            guard.run("train end", recorder.close)

    return RltopCallback()
