"""Undo without an id, the audit log of a recording, and the summary of an attribution."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from click.testing import CliRunner

from rltop.backend.api import Change, change_key
from rltop.backend.api.attribution import Attribution, Interval, LagRegression, Stratum
from rltop.backend.client.replay import SAMPLE
from rltop.backend.commands import audit
from rltop.backend.commands.undoable import last_undoable
from rltop.backend.text.attribution_text import ranking, summary
from rltop.tui.cli.main import main
from tests.support import pictures


def changes(*made: Change) -> dict[str, Change]:
    return {change_key(change): change for change in made}


def last(*made: Change, caching: str = "off", health: str = "live") -> list[str]:
    engines = {name: pictures.engine(name, flags=pictures.flags(caching), health=health) for name in ("e0", "e1")}
    return [change.command for change in last_undoable(changes(*made).values(), engines)]


def test_the_last_change_that_is_in_effect_is_undone() -> None:
    on_all = [pictures.applied(f"e{i}", "prefix_caching", "off", command="c1") for i in range(2)]
    refused = pictures.change("e0", "async_scheduling", "off", "refused", command="c2", at_step=20)
    back = pictures.applied("e0", "prefix_caching", "on", command="c3", at_step=30, reverts="c1")
    assert last(*on_all) == ["c1", "c1"]
    assert last(*on_all, refused) == ["c1", "c1"]
    assert last(*on_all, back) == []
    assert last(*on_all, caching="on") == [], "another change restored it since"
    assert last(*on_all, health="gone") == []
    assert last() == []


def test_a_recording_has_requests_outcomes_and_acknowledgements() -> None:
    shown = pictures.switched()
    lines = audit.of_snapshot(shown)
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    closed = [change for change in shown.changes.values() if change.closed is not None]
    assert len([line for line in lines if line.event == "requested"]) == len(shown.changes)
    assert len([line for line in lines if line.event != "requested"]) == len(closed)


READING = ["status", "fingerprint", "worst", "audit", "alarms", "diagnose", "attribution", "report", "effect"]


@pytest.mark.parametrize("command", READING)
def test_every_reading_command_takes_a_recording_as_argument_and_as_option(command: str) -> None:
    named = CliRunner().invoke(main, [command, "--run", str(SAMPLE)])
    assert named.exit_code == 0, named.output
    assert named.stdout
    if command != "effect":
        assert CliRunner().invoke(main, [command, str(SAMPLE)]).stdout.splitlines()[:1] == named.stdout.splitlines()[:1]


@dataclass
class Gap:
    """An attribution of one dimension, by its figures."""

    of_all: float
    matched: float | None
    e0: float = 0.0
    e1: float = 0.0

    def strata(self, mean: float, *, apart: bool) -> list[Stratum]:
        def one(dimension: str, label: str, tokens: int, gap: float) -> Stratum:
            interval = Interval(gap, gap * 0.9, gap * 1.1)
            return Stratum(dimension, label, tokens, 10, interval, interval, Interval(1.0))

        found = [one("all", "all", 1000, mean)]
        return [*found, one("engine", "e0", 500, self.e0), one("engine", "e1", 500, self.e1)] if apart else found

    def made(self) -> Attribution:
        matched = [] if self.matched is None else self.strata(self.matched, apart=True)
        by = None if self.matched is None else "old"
        return Attribution([0, 1], self.strata(self.of_all, apart=self.matched is None), matched, by, [])


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (Gap(1.0, 0.05, 0.05, 0.05), "About 95% of the gap is lag (staleness)"),
        (Gap(1.0, 0.05, 0.05, 0.05), "The rest is even over all strata."),
        (Gap(1.0, 1.0, 0.4, 1.6), "About 0% of the gap is lag"),
        (Gap(1.0, 1.0, 0.4, 1.6), "engine e1 has 80% with 50% of the tokens"),
        (Gap(1.0, None, 0.4, 1.6), "staleness can't be separated. engine e1 has 80% with 50%"),
        (Gap(0.0, 0.0), "There is no gap"),
    ],
)
def test_an_attribution_begins_with_a_sentence(gap: Gap, expected: str) -> None:
    assert expected in summary(gap.made())


def test_the_line_over_lags_separates_staleness_without_matched_tokens() -> None:
    line = LagRegression(Interval(0.1), Interval(0.3), 40)
    found = msgspec.structs.replace(Gap(1.0, None, 1.0, 1.0).made(), lines=[line])
    assert "About 90% of the gap is lag (staleness), by the line over lags" in summary(found)


def test_sources_are_ranked_by_what_their_tokens_do_not_explain() -> None:
    (source,) = ranking(Gap(1.0, 1.0, 0.4, 1.6).made().matched)
    assert (source.label, source.of_tokens, source.certain) == ("e1", 0.5, True)
    assert source.of_gap == pytest.approx(0.8)
    assert ranking(Gap(1.0, 1.0, 1.0, 1.0).made().matched) == []
