"""An exception of the hub's own code costs the step or the answer that it concerns, is reported, and is not healthy."""

from __future__ import annotations

import pytest

from rltop.backend import api
from rltop.backend.api.verdict import HEALTHY, Verdict
from rltop.backend.join.batch import Batch
from rltop.backend.steps.steps import Assembly
from tests.support.hub_core import Hub
from tests.support.training import Training

BAD = 3


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of step ``BAD`` can't be measured."""
    absorb = Assembly.absorb

    def fails(self: Assembly, batch: Batch) -> None:
        if self.step == BAD:
            raise ArithmeticError("a defect")
        absorb(self, batch)

    monkeypatch.setattr(Assembly, "absorb", fails)


def run(hub: Hub, training: Training, steps: int) -> None:
    for _ in range(steps):
        for source, body, arrays in training.step():
            try:
                hub.send(source, body, arrays)
            except ArithmeticError:
                continue  # the worker thread contains it
        hub.later(1.0)
        hub.later(3.0)


def verdict(hub: Hub) -> Verdict:
    answer, _ = hub.ask(api.AskDiagnosis("d"))
    assert answer.diagnosis is not None
    return answer.diagnosis


@pytest.mark.usefixtures("faulty")
def test_a_step_that_can_not_be_measured_is_given_up_and_the_others_go_on() -> None:
    hub, training = Hub(), Training(engines=2, rows=32)
    run(hub, training, 6)
    assert set(hub.steps) >= {0, 1, 2, 4, 5}
    assert hub.steps[5].values["joined_fraction"] == 1.0


def blamed(hub: Hub) -> bool:
    """Whether the verdict is kept from healthy by a fault of the hub."""
    return any("ArithmeticError" in need for need in verdict(hub).needs)


@pytest.mark.usefixtures("faulty")
def test_a_fault_while_rows_wait_is_an_event_and_keeps_the_verdict_from_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rltop.backend.steps.steps.Steps._joins_now", lambda self: False)  # the tick measures all rows
    hub, training = Hub(), Training(engines=2, rows=32)
    run(hub, training, 3)
    assert not blamed(hub)
    run(hub, training, 3)
    assert set(hub.steps) == {0, 1, 2, 4, 5}
    assert hub.counters["faults"] == 1
    (text,) = [text for text in hub.texts if "ArithmeticError" in text]
    assert f"step {BAD}" in text
    found = verdict(hub)
    assert found.verdict != HEALTHY
    assert text in found.needs
    assert blamed(hub)
    run(hub, training, 21)
    assert not blamed(hub)
