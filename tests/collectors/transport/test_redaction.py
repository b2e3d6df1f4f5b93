"""With redaction on, no token id leaves a process, and what the hub computes is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.exporters.recording import record
from rltop.backend.store.read import Reader
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import redaction_key
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.redaction import DOMAIN, ID_ARRAYS, VARIABLE, Redaction
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import wait_for, wait_shown
from tests.support.hub_core import Hub
from tests.support.hub_messages import engine_state
from tests.support.receiver import Receiver, run_directory
from tests.support.training import Training

IDS = stnp.arrays("<i4", st.integers(0, 50), elements=st.integers(-(2**31), 2**31 - 1))
KEYS = st.binary(min_size=32, max_size=32)
KINDS = ("sample", "worst", "abs_diff", "k3")
VOCABULARY = 2**24
"""Larger than that of any model."""


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@given(KEYS, IDS)
def test_pseudonyms_can_be_reversed_with_the_key_only_and_are_in_no_vocabulary(key: bytes, ids: Any) -> None:
    redaction = Redaction(key)
    pseudonyms = redaction.pseudonyms(ids)
    assert pseudonyms.dtype == np.int32 and pseudonyms.shape == ids.shape
    is_id = (ids >= 0) & (ids < DOMAIN)
    assert (pseudonyms[is_id] >= DOMAIN).all() and (pseudonyms[~is_id] == ids[~is_id]).all()
    assert (redaction.ids(pseudonyms)[is_id] == ids[is_id]).all()


def test_different_ids_get_different_pseudonyms_and_another_key_gives_others() -> None:
    ids = np.arange(200_000, dtype="<i4")
    one, other = (Redaction(bytes([number]) * 32).pseudonyms(ids) for number in (1, 2))
    assert np.unique(one).size == ids.size
    assert (one != other).mean() > 0.99
    assert abs(np.corrcoef(ids, one)[0, 1]) < 0.01  # neighbours are not neighbours


def test_the_hub_computes_the_same_from_pseudonyms() -> None:
    plain, redacted, redaction = Hub(), Hub(), Redaction(bytes(range(32)))
    training = Training()
    for _ in range(6):
        for source, body, arrays in training.step():
            plain.send(source, body, arrays)
            redacted.send(source, body, redaction.arrays(arrays))
    for hub in (plain, redacted):
        hub.settle()
    assert len(plain.steps) >= 5 and plain.steps.keys() == redacted.steps.keys()
    for number, step in plain.steps.items():
        assert step.values["joined_fraction"] == 1.0
        np.testing.assert_equal(redacted.steps[number].values, step.values)
        np.testing.assert_equal(redacted.steps[number].engines, step.engines)


def test_a_probe_sends_the_engine_its_own_ids() -> None:
    redaction, ids = Redaction(bytes(32)), np.array([5, 70_000, 3], "<i4")
    sent = redaction.pseudonyms(ids).tobytes()
    command = wire.Command("c", "", "", 0.0, "probe", passages=(wire.Passage("r", sent, 1),))
    assert redaction.command(command).passages == (wire.Passage("r", ids.tobytes(), 1),)
    odd = wire.Passage("r", b"abcde", 1)
    assert len(redaction.command(wire.Command("c", "", "", 0.0, passages=(odd,))).passages[0].ids) == 5


def collectors(rundir: RunDir) -> dict[str, Sender[Message]]:
    made = {}
    for source, role in (("e0", "engine"), ("e1", "engine"), ("trainer/0", "trainer")):
        made[source] = Sender[Message](rundir, source, role, lambda _, items: items)
        made[source].start()
    return made


def send(senders: dict[str, Sender[Message]], steps: int) -> set[int]:
    """A training; returns its token ids."""
    training, ids = Training(), set[int]()
    for engine in ("e0", "e1"):
        senders[engine].offer("state", 100, (engine_state(engine), {}))
    for _ in range(steps):
        for source, body, arrays in training.step():
            for name in ID_ARRAYS & arrays.keys():
                ids |= set(arrays[name].tolist())
            senders[source].offer("data", 100, (body, arrays))
    return ids


def close(senders: dict[str, Sender[Message]]) -> None:
    for sender in senders.values():
        sender.close(5)


def test_no_token_id_is_on_the_wire_in_the_store_or_in_what_viewers_get(rundir: RunDir, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rltop.tui.cli.main", "hub", str(rundir.path), "--new", "--redact"]
    subprocess.run(command, check=True, capture_output=True)
    senders = collectors(rundir)
    try:
        send(senders, 4)
        with Client(rundir) as client:
            wait_shown(client, lambda c: c.view is not None and len(c.view.steps) >= 3)
            assert client.view is not None
            assert client.view.steps[2].values["joined_fraction"] == 1.0
            for kind in KINDS:
                check_samples(client.samples(api.AskSamples(api.new_id(), 2, kind)))
            client.stop_hub()
    finally:
        close(senders)
    record(rundir.path, tmp_path / "run.rltop", with_text=True)
    for place in (rundir.path, tmp_path / "run.rltop"):
        with Reader(place) as reader:
            stored = [value for kind in KINDS for one in reader.samples(kind, 0, 9) for value in one["body"].items()]
        arrays = [np.frombuffer(raw, "<i4") for name, raw in stored if name in ("context", "ids", "before", "after")]
        arrays.append(np.array([value for name, value in stored if name == "id"], "<i4"))
        assert all((ids >= VOCABULARY).all() for ids in arrays) and sum(ids.size for ids in arrays) > 1000


def check_samples(samples: Any) -> None:
    assert samples.sequences or samples.tokens
    shown = [np.frombuffer(raw, "<i4") for one in samples.sequences for raw in (one.ids, one.context)]
    shown += [np.frombuffer(raw, "<i4") for one in samples.tokens for raw in (one.before, one.after)]
    shown.append(np.array([one.id for one in samples.tokens], "<i4"))
    assert all((ids >= VOCABULARY).all() for ids in shown)
    assert sum(ids.size for ids in shown) > 0


def test_without_redaction_the_samples_have_the_ids(rundir: RunDir) -> None:
    """So that the checks above can fail."""
    subprocess.run(
        [sys.executable, "-m", "rltop.tui.cli.main", "hub", str(rundir.path)], check=True, capture_output=True
    )
    senders = collectors(rundir)
    try:
        send(senders, 4)
        with Client(rundir) as client:
            wait_shown(client, lambda c: c.view is not None and len(c.view.steps) >= 3)
            with pytest.raises(AssertionError):
                check_samples(client.samples(api.AskSamples(api.new_id(), 2)))
            client.stop_hub()
    finally:
        close(senders)


@pytest.mark.parametrize("before", [False, True], ids=["the directory comes later", "the directory is there"])
def test_a_process_that_must_redact_makes_the_key_and_sends_no_id(
    rundir: RunDir, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    if not before:
        rundir.path.rmdir()
    senders = collectors(rundir)
    ids = send(senders, 2)
    if not before:
        rundir.create()
    with Receiver(rundir) as hub:
        wait_for(lambda: len(hub.bodies(wire.StepClosed)) == 2, "both steps arrive")
        close(senders)
        sent = [arrays[name] for _, _, arrays in hub.messages for name in ID_ARRAYS & arrays.keys()]
    assert sent and all((one >= VOCABULARY).all() for one in sent)
    redaction = Redaction(redaction_key(rundir).read())
    assert set(np.concatenate([redaction.ids(one) for one in sent]).tolist()) == ids


def test_a_process_whose_key_can_not_be_used_sends_nothing_and_says_why(
    rundir: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    redaction_key(rundir).path.write_text("too short")
    senders = collectors(rundir)
    with Receiver(rundir) as hub:
        send(senders, 1)
        wait_for(lambda: "redact.key can't be used" in caplog.text, "the reason is logged")
        redaction_key(rundir).path.unlink()
        wait_for(lambda: "No such file" in caplog.text, "its absence is noticed, and nothing is sent in clear")
        assert not hub.messages
        redaction_key(rundir).create()
        wait_for(lambda: hub.bodies(wire.StepClosed), "it sends")
        close(senders)
        sent = [arrays[name] for _, _, arrays in hub.messages for name in ID_ARRAYS & arrays.keys()]
    assert all((one >= VOCABULARY).all() for one in sent)


def test_the_key_is_put_back_where_the_directory_is_made_again(rundir: RunDir) -> None:
    redaction_key(rundir).create()
    key = redaction_key(rundir).read()
    senders = collectors(rundir)
    wait_for(lambda: all(sender._redaction for sender in senders.values()), "the key is read")
    redaction_key(rundir).path.unlink()
    wait_for(lambda: redaction_key(rundir).exists, "the key is back")
    assert redaction_key(rundir).read() == key
    close(senders)


def test_every_array_of_ids_is_redacted() -> None:
    """A new array of the wire with token ids must be added to ``ID_ARRAYS``."""
    assert {name for name in wire.ROW_COLUMNS if name.endswith("ids")} <= ID_ARRAYS
    assert not ID_ARRAYS & wire.TOKEN_COLUMNS.keys()
    assert {"prompt_ids", "token_ids"} <= ID_ARRAYS
