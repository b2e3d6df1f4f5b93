"""What engines state of their requests counts against causes: a parameter without effect explains nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.causes import BY_ID, CAUSES
from rltop.backend.diagnosis.conclude import RunContext, conclude
from rltop.backend.fleet.facts import NEUTRAL, is_neutral
from tests.backend.diagnosis.test_diagnosis_infer import FINDINGS, alarm

SHAPED = [entry for entry in CAUSES if entry.shaped_by]
SURELY = [entry.id for entry in SHAPED if set(entry.shaped_by) <= NEUTRAL.keys()]
"""Causes of which every parameter is stated."""

SIGNS = {
    "trainer-without-temperature": ["slope sharper", "floor above"],
    "logprob-over-temperature": ["one_sided positive"],
    "truncation-in-record": ["one_sided negative", "mean_ratio below"],
    "shaped-in-silence": ["nll_minus_entropy below"],
}
"""Findings that name the cause where its parameters may have an effect."""


def named(engines: list[dict[str, str]], findings: list[Finding]) -> dict[str, float]:
    run = RunContext("run", 9, {f"e{number}": facts for number, facts in enumerate(engines)}, {})
    return {cause.id: cause.confidence for cause in conclude(run, findings).causes}


def test_every_cause_in_the_shape_of_sampling_is_bound_to_its_parameters() -> None:
    assert SIGNS.keys() == set(SURELY)
    assert {entry.id for entry in SHAPED} - set(SURELY) == {"raw-logprobs", "penalties"}


@given(FINDINGS)
def test_neutral_parameters_on_all_engines_rule_out_whatever_they_would_explain(found: list[Finding]) -> None:
    assert not named([NEUTRAL, NEUTRAL], found).keys() & set(SURELY)


@pytest.mark.parametrize("cause", SIGNS)
@pytest.mark.parametrize("engines", [[{}], [NEUTRAL, {}], []], ids=["nothing stated", "one silent", "no engine"])
def test_what_is_not_stated_rules_nothing_out(cause: str, engines: list[dict[str, str]]) -> None:
    assert cause in named(engines, [alarm(sign) for sign in SIGNS[cause]])


@given(st.sampled_from(sorted(SIGNS)), st.data())
def test_one_parameter_with_an_effect_on_one_engine_leaves_the_cause(cause: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(BY_ID[cause].shaped_by))
    assert cause in named([NEUTRAL, NEUTRAL | {name: "0.5"}], [alarm(sign) for sign in SIGNS[cause]])


def test_logit_edits_that_no_side_states_are_improbable_beside_neutral_penalties() -> None:
    found = [alarm("repetition favoured"), alarm("floor above")]
    stated, silent = named([NEUTRAL], found), named([{}], found)
    assert stated.get("penalties", 0.0) < silent["penalties"]


@pytest.mark.parametrize(
    ("sides", "trainer", "neutral"),
    [
        ([{"top_k": "-1"}, {"top_k": "0"}], {}, True),
        ([{"top_k": "0"}, {"top_k": "50"}], {}, False),
        ([{"top_k": "0, 50"}], {}, False),
        ([{"top_k": "0"}], {"top_k": "50"}, False),
        ([{"top_k": "0"}, {}], {}, None),
        ([], {}, None),
    ],
)
def test_a_parameter_is_neutral_only_if_every_engine_states_it(
    sides: list[dict[str, str]], trainer: dict[str, str], neutral: bool | None
) -> None:
    assert is_neutral("top_k", sides, trainer) is neutral
