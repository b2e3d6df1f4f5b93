"""Facts of an engine, read from vLLM's objects: sampling defaults, and facts that a switch changes."""

from __future__ import annotations

import json
import shutil
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.backend.demo.options import MODEL
from rltop.backend.fleet import facts
from rltop.collectors.vllm import fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose authors recommend how to sample it."""
    pytest.importorskip("vllm")
    made = tmp_path / "model"
    shutil.copytree(MODEL, made)
    config = json.loads((made / "generation_config.json").read_text())
    recommended = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    (made / "generation_config.json").write_text(json.dumps(config | recommended))
    return made


def facts_of(model: Path, **launch: Any) -> dict[str, str]:
    from vllm.config import ModelConfig

    config = ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", **launch)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=config))
    return fingerprint._read(fingerprint.FACTS, engine)


def test_defaults_of_a_generation_config_are_reported_with_their_source(model: Path) -> None:
    known = facts_of(model)
    assert known["default_sampling"] == "repetition_penalty=1.05, temperature=0.6, top_k=20"
    assert known["default_sampling_from"] == "the model's generation_config.json"
    assert facts.defaults(known) == {"repetition_penalty": "1.05", "temperature": "0.6", "top_k": "20"}
    (found,) = facts.compare({"e0": known}, {"temperature": "1", "top_k": "20", "dtype": "torch.float32"})
    assert found.explanation == "requests without their own value get temperature 0.6 where the trainer states 1"


def test_without_a_generation_config_only_launch_overrides_are_defaults(model: Path) -> None:
    known = facts_of(model, generation_config="vllm")
    assert (known["default_sampling"], facts.defaults(known)) == (fingerprint.NEUTRAL, {})
    known = facts_of(model, override_generation_config={"temperature": 0.9})
    assert known["default_sampling"] == "repetition_penalty=1.05, temperature=0.9, top_k=20"
    assert known["default_sampling_from"].endswith("and --override-generation-config")


def test_current_facts_are_reread_and_absent_ones_omitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fingerprint.RESTORED, raising=False)  # the demo's plugin says it of its whole process

    class AsyncScheduler:
        """Named as vLLM's."""

    engine = SimpleNamespace(scheduler=AsyncScheduler(), batch_queue_size=2, batch_queue=deque(maxlen=2))
    assert fingerprint.current(engine) == {"scheduler": "AsyncScheduler", "batch_queue": "2"}
    engine.batch_queue_size = 1
    assert fingerprint.current(engine)["batch_queue"] == "1"
    engine.batch_queue = None
    assert fingerprint.current(engine)["batch_queue"] == "none"
    assert fingerprint.current(SimpleNamespace()) == {}
