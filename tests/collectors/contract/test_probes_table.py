"""The table of probes is complete, and docs/probes.md is generated from it."""

from __future__ import annotations

from pathlib import Path

from rltop.collectors.contract.probes import BY_NAME, ENGINES, HUB, PROBES, SWITCH, document


def test_the_page_is_generated_from_the_table() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "probes.md").read_text()
    assert manual == document(), "python -m rltop.collectors.contract.probes > docs/probes.md"


def test_every_probe_has_a_unique_name_and_code_and_a_cost() -> None:
    assert len(BY_NAME) == len({probe.code for probe in PROBES}) == len(PROBES)
    for probe in PROBES:
        words = [answer.word for answer in probe.all_answers]
        assert len(words) == len(set(words))
        assert all(
            (probe.summary, probe.isolates, probe.method, probe.cost, probe.risk, probe.requirements, probe.duration)
        )
        assert probe.executed_by in {HUB, ENGINES, SWITCH}
        assert probe.executed_by == ENGINES or not probe.sends_requests
