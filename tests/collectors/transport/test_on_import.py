"""Calls after an import: they come once, after the module, and never change how it is imported."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.on_import import when_imported
from rltop.integrations.hooks import Call, Hook
from rltop.integrations.support.adapter import Adapter, install_once


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules of a package ``hosted``."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(module: str, text: str) -> None:
        path = tmp_path / "hosted" / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "hosted"]:
        del sys.modules[name]


def test_a_call_comes_once_and_right_after_the_import(package: Callable[[str, str], None]) -> None:
    package("late", "value = 1")
    calls: list[int] = []
    when_imported("hosted.late", ErrorBoundary(), lambda: calls.append(sys.modules["hosted.late"].value))
    assert calls == []
    module = importlib.import_module("hosted.late")
    assert calls == [1]
    importlib.reload(module)
    assert calls == [1]
    assert type(module.__spec__.loader).__module__.startswith("_frozen_importlib")  # type: ignore[union-attr]


def test_a_module_that_is_loaded_is_called_for_at_once(package: Callable[[str, str], None]) -> None:
    package("early", "value = 1")
    importlib.import_module("hosted.early")
    calls: list[int] = []
    when_imported("hosted.early", ErrorBoundary(), lambda: calls.append(1))
    assert calls == [1]


def test_a_cancelled_call_does_not_come_and_others_do(package: Callable[[str, str], None]) -> None:
    package("wanted", "value = 1")
    calls: list[str] = []
    cancels = [
        when_imported("hosted.wanted", ErrorBoundary(), functools.partial(calls.append, name))
        for name in ("a", "b", "c")
    ]
    cancels[1]()
    cancels[1]()
    importlib.import_module("hosted.wanted")
    assert calls == ["a", "c"]
    cancels[0]()


def test_a_module_may_ask_for_itself_on_its_last_line(package: Callable[[str, str], None]) -> None:
    package(
        "own",
        "calls = []\nfrom tests.collectors.transport.test_on_import import ask\ndef late(): ...\nask(__name__, calls)",
    )
    assert importlib.import_module("hosted.own").calls == [True]


def ask(module: str, calls: list[bool]) -> None:
    when_imported(module, ErrorBoundary(), lambda: calls.append(hasattr(sys.modules[module], "late")))


def test_a_fault_of_the_call_does_not_reach_the_import(package: Callable[[str, str], None]) -> None:
    package("faulty", "value = 1")
    guard = ErrorBoundary()
    when_imported("hosted.faulty", guard, lambda: 1 / 0)
    assert importlib.import_module("hosted.faulty").value == 1
    assert guard.faults == {"hosted.faulty": 1}


def test_a_failing_import_fails_as_before_and_can_be_repeated(package: Callable[[str, str], None]) -> None:
    package("broken", "raise RuntimeError('of the host')")
    calls: list[int] = []
    when_imported("hosted.broken", ErrorBoundary(), lambda: calls.append(1))
    with pytest.raises(RuntimeError, match="of the host"):
        importlib.import_module("hosted.broken")
    assert calls == []
    package("broken", "value = 20")
    assert importlib.import_module("hosted.broken").value == 20
    assert calls == [1]


def test_a_module_that_does_not_exist_stays_missing() -> None:
    when_imported("hosted.absent", ErrorBoundary(), lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hosted.absent")


class Hosted(Adapter):
    """Observes a function that another module imports by name."""

    def _observe(self) -> None:
        self.seen: list[int] = []
        self.on(Hook("double", "hosted.functions", "double", ("value",), "values", "1"), after=self._after)
        self.on(Hook("gone", "hosted.functions", "removed", (), "what was removed", "1"), after=self._after)

    def _after(self, call: Call) -> None:
        self.seen.append(call["value"])


def test_an_adapter_is_installed_once_and_before_names_are_imported_from_the_module(
    package: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package("functions", "def double(value): return 2 * value")
    package("user", "from hosted.functions import double\ndef run(): return double(21)")
    monkeypatch.delenv("RLTOP_RUN", raising=False)
    monkeypatch.delenv("RLTOP_HUB", raising=False)
    assert install_once(Hosted) is None
    assert "no run is named" in caplog.text
    adapter = install_once(Hosted, "run")
    assert adapter is not None and install_once(Hosted) is adapter
    assert importlib.import_module("hosted.user").run() == 42
    assert adapter.seen == [21]
    assert list(adapter.missing) == ["gone"]
    adapter.undo()
    assert importlib.import_module("hosted.user").run() == 42
    assert adapter.seen == [21]
