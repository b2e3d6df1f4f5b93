"""A deterministic run as its collectors see it: engines that generate, and a trainer on their rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rltop.collectors.contract import wire

PROMPT, TOKENS, GROUP = 12, 8, 4
LATER = 1
"""Steps that lie between a rollout and the step that trains on it."""

Message = tuple[str, wire.DataBody, wire.Arrays]
"""Source, and what it sends."""


@dataclass
class _Rows:
    prompts: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    logprobs: np.ndarray[tuple[int, int], np.dtype[np.float32]]


class Training:
    """``engines`` engines write ``rows`` rollouts each per step; every ``again``-th step trains on some a second time.

    Attributes:
        steps: that were begun.
    """

    def __init__(self, engines: int = 2, rows: int = 8, seed: int = 0, again: int = 3) -> None:
        self.steps = 0
        self._rng = np.random.default_rng(seed)
        self._engines = [f"e{n}" for n in range(engines)]
        self._rows, self._again = rows, again
        self._written: list[list[_Rows]] = []

    def step(self) -> Iterator[Message]:
        """All messages of one more step, in an order in which they may be sent."""
        self._written.append([self._write() for _ in self._engines])
        for engine, rows in zip(self._engines, self._written[-1], strict=True):
            yield engine, *self._rollouts(engine, rows)
        step = self.steps
        for rows in self._written[max(step - LATER, 0)]:
            yield "trainer/0", *self._sequences(step, rows)
        used = self._rows * len(self._engines)
        if step > LATER and step % self._again == 0:
            yield "trainer/0", *self._sequences(step, self._written[step - LATER - 1][0])
            used += self._rows
        yield "trainer/0", wire.StepClosed(step, 0, 1, step + 1, {"loss": step / 7}, rows=used), {}
        self.steps += 1

    def _write(self) -> _Rows:
        rng, size = self._rng, self._rows
        prompts = np.repeat(rng.integers(0, 30_000, (size // GROUP, PROMPT)), GROUP, axis=0).astype("<i4")
        ids = rng.integers(0, 30_000, (size, TOKENS)).astype("<i4")
        return _Rows(prompts, ids, -rng.exponential(1, (size, TOKENS)).astype("<f4"))

    def _rollouts(self, engine: str, rows: _Rows) -> tuple[wire.Rollouts, wire.Arrays]:
        arrays: wire.Arrays = {
            "prompt_ids": rows.prompts.ravel(), "token_ids": rows.ids.ravel(), "logprobs": rows.logprobs.ravel(),
        }  # fmt: skip
        entries = [
            wire.Rollout(
                f"{self.steps}-{n}", PROMPT, TOKENS, "stop", [wire.VersionRun(0, 0, self.steps)], "engine", True
            )
            for n in range(self._rows)
        ]
        return wire.Rollouts(engine, entries, wire.describe(arrays)), arrays

    def _sequences(self, step: int, rows: _Rows) -> tuple[wire.Sequences, wire.Arrays]:
        size = self._rows
        noise = self._rng.normal(0, 0.02, rows.logprobs.shape).astype("<f4")
        arrays: wire.Arrays = {
            "row_ids": np.concatenate([rows.prompts, rows.ids], axis=1).ravel(),
            "row_mask": np.repeat(np.array([[0] * PROMPT + [1] * TOKENS], "u1"), size, axis=0).ravel(),
            "row_sizes": np.full(size, PROMPT + TOKENS, "<i4"),
            "rewards": self._rng.random(size).astype("<f4"),
            "advantages": self._rng.normal(0, 1, size * TOKENS).astype("<f4"),
            "rollout_logprobs": rows.logprobs.ravel(),
            "trainer_logprobs": (rows.logprobs + noise).ravel(),
        }
        about = wire.Sequences(step, 0, 0, size, wire.describe(arrays), step, clip_low=0.8, clip_high=1.2)
        return about, arrays
