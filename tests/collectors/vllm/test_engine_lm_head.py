"""The float32 head on a vLLM that knows no ``head_dtype`` (0.18.1), on doubles of its shape with real tensors."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.vllm.workers import lm_head as head
from tests.collectors.vllm.test_engine_switches import Desk, Kinds
from tests.support.engine_doubles import EngineCore, Executor, Worker

torch = pytest.importorskip("torch")

VOCABULARY, HIDDEN = 40, 16


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


class UnquantizedEmbeddingMethod:
    def apply(self, layer: Any, x: Any, bias: Any = None) -> Any:
        return torch.nn.functional.linear(x, layer.weight, bias)

    def embedding(self, layer: Any, input_: Any) -> Any:
        return torch.nn.functional.embedding(input_, layer.weight)


class Embedding:
    """``VocabParallelEmbedding`` and ``ParallelLMHead``, of which a tied model has one."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).bfloat16()
        self.quant_method = UnquantizedEmbeddingMethod()

    def __call__(self, ids: Any) -> Any:
        return self.quant_method.embedding(self, ids)


class LogitsProcessor:
    org_vocab_size = VOCABULARY - 8
    logits_as_input = False

    def _get_logits(self, hidden_states: Any, lm_head: Any, embedding_bias: Any) -> Any:
        return lm_head.quant_method.apply(lm_head, hidden_states, bias=embedding_bias)[..., : self.org_vocab_size]


class Model:
    def __init__(self, *, tied: bool) -> None:
        self.embed_tokens = Embedding(1)
        self.lm_head = self.embed_tokens if tied else Embedding(2)
        self.logits_processor = LogitsProcessor()

    def logits(self, hidden: Any, bias: Any = None) -> Any:
        return self.logits_processor._get_logits(hidden, self.lm_head, bias)


def desk(*, tied: bool) -> tuple[Desk, Model]:
    worker = Worker(torch.bfloat16)
    model = Model(tied=tied)
    worker.model_runner.model = model
    engine = EngineCore()
    engine.model_executor = Executor([worker])
    return Desk(engine), model


@pytest.mark.parametrize("tied", [False, True])
def test_the_projection_is_wrapped_verified_and_unwrapped_and_the_look_up_keeps_its_dtype(tied: bool) -> None:
    bench, model = desk(tied=tied)
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(5)).bfloat16()
    bias = torch.randn(VOCABULARY).bfloat16()
    ids = torch.tensor([1, 2, 3])
    launched, looked_up = model.logits(hidden), model.embed_tokens(ids)
    exact = torch.nn.functional.linear(hidden.float(), model.lm_head.weight.float())[..., :-8]
    assert bench.board.facts()["head_dtype"] == "bfloat16"
    bench.send("lm_head_fp32", "on")
    (update,) = bench.boundary()
    assert (update.state, update.old, update.new, update.reason) == ("applied", "off", "on", "")
    facts = bench.board.facts()
    assert (facts["head_dtype"], facts["lm_head_fp32 bound"]) == ("float32", "yes")
    assert torch.equal(model.logits(hidden), exact)
    assert torch.equal(model.logits(hidden, bias), exact + bias.float()[:-8])
    assert not torch.equal(launched.float(), exact)
    assert model.embed_tokens(ids).dtype == torch.bfloat16
    assert torch.equal(model.embed_tokens(ids), looked_up)
    bench.send("lm_head_fp32", "off", "back")
    assert bench.boundary()[0].new == "off"
    assert torch.equal(model.logits(hidden), launched)
    assert "apply" not in vars(model.lm_head.quant_method)
    assert bench.board.facts()["lm_head_fp32 bound"] == "no override"


def test_another_layer_of_the_same_method_is_projected_as_before() -> None:
    bench, model = desk(tied=False)
    other = Embedding(3)
    other.quant_method = model.lm_head.quant_method
    bench.board.flip("lm_head_fp32", "on")
    assert other.quant_method.apply(other, torch.ones(1, HIDDEN).bfloat16()).dtype == torch.bfloat16


def test_new_weights_are_used_by_the_wrapped_projection() -> None:
    bench, model = desk(tied=True)
    bench.board.flip("lm_head_fp32", "on")
    hidden = torch.ones(1, HIDDEN).bfloat16()
    model.lm_head.weight = torch.zeros_like(model.lm_head.weight)
    assert torch.equal(model.logits(hidden), torch.zeros(1, VOCABULARY - 8))


def test_a_projection_that_does_not_come_out_in_float32_is_refused_and_undone() -> None:
    bench, model = desk(tied=False)

    class Deaf(UnquantizedEmbeddingMethod):
        """Ignores a wrapper of its ``apply``."""

        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__("real") if name == "apply" else super().__getattribute__(name)

        def real(self, layer: Any, x: Any, bias: Any = None) -> Any:
            return torch.nn.functional.linear(x, layer.weight, bias)

    Deaf.__name__ = "UnquantizedEmbeddingMethod"
    model.lm_head.quant_method = Deaf()
    bench.board.switches["lm_head_fp32"].refresh()
    bench.send("lm_head_fp32", "on")
    (update,) = bench.boundary()
    assert update.state == "refused"
    assert "not bound" in update.reason
    assert bench.board.states()["lm_head_fp32"].value == "off"
    assert "apply" not in vars(model.lm_head.quant_method)


def test_a_head_that_is_wrapped_twice_is_wrapped_once() -> None:
    _, model = desk(tied=False)
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(dtype=torch.bfloat16))
    head.write(runner, "on", None)
    head.write(runner, "on", None)
    head.write(runner, "off", None)
    assert head.read(runner) == "off"
    assert "apply" not in vars(model.lm_head.quant_method)
