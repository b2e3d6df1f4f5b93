"""The trainer's model: logprobs of answers, under the current weights or the versions that sampled them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rltop.backend.demo.rl.task import PAD


@dataclass(frozen=True)
class PaddedAnswers:
    """Prompts with answers, padded on the right.

    Attributes:
        ids: ``[batch, prompt + time]``, prompt and answer, contiguous.
        prompt_sizes: ``[batch]``.
        answers: ``[batch, time]``, answers only.
        mask: ``[batch, time]``, 1.0 where ``answers`` is real.
    """

    ids: Tensor
    prompt_sizes: Tensor
    answers: Tensor
    mask: Tensor

    def rows(self, rows: Tensor) -> PaddedAnswers:
        """Select rows by indices or a boolean mask."""
        return PaddedAnswers(self.ids[rows], self.prompt_sizes[rows], self.answers[rows], self.mask[rows])


def make_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> PaddedAnswers:
    """Pad and stack; row i is ``prompts[i] + answers[i]``."""
    return PaddedAnswers(
        ids=padded([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], PAD),
        prompt_sizes=torch.tensor([len(prompt) for prompt in prompts]),
        answers=padded(answers, PAD),
        mask=padded([[1.0] * len(answer) for answer in answers], 0.0),
    )


def padded(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Rows of unequal length as one tensor ``[rows, longest]``."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def logprobs_and_entropy(
    model: Any,
    batch: PaddedAnswers,
    temperature: float,
    *,
    bf16: bool = False,
    head_fp32: bool = False,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logprob of every answer token, and entropy of the distribution it is from: ``[batch, time]``, nats.

    The distribution is the sampling distribution: softmax of logits / temperature. No attention mask is needed, since
    padding is to the right of all tokens that are read; padded columns hold meaningless finite values. The entropy has
    a gradient only with ``entropy_grad``. ``bf16``: the model computes in bf16 regardless of its weights, head included
    unless ``head_fp32``.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model.model(batch.ids).last_hidden_state
        with torch.autocast("cpu", enabled=bf16 and not head_fp32):
            logits = model.lm_head(hidden.float() if head_fp32 else hidden).float()
    time = torch.arange(batch.answers.shape[1])
    before = (batch.prompt_sizes[:, None] - 1 + time).clamp(max=logits.shape[1] - 1)  # logits at t - 1 predict t
    chosen = logits.gather(1, before[..., None].expand(-1, -1, logits.shape[2]))
    logp = torch.log_softmax(chosen / temperature, -1)
    entropy_logp = logp if entropy_grad else logp.detach()
    return logp.gather(2, batch.answers[..., None]).squeeze(2), -(entropy_logp.exp() * entropy_logp).sum(-1)


def set_dropout(model: Any, share: float) -> None:
    """Set the attention dropout of a model in training mode."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = share


def facts(model: Any, temperature: float, *, bf16: bool = False, head_fp32: bool = False) -> dict[str, Any]:
    """The configuration of ``logprobs_and_entropy``: temperature only, no truncation."""
    return {
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "dtype": torch.bfloat16 if bf16 else model.dtype,
        "head_dtype": torch.bfloat16 if bf16 and not head_fp32 else model.lm_head.weight.dtype,
        "attention_backend": model.config._attn_implementation,
        "torch_version": torch.__version__,
    }


class Snapshots:
    """The last weights of a model by version, and logprobs under them.

    Args:
        model: the live model.
        limit: number of versions kept.
    """

    def __init__(self, model: Any, limit: int) -> None:
        self._model = model
        self._scratch = copy.deepcopy(model).eval()
        self._limit = limit
        self._weights: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    @property
    def versions(self) -> list[int]:
        """The kept versions, oldest first."""
        return list(self._weights)

    def take(self, version: int) -> dict[str, Tensor]:
        """Store a copy of the live weights as ``version`` and return it."""
        weights = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        self._weights[version] = weights
        while len(self._weights) > self._limit:
            self._weights.popitem(last=False)
        return weights

    def logprobs(
        self,
        batch: PaddedAnswers,
        versions: Tensor,
        rows: Tensor,
        temperature: float,
        *,
        bf16: bool = False,
        head_fp32: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs of the chosen rows, each token under the weights of its own version.

        Args:
            batch: prompts and answers.
            versions: ``[batch, time]``, the version that sampled each token.
            rows: indices of the rows to compute.
            temperature: of sampling.
            bf16: as in ``logprobs_and_entropy``.
            head_fp32: as in ``logprobs_and_entropy``.

        Returns:
            ``(logprobs, version)``, both ``[batch, time]`` float; NaN where not computed: other rows, padding, and
            tokens of versions no longer kept.
        """
        logprobs = torch.full(batch.answers.shape, torch.nan)
        known = torch.full(batch.answers.shape, torch.nan)
        wanted = torch.zeros_like(batch.mask, dtype=torch.bool)
        wanted[rows] = batch.mask[rows] > 0
        for version, weights in self._weights.items():
            here = wanted & (versions == version)
            touched = here.any(1)
            if touched.any():
                self._scratch.load_state_dict(weights)
                with torch.no_grad():
                    under, _ = logprobs_and_entropy(
                        self._scratch, batch.rows(touched), temperature, bf16=bf16, head_fp32=head_fp32
                    )
                logprobs[here] = under[here[touched]]
                known[here] = float(version)
        return logprobs, known
