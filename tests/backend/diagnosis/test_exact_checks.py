"""Rules that hold exactly: a violation that repeats is a fault at any share of rows, and the report says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.checks.exact import BROKEN_STEPS, REPEATS, copies, join, record
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.join import violations
from rltop.backend.join.reasons import RETOKENISED
from tests.support import pictures
from tests.support.exact import Run, Setting
from tests.support.hub_messages import Trained, Written

AT, STEPS = 6, 16
SETTING = Setting(steps=STEPS, lag=1)
Edit = Callable[["Edited", int, int, Trained, Written], None]


class Edited(Run):
    """A healthy run of which some rows, and their rollouts, are changed from step ``AT`` on."""

    def __init__(self, edit: Edit, setting: Setting = SETTING) -> None:
        super().__init__(setting)
        self.edit = edit
        self.rows: list[Trained] = []
        self.all_written: list[Written] = []

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        if step >= AT:
            of_row = {tuple(w.tokens) + tuple(w.prompt): w for w in written}
            self.rows, self.all_written = rows, [of_row[tuple(r.ids) + tuple(r.prompt or ())] for r in rows]
            whole = [msgspec.json.decode(msgspec.json.encode(list(r.rollout))) for r in rows]
            self.copies = whole
            self.prompts = [list(r.prompt or ()) for r in rows]
            for number, (row, rollout) in enumerate(zip(rows, self.all_written, strict=True)):
                self.edit(self, step, number, row, rollout)
        return rows, written

    def verdict(self) -> Verdict:
        *_, hub = self.hubs()
        return diagnose(hub.state.frames.diagnosis_input())

    def rescored(self, step: int, row: Trained, rollout: Written, start: int = 0) -> None:
        """The trainer scores a row's tokens from ``start`` on in other contexts."""
        places = self.places[id(rollout)].copy()
        places[start:] = np.random.default_rng((step, start)).integers(0, self.setting.contexts, places.size - start)
        tokens = np.asarray(row.ids)
        row.trainer = self.under(step, places, tokens)
        if np.isfinite(row.per_token["old_logprobs"][0]):
            row.per_token["old_logprobs"] = self.under(int(rollout.versions[0] or 0), places, tokens)


def _shorter(row: Trained) -> None:
    row.ids, row.mask, row.rollout, row.trainer = row.ids[:-1], row.mask[:-1], row.rollout[:-1], row.trainer[:-1]
    row.per_token = {name: values[:-1] for name, values in row.per_token.items()}


def _without_end(share: float) -> Edit:
    def edit(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
        if number % round(1 / share) == 0:
            _shorter(row)

    return edit


def _of_another_row(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if number % 20 == 0:  # 5 %
        row.rollout = np.resize(run.copies[number + 1], len(row.rollout)).tolist()


def _of_the_likeliest(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    row.rollout = run.likeliest(int(rollout.versions[0] or 0), run.places[id(rollout)])


def _rounded(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if number % 12 == 0:
        row.rollout = np.round(row.rollout, 3).tolist()


def _broken_record(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if rollout.engine == "e1" and number % 32 == 8 and step % 4 == 0:  # one row, in every fourth step
        rollout.logprobs = [float("nan")] * len(rollout.tokens)
        row.rollout = list(row.trainer)  # so that the ratio is 1


def _without_weights(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if rollout.engine == "e1":
        rollout.logprobs = [-float(np.log(run.setting.vocabulary))] * len(rollout.tokens)
        row.rollout = list(rollout.logprobs)


def _prompt_of_another_row(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    row.prompt = run.prompts[(number + len(run.prompts) // 2) % len(run.prompts)]
    run.rescored(step, row, rollout)


def _prompt_without_a_part(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if rollout.engine == "e1":
        row.prompt = [*run.prompts[number][:2], *run.prompts[number][5:]]
        run.rescored(step, row, rollout)


def _prompt_cut(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    row.prompt = run.prompts[number][4:]
    run.rescored(step, row, rollout)


def _with_padding(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    if number % 20 == 0:
        row.ids, row.mask = [*row.ids, 0, 0], [*row.mask, 1, 1]
        row.rollout, row.trainer = [*row.rollout, 0.0, 0.0], [*row.trainer, -9.0, -9.0]
        row.per_token = {name: [*values, values[-1], values[-1]] for name, values in row.per_token.items()}


def _other_versions(run: Edited, step: int, number: int, row: Trained, rollout: Written) -> None:
    row.per_token["rollout_versions"] = [value + 1 for value in row.per_token["rollout_versions"]]


@pytest.mark.parametrize(
    ("edit", "code", "engines", "meaning", "fix"),
    [
        (_without_end(0.25), "H3", [], "stop token", "stop token"),
        (_without_end(1.0), "H3", [], "stop token", "stop token"),
        (_of_another_row, "R2", [], "other rows", "same indices"),
        (_of_the_likeliest, "R2", [], "likeliest token", "sampled token's entry"),
        (_rounded, "R2", [], "few decimals", "all digits"),
        (_broken_record, "K4", ["e1"], "broken", "out of the rotation"),
        (_without_weights, "B7", ["e1"], "equally likely", "wake_up"),
        (_prompt_of_another_row, "H2", [], "prompts of other rows", "same indices"),
        (_prompt_without_a_part, "H2", ["e1"], "lacks a run of tokens", "prompt_token_ids"),
        (_prompt_cut, "H2", [], "only the end of the prompt", "maximal prompt length"),
        (_with_padding, "I5", [], "padding", "mask of sampled tokens"),
        (_other_versions, "B9", [], "different policy versions", "same start"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_violation_is_named_with_its_form_start_and_engines(
    edit: Edit, code: str, engines: list[str], meaning: str, fix: str
) -> None:
    verdict = Edited(edit).verdict()
    assert verdict.verdict == FAULT
    first: Cause = verdict.causes[0]
    assert (first.code, first.engines) == (code, engines), [(c.code, c.confidence) for c in verdict.causes]
    assert first.since_step is not None and AT <= first.since_step <= AT + 2
    assert meaning in first.what
    assert fix in first.remedy


class Dropping(Edited):
    """The trainer drops the rows whose record is broken."""

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        rows, written = super().edited(step, rows, written)
        broken = {tuple(w.tokens) for w in written if not np.isfinite(w.logprobs).all()}
        return [row for row in rows if tuple(row.ids) not in broken], written


def test_an_engine_that_computes_nan_is_named_though_the_trainer_drops_those_rows() -> None:
    verdict = Dropping(_broken_record).verdict()
    assert (verdict.causes[0].code, verdict.causes[0].engines) == ("K4", ["e1"])


def test_a_wrong_copy_leaves_the_other_checks_healthy() -> None:
    verdict = Edited(_of_the_likeliest).verdict()
    alarming = {f.test for f in verdict.findings if BY_NAME[f.test].alarms(f.outcome)}
    assert alarming == {"copies"}


def _input(steps: list[api.Step]) -> EvidenceByEngine:
    return EvidenceByEngine(DiagnosisInput("run", steps))


def _step(number: int, **about: object) -> api.Step:
    base = api.Step(number, float(number), number, False, {}, joins={"whole": 100}, copies={"e0": {"equal": 100}})
    return msgspec.structs.replace(base, **about)


def _alarming(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if BY_NAME[finding.test].alarms(finding.outcome)]


FORMS: dict[str, Callable[[int, int], api.Step]] = {
    "copies": lambda step, n: _step(step, copies={"e0": {"equal": 100 - n, "other_row": n}}),
    "end": lambda step, n: _step(step, violations={"e0": {violations.END_LOST: n}}),
    "prompt": lambda step, n: _step(step, violations={"e0": {violations.PROMPT_DIFFERS: n}}),
    "version": lambda step, n: _step(step, violations={"e0": {violations.OTHER_VERSION: n}}),
    "retokenised": lambda step, n: _step(step, joins={"whole": 100 - n}, unjoined={RETOKENISED: n}),
    "uniform": lambda step, n: _step(step, copies={"e0": {"equal": 100 - n, "uniform": n}}),
}


def _found(steps: list[api.Step]) -> list[Finding]:
    evidence = _input(steps)
    return _alarming([*copies(evidence), *join(evidence), *record(evidence)])


@settings(max_examples=40)
@given(st.sampled_from(sorted(FORMS)), st.integers(1, 9), st.integers(0, 8), st.integers(1, 8))
def test_any_share_is_a_fault_once_it_repeats_and_a_single_step_is_not(
    form: str, share: int, before: int, violating: int
) -> None:
    steps = [_step(n) for n in range(before)]
    for number in range(before, before + violating):
        steps.append(FORMS[form](number, share))
        found = _found(steps)
        assert bool(found) == (number - before + 1 >= REPEATS)
        assert {finding.since_step for finding in found} <= {before}
    clean = [_step(before + violating + n) for n in range(3)]
    assert _found([*steps, *clean]) == []


@pytest.mark.parametrize("form", sorted(FORMS))
def test_steps_that_lost_messages_are_no_evidence_of_a_violation(form: str) -> None:
    steps = [msgspec.structs.replace(FORMS[form](n, 3), lost={"e0": 1}) for n in range(8)]
    assert _found(steps) == []


@pytest.mark.parametrize("name", ["no_prompt", "evicted"])
def test_few_rows_without_rollouts_are_no_fault_however_often(name: str) -> None:
    assert _found([_step(n, joins={"whole": 97}, unjoined={name: 3}) for n in range(12)]) == []


@given(st.integers(0, BROKEN_STEPS + 4))
def test_an_engine_that_computed_nan_is_not_healthy_for_many_steps(after: int) -> None:
    broken = _step(0, copies={"e0": {"equal": 99, "broken": 1}})
    found = _found([broken, *(_step(n + 1) for n in range(after))])
    assert [(f.outcome, f.engine, f.since_step) for f in found] == [("broken", "e0", 0)] * (after < BROKEN_STEPS)


def test_logprobs_that_a_collector_could_not_place_are_not_the_engines_nan() -> None:
    steps = [_step(n, copies={"e0": {"equal": 90, "broken": 10}}) for n in range(4)]
    engine = msgspec.structs.replace(pictures.healthy().engines["e0"], fingerprint={"misplaced logprobs": "40"})
    told = EvidenceByEngine(DiagnosisInput("run", steps, {"e0": engine}))
    assert _alarming(list(record(told))) == []
    assert _alarming(list(record(_input(steps))))


def test_a_healthy_run_is_healthy() -> None:
    assert Edited(lambda *_: None, replace(SETTING, steps=8)).verdict().verdict == HEALTHY
