"""A step's stored metrics equal those recomputed from its stored tokens."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rltop.backend.api.samples import Sequence, floats, ints
from rltop.backend.client.replay import SAMPLE
from rltop.backend.measure import arrays
from rltop.backend.store.read import Reader
from rltop.backend.store.row_mapping import sample_body
from rltop.backend.store.step_details import samples
from tests.backend.store.test_store_aggregates import Stored
from tests.support.oracles import gap

EXACT = 1e-9

BY_THE_JOIN = {"requests", "lag0_tokens"}
"""Metrics that come from rollouts, not tokens."""

BINNED = tuple(f"logp{kind}_diff_p{q}" for kind in ("", "_abs") for q in (50, 95, 99))
"""Quantiles come from bins, within their width; ``compute`` has the same ones."""


def differences(sequence: Sequence) -> list[float]:
    trainer, rollout = (floats(raw).astype(np.float64) for raw in (sequence.trainer, sequence.rollout))
    return [float(d) for d in trainer - rollout]


def test_a_steps_metrics_equal_those_of_its_stored_tokens(tmp_path: Path) -> None:
    world = Stored(tmp_path)
    world.go(3)
    world.switch("e1")
    world.go(3)
    world.hub.later(0.1)
    world.states()
    world.writer.close()
    with Reader(tmp_path) as reader:
        recorded = reader.snapshot().steps
        stored = {number: samples(reader, number, "sample", None, 100).sequences for number in recorded}
    assert list(stored) == list(range(6))
    for number, sequences in stored.items():
        shown = recorded[number].values
        assert len(sequences) == shown["sequences"] == 12  # few enough that all are stored
        rows = sorted(sequences, key=lambda sequence: sequence.number)
        plain = gap([d for sequence in rows for d in differences(sequence)])
        for name in plain.keys() - set(BINNED):
            assert shown[name] == pytest.approx(plain[name], rel=EXACT, abs=EXACT), name
        again = arrays.values(
            {
                "trainer_logprobs": np.array([floats(s.trainer) for s in rows]),
                "rollout_logprobs": np.array([floats(s.rollout) for s in rows]),
                "mask": np.array([list(s.mask) for s in rows]),
                "token_ids": np.array([ints(s.ids) for s in rows]),
                "prompt_ids": np.array([ints(s.context) for s in rows]),
            }
        )
        known = {name: value for name, value in again.items() if value is not None and name not in BY_THE_JOIN}
        assert len(known) > 30
        for name, value in known.items():
            assert shown[name] == pytest.approx(value, rel=EXACT, abs=EXACT), name


def test_metrics_of_a_real_runs_samples_equal_those_of_their_stored_logprobs() -> None:
    with Reader(SAMPLE) as reader:
        held = reader.execute("SELECT kind, value, body FROM sample").fetchall()
    seen = dict.fromkeys(("sample", "worst", "abs_diff", "k3"), 0)
    for kind, value, packed in held:
        body = sample_body(packed)
        seen[kind] += 1
        if kind in ("sample", "worst"):
            sequence = msgspec.convert(body, Sequence)
            plain = gap(differences(sequence))
            assert sequence.abs_diff_mean == pytest.approx(plain["logp_abs_diff_mean"], rel=EXACT, abs=EXACT)
            assert sequence.k3_mean == pytest.approx(plain["kl_k3"], rel=EXACT, abs=EXACT)
            assert value is None or value == sequence.k3_mean
        else:
            d = body["trainer"] - body["rollout"]
            assert value == pytest.approx(abs(d) if kind == "abs_diff" else math.expm1(d) - d, rel=EXACT, abs=EXACT)
    assert min(seen.values()) > 300
