"""The hub's log has a bound, whoever appends to it."""

from __future__ import annotations

import os
from pathlib import Path

from rltop.backend.hub.log_file import KEPT_BYTES, LOG_BYTES, bound_log
from tests.support.harness import wait_for
from tests.support.receiver import run_directory
from tests.support.store_load import start_hub


def lines(first: int, nbytes: int) -> bytes:
    number = nbytes // 80
    return b"".join(b"%079d\n" % line for line in range(first, first + number))


def test_a_long_log_is_cut_to_its_last_lines_and_every_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "hub.log"
    with path.open("ab", buffering=0) as log, path.open("ab", buffering=0) as other:
        log.write(lines(0, LOG_BYTES + 1000))
        last = path.read_bytes()[-80:]
        bound_log(path, log.fileno())
        assert path.stat().st_size <= KEPT_BYTES + 100
        other.write(b"of another process\n")
        log.write(b"the next line\n")
    text = path.read_bytes()
    assert text.startswith(b"(earlier lines were removed)\n0")
    assert text.endswith(last + b"of another process\nthe next line\n")


def test_a_short_log_or_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    path, other = tmp_path / "hub.log", tmp_path / "other"
    path.write_bytes(lines(0, 1000))
    other.write_bytes(lines(0, LOG_BYTES + 1000))
    for descriptor_of in (path, other):
        with descriptor_of.open("ab") as file:
            bound_log(path, file.fileno())
    bound_log(tmp_path / "absent", os.open(os.devnull, os.O_WRONLY))
    assert (path.stat().st_size, other.stat().st_size) == (len(lines(0, 1000)), len(lines(0, LOG_BYTES + 1000)))


def test_a_live_hub_bounds_its_log() -> None:
    with run_directory() as rundir:
        rundir.log.write_bytes(lines(0, 2 * LOG_BYTES))
        hub = start_hub(rundir, log=rundir.log)
        try:
            wait_for(lambda: rundir.log.stat().st_size < LOG_BYTES, "the hub cuts its log")
            assert hub.poll() is None
        finally:
            hub.kill()
            hub.wait()
