"""No text of another process reaches the terminal, or a report, with characters that a terminal interprets."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.client.live import Client
from rltop.backend.util.printable import KEPT, escaped, one_line
from rltop.collectors.contract import wire
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from rltop.tui.cli import main as cli
from rltop.tui.cli import output
from tests.support.harness import wait_shown
from tests.support.hub_messages import Trained, engine_state, sequences
from tests.support.receiver import run_directory

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b5m\u202e[@click=app.bell]x[/]\r\n"


@given(st.text())
def test_escaped_text_has_no_character_that_a_terminal_interprets(text: str) -> None:
    shown = escaped(text)
    assert all(c.isprintable() or c in KEPT for c in shown)
    assert [c for c in text if c.isprintable()] == [c for c in text if c.isprintable() and c in shown]
    assert one_line(text).isprintable()
    assert len(one_line(text)) == len(text)


def test_commands_print_through_one_function() -> None:
    folder = Path(output.__file__).parent
    for file in folder.glob("*.py"):
        if file.name != "output.py":
            assert not re.search(r"click\.s?echo|\bprint\(|stdout\.write", file.read_text()), file.name


@pytest.fixture(scope="module")
def hostile_run() -> Iterator[RunDir]:
    """A run of which every text is hostile: engines, facts, flags, reasons, metrics."""
    with run_directory() as rundir:
        ensure_hub(rundir)
        name = f"e0{HOSTILE}"
        flags = {"prefix_caching": wire.FlagState(f"on{HOSTILE}", False, f"why{HOSTILE}", HOSTILE)}
        update = wire.CommandUpdate(
            f"c1{HOSTILE}",
            name,
            "prefix_caching",
            "applied",
            HOSTILE,
            HOSTILE,
            HOSTILE,
            time=time.time(),
            detail=HOSTILE,
        )
        state = engine_state(
            name, host=HOSTILE, version_source=HOSTILE, weight_label=HOSTILE, flags=flags, commands=[update],
            fingerprint={"vllm_version": f"0{HOSTILE}", "dtype": HOSTILE, HOSTILE: HOSTILE},
            timers=[wire.Timer(f"c1{HOSTILE}", "set", HOSTILE, HOSTILE, time.time() + 500)],
        )  # fmt: skip
        engine = Sender[Message](rundir, name, "engine", lambda _, items: items)
        trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)
        rows, arrays = sequences([Trained([1, 2, 3], [1] * 3, [-0.1] * 3, [-0.2] * 3, [1, 2])])
        closed = wire.StepClosed(0, 0, 1, 1, {f"loss{HOSTILE}": 1.0, HOSTILE: 2.0})
        facts = wire.TrainerFacts(0, {"dtype": HOSTILE, "model": HOSTILE})
        of_trainer: list[Message] = [(facts, {}), (rows, arrays), (closed, {})]
        of_engine: list[Message] = [(state, {})]
        for sender, messages in ((engine, of_engine), (trainer, of_trainer)):
            sender.start()
            for message in messages:
                sender.offer("all", 1000, message)
        with Client(rundir) as client:
            wait_shown(client, lambda c: c.view is not None and 0 in c.view.steps and name in c.view.engines)
        engine.close(5)
        trainer.close(5)
        yield rundir
        with Client(rundir) as client:
            client.stop_hub()


COMMANDS = [
    ["status", "RUN"], ["status", "--json", "RUN"], ["fingerprint", "RUN"], ["audit", "RUN"],
    ["alarms", "RUN"], ["attribution", "RUN"], ["worst", "RUN"], ["diagnose", "--tests", "RUN"],
    ["effect", "--run", "RUN"], ["set", "prefix_caching", "off", "--run", "RUN"],
    ["probe", "token-echo", "--run", "RUN"],
    ["report", "RUN", "-o", "FILE"], ["export", "RUN", "--what", "events", "--to", "FILE"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_no_command_prints_what_a_terminal_interprets(command: list[str], hostile_run: RunDir, tmp_path: Path) -> None:
    places = {"RUN": str(hostile_run.path), "FILE": str(tmp_path / "out.html")}
    result = CliRunner().invoke(cli.main, [places.get(word, word) for word in command])
    assert "No such option" not in result.output
    assert "Traceback" not in result.output
    assert result.output
    assert [c for c in result.output if not c.isprintable() and c not in KEPT] == []
    if command[0] == "report":
        page = (tmp_path / "out.html").read_text()
        assert [c for c in page if not c.isprintable() and c not in KEPT] == []
