"""What an import costs its host: a fresh interpreter imports the module, and nothing heavy may come along."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "vllm", "transformers", "textual", "ray", "numba"}

BUDGET = [
    ("rltop.collectors", HEAVY | {"zmq", "numpy", "msgspec", "rltop.backend", "rltop.tui"}),
    ("rltop.integrations", HEAVY | {"zmq", "numpy", "msgspec", "rltop.backend", "rltop.tui"}),
    ("rltop.integrations.trl", HEAVY | {"trl", "zmq", "rltop.backend", "rltop.tui"}),
    ("rltop.integrations.support.catalogue", HEAVY | {"trl", "verl", "ray", "zmq", "rltop.backend", "rltop.tui"}),
    ("rltop.collectors.trainer.collector", HEAVY | {"zmq", "rltop.backend", "rltop.tui"}),
    ("rltop.collectors.contract.launch", HEAVY | {"zmq", "rltop.backend", "rltop.tui"}),
    ("rltop.collectors.vllm", HEAVY | {"zmq", "rltop.backend", "rltop.tui"}),
    ("rltop.backend.api", HEAVY | {"zmq", "rltop.tui"}),
    ("rltop.backend.hub", HEAVY | {"rltop.tui"}),
    ("rltop.backend.metrics", HEAVY | {"zmq", "rltop.tui"}),
    ("rltop.tui.cli.main", HEAVY | {"zmq"}),
    ("rltop.tui.app", HEAVY - {"textual"}),
]


@pytest.mark.parametrize(("module", "forbidden"), BUDGET, ids=[module for module, _ in BUDGET])
def test_an_import_brings_nothing_heavy(module: str, forbidden: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert forbidden.isdisjoint(loaded)


def test_the_trainer_collector_is_loaded_on_first_use() -> None:
    script = (
        "import sys, rltop.collectors as c; before = 'rltop.collectors.trainer.collector' in sys.modules; "
        "from rltop.collectors import TrainerCollector as t; print(before, t.__module__, 'TrainerCollector' in dir(c))"
    )
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["False", "rltop.collectors.trainer.collector", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import rltop.collectors

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rltop.collectors.Nothing
