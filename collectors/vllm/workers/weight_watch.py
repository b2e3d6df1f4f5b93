"""The worker's part of recognising weight updates: every call of its model's ``load_weights``, by whatever path.

Almost all ways to new weights end there; ``weight_sample`` recognises copies into parameters. The class of the model is
wrapped, not the model: a copy of the model must not load into the original. Only models of runners count, so drafts and
reference models of the same class do not.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.weight_journal import JOURNAL
from rltop.collectors.vllm.workers.weight_sample import WeightSample

REPORT = "rltop_weights"
"""Name of the worker's method."""

LOAD = "load_weights"

Report = dict[str, Any]
"""One rank's answer, all since its last one, as in ``rank_weights.Loaded``: ``loaded``, ``whole``, ``repeats``,
``replaced`` and ``failed``; ``stated``, the last ``Statement`` of its process; ``watch``, process and
id of the watch; ``call``, the number of the question; ``pending``: values are still compared on a device."""

ATTRIBUTE = "rltop_weight_watch"
"""Where a worker keeps its watch."""

READABLE: tuple[type[Iterable[Any]], ...] = (list, tuple, type({}.items()))
"""Types of ``weights`` whose names are read beforehand; of others, while ``load_weights`` consumes them."""

_guard = ErrorBoundary()
_watched: weakref.WeakKeyDictionary[Any, weakref.ref[WeightWatch]] = weakref.WeakKeyDictionary()
"""By model. Workers own the watches: nothing here keeps a model alive."""


class Tensors:
    """Tensors of one update by name: those passed to ``load_weights``, and ``parameters`` that are still missing."""

    def __init__(self, parameters: Iterable[str]) -> None:
        self.names: set[str] = set()
        self.missing = set(parameters)
        self.copied = False

    def add(self, names: Iterable[str], filled: Iterable[str]) -> None:
        """Add tensors that were passed, and the parameters that they filled."""
        self.names.update(names)
        self.missing.difference_update(filled)


class WeightWatch:
    """What was loaded into the model of one runner.

    Attributes:
        filled: parameters that were filled so far, by the names that ``load_weights`` returned.

    An update may come in many calls. Its tensors are collected until one comes again after a step, or after all were
    there: that one is of the next update. A call that loads some tensors costs time for those only.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._model: Any = None
        self._step = 0
        self._calls = 0  # since the last report, like the next two
        self._failed = ""
        self.filled = 0
        self._names: set[str] = set()
        self._filled: set[str] = set()
        self._parameters: set[str] = set()
        self._update = Tensors(())
        self._in_parts = False  # the sample knows only the counters of what was loaded
        self._follow()

    def loaded(self, names: list[str], filled: Any) -> None:
        """``load_weights`` returned ``filled``: by vLLM's convention the names of the parameters."""
        self._calls += 1
        self.filled += len(filled or ())
        self._names.update(names)
        self._filled.update(filled or ())
        JOURNAL.changed()

    def failed(self, names: list[str], error: Exception) -> None:
        """``load_weights`` raised, after it may have loaded some tensors."""
        self._failed = f"{LOAD}: {type(error).__name__}: {error}"
        self.loaded(names, ())

    def report(self, step: int, compares: bool = True) -> Report:
        """What happened since the last report, which is forgotten. ``step``: engine steps so far.

        Without ``compares``, values of parameters count only if a comparison that was begun before is done.
        """
        replaced = self._follow()
        copied = set() if self._calls else self._copied(compares)
        repeats = self._merge_copies(copied, step) if copied else self._merge(step)
        if self._calls:
            self._renew_sample()
        self._filled.clear()
        return {
            "loaded": bool(copied) or self._take_calls() > 0,
            "whole": self._is_whole(),
            "repeats": repeats,
            "replaced": replaced,
            "failed": self._take_failure(),
            "stated": JOURNAL.statement(),
            "watch": (os.getpid(), id(self)),
            "pending": self._sample.pending,
        }

    def stop(self) -> None:
        """Watch no longer. Idempotent."""
        if _watched.pop(self._model, None) is None:
            return
        if not any(type(model) is type(self._model) for model in _watched):
            unwrap(type(self._model))

    def _merge(self, step: int) -> bool:
        """Add the tensors since the last report to the update's; return whether some of them had come before."""
        names, self._names = self._names, set()
        if not names:
            return False
        repeats = not names.isdisjoint(self._update.names) or (self._update.copied and step > self._step)
        if repeats and (step > self._step or self._is_whole()):
            self._update = Tensors(self._parameters)
        self._update.add(names, self._filled)
        self._step = step
        return repeats

    def _renew_sample(self) -> None:
        """Take what was loaded into the sample: only its own parameters while others of the update are to come."""
        self._in_parts = bool(self._filled) and not self._is_whole()
        if self._in_parts:
            self._sample.renew_counters(self._model, self._filled)
        else:
            self._sample.renew(self._model, values=self._is_whole())

    def _copied(self, compares: bool) -> set[str]:
        """The parameters that were copied into; those of an update in parts may have been processed after loading."""
        changed = self._sample.changed(self._model) if compares else self._sample.take_compared()
        in_parts, self._in_parts = self._in_parts, False
        return changed & self._update.missing if in_parts else changed

    def _merge_copies(self, parameters: set[str], step: int) -> bool:
        """The same for parameters that were copied into: after a step, they are of another update.

        Without a step in between, they may be loaded tensors that were processed after loading.
        """
        repeats = step > self._step
        if repeats:
            self._update = Tensors(self._parameters)
        self._update.missing -= parameters
        self._update.copied = True
        self._step = step
        return repeats

    def _is_whole(self) -> bool:
        """Whether every parameter was filled, by as many tensors as they are fused from."""
        enough = self._update.copied or len(self._update.names) >= self._needed
        return enough and not self._update.missing

    def _follow(self) -> bool:
        """Watch the model that the runner has now; return whether it replaced another one."""
        model = model_of(self._runner)
        if model is self._model:
            return False
        replaced = self._model is not None
        self._model = model
        self._parameters = {name for name, _ in model.named_parameters()}
        fused = getattr(model, "packed_modules_mapping", None) or {}
        self._needed = sum(tensors_of(name, fused) for name in self._parameters)
        self._update = Tensors(self._parameters)
        self._sample = WeightSample(model, getattr(self._runner, "vllm_config", None))
        _watched[model] = weakref.ref(self)
        wrap(type(model))
        return replaced

    def _take_calls(self) -> int:
        calls, self._calls = self._calls, 0
        return calls

    def _take_failure(self) -> str:
        failed, self._failed = self._failed, ""
        if failed:
            self._update = Tensors(self._parameters)  # what follows is another attempt
        return failed


def model_of(runner: Any) -> Any:
    """The model itself: runners may wrap it."""
    return runner.get_model() if hasattr(runner, "get_model") else runner.model


def tensors_of(parameter: str, fused: Mapping[str, Collection[str]]) -> int:
    """How many tensors of a checkpoint a parameter is made of."""
    return max((len(fused[part]) for part in parameter.split(".") if part in fused), default=1)


def wrap(owner: type) -> None:
    """Wrap ``load_weights`` of a class of models. Idempotent."""
    original = getattr(owner, LOAD, None)
    if original is None or hasattr(vars(owner).get(LOAD), "rltop_original"):
        return

    @functools.wraps(original)
    def load_weights(model: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        watch = watch_on(model)
        if watch is None:
            return original(model, weights, *args, **kwargs)
        names: list[str] = []
        try:
            filled = original(model, _followed(weights, names), *args, **kwargs)
        except Exception as error:
            _guard.run(LOAD, watch.failed, names, error)
            raise
        _guard.run(LOAD, watch.loaded, names, filled)
        return filled

    load_weights.rltop_original = vars(owner).get(LOAD)  # type: ignore[attr-defined] # for ``unwrap``
    load_weights.rltop_wrapper = load_weights  # type: ignore[attr-defined] # a wrapper around it may copy its attributes
    setattr(owner, LOAD, load_weights)


def unwrap(owner: type) -> None:
    """Undo ``wrap``. A method that was wrapped again since keeps its wrapper, and ours idles inside."""
    found: Any = vars(owner).get(LOAD)
    if not hasattr(found, "rltop_wrapper") or found.rltop_wrapper is not found:
        return
    if found.rltop_original is None:
        delattr(owner, LOAD)
    else:
        setattr(owner, LOAD, found.rltop_original)


def _followed(weights: Any, names: list[str]) -> Any:
    """``weights`` as the caller passed them, with their names appended to ``names``, at the latest as they are read."""
    if isinstance(weights, READABLE):
        names += [str(item[0]) for item in weights if isinstance(item, tuple)]
        return weights
    return _read(weights, names)


def _read(weights: Iterable[Any], names: list[str]) -> Iterator[Any]:
    for item in weights:
        if isinstance(item, tuple):
            names.append(str(item[0]))
        yield item


def report(worker: Any, call: int, step: int, compares: bool = True) -> Report:
    """This rank's report, with ``call``. Call 1 of a collector begins to watch. Never raises: see ``one_rank``."""
    try:
        return watch_of(worker, begins=call == 1).report(step, compares) | {"call": call}
    except Exception as fault:  # noqa: BLE001 - as above
        return {"call": call, "fault": f"{type(fault).__name__}: {fault}"}


def watch_here(answer: Report) -> WeightWatch | None:
    """The watch that gave an answer; None if it is in another process."""
    here = (watch() for watch in _watched.values())
    return next((watch for watch in here if answer["watch"] == (os.getpid(), id(watch))), None)


def watch_on(model: Any) -> WeightWatch | None:
    """The watch of a model; None if no runner uses it."""
    watch = _watched.get(model)
    return None if watch is None else watch()


def filled_by(model: Any) -> int:
    """How many parameters of a model were filled so far; 0 if it is not watched."""
    watch = watch_on(model)
    return 0 if watch is None else watch.filled


def watch_of(worker: Any, *, begins: bool) -> WeightWatch:
    """The watch of a worker in this process; another one if a collector ``begins``: an earlier one had its own."""
    watch = None if begins else vars(worker).get(ATTRIBUTE)
    if watch is None:
        watch = WeightWatch(worker.model_runner)
        setattr(worker, ATTRIBUTE, watch)
    return watch
