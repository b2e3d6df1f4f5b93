"""A diagnosis through the hub's core, a store, and the command line: recorded runs with real faults."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from functools import cache
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from rltop.backend import api
from rltop.backend.api.verdict import OLD_CHECK_IDS, Verdict
from rltop.backend.client.replay import SAMPLE, Replay
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.store.aggregates import aggregate_rows
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.stored_diagnosis import diagnosis as stored_verdict
from rltop.backend.store.stored_diagnosis import diagnosis_input
from rltop.backend.store.write import Writer
from rltop.backend.text import verdict_text
from rltop.tui.cli.main import main
from tests.support.fault_recordings import load, replay, seed_of
from tests.support.hub_core import Hub
from tests.support.pictures import START
from tests.tui.cli.test_cli import home, start_hub

__all__ = ["home"]


@cache
def hub(fault: str) -> Hub:
    return replay(load(f"fault-{fault}"), seed_of(f"fault-{fault}"))


def diagnosis(fault: str, step: int | None = None) -> Verdict:
    answer, _ = hub(fault).ask(api.AskDiagnosis("q", step))
    assert answer.diagnosis is not None, answer.error
    return answer.diagnosis


def store(directory: Path, fault: str) -> Path:
    """A store of the run, as its hub would have written it."""
    told = hub(fault)
    writer = Writer(directory / NAME, "run", "hub-1", START)
    for frame in told.frames:
        writer.write([frame], [list(aggregate_rows(told.state.frames.aggregates(frame)))])
    writer.close()
    return directory / NAME


def rltop(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_hub_reports_cause_and_engines() -> None:
    found = diagnosis("lying-replica")
    assert found.verdict in ("fault", "undecided")  # twelve steps of one engine: others may fit, too
    first = found.causes[0]
    assert (first.id, first.code, first.engines) == ("lying-replica", "B6", ["e1"])
    assert first.evidence and first.remedy
    assert found.step == max(hub("lying-replica").steps)


def test_a_hub_reports_a_healthy_run() -> None:
    assert (diagnosis("healthy").verdict, diagnosis("healthy").causes) == ("healthy", [])


def test_a_diagnosis_can_be_of_an_earlier_step() -> None:
    steps = sorted(hub("lying-replica").steps)
    found = diagnosis("lying-replica", steps[0])
    assert (found.step, found.steps) == (steps[0], 1)


def test_a_step_that_is_not_kept_is_refused_with_those_that_are() -> None:
    answer, _ = hub("healthy").ask(api.AskDiagnosis("q", 10_000))
    assert answer.diagnosis is None
    assert answer.error is not None and "step 10000 is not kept; kept steps: 6 to 17" in answer.error


def test_before_the_first_step_the_verdict_is_undecided() -> None:
    answer, _ = Hub().ask(api.AskDiagnosis("q"))
    assert answer.diagnosis is not None
    assert (answer.diagnosis.verdict, answer.diagnosis.step) == ("undecided", None)


@pytest.mark.parametrize("fault", ["lying-replica", "stale-replica"])
def test_a_store_gives_the_verdict_of_its_hub(fault: str, tmp_path: Path) -> None:
    path = store(tmp_path, fault)
    result = rltop("diagnose", str(path), "--json")
    told, live = json.loads(result.output), diagnosis(fault)
    assert result.exit_code == {"fault": 1, "undecided": 3}[live.verdict], result.output
    assert (told["run"], told["step"], told["verdict"]) == ("run", live.step, live.verdict)
    assert [cause["id"] for cause in told["causes"]] == [cause.id for cause in live.causes]


def test_a_verdict_with_former_check_ids_reads_as_one_with_current_ids(tmp_path: Path) -> None:
    verdict = stored_verdict(store(tmp_path, "lying-replica"))
    former = {current: old for old, current in OLD_CHECK_IDS.items()}
    built = msgspec.to_builtins(verdict)
    for finding in built["findings"]:
        finding["test"] = former.get(finding["test"], finding["test"])
    assert {finding["test"] for finding in built["findings"]} >= OLD_CHECK_IDS.keys()
    read = msgspec.json.decode(msgspec.json.encode(built), type=Verdict)
    assert read == verdict
    assert verdict_text.findings(read) == verdict_text.findings(verdict)


def test_a_store_gives_the_verdict_as_of_a_step(tmp_path: Path) -> None:
    path = store(tmp_path, "lying-replica")
    steps = sorted(hub("lying-replica").steps)
    told = json.loads(rltop("diagnose", str(path), "--json", "--step", str(steps[2])).output)
    assert (told["step"], told["steps"]) == (steps[2], 3)
    wrong = rltop("diagnose", str(path), "--step", "999")
    assert wrong.exit_code == 1
    assert "no step 999" in wrong.output


def test_the_exit_code_is_the_verdict_and_the_text_fits_a_screen(tmp_path: Path) -> None:
    healthy, wrong = tmp_path / "healthy", tmp_path / "wrong"
    for directory, fault in ((healthy, "healthy"), (wrong, "lying-replica")):
        directory.mkdir()
        store(directory, fault)
    fine = rltop("diagnose", str(healthy / NAME))
    assert (fine.exit_code, fine.output.splitlines()[0].split(" as of ")[0]) == (0, "run run: HEALTHY")
    bad = rltop("diagnose", str(wrong / NAME))
    assert bad.exit_code == {"fault": 1, "undecided": 3}[diagnosis("lying-replica").verdict]
    assert len(bad.output.splitlines()) <= 24
    assert "on e1" in bad.output
    whole = rltop("diagnose", str(wrong / NAME), "--tests")
    assert "engine_gap (gap of each engine against the others) on e1: outlier" in " ".join(whole.output.split())


def test_a_store_without_evidence_is_undecided_and_lists_missing_evidence(tmp_path: Path) -> None:
    path = store(tmp_path, "lying-replica")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM evidence")  # as of a hub that kept none
        connection.commit()
    result = rltop("diagnose", str(path))
    assert result.exit_code == 3
    assert "NOT ENOUGH EVIDENCE YET" in result.output


def test_the_recorded_sample_has_a_fault_between_healthy_parts() -> None:
    """Raw logprobs from step 32 on, and processed ones again from 46 on; two steps are sampled ahead."""
    sample = "backend/store/sample/sort.rltop.gz"
    for step in (30, 59):
        assert rltop("diagnose", sample, "--step", str(step)).exit_code == 0
    told = rltop("diagnose", sample, "--step", "45", "--json")
    assert told.exit_code == 1
    first = json.loads(told.stdout)["causes"][0]
    assert (first["code"], first["since_step"] in range(33, 37)) == ("A1", True)


def test_no_new_cause_appears_in_the_sample_after_its_fix() -> None:
    with Reader(SAMPLE) as reader:
        causes = {step: diagnose(diagnosis_input(reader, step)).causes for step in (46, 47, 50)}
    before = {cause.id: cause.since_step for cause in causes[46]}
    assert before["raw-logprobs"] in range(33, 37)
    for step in (47, 50):
        assert causes[step][0].id == "raw-logprobs"
        assert {cause.id: cause.since_step for cause in causes[step]}.items() <= before.items()
        assert (causes[step][0].command, causes[step][0].in_place) == ("", "rltop set logprobs_mode processed")


def test_a_replay_answers_as_of_what_it_shows(tmp_path: Path) -> None:
    played = Replay(Reader(store(tmp_path, "lying-replica")), speed=float("inf"))
    played.ask(api.AskDiagnosis("q"))
    found = played.answers["q"].diagnosis
    played.close()
    assert found is not None
    assert found.causes[0].id == "lying-replica"


def test_a_path_without_a_run_is_refused(tmp_path: Path) -> None:
    result = rltop("diagnose", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "no run" in result.output


@pytest.mark.usefixtures("home")
def test_a_live_hub_is_asked_and_not_its_store() -> None:
    start_hub("living")
    result = rltop("diagnose", "living")
    assert result.exit_code == 3, result.output
    assert result.output.startswith("run living: NOT ENOUGH EVIDENCE YET, before the first step (0 steps")
    refused = rltop("diagnose", "living", "--step", "3")
    assert refused.exit_code == 1
    assert "step 3 is not kept; kept steps: none" in refused.output
