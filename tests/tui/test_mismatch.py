"""The Gap view: its queries, its tables, and the way from a number to the sequences behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from rltop.backend.api import Answer, AskMismatch, AskPast, AskSamples, Question
from rltop.backend.api.profiles import Mismatch, Profile
from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.backend.gaps.mismatch import DIMENSIONS, EDGES
from rltop.tui.tokens.dedupe import distinct_sequences, distinct_tokens
from rltop.tui.views.gap_table import FLEET, Means, gap_rows, merged, profile_means, with_error
from rltop.tui.widgets.bars import Bar, BarChart, draw
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, settle

ENGINES = ("e0", "e1", "")


def means(rng: np.random.Generator, n: int, scale: float) -> tuple[int, float, float, float]:
    size = scale * (0.8 + 0.4 * float(rng.random()))
    return (n, -size / 9, size, size * size / 2) if n else (0, 0.0, 0.0, 0.0)


def spread(row: tuple[int, float, float, float], sequences: int) -> tuple[float, float, float, float] | None:
    """Of sequences as long as each other, whose means are a third of the mean from it."""
    n, _, size, _ = row
    each = n / sequences
    return (sequences, each * n, 10 / 9 * (each * size) ** 2 * sequences, each * size * n) if n else None


def mismatch(first: int = 0, last: int = 39) -> Mismatch:
    """Of a run whose engine e1 is off: by more with the lag, at rare tokens, and where the prefix was cached."""
    rng = np.random.default_rng(7)
    profiles = []
    for dimension in DIMENSIONS:
        engines = {}
        for engine, scale in zip(ENGINES, (0.01, 0.08, 0.02), strict=True):
            rows = []
            for at in range(len(dimension.strata)):
                n = {"lag": 900 * (1 <= at <= 6), "prefix": 2500 * (at < 2)}.get(dimension.name, 600 * (at < 10))
                n = 0 if engine == "" and dimension.name != "lag" else n // 9 if engine == "" else n
                rows.append(means(rng, n, scale * (1 + at if dimension.name == "lag" else 3 / (1 + at))))
            engines[engine] = rows
        spreads = {
            engine: [spread(row, 20 + 30 * at) for at, row in enumerate(rows)] for engine, rows in engines.items()
        }
        profiles.append(Profile(dimension.name, list(dimension.strata), engines, spreads))
    middle = len(EDGES) - 1
    bins = {
        engine: [int(40_000 * math.exp(-(abs(at - middle) ** 2) / wide)) for at in range(2 * middle + 1)]
        for engine, wide in zip(ENGINES, (20, 50, 5), strict=True)
    }
    return Mismatch(first, last, last - first + 1, sum(map(sum, bins.values())), 3, list(EDGES), bins, profiles)


def i4(values: list[int]) -> bytes:
    return np.array(values, "<i4").tobytes()


def f4(values: list[float]) -> bytes:
    return np.array(values, "<f4").tobytes()


def token(number: int, engine: str, step: int) -> Token:
    rng = np.random.default_rng(number)
    rollout = -float(rng.exponential(2))
    d = (-1) ** number * 2.5 / (1 + number)
    ids = [int(value) for value in rng.integers(4, 120, 33)]
    return Token(
        step, 0, number, 3 + number, 18, ids[24], rollout, math.nan if number == 0 else rollout + d, engine,
        f"r{number}", 38, 1, 47, 32 * (number % 2), 0.5, i4(ids[:24]), i4(ids[25:]),
    )  # fmt: skip


def sequence(number: int, engine: str, step: int) -> Sequence:
    rng = np.random.default_rng(100 + number)
    size = 18
    ids = [int(value) for value in rng.integers(4, 40, size + 2)]
    rollout = -rng.exponential(1, size)
    trainer = rollout + rng.normal(0, 0.4, size)
    gap = np.abs(trainer - rollout)
    return Sequence(
        step, 0, number, size, 0, float(gap.mean()), float((gap**2).mean() / 2), 0.75, [engine], [f"r{number}"],
        ["whole"], "stop", 47, 32, i4([3, *range(64, 80), 2]), i4(ids), bytes([1] * 6 + [0] * 2 + [1] * 12),
        f4(rollout.tolist()), f4(trainer.tolist()), i4([38] * size), i4([1] * size),
    )  # fmt: skip


@dataclass
class AnsweringClient(HeldClient):
    """A hub that answers at once, or keeps silent."""

    silent: bool = False
    errors: bool = False
    seen: list[Question] = field(default_factory=list)

    def ask(self, question: Question) -> None:
        if isinstance(question, AskPast):  # the overview's
            return
        self.seen.append(question)
        if not self.silent:
            self.answers[question.id] = self.answer(question)

    def answer(self, question: Question) -> Answer:
        if self.errors:
            return Answer(question.id, error="nothing is kept of step 39")
        if isinstance(question, AskMismatch):
            assert question.last is not None
            return Answer(question.id, mismatch=mismatch(question.first or 0, question.last))
        assert isinstance(question, AskSamples)
        assert question.step is not None
        engines = [question.engine] if question.engine else ["e0", "e1"]
        names = [engines[n % len(engines)] for n in range(16)]
        tokens = question.kind in ("abs_diff", "k3")
        return Answer(
            question.id,
            samples=Samples(
                question.step, question.kind, 64, 1400,
                [] if tokens else [sequence(n, name, question.step) for n, name in enumerate(names)],
                [token(n, name, question.step) for n, name in enumerate(names)] if tokens else [],
                [question.step],
            ),
        )  # fmt: skip

    @property
    def ranges(self) -> list[tuple[int | None, int | None]]:
        return [(q.first, q.last) for q in self.seen if isinstance(q, AskMismatch)]

    @property
    def lists(self) -> list[tuple[int | None, str, str | None]]:
        return [(q.step, q.kind, q.engine) for q in self.seen if isinstance(q, AskSamples)]


SMALL, LARGE = (80, 24), (160, 48)


@pytest.mark.parametrize(
    ("name", "size", "keys"),
    [
        ("mismatch-80", SMALL, ("2",)),
        ("mismatch-160", LARGE, ("2", "w")),
        ("mismatch-50", (50, 20), ("2",)),
        ("mismatch-engine-80", SMALL, ("2", "j", "j", "enter")),
        ("mismatch-sequences-80", SMALL, ("2", "v", "v")),
        ("mismatch-token-80", SMALL, ("2", "v", "j", "enter")),
        ("mismatch-sequence-120", (120, 36), ("2", "v", "v", "v", "enter")),
        ("mismatch-reading-80", SMALL, ("{", "2")),
        ("mismatch-number-80", SMALL, ("2", "j", "i")),
        ("mismatch-number-160", LARGE, ("2", "i")),
    ],
)
async def test_screen(name: str, size: tuple[int, int], keys: tuple[str, ...]) -> None:
    async with dashboard(AnsweringClient(pictures.healthy()), size) as (app, pilot):
        for key in keys:
            await pilot.press(key)
            await settle(app, pilot)
        assert_as_saved(app, name)


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("mismatch-waiting-80", AnsweringClient(pictures.healthy(), silent=True)),
        ("mismatch-nothing-80", AnsweringClient(pictures.healthy(), errors=True)),
        ("mismatch-no-steps-80", AnsweringClient(pictures.no_steps())),
    ],
)
async def test_without_an_answer(name: str, client: AnsweringClient) -> None:
    async with dashboard(client, SMALL) as (app, pilot):
        await pilot.press("2")
        await settle(app, pilot)
        assert_as_saved(app, name)


async def test_the_hub_is_queried_only_when_the_selection_changes() -> None:
    client = AnsweringClient(pictures.healthy())
    async with dashboard(client, SMALL) as (app, pilot):
        await settle(app, pilot)
        assert not client.seen  # not looked at: nothing is asked
        await pilot.press("2")
        for _ in range(5):
            client.changed = True
            await settle(app, pilot)
        assert (client.ranges, client.lists) == ([(None, 39)], [(39, "abs_diff", None)])
        await pilot.press("w", "w", "w")
        await settle(app, pilot)
        assert client.ranges[-1] == (10, 39)
        await pilot.press("[")
        await settle(app, pilot)
        assert (client.ranges[-1], client.lists[-1][0]) == ((38, 38), 38)
        await pilot.press("end", "v")
        await settle(app, pilot)
        assert client.lists[-1] == (39, "k3", None)
        client.show(pictures.healthy(41))
        await settle(app, pilot)
        assert (client.ranges[-1], client.lists[-1]) == ((11, 40), (40, "k3", None))


async def test_enter_selects_an_engine_and_all_again() -> None:
    client = AnsweringClient(pictures.healthy())
    async with dashboard(client, SMALL) as (app, pilot):
        await pilot.press("2")
        await settle(app, pilot)
        for key, engine in (("j", "e0"), ("j", "e1"), ("j", ""), ("k", "e1"), ("", None)):
            await pilot.press(*([key] if key else []), "enter")
            await settle(app, pilot)
            assert client.lists[-1] == (39, "abs_diff", engine)


def test_parts_of_a_profile_add_up_to_the_fleet() -> None:
    answer = mismatch()
    for dimension in ("lag", "position", "probability", "prefix"):
        labels, rows = profile_means(answer, dimension, None)
        assert len(labels) == len(rows)
        engines = [profile_means(answer, dimension, engine)[1] for engine in ENGINES]
        for at, whole in enumerate(rows):
            each = [rows_[at] for rows_ in engines]
            assert whole.tokens == sum(row.tokens for row in each)
            assert whole.size * whole.tokens == pytest.approx(sum(row.tokens * row.size for row in each))
    fleet, *rest = gap_rows(answer)
    assert (fleet.place, [place.place for place in rest]) == (FLEET, ["e0", "e1", "?"])
    assert fleet.tokens == sum(place.tokens for place in rest)
    assert fleet.size("3") is not None
    assert merged([]) == Means()


def test_a_merged_interval_is_that_of_all_sequences() -> None:
    rng = np.random.default_rng(0)
    n, s = rng.integers(1, 40, 60).astype(float), rng.exponential(1, 60)
    parts = [slice(0, 25), slice(25, 60)]
    each = [
        Means(int(n[at].sum()), 0, s[at].sum() / n[at].sum(), 0,
              (n[at].size, (n[at] ** 2).sum(), (s[at] ** 2).sum(), (n[at] * s[at]).sum()))
        for at in parts
    ]  # fmt: skip
    whole = merged([*each, Means()])
    mean = s.sum() / n.sum()
    error = math.sqrt(((s - mean * n) ** 2).sum() * 60 / 59) / n.sum()
    assert whole.size == pytest.approx(mean)
    assert whole.high == pytest.approx(mean + 2.0010 * error, rel=1e-4)  # Student's t for 59
    assert with_error(whole) == f"{mean:.3f}±{100 * 2.001 * error / mean:.0f}"


def test_there_is_no_interval_if_a_part_has_none_or_for_one_sequence() -> None:
    some = Means(100, 0.0, 0.02, 0.0, (5.0, 2000.0, 0.8, 40.0))
    assert some.high is not None
    assert merged([some, Means(10, 0.0, 0.02)]).high is None
    assert with_error(Means(10, 0.0, 0.02)) == "0.0200"
    assert with_error(Means(10, 0.0, 0.02, 0.0, (1.0, 100.0, 0.04, 2.0))) == "0.0200"
    assert with_error(Means()) == "-"
    assert with_error(Means(100, 0.0, 0.02, 0.0, (2.0, 5000.0, 4.0, 100.0))) == "0.02±>99"
    for power in range(-9, 3):
        shown = with_error(
            Means(100, 0.0, 9.949 * 10.0**power, 0.0, (9.0, 2000.0, 4e4 * 100.0**power, 2e4 * 10.0**power))
        )
        assert "±" in shown and len(shown) <= 9


def test_equal_samples_are_one_line_with_their_count() -> None:
    one, other = token(0, "e0", 3), token(1, "e0", 3)
    again = [msgspec.structs.replace(one, number=number, request=f"r{number}", position=5) for number in (7, 8)]
    elsewhere = msgspec.structs.replace(one, engine="e1", number=2)
    shown, times = distinct_tokens([one, other, *again, elsewhere])
    assert [(t.number, t.engine) for t in shown] == [(0, "e0"), (1, "e0"), (2, "e1")]
    assert list(times.values()) == [3, 1, 1]
    whole = sequence(2, "e0", 3)
    (first,), counts = distinct_sequences([whole, msgspec.structs.replace(whole, number=9)])
    assert (first.number, counts) == (2, {"3/0/2": 2})


def test_bars_stand_on_the_axis_and_missing_values_are_blank() -> None:
    chart = BarChart((), tuple(Bar(share, label) for share, label in ((None, "a"), (0.0, "b"), (0.5, ""), (1.0, "d"))))
    lines = ["".join(segment.text for segment in strip) for strip in draw(chart, 8, 4)]
    assert lines == ["        ", "      ██", "  ▁▁████", "a─b───d─"]
    assert len(draw(chart, 2, 1)) == 1


def test_an_interval_is_a_line_above_its_bar_clipped_to_the_chart() -> None:
    bars = (Bar(0.25, high=0.75), Bar(0.5, high=0.5), Bar(None, high=1.0), Bar(0.5, high=9.0))
    lines = ["".join(segment.text for segment in strip) for strip in draw(BarChart((), bars), 12, 6)]
    assert lines[1:5] == ["          │ ", " │        │ ", " │ ███   ███", "██████   ███"]
