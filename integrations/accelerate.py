"""Hugging Face accelerate: ``watch`` closes a step after each real optimizer step, gradient accumulation included.

```python
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
recorder = rltop.integrations.accelerate.watch(accelerator, optimizer, run="myrun")
...
recorder.rows(token_ids=ids, rollout_logprobs=rollout, trainer_logprobs=logprobs, mask=mask, prompt_ids=prompts)
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rltop.integrations import pytorch
from rltop.integrations.support.recorder import Ranks, Recorder


def watch(
    accelerator: Any,
    optimizer: Any,
    run: str | None = None,
    *,
    updates: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> Recorder:
    """As ``pytorch.watch``, with the ranks of ``accelerator``.

    Args:
        accelerator: the ``Accelerator``.
        optimizer: what ``accelerator.prepare`` returned, or the optimizer itself.
        run: name of the run. None: the run that ``RLTOP_HUB`` or ``RLTOP_RUN`` names.
        updates: optimizer steps on each batch of rollouts.
        facts: of the trainer's configuration: see ``TrainerCollector``.

    Raises:
        ValueError: ``updates`` below 1.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper skips it while gradients accumulate
    return pytorch.watch(inner, run, updates=updates, facts=facts, ranks=lambda: _ranks(accelerator))


def _ranks(accelerator: Any) -> Ranks:
    return Ranks(accelerator.process_index, accelerator.num_processes)
