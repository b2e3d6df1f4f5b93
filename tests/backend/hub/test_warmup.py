"""The kernel is compiled beside the core, once, and only when rows come."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rltop.backend.hub.warmup import Warmup
from rltop.backend.summary import strata
from tests.support.harness import PATIENT_S


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rltop-warmup"]


@pytest.mark.parametrize("fault", [None, RuntimeError("no compiler")])
def test_compilation_starts_with_the_first_query_and_always_ends(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    go, calls = threading.Event(), []

    def warm() -> None:
        calls.append(1)
        assert go.wait(PATIENT_S)
        if fault is not None:
            raise fault

    monkeypatch.setattr(strata, "warm", warm)
    warmup = Warmup()
    assert not threads()
    assert not warmup.ready()
    assert not warmup.ready()
    (thread,) = threads()
    go.set()
    thread.join()
    assert warmup.ready()
    assert calls == [1]


def test_a_step_compiles_nothing_after_the_warmup() -> None:
    """In a process of its own: here other tests may have had other types compiled."""
    script = (
        "import sys; sys.path.insert(0, 'bench')\n"
        "import hub_ingest\n"
        "from rltop.backend.summary import kernel, strata\n"
        "strata.warm()\n"
        "before = [len(loop.signatures) for loop in kernel.compiled()]\n"
        "hub_ingest.core(*hub_ingest.messages(60, 40), 2400)\n"
        "print(before, [len(loop.signatures) for loop in kernel.compiled()])\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[1, 1, 1] [1, 1, 1]\n", done.stderr
