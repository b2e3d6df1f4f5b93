"""A plain PyTorch loop: ``watch`` closes a step after each optimizer step, and numbers steps and versions.

```python
recorder = rltop.integrations.pytorch.watch(optimizer, run="myrun")
...
recorder.rows(token_ids=ids, rollout_logprobs=rollout, trainer_logprobs=logprobs, mask=mask, prompt_ids=prompts)
loss.backward(); optimizer.step()
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.integrations.support.recorder import Ranks, Recorder, torch_ranks


def watch(
    optimizer: Any,
    run: str | None = None,
    *,
    updates: int = 1,
    facts: Mapping[str, Any] | None = None,
    ranks: Callable[[], Ranks] = torch_ranks,
) -> Recorder:
    """A recorder whose steps end with those of ``optimizer``. Call ``recorder.rows`` where the loss is computed.

    Args:
        optimizer: a ``torch.optim.Optimizer``.
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        updates: optimizer steps on each batch of rollouts. The engines' weights are updated once per batch.
        facts: of the trainer's configuration: see ``TrainerCollector``.
        ranks: place of this process among the trainer's; from torch.distributed unless given.

    Raises:
        ValueError: ``updates`` below 1.
    """
    if updates < 1:
        raise ValueError(f"updates: {updates}; expected at least 1")
    recorder, guard, done = Recorder(run, ranks=ranks, facts=facts), ErrorBoundary(), [0]

    def after_step(*_: Any) -> None:
        done[0] += 1
        if done[0] % updates == 0:
            guard.run("optimizer step", recorder.end_step)

    optimizer.register_step_post_hook(after_step)
    return recorder
