"""Runs the published functions of TRL and verl on arrays; ``python framework_values.py ARRAYS.npz`` prints a dict.

A process of its own, since the frameworks bring much along. verl's functions are called. TRL computes its metrics in
the middle of two methods of ``GRPOTrainer``; those statements are taken from the installed source and executed as they
are.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import sys
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def verl(a: dict[str, Any]) -> dict[str, float]:
    from verl.protocol import DataProto
    from verl.trainer.ppo.core_algos import compute_policy_loss
    from verl.trainer.ppo.rollout_corr_helper import (
        compute_offpolicy_metrics,
        compute_rollout_correction_weights,
        compute_rollout_rejection_mask,
    )
    from verl.utils.debug.metrics import calculate_debug_metrics

    trainer, rollout, mask = a["trainer"], a["rollout"], a["mask"]
    values = {f"rollout_corr/{k}": v for k, v in compute_offpolicy_metrics(trainer, rollout, mask).items()}
    for spec, level, settings in (
        (2.0, "token", ("token level", "token level, threshold 2")),
        ("0.5_5.0", "token", ("IcePop 0.5_5",)),
        (2.0, "sequence", ("sequence level", "sequence level, threshold 2")),
    ):
        _, metrics = compute_rollout_correction_weights(trainer - rollout, mask, level, spec)
        values |= {f"rollout_corr/{k} ({when})": v for k, v in metrics.items() for when in settings}
    for option, bounds in (("seq_mean_k1", "0.99_1.01"), ("seq_sum_k1", "0.5_2.0")):
        _, metrics = compute_rollout_rejection_mask(trainer - rollout, mask, option, bounds)
        values |= {f"rollout_corr/{k} ({option}, {bounds})": v for k, v in metrics.items()}
    batch = {"rollout_log_probs": rollout, "old_log_probs": trainer, "response_mask": mask, "responses": mask}
    values |= calculate_debug_metrics(DataProto.from_dict(tensors=batch))
    gain = a["advantages"][:, None].expand_as(trainer)
    _, clipped, kl, _ = compute_policy_loss(
        rollout, trainer, gain, mask, cliprange=0.2, cliprange_low=0.1, cliprange_high=0.2, clip_ratio_c=1e9
    )
    return values | {"actor/pg_clipfrac": float(clipped), "actor/ppo_kl": float(kl)}


def trl(a: dict[str, Any]) -> dict[str, float]:
    """The figures of each mode; those of the importance ratio are named ``key (when)``."""
    ratio = "sampling/importance_sampling_ratio/"
    values: dict[str, float] = {}
    for mode, cap, when in (
        ("token_truncate", 2.0, "token_truncate at 2 (default: 3)"),
        ("sequence_truncate", 3.0, "sequence_truncate at 3"),
        ("sequence_mask", 3.0, "sequence_mask at 3, the default"),
    ):
        found = trl_mode(a, mode, cap)
        values |= {f"{key} ({when})" if key.startswith(ratio) else key: value for key, value in found.items()}
    return values


def trl_mode(a: dict[str, Any], mode: str, cap: float) -> dict[str, float]:
    from trl.trainer import grpo_trainer

    metrics: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    same = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=None, vllm_importance_sampling_clip_max=cap, accelerator=same,
        _metrics=metrics, beta=0.0, loss_type="grpo", epsilon_low=0.1, epsilon_high=0.2,
    )  # fmt: skip
    ratio = torch.exp(a["trainer"] - a["rollout"])
    scope: dict[str, Any] = vars(grpo_trainer) | {
        "self": trainer, "mode": "train", "device": "cpu", "math": math, "tool_mask": None,
        "completion_mask": a["mask"], "mask": a["mask"], "old_per_token_logps": a["trainer"],
        "sampling_per_token_logps": a["rollout"], "coef_1": ratio, "advantages": a["advantages"][:, None],
        "entropies": a["entropy"],
    }  # fmt: skip
    for statements in (_correction(grpo_trainer.GRPOTrainer), _logged(grpo_trainer.GRPOTrainer)):
        code = compile(ast.Module(statements, []), inspect.getfile(grpo_trainer), "exec")
        exec(code, scope)
    return {key: values[-1] for key, values in metrics["train"].items()}


def _body(method: Any) -> list[ast.stmt]:
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(function, ast.FunctionDef)
    return function.body


def _correction(trainer: Any) -> list[ast.stmt]:
    """The statements under ``if self.use_vllm and self.vllm_importance_sampling_correction``: ratio, then metrics."""
    asked = "self.use_vllm and self.vllm_importance_sampling_correction"
    body = ast.Module(_body(trainer._generate_and_score_completions), [])
    tests = [node for node in ast.walk(body) if isinstance(node, ast.If) and ast.unparse(node.test) == asked]
    found: list[ast.stmt] = list(tests)
    found.sort(key=lambda node: node.lineno)
    assert len(found) >= 2
    return [found[0], next(node for node in found[1:] if "sampling_logp_difference" in ast.unparse(node))]


def _logged(trainer: Any) -> list[ast.stmt]:
    """What ``_compute_loss`` does from its helpers for logging on, but for its return."""
    body = _body(trainer._compute_loss)
    helpers = [n for n, node in enumerate(body) if isinstance(node, ast.FunctionDef) and node.name == "masked_seq_mean"]
    return [node for node in body[helpers[0] :] if not isinstance(node, ast.Return)]


def main() -> None:
    with np.load(sys.argv[1]) as file:
        arrays: dict[str, Any] = {name: torch.from_numpy(file[name]) for name in file.files}
    arrays["mask"] = arrays["mask"].to(arrays["trainer"].dtype)
    print(json.dumps({"verl": verl(arrays), "TRL": trl(arrays)}))


if __name__ == "__main__":
    main()
