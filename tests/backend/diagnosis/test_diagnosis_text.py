"""A verdict as a person reads it: one screen, the verdict first; and as programs do."""

from __future__ import annotations

import json
import math

import pytest

from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TEST
from rltop.backend.diagnosis.catalogue.all_checks import SUSPECT, UNKNOWN
from rltop.backend.diagnosis.causes import CAUSES
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives
from rltop.backend.diagnosis.conclude import RunContext, conclude
from rltop.backend.text import verdict_text

RUN = RunContext("sort", 14, {"e0": {}, "e1": {}}, {}, 15, 42_000, 960)
SENTENCE = (
    "mean ratio 1.0931 (1.0812 to 1.1050) over 12,400 tokens of 320 sequences, where a true record has 1: p below 1e-12"
)


def found(symptom: str, engine: str | None = None, since: int | None = 10) -> Finding:
    test, outcome = alternatives(symptom)[0]
    word, _, detail = outcome.partition("=")
    return Finding(test, word, p=1e-10, since_step=since, engine=engine, detail=detail, text=f"{symptom}: {SENTENCE}")


def calm(*tests: str) -> list[Finding]:
    return [Finding(test, TEST[test].healthy) for test in tests]


@pytest.mark.parametrize("known", CAUSES, ids=lambda known: known.id)
def test_a_verdict_fits_one_screen(known: CauseEntry) -> None:
    engine = "e1" if known.one_engine else None
    shown = [found(sign, engine) for sign in known.needs]
    around = [Finding(f.test, TEST[f.test].healthy, engine="e0") for f in shown if engine]
    verdict = conclude(RUN, [*shown, *around])
    lines = verdict_text.lines(verdict)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "sort" in lines[0]
    whole = " ".join(" ".join(lines).split())
    if not verdict.causes:  # nothing of it is alarming: it is noted, with what to do
        assert known.title in whole and known.remedy in whole
        return
    assert verdict.causes[0].remedy in whole  # what to do is never what is cut off
    assert verdict.causes[0].command in whole


def test_the_verdict_comes_first_then_evidence_and_fix() -> None:
    shown = [found("mean_ratio above", since=3), found("sign positive", since=4)]
    verdict = conclude(
        RUN,
        [
            *shown,
            *calm("alignment", "record", "copies", "one_sided", "nll_minus_entropy", "join", "mask", "truncation"),
        ],
    )
    assert verdict.verdict == FAULT
    lines = verdict_text.lines(verdict)
    assert lines[0].startswith("run sort: FAULT since step 3 on all engines, as of step 14 (15 steps")
    whole = "\n".join(lines)
    assert "A1 Engines return raw logprobs (before temperature) [semantic," in whole
    evidence, fix = (
        "  evidence        mean_ratio above: mean ratio 1.0931",
        "  fix             Return the sampled distribution",
    )
    assert whole.index(evidence) < whole.index(fix)
    assert "  live command    rltop set logprobs_mode processed --run sort" in whole


def test_affected_engines_are_named_and_in_the_command() -> None:
    findings = [
        found("mean_ratio above", "e1"),
        Finding("mean_ratio", "calibrated", engine="e0"),
        *calm("copies", "alignment", "record", "truncation"),
    ]
    verdict = conclude(RUN, findings)
    (cause,) = [cause for cause in verdict.causes if cause.id == "raw-logprobs"]
    assert cause.engines == ["e1"]
    assert cause.command == "rltop set logprobs_mode processed --engine e1"
    assert "on e1," in verdict_text.headline(verdict)


def test_the_command_includes_engines_with_an_undecided_check() -> None:
    open_yet = Finding("floor", UNKNOWN, engine="e0", detail=SUSPECT)
    verdict = conclude(
        RUN, [found("floor above"), found("floor above", "e1"), open_yet, found("in_flight after_worse")]
    )
    (cause,) = [cause for cause in verdict.causes if cause.id == "kept-kv"]
    assert (cause.engines, cause.command) == ([], "rltop set update_clears_cache on")


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        (("raw", "raw"), "rltop set logprobs_mode processed"),
        (("raw", "processed"), "rltop set logprobs_mode processed"),
        (("processed", "processed"), ""),
    ],
)
def test_a_command_whose_value_is_already_set_is_not_offered(flags: tuple[str, str], command: str) -> None:
    run = RunContext(
        "sort", 14, {f"e{n}": {"logprobs_mode": flag} for n, flag in enumerate(flags)}, {}, 15, 42_000, 960
    )
    verdict = conclude(
        run,
        [
            found("mean_ratio above"),
            found("sign positive"),
            *calm("alignment", "record", "copies", "one_sided", "nll_minus_entropy"),
        ],
    )
    cause = verdict.causes[0]
    assert (cause.id, cause.command) == ("raw-logprobs", command)
    assert cause.in_place == ("" if command else "rltop set logprobs_mode processed")
    said = " ".join(" ".join(verdict_text.lines(verdict)).split())
    assert ("`rltop set logprobs_mode processed` is applied." in said) == (not command)


def test_a_cause_on_all_engines_names_none() -> None:
    verdict = conclude(RUN, [found("mean_ratio above", engine) for engine in ("e0", "e1", None)])
    assert verdict.causes[0].engines == []


def test_a_healthy_run_has_no_causes() -> None:
    verdict = conclude(RUN, calm("mean_ratio", "floor", "nll_minus_entropy"))
    assert (verdict.verdict, verdict.causes, verdict.needs) == (HEALTHY, [], [])
    assert verdict_text.lines(verdict) == ["run sort: HEALTHY as of step 14 (15 steps, 960 sequences, 42000 tokens)"]


def test_too_little_data_is_reported_with_the_missing_evidence() -> None:
    waiting = Finding("mean_ratio", UNKNOWN, text="3 sequences", more_sequences=29)
    verdict = conclude(RUN, [waiting, Finding("floor", UNKNOWN, text="no old_logprobs are passed")])
    assert verdict.verdict == UNDECIDED
    assert verdict.needs == [
        "about 29 more sequences (mean ratio)",
        "weights and caches were not judged: no old_logprobs are passed",
    ]
    assert verdict_text.lines(verdict)[0].startswith("run sort: NOT ENOUGH EVIDENCE YET, as of step 14")


def test_causes_that_fit_alike_are_named_with_the_probe_that_distinguishes_them() -> None:
    """Both the trainer's weights and the cache may be old where no request missed the cache."""
    run = RunContext("sort", 14, {"e0": {"prefix_caching": "on"}}, {}, 15, 42_000, 960)
    findings = [found("floor above"), found("fit partial"), found("trend jump"), Finding("cache_gap", UNKNOWN)]
    verdict = conclude(run, [*findings, *calm("mean_ratio", "engine_gap", "repeat")])
    first = verdict.causes[0]
    assert (verdict.verdict, first.id) == (UNDECIDED, "partial-update")
    assert "stale-prefix-cache" in first.confusable_with
    assert first.probe == "weight-digest"
    assert any(need.startswith("probe weight-digest distinguishes partial-update from ") for need in verdict.needs)
    assert "  alternatives    " in "\n".join(verdict_text.lines(verdict, height=None))


def test_unexplained_findings_are_undecided_and_name_a_probe() -> None:
    verdict = conclude(
        RUN,
        [
            found("batch_load grows"),
            found("calibration sharper"),
            *calm("nll_minus_entropy", "mean_ratio", "floor", "repeat_engine"),
        ],
        [],
    )
    assert (verdict.verdict, verdict.causes) == (UNDECIDED, [])
    assert verdict.needs == [need for need in verdict.needs if "experiment triad" in need] != []


def test_a_probe_is_listed_once_with_all_causes_that_it_distinguishes() -> None:
    verdict = conclude(RUN, [found("floor above"), *calm("mean_ratio", "engine_gap", "cache_gap", "repeat")])
    wanted = [need for need in verdict.needs if need.startswith("probe ")]
    assert len({need.split()[1] for need in wanted}) == len(wanted) > 1
    (digest,) = [need for need in wanted if need.startswith("probe weight-digest distinguishes ")]
    told, rest = digest.removeprefix("probe weight-digest distinguishes ").partition(": ")[0].split(" from ")
    assert "partial-update" in told.split(", ") and not {*told.split(", ")} & {*rest.split(", ")}


@pytest.mark.parametrize(
    ("engine", "trainer", "order"),
    [("bfloat16", "float32", "on"), ("float32", "bfloat16", "off"), (None, "float32", "on"), ("float32", None, "off")],
)
def test_the_command_sets_the_head_to_the_trainers_dtype(engine: str | None, trainer: str | None, order: str) -> None:
    run = RunContext(
        "sort", 14, {"e0": {"head_dtype": engine} if engine else {}}, {"head_dtype": trainer} if trainer else {}
    )
    verdict = conclude(run, [found("facts differs=head_dtype"), *calm("mean_ratio", "floor")])
    assert verdict.causes[0].command == f"rltop set lm_head_fp32 {order}"


def test_json_has_stable_fields_and_no_infinities() -> None:
    odd = Finding("sign", "positive", value=math.inf, low=-math.inf, high=math.nan, p=0.0, since_step=1)
    built = verdict_text.as_json(conclude(RUN, [found("mean_ratio above"), odd]))
    assert {"run", "step", "verdict", "causes", "needs", "findings"} <= set(built)
    assert {
        "id", "code", "layer", "confidence", "since_step", "engines", "evidence", "confusable_with", "probe", "remedy",
    } <= set(built["causes"][0])  # fmt: skip
    assert json.loads(json.dumps(built, allow_nan=False)) == built


def test_all_findings_are_listed_the_alarming_ones_first() -> None:
    verdict = conclude(
        RUN,
        [
            *calm("nll_minus_entropy"),
            found("mean_ratio above", "e1"),
            Finding("logit_lattice", UNKNOWN, text="no second logprob"),
        ],
    )
    lines = verdict_text.findings(verdict)
    assert lines[0].startswith("mean_ratio (mean ratio) on e1: above. mean_ratio above: mean ratio")
    assert lines[-1] == "logit_lattice (bfloat16 grid of logits): unknown. no second logprob"


def test_a_remedy_names_the_affected_engine_and_its_effect_on_the_run() -> None:
    stuck = Finding("versions", "stuck", p=1e-10, since_step=10, engine="e1", text="e1 stays at version 3")
    verdict = conclude(RUN, [stuck, *calm("mean_ratio", "floor")])
    (cause,) = [cause for cause in verdict.causes if cause.id == "stale-replica"]
    assert "`rltop pause --engine e1 --for 10m`" in cause.remedy
    assert "a synchronous trainer waits" in cause.remedy


def test_a_fault_of_the_trainer_is_on_no_engine() -> None:
    dropped = [found("repeat differs"), found("floor above", "e0"), *calm("mean_ratio", "engine_gap")]
    verdict = conclude(RUN, dropped)
    of_trainer = [cause for cause in verdict.causes if cause.layer in ("trainer", "objective")]
    assert of_trainer and all(cause.engines == [] for cause in of_trainer)
