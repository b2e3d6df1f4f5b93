"""The experiments that distinguish causes, by code: rltop's own probes (docs/probes.md), and manual ones. Data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rltop.backend.diagnosis.causes.cause import ConfirmingProbe, holds
from rltop.collectors.contract import probes

MANUAL: tuple[ConfirmingProbe, ...] = (
    ConfirmingProbe("P2", "forced-decode", "replay recorded tokens through decode (trace_decode_token_ids, vLLM "
          "0.30 on)"),
    ConfirmingProbe("P6", "version-fingerprint", "have the trainer score the same tokens under its last versions: "
          "the version that fits is the one that sampled"),
    ConfirmingProbe("P7", "load-sweep", "score the same tokens alone and among many requests"),
    ConfirmingProbe("P9", "trainer-repeat", "have the trainer score one batch twice, then in other micro-batches, "
          "then after model.eval()"),
    ConfirmingProbe("P11", "sampler-audit", "log the effective SamplingParams of requests; draw some hundred "
          "tokens with logprobs=20"),
    ConfirmingProbe("P12", "logit-lattice", "differences of two logprobs at one position: multiples of 2^-6 mean "
          "bfloat16 logits"),
    ConfirmingProbe("P13", "triad", "score the same tokens by decode, by prefill and by the trainer: the outlier "
                                    "is wrong"),
    ConfirmingProbe("lr0", "zero-rate", "run some steps with a learning rate of 0: what continues is due to the "
          "engines, what ends to the objective"),
)  # fmt: skip


def _order(probe: ConfirmingProbe) -> tuple[bool, int]:
    """P0, P1, ..., then the others."""
    number = probe.code.removeprefix("P")
    return not number.isdigit(), int(number) if number.isdigit() else 0


_NO_REQUESTS = ("speculative not none", "kv_connector not none", "lora is on", "multimodal is on")
"""Engines that can't score a prompt: ``collectors.vllm.probes.probe_checks``."""

_UNLESS: dict[str, tuple[str, ...]] = {"cache-salt": ("prefix_caching is off",)}

_COMMANDS = (
    ConfirmingProbe(
        one.code, one.name, one.summary, f"rltop probe {one.name}",
        (*(_NO_REQUESTS if one.sends_requests else ()), *_UNLESS.get(one.name, ())), one.min_engines,
    )
    for one in probes.PROBES
)  # fmt: skip

PROBES: tuple[ConfirmingProbe, ...] = tuple(sorted((*_COMMANDS, *MANUAL), key=_order))


def is_runnable(probe: ConfirmingProbe, engines: Collection[Mapping[str, str]]) -> bool:
    """Whether enough engines with these facts can run it; of a run without any known engine, it is assumed."""
    able = [facts for facts in engines if not any(holds(condition, [facts]) for condition in probe.unless)]
    return not engines or len(able) >= probe.engines


BY_CODE: dict[str, ConfirmingProbe] = {probe.code: probe for probe in PROBES}
BY_NAME: dict[str, ConfirmingProbe] = {probe.name: probe for probe in PROBES}
