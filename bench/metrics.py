"""Tokens per second of all token-level metrics with strata, compared with the memory limit and with peers in one run.

    .venv/bin/python -m bench.metrics [--most 1e8] [--length 500] [--peers DIR]

For 1e4 to 1e8 tokens (float32, sequences of ``--length``), CPU time of one core:

limit        read the two arrays once (numpy's maximum of each)
rltop        token runs, kernel, strata of every dimension, sequences: the work of the hub, 128 k tokens per message
compute      ``rltop compute`` on the same arrays, padded
numpy        the token-level formulas as plain numpy passes, without strata and histograms
wandb        ``wandb.Histogram(trainer - rollout)``
martingale   its verl hooks, which record rollouts and scores; up to 1e4 tokens

Peers run if they are installed (``pip install --no-deps --target DIR wandb martingale``, then ``--peers DIR``).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.backend.measure import arrays
from rltop.backend.summary import SequenceSummary, Strata
from rltop.backend.summary.dimensions import DIMENSIONS
from rltop.backend.summary.sequences import by_sequence
from rltop.backend.summary.strata import warm
from rltop.backend.summary.token_runs import TokenRuns, cut, reduce

Floats = NDArray[np.float32]

MESSAGE_TOKENS = 1 << 17
NUMPY_MOST, COMPUTE_MOST, MARTINGALE_MOST = 10**7, 10**7, 10**4
_OWN_LABELS = {"all", "position", "probability"}


def arrays_of(size: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    rollout = -rng.exponential(0.5, size).astype(np.float32)
    noise = rng.standard_normal(size, np.float32) * np.float32(0.02)
    return np.minimum(rollout + noise, np.float32(0)), rollout


def limit(trainer: Floats, rollout: Floats, _: int) -> None:
    trainer.max()
    rollout.max()


def rltop(trainer: Floats, rollout: Floats, length: int) -> None:
    chunk = max(MESSAGE_TOKENS // length, 1) * length
    for at in range(0, trainer.size, chunk):
        t, r = trainer[at : at + chunk], rollout[at : at + chunk]
        start = np.arange(0, t.size, length)
        zero = np.zeros(start.size, np.int64)
        runs = TokenRuns(start, np.minimum(start + length, t.size), np.arange(start.size), zero, zero, zero, 1)
        pieces = cut(runs)
        reduced = reduce(t, r, pieces)
        Strata.of(reduced, pieces, {d.name: zero for d in DIMENSIONS if d.name not in _OWN_LABELS})
        SequenceSummary.of(*by_sequence(reduced, pieces, start.size))


def offline(trainer: Floats, rollout: Floats, length: int) -> None:
    rows = max(trainer.size // length, 1)
    width = min(length, trainer.size)
    shape = rows, width
    t, r = trainer[: rows * width].reshape(shape), rollout[: rows * width].reshape(shape)
    arrays.values({"trainer_logprobs": t, "rollout_logprobs": r, "mask": np.ones(shape, bool)})


def plain(trainer: Floats, rollout: Floats, _: int) -> None:
    t, r = trainer.astype(np.float64), rollout.astype(np.float64)
    d = t - r
    a, h = np.abs(d), np.clip(d, -20, 20)
    ratio, pt, pr = np.exp(h), np.exp(t), np.exp(r)
    gap, cut_ = np.abs(pt - pr), np.minimum(ratio, 2)
    js = 0.5 * (ratio * (np.log(2) + h - np.log1p(ratio)) + np.log(2) - np.log1p(ratio))
    _values = [
        d.mean(), d.std(), a.mean(), a.std(), a.max(), h.mean(), (h * h).mean(), (ratio - 1 - h).mean(),
        (1 / ratio - 1 + h).mean(), js.mean(), np.abs(ratio - 1).mean(), np.exp(a).mean(), ratio.mean(), ratio.std(),
        ratio.min(), ratio.max(), (ratio**2).mean(), cut_.mean() ** 2 / (cut_**2).mean(), gap.mean(), gap.std(),
        gap.max(), np.corrcoef(pt, pr), (h > 0.7).mean(), ((ratio < 0.5) | (ratio > 5)).mean(), (a > 0.7).mean(),
        (a > 1.6).mean(), (h < -9.2).mean(), (h > 4.6).mean(), np.quantile(d, (0.5, 0.95, 0.99)),
        np.quantile(a, (0.5, 0.95, 0.99)), (-r).mean(), (ratio * t).mean(),
    ]  # fmt: skip


def wandb_histogram() -> Callable[[Floats, Floats, int], None]:
    import wandb

    return lambda trainer, rollout, _: wandb.Histogram(trainer - rollout) and None


def martingale_record() -> Callable[[Floats, Floats, int], None]:
    import torch
    from martingale.integrations.verl import MartingaleVerlRecorder

    config = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=-1, logprobs_mode="processed_logprobs")

    def record(trainer: Floats, rollout: Floats, length: int) -> None:
        rows = max(trainer.size // length, 1)
        shape = rows, trainer.size // rows
        with tempfile.TemporaryDirectory() as directory:
            recorder = MartingaleVerlRecorder(directory, "0" * 64, rollout_config=config)
            prompts = torch.arange(rows)[:, None]
            ones = torch.ones(shape, dtype=torch.int64)
            batch = {
                "rollout_log_probs": torch.from_numpy(rollout[: rows * shape[1]].reshape(shape)),
                "prompts": prompts, "responses": ones, "response_mask": ones,
                "attention_mask": torch.ones(rows, 1 + shape[1], dtype=torch.int64),
            }  # fmt: skip
            weights = {"w": torch.zeros(1)}
            recorder.on_rollout(batch, step=0, weights=weights)
            recorder.on_train_step(
                batch, torch.from_numpy(trainer[: rows * shape[1]].reshape(shape)), step=1, weights=weights
            )
            assert recorder.stats["scored_tokens"] == rows * shape[1]

    return record


def speed(run: Callable[..., None], trainer: Floats, rollout: Floats, length: int) -> float:
    """Million tokens per second of this process's CPU, the best of up to 7 repeats."""
    best, spent = 0.0, 0.0
    for _ in range(7):
        start = time.process_time()
        run(trainer, rollout, length)
        took = time.process_time() - start
        best, spent = max(best, trainer.size / max(took, 1e-9) / 1e6), spent + took
        if spent > 2:
            break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=float, default=1e8)
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--peers", default="")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    runs: dict[str, tuple[Callable[..., None], float]] = {
        "limit": (limit, np.inf), "rltop": (rltop, np.inf), "compute": (offline, COMPUTE_MOST),
        "numpy": (plain, NUMPY_MOST),
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        runs["wandb"] = wandb_histogram(), np.inf
    with contextlib.suppress(ImportError):
        runs["martingale"] = martingale_record(), MARTINGALE_MOST
    warm()
    offline(*arrays_of(1000), 100)
    print(f"M tokens/s of one core, sequences of {options.length}; in parentheses the fraction of the limit")
    print(f"{'tokens':>10}" + "".join(f"{name:>20}" for name in runs))
    size = 10_000
    while size <= options.most:
        trainer, rollout = arrays_of(size)
        rates: dict[str, Any] = {
            name: speed(run, trainer, rollout, options.length) if size <= most else None
            for name, (run, most) in runs.items()
        }
        cells = ["-" if value is None else f"{value:.4g} ({value / rates['limit']:.2g})" for value in rates.values()]
        print(f"{size:>10.0e}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
        size *= 10


if __name__ == "__main__":
    main()
