"""From findings to causes: what holds whatever the tests find, and what known situations come out as."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import ALPHA, CHECKS, UNKNOWN
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TEST
from rltop.backend.diagnosis.causes import BY_ID, CAUSES
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives
from rltop.backend.diagnosis.infer import MAY_LIKELIHOOD, MIN_P, Inference, infer, is_alarming

ENGINES = (None, "e0", "e1", "e2")
DETAILS = {
    "facts": ("dtype", "head_dtype", "temperature", "top_p", "logprobs_mode", "default_sampling", "repetition_penalty"),
}  # fmt: skip


def alarm(sign: str, engine: str | None = None, p: float = 1e-9, since: int = 3) -> Finding:
    ((test, outcome),) = alternatives(sign)
    word, _, detail = outcome.partition("=")
    return Finding(test, word, p=p, since_step=since, engine=engine, detail=detail, text=f"{sign} {engine}")


def calm(test: str, engine: str | None = None) -> Finding:
    return Finding(test, TEST[test].healthy, engine=engine)


def best(findings: Sequence[Finding]) -> str:
    return infer(findings, CAUSES, {"stale-prefix-cache": True}).candidates[0].entry.id


def told(found: Inference) -> list[object]:
    """All of it, as values."""
    return [
        found.healthy,
        found.unlisted,
        *((s.entry.id, s.confidence, s.needed, s.optional) for s in found.candidates),
    ]


def blame(found: Inference) -> float:
    """How sure it is that something is wrong."""
    return 1.0 - found.healthy


@st.composite
def finding(draw: st.DrawFn, healthy: bool | None = None) -> Finding:
    test = draw(st.sampled_from(CHECKS))
    outcomes = test.outcomes[:1] if healthy else (*test.outcomes, UNKNOWN)
    outcome = draw(st.sampled_from(outcomes))
    engine = draw(st.sampled_from(ENGINES)) if test.by_engine and not healthy else None
    alarming = outcome not in (UNKNOWN, test.healthy)
    detail = draw(st.sampled_from(DETAILS.get(test.name, ("",)))) if alarming else ""
    p = draw(st.floats(0.0, ALPHA)) if alarming else 1.0
    return Finding(test.name, outcome, p=p, engine=engine, detail=detail, since_step=2 if alarming else None)


FINDINGS = st.lists(finding(), max_size=14)


# --- what always holds ----------------------------------------------------------------------------------------------


@given(FINDINGS, st.randoms(use_true_random=False))
def test_the_order_of_findings_does_not_matter(found: list[Finding], rng: random.Random) -> None:
    shuffled = found.copy()
    rng.shuffle(shuffled)
    assert told(infer(found, CAUSES)) == told(infer(shuffled, CAUSES))


@given(FINDINGS, st.randoms(use_true_random=False))
def test_the_order_of_causes_only_breaks_ties(found: list[Finding], rng: random.Random) -> None:
    shuffled = list(CAUSES)
    rng.shuffle(shuffled)
    one, other = infer(found, CAUSES), infer(found, shuffled)
    shares = {s.entry.id: s.confidence for s in other.candidates}
    assert {s.entry.id for s in one.candidates} == set(shares)
    assert all(math.isclose(s.confidence, shares[s.entry.id], rel_tol=1e-9) for s in one.candidates)


@given(FINDINGS, finding(healthy=True))
def test_a_healthy_finding_never_raises_the_share_of_faults(found: list[Finding], more: Finding) -> None:
    if any(f.test == more.test and f.outcome != UNKNOWN for f in found):
        return  # a test speaks once of the run
    assert blame(infer([*found, more], CAUSES)) <= blame(infer(found, CAUSES)) + 1e-12


@given(FINDINGS)
def test_confidences_are_shares_and_ruled_out_causes_have_none(found: list[Finding]) -> None:
    made = infer(found, CAUSES)
    assert 0 <= made.healthy <= 1 and 0 <= made.unlisted <= 1
    assert all(0 < s.confidence <= 1 + 1e-12 for s in made.candidates)
    assert [s.confidence for s in made.candidates] == sorted((s.confidence for s in made.candidates), reverse=True)
    for candidate in made.candidates:
        assert candidate.needed or any(f.test in ("facts", "engine_gap") for f in candidate.optional)
        assert all(f.outcome not in (UNKNOWN, TEST[f.test].healthy) for f in (*candidate.needed, *candidate.optional))


@given(FINDINGS, st.data())
def test_surer_evidence_for_a_cause_never_lowers_its_confidence(found: list[Finding], data: st.DataObject) -> None:
    candidates = infer(found, CAUSES).candidates
    if not candidates:
        return
    candidate = data.draw(st.sampled_from(candidates))
    if not candidate.needed:
        return
    chosen = data.draw(st.sampled_from(candidate.needed))
    surer = [msgspec.structs.replace(f, p=f.p / 1000) if f is chosen else f for f in found]
    after = next(s for s in infer(surer, CAUSES).candidates if s.entry is candidate.entry)
    assert after.confidence >= candidate.confidence - 1e-12


@given(st.lists(finding(healthy=True), max_size=30))
def test_without_an_alarming_finding_there_are_no_candidates(found: list[Finding]) -> None:
    made = infer(found, CAUSES)
    assert (made.candidates, made.healthy, made.unlisted, made.mild) == ([], 1.0, 0.0, [])


@settings(max_examples=30)
@given(st.sampled_from(CAUSES), st.sampled_from([MIN_P, 1e-9, ALPHA]))
def test_a_cause_with_exactly_its_needed_symptoms_ranks_first(known: CauseEntry, p: float) -> None:
    """Whatever else explains these findings needs no more of them, and no cause explains them better."""
    shown = [alarm(sign.split(" | ")[0], "e1" if known.one_engine else None, p) for sign in known.needs]
    around = [calm(f.test, engine) for f in shown for engine in ("e0", "e2") if known.one_engine]
    made = infer([*shown, *around], CAUSES, {known.id: True})
    if not any(map(is_alarming, shown)):
        assert known in [s.entry for s in made.mild]
        return
    own = next(s for s in made.candidates if s.entry is known)
    assert own.confidence >= made.candidates[0].confidence * 0.99
    assert blame(made) > 0.999


# --- rules ----------------------------------------------------------------------------------------------------------

ONE = CauseEntry(
    "X1",
    "one",
    "record",
    "",
    "",
    needs=("mean_ratio above",),
    may=("nll_minus_entropy below",),
    against=("alignment shifted",),
)
OTHER = CauseEntry("X2", "other", "record", "", "", needs=("alignment shifted | copies shifted",))


def shares(found: Sequence[Finding], *causes: CauseEntry, **given_: bool | None) -> dict[str, float]:
    return {s.entry.id: s.confidence for s in infer(found, causes, given_).candidates}


def test_an_absent_needed_symptom_rules_out_a_cause() -> None:
    both = CauseEntry("X3", "both", "record", "", "", needs=("mean_ratio above", "nll_minus_entropy below"))
    assert set(shares([alarm("mean_ratio above")], ONE, both)) == {"one", "both"}
    assert set(shares([alarm("mean_ratio above"), calm("nll_minus_entropy")], ONE, both)) == {"one"}


def test_an_undecided_needed_check_halves_the_weight_of_a_cause() -> None:
    both = CauseEntry("X3", "both", "record", "", "", needs=("mean_ratio above", "nll_minus_entropy below"))
    made = shares([alarm("mean_ratio above"), Finding("nll_minus_entropy", UNKNOWN)], ONE, both)
    assert made["both"] == pytest.approx(MAY_LIKELIHOOD * made["one"], rel=0.02)


def test_two_faults_at_once_are_both_reported() -> None:
    made = shares([alarm("mean_ratio above"), alarm("copies shifted")], ONE, OTHER)
    assert made["one"] > 0.7 and made["other"] > 0.7


@pytest.mark.parametrize("beyond", [False, True])
def test_a_gap_beyond_rounding_has_another_cause_beside_the_precision_of_the_head(beyond: bool) -> None:
    gap = alarm("floor above" if beyond else "floor above=16 bits")
    found = infer([alarm("facts differs=head_dtype"), alarm("logit_lattice engine_coarse"), gap], CAUSES)
    named = {one.entry.id: one.confidence for one in found.candidates}
    assert named["head-precision"] > 0.95
    others = math.fsum(share for name, share in named.items() if name != "head-precision")
    assert others > 0.9 if beyond else others < 0.2


def test_an_excluding_symptom_rules_out_a_cause_unless_another_fault_explains_it() -> None:
    assert shares([alarm("mean_ratio above"), alarm("alignment shifted")], ONE) == {}
    assert set(shares([alarm("mean_ratio above"), alarm("alignment shifted")], ONE, OTHER)) == {"one", "other"}


def test_a_cause_on_one_engine_needs_an_unaffected_engine() -> None:
    lone = CauseEntry("X4", "lone", "weights", "", "", needs=("floor above",), one_engine=True)
    assert shares([alarm("floor above", "e0"), alarm("floor above", "e1")], lone) == {}
    assert set(shares([calm("floor", "e0"), alarm("floor above", "e1")], lone)) == {"lone"}


def test_an_unstated_feature_lowers_the_prior_and_an_absent_one_rules_out_the_cause() -> None:
    rare = CauseEntry("X5", "rare", "semantic", "", "", needs=("mean_ratio above",), where=("speculative not none",))
    found = [alarm("mean_ratio above")]
    assert shares(found, rare, rare=True)["rare"] > shares(found, rare, rare=None)["rare"] > 0
    assert shares(found, rare, rare=False) == {}


def test_mild_findings_support_no_candidate_on_their_own() -> None:
    found = [alarm("reward rising"), alarm("entropy falling"), alarm("lag_slope grows")]
    made = infer(found, CAUSES)
    assert (made.candidates, made.healthy, made.unlisted) == ([], 1.0, 0.0)
    odds = infer([alarm("mean_ratio above"), *found], [ONE])
    assert [s.confidence for s in odds.candidates] == [
        s.confidence for s in infer([alarm("mean_ratio above")], [ONE]).candidates
    ]


def test_a_canary_flag_is_no_fault() -> None:
    canary = alarm("facts differs=prefix_caching/fleet", "e1")
    assert blame(infer([canary, calm("mean_ratio")], CAUSES)) == 0.0
    other = alarm("facts differs=torch_version/fleet", "e1")
    assert best([other, calm("mean_ratio")]) == "mixed-fleet"


def test_a_cause_with_only_mild_symptoms_is_listed_as_mild() -> None:
    made = infer([alarm("reward falling"), calm("mean_ratio")], CAUSES)
    assert made.candidates == []
    assert [s.entry.id for s in made.mild] == ["reward-falls"]


def test_a_fact_stated_by_one_side_supports_a_cause_but_is_no_fault_alone() -> None:
    stated = alarm("facts shaped=top_p")
    assert blame(infer([stated], CAUSES)) == 0.0
    known = CauseEntry("X6", "known", "semantic", "", "", needs=("nll_minus_entropy below", "facts shaped=top_p"))
    made = shares([stated, alarm("nll_minus_entropy below")], known)
    assert made["known"] > 0.9


def test_unexplained_findings_give_the_unlisted_cause() -> None:
    made = infer([alarm("batch_load grows"), alarm("calibration sharper")], [ONE, OTHER])
    assert made.candidates == []
    assert made.unlisted > 0.99


# --- situations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (["mean_ratio above", "sign positive", "floor above"], "raw-logprobs"),
        (
            ["mean_ratio above", "sign positive", "floor above", "facts shaped=logprobs_mode", "clip high"],
            "raw-logprobs",
        ),
        (["slope flatter", "trend jump", "floor above", "entropy rising"], "trainer-without-temperature"),
        (["one_sided negative", "mean_ratio below", "nll_minus_entropy below", "floor above"], "truncation-in-record"),
        (["nll_minus_entropy below"], "shaped-in-silence"),
        (["nll_minus_entropy below", "calibration sharper", "mean_ratio above=old"], "shaped-in-silence"),
        (["nll_minus_entropy below", "calibration sharper", "mean_ratio above=all", "floor above"], "raw-logprobs"),
        (["one_sided negative", "sign too_negative", "floor above", "record zeros"], "truncation-in-record"),
        (["facts shaped=default_sampling", "nll_minus_entropy below", "floor above"], "generation-config"),
        (["facts shaped=repetition_penalty", "floor above"], "penalties"),
        (["alignment shifted", "mean_ratio above", "floor above", "sign positive"], "shifted-logprobs"),
        (["copies zero_filled", "mean_ratio below", "record zeros", "position grows"], "padded-logprobs"),
        (["lag high", "lag_slope grows", "clip high"], "policy-lag"),
        (["fit frozen", "floor above", "trend ramp"], "never-updated"),
        (["floor above", "fit partial", "trend jump"], "partial-update"),
        (["floor above", "fit partial", "trend jump", "cache_gap hit_worse"], "stale-prefix-cache"),
        (
            ["floor above", "fit partial", "trend jump", "cache_gap hit_worse", "in_flight after_worse"],
            "stale-prefix-cache",
        ),
        (["floor above", "fit partial", "in_flight after_worse=alone"], "kept-kv"),
        (["floor above", "fit partial", "trend jump", "in_flight after_worse=elsewhere too"], "partial-update"),
        (["floor rounding", "facts differs=dtype", "facts differs=head_dtype"], "other-rounding"),
        (["floor rounding", "facts differs=head_dtype"], "head-precision"),
        (["repeat differs", "floor above", "tail heavy"], "dropout"),
        (["mask unsampled", "mean_ratio below", "record zeros"], "loss-over-unsampled"),
        (["entropy collapsed", "gradient vanished", "reward falling"], "entropy-collapse"),
    ],
)  # fmt: skip
def test_a_known_situation_has_its_cause_first(found: list[str], cause: str) -> None:
    alarms = [alarm(sign) for sign in found]
    silent = (
        {test.name for test in CHECKS if not test.on_request}
        - {f.test for f in alarms}
        - {"logit_lattice", "batch_load"}
    )
    assert best([*alarms, *map(calm, sorted(silent))]) == cause


def test_a_stale_and_a_lying_replica_differ_in_the_reported_version() -> None:
    rest = [calm("floor", "e0"), calm("engine_gap", "e0"), calm("versions", "e0"), calm("lag", "e0")]
    honest = [
        alarm("engine_gap outlier", "e1"),
        alarm("versions stuck", "e1"),
        alarm("lag behind", "e1"),
        calm("floor", "e1"),
    ]
    assert best([*honest, *rest]) == "stale-replica"
    lying = [alarm("engine_gap outlier", "e1"), alarm("floor above", "e1"), calm("versions", "e1"), calm("lag", "e1")]
    frozen = [*lying, alarm("fit frozen", "e1"), calm("fit", "e0")]
    assert best([*frozen, *rest]) == "lying-replica"
    odd = [*lying, alarm("calibration flatter", "e1"), alarm("calibration flatter"), alarm("fit frozen", "e1")]
    made = {candidate.entry.id: candidate.confidence for candidate in infer([*odd, *rest], CAUSES).candidates}
    assert made.get("never-updated", 0.0) < 0.03
    unmatched = [
        alarm("engine_gap outlier", "e1"),
        alarm("calibration flatter", "e1"),
        Finding("floor", UNKNOWN, engine="e1"),
    ]
    assert best([*unmatched, calm("engine_gap", "e0"), calm("versions", "e1")]) == "lying-replica"


@pytest.mark.parametrize("size", [["engine_gap outlier"], ["engine_gap outlier", "floor above"]])
def test_that_one_engine_differs_names_no_cause_without_evidence_of_its_own(size: list[str]) -> None:
    rest = [calm("engine_gap", "e0"), calm("versions", "e1"), calm("lag", "e1"), Finding("cache_gap", UNKNOWN)]
    found = [*(alarm(sign, "e1") for sign in size), *rest]
    made = {s.entry.id: s.confidence for s in infer(found, CAUSES, {"stale-prefix-cache": True}).candidates}
    assert max(made.values()) < 0.5
    assert min(made[name] for name in ("lying-replica", "partial-update", "stale-prefix-cache", "bad-export")) > 0.02
    partial = infer([*found, alarm("fit partial", "e1"), calm("fit", "e0")], CAUSES)
    assert {s.entry.id: s.confidence for s in partial.candidates}.get("lying-replica", 0.0) < 0.1


@pytest.mark.parametrize("name", ["cache_gap hit_worse", "in_flight after_worse=alone"])
def test_what_differs_on_one_engine_only_is_named_as_on_a_fleet(name: str) -> None:
    place = [
        alarm("engine_gap outlier", "e1"),
        alarm("floor above", "e1"),
        calm("floor", "e0"),
        calm("engine_gap", "e0"),
    ]
    shown = [alarm(name, "e1"), alarm("fit partial", "e1"), calm("fit", "e0")]
    assert best([*place, *shown]) == ("stale-prefix-cache" if "cache" in name else "kept-kv")


def test_a_fleet_that_samples_flatter_may_be_stale_without_old_logprobs() -> None:
    unknown = [Finding(name, UNKNOWN) for name in ("floor", "fit", "trend", "slope")]
    made = {s.entry.id: s.confidence for s in infer([alarm("calibration flatter"), *unknown], CAUSES).candidates}
    assert made["never-updated"] > made["trainer-without-temperature"] > 0.2


def test_a_fleet_without_updates_is_named_with_one_engine_undecided() -> None:
    frozen = [alarm("fit frozen", engine) for engine in ("e0", "e1")]
    above = [alarm("floor above", engine) for engine in ENGINES]
    assert best([*above, *frozen, Finding("fit", UNKNOWN, engine="e2"), alarm("trend jump")]) == "never-updated"
    part = [alarm("fit partial", engine) for engine in ("e0", "e2")]
    assert best([*above, frozen[1], *part, alarm("trend jump")]) == "partial-update"


def test_a_stale_cache_and_a_partial_update_are_named_together_without_a_comparison_of_hits_and_misses() -> None:
    found = [alarm("floor above"), alarm("fit partial"), alarm("trend jump"), Finding("cache_gap", UNKNOWN)]
    made = {s.entry.id: s.confidence for s in infer(found, CAUSES, {"stale-prefix-cache": True}).candidates}
    assert made["partial-update"] > made["stale-prefix-cache"] > 0.1


def test_causes_with_the_same_symptoms_share_the_confidence() -> None:
    found = [alarm("floor above"), calm("trend"), calm("engine_gap"), calm("repeat"), calm("cache_gap")]
    made = infer(found, CAUSES)
    first, *others = made.candidates
    assert {"bad-export", "rope-config", "attention-kernel"} <= {s.entry.id for s in others} | {first.entry.id}
    assert first.confidence < 0.5
    assert BY_ID["stale-prefix-cache"] not in [s.entry for s in made.candidates]


def test_locating_findings_distinguish_causes_but_are_no_fault_alone() -> None:
    place = alarm("in_flight after_worse")
    assert infer([place, calm("floor"), calm("mean_ratio")], CAUSES).healthy == 1.0
    found = [alarm("floor above"), alarm("fit partial"), Finding("cache_gap", UNKNOWN)]
    alone, placed = infer(found, CAUSES), infer([*found, place], CAUSES)
    assert alone.candidates[0].entry.id != "kept-kv"
    assert placed.candidates[0].entry.id == "kept-kv"
    assert placed.candidates[0].confidence > 1.5 * placed.candidates[1].confidence
    assert blame(placed) >= blame(alone)
