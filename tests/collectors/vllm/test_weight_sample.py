"""Samples of parameters, with torch's own tensors: of every kind that a model may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pytest
import torch

from rltop.collectors.vllm.workers.weight_digest import UNREAD, DigestPass
from rltop.collectors.vllm.workers.weight_sample import WeightSample


class Wrapper(torch.Tensor):  # type: ignore[misc]
    """Has no memory of its own, and few operations, as the quantised tensors of torchao."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(str(func))


def released() -> torch.Tensor:
    tensor = torch.ones(8)
    tensor.untyped_storage().resize_(0)
    return tensor


UNREADABLE: dict[str, Callable[[], torch.Tensor]] = {
    "wrapping": lambda: Wrapper(torch.ones(8)),
    "expanded": lambda: torch.ones(1).expand(5000),
    "sparse": lambda: torch.eye(8).to_sparse(),
    "meta": lambda: torch.ones(8, device="meta"),
    "released": released,
    "empty": lambda: torch.ones(0),
}

READABLE: dict[str, Callable[[], torch.Tensor]] = {
    "float8": lambda: torch.ones(8).to(torch.float8_e4m3fn),
    "bool": lambda: torch.ones(8, dtype=torch.bool),
    "bf16": lambda: torch.ones(64, 96, dtype=torch.bfloat16),
    "transposed": lambda: torch.ones(64, 96).t(),
    "slice": lambda: torch.ones(64, 96)[3:5, 7:],
    "complex": lambda: torch.ones(8, dtype=torch.complex64),
}


def digests_of(model: torch.nn.Module) -> dict[str, tuple[str, str]]:
    """Kind and checksum by name, as a worker reads them."""
    digest_pass = DigestPass(model)
    with torch.inference_mode():
        while not digest_pass.done:
            digest_pass.advance(0.0)
    return {name: (kind, whole) for name, kind, whole, *_ in digest_pass.found}


def model_of(*tensors: torch.Tensor) -> torch.nn.Module:
    model = torch.nn.Module()
    for number, tensor in enumerate(tensors):
        model.register_parameter(f"p{number}", torch.nn.Parameter(tensor, requires_grad=False))
    return model


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_parameter_without_memory_of_its_own_is_left_out_and_the_others_are_compared(kind: str) -> None:
    model = model_of(torch.ones(8), UNREADABLE[kind](), torch.ones(9))
    sample = WeightSample(model, None)
    assert sample.changed(model) == set()
    model.p2.data.copy_(torch.zeros(9))
    assert sample.changed(model) == {"p2"}


@pytest.mark.parametrize("kind", READABLE)
def test_a_copy_past_the_counter_is_seen_in_every_type_and_layout(kind: str) -> None:
    model = model_of(torch.ones(8), READABLE[kind]())
    sample = WeightSample(model, None)
    assert sample.changed(model) == set()
    model.p1.data.copy_(torch.zeros_like(model.p1))
    assert sample.changed(model) == {"p1"}


@pytest.mark.parametrize("kind", [*UNREADABLE, "wide"])
def test_a_digest_reads_what_is_in_memory_and_names_what_it_can_not_read(kind: str) -> None:
    tensor = torch.ones(8, dtype=torch.complex128) if kind == "wide" else UNREADABLE[kind]()
    found = digests_of(model_of(torch.ones(8), tensor, torch.ones(9)))
    plain = digests_of(model_of(torch.ones(8), torch.ones(0), torch.ones(9)))
    assert {name: found[name] for name in ("p0", "p2")} == plain
    if kind == "expanded":  # every element can be read, though they share their memory
        assert found["p1"] == digests_of(model_of(torch.ones(8), torch.ones(5000)))["p1"]
    else:
        assert found.get("p1") == (None if kind in ("meta", "empty") else (UNREAD, ""))


@pytest.mark.parametrize("kind", READABLE)
def test_a_digest_depends_on_the_elements_of_every_type_and_layout(kind: str) -> None:
    model = model_of(torch.ones(8), READABLE[kind]())
    before = digests_of(model)
    model.p1.data.copy_(torch.zeros_like(model.p1))
    after = digests_of(model)
    assert before["p0"] == after["p0"]
    assert before["p1"] != after["p1"]
