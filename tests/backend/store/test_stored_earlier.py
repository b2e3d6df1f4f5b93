"""A store and a recording of an earlier version are read, replayed, diagnosed and exported with the same figures.

``tests/data/stored`` is from ``rltop demo --steps 3 --engines 2 --temperature 0.7 --fault trainer-temperature --set
1:prefix_caching=off``, run by the version before the packages were rearranged: its store, its recording with token
ids, and ``figures.json``, which is everything that version read from the store.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rltop.backend import api
from rltop.backend.client.replay import Replay
from rltop.backend.exporters.tables import KINDS, export
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.store import Store
from rltop.backend.store.stored_diagnosis import diagnosis
from tests.support.hub_core import Hub

DATA = Path(__file__).parents[2] / "data" / "stored"
LAST_STEP = 2

CAUSE = ("id", "code", "layer", "confidence", "since_step", "engines")
FINDING = ("test", "outcome", "value", "low", "high", "p", "since_step", "engine", "tokens", "sequences")
"""Fields of a verdict that are not wording."""

CHANGED_CHECKS = {"versions", "cache_gap", "in_flight"}
"""Checks that have been computed from other data since, or by engine, beside those that were added."""

RENAMED_CHECKS = {
    "T1": "mean_ratio", "T2": "sign", "T3": "one_sided", "T4": "calibration", "T5": "nll_minus_entropy",
    "T6": "alignment", "T7": "position", "T8": "trend", "T9": "lag_slope", "T10": "engine_gap", "T11": "cache_gap",
    "T12": "tail", "T13": "logit_lattice", "T14": "batch_load",
}  # fmt: skip
"""Ids of checks that the earlier version called otherwise."""


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads(lzma.decompress((DATA / "figures.json.xz").read_bytes()))


@pytest.fixture(params=["store", "recording"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "store":
        (tmp_path / NAME).write_bytes(lzma.decompress((DATA / f"{NAME}.xz").read_bytes()))
        return tmp_path
    return Path(shutil.copy(DATA / "sort.rltop.gz", tmp_path))


@pytest.fixture
def replay(path: Path) -> Iterator[Replay]:
    with Reader(path) as reader:
        yield Replay(reader, speed=float("inf"))


def plain(value: object) -> Any:
    return json.loads(json.dumps(msgspec.to_builtins(value, str_keys=True)))


def without(value: Any, part: str, wording: str) -> Any:
    """The value, whose ``part`` is a list, without the field ``wording`` in its entries."""
    return value | {part: [{name: one[name] for name in one if name != wording} for one in value[part]]}


def equal(ours: object, theirs: object) -> bool:
    """Equality in which NaN equals itself."""
    return json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def has_all_of(ours: Any, theirs: Any) -> bool:
    """Equality, but for fields that were added since."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(name in ours and has_all_of(ours[name], value) for name, value in theirs.items())
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(has_all_of, ours, theirs))
    return equal(ours, theirs)


def answer(replay: Replay, question: api.Question) -> api.Answer:
    replay.ask(question)
    found = replay.answers[question.id]
    assert found.error is None
    return found


def test_the_exports_have_the_same_rows(path: Path, figures: Any, tmp_path: Path) -> None:
    with Reader(path) as reader:
        for kind in (one.name for one in KINDS):
            export(reader, kind, tmp_path / "rows.jsonl", overwrite=True)
            rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
            assert equal(rows, figures["exports"][kind]), kind


def test_the_snapshot_of_a_replay_has_the_same_fields(replay: Replay, figures: Any) -> None:
    while not replay.ended:
        replay.poll()
    shown = plain(replay.view)
    for name, value in figures["snapshot"].items():
        if name not in ("seq", "epoch"):
            assert has_all_of(shown[name], value), name


def test_the_diagnosis_names_the_same_cause_from_the_same_findings(path: Path, figures: Any) -> None:
    verdict, expected = plain(diagnosis(path)), figures["diagnosis"]
    assert verdict["verdict"] == expected["verdict"] == "fault"
    for part, fields in (("causes", CAUSE), ("findings", FINDING)):
        ours = [{name: one[name] for name in fields} for one in verdict[part]]
        theirs = [{name: one[name] for name in fields} for one in expected[part]]
        for one in theirs:
            if "test" in one:
                one["test"] = RENAMED_CHECKS.get(one["test"], one["test"])
        kept = {one.get("test") for one in theirs} - CHANGED_CHECKS
        assert [one for one in ours if one.get("test") in kept] == [one for one in theirs if one.get("test") in kept]
    assert expected["causes"][0]["id"] == "trainer-without-temperature"


def test_questions_about_the_replay_have_the_same_answers(replay: Replay, figures: Any) -> None:
    while not replay.ended:
        replay.poll()
    attribution = plain(answer(replay, api.AskAttribution("a", 3)).attribution)
    mismatch = plain(answer(replay, api.AskMismatch("m")).mismatch)
    effect = plain(answer(replay, api.AskEffect("e")).effect)
    assert equal(without(attribution, "lines", "why"), without(figures["attribution"], "lines", "why"))
    assert equal(mismatch, figures["mismatch"])
    assert equal(without(effect, "rows", "reason"), without(figures["effect"]["effect"], "rows", "reason"))
    samples = answer(replay, api.AskSamples("s")).samples
    assert samples is not None
    assert samples.step == LAST_STEP


def test_a_hub_continues_from_the_store(tmp_path: Path, figures: Any) -> None:
    (tmp_path / NAME).write_bytes(lzma.decompress((DATA / f"{NAME}.xz").read_bytes()))
    store = Store(tmp_path, "sort", "hub-2", figures["snapshot"]["time"] + 1.0)
    past, stored = store.past(), store.aggregates()
    hub = Hub("hub-2", past=past, stored=stored, now=figures["snapshot"]["time"] + 1.0)
    attribution, _ = hub.ask(api.AskAttribution("a", 3))
    diagnosed, _ = hub.ask(api.AskDiagnosis("d"))
    shown = plain(attribution.attribution)
    assert equal(without(shown, "lines", "why"), without(figures["attribution"], "lines", "why"))
    assert diagnosed.diagnosis is not None
    assert [cause.id for cause in diagnosed.diagnosis.causes] == [one["id"] for one in figures["diagnosis"]["causes"]]
    assert list(hub.picture.alarms) == list(figures["snapshot"]["alarms"])
