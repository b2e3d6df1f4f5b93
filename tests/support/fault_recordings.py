"""Reads and writes recordings of real demo runs, healthy and with faults (``tests/data``), as their hub received them.

Of a run the last steps are kept: what engines sampled and which rows the trainer made of it. Logprobs have 12 bits,
gaps are float16 (6e-8 apart where they are smallest); prompts are made again from their ticket (``bench/faults.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.api.attribution import Attribution
from rltop.backend.demo.rl import task
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Trained, Written, rollouts, sequences

DATA = Path(__file__).parents[1] / "data"
Key = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """A trained sequence: who sampled it and how; gaps per token, ``old`` NaN where not computed."""

    step: int
    engine: str
    ticket: int
    cached: int
    tokens: NDArray[Any]
    logprobs: NDArray[Any]
    versions: NDArray[Any]
    trainer: NDArray[Any]
    old: NDArray[Any]


def rows_of(messages: Iterable[tuple[wire.DataBody, wire.Arrays]], seed: int) -> list[Row]:
    """The rows of a run's data messages, joined with their rollouts by content."""
    tickets: dict[tuple[int, ...], int] = {}
    sampled: dict[Key, tuple[str, int]] = {}
    found = []
    for body, arrays in messages:
        if isinstance(body, wire.Rollouts):
            for rollout, prompt, tokens, logprobs in _rollouts(body, arrays):
                tickets[prompt] = int(rollout.request_id.removeprefix("t").split("-")[0])
                assert tuple(task.prompt(seed, tickets[prompt])) == prompt
                sampled[prompt, tokens, logprobs] = body.engine, rollout.cached_tokens or 0
        elif isinstance(body, wire.Sequences):
            for prompt, part in _rows(arrays):
                key = prompt, tuple(part["row_ids"]), tuple(part["rollout_logprobs"])
                engine, cached = sampled[key]
                trainer = part["trainer_logprobs"] - part["rollout_logprobs"]
                old = part["old_logprobs"] - part["rollout_logprobs"]
                found.append(
                    Row(body.step, engine, tickets[prompt], cached, part["row_ids"], part["rollout_logprobs"],
                        part["rollout_versions"], trainer, old)
                )  # fmt: skip
    return found


def _rollouts(body: wire.Rollouts, arrays: wire.Arrays) -> Iterable[tuple[wire.Rollout, Any, Any, Any]]:
    prompt = token = 0
    for rollout in body.rollouts:
        ids = arrays["prompt_ids"][prompt : prompt + rollout.prompt_size]
        own = slice(token, token + rollout.size)
        yield rollout, tuple(ids), tuple(arrays["token_ids"][own]), tuple(arrays["logprobs"][own])
        prompt, token = prompt + rollout.prompt_size, token + rollout.size


def _rows(arrays: wire.Arrays) -> Iterable[tuple[tuple[int, ...], Columns]]:
    """Prompt and columns of each row; the demo's rows are trained on whole."""
    assert arrays["row_mask"].all()
    prompt = token = 0
    columns = {name: arrays[name] for name in ("row_ids", *wire.TOKEN_COLUMNS) if name in arrays}
    for prompt_size, size in zip(arrays["prompt_sizes"], arrays["row_sizes"], strict=True):
        ids = tuple(arrays["prompt_ids"][prompt : prompt + prompt_size])
        yield ids, {name: column[token : token + size] for name, column in columns.items()}
        prompt, token = prompt + prompt_size, token + size


def save(path: Path, rows: list[Row], seed: int) -> None:
    """Write a recording."""
    coarse = np.concatenate([row.logprobs for row in rows]).astype("<f4").view("<u4") & np.uint32(0xFFFFF800)
    np.savez_compressed(
        path,
        seed=np.array(seed),
        about=np.array([(r.step, int(r.engine[1:]), r.ticket, r.cached, r.tokens.size) for r in rows], "<i2").T,
        tokens=np.concatenate([row.tokens for row in rows]).astype("u1"),
        logprobs=np.stack([(coarse >> 16).astype("<u2"), (coarse & 0xFFFF).astype("<u2")]),
        versions=np.concatenate([row.versions for row in rows]).astype("u1"),
        trainer=np.concatenate([row.trainer for row in rows]).astype("<f2"),
        old=np.concatenate([row.old for row in rows if not np.isnan(row.old).all()] or [np.zeros(0)]).astype("<f2"),
        matched=np.array([not np.isnan(row.old).all() for row in rows]),
    )


def load(name: str) -> list[Row]:
    """Read a recording of ``tests/data``."""
    with np.load(io.BytesIO((DATA / f"{name}.npz").read_bytes())) as held:
        columns = {key: held[key] for key in held.files}
    high, low = columns["logprobs"].astype("<u4")
    logprobs = (high << 16 | low).view("<f4")
    found, at, old_at = [], 0, 0
    for (step, engine, ticket, cached, size), matched in zip(columns["about"].T, columns["matched"], strict=True):
        own, of_old = slice(at, at + size), slice(old_at, old_at + size)
        at += size
        old_at += size if matched else 0
        old = columns["old"][of_old].astype("<f4") if matched else np.full(size, np.nan, "<f4")
        found.append(
            Row(int(step), f"e{engine}", int(ticket), int(cached), columns["tokens"][own], logprobs[own],
                columns["versions"][own], columns["trainer"][own].astype("<f4"), old)
        )  # fmt: skip
    return found


def seed_of(name: str) -> int:
    """Of the prompts of a recording."""
    with np.load(DATA / f"{name}.npz") as held:
        return int(held["seed"])


def replay(rows: list[Row], seed: int, hub: Hub | None = None, *, every_s: float = 0.1) -> Hub:
    """A hub that has heard the run: every step as its engines and its trainer would tell it."""
    hub = hub or Hub()
    for step in sorted({row.step for row in rows}):
        here = [row for row in rows if row.step == step]
        for engine in sorted({row.engine for row in here}):
            written = [_written(row, seed) for row in here if row.engine == engine]
            hub.send(engine, *rollouts(written))
        trained = [_trained(row, seed) for row in here]
        hub.send("trainer/0", *sequences(trained, step=step, policy_version=step))
        hub.send("trainer/0", wire.StepClosed(step, 0, 1))
        hub.later(every_s)
    return hub


def attribution(hub: Hub, steps: int = 1000) -> Attribution:
    """Where its gap comes from."""
    answer, _ = hub.ask(api.AskAttribution("q", steps))
    assert answer.attribution is not None
    return answer.attribution


def _written(row: Row, seed: int) -> Written:
    return Written(
        task.prompt(seed, row.ticket), list(map(int, row.tokens)), list(map(float, row.logprobs)),
        list(map(int, row.versions)), row.engine, row.cached, request_id=f"t{row.ticket}-0",
    )  # fmt: skip


def _trained(row: Row, seed: int) -> Trained:
    known = ~np.isnan(row.old)
    versions = row.versions.astype("<i4")
    return Trained(
        list(map(int, row.tokens)), [1] * row.tokens.size, list(map(float, row.logprobs)),
        list(map(float, row.logprobs + row.trainer)), task.prompt(seed, row.ticket),
        per_token={
            "rollout_versions": versions.tolist(),
            "old_logprobs": (row.logprobs + row.old).tolist(),
            "old_versions": np.where(known, versions, wire.UNKNOWN_VERSION).tolist(),
        },
    )  # fmt: skip
