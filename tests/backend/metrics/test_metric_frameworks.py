"""The same arrays through other frameworks: equal to 1e-6 under the keys of framework_keys.py.

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

from rltop.backend.measure import arrays
from rltop.backend.metrics import elsewhere

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
    """Compare under every key of the framework that has the same value, named ``key`` or ``key (when)``; how many."""
    count = 0
    for source, key in elsewhere.ENTRIES:
        name = f"{key.key} ({key.when})" if key.when else key.key
        if source.framework == framework and not key.differs and name in theirs:
            assert values[key.metric] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9), (key.metric, name)
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
            "rollout_corr/rollout_is_mean (token level, threshold 2)": float(np.mean(cut)),
            "rollout_corr/rollout_is_min (token level)": float(np.min(weight)),
            "rollout_corr/rollout_is_eff_sample_size (token level, threshold 2)": float(
                1 / np.mean((cut / cut.mean()) ** 2)
            ),
            "rollout_corr/rollout_is_ratio_fraction_high (token level, threshold 2)": float(np.mean(weight > 2)),
            "rollout_corr/rollout_is_ratio_fraction_high (sequence level, threshold 2)": over_rows(
                [math.exp(d.sum()) > 2 for d, _, _ in per]
            ),
            "rollout_corr/rollout_rs_seq_masked_fraction (seq_mean_k1, 0.99_1.01)": over_rows(
                [not 0.99 <= math.exp(d.mean()) <= 1.01 for d, _, _ in per]
            ),
            "rollout_corr/rollout_rs_seq_masked_fraction (seq_sum_k1, 0.5_2.0)": over_rows(
                [not 0.5 <= math.exp(d.sum()) <= 2 for d, _, _ in per]
            ),
            "rollout_corr/rollout_is_oob_ratio (IcePop 0.5_5)": float(np.mean((weight < 0.5) | (weight > 5))),
            "rollout_corr/rollout_is_max (sequence level)": max(math.exp(d.sum()) for d, _, _ in per),
            "training/rollout_probs_diff_mean": float(np.mean(np.abs(np.exp(train) - np.exp(roll)))),
            "training/rollout_probs_diff_max": float(np.max(np.abs(np.exp(train) - np.exp(roll)))),
            "training/rollout_actor_probs_pearson_corr": float(np.corrcoef(np.exp(train), np.exp(roll))[0, 1]),
            "actor/ppo_kl": float(np.mean(roll - train)),
            "actor/entropy (loss_agg_mode token-mean)": float(np.mean(entropy)),
        },
        # TRL 1.16.0: docs/source/grpo_trainer.md "Logged metrics", trainer/grpo_trainer.py
        "TRL": {
            "sampling/sampling_logp_difference/mean": float(np.mean(np.abs(x))),
            "sampling/sampling_logp_difference/max": float(np.max(np.abs(x))),
            "sampling/importance_sampling_ratio/mean (sequence_truncate at 3)": over_rows(
                [min(math.exp(d.sum()), 3.0) for d, _, _ in per]
            ),
            "sampling/importance_sampling_ratio/mean (sequence_mask at 3, the default)": over_rows(
                [math.exp(d.sum()) if math.exp(d.sum()) <= 3 else 0.0 for d, _, _ in per]
            ),
            "sampling/importance_sampling_ratio/mean (token_truncate at 2 (default: 3))": float(np.mean(cut)),
            "clip_ratio/low_mean": float(np.mean((weight < 0.9) & (gain < 0))),
            "clip_ratio/high_mean": float(np.mean((weight > 1.2) & (gain > 0))),
            "entropy": float(np.mean(entropy)),
        },
        "TRL async": {"kl": float(np.mean(k3)), "ratio": float(np.mean(weight))},
        # NeMo-RL: algorithms/loss/loss_functions.py, docs/guides/grpo.md
        "NeMo-RL": {
            "gen_kl_error (reference_policy_kl_type k3)": float(np.mean(k3)),
            "policy_kl_error (reference_policy_kl_type k3)": float(np.mean(np.exp(-x) + x - 1)),
            "sampling_importance_ratio (no truncation)": float(np.mean(weight)),
            "sampling_importance_ratio (tis at 2)": float(np.mean(cut)),
            "is_oob_ratio (icepop, 0.5 to 5)": float(np.mean((weight < 0.5) | (weight > 5))),
            "token_mult_prob_error": float(np.mean(np.exp(np.abs(roll - train)))),
            "mean_seq_mult_prob_error": over_rows([np.exp(np.abs(d)).mean() for d, _, _ in per]),
            "max_seq_mult_prob_error": max(np.exp(np.abs(d)).mean() for d, _, _ in per),
            "approx_entropy": -float(np.mean(np.exp(train - roll) * train)),
        },
        # prime-rl: trainer/rl/loss.py; tinker-cookbook: rl/metrics.py; OpenRLHF: models/loss.py
        "prime-rl": {
            "mismatch_kl/all/mean": float(np.mean(k3)),
            "mismatch_kl/mean": over_rows([(np.exp(d) - d - 1).mean() for d, _, _ in per]),
            "kl_ent_ratio/mean": float(np.mean(k3) / np.mean(entropy)),
            "entropy/all/mean": float(np.mean(entropy)),
        },
        "tinker-cookbook": {
            "optim/kl_sample_train_v1": float(np.mean(roll - train)),
            "optim/kl_sample_train_v2": float(0.5 * np.mean((roll - train) ** 2)),
            "optim/entropy": -float(np.mean(roll)),
        },
        "OpenRLHF": {
            "vllm_kl (is_correction_level token or seq, policy_loss_type ppo)": float(np.mean(roll - train)),
            "is_filter_ratio (is_correction_level token, threshold 0.5 5)": float(
                np.mean((weight < 0.5) | (weight > 5))
            ),
            "ppo_kl": float(np.mean(roll - train)),
        },
        # SkyRL: utils/off_policy_correction_utils.py, train/trainer.py
        "SkyRL": {
            "policy/rollout_train_logprobs_abs_diff_mean": float(np.mean(np.abs(x))),
            "policy/loss_metrics/is_ratio_mean": float(np.mean(weight)),
            "policy/loss_metrics/tis_token_clip_high_ratio (token_tis_ratio_clip_high 2)": float(np.mean(weight > 2)),
            "policy/loss_metrics/geo_sequence_mask_masked_ratio (bounds 0.99 and 1.01)": over_rows(
                [not 0.99 <= math.exp(d.mean()) <= 1.01 for d, _, _ in per]
            ),
        },
        # slime: backends/megatron_utils/loss.py, per sequence first; ms-swift: rlhf_trainers/grpo_trainer.py
        "slime": {
            "train/train_rollout_logprob_abs_diff": over_rows([np.abs(d).mean() for d, _, _ in per]),
            "train/tis": over_rows([np.exp(d).mean() for d, _, _ in per]),
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
