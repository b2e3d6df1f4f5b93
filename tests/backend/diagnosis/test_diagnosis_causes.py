"""The table of causes: every name in it is known, every entry is whole, and the page is made of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from rltop.backend.api.verdict import LAYERS
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.causes import BY_ID, CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives, holds
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE as PROBES
from rltop.collectors.contract import probes
from rltop.collectors.contract.flags import BY_NAME as FLAGS

ROOT = Path(__file__).parents[3]
KNOWLEDGE = {
    "A": 13, "B": 11, "C": 6, "D": 11, "E": 3, "F": 4, "G": 4, "H": 5, "I": 5,
}  # fmt: skip
"""How many causes of each family are known; J are dynamics, of which only what is a cause has an entry."""


def signs(known: CauseEntry) -> list[tuple[str, str]]:
    return [pair for sign in (*known.needs, *known.may, *known.against) for pair in alternatives(sign)]


def test_every_known_cause_has_an_entry() -> None:
    codes = {known.code for known in CAUSES}
    assert {f"{family}{number + 1}" for family, count in KNOWLEDGE.items() for number in range(count)} <= codes
    assert {"C2b", "J1", "J2"} <= codes


def test_ids_are_unique_slugs() -> None:
    assert [i for i, n in Counter(known.id for known in CAUSES).items() if n > 1] == []
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", known.id) for known in CAUSES)


@pytest.mark.parametrize("known", CAUSES, ids=lambda known: known.id)
def test_an_entry_names_what_there_is(known: CauseEntry) -> None:
    assert known.layer in LAYERS
    assert known.needs and known.what and known.remedy and known.source
    assert known.probe in PROBES
    assert set(known.confusable_with) <= set(BY_ID)
    for test, outcome in signs(known):
        word, _, detail = outcome.partition("=")
        assert word in TESTS[test].outcomes, f"{test} {outcome}"
        assert not detail or TESTS[test].detail, f"{test} has no detail"
    healthy = [(test, outcome) for test, outcome in signs(known) if outcome == TESTS[test].healthy]
    assert all(f"{test} {outcome}" in known.against for test, outcome in healthy)
    for condition in known.where:
        assert holds(condition, []) is None


@pytest.mark.parametrize("known", CAUSES, ids=lambda known: known.id)
def test_an_entry_does_not_rule_itself_out(known: CauseEntry) -> None:
    shown = {pair for sign in (*known.needs, *known.may) for pair in alternatives(sign)}
    against = {pair for sign in known.against for pair in alternatives(sign)}
    assert not shown & against


@pytest.mark.parametrize("known", [known for known in CAUSES if known.command], ids=lambda known: known.id)
def test_a_live_remedy_is_an_order_that_rltop_takes(known: CauseEntry) -> None:
    for head in ("on", "off"):
        words = known.command.format(engines=" --engine e1", head=head).split()
        assert words[:2] == ["rltop", "set"]
        assert words[3] in FLAGS[words[2]].values
        assert words[4:] == ["--engine", "e1"]


def test_causes_with_the_same_needs_say_that_they_can_be_confused() -> None:
    for known in CAUSES:
        for other in CAUSES:
            apart = (known.one_engine and other.all_engines) or (known.all_engines and other.one_engine)
            if other is not known and not apart and other.needs == known.needs and other.where == known.where:
                assert other.id in confusable(known), f"{known.id} and {other.id}"


@pytest.mark.parametrize(
    ("condition", "facts", "answer"),
    [
        ("speculative not none", [{"speculative": "none"}], False),
        ("speculative not none", [{"speculative": "none"}, {"speculative": "ngram"}], True),
        ("speculative not none", [{}], None),
        ("async_scheduling is on", [{"async_scheduling": "on"}], True),
        ("quantization has fp8|int4", [{"quantization": "FP8_block"}], True),
        ("quantization has fp8|int4", [{"quantization": "none"}], False),
    ],
)  # fmt: skip
def test_a_condition_holds_of_a_run_or_nobody_says(condition: str, facts: list[dict[str, str]], answer: bool) -> None:
    assert holds(condition, facts) is answer


def test_probes_that_rltop_runs_are_those_of_its_table_of_probes() -> None:
    ours = {probe.name: (probe.code, probe.does) for probe in PROBES.values() if probe.runs}
    assert {name: code for name, (code, _) in ours.items()} == {probe.name: probe.code for probe in probes.PROBES}
    assert all(probe.runs == f"rltop probe {probe.name}" for probe in PROBES.values() if probe.runs)
