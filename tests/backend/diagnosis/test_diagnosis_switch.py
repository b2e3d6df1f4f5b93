"""A verdict around a switch: what the tokens of before leave in the sums accuses nobody, a new fault is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rltop.backend import api
from rltop.backend.api.verdict import FAULT, HEALTHY, Finding, Verdict
from rltop.backend.diagnosis import diagnose as diagnosed
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, UNKNOWN
from rltop.backend.diagnosis.checks.run_all import run_all
from rltop.backend.diagnosis.conclude import conclude
from rltop.backend.diagnosis.diagnose import context_of, diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from tests.support import pictures
from tests.support.simulated import Fault, Policy

STEPS = 24
STALE = Policy(seed=1, fault=Fault(noise=0.15, misses=True, at=2, until=12))
CUT = Policy(seed=3, fault=Fault(top_p=0.9, until=8))
RAW = Policy(seed=1, heat=0.7, fault=Fault(record_heat=1.0, until=12))


def switched(case: DiagnosisInput, step: int) -> DiagnosisInput:
    """The case, if a flag was switched when ``step`` had closed."""
    change = api.Change(
        "c1", "e0", "prefix_caching", "off", "applied", 0.0, step=step, old="on", new="off", flag_epoch=1
    )  # fmt: skip
    return replace(case, changes=[change]) if case.steps[-1].step >= step else case


def alarm(sign: str) -> Finding:
    test, outcome = sign.split()
    return Finding(test, outcome, p=1e-10, since_step=2)


def calm(test: str) -> Finding:
    return Finding(test, BY_NAME[test].healthy)


def told(policy: Policy, step: int | None) -> list[list[str]]:
    """The best cause after each step, none of a healthy run; with a switch after ``step``."""
    cases = [case if step is None else switched(case, step) for case in policy.cases(STEPS)]
    verdicts = [diagnose(case) for case in cases]
    return [[cause.code for cause in verdict.causes[:1]] for verdict in verdicts]


@pytest.mark.parametrize(
    ("policy", "own", "left"),
    [(STALE, "C1", "C6"), (CUT, "A4", "A5"), (RAW, "A1", "A5")],
    ids=["stale-prefix", "top-p", "raw"],
)
def test_a_fault_fixed_by_a_switch_leaves_no_other_cause(policy: Policy, own: str, left: str) -> None:
    assert policy.fault.until is not None
    after = slice(policy.fault.until, None)
    assert [left] in told(policy, None)[after]  # what the sums over both look like
    assert {*map(tuple, told(policy, policy.fault.until - 1)[after])} == {(own,), ()}


def test_a_fixed_fault_has_no_alternative_that_appeared_after_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = [
        alarm("floor above"),
        alarm("fit partial"),
        alarm("trend jump"),
        *map(calm, ("mean_ratio", "engine_gap", "repeat", "slope", "in_flight")),
    ]
    told_apart, mixed = [*gap, calm("cache_gap")], [*gap, Finding("cache_gap", UNKNOWN)]

    def found(case: DiagnosisInput) -> list[Finding]:
        if not case.evidence or case.evidence[0].first > 0:
            return [calm("floor"), calm("trend")]
        return told_apart if case.steps[-1].step <= 5 else mixed

    *_, case = RAW.cases(9)
    case = replace(switched(case, 5), engines={"e0": pictures.engine("e0", flags=pictures.flags(caching="on"))})
    assert [cause.code for cause in conclude(context_of(case), mixed).causes] == ["B3", "C1"]
    monkeypatch.setattr(diagnosed, "run_all", found)
    (cause,) = diagnose(case).causes
    assert (cause.code, "stale-prefix-cache" in cause.confusable_with) == ("B3", False)


def test_a_run_as_of_a_step_has_the_flags_of_that_step() -> None:
    *_, case = RAW.cases(8)
    engine = pictures.engine("e0", flags=pictures.flags(caching="off"))
    case = replace(switched(case, 5), engines={"e0": engine})
    assert [case.up_to(step).engines["e0"].flags["prefix_caching"].value for step in (4, 5, 6)] == ["on", "on", "off"]
    assert [len(case.up_to(step).changes) for step in (4, 5, 6)] == [0, 0, 1]
    assert case.up_to(6).engines["e0"] is engine


def test_the_verdict_at_a_switch_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, case = RAW.cases(7)
    asked: list[int] = []

    def counted(case: DiagnosisInput) -> list[Finding]:
        asked.append(case.steps[-1].step)
        return run_all(case)

    monkeypatch.setattr(diagnosed, "run_all", counted)
    known: dict[float, Verdict] = {}
    first = diagnose(switched(case, 5), known)
    assert (5 in asked, len(known)) == (True, 1)
    asked.clear()
    assert diagnose(switched(case, 5), known) == first
    assert 5 not in asked


def test_a_fault_caused_by_a_switch_is_reported() -> None:
    policy = Policy(seed=1, heat=0.7, fault=Fault(record_heat=1.0, at=8))
    found = told(policy, 7)
    assert found[:8] == [[]] * 8
    assert found[10:] == [["A1"]] * (STEPS - 10)


def test_a_fault_that_a_switch_did_not_fix_is_still_reported() -> None:
    policy = Policy(seed=1, heat=0.7, fault=Fault(record_heat=1.0))
    verdicts = [diagnose(switched(case, 9)) for case in policy.cases(STEPS)]
    assert {verdict.verdict for verdict in verdicts[2:]} == {FAULT}
    assert {verdict.causes[0].code for verdict in verdicts[2:]} == {"A1"}


def test_tokens_that_were_sampled_before_a_switch_are_left_out_by_their_lag() -> None:
    *_, case = Policy(lag=0).cases(12)
    lagging = replace(case, steps=[replace_lag(step, 2.0) for step in case.steps])
    assert [stretch.first for stretch in case.sampled_after(5).evidence] == [6, 7, 8, 9, 10, 11]
    assert [stretch.first for stretch in lagging.sampled_after(5).evidence] == [8, 9, 10, 11]
    assert diagnose(case).verdict == HEALTHY


def replace_lag(step: api.Step, lag: float) -> api.Step:
    return api.Step(step.step, step.closed, step.policy_version, step.partial, {"lag_max": lag})
