"""The same arrays through other frameworks: equal to 1e-6 under the names that the catalogue gives as aliases.

What TRL and verl publish runs where they are installed, which beside vLLM and this torch takes a folder of their own:

    pip install --no-deps --target DIR trl==1.16.0 verl==0.9.1 ray tensordict codetiming pandas pyarrow datasets \
        xxhash dill multiprocess hydra-core omegaconf antlr4-python3-runtime==4.9.3 accelerate peft pytz tzdata \
        python-dateutil six orjson pyvers importlib-metadata torchdata cloudpickle msgpack jsonschema filelock
    RLTOP_FRAMEWORKS=DIR pytest tests/backend/metrics/test_metric_frameworks.py

Formulas re-derived from their documentation and source are compared always.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rltop.backend import metrics
from rltop.backend.measure import arrays

FRAMEWORKS = os.environ.get("RLTOP_FRAMEWORKS", "")
INSTALLED = bool(FRAMEWORKS) or all(importlib.util.find_spec(name) for name in ("trl", "verl"))


def arrays_of(seed: int, noise: float) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    rollout = -rng.exponential(0.7, (16, 60))
    return {
        "trainer": np.minimum(rollout + rng.laplace(0, noise, rollout.shape), 0.0),
        "rollout": rollout,
        "mask": np.arange(60) < rng.integers(3, 61, 16)[:, None],
        "advantages": rng.normal(size=16),
        "entropy": rng.exponential(1, rollout.shape),
    }


def ours(a: dict[str, NDArray[Any]]) -> dict[str, float | None]:
    return arrays.values(
        {
            "trainer_logprobs": a["trainer"], "rollout_logprobs": a["rollout"], "old_logprobs": a["rollout"],
            "mask": a["mask"], "advantages": a["advantages"], "entropy": a["entropy"], "clip_low": 0.9,
            "clip_high": 1.2,
        }
    )  # fmt: skip


def compared(framework: str, theirs: dict[str, float], values: dict[str, float | None]) -> int:
    """Compare under every alias of the framework that is the same quantity; how many."""
    count = 0
    for metric in metrics.METRICS:
        for alias in metric.aliases:
            name, _, key = alias.partition(": ")
            if name == framework and key in theirs:
                assert values[metric.name] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), (metric.name, alias)
                count += 1
    return count


@pytest.mark.skipif(not INSTALLED, reason="TRL and verl are not installed (RLTOP_FRAMEWORKS)")
@pytest.mark.parametrize(("seed", "noise"), [(0, 0.01), (1, 0.2), (2, 1.5)])
def test_the_published_code_of_trl_and_verl_gives_the_same_numbers(tmp_path: Path, seed: int, noise: float) -> None:
    a = arrays_of(seed, noise)
    np.savez(tmp_path / "arrays.npz", allow_pickle=False, **a)
    script = Path(__file__).parents[2] / "support" / "framework_values.py"
    search = os.pathsep.join(filter(None, [FRAMEWORKS, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "arrays.npz"], env=os.environ | {"PYTHONPATH": search},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    values = ours(a)
    assert compared("verl", theirs["verl"], values) >= 22
    assert compared("TRL", theirs["TRL"], values) >= 5
    clipped = (values["clip_frac_low"] or 0) + (values["clip_frac_high"] or 0)
    assert clipped == pytest.approx(theirs["verl"]["actor/pg_clipfrac"], abs=1e-6)
    n = values["tokens"] or 0
    spread = (values["probs_diff_std"] or 0) * math.sqrt(n / (n - 1))
    assert spread == pytest.approx(theirs["verl"]["training/rollout_probs_diff_std"], rel=1e-6)


def rederived(a: dict[str, NDArray[Any]]) -> dict[str, dict[str, float]]:
    """Keys of other frameworks by what their documentation and source say, one sequence after the other."""
    rows = [(t[m], r[m], e[m]) for t, r, e, m in zip(a["trainer"], a["rollout"], a["entropy"], a["mask"], strict=True)]
    train, roll, entropy = (np.concatenate(column) for column in zip(*rows, strict=True))
    x = train - roll  # log(pi_train / pi_rollout)
    weight = np.exp(x)
    k3 = np.exp(x) - x - 1
    cut = np.minimum(weight, 2.0)
    gain = np.repeat(a["advantages"], a["mask"].sum(axis=1))
    per = [(t - r, t, r) for t, r, _ in rows]

    def over_rows(values: list[float]) -> float:
        return float(np.mean(values))

    return {
        # verl 0.9.1: docs/algo/rollout_corr_math.md, utils/debug/metrics.py, trainer/ppo/core_algos.py
        "verl": {
            "rollout_corr/kl": float(np.mean(roll - train)),
            "rollout_corr/k3_kl": float(np.mean(k3)),
            "rollout_corr/training_ppl": over_rows([math.exp(-t.mean()) for _, t, _ in per]),
            "rollout_corr/rollout_ppl": over_rows([math.exp(-r.mean()) for _, _, r in per]),
            "rollout_corr/training_log_ppl": over_rows([-t.mean() for _, t, _ in per]),
            "rollout_corr/rollout_log_ppl": over_rows([-r.mean() for _, _, r in per]),
            "rollout_corr/log_ppl_diff": over_rows([r.mean() - t.mean() for _, t, r in per]),
            "rollout_corr/log_ppl_abs_diff": over_rows([abs(r.mean() - t.mean()) for _, t, r in per]),
            "rollout_corr/log_ppl_diff_max": max(r.mean() - t.mean() for _, t, r in per),
            "rollout_corr/log_ppl_diff_min": min(r.mean() - t.mean() for _, t, r in per),
            "rollout_corr/ppl_ratio": over_rows([math.exp(r.mean() - t.mean()) for _, t, r in per]),
            "rollout_corr/chi2_token": float(np.mean(weight**2) - 1),
            "rollout_corr/chi2_seq": over_rows([math.exp(2 * d.sum()) for d, _, _ in per]) - 1,
            "rollout_corr/rollout_is_mean": float(np.mean(cut)),
            "rollout_corr/rollout_is_min": float(np.min(weight)),
            "rollout_corr/rollout_is_eff_sample_size": float(1 / np.mean((cut / cut.mean()) ** 2)),
            "rollout_corr/rollout_is_ratio_fraction_high": float(np.mean(weight > 2)),
            "rollout_corr/rollout_is_oob_ratio (IcePop 0.5_5)": float(np.mean((weight < 0.5) | (weight > 5))),
            "rollout_corr/rollout_is_max (sequence level)": max(math.exp(d.sum()) for d, _, _ in per),
            "training/rollout_probs_diff_mean": float(np.mean(np.abs(np.exp(train) - np.exp(roll)))),
            "training/rollout_probs_diff_max": float(np.max(np.abs(np.exp(train) - np.exp(roll)))),
            "training/rollout_actor_probs_pearson_corr": float(np.corrcoef(np.exp(train), np.exp(roll))[0, 1]),
            "actor/ppo_kl": float(np.mean(roll - train)),
            "actor/entropy": float(np.mean(entropy)),
        },
        # TRL 1.16.0: docs/source/grpo_trainer.md "Logged metrics", trainer/grpo_trainer.py
        "TRL": {
            "sampling/sampling_logp_difference/mean": float(np.mean(np.abs(x))),
            "sampling/sampling_logp_difference/max": float(np.max(np.abs(x))),
            "clip_ratio/low_mean": float(np.mean((weight < 0.9) & (gain < 0))),
            "clip_ratio/high_mean": float(np.mean((weight > 1.2) & (gain > 0))),
            "entropy": float(np.mean(entropy)),
        },
        "TRL async": {"kl": float(np.mean(k3)), "ratio": float(np.mean(weight))},
        # NeMo-RL: algorithms/loss/loss_functions.py, docs/guides/grpo.md
        "NeMo-RL": {
            "gen_kl_error": float(np.mean(k3)),
            "policy_kl_error": float(np.mean(np.exp(-x) + x - 1)),
            "token_mult_prob_error": float(np.mean(np.exp(np.abs(roll - train)))),
            "mean_seq_mult_prob_error": over_rows([np.exp(np.abs(d)).mean() for d, _, _ in per]),
            "max_seq_mult_prob_error": max(np.exp(np.abs(d)).mean() for d, _, _ in per),
            "approx_entropy": -float(np.mean(np.exp(train - roll) * train)),
        },
        # prime-rl: trainer/rl/loss.py; tinker-cookbook: rl/metrics.py; OpenRLHF: models/loss.py
        "prime-rl": {
            "mismatch_kl/all/mean": float(np.mean(k3)),
            "kl_ent_ratio/mean": float(np.mean(k3) / np.mean(entropy)),
            "entropy/all/mean": float(np.mean(entropy)),
        },
        "tinker-cookbook": {
            "optim/kl_sample_train_v1": float(np.mean(roll - train)),
            "optim/kl_sample_train_v2": float(0.5 * np.mean((roll - train) ** 2)),
            "optim/entropy": -float(np.mean(roll)),
        },
        "OpenRLHF": {"vllm_kl": float(np.mean(roll - train)), "ppo_kl": float(np.mean(roll - train))},
        # slime: backends/megatron_utils/loss.py, per sequence first; ms-swift: rlhf_trainers/grpo_trainer.py
        "slime": {
            "train_rollout_logprob_abs_diff": over_rows([np.abs(d).mean() for d, _, _ in per]),
            "tis": over_rows([np.exp(d).mean() for d, _, _ in per]),
            "ppo_kl": float(np.mean(roll - train)),
        },
        "ms-swift": {"rollout_correction/chi2_seq": over_rows([math.exp(2 * d.mean()) for d, _, _ in per]) - 1},
        # PipelineRL: finetune/rl/__init__.py and finetune_loop.py, per sequence first but for ess
        "PipelineRL": {
            "rl/kl_new_old": over_rows([(np.exp(d) - d - 1).mean() for d, _, _ in per]),
            "rl/mean_abs_log_ratio_new_old": over_rows([np.abs(d).mean() for d, _, _ in per]),
            "rl/ratio_new_old": over_rows([np.exp(d).mean() for d, _, _ in per]),
            "rl/ess": float(weight.sum() ** 2 / (weight**2).sum() / weight.size),
        },
    }


@pytest.mark.parametrize(("seed", "noise"), [(3, 0.01), (4, 0.2), (5, 1.0)])
def test_the_documented_formulas_of_other_frameworks_give_the_same_numbers(seed: int, noise: float) -> None:
    a = arrays_of(seed, noise)
    values = ours(a)
    for framework, theirs in rederived(a).items():
        assert compared(framework, theirs, values) >= len(theirs), framework
