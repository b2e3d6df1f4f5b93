"""Calls back when a module has been imported, so that a host is patched before it runs and not loaded for it.

Nothing is imported for the sake of a patch: a process that never loads the module pays one entry in ``sys.meta_path``.
Standard library only: a dormant plugin loads this.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from rltop.collectors.transport.error_boundary import ErrorBoundary

Callback = Callable[[], object]


def when_imported(module: str, guard: ErrorBoundary, call: Callback) -> Callable[[], None]:
    """Call ``call`` once ``module`` is imported: now, or right after its import. Faults of ``call`` are contained.

    A module that calls this for itself, on its last line, counts as imported.

    Returns:
        A function that cancels the call if it has not come yet.
    """
    finder, entry = _finder(), (guard, call)
    if module in sys.modules and module not in finder.loading:
        guard.run(module, call)
    else:
        finder.waiting.setdefault(module, []).append(entry)
    return functools.partial(finder.cancel, module, entry)


class _Finder(MetaPathFinder):
    """Finds no module itself: gives the loader of an awaited module a second step, which calls back."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[tuple[ErrorBoundary, Callback]]] = {}
        self.loading: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)
        return spec

    def cancel(self, module: str, entry: tuple[ErrorBoundary, Callback]) -> None:
        remaining = [other for other in self.waiting.pop(module, ()) if other is not entry]
        if remaining:
            self.waiting[module] = remaining

    def loaded(self, module: str) -> None:
        for guard, call in self.waiting.pop(module, ()):
            guard.run(module, call)


class _Loader(Loader):
    """The original loader, followed by the callbacks of the module."""

    def __init__(self, original: Any, finder: _Finder) -> None:
        self._original = original
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._original.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._finder.loading.add(module.__name__)
        try:
            self._original.exec_module(module)
        finally:
            self._finder.loading.discard(module.__name__)
        if module.__spec__ is not None:
            module.__spec__.loader = self._original
        module.__loader__ = self._original
        self._finder.loaded(module.__name__)


def _finder() -> _Finder:
    found = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if found is None:
        found = _Finder()
        sys.meta_path.insert(0, found)
    return found
