"""Messages between the demo's trainer and engines: msgpack over one ROUTER (trainer) and DEALERs (engines).

This stands in for a training framework's own transport; rltop does not use it. A ticket is one prompt to be answered by
a group of samples. Step ``s`` trains on exactly the tickets ``[s * groups, (s + 1) * groups)``, which are granted two
steps ahead, so the policy lag is bounded by construction.
"""

from __future__ import annotations

import msgspec

SOCKET = "demo.sock"
"""Name of the trainer's socket in the run directory."""


class SampledAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One answer: token ids, and per token the engine's logprob (nats) and vLLM's weight version."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Engine to trainer: booted, weights at version 0."""

    engine: str
    boot_s: float


class Group(msgspec.Struct, frozen=True, tag="group"):
    """Engine to trainer: all samples of one ticket."""

    engine: str
    ticket: int
    prompt: list[int]
    samples: list[SampledAnswer]


class Updated(msgspec.Struct, frozen=True, tag="updated"):
    """Engine to trainer: ``version`` is in use; ``in_flight`` requests were interrupted; times in milliseconds."""

    engine: str
    version: int
    in_flight: int
    pause_ms: float
    load_ms: float


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """Trainer to engine: answer these tickets."""

    tickets: list[int]


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Trainer to engine: load the weights in ``path`` (safetensors), now, as ``version``."""

    version: int
    path: str


ToTrainer = Ready | Group | Updated
ToEngine = Grant | Update

encode = msgspec.msgpack.Encoder().encode
to_trainer: msgspec.msgpack.Decoder[ToTrainer] = msgspec.msgpack.Decoder(ToTrainer)
to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
