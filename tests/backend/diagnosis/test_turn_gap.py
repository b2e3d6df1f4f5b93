"""A gap in later turns only names the context between turns, and never the sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rltop.backend.api.verdict import FAULT, HEALTHY
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.evidence import SIZES, Evidence
from tests.support.exact import RIGHT, Run, Setting, Wrong
from tests.support.exact_tables import Ints
from tests.support.hub_messages import Trained, Written

AT, TOOL = 5, 6
SETTING = Setting(steps=14, lag=1, old="some")


@dataclass
class Damage:
    """What is wrong with later turns from step ``AT`` on: the share of their tokens that have another context."""

    later: float = 0.0
    engine: str = ""


class TwoTurns(Run):
    """Each answer has two turns, with another tool output between them in each row: two requests, one row."""

    def __init__(self, setting: Setting, wrong: Wrong = RIGHT, damage: Damage | None = None) -> None:
        super().__init__(setting, wrong)
        self.damage = damage or Damage()
        self.draw = np.random.default_rng(setting.seed + 7)

    def edited(self, step: int, rows: list[Trained], written: list[Written]) -> tuple[list[Trained], list[Written]]:
        of_row = {(*w.prompt, *w.tokens): w for w in written}
        requests: list[Written] = []
        for row in rows:
            whole = of_row[(*(row.prompt or ()), *row.ids)]
            cut = len(whole.tokens) // 2
            if step >= AT and self.damage.engine in ("", whole.engine):
                self._rescore(step, row, whole, cut)
            tool = self.draw.integers(5, self.setting.vocabulary, TOOL).tolist()
            requests += _requests(whole, cut, tool)
            _split(row, cut, tool)
        return rows, requests

    def _rescore(self, step: int, row: Trained, whole: Written, cut: int) -> None:
        places: Ints = self.places[id(whole)].copy()
        other = self.draw.random(places.size) < self.damage.later
        other[:cut] = False
        places[other] = self.draw.integers(0, self.setting.contexts, int(other.sum()))
        tokens = np.asarray(row.ids)
        row.trainer = self.under(step, places, tokens)
        if "old_logprobs" in row.per_token and np.isfinite(row.per_token["old_logprobs"][0]):
            row.per_token["old_logprobs"] = self.under(int(whole.versions[0] or 0), places, tokens)


def _requests(whole: Written, cut: int, tool: list[int]) -> list[Written]:
    first = replace(whole, tokens=whole.tokens[:cut], logprobs=whole.logprobs[:cut], versions=whole.versions[:cut])
    second = replace(
        whole,
        prompt=[*whole.prompt, *whole.tokens[:cut], *tool],
        tokens=whole.tokens[cut:],
        logprobs=whole.logprobs[cut:],
        versions=whole.versions[cut:],
        request_id=f"{whole.request_id}-2",
    )
    return [first, second]


def _split(row: Trained, cut: int, tool: list[int]) -> None:
    size = len(row.ids)
    row.ids = [*row.ids[:cut], *tool, *row.ids[cut:]]
    row.mask = [1] * cut + [0] * TOOL + [1] * (size - cut)


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("setting", [SETTING, replace(SETTING, lag=0, old="none", engines=1)], ids=["old", "on-policy"])
def test_a_gap_in_later_turns_names_their_context(setting: Setting, share: float) -> None:
    *_, hub = TwoTurns(setting, damage=Damage(share)).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    assert verdict.verdict == FAULT
    assert verdict.causes[0].code == "H6", [(c.code, c.confidence) for c in verdict.causes]
    assert verdict.causes[0].since_step in (AT, AT + 1)


@pytest.mark.parametrize(
    "wrong", [Wrong(at=AT, noise=0.2), Wrong(at=AT, top_p=0.8), Wrong(at=AT, stuck=True, lies=True)]
)
def test_a_gap_in_all_turns_is_not_one_of_later_turns(wrong: Wrong) -> None:
    *_, hub = TwoTurns(SETTING, wrong).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    found = {finding.test for finding in verdict.findings if BY_NAME[finding.test].alarms(finding.outcome)}
    assert found
    assert "turn_gap" not in found
    assert "H6" not in [cause.code for cause in verdict.causes]


def test_no_step_of_a_healthy_run_with_tools_alarms() -> None:
    for number, hub in enumerate(TwoTurns(replace(SETTING, shortest=8, longest=20)).hubs()):
        verdict = diagnose(hub.state.frames.diagnosis_input())
        assert number < 3 or verdict.verdict == HEALTHY, (verdict.causes, verdict.needs)


def test_evidence_that_an_older_version_packed_is_read_without_turns() -> None:
    packed = Evidence(turns=np.ones((2, 6))).to_bytes()
    older = Evidence.from_bytes(packed[: 4 * SIZES[0]])
    assert not older.turns.any()
    assert Evidence.from_bytes(packed).turns.all()
