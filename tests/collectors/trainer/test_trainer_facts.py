"""A trainer's facts reach every hub once, and again when they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rltop.backend.demo.options import MODEL
from rltop.backend.demo.rl import policy
from rltop.backend.demo.rl.demo_trainer import load_model
from rltop.backend.fleet.facts import BY_NAME, compare
from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from tests.support.receiver import Receiver, run_directory, wait_until


def heard(hub: Receiver) -> list[dict[str, str]]:
    return [body.facts for body in hub.bodies(wire.TrainerFacts)]


def test_facts_are_sent_at_the_start_on_change_and_to_every_new_hub() -> None:
    first = {"temperature": 0.7, "dtype": torch.bfloat16, "top_k": None}
    with run_directory() as directory, Receiver(directory) as hub:
        collector = TrainerCollector(hub=str(directory.path), facts=first, start_hub=False)
        wait_until(lambda: heard(hub))
        collector.facts(temperature=0.7)  # nothing new
        collector.facts(head_dtype=torch.float32, temperature=1.0)
        wait_until(lambda: len(heard(hub)) == 2)
        hub.to_send.append(wire.Welcome("hub"))  # the same one again
        hub.to_send.append(wire.Welcome("hub-2"))
        wait_until(lambda: len(heard(hub)) == 3)
        collector.facts(dtype=None)
        wait_until(lambda: len(heard(hub)) == 4)
        assert collector.close()
        whole = {"temperature": "1", "dtype": "bfloat16", "head_dtype": "float32"}
        assert heard(hub) == [
            {"temperature": "0.7", "dtype": "bfloat16"}, whole, whole, {"temperature": "1", "head_dtype": "float32"}
        ]  # fmt: skip
        assert hub.bodies(wire.TrainerFacts)[0].rank == 0
        assert hub.bodies(wire.Health)[-1].counts == {"facts": wire.Counts(4, 4)}


def test_a_trainer_without_facts_sends_none() -> None:
    with run_directory() as directory, Receiver(directory) as hub:
        collector = TrainerCollector(hub=str(directory.path), start_hub=False)
        wait_until(lambda: hub.control)
        collector.step(0)
        assert collector.close()
        assert heard(hub) == []


@pytest.mark.parametrize("wrong", [{"temperature": float("nan")}, {"dtype": ""}, {"two words": 1}])
def test_a_wrong_fact_raises_on_its_line(wrong: dict[str, Any]) -> None:
    with run_directory() as directory:
        with pytest.raises(ValueError, match="fact"):
            TrainerCollector(hub=str(directory.path), facts=wrong, start_hub=False)
        collector = TrainerCollector(hub=str(directory.path), facts={"top_p": 1.0}, start_hub=False)
        with pytest.raises(ValueError, match="fact"):
            collector.facts(**wrong)
        collector.close(timeout=0.05)


def test_the_demos_trainer_sends_its_facts() -> None:
    model = load_model(str(MODEL))
    stated = policy.facts(model, 0.7)
    assert stated["dtype"] == next(model.parameters()).dtype == torch.float32
    batch = policy.make_batch([[5, 6, 7]], [[8, 9]])
    with torch.no_grad():
        assert model(batch.ids).logits.dtype == stated["head_dtype"]
    known = {name: str(value) for name, value in stated.items() if name in BY_NAME and BY_NAME[name].trainer}
    assert known.keys() == {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "dtype", "head_dtype"}
    assert compare({"e0": known}, known) == []
