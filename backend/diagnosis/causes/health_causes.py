"""Causes that affect speed or rollouts, not correctness."""

from __future__ import annotations

from rltop.backend.diagnosis.causes.cause import GAP, RECORD_GAP, CauseEntry
from rltop.backend.fleet.facts import FACTS, FLAG_NAMES

_DIFFERS = " | ".join(
    f"facts differs={fact.name}/fleet" for fact in FACTS if fact.fleet and fact.name not in FLAG_NAMES
)

HEALTH: tuple[CauseEntry, ...] = (
    CauseEntry(
        "K1", "slow-engine", "health", "An engine is slower than the others",
        "Its requests take longer: the trainer waits for them, and its tokens are older when used.",
        needs=("speed slow",),
        may=("lag behind", "lag_slope grows"),
        one_engine=True,
        probe="P0",
        remedy="Check the machine (other processes, clocks, ECC, swapping) and compare options: `rltop "
        "fingerprint`; take it out of the rotation until then.",
        source="rltop",
    ),
    CauseEntry(
        "K2", "aborted-requests", "health", "Requests are aborted or fail",
        "Sampled tokens are discarded and requested again, or partial answers are trained on.",
        needs=("aborts many",),
        may=("join cut", "truncation many", "join unjoined"),
        probe="P0",
        remedy="Update with pause_generation(mode=\"keep\") and not \"abort\"; look at the engines' logs for failures.",
        source="prime-rl, PipelineRL; rl-on-cpu",
    ),
    CauseEntry(
        "K3", "mixed-fleet", "health", "Engines differ from each other",
        "A difference changes logprobs or speed: some sequences come from another policy.",
        needs=(_DIFFERS,),
        may=(*GAP, "engine_gap outlier", "floor rounding", "floor above", "speed slow"),
        probe="P0",
        remedy="Start all engines from one image with the same options: `rltop launch-args ENGINE` prints them.",
        source="rltop",
    ),
    CauseEntry(
        "K4", "broken-logits", "health", "An engine computes NaN or infinity",
        "The logits of whole requests are broken: their tokens are worthless, whatever replaces their logprobs.",
        needs=("record broken",),
        may=(*RECORD_GAP, "record fillers", "join unjoined", "aborts many", "truncation many", "reward falling"),
        probe="P3",
        remedy="Take the engine out of the rotation, drop its rows of these steps, and restart it. Then look for "
        "broken collectives (NCCL), ECC errors, and scales of quantised weights or of an FP8 cache.",
        source="trl#6693, verl#1121",
    ),
)  # fmt: skip
