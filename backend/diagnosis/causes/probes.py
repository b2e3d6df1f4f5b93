"""The experiments that tell causes apart, under the codes of the probe catalogue. Data."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.entry import Probe

PROBES: tuple[Probe, ...] = (
    Probe("P0", "compare versions, options and devices of all engines", "rltop fingerprint"),
    Probe("P1", "score recorded tokens again as a prompt (prompt_logprobs, temperature 1) and compare with the record: "
          "prefill against decode; it reads no prefix cache"),
    Probe("P2", "replay recorded tokens through decode (trace_decode_token_ids, vLLM 0.30 on)"),
    Probe("P3", "score the same tokens on every engine and compare pair by pair"),
    Probe("P4", "one token after a recorded prefix, once with the run's cache and once with a fresh cache_salt"),
    Probe("P5", "hash the weights of every engine before and after an update, and hold them against the trainer's"),
    Probe("P6", "score the same tokens under the trainer's last versions: the one that fits is the one that sampled"),
    Probe("P7", "score the same tokens alone and among many requests"),
    Probe("P8", "switch the flag on one engine, and compare with the others: `rltop set FLAG VALUE --fraction 0.5`",
          "rltop set"),
    Probe("P9", "have the trainer score one batch twice, then in other micro-batches, then after model.eval()"),
    Probe("P10", "compare the ids of prompt and answer that engine and trainer have, byte by byte"),
    Probe("P11", "log the SamplingParams that requests really run with; draw some hundred tokens with logprobs=20"),
    Probe("P12", "differences of two logprobs at one position: on a grid of 2^-6 the logits are bfloat16"),
    Probe("P13", "three ways for the same tokens: decode, prefill, trainer; the odd one out is the wrong side"),
    Probe("lr0", "some steps with a learning rate of 0: what goes on is the engines' doing, what ends the objective's"),
)  # fmt: skip

BY_NAME: dict[str, Probe] = {probe.name: probe for probe in PROBES}
