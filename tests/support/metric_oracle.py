"""Computes every metric from dense arrays in float64, as directly as possible. Shares no code with the hub.

Each function takes the valid tokens (or rows of them) as plain arrays and spells the definition out; what is undefined
is None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Row:
    """One sequence: per trained token the logprobs, and what else is known."""

    trainer: Array
    rollout: Array
    old: Array | None = None
    versions: Array | None = None
    old_versions: Array | None = None
    entropy: Array | None = None
    advantage: float | None = None
    reward: float | None = None
    prompt: int | None = None
    weights: Array | None = None


def hold(x: Array) -> Array:
    return np.clip(x, -20.0, 20.0)


def surplus(x: Array) -> Array:
    """exp(x) - 1 - x, from its series where the difference would lose its digits."""
    small = np.abs(x) < 0.01
    series = sum(x**n / math.factorial(n) for n in range(2, 8))
    return np.where(small, series, np.expm1(x) - x)


def mean(x: Array) -> float | None:
    return math.fsum(x) / x.size if x.size else None


def share_of(x: NDArray[np.bool_]) -> float | None:
    return float(np.count_nonzero(x)) / x.size if x.size else None


def over(above: float, below: float) -> float | None:
    return above / below if below else None


def part(x: Array, where: NDArray[np.bool_]) -> float | None:
    """Of the sum of all, what is there."""
    return over(math.fsum(x[where]), math.fsum(x))


def finite(left: Array, right: Array) -> tuple[Array, Array]:
    fine = np.isfinite(left) & np.isfinite(right) & (np.abs(left) < 3.5e38) & (np.abs(right) < 3.5e38)
    return left[fine], right[fine]


def kish(weights: Array) -> float | None:
    return math.fsum(weights) ** 2 / (weights.size * math.fsum(weights**2)) if weights.size else None


def validity(trainer: Array, rollout: Array) -> dict[str, float | None]:
    n = trainer.size
    nan = np.isnan(trainer) | np.isnan(rollout)
    fine = np.isfinite(trainer) & np.isfinite(rollout)
    counts = {
        "invalid_frac": ~fine,
        "nan_logprob_frac": nan,
        "inf_logprob_frac": ~fine & ~nan,
        "zero_logprob_frac": fine & (rollout == 0) & (trainer < -0.25),
        "positive_logprob_frac": fine & ((rollout > 0.01) | (trainer > 0.01)),
    }
    return {name: float(count.sum()) / n if n else None for name, count in counts.items()}


def tokens(trainer: Array, rollout: Array) -> dict[str, float | None]:
    """The token-level metrics of the valid ones."""
    t, r = finite(trainer, rollout)
    d = t - r
    h = hold(d)
    ratio = np.exp(h)
    pt, pr = np.exp(np.minimum(t, 0)), np.exp(np.minimum(r, 0))
    apart = np.abs(pt - pr)
    middle = (1 + ratio) / 2
    values: dict[str, float | None] = {
        "ratio_mean": mean(ratio),
        "logp_diff_mean": mean(d),
        "logp_abs_diff_mean": mean(np.abs(d)),
        "kl_k1": mean(-h),
        "kl_k2": mean(h**2 / 2),
        "kl_k3": mean(surplus(h)),
        "kl_k3_rev": mean(surplus(-h)),
        "js": mean((ratio * np.log(ratio / middle) - np.log(middle)) / 2),
        "tv": mean(np.abs(np.expm1(h)) / 2),
        "token_mult_prob_error": mean(np.exp(np.abs(h))),
        "probs_diff_mean": mean(apart),
        "chi2_token": mean(np.expm1(2 * h)),
        "ess": kish(ratio),
        "ess_capped": kish(np.minimum(ratio, 2)),
        "ratio_capped_mean": mean(np.minimum(ratio, 2)),
        "clamped_frac": share_of(np.abs(d) > 20),
        "tis_clip_frac": share_of(h > math.log(2)),
        "icepop_mask_frac": share_of((h < math.log(0.5)) | (h > math.log(5))),
        "band_0p1_frac": share_of((h < math.log(0.9)) | (h > math.log(1.1))),
        "extreme_frac_tau2": share_of(np.abs(d) > math.log(2)),
        "extreme_frac_tau5": share_of(np.abs(d) > math.log(5)),
        "catastrophic_token_frac": share_of(h < math.log(1e-4)),
        "exploded_token_frac": share_of(h > math.log(100)),
        "low_prob_frac": share_of(r < math.log(1e-3)),
        "low_prob_diff_mean": mean(d[r < math.log(1e-3)]),
        "low_prob_k3_share": part(surplus(h), r < math.log(1e-3)),
        "logp_abs_diff_per_1_minus_p": over(math.fsum(np.abs(d)), math.fsum(-np.expm1(np.minimum(r, 0)))),
        "entropy_sample_rollout": mean(-r),
        "entropy_sample_trainer": mean(-ratio * t),
    }
    spreads: dict[str, Array] = {
        "logp_diff_std": d, "logp_abs_diff_std": np.abs(d), "ratio_std": ratio, "probs_diff_std": apart
    }  # fmt: skip
    values |= {name: float(x.std()) if x.size else None for name, x in spreads.items()}
    ends: dict[str, tuple[Callable[[Array], float], Array]] = {
        "logp_diff_min": (np.min, d), "logp_diff_max": (np.max, d), "logp_abs_diff_max": (np.max, np.abs(d)),
        "ratio_min": (np.min, ratio), "ratio_max": (np.max, ratio), "probs_diff_max": (np.max, apart),
    }  # fmt: skip
    values |= {name: float(end(x)) if x.size else None for name, (end, x) in ends.items()}
    n = max(t.size, 1)
    values["kl_k1_se"] = float(h.std()) / math.sqrt(n) if t.size else None
    values["ratio_mean_se"] = float(ratio.std()) / math.sqrt(n) if t.size else None
    return values


def quantiles(trainer: Array, rollout: Array) -> dict[str, float | None]:
    t, r = finite(trainer, rollout)
    d = t - r
    found: dict[str, float | None] = {}
    for q in (50, 95, 99):
        found[f"logp_diff_p{q}"] = float(np.quantile(d, q / 100)) if d.size else None
        found[f"logp_abs_diff_p{q}"] = float(np.quantile(np.abs(d), q / 100)) if d.size else None
    return found


def together(trainer: Array, rollout: Array) -> dict[str, float | None]:
    """What two logprobs have to do with each other; None where one does not vary."""
    t, r = finite(trainer, rollout)
    pt, pr = np.exp(np.minimum(t, 0)), np.exp(np.minimum(r, 0))
    varies = t.size > 1 and np.ptp(pt) > 0 and np.ptp(pr) > 0
    return {
        "probs_pearson": float(np.corrcoef(pt, pr)[0, 1]) if varies else None,
        "surprisal_slope": float(np.polyfit(r, t - r, 1)[0]) if t.size > 1 and np.ptp(r) > 0 else None,
    }


def shift(rows: Sequence[Row]) -> float | None:
    """The shift at which the two are nearest."""
    found: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    for row in rows:
        for s, gaps in found.items():
            pairs = [
                (row.trainer[i], row.rollout[i - s]) for i in range(len(row.trainer)) if 0 <= i - s < len(row.rollout)
            ]
            for i, (a, b) in enumerate(pairs):
                own = row.rollout[i + max(s, 0)] if s >= 0 else row.rollout[i]
                if math.isfinite(a) and math.isfinite(b) and math.isfinite(own):
                    gaps.append(abs(a - b))
    if not all(found.values()):
        return None
    means = {s: math.fsum(gaps) / len(gaps) for s, gaps in found.items()}
    least = min(means.values())
    return float(next(s for s in (0, 1, -1) if means[s] == least))


def sequences(rows: Sequence[Row]) -> dict[str, float | None]:
    """The sequence-level metrics."""
    per: dict[str, list[float]] = {}
    points = []
    for row in rows:
        t, r = finite(row.trainer, row.rollout)
        if not t.size:
            continue
        d, h = t - r, hold(t - r)
        log_ppl = -math.fsum(t) / t.size, -math.fsum(r) / t.size
        m, s = math.fsum(d) / d.size, math.fsum(d)
        geo, product = math.exp(max(-20, min(20, m))), math.exp(max(-20, min(20, s)))
        facts = {
            "trainer_log_ppl": log_ppl[0],
            "rollout_log_ppl": log_ppl[1],
            "trainer_ppl": math.exp(max(-20, min(20, log_ppl[0]))),
            "rollout_ppl": math.exp(max(-20, min(20, log_ppl[1]))),
            "log_ppl_diff": -m,
            "log_ppl_abs_diff": abs(m),
            "ppl_ratio": math.exp(max(-20, min(20, -m))),
            "seq_mult_prob_error": math.fsum(np.exp(np.abs(h))) / h.size,
            "logp_abs_diff_seq_mean": math.fsum(np.abs(d)) / d.size,
            "kl_k3_seq_mean": math.fsum(surplus(h)) / d.size,
            "ratio_seq_mean": math.fsum(np.exp(h)) / d.size,
            "geo": geo,
            "product": product,
            "geo_mask_frac": float(geo < 0.99 or geo > 1.01),
            "prod_mask_frac": float(product < 0.5 or product > 2),
            "tis_seq_clip_frac": float(product > 2),
            "seq_ratio_capped_mean": min(product, 3.0),
            "seq_ratio_kept_mean": product if product <= 3 else 0.0,
            "seq_err_mask_frac": float(math.fsum(np.exp(np.abs(h))) / h.size > 2),
            "catastrophic_seq_frac": float(bool((h < math.log(1e-4)).any())),
        }
        for name, value in facts.items():
            per.setdefault(name, []).append(value)
        if m:
            points.append((math.log(d.size), math.log(abs(m))))
    geo_all, product_all = np.array(per.pop("geo", [])), np.array(per.pop("product", []))
    values: dict[str, float | None] = {name: mean(np.array(found)) for name, found in per.items()}
    if not per:
        return {}
    worst = np.array(per["log_ppl_diff"])
    values |= {
        "log_ppl_diff_max": float(worst.max()),
        "log_ppl_diff_min": float(worst.min()),
        "seq_mult_prob_error_max": max(per["seq_mult_prob_error"]),
        "seq_ratio_geo_min": float(geo_all.min()),
        "seq_ratio_geo_max": float(geo_all.max()),
        "seq_ratio_prod_min": float(product_all.min()),
        "seq_ratio_prod_max": float(product_all.max()),
        "chi2_seq": math.fsum(product_all**2) / product_all.size - 1,
        "chi2_seq_geo": math.fsum(geo_all**2) / geo_all.size - 1,
        "ess_seq": kish(product_all),
    }
    lengths = {x for x, _ in points}
    if len(points) >= 10 and len(lengths) > 1:
        values["len_scaling_slope"] = float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])
    return values


def error(row: Row) -> float:
    """Mean exp(|d|) of a sequence."""
    d = hold(np.subtract(*finite(row.trainer, row.rollout)))
    return math.fsum(np.exp(np.abs(d))) / d.size if d.size else 0.0


@dataclass
class Step:
    """All metrics of a step's rows, as ``rltop compute`` prints them."""

    rows: Sequence[Row]
    version: int | None = None
    clip: tuple[float, float] | None = None
    gspo: bool = False
    base: str = "rollout"
    groups: dict[int, list[float]] = field(default_factory=dict)

    def _all(self, pick: Callable[[Row], Array | None]) -> Array:
        parts = [part for part in map(pick, self.rows) if part is not None]
        return np.concatenate(parts) if parts else np.zeros(0)

    def split(self) -> dict[str, float | None]:
        """The three-way split, lag 0, and the noise floor."""
        backend, stale, update, fresh = [], [], [], []
        for row in self.rows:
            versions = np.full(row.trainer.size, -1.0) if row.versions is None else row.versions
            if row.old is not None:
                olds = np.full(row.trainer.size, -1.0) if row.old_versions is None else row.old_versions
                same = (versions >= 0) & (versions == olds)
                backend += list(zip(row.old[same], row.rollout[same], strict=True))
                stale += list(zip(row.old[~same], row.rollout[~same], strict=True))
                update += list(zip(row.trainer, row.old, strict=True))
            if self.version is not None:
                at = versions == self.version
                fresh += list(zip(row.trainer[at], row.rollout[at], strict=True))
        found: dict[str, float | None] = {}
        named = {"backend": backend, "stale_backend": stale, "update": update, "lag0": fresh}
        gaps = {}
        for name, pairs in named.items():
            left, right = np.array(pairs).reshape(-1, 2).T if pairs else np.zeros((2, 0))
            left, right = finite(left, right)
            gaps[name] = left - right
            found[f"{name}_tokens"] = float(left.size)
            found[f"{name}_abs_diff_mean"] = mean(np.abs(left - right))
            found[f"{name}_k3"] = mean(surplus(hold(left - right)))
        del found["update_tokens"]
        for name in ("backend", "lag0"):
            found[f"{name}_ratio_mean"] = mean(np.exp(hold(gaps[name])))
        found["backend_diff_mean"] = mean(gaps["backend"])
        found["backend_abs_diff_max"] = float(np.abs(gaps["backend"]).max()) if gaps["backend"].size else None
        found["update_diff_mean"] = mean(gaps["update"])
        found["ppo_kl"] = mean(-hold(gaps["update"]))
        matched = gaps["backend"] if gaps["backend"].size else gaps["lag0"]
        noise = float(matched.std()) if matched.size else None
        found |= {
            "noise_std": noise,
            "noise_abs_diff": None if noise is None else noise * math.sqrt(2 / math.pi),
            "noise_k3": None if noise is None else noise**2 / 2,
            "noise_ess": None if noise is None else math.exp(-min(noise**2, 700)),
        }
        weights = np.concatenate([gaps["backend"], gaps["stale_backend"]])
        if not weights.size:
            weights = np.subtract(*finite(self._all(lambda r: r.trainer), self._all(lambda r: r.rollout)))
        found["correction_ess"] = kish(np.exp(hold(weights)))
        found["correction_ess_capped"] = kish(np.minimum(np.exp(hold(weights)), 2))
        return found

    def lag(self) -> dict[str, float | None]:
        """Lag, and k3 on lag with errors clustered by sequence."""
        found: dict[str, float | None] = {}
        if self.version is None:
            return {}
        lags, known_k3, known_lag, clusters = [], [], [], []
        for number, row in enumerate(self.rows):
            versions = np.full(row.trainer.size, -1.0) if row.versions is None else row.versions
            known = versions >= 0
            lags += list(self.version - versions[known])
            fine = known & np.isfinite(row.trainer) & np.isfinite(row.rollout)
            known_k3 += list(surplus(hold(row.trainer - row.rollout))[fine])
            known_lag += list(self.version - versions[fine])
            clusters += [number] * int(fine.sum())
        total = sum(row.trainer.size for row in self.rows)
        runs = [[v for v in row.versions if v >= 0] for row in self.rows if row.versions is not None]
        kinds = [1 + sum(a != b for a, b in itertools.pairwise(run)) for run in runs if run]
        found |= {
            "versions_per_seq_mean": mean(np.array(kinds, float)),
            "versions_per_seq_max": max(kinds, default=None),
            "lag_mean": mean(np.array(lags)),
            "lag_max": max(lags, default=None),
            "lag_unknown_frac": (total - len(lags)) / total if total else None,
            "lag_inferred_frac": 0.0 if lags else None,  # rows alone have no engine that counts
        }
        x, y, c = np.array(known_lag), np.array(known_k3), np.array(clusters)
        names = ("k3_at_lag0", "k3_per_lag")
        ordered, end = np.sort(x), math.ceil(x.size / 20)
        low, high = (ordered[end - 1], ordered[-end]) if x.size else (0.0, 0.0)
        if high - low >= 3:
            design = np.stack([np.ones_like(x), x], axis=1)
            bread = np.linalg.inv(design.T @ design)
            beta = bread @ design.T @ y
            told = {"k3_per_lag"} if low >= 3 else set(names)
            found |= {name: float(b) for name, b in zip(names, beta, strict=True) if name in told}
            used = np.unique(c)
            if used.size >= 3:
                scores = np.stack([design[c == k].T @ (y - design @ beta)[c == k] for k in used])
                spread = bread @ scores.T @ scores @ bread * used.size / (used.size - 1)
                errors = zip(names, np.diag(spread), strict=True)
                found |= {f"{name}_se": math.sqrt(max(v, 0)) for name, v in errors if name in told}
        return found

    def clips(self) -> dict[str, float | None]:
        """PPO or GSPO clip rates by the sign of the advantage, of tokens in the loss; what noise would give."""
        current = self.base == "current"
        if self.clip is None or (any(row.advantage is None for row in self.rows) and not current):
            return {}
        low, high = self.clip
        counts, total, kept, weight = [0, 0], 0, 0, 0
        for row in self.rows:
            own = np.ones(row.trainer.size) if row.weights is None else row.weights
            base = {"rollout": row.rollout, "old": row.old, "current": row.trainer}[self.base]
            assert base is not None
            with np.errstate(invalid="ignore"):
                d = row.trainer - base
            valid, a = np.isfinite(d), row.advantage or 0.0
            if self.gspo:
                d = np.array([d[valid].mean()]) if valid.any() else d[:0]
                used = np.full(d.size, bool((own != 0).any()))
            else:
                d, used = d[valid], own[valid] != 0
            ratio = np.exp(hold(d))
            cut = ((ratio < low) & (a < 0)) | ((ratio > high) & (a > 0))
            counts[0] += int((used & cut).sum()) * (a < 0)
            counts[1] += int((used & cut).sum()) * (a > 0)
            total += int(used.sum())
            each = int((own != 0).sum()) if self.gspo else 1
            kept += int((used & ~cut).sum()) * each
            weight += (row.trainer.size if self.gspo else 1) * d.size
        found: dict[str, float | None] = {
            "clip_frac_low": over(counts[0], total),
            "clip_frac_high": over(counts[1], total),
            "kept_token_frac": over(kept, weight),
        }
        noise = self.split()["noise_std"]
        sizes = [np.subtract(*finite(row.trainer, row.rollout)).size for row in self.rows]
        if noise is not None and not current and any(sizes):
            below = sum(n for n, row in zip(sizes, self.rows, strict=True) if (row.advantage or 0) < 0) / sum(sizes)
            above = sum(n for n, row in zip(sizes, self.rows, strict=True) if (row.advantage or 0) > 0) / sum(sizes)
            lengths = [row.trainer.size for row in self.rows if row.trainer.size] if self.gspo else [1]

            def beyond(edge: float) -> float:
                if not noise:
                    return 0.0
                parts = [0.5 * math.erfc(edge * math.sqrt(n) / noise / math.sqrt(2)) for n in lengths]
                return math.fsum(parts) / len(lengths)

            found["noise_clip_frac_low"] = below * beyond(-math.log(low))
            found["noise_clip_frac_high"] = above * beyond(math.log(high))
        return found

    def rest(self) -> dict[str, float | None]:
        """Entropy, advantages, rewards, groups, lengths."""
        found: dict[str, float | None] = {}
        entropy = self._all(lambda r: r.entropy)
        entropy = entropy[np.isfinite(entropy)]
        t, r = finite(self._all(lambda r: r.trainer), self._all(lambda r: r.rollout))
        if (e := mean(entropy)) is not None and t.size:
            found["entropy"] = e
            found["nll_minus_entropy"] = -math.fsum(t) / t.size - e
            if e:
                found["kl_ent_ratio"] = math.fsum(surplus(hold(t - r))) / t.size / e
        if all(row.advantage is not None for row in self.rows):
            ad, aad, aa, n, opsm, gained = 0.0, 0.0, 0.0, 0, 0, 0
            for row in self.rows:
                d = np.subtract(*finite(row.trainer, row.rollout))
                a = row.advantage or 0.0
                ad, aad = ad + a * math.fsum(d), aad + abs(a) * math.fsum(np.abs(d))
                aa, n = aa + abs(a) * d.size, n + d.size
                gained += bool(d.size)
                opsm += bool(d.size and a < 0 and -d.mean() > 0.5)
            if n:
                found["adv_weighted_diff"] = ad / n
                found["opsm_mask_frac"] = opsm / gained
            if aa:
                found["adv_weighted_abs_diff"] = aad / aa
        rewards = np.array([row.reward for row in self.rows if row.reward is not None])
        masked = [row.reward for row in self.rows if row.reward is not None and error(row) > 2]
        if masked:
            found["masked_correct_frac"] = sum(reward >= 1 for reward in masked) / len(masked)
        if rewards.size:
            found |= {"reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}
        by_prompt: dict[int, list[float]] = {}
        for row in self.rows:
            if row.prompt is not None and row.reward is not None and row.trainer.size:
                by_prompt.setdefault(row.prompt, []).append(row.reward)
        several = [group for group in by_prompt.values() if len(group) > 1]
        if several:
            found["zero_std_group_frac"] = sum(len(set(group)) == 1 for group in several) / len(several)
        found |= self.loss()
        lengths = np.array([row.trainer.size for row in self.rows if row.trainer.size])
        found |= {"tokens": float(lengths.sum()), "sequences": float(len(self.rows))}
        if lengths.size:
            found |= {"response_len_mean": float(lengths.mean()), "response_len_max": float(lengths.max())}
        return found

    def loss(self) -> dict[str, float | None]:
        """What the weights leave in the loss."""
        weights = self._all(lambda row: row.weights)
        if not weights.size:
            return {"tokens_in_loss": float(sum(row.trainer.size for row in self.rows))}
        whole = [row.weights.any() for row in self.rows if row.weights is not None and row.weights.size]
        return {
            "tokens_in_loss": float(np.count_nonzero(weights)),
            "weight_cut_frac": float(np.mean(weights == 0)),
            "weight_cut_seq_frac": 1 - float(np.mean(whole)),
            "weight_mean": mean(weights),
            "weight_max": float(weights.max()),
            "weight_ess": kish(weights) if weights.any() else None,
        }

    def values(self) -> dict[str, float | None]:
        """Everything but quantiles, which have an error of their own."""
        trainer, rollout = self._all(lambda r: r.trainer), self._all(lambda r: r.rollout)
        return {
            **validity(trainer, rollout), **tokens(trainer, rollout), **together(trainer, rollout),
            **sequences(self.rows), **self.split(), **self.lag(), **self.clips(), **self.rest(),
        }  # fmt: skip
