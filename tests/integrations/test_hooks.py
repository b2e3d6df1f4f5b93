"""Hooks on the functions of a framework: what they observe, and that they never change what the framework does."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.integrations.hooks import Call, Hook, Hooks


class Framework:
    """Functions of every kind that a framework has."""

    def method(self, batch: list[int], scale: int = 2, **options: Any) -> list[int]:
        return [scale * value for value in batch]

    async def coroutine(self, batch: list[int]) -> int:
        await asyncio.sleep(0)
        return sum(batch)

    @staticmethod
    def static(batch: list[int]) -> int:
        return len(batch)

    @classmethod
    def of_class(cls, batch: list[int]) -> str:
        return f"{cls.__name__} {len(batch)}"

    def fails(self, batch: list[int]) -> None:
        raise KeyError("the framework's own")


class Derived(Framework):
    pass


def hook(function: str, owner: str = ".", parameters: tuple[str, ...] = ("batch",)) -> Hook:
    return Hook(function, owner, function, parameters, "a capability", "1.0")


@pytest.fixture
def module() -> Any:
    made = ModuleType("framework_of_the_test")
    made.Framework = type("Framework", (Framework,), dict(vars(Framework)))  # type: ignore[attr-defined]
    made.function = lambda batch, flag=True: (batch, flag)  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_observers_see_arguments_by_name_and_the_result() -> None:
    seen: list[tuple[str, dict[str, Any], Any]] = []
    root = Framework()
    hooks = Hooks(ErrorBoundary(), root)
    assert hooks.add(
        hook("method"),
        before=lambda call: seen.append(("before", dict(call.arguments), call.result)),
        after=lambda call: seen.append(("after", dict(call.arguments), call.result)),
    )
    assert root.method([1], extra="x") == [2]
    assert seen == [
        ("before", {"batch": [1], "scale": 2, "extra": "x"}, None),
        ("after", {"batch": [1], "scale": 2, "extra": "x"}, [2]),
    ]
    assert inspect.signature(root.method) == inspect.signature(Framework().method)


def test_other_instances_are_not_hooked() -> None:
    seen: list[Call] = []
    root = SimpleNamespace(part=Derived())
    assert Hooks(ErrorBoundary(), root).add(hook("method", ".part"), after=seen.append)
    Derived().method([1])
    assert not seen
    root.part.method([1])
    assert len(seen) == 1


def test_functions_of_modules_and_classes_are_hooked_where_they_are_looked_up(module: Any) -> None:
    seen: list[Any] = []
    hooks = Hooks(ErrorBoundary())
    assert hooks.add(hook("function", module.__name__), after=lambda call: seen.append(call["flag"]))
    for name in ("method", "static", "of_class"):
        assert hooks.add(hook(name, f"{module.__name__}:Framework"), after=lambda call: seen.append(call["batch"]))
    assert module.function([3]) == ([3], True)
    made = module.Framework()
    assert (made.method([1]), made.static([1, 2]), module.Framework.of_class([1])) == ([2], 2, "Framework 1")
    assert seen == [True, [1], [1, 2], [1]]
    hooks.undo()
    assert (made.method([1]), made.static([1, 2]), module.Framework.of_class([1])) == ([2], 2, "Framework 1")
    assert len(seen) == 4


def test_coroutine_functions_stay_coroutine_functions() -> None:
    root, seen = Framework(), list[Any]()
    assert Hooks(ErrorBoundary(), root).add(hook("coroutine"), after=lambda call: seen.append(call.result))
    assert inspect.iscoroutinefunction(root.coroutine)
    assert asyncio.run(root.coroutine([1, 2])) == 3
    assert seen == [3]


def test_a_fault_of_an_observer_does_not_reach_the_framework(caplog: pytest.LogCaptureFixture) -> None:
    root = Framework()
    guard = ErrorBoundary()

    def faulty(call: Call) -> None:
        raise RuntimeError("of the observer")

    assert Hooks(guard, root).add(hook("method"), before=faulty, after=faulty)
    for _ in range(3):
        assert root.method([1]) == [2]
    assert guard.faults == {"method": 6}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_errors_of_the_framework_pass_and_wrong_calls_fail_as_before() -> None:
    root, seen = Framework(), list[Call]()
    hooks = Hooks(ErrorBoundary(), root)
    assert hooks.add(hook("fails"), after=seen.append)
    assert hooks.add(hook("method"), after=seen.append)
    with pytest.raises(KeyError, match="the framework's own"):
        root.fails([1])
    with pytest.raises(TypeError, match="batch"):
        root.method()  # type: ignore[call-arg]
    assert not seen


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (hook("absent"), "absent is missing"),
        (hook("method", parameters=("batch", "entropies")), "without entropies"),
        (hook("method", ".part"), "'part'"),
        (hook("method", "no_such_framework.module"), "no_such_framework"),
        (hook("method", "json:NoSuchClass"), "NoSuchClass"),
    ],
    ids=lambda value: value.owner if isinstance(value, Hook) else None,
)
def test_what_does_not_fit_is_one_warning_and_a_lost_capability(
    wanted: Hook, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = Framework()
    hooks = Hooks(ErrorBoundary(), root)
    assert not hooks.add(wanted, after=lambda call: None)
    assert reason in hooks.missing[wanted.name]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "(unavailable: a capability)" in caplog.text
    assert not vars(root)


def test_an_object_that_takes_no_attributes_is_a_missing_hook() -> None:
    class Sealed:
        __slots__ = ()

        def method(self, batch: list[int]) -> None: ...

    hooks = Hooks(ErrorBoundary(), Sealed())
    assert not hooks.add(hook("method"), after=lambda call: None)
    assert hooks.missing == {"method": "method can't be wrapped"}


def test_undo_restores_the_object_and_keeps_the_wrappers_of_others() -> None:
    root, seen = Framework(), list[Call]()
    hooks = Hooks(ErrorBoundary(), root)
    hooks.add(hook("method"), after=seen.append)
    hooks.add(hook("static"), after=seen.append)
    ours = root.method
    root.method = lambda *args: [*ours(*args), 7]  # type: ignore[method-assign]
    hooks.undo()
    hooks.undo()
    assert root.method([1]) == [2, 7]
    assert list(vars(root)) == ["method"]
    assert not seen
