"""Probes from the command line, with simulated engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rltop.backend.api import Change, Step, change_key
from rltop.collectors.contract import wire
from rltop.collectors.contract.probes import PROBES
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.model.changes import describe
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import marks
from tests.support import pictures
from tests.support.harness import wait_for
from tests.tui.cli.test_cli import Engine as AppliesEverything
from tests.tui.cli.test_cli import answer, home, rltop, start_hub, wait_for_engine
from tests.tui.cli.test_cli_control import Engine, engines, logged

__all__ = ["home"]


class Scorer(Engine):
    """Scores every token of a passage with ``shift`` nats added to its rollout logprob, -1."""

    shift = 0.0

    def roll_out(self, count: int) -> None:
        """Report finished rollouts of the current version."""
        rollouts = [
            wire.Rollout(
                f"r{n}", 3, 4, "stop", [wire.VersionRun(0, 0, 3)], "engine", True, sampling={"temperature": 1.0}
            )
            for n in range(count)
        ]
        arrays: wire.Arrays = {
            "prompt_ids": np.arange(3 * count, dtype="<i4"),
            "token_ids": np.arange(4 * count, dtype="<i4"),
            "logprobs": np.full(4 * count, -1.0, "<f4"),
        }
        self.sender.offer("rollouts", 1000, (wire.Rollouts(self.name, rollouts, wire.describe(arrays)), arrays))

    def execute(self, message: wire.Command) -> None:
        if message.verb != "probe":
            return super().execute(message)
        scores = [
            wire.Score(number, "cold", 1, len(one.ids) // 4 - 1, 0) for number, one in enumerate(message.passages)
        ]
        total = sum(score.size for score in scores)
        arrays: wire.Arrays = {"logprobs": np.full(total, self.shift - 1.0, "<f4")}
        report = wire.ProbeReport(message.id, self.name, message.probe, wire.describe(arrays), 3, scores=scores)
        self.sender.offer("probe", 1000, (report, arrays))
        self._reply(message, "applied", engine_step=9, milliseconds=0.5)
        return None


def test_the_list_has_every_probe_with_cost_and_risk() -> None:
    text = rltop("probe", "--list").output
    for probe in PROBES:
        assert f"{probe.name} ({probe.code})" in text
    listed = json.loads(rltop("probe", "--list", "--json").output)["probes"]
    assert [one["name"] for one in listed] == [probe.name for probe in PROBES]
    assert all({"cost", "risk", "needs", "takes", "answers"} <= one.keys() for one in listed)


@pytest.mark.parametrize(
    "arguments", [(), ("config-diff", "--list"), ("canary-flip",), ("config-diff", "--flag", "a=b"), ("nonsense",)]
)
def test_contradictory_arguments_are_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert rltop("probe", *arguments).exit_code == 2


def two_engines(rundir: RunDir) -> Any:
    return engines(rundir, "e0", "e1")


def test_a_result_is_printed_as_text_and_json_and_again_by_its_id(home: Path) -> None:
    rundir = start_hub("ask")
    with two_engines(rundir):
        done = rltop("probe", "config-diff", "--reason", "why")
        assert done.exit_code == 0
        assert "config-diff (P0) on e0, e1: agree" in done.output
        found = answer("probe", "config-diff", "--json")
        assert found["verdict"] == "agree"
        again = answer("probe", "--result", found["command"][:6], "--json")
        assert again == found
        lines = [line for line in logged() if line["command"] == found["command"]]
        assert [line["event"] for line in lines] == ["requested"] * 2 + ["applied"] * 2 + ["measured"]
        assert lines[-1]["result"]["verdict"] == "agree"
    assert rltop("probe", "--result", "nothing").exit_code == 1


def succeeded(*arguments: str) -> Result | None:
    found = rltop(*arguments)
    return None if found.exit_code else found


def test_an_engine_whose_scores_differ_from_its_rollout_logprobs_is_reported(home: Path) -> None:
    rundir = start_hub("score")
    one = Scorer(rundir, "e0")
    try:
        refused = rltop("probe", "prefill-rescore")
        assert refused.exit_code == 1
        with engines(rundir):
            one.roll_out(8)
        found = wait_for(lambda: succeeded("probe", "prefill-rescore", "--json"), "a verdict", poll_s=0.1)
        assert json.loads(found.output)["verdict"] in ("match", "unclear", "differ")
        one.shift = 0.5
        rescored = rltop("probe", "prefill-rescore", "--engine", "e0")
        assert rescored.exit_code == 0
        assert "e0: mean |difference| 0.5 nats" in rescored.output
    finally:
        one.sender.close(5)


@pytest.mark.usefixtures("home")
def test_a_canary_flip_is_a_temporary_switch_of_one_engine() -> None:
    rundir = start_hub("canary")
    with AppliesEverything(rundir):
        wait_for_engine(rundir)
        found = answer("probe", "canary-flip", "--flag", "prefix_caching=off", "--for", "5m", "--json")
        assert (found["probe"], found["engines"]) == ("canary-flip", ["e0"])
        assert found["verdict"] in ("not_yet", "unclear")
        (asked, _) = logged()
        assert (asked["wanted"], asked["revert_s"], asked["why"]) == ("off", 300.0, "probe canary-flip")
        assert answer("probe", "--result", found["command"], "--json")["command"] == found["command"]
        assert rltop("probe", "canary-flip", "--flag", "nonsense=off").exit_code == 2


def test_the_dashboard_names_probes_in_its_log_and_marks_none_in_its_charts() -> None:
    asked = Change("c", "e0", "", "", "applied", 1.0, verb="probe", probe="config-diff", step=1)
    switch = Change("d", "e0", "prefix_caching", "off", "applied", 1.0, old="on", new="off", step=1)
    assert describe(asked) == "probe config-diff"
    history = StepColumns()
    history.update({number: Step(number, float(number), None, False, {}) for number in range(4)})
    shown = pictures.picture(changes={change_key(change): change for change in (asked, switch)})
    assert [mark.label for mark in marks(shown, history)] == ["pc-"]
