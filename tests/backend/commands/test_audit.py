"""The audit log: every command once, whichever process ends; a failing disk is an event, never a crash."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.commands.audit import AuditFile, AuditLine
from rltop.backend.commands.lifecycle import GRACE_S, RESTORE_S
from rltop.collectors.contract import wire
from tests.backend.commands.test_lifecycle import applied, ask_set, fleet, update
from tests.support.hub_core import Hub
from tests.support.hub_messages import Source


def successor(hub: Hub, *engines: str, name: str = "hub-2", disk: list[AuditLine] | None = None) -> Hub:
    """The hub that is started after this one was killed, with reconnected engines."""
    after = Hub(name)
    after.now = hub.now
    after.restore(hub.lines if disk is None else disk)
    for engine in engines:
        after.engine(engine)
    after.later()
    return after


def events(hub: Hub, engine: str = "e0") -> list[str]:
    return [line.event for line in hub.lines if line.engine == engine]


def test_a_command_is_logged_when_requested_and_when_closed() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(who="ann", host="h", why="trial", revert_s=600.0))
    hub.say("e0", update(answer.command or "", "accepted"))
    hub.say("e0", applied(answer.command or ""))
    hub.engine("e0", commands=[applied(answer.command or "")])
    asked, closed = hub.lines
    assert (asked.event, asked.who, asked.host, asked.why, asked.wanted) == ("requested", "ann", "h", "trial", "off")
    assert (closed.event, closed.old, closed.new, closed.engine_step) == ("applied", "on", "off", 41)
    assert (closed.in_flight, closed.lost_requests, closed.policy_version) == (7, 0, 3)
    assert (closed.who, closed.revert_s, closed.hub) == ("ann", 600.0, "hub-1")
    assert closed.at == audit.iso(hub.now) == "1970-01-01T00:16:40.000Z"


def test_the_next_hub_does_not_log_closed_changes_again() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(who="ann", why="trial"))
    hub.say("e0", applied(answer.command or ""))
    after = successor(hub)
    after.engine("e0", commands=[applied(answer.command or "")])
    after.later()
    assert after.lines == []
    assert (after.change.state, after.change.who, after.change.why, after.change.old) == (
        "applied", "ann", "trial", "on",
    )  # fmt: skip
    assert not any("applied" in text for text in after.texts)


def test_the_next_hub_learns_the_outcome_of_an_open_command_and_its_requester() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(who="ann", why="trial"))
    after = successor(hub)
    after.engine("e0", commands=[applied(answer.command or "")])
    after.later(RESTORE_S + GRACE_S + 1)
    assert events(after) == ["applied"]
    assert (after.change.state, after.change.who, after.change.why) == ("applied", "ann", "trial")


def test_the_next_hub_closes_a_command_unknown_to_the_engine_without_sending_it() -> None:
    hub = fleet("e0")
    hub.ask(ask_set())
    after = successor(hub, "e0")
    assert not [e for e in after.say("e0", wire.Register(wire.PROTO, "e0", "life-1", "engine")) if "Command(" in str(e)]
    after.later(RESTORE_S + GRACE_S)
    after.engine("e0")
    after.later(0.1)
    assert events(after) == ["timed_out"]
    assert after.change.reason.startswith("engine e0 does not know the command")
    assert after.change.new == "on"  # its current value


def test_the_next_hub_tracks_an_open_command_that_the_engine_repeats() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set())
    hub.say("e0", update(answer.command or "", "draining"))
    after = successor(hub, "e0")
    after.say("e0", update(answer.command or "", "draining"))
    after.later()
    assert after.change.state == "draining"
    after.say("e0", applied(answer.command or ""))
    assert events(after) == ["applied"]


def test_a_revert_without_a_hub_is_logged_later_with_the_requester_of_the_switch() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(who="ann", host="h", revert_s=60.0))
    hub.say("e0", update(answer.command or "", "applied", old="on", new="off", reverts_at=hub.now + 60))
    after = successor(hub)
    revert = update(
        f"{answer.command}/revert", "applied", old="off", new="on", reverts=answer.command or "", time=hub.now + 60
    )
    after.engine("e0", commands=[applied(answer.command or ""), revert])
    after.engine("e0", commands=[applied(answer.command or ""), revert])
    (line,) = after.lines
    assert (line.event, line.who, line.host, line.reverts) == ("reverted", "ann", "h", answer.command)


def test_a_half_switched_fleet_is_reported_once_across_hubs() -> None:
    hub = fleet("e0", "e1")
    answer, _ = hub.ask(ask_set())
    command = answer.command or ""
    hub.say("e0", applied(command))
    hub.say("e1", update(command, "refused", "e1", old="on", new="on"))
    assert hub.lines[-1].event == audit.HALF_SWITCHED
    assert successor(hub).lines == []
    del hub.lines[-1]  # killed between the two writes
    after = successor(hub)
    assert [line.event for line in after.lines] == [audit.HALF_SWITCHED]
    assert any("half switched" in text for text in after.texts)


def test_a_late_report_corrects_the_log_with_a_line_of_its_own() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(timeout_s=1.0))
    hub.later(1.0 + GRACE_S + 0.1)
    hub.say("e0", applied(answer.command or ""))
    assert [(line.event, line.corrects) for line in hub.lines] == [
        ("requested", ""), ("timed_out", ""), ("applied", "timed_out"),
    ]  # fmt: skip


CALLS = st.lists(
    st.sampled_from(["accepted", "draining", "applied", "refused", "state", "hub dies", "engine dies", "time", "ask"]),
    max_size=25,
)


@settings(max_examples=300)
@example(["hub dies", "time", "time", "hub dies", "applied"], True)
@given(CALLS, st.booleans())
def test_every_command_is_closed_once_whatever_is_repeated_late_or_lost(calls: list[str], delivered: bool) -> None:
    """The first outcome that an engine reports is final; it repeats the same one to every hub."""
    hub, end = fleet("e0"), None
    answer, _ = hub.ask(ask_set())
    command = answer.command or ""
    disk: list[AuditLine] = []
    for number, call in enumerate(calls):
        if call in ("accepted", "draining") and delivered and end is None:
            hub.say("e0", update(command, call))
        elif call in ("applied", "refused") and delivered:
            end = end or (applied(command) if call == "applied" else update(command, "refused", old="on", new="on"))
            hub.say("e0", end)
        elif call == "state":
            hub.engine("e0", commands=[end] if end else [])
        elif call == "hub dies":
            disk += hub.lines
            hub = successor(hub, "e0", name=f"hub-{number}", disk=disk)
        elif call == "engine dies" and end is None:
            delivered = False
            hub.sources["e0"] = Source("e0", f"life-{number}")
            hub.engine("e0")
        elif call == "time":
            hub.later(7.0)
            hub.engine("e0", commands=[end] if end else [])
        elif call == "ask" and not disk:
            hub.ask(ask_set())  # the same question again
    hub.later(100.0)
    disk += hub.lines
    mine = [line for line in disk if line.command == command]
    closed = [line for line in mine if line.event != "requested"]
    assert [line.event for line in mine].count("requested") == 1
    assert [line.corrects for line in closed[1:]] == [line.event for line in closed[:-1]]
    assert len(closed) == 1 or closed[0].event == "timed_out"
    assert closed[0].corrects == ""
    if end is not None:
        assert closed[-1].event == end.state
    assert hub.picture.changes[f"{command}@e0"].state == closed[-1].event


# --- the file -----------------------------------------------------------------------------------------------------


def lines_of(*commands: str) -> list[AuditLine]:
    changes = [api.Change(command, "e0", "prefix_caching", "off", "applied", 1.0, why="öäü\n") for command in commands]
    return [audit.line_of(change, 2.0, "h") for change in changes]


def test_written_lines_are_read_back_and_only_the_owner_has_access(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert audit.read(path) == ([], 0)
    file = AuditFile(path)
    assert file.write(lines_of("a")) == ""
    assert file.write(lines_of("b", "c")) == ""
    assert audit.read(path) == (lines_of("a", "b", "c"), 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [json.loads(line)["command"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@given(st.integers(0, 400))
def test_a_torn_line_is_skipped_and_whole_lines_are_read(tmp_path_factory: Any, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "audit.jsonl"
    AuditFile(path).write(lines_of("a", "b"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    kept = lines_of("a", "b")[: 2 if cut <= 1 else 1]
    assert audit.read(path) == (kept, 1 if cut > 1 else 0)
    AuditFile(path).write(lines_of("c"))
    assert audit.read(path)[0] == [*kept, *lines_of("c")]


def test_lines_wait_while_the_disk_is_full_and_are_written_later(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    file = AuditFile(path)
    assert "No space left" in file.write(lines_of("a"))
    assert "No space left" in file.write(lines_of("b"))
    path.unlink()
    assert file.write() == ""
    assert audit.read(path) == (lines_of("a", "b"), 0)
    assert not file.waiting


def test_a_log_that_cannot_be_written_or_read_is_an_event() -> None:
    hub = fleet("e0")
    for _ in range(3):
        hub.state.log.audit_written("audit.jsonl: No space left on device", 2, hub.now)
    hub.state.log.audit_written("", 0, hub.now)
    hub.later()
    shown = [(event.severity, event.text) for event in hub.picture.events if event.kind == "audit"]
    assert shown == [
        ("error", "the audit log can't be written, 2 lines wait: audit.jsonl: No space left on device"),
        ("info", "the audit log is written again, nothing is missing"),
    ]
    hub.restore([], bad=2)
    hub.later()
    assert "2 lines of the audit log can't be read" in hub.texts[-1]


def test_a_line_with_unknown_fields_is_read_and_one_without_required_fields_is_not(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditFile(path).write(lines_of("a"))
    newer = {**json.loads(path.read_text()), "a field": "of a later version"}
    path.write_text(json.dumps(newer) + "\n" + '{"command": "b"}\n[]\n\xff\n')
    assert audit.read(path) == (lines_of("a"), 3)


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "1970-01-01T00:00:00.000Z"), (1.9996, "1970-01-01T00:00:02.000Z")])
def test_times_are_utc_to_the_millisecond(seconds: float, text: str) -> None:
    assert audit.iso(seconds) == text


def test_a_long_log_restores_the_newest_changes() -> None:
    many = lines_of(*(f"c{number}" for number in range(api.MAX_CHANGES + 5)))
    assert next(iter(audit.changes_of(many))) == "c5@e0"
    assert len(audit.changes_of(many)) == api.MAX_CHANGES


def test_a_device_file_is_not_read_as_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="not a regular file"):
        audit.read(path)
