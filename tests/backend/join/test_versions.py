"""Versions of tokens: what engines and trainer state comes before counts, which are aligned with stated versions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rltop.backend.join.versions import VersionAlignment, VersionScale, VersionUnit
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.hub_messages import Source, Trained, Written, engine_state, rollouts, sequences

TRAINER = "trainer/0"
SIZE = 3


class Fleet:
    """Engines that sample and a trainer that trains on their rollouts, as their hub hears them."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.number = 0

    def rows(
        self, engine: Source, versions: Sequence[int | None], stated: Sequence[int | None], source: str = "inferred"
    ) -> list[Trained]:
        """One row per version that the engine reports, with what the trainer states for it."""
        rows = []
        for version, given_version in zip(versions, stated, strict=True):
            self.number += 1
            prompt, tokens, logprobs = [self.number, 2], [5, 6, 7], [-1.0, -1.1, -1.0 - 1e-3 * self.number]
            written = Written(
                prompt, tokens, logprobs, [version] * SIZE, engine=engine.name, request_id=f"r{self.number}",
                source=source,
            )  # fmt: skip
            self.send(engine, *rollouts([written]))
            of_tokens = [wire.UNKNOWN_VERSION if given_version is None else given_version] * SIZE
            columns: dict[str, Sequence[float]] = {
                "old_logprobs": logprobs,
                "rollout_versions": of_tokens,
                "old_versions": of_tokens,
            }
            rows.append(Trained(tokens, [1] * SIZE, logprobs, logprobs, prompt=prompt, per_token=columns))
        return rows

    def send(self, source: Source, body: wire.DataBody, arrays: wire.Arrays | None = None) -> None:
        self.hub.state.data(source.frames(body, arrays, sent=self.hub.now), self.hub.now)

    def step(self, step: int, rows: list[Trained], version: int, after: int, unit: int = 1) -> dict[str, float | None]:
        """Train on rows; return the values of the step."""
        self.hub.send(TRAINER, *sequences(rows, step=step, policy_version=version, version_unit=unit))
        self.hub.send(TRAINER, wire.StepClosed(step, 0, 1, after, rows=len(rows), version_unit=unit))
        self.hub.settle()
        return self.hub.steps[step].values


@pytest.mark.parametrize("count", [None, 1, 7])
def test_what_the_trainer_states_comes_before_an_engine_s_count(count: int | None) -> None:
    """TRL synchronises the weights once before step 0, so an engine that counts is at 1 where the trainer is at 0."""
    fleet = Fleet()
    rows = fleet.rows(Source("e0"), [count] * 4, [0] * 4)
    values = fleet.step(0, rows, 0, 1)
    assert (values["lag_mean"], values["lag_inferred_frac"], values["lag_unknown_frac"]) == (0.0, 0.0, 0.0)
    assert (values["lag0_tokens"], values["backend_tokens"], values["stale_backend_tokens"]) == (12, 12, 0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 40), st.data())
@settings(max_examples=25, deadline=None)
def test_counts_never_change_the_lag_of_stated_versions(stated: list[int], ahead: int, data: st.DataObject) -> None:
    now = max(stated) + ahead
    counts = data.draw(st.lists(st.none() | st.integers(0, 2000), min_size=len(stated), max_size=len(stated)))
    fleet = Fleet()
    values = fleet.step(0, fleet.rows(Source("e0"), counts, list(stated)), now, now + 1)
    assert values["lag_mean"] == pytest.approx(now - sum(stated) / len(stated))
    assert values["lag_inferred_frac"] == 0.0


def test_an_engine_s_label_comes_before_the_trainer_and_a_contradiction_is_an_event() -> None:
    fleet = Fleet()
    values = fleet.step(0, fleet.rows(Source("e0"), [5, 5], [4, 4], source="engine"), 6, 7)
    assert values["lag_mean"] == 1.0
    texts = [text for text in fleet.hub.texts if "states policy version 5" in text and "the trainer states 4" in text]
    assert len(texts) == 1
    assert fleet.hub.counters["version_conflicts"] == 2 * SIZE
    fleet.step(1, fleet.rows(fleet.hub.source("e0"), [5], [4], source="engine"), 6, 7)
    assert sum("the trainer states" in text for text in fleet.hub.texts) == 1


def test_a_version_of_a_sequence_that_an_update_interrupted_is_no_contradiction() -> None:
    fleet = Fleet()
    body, arrays = rollouts([Written([1, 2], [5, 6, 7], [-1.0, -1.1, -1.2], [4, 4, 5], request_id="r")])
    fleet.send(Source("e0"), body, arrays)
    columns: dict[str, Sequence[float]] = {"rollout_versions": [5, 5, 5]}
    row = Trained([5, 6, 7], [1, 1, 1], [-1.0, -1.1, -1.2], [-1.0, -1.1, -1.2], prompt=[1, 2], per_token=columns)
    assert fleet.step(0, [row], 6, 7)["lag_mean"] == pytest.approx((2 + 2 + 1) / 3)
    assert "version_conflicts" not in fleet.hub.counters


steps_of_a_fleet = st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(1, 30)), min_size=1, max_size=9)
"""Per step the lag of its rows and, if the engine restarted, how many updates its count starts behind the trainer."""


@given(st.sampled_from([1, 64]), st.integers(3, 50), st.integers(3, 30), steps_of_a_fleet)
@settings(max_examples=25, deadline=None)
def test_counts_are_aligned_per_engine_process_from_rows_that_state_versions(
    unit: int, first: int, behind: int, steps: list[tuple[int, int | None]]
) -> None:
    """Of three rows of a step one states its version; the others have the lag that the aligned count gives."""
    fleet, engine, offset = Fleet(), Source("e0"), first - behind
    for step in range(2):  # without rows, so that the hub has seen the trainer advance
        fleet.hub.send(TRAINER, wire.StepClosed(step, 0, 1, (first + step + 1) * unit))
    for place, (lag, restart) in enumerate(steps, 2):
        now = first + place
        if restart is not None:
            engine, offset = Source("e0", epoch=f"life-{place}"), now - 3 - restart
        sampled = now - lag
        fleet.send(engine, engine_state("e0", policy_version=sampled - offset, version_source="inferred"))
        rows = fleet.rows(engine, [sampled - offset] * 3, [sampled * unit, None, None])
        values = fleet.step(place, rows, now * unit, (now + 1) * unit)
        assert (values["lag_mean"], values["lag_unknown_frac"]) == (lag, 0.0)
        assert values["lag_inferred_frac"] == pytest.approx(2 / 3)
        assert fleet.hub.picture.engines["e0"].policy_version == sampled * unit
        assert fleet.hub.picture.engines["e0"].lag == lag + 1


def test_a_minority_of_wrong_statements_does_not_shift_a_count() -> None:
    fleet, engine = Fleet(), Source("e0")
    stated = [4, 4, 9, 4, 4, 0, None]
    values = fleet.step(0, fleet.rows(engine, [7] * 7, stated), 4, 5)
    lags = [4 - version for version in stated if version is not None] + [0]
    assert values["lag_mean"] == pytest.approx(sum(lags) / 7)


def test_a_count_that_no_majority_of_statements_supports_is_unknown() -> None:
    fleet = Fleet()
    values = fleet.step(0, fleet.rows(Source("e0"), [7] * 4, [1, 2, 3, None]), 4, 5)
    assert values["lag_unknown_frac"] == 0.25


def test_without_statements_a_count_is_the_version_but_never_ahead_of_the_trainer() -> None:
    fleet, engine = Fleet(), Source("e0")
    assert fleet.step(0, fleet.rows(engine, [1], [None]), 0, 1)["lag_mean"] == 0.0
    values = fleet.step(1, fleet.rows(engine, [1], [None]), 1, 2)
    assert (values["lag_mean"], values["lag_inferred_frac"]) == (1.0, 1.0)


def test_the_count_of_an_engine_that_starts_later_is_unknown_until_rows_state_a_version() -> None:
    fleet = Fleet()
    for step in range(3):
        fleet.step(step, fleet.rows(Source("e0", epoch=f"a{step}"), [step], [None], source="engine"), step, step + 1)
    late = Source("e1")
    fleet.send(late, engine_state("e1", policy_version=1, version_source="inferred"))
    assert fleet.step(3, fleet.rows(late, [1], [None]), 3, 4)["lag_unknown_frac"] == 1.0
    assert (fleet.hub.picture.engines["e1"].lag, fleet.hub.picture.engines["e1"].policy_version) == (None, 1)
    values = fleet.step(4, fleet.rows(late, [2, 2], [3, None]), 4, 5)
    assert (values["lag_mean"], values["lag_unknown_frac"]) == (1.0, 0.0)
    fleet.send(late, engine_state("e1", policy_version=3, version_source="inferred"))
    fleet.hub.later(1.0)
    engine = fleet.hub.picture.engines["e1"]
    assert (engine.policy_version, engine.lag, engine.is_inferred) == (4, 1, True)


@pytest.mark.parametrize("source", ["engine", "inferred"])
def test_lag_is_in_updates_where_the_framework_counts_samples(source: str) -> None:
    """PipelineRL's version is the number of samples that the weights were trained on."""
    fleet, engine = Fleet(), Source("e0")
    for step in range(6):
        sampled = max(step - 1, 0)
        version = sampled * 64 if source == "engine" else sampled + 1
        rows = fleet.rows(engine, [version] * 2, [sampled * 64, None], source=source)
        values = fleet.step(step, rows, step * 64, (step + 1) * 64)
        assert values["lag_mean"] == step - sampled
    fleet.send(engine, engine_state("e0", policy_version=version, version_source=source))
    fleet.hub.later(1.0)
    assert fleet.hub.picture.engines["e0"].lag == 2
    assert fleet.hub.picture.engines["e0"].policy_version == 4 * 64


def test_a_stated_unit_needs_no_history_and_rounds_uneven_batches() -> None:
    fleet = Fleet()
    values = fleet.step(7, fleet.rows(Source("e0"), [None] * 2, [1000, 1060]), 1130, 1190, unit=64)
    assert values["lag_mean"] == 1.5


@given(
    st.integers(1, 300), st.integers(0, 10**6), st.lists(st.integers(1, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 8), max_size=10),
)  # fmt: skip
def test_the_unit_is_learned_from_the_steps_of_the_trainer(
    unit: int, first: int, gaps: list[int], lags: list[int]
) -> None:
    learned, step = VersionUnit(), 0
    for gap in [0, *gaps]:
        step += gap
        learned.observe(step, first + step * unit)
    now = first + step * unit
    learned.observe_tokens(now, np.array([now - lag * unit for lag in lags], np.int64))
    assert learned.value == unit


@given(st.integers(2, 300), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_versions_between_the_steps_of_a_unit_show_that_updates_are_counted(unit: int, lags: list[int]) -> None:
    """A trainer that makes several updates per step advances by more than 1, but its versions are updates."""
    learned = VersionUnit()
    for step in range(10):
        learned.observe(step, step * unit)
    learned.observe_tokens(9 * unit, np.array([9 * unit - lag * unit - 1 for lag in lags], np.int64))
    assert learned.value == 1


@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 20))
def test_a_lag_is_the_number_of_updates(unit: int, version: int, lag: int) -> None:
    scale = VersionScale(unit)
    found = scale.lags((version + lag) * unit, np.array([version * unit], np.int64))
    assert found.tolist() == [lag]


FAR = st.integers(1 - 2**62, 2**62 - 1)


@given(FAR, st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(1, 2**61))
@example(2**62 - 1, [-(2**62), -(2**63)], 1)
@example(2**53 + 1, [0], 2)
@example(7, [0, 1, 2, 4], 2)
def test_lags_are_exact_over_the_whole_range_of_versions(now: int, versions: list[int], unit: int) -> None:
    lags = VersionScale(unit).lags(now, np.array(versions, np.int64))
    limited = [max(min(version, 2**62 - 1), 1 - 2**62) for version in versions]
    assert lags.tolist() == [round(Fraction(now - version, unit)) for version in limited]
    alignment = VersionAlignment()
    alignment.unit.observe(0, now, unit)
    assert alignment.lag(now, limited[0]) == lags.tolist()[0]
