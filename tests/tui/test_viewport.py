"""The viewport: the cursor stays on its step and inside the visible range, whatever changes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api import Step
from rltop.tui.model.step_columns import X_AXES, StepColumns
from rltop.tui.model.viewport import Viewport
from tests.support import pictures

ACTS = ("closer", "wider", "window", "axis", "back", "on", "back ten", "on ten", "first", "last", "go")


def history(numbers: list[int]) -> StepColumns:
    found = StepColumns()
    found.update(
        {n: msgspec.structs.replace(pictures.step(n % 50), step=n, closed=4.0 * n, policy_version=n) for n in numbers}
    )
    return found


def act(now: Viewport, run: StepColumns, what: str) -> Viewport:
    if what in ("closer", "wider"):
        return now.zoomed(run, closer=what == "closer")
    if what == "window":
        return now.next_window()
    if what == "axis":
        return now.next_axis(run)
    if what == "go":
        return now.moved_to(run, run.steps[len(run.steps) // 3].step)
    far = {"back": -1, "on": 1, "back ten": -10, "on ten": 10, "first": -len(run.steps), "last": len(run.steps)}
    return now.moved(run, far[what])


runs = st.lists(st.integers(0, 2_000), min_size=1, max_size=60, unique=True).map(sorted).map(history)


@given(runs, st.lists(st.sampled_from(ACTS), max_size=30))
def test_the_cursor_is_always_visible(run: StepColumns, acts: list[str]) -> None:
    now = Viewport()
    for what in acts:
        before, now = now, act(now, run, what)
        if what in ("closer", "wider", "window", "axis"):
            assert now.cursor == before.cursor
        low, high = now.visible_range(run)
        assert low < high
        at = now.cursor_x(run)
        assert at is None or low <= at <= high
        assert (now.cursor is None) == (at is None)
        assert now.cursor is None or now.cursor in {step.step for step in run.steps[:-1]}
        if now.window is not None and at is None:
            x = run.x(now.axis)
            assert low <= x[-1] <= high


@given(runs, st.integers(0, 2_500))
def test_the_cursor_goes_to_any_step(run: StepColumns, step: int) -> None:
    cursor = Viewport().moved_to(run, step).cursor
    found = run.steps[-1].step if cursor is None else cursor
    assert found == max((s.step for s in run.steps if s.step <= step), default=run.steps[0].step)


def test_most_moves_of_the_cursor_turn_no_page() -> None:
    run = history(list(range(1_000)))
    now, pages = Viewport(window=100.0), set()
    for _ in range(1_000):
        now = now.moved(run, -1)
        pages.add(now.visible_range(run))
    assert len(pages) <= 2 * 1_000 / 100 + 1


def test_zooming_uses_round_lengths_and_ends_with_the_whole_run() -> None:
    run = history(list(range(201)))
    now, seen = Viewport(cursor=50), []
    for _ in range(6):
        now = now.zoomed(run, closer=True)
        seen.append(now.window)
    assert seen == [100.0, 50.0, 20.0, 10.0, 5.0, 5.0]
    while now.window is not None:
        seen.append(now.window)
        now = now.zoomed(run, closer=False)
    assert seen[6:] == [5.0, 10.0, 20.0, 50.0, 100.0]


def test_another_axis_shows_about_as_much() -> None:
    run = history(list(range(600)))
    now = Viewport(window=150.0, cursor=300)
    for axis in (*X_AXES[1:], X_AXES[0]):
        now = now.next_axis(run)
        assert now.axis == axis
        low, high = now.visible_range(run)
        x = run.x(axis)
        assert 60 <= ((x >= low) & (x <= high)).sum() <= 300


def test_a_range_of_any_axis_converts_to_steps() -> None:
    run = history(list(range(601)))  # a step in 4 s
    assert Viewport(axis="minutes", window=2.0, cursor=300).in_steps(run) == Viewport(window=30.0, cursor=300)
    assert Viewport(axis="minutes").in_steps(run) == Viewport(axis="minutes")
    assert Viewport(window=30.0).in_steps(run) == Viewport(window=30.0)


def test_the_range_is_named_unless_it_is_the_whole_run() -> None:
    run = history(list(range(100)))
    assert Viewport().range_text(run) == ""
    assert Viewport(window=300.0).range_text(run) == ""
    assert Viewport(window=20.0, cursor=3).range_text(run) == "steps 0 to 20"
    assert Viewport(window=20.0).range_text(StepColumns()) == ""


def test_steps_without_a_version_have_no_position_on_that_axis() -> None:
    found = StepColumns()
    steps: dict[int, Step] = {
        n: msgspec.structs.replace(pictures.step(n), policy_version=None if n == 3 else n) for n in range(6)
    }
    found.update(steps)
    assert Viewport(axis="version", cursor=3).cursor_x(found) is None
    assert Viewport(axis="version", cursor=3, window=2.0).visible_range(found)[1] >= 5
