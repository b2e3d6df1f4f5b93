"""The parity verdict: noise passes at the stated rate, faults fail and are dated, too little data is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api, metrics
from rltop.backend.parity.compare import ALPHA, METRICS, MIN_STEPS, RHO, Floats, parity
from rltop.backend.parity.stored_runs import as_text, compare_stored, differing
from rltop.tui.app import RltopApp
from rltop.tui.cli import main as cli
from rltop.tui.cli.history_commands import read_references
from rltop.tui.model.reference import Reference
from rltop.tui.views.plot import Plot
from tests.support import pictures, stored
from tests.support.pictures import HeldClient
from tests.support.screens import screen_text, settle

SCALE = {
    "logp_abs_diff_mean": (0.02, 0.004), "backend_abs_diff_mean": (0.002, 0.0004), "ratio_mean": (1.0, 0.004),
    "kl_k3": (0.003, 0.001), "clip_frac_low": (0.01, 0.004), "clip_frac_high": (0.01, 0.004), "entropy": (0.5, 0.04),
    "reward_mean": (0.6, 0.06), "lag_mean": (1.0, 0.3),
}  # fmt: skip
"""Level and step-to-step noise of each metric, as in the demo."""


def run(
    rng: np.random.Generator, steps: int = 100, drift: float = 0.5, shift: dict[str, Floats] | None = None
) -> dict[int, api.Step]:
    """A run: learning curves with noise at every step and a slow drift of this share of the noise."""
    made: dict[str, Floats] = {}
    for name, (level, noise) in SCALE.items():
        slow = np.empty(steps)
        slow[0] = rng.normal()
        for at in range(1, steps):
            slow[at] = 0.95 * slow[at - 1] + np.sqrt(1 - 0.95**2) * rng.normal()
        curve = level * (1 + 0.2 * (1 - np.exp(-np.arange(steps) / 30)))
        made[name] = curve + noise * (rng.normal(size=steps) + drift / np.sqrt(2) * slow)
        made[name] += (shift or {}).get(name, np.zeros(steps))
    return {
        n: api.Step(n, float(n), n, partial=False, values={name: float(column[n]) for name, column in made.items()})
        for n in range(steps)
    }


@pytest.mark.parametrize("references", [1, 2, 3, 5])
def test_runs_that_differ_by_noise_alone_fail_at_most_at_the_stated_rate(references: int) -> None:
    rng = np.random.default_rng(references)
    trials = 200
    failed = sum(parity([run(rng) for _ in range(references)], run(rng)).verdict == "not parity" for _ in range(trials))
    assert failed / trials <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / trials)


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize(("metric", "size"), [("logp_abs_diff_mean", 0.02), ("ratio_mean", 0.02), ("entropy", -0.4)])
def test_a_fault_is_found_and_dated(references: int, metric: str, size: float) -> None:
    rng = np.random.default_rng(7)
    for onset in (0, 40, 85):
        shift = {metric: np.where(np.arange(100) >= onset, size, 0.0)}
        found = parity([run(rng) for _ in range(references)], run(rng, shift=shift))
        assert found.verdict == "not parity"
        (one,) = [verdict for verdict in found.metrics if verdict.metric == metric]
        assert one.verdict == "diverges"
        assert one.since is not None
        assert one.difference is not None
        assert abs(one.since - onset) <= 5
        assert one.difference == pytest.approx(size, rel=0.35)


def test_a_temporary_fault_is_found_with_its_end() -> None:
    rng = np.random.default_rng(3)
    shift = {"kl_k3": np.where((np.arange(100) >= 30) & (np.arange(100) < 50), 0.01, 0.0)}
    found = parity([run(rng) for _ in range(3)], run(rng, shift=shift))
    (one,) = [verdict for verdict in found.metrics if verdict.metric == "kl_k3"]
    assert one.since is not None
    assert one.until is not None
    assert (abs(one.since - 30) <= 5, abs(one.until - 49) <= 10) == (True, True)


def test_a_difference_below_the_tolerance_is_no_divergence() -> None:
    rng = np.random.default_rng(0)
    quiet = [run(rng) for _ in range(2)]
    for steps in quiet:
        for number, step in steps.items():
            step.values["logp_abs_diff_mean"] = 1e-7 + (5e-7 if steps is quiet[1] else 0.0) + number * 1e-12
    (gap, *_) = parity(quiet[:1], quiet[1]).metrics
    assert (gap.metric, gap.verdict) == ("logp_abs_diff_mean", "follows")


@given(st.integers(0, MIN_STEPS - 1))
def test_too_little_data_is_reported(steps: int) -> None:
    rng = np.random.default_rng(0)
    found = parity([run(rng, 60)], {n: step for n, step in run(rng, 60).items() if n < steps})
    assert found.verdict == "too little data"
    assert found.steps == steps


def test_partial_and_missing_steps_are_excluded_and_absent_metrics_are_named() -> None:
    rng = np.random.default_rng(1)
    reference, other = run(rng), run(rng)
    del reference[3]
    other[5] = api.Step(5, 5.0, 5, partial=True, values=other[5].values)
    for step in other.values():
        step.values["lag_mean"] = None
    found = parity([reference], other)
    assert found.steps == 98
    assert [m.verdict for m in found.metrics if m.metric == "lag_mean"] == ["not measured"]
    assert "lag" in found.notes[1]
    assert "one reference" in found.notes[0]
    assert parity([reference, run(rng), run(rng)], run(rng)).notes == []
    with pytest.raises(ValueError, match="no reference"):
        parity([], other)


def test_a_run_follows_itself_exactly() -> None:
    steps = run(np.random.default_rng(0))
    found = parity([steps, steps, steps], steps)
    assert found.verdict == "parity"
    assert max(abs(metric.difference or 0.0) for metric in found.metrics) < 1e-15


def test_differing_settings_are_named() -> None:
    healthy, switched = pictures.healthy(), pictures.healthy()
    switched.engines = {name: pictures.engine(name, flags=pictures.flags()) for name in switched.engines}
    switched.changes = {}
    assert differing([healthy], healthy) == []
    assert "engine prefix_caching: reference off and on, run on" in differing([healthy], switched)


def test_parity_metrics_are_in_the_catalogue() -> None:
    assert {judged.metric for judged in METRICS} <= set(metrics.BY_NAME)
    assert set(SCALE) == {judged.metric for judged in METRICS}
    assert 0 <= RHO < 1


def test_the_command_prints_the_verdict_and_exits_with_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shift = {"ratio_mean": np.full(100, 0.05)}
    paths = []
    for number, steps in enumerate([run(rng), run(rng), run(rng), run(rng, shift=shift)]):
        (tmp_path / str(number)).mkdir()
        made = [api.Frame("h", 1, 1.0, steps=list(steps.values()))]
        paths.append(str(stored.store(tmp_path / str(number), made)))
    good = CliRunner().invoke(cli.main, ["parity", *paths[:3]])
    assert (good.exit_code, good.stdout.splitlines()[0]) == (0, "parity")
    bad = CliRunner().invoke(cli.main, ["parity", *paths, "--json"])
    answer = json.loads(bad.stdout)
    assert (bad.exit_code, answer["verdict"], answer["references"]) == (1, "not parity", 3)
    assert answer["since"] <= 10
    text = as_text(compare_stored([Path(path) for path in paths[:3]], Path(paths[3])))
    assert text.startswith("not parity in mean ratio, since step")
    assert all(re.search(rf"^  {re.escape(one.label)}  ", text, re.MULTILINE) for one in METRICS)
    assert CliRunner().invoke(cli.main, ["parity", paths[0]]).exit_code == 2
    nothing = CliRunner().invoke(cli.main, ["parity", paths[0], str(tmp_path / "nothing")])
    assert (nothing.exit_code, "no run named" in nothing.stderr) == (1, True)


async def test_the_dashboard_draws_the_reference_and_the_divergence() -> None:
    rng = np.random.default_rng(5)
    reference = run(rng, 60)
    shift = {"kl_k3": np.where(np.arange(60) >= 30, 0.02, 0.0)}
    shown = pictures.picture(steps=run(rng, 60, shift=shift))
    app = RltopApp(HeldClient(shown), "sort", reference=Reference([reference]))
    async with app.run_test(size=(160, 48)) as pilot:
        await settle(app, pilot)
        screen = screen_text(app)
        assert "reference: not parity in KL (k3) since step 3" in screen
        assert "≠reference" in screen
        assert " ref" in screen
        picture = app.query_one("#plot-reward", Plot)._drawing(app.state.history, (), app.state.viewport)
        theirs = next(line for line in picture.lines if line.label == "ref")
        assert theirs.y.tolist() == [step.values["reward_mean"] for step in reference.values()]


def test_references_are_read_from_files_and_invalid_ones_are_named(tmp_path: Path) -> None:
    path = stored.store(tmp_path, stored.frames(3))
    reference = read_references((str(path),))
    assert reference is not None
    assert list(reference.steps) == [0, 1, 2]
    assert read_references(()) is None
    with pytest.raises(click.ClickException, match="no run named"):
        read_references((str(tmp_path / "nothing"),))
