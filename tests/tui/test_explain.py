"""The explanation of numbers in plots, the fleet table and the gap table, with value and sample size."""

from __future__ import annotations

import pytest

from rltop.backend import metrics
from rltop.backend.metrics.document import count, explain
from rltop.tui.model.charts import CHARTS, Chart
from rltop.tui.model.explain import NOTHING
from rltop.tui.model.fleet_table import FLEET
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle
from tests.tui.test_mismatch import AnsweringClient

TALL = (160, 150)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.id)
async def test_the_numbers_of_a_plot_are_explained_at_the_cursor(chart: Chart) -> None:
    async with dashboard(HeldClient(pictures.healthy()), TALL) as (app, pilot):
        app.query_one(f"#plot-{chart.id}").focus()
        await pilot.press("[", "i")
        await settle(app, pilot)
        text = screen_text(app)
        assert "step 38" in text
        for series in chart.series:
            for name in filter(None, (series.metric, series.noise)):
                assert name in text
                for _, said in explain(metrics.BY_NAME[name]):
                    assert said.split()[0] in text
        await pilot.press("i")
        await settle(app, pilot)
        assert "Numbers of" not in screen_text(app)


async def test_a_number_that_is_not_measurable_names_what_it_needs() -> None:
    async with dashboard(HeldClient(pictures.young()), TALL) as (app, pilot):
        app.query_one("#plot-KL").focus()
        await pilot.press("i")
        await settle(app, pilot)
        text = screen_text(app)
        assert "not measurable" in text
        assert metrics.BY_NAME["noise_k3"].needs[:30] in text


async def test_rows_of_engines_have_their_own_numbers_and_sample_sizes() -> None:
    async with dashboard(AnsweringClient(pictures.healthy()), TALL) as (app, pilot):
        await pilot.press("j", "i")
        await settle(app, pilot)
        text = screen_text(app)
        assert "e1, step 39" in text
        assert "of 1,300 tokens" in text
        assert "5.250 robust standard deviations" in text
        for key in ("escape", "2", "j"):
            await pilot.press(key)
            await settle(app, pilot)
        await pilot.press("i")
        await settle(app, pilot)
        text = screen_text(app)
        assert "e0, steps 0 to 39" in text
        assert "of 5,400 tokens" in text


async def test_a_pane_without_numbers_points_to_those_that_have_some() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, pilot):
        await pilot.press("4", "i")
        await settle(app, pilot)
        assert len(app.screen_stack) == 1
        assert NOTHING in [shown.message for shown in app._notifications]


def test_columns_name_metrics_of_the_catalogue() -> None:
    named = [metric for column in FLEET for metric in column.metrics]
    assert named
    assert set(named) <= set(metrics.PER_ENGINE)


def test_the_sample_size_is_that_of_the_metrics_unit() -> None:
    values = {"tokens": 10.0, "sequences": 3.0, "requests": 4.0, "lag0_tokens": 5.0, "backend_tokens": 0.0}

    def of(name: str) -> tuple[float, str] | None:
        return count(metrics.BY_NAME[name], values)

    assert of("kl_k3") == (10.0, "tokens")
    assert of("reward_mean") == (3.0, "sequences")
    assert of("prefix_hit_rate") == (4.0, "requests")
    assert of("noise_k3") == of("lag0_k3") == (5.0, "tokens")
    assert of("clip_frac_low") is None
    assert of("engine_z") is None
    assert of("backend_k3") is None
