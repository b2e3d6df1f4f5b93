"""What the trainer tells of a step, held against the steps before."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.metrics.trainer_metrics import LEAST, TRAILING, grad_norm, grad_norm_z
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub

norms = st.lists(st.floats(0, 1e6).map(lambda value: round(value, 3)) | st.just(math.nan), max_size=TRAILING + 20)


@given(norms, st.floats(0, 1e6))
def test_the_z_score_uses_the_last_steps_with_a_norm(earlier: list[float], now: float) -> None:
    found = grad_norm_z({"actor/grad_norm": now}, [{"loss": 0.0, "actor/grad_norm": value} for value in earlier])
    known = [value for value in earlier[-TRAILING:] if math.isfinite(value)]
    middle = statistics.median(known) if known else 0.0
    spread = 1.4826 * statistics.median(abs(value - middle) for value in known) if known else 0.0
    if len(known) < LEAST or spread <= 1e-9 * middle:
        assert found is None
    else:
        assert found == pytest.approx((now - middle) / spread)


@pytest.mark.parametrize("name", ["grad_norm", "actor/grad_norm", "optim/grad_norm"])
def test_the_norm_is_found_under_any_framework_path(name: str) -> None:
    assert grad_norm({"x": 1.0, name: 2.0}) == 2.0
    assert grad_norm({f"{name}_clipped": 1.0, "old_grad_norm": 1.0}) is None
    assert grad_norm({name: math.inf}) is None


def close(hub: Hub, number: int, norm: float) -> None:
    hub.send("trainer/0", wire.StepClosed(number, 0, 1, number, {"grad_norm": norm}))
    hub.later(0.3)


def test_a_hub_uses_earlier_steps_only_including_those_of_the_previous_hub() -> None:
    hub = Hub()
    for number in range(LEAST + 1):
        close(hub, number, 1.0 + number % 3)
    assert hub.steps[LEAST - 1].values["grad_norm_z"] is None
    assert hub.steps[LEAST].values["grad_norm_z"] is not None
    past = hub.picture
    after = Hub("hub-2", past)
    close(after, LEAST + 1, 30.0)
    z = after.steps[LEAST + 1].values["grad_norm_z"]
    assert z is not None and z > 15
    close(after, 3, 30.0)  # a step that comes again: too few before it
    assert after.steps[3].values["grad_norm_z"] is None
