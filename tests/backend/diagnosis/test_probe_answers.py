"""Answers of probes are evidence: they rule causes out or confirm them, for as long as they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeEvidence, ProbeResult
from rltop.backend.api.refit import RefitCheck
from rltop.backend.api.verdict import Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, CHECKS, UNKNOWN
from rltop.backend.diagnosis.causes import CAUSES
from rltop.backend.diagnosis.checks import probe_answers
from rltop.backend.diagnosis.checks.probe_answers import OF_TRAINER, OF_UPDATES, RECENT_STEPS
from rltop.backend.diagnosis.conclude import RunContext, conclude
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from tests.support.cases import DATA, load

ENGINES = ("e0", "e1")
HEAD, STALE = "head-not-updated-gspo-2e-s109", "stale-prefix-grpo-2e-s110"
REPLICA, SOUND = "lying-replica-grpo-2e-s107", "healthy-grpo-2e-s100"
WEIGHTS = {"never-updated", "partial-update", "lying-replica", "bad-export", "cached-reload", "tied-embeddings"}
"""Causes that equal weights of engines and trainer rule out."""


def answer(probe: str, verdict: str, step: int, odd: Sequence[str] = (), **numbers: float) -> api.Event:
    names = {"trainer": OF_TRAINER, "updates": OF_UPDATES}
    evidence = [ProbeEvidence(names[name], value, engine=e) for name, value in numbers.items() for e in ENGINES]
    result = ProbeResult(f"c{step}", probe, "P", list(ENGINES), verdict, "text", list(odd), evidence, 1e9, step, step)
    return api.Event(step, 1e9, "info", "probe", "text", step, None, result)


def agrees(step: int) -> api.Event:
    return answer("weight-digest", "agree", step, trainer=0.0, updates=12.0)


@cache
def last(run: str) -> DiagnosisInput:
    """A recorded run as of its last step."""
    *_, case = load(DATA / f"{run}.xz")
    return case


def with_answer(fault: str, event: api.Event) -> Verdict:
    run = last(fault)
    return diagnose(replace(run, events=[*run.events, event]))


def ids(verdict: Verdict) -> set[str]:
    return {cause.id for cause in verdict.causes}


def newest(fault: str) -> int:
    return last(fault).steps[-1].step


@pytest.mark.parametrize("fault", [HEAD, STALE, REPLICA])
def test_digests_that_agree_with_the_trainers_rule_out_causes_in_the_weights(fault: str) -> None:
    verdict = with_answer(fault, agrees(newest(fault)))
    assert verdict.verdict != "healthy"
    assert not ids(verdict) & WEIGHTS


def test_a_fresh_cache_rules_out_the_stale_one_and_a_stale_one_confirms_it() -> None:
    step = newest(STALE)
    before = {cause.id: cause.confidence for cause in diagnose(last(STALE)).causes}
    assert "stale-prefix-cache" not in ids(with_answer(STALE, answer("cache-salt", "fresh", step)))
    confirmed = with_answer(STALE, answer("cache-salt", "stale", step, ["e0", "e1"]))
    assert confirmed.causes[0].id == "stale-prefix-cache"
    assert confirmed.causes[0].confidence >= before["stale-prefix-cache"]
    assert any("cache-salt" in sentence for sentence in confirmed.causes[0].evidence)


def test_a_rescore_that_matches_rules_out_stale_prefixes() -> None:
    step = newest(STALE)
    assert "stale-prefix-cache" not in ids(with_answer(STALE, answer("prefill-rescore", "match", step)))


def test_a_digest_that_names_one_engine_makes_it_the_replica_that_lies() -> None:
    step = newest(REPLICA)
    found = with_answer(REPLICA, answer("weight-digest", "differ", step, ["e1"]))
    assert (found.causes[0].id, found.causes[0].engines) == ("lying-replica", ["e1"])


# --- how long an answer holds ---------------------------------------------------------------------------------------


def steps(count: int, lag: int) -> list[api.Step]:
    template = last(SOUND).steps[-1]
    values = {**template.values, "lag_max": float(lag)}
    return [msgspec.structs.replace(template, step=number, values=values) for number in range(count)]


def outcomes(check: str, run: DiagnosisInput) -> list[tuple[str, str | None]]:
    found = getattr(probe_answers, check)(EvidenceByEngine(run))
    return [(finding.outcome, finding.engine) for finding in found]


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 4))
def test_an_answer_counts_while_tokens_of_its_versions_are_trained_on(at: int, count: int, lag: int) -> None:
    run = DiagnosisInput("run", steps(count, lag), events=[agrees(at)])
    holds = count - 1 <= at + lag + RECENT_STEPS
    assert outcomes("weight_digest", run) == [("agree" if holds else UNKNOWN, None)]


def change(**fields: Any) -> api.Change:
    base = {"command": "x", "engine": "e0", "flag": "", "wanted": "", "state": "applied", "requested": 2e9}
    return msgspec.convert(base | fields, api.Change)


@pytest.mark.parametrize("fields", [{"verb": "flush_cache"}, {"verb": "set", "flag": "prefix_caching"}])
def test_an_answer_about_the_cache_expires_with_a_flush_or_a_switch(fields: dict[str, Any]) -> None:
    run = DiagnosisInput("run", steps(3, 0), events=[answer("cache-salt", "stale", 2)])
    assert outcomes("cache_salt", run) == [("stale", None)]
    assert outcomes("cache_salt", replace(run, changes=[change(**fields)])) == [(UNKNOWN, None)]
    assert outcomes("cache_salt", replace(run, changes=[change(**fields, engine="e7")])) == [("stale", None)]


def test_a_later_answer_about_the_same_engines_replaces_an_earlier_one() -> None:
    events = [answer("weight-digest", "not_applied", 0, ["e1"]), agrees(1), answer("weight-digest", "overtaken", 2)]
    run = DiagnosisInput("run", steps(3, 0), events=events)
    assert outcomes("weight_digest", run) == [("agree", None)]


@pytest.mark.parametrize(
    ("numbers", "outcome"),
    [({"trainer": 0.0}, "agree"), ({"trainer": 2.0, "updates": 9.0}, "updated"), ({"updates": 9.0}, "updated"),
     ({}, "alike")],
)  # fmt: skip
def test_digests_that_agree_say_what_they_were_compared_with(numbers: dict[str, float], outcome: str) -> None:
    run = DiagnosisInput("run", steps(3, 0), events=[answer("weight-digest", "agree", 2, (), **numbers)])
    assert outcomes("weight_digest", run) == [(outcome, None)]


def test_every_answer_of_a_probe_is_an_outcome_of_its_check() -> None:
    from rltop.collectors.contract.probes import BY_NAME as BY_PROBE

    for check, probe in probe_answers.PROBES.items():
        assert {one.word for one in BY_PROBE[probe].answers} - {"not_cached"} <= set(BY_NAME[check].outcomes)


# --- probes that a cause names --------------------------------------------------------------------------------------


def alarming(symptom: str) -> list[Finding]:
    found = []
    for part in symptom.split("&"):
        test, outcome = part.split()
        found.append(Finding(test, outcome, p=1e-12, since_step=3, text=part))
    calm = {check.name for check in CHECKS if not check.on_request} - {one.test for one in found}
    return [*found, *(Finding(name, BY_NAME[name].healthy) for name in calm if name != "logit_lattice")]


@pytest.mark.parametrize(
    "facts",
    [{"lora": "on"}, {"speculative": "eagle"}, {"kv_connector": "LMCache"}, {"prefix_caching": "off"}],
    ids=lambda facts: next(iter(facts)),
)
def test_a_cause_names_no_probe_that_no_engine_of_the_fleet_can_run(facts: dict[str, str]) -> None:
    findings = alarming("floor above&cache_gap hit_worse")
    able = {"prefix_caching": "on", "kv_connector": "none", "lora": "off", "speculative": "none"}
    named = [one.probe for one in conclude(RunContext("run", engines={"e0": able}), findings).causes]
    assert "cache-salt" in named
    verdict = conclude(RunContext("run", engines={"e0": able | facts, "e1": able | facts}), findings)
    assert "cache-salt" not in [one.probe for one in verdict.causes]
    assert not [need for need in verdict.needs if "cache-salt" in need and need.startswith("probe")]


def test_every_symptom_that_an_answer_can_be_is_used_by_a_cause() -> None:
    used = " ".join(" ".join((*entry.needs, *entry.may, *entry.against)) for entry in CAUSES)
    for check in CHECKS:
        if check.on_request:
            assert all(f"{check.name} {outcome}" in used for outcome in check.outcomes if check.alarms(outcome))


def with_refits(fault: str, refits: dict[str, str], health: str) -> DiagnosisInput:
    """The run with a verdict of the refit guard per engine, from the step in which the run's fault began."""
    run = last(fault)
    checks = {name: RefitCheck(verdict, verdict, since_step=newest(fault) // 2) for name, verdict in refits.items()}
    engines = {
        name: msgspec.structs.replace(engine, health=health, refit=checks[name]) for name, engine in run.engines.items()
    }
    return replace(run, engines=engines)


@pytest.mark.parametrize("health", ["live", "gone"])
@pytest.mark.parametrize(
    ("fault", "refits", "cause", "scope"),
    [
        (HEAD, {"e0": "head", "e1": "head"}, "partial-update", []),
        (REPLICA, {"e0": "agree", "e1": "skipped"}, "lying-replica", ["e1"]),
    ],
)
def test_the_refit_guard_counts_during_a_run_and_after_it(
    health: str, fault: str, refits: dict[str, str], cause: str, scope: list[str]
) -> None:
    verdict = diagnose(with_refits(fault, refits, health))
    assert (verdict.verdict, verdict.causes[0].id, verdict.causes[0].engines) == ("fault", cause, scope)
    assert any(one.test == "refit" for one in verdict.findings)
