"""Any object as any argument is taken, or refused by a ``ValueError`` that begins with the argument's name."""

from __future__ import annotations

import decimal
import inspect
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rltop.collectors import TrainerCollector
from rltop.collectors.trainer import arguments as batch
from tests.collectors.trainer.test_trainer_collector import IDS, LISTED, PACKED, call, idle
from tests.support.receiver import run_directory

__all__ = ["idle"]


def fails(*_: Any, **__: Any) -> Any:
    raise OSError("the caller's own code")


def hostile(*methods: str) -> Any:
    """An object whose named methods raise."""
    return type("Hostile", (), dict.fromkeys(methods, fails))()


def hostile_property(name: str) -> Any:
    return type("Hostile", (), {name: property(fails)})()


class HostileList(list[Any]):
    __iter__ = fails


class HostileDict(dict[str, Any]):
    items = fails


HostileTensor: Any = type("HostileTensor", (torch.Tensor,), {"__torch_function__": classmethod(fails)})
Tensor: Any = type("Tensor", (torch.Tensor,), {})
"""A harmless subclass."""

ZEROS = torch.zeros(2, 3)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but still in use
        return torch.quantize_per_tensor(ZEROS, 0.1, 0, torch.qint8)


PLAIN: list[Any] = [
    None, True, 5, -1, 2**63, 2**80, 10**5000, 0.5, float("nan"), float("inf"), 1j, "a", b"a", "", "\ud800", "\0", [],
    [[]], [None], ["a", "b"], ["\ud800", "b"], [b"a", b"b"], {}, {"a": 1}, {1: 2}, {"\ud800": 1.0}, {"a": None}, {1, 2},
    object(), object, len, iter([1, 2]), range(2), slice(2), decimal.Decimal("1.5"), pathlib.Path("a"), [[[[1]]]],
]  # fmt: skip
ARRAYS: list[Any] = [
    np.zeros(0), np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((2, 3, 1)), np.array("a"), np.array(5),
    np.array([None, 1]), np.zeros(2, "M8[s]"), np.full((2, 3), "a"), np.zeros((2, 3), "f4,f4"), np.zeros((2, 3), ">f4"),
    np.zeros((2, 3), np.longdouble), np.zeros((2, 3))[::-1, ::-1], np.broadcast_to(np.float32(0), (2, 3)),
    np.zeros((2, 3)).view(np.ma.MaskedArray), np.full((2, 3), 2**63 + 5, np.uint64),
    np.array([np.zeros(2), np.zeros(3)], object),
]  # fmt: skip
TENSORS: list[Any] = [
    torch.zeros(()), ZEROS, torch.zeros(2, 2, dtype=torch.complex64), ZEROS.to_sparse(),
    [torch.zeros(3)] * 2, [torch.zeros(3), np.zeros(3)], torch.zeros(2, 3, device="meta"), ZEROS.bfloat16(),
    ZEROS.to(torch.float8_e4m3fn), quantized(), torch.zeros(3, 2).t(),
    torch.zeros(1, 1).expand(2, 3), torch.zeros(2, 3, requires_grad=True) * 2, torch.nn.Parameter(ZEROS),
    torch.zeros(2, 3, dtype=torch.cfloat).conj().imag, ZEROS.as_subclass(Tensor), ZEROS.as_subclass(HostileTensor),
    torch.zeros(1, device="meta"), torch.zeros(1).to_sparse(),
]  # fmt: skip
HOSTILE: list[Any] = [
    hostile("__array__"), hostile("__index__", "__repr__"), hostile("__float__", "__repr__"), hostile("__str__"),
    hostile("__iter__"), hostile("__len__"), hostile("__eq__", "__hash__"), hostile("__bool__"), hostile("__fspath__"),
    hostile("keys", "__iter__"), hostile_property("ndim"), hostile_property("shape"), hostile_property("__class__"),
    HostileList([1, 2]), [HostileList([1]), HostileList([2])], [hostile_property("ndim")] * 2, HostileDict(a=1),
    hostile("__array__", "__index__", "__float__", "__str__", "__repr__", "__iter__", "__len__", "__bool__"),
]  # fmt: skip
ODD = [*PLAIN, *ARRAYS, *TENSORS, *HOSTILE]


def names_of(method: Callable[..., Any]) -> list[str]:
    return sorted(set(inspect.signature(method).parameters) - {"self"})


def assert_taken_or_named(call: Callable[[], Any], names: list[str]) -> None:
    """The call returns, or its error begins with one of the names."""
    try:
        call()
    except ValueError as error:
        assert str(error).startswith(tuple(f"{name}{end}" for name in names for end in ":[")), error


def assert_no_fault(collector: TrainerCollector) -> None:
    """Only values are judged later, on the sender's thread: an id beyond int32 drops its call there."""
    assert collector._sender.health().faults.keys() <= {"encode"}


SEQUENCES = names_of(TrainerCollector.sequences)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("base", ["batch", "packed", "listed"])
def test_an_odd_argument_of_sequences(idle: TrainerCollector, name: str, base: str) -> None:
    expected = SEQUENCES if name in ("token_ids", "cu_seqlens") else [name]  # others have to fit these two
    for odd in ODD:
        arguments = {"batch": {}, "packed": PACKED, "listed": LISTED}[base] | {name: odd}
        assert_taken_or_named(lambda: call(idle, **arguments), expected)  # noqa: B023
    assert_no_fault(idle)


@pytest.mark.parametrize("name", names_of(TrainerCollector.step))
def test_an_odd_argument_of_step(idle: TrainerCollector, name: str) -> None:
    for odd in ODD:
        assert_taken_or_named(lambda: idle.step(**({"step": 0} | {name: odd})), [name])  # noqa: B023
    assert_no_fault(idle)


@pytest.mark.parametrize("group", ["metrics", "weight_digests"])
def test_an_odd_value_within_a_dict_of_step(idle: TrainerCollector, group: str) -> None:
    for odd in ODD:
        arguments: Any = {group: {"a": odd}}
        assert_taken_or_named(lambda: idle.step(0, **arguments), [group])  # noqa: B023
    assert_no_fault(idle)


def test_odd_facts(idle: TrainerCollector) -> None:
    for odd in ODD:
        assert_taken_or_named(lambda: idle.facts(a=odd), ["fact a"])  # noqa: B023
    assert_taken_or_named(lambda: idle.facts(**{f"k{number}": number for number in range(5000)}), ["facts"])
    assert_no_fault(idle)


@pytest.mark.parametrize("name", names_of(TrainerCollector.__init__))
def test_an_odd_argument_of_the_constructor(name: str) -> None:
    with run_directory() as directory:
        for odd in ODD:
            if name == "start_hub" and odd is True:  # would start one
                continue
            arguments: Any = {"hub": str(directory.path), "start_hub": False} | {name: odd}
            if name == "run":
                del arguments["hub"]
            related = {"run": ["run name ", "no run is named"], "hub": ["no run is named"], "facts": ["fact "]}
            try:
                TrainerCollector(**arguments).close(0)
            except ValueError as error:
                starts = (*related.get(name, ()), f"{name}:", "rank:" if name == "world_size" else name)
                assert str(error).startswith(starts), (odd, error)


def test_an_odd_timeout_of_close() -> None:
    for odd in ODD:
        if type(odd) not in (int, float) or not odd > 0.5:
            with run_directory() as directory:
                collector = TrainerCollector(hub=str(directory.path), start_hub=False)
                assert_taken_or_named(lambda: collector.close(odd), ["timeout"])  # noqa: B023
                collector.close(0)


def test_an_unknown_argument_is_an_error_of_its_call(idle: TrainerCollector) -> None:
    with pytest.raises(TypeError, match="logprob"):
        call(idle, logprob=IDS)


def test_a_lack_of_memory_drops_the_call_and_is_counted(
    idle: TrainerCollector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(batch, "inspect", no_memory)
    for _ in range(50):
        call(idle)
    counts = idle._sender.health().counts["sequences"]
    assert (counts.offered, counts.dropped) == (50, 50)
    monkeypatch.undo()
    call(idle)
    assert idle._sender.health().counts["sequences"].offered == 51
    assert idle._sender.health().counts["sequences"].dropped == 50
