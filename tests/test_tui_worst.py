"""``rltop worst`` and the decoding of tokens: what a person reads, and JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.client import Client
from rltop.backend.gaps.sampled import Samples, Sequence, Token
from rltop.backend.view import Engine
from rltop.collectors import wire
from rltop.collectors.sender import Sender
from rltop.tui.cli import main as cli
from rltop.tui.cli.worst import text
from rltop.tui.decode import as_id, decoder, printable
from rltop.tui.gaps import style
from rltop.tui.marks import level, mark
from tests import pictures
from tests.hub_messages import Trained, Written, rollouts, sequences
from tests.test_cli import home, start_hub

__all__ = ["home"]


def i4(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def f4(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


TOKEN = Token(3, 0, 5, 1, 3, 12, -0.5, -2.75, "e1", "r7", 41, 2, 30, 16, 1.0, i4(7, 8), i4(9))
SEQUENCE = Sequence(
    3, 0, 5, 3, 1, 1.125, 0.5, 1.0, ["e1"], ["r7"], ["whole"], "stop", 30, 16,
    i4(1, 2, 3), i4(11, 12, 60, 13), bytes([1, 1, 0, 1]),
    f4(-0.5, -0.5, -1.0), f4(-0.5, -2.75, math.nan), i4(41, 41, 41), i4(2, 2, 2),
)  # fmt: skip


def test_tokens_are_shown_with_their_gap_place_and_context() -> None:
    lines = text(Samples(3, "abs_diff", 64, 1500, tokens=[TOKEN]), as_id).splitlines()
    assert lines[0] == "step 3: 64 sequences, 1500 tokens"
    assert lines[2].split() == ["-2.2500", "-0.5000", "-2.7500", "e1", "41", "1/3", "7", "8>>12<<9"]


def test_sequences_mark_each_token_by_its_gap_without_colour() -> None:
    lines = text(Samples(3, "worst", 64, 1500, [SEQUENCE]), as_id).splitlines()
    assert lines[2] == (
        "row 0/5, e1, 3 tokens, |d| 1.125, k3 0.5, reward 1, 1 without a finite gap, "
        "16 of 30 prompt tokens cached, policy 41"
    )  # fmt: skip
    assert lines[3:] == ["  after …1 2 3", "  11 12↓↓↓ (60) 13?"]


def test_nothing_is_said_as_such() -> None:
    assert text(Samples(3, "worst"), as_id).endswith("nothing is kept of that")


@pytest.mark.parametrize(
    ("diff", "sign"),
    [(0.0, ""), (-0.049, ""), (0.05, "↑"), (-0.25, "↓↓"), (1.0, "↑↑↑"), (-7.0, "↓↓↓"), (math.nan, "?")],
)
def test_marks_grow_with_the_gap(diff: float, sign: str) -> None:
    assert mark(diff) == sign
    assert (level(diff) > 0) == bool(sign) == bool(style(diff))  # no fact by colour alone


@given(st.text())
def test_what_a_token_holds_can_not_move_the_cursor(found: str) -> None:
    assert printable(found).isprintable()
    assert len(printable(found)) == len(found)


def engine_of(model: str, name: str = "e0") -> Engine:
    return msgspec.structs.replace(pictures.engine(name), fingerprint={"model": model})


def test_tokens_become_text_by_the_tokenizer_of_the_model_that_all_engines_name(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hello": 0, "a\nb": 1, "?": 2}, unk_token="?"))
    made.save(str(tmp_path / "tokenizer.json"))
    decode = decoder([engine_of(str(tmp_path)), engine_of(str(tmp_path), "e1")])
    assert (decode(0), decode(1), decode(77)) == ("hello", "a↵b", "77")
    assert decoder([engine_of(str(tmp_path)), engine_of("other", "e1")]) is as_id
    (tmp_path / "tokenizer.json").write_text("no json")
    assert decoder([engine_of(str(tmp_path))]) is as_id


def test_without_a_tokenizer_tokens_are_numbers(tmp_path: Path) -> None:
    assert decoder([]) is as_id
    assert decoder([engine_of("some/model")]) is as_id
    assert as_id(5) == "5"


def test_the_command_prints_what_a_hub_keeps(home: Path) -> None:
    rundir = start_hub("worst")
    row = Trained([1, 2, 3], [0, 1, 1], [-1.0, -2.0], [-1.0, -3.5])
    one = Written([1], [2, 3], [-1.0, -2.0], engine="e0")
    trainer = Sender(rundir, "trainer/0", "trainer", lambda _, items: items)
    engine = Sender(rundir, "e0", "engine", lambda _, items: items)
    for sender in (engine, trainer):
        sender.start()
    engine.offer("all", 100, rollouts([one]))
    with Client(rundir) as client:
        trainer.offer("all", 100, sequences([row]))
        trainer.offer("all", 100, (wire.StepClosed(0, 0, 1, 3), {}))
        assert client.wait(lambda c: c.view is not None and bool(c.view.steps), 30)
        printed = CliRunner().invoke(cli.main, ["worst"])
        plain = CliRunner().invoke(cli.main, ["worst", "--kind", "worst", "--json"])
        refused = CliRunner().invoke(cli.main, ["worst", "--step", "9"])
        status = CliRunner().invoke(cli.main, ["status"])
    for sender in (engine, trainer):
        sender.close(5)
    assert "-1.5000" in printed.output
    found = json.loads(plain.stdout)
    assert found["sequences"][0]["trainer"] == [-1.0, -3.5]
    assert found["sequences"][0]["engines"] == ["e0"]
    assert (refused.exit_code, refused.output) == (
        1,
        "Error: nothing is kept of step 9; there are 1 steps from 0 to 0\n",
    )
    assert "1 of 1 sequences found among the rollouts (1 whole)" in status.output
    assert "1 of 1 copies of the recorded logprobs are equal to them" in status.output
