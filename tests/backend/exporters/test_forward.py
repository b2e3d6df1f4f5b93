"""Forwarding a run: each step once, in formats of other tools, without ever blocking the hub."""

from __future__ import annotations

import math
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.exporters.forward import (
    Forwarder,
    ForwardError,
    Prometheus,
    TensorBoard,
    exposition,
    open_sink,
    scalars,
)
from tests.backend.hub.test_hub_process import close_step, collector, see
from tests.support import pictures
from tests.support.harness import ended
from tests.support.receiver import run_directory, wait_until
from tests.support.store_load import start_hub


class Kept:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def show(self, picture: api.Snapshot, fresh: list[api.Step]) -> None:
        self.steps += [step.step for step in fresh]

    def close(self) -> None: ...


def test_each_step_is_sent_once_also_after_a_pause() -> None:
    kept = Kept()
    forwarder = Forwarder(kept)
    for steps in (3, 3, 7, 5, 9):
        forwarder.show(pictures.healthy(steps))
    assert kept.steps == list(range(9))


def test_prometheus_text_has_the_last_step_and_every_engine() -> None:
    picture = pictures.healthy(5)
    picture.run = 'a"b\\c\n'
    picture.steps[4].values["ess"] = math.nan
    text = exposition(picture)
    labels = r'run="a\"b\\c\n"'
    assert f"rltop_step{{{labels}}} 4" in text
    assert f'rltop_metric{{{labels},metric="kl_k3"}} {picture.steps[4].values["kl_k3"]!r}' in text
    assert f'rltop_metric{{{labels},metric="ess"}} NaN' in text
    assert f'rltop_engine_live{{{labels},engine="e1"}} 1.0' in text
    names = [line.split("{")[0] for line in text.splitlines() if not line.startswith("#")]
    assert sorted(set(names), key=names.index) == [line.split()[2] for line in text.splitlines() if "# TYPE" in line]


def test_prometheus_is_served_on_the_loopback_address() -> None:
    sink = Prometheus(0)
    try:
        sink.show(pictures.healthy(3), [])
        with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics") as answer:
            assert b'rltop_step{run="sort"} 2' in answer.read()
        with pytest.raises(ForwardError, match="can't serve"):
            open_sink(f"prometheus:{sink.port}")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/")
    finally:
        sink.close()


def read_events(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_tensorboard_files_are_read_by_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = pictures.healthy(4)
    sink = TensorBoard(str(tmp_path))
    sink.show(picture, list(picture.steps.values()))
    sink.close()
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    shown = [(event.step, event.value) for event in found.Scalars("rltop/kl_k3")]
    expected = [step.values["kl_k3"] or 0.0 for step in picture.steps.values()]
    assert shown == [(n, struct.unpack("<f", struct.pack("<f", value))[0]) for n, value in enumerate(expected)]


def test_tensorboard_records_have_their_checksums(tmp_path: Path) -> None:
    picture = pictures.healthy(2)
    sink = TensorBoard(str(tmp_path))
    sink.show(picture, list(picture.steps.values()))
    sink.close()
    (path,) = tmp_path.iterdir()
    events = list(read_events(path))
    assert len(events) == 3
    assert b"brain.Event:2" in events[0]
    assert b"rltop/kl_k3" in events[1]
    # From a file that TensorFlow wrote: the masked CRC-32C of the length 24.
    from rltop.backend.exporters.forward import _masked

    assert _masked(struct.pack("<Q", 24)) == bytes.fromhex("a37f4b22")


def test_scalars_have_the_names_that_trackers_group_by() -> None:
    step = api.Step(1, 1.0, 1, False, {"kl_k3": 0.5, "ess": None}, {"e0": {"kl_k3": 0.25}}, trainer={"loss": 2.0})
    assert scalars(step) == {"rltop/kl_k3": 0.5, "rltop/e0/kl_k3": 0.25, "trainer/loss": 2.0}


@pytest.mark.parametrize("text", ["prometheus", "prometheus:", "prometheus:http", "statsd:1", "tensorboard:/proc/no"])
def test_an_invalid_sink_is_rejected_with_the_valid_forms(text: str) -> None:
    with pytest.raises(ForwardError):
        open_sink(text)


def heed_interrupts() -> None:
    """Background jobs of a shell ignore ctrl-c, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_hanging_sink_does_not_block_the_hub() -> None:
    with run_directory() as rundir:
        hub = start_hub(rundir)
        command = [sys.executable, "-m", "rltop.tui.cli.main", "forward", str(rundir.path), "--to", "prometheus:0"]
        forward = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
        assert forward.stdout is not None
        try:
            assert "forwarding run" in forward.stdout.readline()
            forward.send_signal(signal.SIGSTOP)  # as if its sink had stopped it
            with Client(rundir) as client, collector(rundir, "trainer/0") as trainer:
                for step in range(100):
                    close_step(trainer, step)
                see(client, lambda v: len(v.steps) == 100)
            forward.send_signal(signal.SIGCONT)
            forward.send_signal(signal.SIGINT)
            assert ended(forward) == 130
        finally:
            for process in (forward, hub):
                process.kill()
                process.wait()
            forward.stdout.close()
    wait_until(lambda: not Path(f"/proc/{hub.pid}").exists())
