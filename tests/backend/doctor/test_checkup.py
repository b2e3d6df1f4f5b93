"""Findings about machines and runs, from facts that a test states; and the facts that are read from real processes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.doctor import doctor_text, run_findings
from rltop.backend.doctor.checkup import checkup
from rltop.backend.doctor.findings import Finding, problems
from rltop.backend.doctor.machine import Machine, this_machine
from rltop.backend.doctor.processes import HostProcess, scan
from rltop.backend.fleet.arguments import ARGUMENTS
from rltop.backend.join.reasons import REASONS
from rltop.collectors.contract.engine_processes import EngineProcess
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.rundir import RunDir, for_run
from rltop.collectors.contract.wire import Counts, FlagState
from rltop.collectors.trainer.collector import TrainerCollector
from rltop.collectors.transport.sender import Message, Sender
from rltop.collectors.vllm.patches import ESSENTIAL, PATCH_POINTS
from rltop.tui.cli import main as cli
from tests.support.harness import ended, wait_shown
from tests.support.hub_messages import engine_state
from tests.support.pictures import engine, healthy, no_steps, picture, step
from tests.support.receiver import run_directory

TRAINED = {"sequences": Counts(40, 40, 0, 0), "step": Counts(40, 40, 0, 0)}
PASSED = [argument.name for argument in ARGUMENTS]


def machine(*processes: HostProcess, **facts: Any) -> Machine:
    known = {"packages": {"rltop": "1", "vllm": "0.32.0", "numba": "1", "textual": "8"}} | facts
    return Machine("node-a", "/home/runs", processes=list(processes), **known)


def process(pid: int = 4000, **facts: Any) -> HostProcess:
    usual = {"packages": {"rltop": "1", "vllm": "0.32.0"}, "environment": "/env/site-packages"}
    own = {"variables": {"RLTOP_HOME": "/home/runs", "RLTOP_RUN": "sort"}}
    engine_core: dict[str, Any] = {"is_engine": True, "title": "VLLM::EngineCore"}
    return HostProcess(pid, **engine_core | usual | own | facts)


def run(**changes: Any) -> api.Snapshot:
    """A run in which nothing is wrong."""
    found = healthy(20, 1)
    trainer = msgspec.structs.replace(
        found.trainer, counts=TRAINED, passed=PASSED, facts={"dtype": "bfloat16"}, software={"rltop": "1"}
    )
    joined = {n: msgspec.structs.replace(one, joins={"whole": 16}) for n, one in found.steps.items()}
    parts: dict[str, Any] = {"trainer": trainer, "steps": joined, "engines": {"e0": engine(software={"rltop": "1"})}}
    return msgspec.structs.replace(found, **parts | changes)


def said(findings: list[Finding], level: str = "problem") -> str:
    return "\n".join(f"{one.text} {one.advice}" for one in findings if one.level == level)


# --- the machine --------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_problem_and_no_note() -> None:
    found = checkup(machine(process()), None, run(), "")
    assert problems(found) == []
    assert [one.section for one in found if one.level == "note"] == ["vLLM in this environment"]
    assert "attached as e0" in said(found, "ok")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"packages": {"vllm": "0.32.0"}}, "rltop is not installed in its environment, /env/site-packages"),
        (
            {"variables": {"RLTOP_HOME": "/else"}},
            "reports nothing in this RLTOP_HOME it started with runs in /else",
        ),
        ({"variables": {"VLLM_PLUGINS": "other, more"}}, "VLLM_PLUGINS=other, more does not name rltop"),
    ],
)
def test_an_engine_process_that_is_not_observed_is_named_with_the_reason(facts: dict[str, Any], text: str) -> None:
    found = checkup(machine(process(77, **facts)), None, run(), "")
    assert text in said(found)
    assert "77 (" in said(found)
    assert len(problems(found)) == 1


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (EngineProcess(77, "1", "m", "dormant", ("e7",)), "dormant (e7) `rltop attach RUN --pid 77` attaches it"),
        (EngineProcess(77, "1", "m", "loading"), "loading (no engine yet)"),
        (EngineProcess(77, "1", "m", "attached", ("e7",), run="/x/more"), "of run /x/more, which is not the one shown"),
        (EngineProcess(77, "1", "m", "loading", run="/home/runs/sort"), "loading (no engine yet), of this run"),
    ],
)
@pytest.mark.parametrize("titled", [True, False])
def test_the_state_that_a_plugin_reports_is_shown(plugin: EngineProcess, text: str, titled: bool) -> None:
    facts = machine(*[process(77, variables={})] * titled, plugins=[plugin])
    found = checkup(facts, None, run(), "", "/home/runs/sort")
    assert problems(found) == []
    assert text in said(found, "note")


def test_an_attached_engine_that_the_hub_does_not_know_is_a_problem() -> None:
    plugin = EngineProcess(77, "1", "m", "attached", ("e7",), run="/home/runs/sort")
    found = checkup(machine(process(77), plugins=[plugin]), None, run(), "", "/home/runs/sort")
    assert "attached (e7), but the hub has not heard of it" in said(found)


def test_a_process_that_is_kept_out_is_no_problem() -> None:
    found = checkup(machine(process(77, variables={"RLTOP_DORMANT": "0"})), None, run(), "")
    assert problems(found) == []
    assert "kept out by RLTOP_DORMANT=0" in said(found, "note")


@pytest.mark.parametrize("where", ["the run shown", "a live run", "this shell's RLTOP_RUN"])
def test_two_runs_of_one_name_in_different_homes_are_a_problem(where: str) -> None:
    other = process(77, is_engine=False, variables={"RLTOP_HOME": "/other", "RLTOP_RUN": "sort"})
    facts: dict[str, dict[str, Any]] = {
        "the run shown": {},
        "a live run": {"live_runs": ["sort"]},
        "this shell's RLTOP_RUN": {"variables": {"RLTOP_RUN": "sort"}},
    }
    found = checkup(machine(other, **facts[where]), None, run() if where == "the run shown" else None, "")
    assert "run sort in /other is used by process 77; this shell uses /home/runs" in said(found)
    assert "same RLTOP_HOME" in said(found)


def test_a_run_of_another_name_elsewhere_is_only_mentioned() -> None:
    other = process(77, is_engine=False, variables={"RLTOP_HOME": "/other", "RLTOP_RUN": "more"})
    found = checkup(machine(other), None, run(), "")
    assert problems(found) == []
    assert "RLTOP_HOME=/other rltop doctor more" in said(found, "note")


def test_engines_with_one_name_in_one_run_are_named() -> None:
    same = {"RLTOP_HOME": "/home/runs", "RLTOP_RUN": "sort", "RLTOP_ENGINE": "e0"}
    two = machine(process(4000, variables=same), process(4001, variables=same))
    assert "processes 4000, 4001 have the same run and RLTOP_ENGINE=e0" in said(checkup(two, None, run(), ""), "note")
    apart = process(4001, variables=same | {"RLTOP_RUN": "more"})
    assert "RLTOP_ENGINE" not in said(checkup(machine(process(4000, variables=same), apart), None, run(), ""), "note")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"has_plugin": False}, "vLLM does not find rltop's plugin here"),
        ({"variables": {"VLLM_PLUGINS": ""}}, "does not name rltop"),
        ({"variables": {"RLTOP_RUN": "a b"}}, "run name 'a b': use 1 to 64 letters"),
        ({"variables": {"RLTOP_HUB": "tcp://1.2.3.4:5"}}, "network addresses are refused"),
    ],
)
def test_an_environment_in_which_the_collector_stays_off_is_a_problem(facts: dict[str, Any], text: str) -> None:
    assert text in said(checkup(machine(**facts), None, run(), ""))


def test_a_light_environment_is_no_problem_and_says_what_it_can_not_do() -> None:
    found = checkup(machine(packages={"rltop": "1"}), None, run(), "")
    assert problems(found) == []
    assert "pip install 'rltop[hub]'" in said(found, "note")
    assert "pip install 'rltop[tui]'" in said(found, "note")


def test_an_environment_without_vllm_needs_no_plugin() -> None:
    assert problems(checkup(machine(packages={"rltop": "1"}, has_plugin=False), None, run(), "")) == []


def test_without_a_run_the_live_ones_are_named_and_a_named_run_must_exist() -> None:
    found = checkup(machine(live_runs=["one", "two"]), None, None, "")
    assert problems(found) == []
    assert "live in /home/runs: one, two" in said(found, "note")
    assert "no run 'x'" in said(checkup(machine(), None, None, "no run 'x'"))


# --- the run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", PATCH_POINTS, ids=lambda point: point.name)
def test_a_missing_patch_point_is_a_problem_only_if_it_is_essential(point: Any) -> None:
    broken = engine(
        fingerprint={f"missing {point.name}": f"gone (unavailable: {point.provides})"}, software={"rltop": "1"}
    )
    found = checkup(machine(process()), None, run(engines={"e0": broken}), "")
    level = "problem" if point.name in ESSENTIAL else "note"
    assert f"{point.name} can't be observed: gone (unavailable: {point.provides})" in said(found, level)


@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS])
def test_a_flag_that_can_not_be_switched_is_listed_with_the_reason(flag: str) -> None:
    states = engine().flags | {flag: FlagState("on", False, "a reason of its own")}
    found = list(run_findings.run(run(engines={"e0": engine(flags=states)})))
    assert f"{flag} can't be switched: a reason of its own" in said(found, "note")
    assert sum("and can be switched" in one.text for one in found) == len(FLAGS) - 1


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"health": "silent"}, "problem", "no report for some seconds"),
        ({"faults": {"step": 3}}, "problem", "3 errors of the collector in step"),
        (
            {"finished": 8, "aborted": 2, "without_logprobs": 10},
            "problem",
            "none of its 10 requests asked for logprobs",
        ),
        ({"finished": 8, "without_logprobs": 3}, "note", "3 of 8 requests asked for no logprobs"),
        ({"finished": 0, "aborted": 0}, "note", "no request has finished yet"),
        ({"counts": {"rollouts": Counts(9, 2, 7, 0)}}, "note", "7 records did not fit"),
        ({"fingerprint": {"tokens read from": "each request's outputs"}}, "note", "read from each request's outputs"),
        ({"software": {"rltop": "2"}}, "note", "rltop differs: 1 in trainer; 2 in e0"),
    ],
)
def test_what_an_engine_reports(changes: dict[str, Any], level: str, text: str) -> None:
    found = list(run_findings.run(run(engines={"e0": engine(**{"software": {"rltop": "1"}} | changes)})))
    assert text in said(found, level)


@pytest.mark.parametrize("missing", [one for one in ARGUMENTS if one.cost], ids=lambda one: one.name)
def test_an_argument_that_the_trainer_does_not_pass_is_listed_with_its_cost(missing: Any) -> None:
    trainer = api.Trainer("live", 1, {"0": 0.0}, counts=TRAINED, passed=[n for n in PASSED if n != missing.name])
    assert [one.text for one in run_findings.trainer(trainer) if one.text.startswith("without")] == [
        f"without {missing.name}: {missing.cost}"
    ]


@pytest.mark.parametrize(
    ("trainer", "text"),
    [
        (api.Trainer(), "no trainer reports to this hub"),
        (api.Trainer("live", counts={"step": Counts(3)}), "step is called, sequences is not"),
        (api.Trainer("live", counts={"sequences": Counts(3)}), "sequences is called, step is not"),
    ],
)
def test_calls_that_a_trainer_does_not_make_are_a_problem(trainer: api.Trainer, text: str) -> None:
    assert text in said(list(run_findings.run(run(trainer=trainer))))


def test_a_run_without_engines_is_a_problem() -> None:
    assert "no engine reports to the hub of run sort" in said(list(run_findings.run(picture())))


@given(st.dictionaries(st.sampled_from([one.name for one in REASONS]), st.integers(1, 50)), st.integers(0, 50))
def test_every_reason_of_unjoined_rows_is_explained_with_advice(unjoined: dict[str, int], joined: int) -> None:
    last = msgspec.structs.replace(step(3), joins={"whole": joined} if joined else {}, unjoined=unjoined)
    found = list(run_findings.join(run(steps={3: last})))
    rows = joined + sum(unjoined.values())
    assert found[0].text.startswith(f"{joined} of {rows} rows of the last 1 steps joined")
    assert (found[0].level == "problem") == (2 * joined < rows)
    assert len(found) == 1 + len(unjoined)
    assert all(one.advice and one.text.split(" ")[1].rstrip(":") in unjoined for one in found[1:])


@given(st.lists(st.builds(Finding, st.sampled_from(["a", "b"]), st.sampled_from(["ok", "note", "problem"]),
                          st.text("abc -`\u2260", max_size=400), st.text("xyz ,", max_size=200))))  # fmt: skip
def test_text_fits_80_columns_unless_a_word_does_not(findings: list[Finding]) -> None:
    lines = doctor_text.as_text(findings).splitlines()
    assert all(len(line) <= 80 for line in lines)
    count = len(problems(findings))
    assert lines[-1].startswith(f"{count} problem" if count else "no problem")
    assert doctor_text.as_json(findings)["problems"] == count


@pytest.mark.parametrize("snapshot", [healthy(), no_steps(), picture()])
def test_any_snapshot_has_findings(snapshot: api.Snapshot) -> None:
    assert list(run_findings.run(snapshot))


# --- facts of real processes --------------------------------------------------------------------------------------

TITLED = """
import os, sys, setproctitle, numpy
setproctitle.setproctitle("VLLM::EngineCore")
print("titled", flush=True)
sys.stdin.read()
"""


def test_an_engine_core_is_found_with_its_packages_and_the_variables_of_its_ancestor() -> None:
    pytest.importorskip("setproctitle")
    script = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {TITLED!r}]).returncode)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RLTOP")} | {
        "RLTOP_RUN": "sort"
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "titled\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        found = {one.pid: one for one in scan()}
        core = found[int(children[0])]
        assert core.is_engine
        assert core.variables["RLTOP_RUN"] == "sort"
        assert core.packages["rltop"] == importlib.metadata.version("rltop")
        assert found[parent.pid].variables["RLTOP_RUN"] == "sort"
        assert not found[parent.pid].is_engine
    finally:
        parent.stdin.close()
        ended(parent)
        parent.stdout.close()


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path))
    monkeypatch.setenv("RLTOP_RUN", "sort")
    facts = this_machine()
    assert facts.home == str(tmp_path)
    assert facts.variables["RLTOP_RUN"] == "sort"
    assert facts.packages["rltop"] == importlib.metadata.version("rltop")
    assert facts.has_plugin
    assert facts.live_runs == []


# --- a real hub ---------------------------------------------------------------------------------------------------


class Engine:
    """An engine's end of the wire, which reports its state."""

    def __init__(self, rundir: RunDir) -> None:
        self.sender = Sender[Message](rundir, "e0", "engine", lambda _, items: items, periodic=self._report)
        self.sender.start()

    def _report(self) -> None:
        self.sender.offer("state", 100, (engine_state("e0", fingerprint={"missing finish": "gone"}), {}))


def is_complete(snapshot: api.Snapshot) -> bool:
    """Whether the hub knows everything that the doctor reports."""
    trainer, seen = snapshot.trainer, snapshot.engines.get("e0")
    return bool(snapshot.steps and trainer.counts and trainer.software and seen is not None and seen.software)


def test_a_real_run_is_checked_with_what_its_trainer_passes_and_the_versions_of_both_sides() -> None:
    rows: dict[str, Any] = {name: np.ones((1, 2)) for name in ("rollout_logprobs", "trainer_logprobs", "mask")}
    with run_directory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLTOP_HOME", str(home.path))
        rundir = for_run("sort")
        with TrainerCollector("sort") as trainer:
            side = Engine(rundir)
            trainer.sequences(0, token_ids=np.array([[1, 2]]), **rows, rewards=np.array([1.0]), clip_low=0.8)
            trainer.step(0)
            with Client(rundir) as client:
                wait_shown(client, lambda c: c.view is not None and is_complete(c.view))
                result = CliRunner().invoke(cli.main, ["doctor", "sort", "--json"])
                text = CliRunner().invoke(cli.main, ["doctor"])
                side.sender.close(5)
                client.stop_hub()
    answer = json.loads(result.stdout)
    of_section = {section: [one["text"] for one in answer["findings"] if one["section"] == section]
                  for section in ("engine e0", "trainer", "join")}  # fmt: skip
    version = importlib.metadata.version("rltop")
    assert f"rltop {version}" in of_section["engine e0"][0]
    assert f"rltop {version}" in of_section["trainer"][0]
    assert "finish can't be observed: gone" in of_section["engine e0"]
    assert "optional arguments passed: clip_low and clip_high, or clipped, rewards" in of_section["trainer"]
    assert of_section["join"][0] == "0 of 1 rows of the last 1 steps joined"
    assert result.exit_code == text.exit_code == 1
    assert answer["run"] == "sort"
    assert "no engine reported a rollout of this prompt" in " ".join(text.stdout.split())
    assert all(len(line) <= 80 for line in text.stdout.splitlines() if "/" not in line)


def test_a_named_run_without_a_hub_is_a_problem() -> None:
    with run_directory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLTOP_HOME", str(home.path))
        result = CliRunner().invoke(cli.main, ["doctor", "nosuch"])
    assert result.exit_code == 1
    assert "no run named 'nosuch'" in result.stdout


def test_a_run_that_the_environment_names_must_have_a_hub() -> None:
    with run_directory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLTOP_HOME", str(home.path))
        patch.delenv("RLTOP_HUB", raising=False)
        patch.setenv("RLTOP_RUN", "mine")
        named = CliRunner().invoke(cli.main, ["doctor", "--json"])
        patch.delenv("RLTOP_RUN")
        unnamed = CliRunner().invoke(cli.main, ["doctor", "--json"])
    sections = [[one for one in json.loads(r.stdout)["findings"] if one["section"] == "run"] for r in (named, unnamed)]
    assert [one[0]["level"] for one in sections] == ["problem", "note"]
    assert "'mine'" in sections[0][0]["text"]
