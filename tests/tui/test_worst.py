"""``rltop worst`` and the decoding of tokens: what a person reads, and JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api import Engine
from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.backend.client.live import Client
from rltop.collectors.contract import wire
from rltop.collectors.transport.sender import Message, Sender
from rltop.tui.cli import main as cli
from rltop.tui.cli.worst import text
from rltop.tui.tokens.decode import as_id, decoder, printable
from rltop.tui.tokens.gap_style import style
from rltop.tui.tokens.token_text import level, mark
from tests.support import pictures
from tests.support.hub_messages import Trained, Written, engine_state, rollouts, sequences
from tests.tui.cli.test_cli import home, start_hub

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


def test_equal_tokens_and_sequences_are_listed_once() -> None:
    tokens = [
        TOKEN,
        *(msgspec.structs.replace(TOKEN, number=n) for n in (6, 7)),
        msgspec.structs.replace(TOKEN, id=13, number=8),
    ]
    lines = text(Samples(3, "abs_diff", 64, 1500, tokens=tokens), as_id, 8).splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [["7", "8>>12<<9"], ["7", "8>>13<<9"]]
    assert lines[2].split()[-3] == "3x"
    sequences = [SEQUENCE, msgspec.structs.replace(SEQUENCE, number=9)]
    assert text(Samples(3, "worst", 64, 1500, sequences), as_id).splitlines()[2].startswith("2x row 0/5")


def test_empty_samples_are_named_as_such() -> None:
    assert text(Samples(3, "worst"), as_id).endswith("no such samples are kept")


@pytest.mark.parametrize(
    ("diff", "sign"),
    [(0.0, ""), (-0.049, ""), (0.05, "↑"), (-0.25, "↓↓"), (1.0, "↑↑↑"), (-7.0, "↓↓↓"), (math.nan, "?")],
)
def test_marks_grow_with_the_gap(diff: float, sign: str) -> None:
    assert mark(diff) == sign
    assert (level(diff) > 0) == bool(sign) == bool(style(diff))  # no fact by colour alone


@given(st.text())
def test_the_text_of_a_token_is_always_printable(found: str) -> None:
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


TEXTS = ["The quick brown fox jumps over the lazy dog.", "def f(x):\n\treturn x + 1\n", "naïve café 東京 🙂 "]


def trained(kind: str) -> Any:
    """A BPE tokenizer that has learnt ``TEXTS``: of bytes, as GPT-2's and Qwen's are, or of pieces, as Llama-2's is."""
    tokenizers = pytest.importorskip("tokenizers")
    pre, end = tokenizers.pre_tokenizers, tokenizers.decoders
    if kind == "bytes":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer, made.decoder = pre.ByteLevel(add_prefix_space=False), end.ByteLevel()
        begin, special = pre.ByteLevel.alphabet(), ["<|im_start|>"]
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
        made.pre_tokenizer = pre.Metaspace()
        made.decoder = end.Sequence([end.Replace("▁", " "), end.ByteFallback(), end.Fuse(), end.Strip(" ", 1, 0)])
        begin, special = [], ["<unk>", "<|im_start|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=begin, show_progress=False
    )
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_tokens_of_a_real_tokenizer_read_as_their_text(kind: str, tmp_path: Path) -> None:
    made = trained(kind)
    made.save(str(tmp_path / "tokenizer.json"))
    decode = decoder([engine_of(str(tmp_path))])
    for line in TEXTS[: 3 if kind == "bytes" else 1]:
        shown = "".join(decode(token) for token in made.encode(line).ids)
        assert shown.lstrip() == printable(line).lstrip()
    assert decode(made.token_to_id("<|im_start|>")) == "<|im_start|>"
    parts = made.encode("日").ids[-3:]  # not learnt: three bytes, none of them a character
    assert [decode(token) for token in parts] == [f"<{token}>" for token in parts]
    assert decode(99_999) == "99999"


def test_without_a_tokenizer_tokens_are_numbers(tmp_path: Path) -> None:
    assert decoder([]) is as_id
    assert decoder([engine_of("some/model")]) is as_id
    assert as_id(5) == "5"


def test_the_command_prints_the_text_around_a_token_that_the_models_tokenizer_knows(home: Path, tmp_path: Path) -> None:
    made = trained("bytes")
    made.save(str(tmp_path / "tokenizer.json"))
    rundir = start_hub("text")
    prompt, answer = made.encode("The quick brown").ids, made.encode(" fox jumps\n").ids
    rollout = [-1.0] * len(answer)
    row = Trained(answer, [1] * len(answer), rollout, [-3.0, *rollout[1:]], prompt)
    trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)
    engine = Sender[Message](rundir, "e0", "engine", lambda _, items: items)
    for sender in (engine, trainer):
        sender.start()
    engine.offer("all", 100, (engine_state("e0", fingerprint={"model": str(tmp_path)}), {}))
    engine.offer("all", 100, rollouts([Written(prompt, answer, rollout, engine="e0")]))
    with Client(rundir) as client:
        assert client.wait(lambda c: c.view is not None and "e0" in c.view.engines, 30)
        trainer.offer("all", 100, sequences([row]))
        trainer.offer("all", 100, (wire.StepClosed(0, 0, 1, 3), {}))
        assert client.wait(lambda c: c.view is not None and bool(c.view.steps), 30)
        tokens = CliRunner().invoke(cli.main, ["worst", "--limit", "1"]).output.splitlines()
        sequence = CliRunner().invoke(cli.main, ["worst", "--kind", "worst"]).output
    for sender in (engine, trainer):
        sender.close(5)
    assert tokens[-1].endswith("The quick brown>> fox<< jumps↵")
    assert "fox↓↓↓ jumps↵" in sequence
    assert "The quick brown" in sequence


def test_the_command_prints_the_samples_of_a_hub(home: Path) -> None:
    rundir = start_hub("worst")
    row = Trained([1, 2, 3], [0, 1, 1], [-1.0, -2.0], [-1.0, -3.5])
    one = Written([1], [2, 3], [-1.0, -2.0], engine="e0")
    trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)
    engine = Sender[Message](rundir, "e0", "engine", lambda _, items: items)
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
        "Error: no sample of step 9 is stored; there are 1 steps from 0 to 0\n",
    )
    assert "1 of 1 sequences found among the rollouts (1 whole)" in status.output
    assert "1 of 1 copies of the rollout logprobs are equal to the engine's" in status.output
