"""The experiments that distinguish causes, by code. Data.

Those with a command are rltop's own (docs/probes.md); the others are manual.
"""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import ConfirmingProbe

PROBES: tuple[ConfirmingProbe, ...] = (
    ConfirmingProbe("P0", "config-diff", "compare the configuration of all engines and "
          "the trainer", "rltop probe config-diff"),
    ConfirmingProbe("P1", "prefill-rescore", "score recorded rollouts again on their engine, by prefill",
          "rltop probe prefill-rescore"),
    ConfirmingProbe("P2", "forced-decode", "replay recorded tokens through decode (trace_decode_token_ids, vLLM "
          "0.30 on)"),
    ConfirmingProbe("P3", "cross-replica", "score the same tokens on several engines", "rltop probe cross-replica"),
    ConfirmingProbe("P4", "cache-salt", "score the same tokens with the cached prefix "
          "and without", "rltop probe cache-salt"),
    ConfirmingProbe("P5", "weight-digest", "digest every parameter on every engine, before and after an update, and "
          "compare",
          "rltop probe weight-digest"),
    ConfirmingProbe("P6", "version-fingerprint", "have the trainer score the same tokens under its last versions: "
          "the version that fits is the one that sampled"),
    ConfirmingProbe("P7", "load-sweep", "score the same tokens alone and among many requests"),
    ConfirmingProbe("P8", "canary-flip", "switch one flag on one engine for a time, and measure the effect",
          "rltop probe canary-flip"),
    ConfirmingProbe("P9", "trainer-repeat", "have the trainer score one batch twice, then in other micro-batches, "
          "then after model.eval()"),
    ConfirmingProbe("P10", "token-echo", "compare the token ids that engines saw with those that the trainer trains on",
          "rltop probe token-echo"),
    ConfirmingProbe("P11", "sampler-audit", "log the effective SamplingParams of requests; draw some hundred "
          "tokens with logprobs=20"),
    ConfirmingProbe("P12", "logit-lattice", "differences of two logprobs at one position: multiples of 2^-6 mean "
          "bfloat16 logits"),
    ConfirmingProbe("P13", "triad", "score the same tokens by decode, by prefill and by the trainer: the outlier "
                                    "is wrong"),
    ConfirmingProbe("lr0", "zero-rate", "run some steps with a learning rate of 0: what continues is due to the "
          "engines, what ends to the objective"),
)  # fmt: skip

BY_CODE: dict[str, ConfirmingProbe] = {probe.code: probe for probe in PROBES}
BY_NAME: dict[str, ConfirmingProbe] = {probe.name: probe for probe in PROBES}
