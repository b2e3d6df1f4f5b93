"""``Adapter``: the hooks of one framework in this process, with their recorder."""

from __future__ import annotations

import logging
import os
from typing import TypeVar

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.on_import import when_imported
from rltop.integrations.hooks import Hook, Hooks, Observer
from rltop.integrations.support.recorder import Ranks, Recorder, torch_ranks

log = logging.getLogger("rltop")


class Adapter:
    """Observes a framework's functions from the moment their modules are imported.

    Subclasses add their hooks in ``_observe`` with ``on``. Observers run inside an error boundary: a fault of theirs
    never reaches the framework.

    Attributes:
        recorder: of this process.
    """

    def __init__(self, run: str | None = None) -> None:
        self.guard = ErrorBoundary()
        self.recorder = Recorder(run, ranks=self._ranks)
        self._hooks = Hooks(self.guard)
        self._warned: set[str] = set()
        self._observe()

    @property
    def missing(self) -> dict[str, str]:
        """Hooks that could not be installed, with the reason."""
        return self._hooks.missing

    def _observe(self) -> None:
        """Add the hooks."""
        raise NotImplementedError

    def _ranks(self) -> Ranks:
        """Called once, when the first rows are sent."""
        return torch_ranks()

    def on(self, hook: Hook, *, before: Observer | None = None, after: Observer | None = None) -> None:
        """Install a hook when its module is imported."""
        module = hook.owner.partition(":")[0]
        when_imported(module, self.guard, lambda: self._hooks.add(hook, before=before, after=after))

    def warn_once(self, text: str) -> None:
        """Log a warning, once per text."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning("rltop: %s", text)

    def undo(self) -> None:
        """Leave the framework as it was, and disconnect."""
        self._hooks.undo()
        _INSTALLED.pop(type(self), None)
        self.recorder.close()


A = TypeVar("A", bound=Adapter)

_INSTALLED: dict[type[Adapter], Adapter] = {}


def install_once(kind: type[A], run: str | None = None) -> A | None:
    """The adapter of this process; a second call returns the first one's. None, with a warning, if no run is named."""
    installed = _INSTALLED.get(kind)
    if isinstance(installed, kind):
        return installed
    if run is None and not os.environ.get("RLTOP_RUN") and not os.environ.get("RLTOP_HUB"):
        log.warning("rltop: no run is named: set RLTOP_RUN, or pass run=; %s is not observed", kind.__name__)
        return None
    adapter = kind(run)
    _INSTALLED[kind] = adapter
    return adapter
