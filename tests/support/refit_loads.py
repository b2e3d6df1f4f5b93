"""Worker methods that break the loading of weights, for the refit guard: each fault sits between sender and model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rltop.backend.demo.engines import weight_transfer

Item = tuple[str, torch.Tensor]
Fault = Callable[[Item], Item | None]

FAULTS: dict[str, Fault] = {
    "": lambda item: item,
    "head": lambda item: None if "lm_head" in item[0] else item,
    "layer": lambda item: None if ".layers.1." in item[0] else item,
    "scaled": lambda item: (item[0], item[1] * 1.05),
    "cast": lambda item: (item[0], item[1].bfloat16().float()),
    "attention scaled": lambda item: (item[0], item[1] * 0.5) if "q_proj" in item[0] else item,
}
"""What happens to each tensor on its way into ``load_weights``."""


class Extension(weight_transfer.WorkerExtension):
    """Mixed into vLLM's worker by ``worker_extension_cls``."""

    def break_loading(self, fault: str) -> None:
        """From now on, ``load_weights`` of the model gets tensors with the fault."""
        model = self.model_runner.model

        def load_weights(weights: Iterable[Item]) -> Any:
            return type(model).load_weights(model, _with_fault(weights, FAULTS[fault]))

        model.load_weights = load_weights

    def lose(self, kind: str) -> None:
        """Weights are gone, as after a sleep that dropped them: the memory has zeros, or what was there before."""
        for parameter in self.model_runner.model.parameters():
            if parameter.numel():
                content = torch.zeros_like(parameter) if kind == "zeros" else 50 * torch.randn_like(parameter)
                parameter.data.copy_(content)


def _with_fault(weights: Iterable[Item], fault: Fault) -> Iterator[Item]:
    for item in weights:
        if (broken := fault(item)) is not None:
            yield broken
