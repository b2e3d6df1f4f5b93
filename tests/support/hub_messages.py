"""Builds real wire messages for tests of the hub from short descriptions of engines and trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract import wire


@dataclass
class Written:
    """One rollout as its engine knows it. ``versions`` and flag ``epochs`` per token; ``source`` of the versions."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float]
    versions: Sequence[int | None] = ()
    engine: str = "e0"
    cached: int | None = None
    lookup_off: bool = False
    finish_reason: str = "stop"
    has_logprobs: bool = True
    epochs: Sequence[int] = ()
    times: tuple[float, float, float] = (0.0, 0.0, 0.0)  # arrived, scheduled, finished
    request_id: str | None = None
    sampling: dict[str, float] = field(default_factory=dict)
    source: str = "engine"

    def runs(self) -> list[wire.VersionRun]:
        runs: list[wire.VersionRun] = []
        for at, version in enumerate(self.versions):
            epoch = self.epochs[at] if self.epochs else 0
            if not runs or (runs[-1].version, runs[-1].flag_epoch) != (version, epoch):
                runs.append(wire.VersionRun(at, epoch, version))
        return runs


def rollouts(written: Sequence[Written], engine: str | None = None) -> tuple[wire.Rollouts, wire.Arrays]:
    """What one engine publishes."""
    arrays: wire.Arrays = {
        "prompt_ids": _join([w.prompt for w in written], "i4"),
        "token_ids": _join([w.tokens for w in written], "i4"),
        "logprobs": _join([w.logprobs for w in written], "f4"),
    }
    entries = [
        wire.Rollout(
            w.request_id or f"r{number}", len(w.prompt), len(w.tokens), w.finish_reason, w.runs(), w.source,
            w.has_logprobs, cached_tokens=w.cached, lookup_off=w.lookup_off, arrived=w.times[0],
            scheduled=w.times[1], finished=w.times[2], sampling=w.sampling,
        )
        for number, w in enumerate(written)
    ]  # fmt: skip
    return wire.Rollouts(engine or written[0].engine, entries, wire.describe(arrays)), arrays


@dataclass
class Trained:
    """One row of the trainer: ``ids`` with ``mask``; per trained token the rest."""

    ids: Sequence[int]
    mask: Sequence[int]
    rollout: Sequence[float]
    trainer: Sequence[float]
    prompt: Sequence[int] | None = None
    reward: float | None = None
    per_token: dict[str, Sequence[float]] = field(default_factory=dict)
    request_id: str = ""


def sequences(
    rows: Sequence[Trained], *, step: int = 0, update: int = 0, rank: int = 0, **about: Any
) -> tuple[wire.Sequences, wire.Arrays]:
    """What one rank sends of a step; ``about`` are further fields of ``wire.Sequences``."""
    arrays: wire.Arrays = {
        "row_ids": _join([row.ids for row in rows], "i4"),
        "row_mask": _join([row.mask for row in rows], "u1"),
        "row_sizes": np.array([len(row.ids) for row in rows], "<i4"),
        "rollout_logprobs": _join([row.rollout for row in rows], "f4"),
        "trainer_logprobs": _join([row.trainer for row in rows], "f4"),
    }
    if rows and all(row.prompt is not None for row in rows):
        arrays["prompt_ids"] = _join([row.prompt or () for row in rows], "i4")
        arrays["prompt_sizes"] = np.array([len(row.prompt or ()) for row in rows], "<i4")
    if rows and all(row.reward is not None for row in rows):
        arrays["rewards"] = np.array([row.reward for row in rows], "<f4")
    for name in rows[0].per_token if rows else ():
        arrays[name] = _join([row.per_token[name] for row in rows], wire.TOKEN_COLUMNS[name])
    if any(row.request_id for row in rows):
        about["request_ids"] = [row.request_id for row in rows]
    return wire.Sequences(step, update, rank, len(rows), wire.describe(arrays), **about), arrays


def engine_state(engine: str, **changes: Any) -> wire.EngineState:
    """A healthy engine."""
    state: dict[str, Any] = {
        "engine": engine, "host": "here", "pid": 1, "step": 10, "policy_version": 3, "version_source": "engine",
        "weight_label": "3", "running": 2, "waiting": 1, "kv_usage": 0.25, "prompt_tokens": 100,
        "generated_tokens": 1000, "cached_tokens": 50, "finished": 5, "aborted": 0, "without_logprobs": 0,
        "flags": {"prefix_caching": wire.FlagState("on", True), "async_scheduling": wire.FlagState("on", True)},
        "flag_epoch": 0, "fingerprint": {"vllm_version": "0.32.0"},
    }  # fmt: skip
    return wire.EngineState(**(state | changes))


class Source:
    """A collector's end of the wire: numbers its messages. ``oldest``: what it can send again, if it can."""

    def __init__(self, name: str, epoch: str = "life-1", oldest: int | None = None) -> None:
        self.name, self.epoch, self.seq, self.oldest = name, epoch, 0, oldest

    def frames(self, body: wire.DataBody, arrays: wire.Arrays | None = None, *, sent: float = 0.0) -> list[bytes]:
        envelope = wire.Envelope(wire.PROTO, self.name, self.epoch, self.seq, sent, self.oldest)
        self.seq += 1
        return [bytes(frame) for frame in wire.encode_data(envelope, body, arrays or {})]

    @property
    def identity(self) -> str:
        return f"{self.name}#{self.epoch}"


def _join(parts: Sequence[Sequence[Any]], dtype: str) -> NDArray[Any]:
    return np.array([value for part in parts for value in part], wire.DTYPES[dtype])
