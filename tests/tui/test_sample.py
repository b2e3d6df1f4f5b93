"""The sample replay as a new user sees it: healthy, then the fault, then finished."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rltop.backend.api import is_over
from rltop.backend.client.replay import LEAD_STEPS, SAMPLE, Replay, before_first_alarm
from rltop.backend.store.read import Reader
from rltop.tui.app import RltopApp
from tests.support.pictures import HeldClient, picture
from tests.support.screens import dashboard, screen_text, settle

pytestmark = pytest.mark.usefixtures("utc")


class Clock:
    """Seconds, moved by the test."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replay(clock: Clock) -> Iterator[Replay]:
    reader = Reader(SAMPLE)
    with Replay(reader, from_step=before_first_alarm(reader), clock=clock) as replay:
        yield replay


def test_the_sample_starts_some_steps_before_its_first_alarm(replay: Replay) -> None:
    with Reader(SAMPLE) as reader:
        first = next(iter(reader.snapshot().alarms.values()))
    assert first.since_step is not None
    assert max(replay.view.steps) + 1 == first.since_step - LEAD_STEPS
    assert replay.view.alarm is None and not is_over(replay.view)


async def test_the_sample_is_healthy_then_alarmed_then_finished(replay: Replay, clock: Clock) -> None:
    app = RltopApp(replay, "sort", notice=lambda: replay.progress)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(app, pilot)
        seen: list[str] = []
        for _ in range(60):
            clock.now += 1.0
            await settle(app, pilot)
            word = screen_text(app).splitlines()[1].lstrip("⟦ ").split()[0]
            seen += [word] if seen[-1:] != [word] else []
        text = screen_text(app)
    order = [seen.index(sign) for sign in ("✔", "✖", "■")]
    assert order == sorted(order)
    assert seen[0] == "✔" and seen[-1] == "■"
    assert "finished after step 59" in text and "59 of 59, ended" in text
    for wrong in ("✖", "hub lost", "exited", "the run continues"):
        assert wrong not in text, text


async def test_a_starting_demo_shows_its_progress_in_the_middle() -> None:
    client = HeldClient(picture())
    async with dashboard(client, (80, 24)) as (app, pilot):
        for line in ("e0: loads its weights", "e0 is up after 12 s"):
            app._notice = lambda line=line: line  # type: ignore[misc]
            await settle(app, pilot)
            assert [y for y, shown in enumerate(screen_text(app).splitlines()) if shown.strip() == line and 4 < y < 18]
