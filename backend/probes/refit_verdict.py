"""Verdict on an engine's weights after an update: against the trainer's, or against what they were before. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rltop.backend.fleet.facts import some
from rltop.backend.probes.digest_verdict import PACKED_MARK
from rltop.backend.probes.refit_sketches import (
    EngineTensor,
    EngineWeights,
    Sums,
    TrainerState,
    equals,
    factor,
    is_cast,
)
from rltop.collectors.contract.weight_sketch import ROUNDED

LOST_RATIO = 100.0
"""Sums of squares that an update changes by this factor are of no weights any more."""

HEADS = ("lm_head", "output_layer", "embed_out")
"""Modules that project to the vocabulary."""

EQUAL, CAST, SCALED, OLD, LOST, OTHER = "equal", "cast", "scaled", "old", "lost", "other"
"""What one tensor is, compared with the trainer's."""


class Loaded(NamedTuple):
    """One report of an engine, unpacked.

    Attributes:
        weights: by name. fused: as in ``wire.ProbeReport``.
        reason, updates, filled: as in ``wire.RefitReport``.
    """

    weights: EngineWeights
    fused: Mapping[str, list[str]]
    reason: str
    updates: int
    filled: int


@dataclass(frozen=True, slots=True)
class RefitVerdict:
    """The fields are those of ``api.RefitCheck``; ``version`` is the trainer's version that all tensors have.

    ``equal``: names of the tensors that are the trainer's.
    """

    verdict: str
    text: str
    against: str
    compared: int = 0
    tensors: tuple[str, ...] = ()
    version: int | None = None
    equal: frozenset[str] = frozenset()


class Compared(NamedTuple):
    """One tensor beside the trainer's: what it is, a factor if it is scaled, its version if it is old and known."""

    tensor: EngineTensor
    kind: str
    factor: float = 1.0
    version: int | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the trainer's values of some version show it: the tensor is not stored in another layout."""
        return self.kind != OTHER and (self.kind != OLD or self.version is not None)


def against_trainer(
    now: Loaded,
    before: Loaded | None,
    versions: Mapping[int, TrainerState],
    version: int,
    had: int | None = None,
    trusted: Collection[str] = (),
) -> RefitVerdict | None:
    """The verdict on weights that should be the trainer's of ``version``; None if no tensor can be compared.

    Args:
        now: what the engine has.
        before: what it had.
        versions: what the trainer stated.
        version: which the engine should have.
        had: the version that all its tensors were before.
        trusted: tensors that were the trainer's at some time. Others may be stored in another layout: they count only
            if they are the trainer's by a factor, by rounding, or of another version.
    """
    earlier = [(number, versions[number]) for number in sorted(versions, reverse=True) if number < version]
    found = [
        compared
        for tensor in now.weights.values()
        if (compared := _compared(tensor, now, before, versions[version], earlier)) is not None
        and (compared.is_sure or tensor.name in trusted)
    ]
    equal = frozenset(one.tensor.name for one in found if one.kind == EQUAL)
    if not found:
        return None
    wrong = [one for one in found if one.kind != EQUAL]
    names = tuple(one.tensor.name for one in wrong)
    if not wrong:
        return RefitVerdict(
            "agree", f"{len(found)} tensors are the trainer's", "trainer", len(found), (), version, equal
        )
    word, text = _fault(wrong, [one for one in found if one.kind == EQUAL], now, before, version, had)
    return RefitVerdict(word, text, "trainer", len(found), names, None, equal)


def _compared(
    tensor: EngineTensor,
    now: Loaded,
    before: Loaded | None,
    trainer: TrainerState,
    earlier: Iterable[tuple[int, TrainerState]],
) -> Compared | None:
    """The tensor beside the trainer's; None if these can't be compared."""
    stated = trainer.parts_of(tensor.name, now.fused)
    here = None if stated is None else tensor.matching(stated)
    if stated is None or here is None or tensor.dtype not in ROUNDED:
        return None
    if equals(here, stated, tensor.dtype):
        return Compared(tensor, EQUAL)
    if tensor.is_empty:
        return Compared(tensor, LOST)
    for number, state in earlier:
        old = state.parts_of(tensor.name, now.fused)
        if old is not None and equals(here, old, tensor.dtype):
            return Compared(tensor, OLD, version=number)
    if is_cast(here, stated):
        return Compared(tensor, CAST)
    k = factor(here, stated, tensor.dtype)
    if k is not None:
        return Compared(tensor, SCALED, k)
    if before is not None and not _is_changed(tensor, before):
        return Compared(tensor, OLD)
    return Compared(tensor, LOST if _is_garbage(tensor, before) else OTHER)


def _fault(
    wrong: list[Compared],
    equal: list[Compared],
    now: Loaded,
    before: Loaded | None,
    version: int,
    had: int | None,
) -> tuple[str, str]:
    """The verdict and its text, with at least one tensor that is not the trainer's."""
    kinds = {one.kind for one in wrong}
    names = some([one.tensor.name for one in wrong])
    total = len(wrong) + len(equal)
    if LOST in kinds:
        lost = [one.tensor.name for one in wrong if one.kind == LOST]
        return (
            "lost",
            f"{len(lost)} of {total} tensors hold no weights (zeros, no numbers, or another magnitude): {some(lost)}",
        )
    if kinds == {OLD}:
        return _old(wrong, equal, now, before, version)
    if kinds == {CAST}:
        return "cast", f"{len(wrong)} of {total} tensors are the trainer's after rounding to fewer digits: {names}"
    if kinds == {SCALED}:
        factors = f"{min(one.factor for one in wrong):.4g} to {max(one.factor for one in wrong):.4g}"
        return "scaled", f"{len(wrong)} of {total} tensors are the trainer's times {factors}: {names}"
    if now.reason == "wake" or had == version:
        return "lost", f"{len(wrong)} of {total} tensors changed without an update of the trainer: {names}"
    return "differs", f"{len(wrong)} of {total} tensors are not the trainer's: {names}"


def _old(
    wrong: list[Compared], equal: list[Compared], now: Loaded, before: Loaded | None, version: int
) -> tuple[str, str]:
    """The verdict where tensors have values of earlier versions."""
    names, total = some([one.tensor.name for one in wrong]), len(wrong) + len(equal)
    newest = max((one.version for one in wrong if one.version is not None), default=None)
    of_old = "a version before those known" if newest is None else f"version {newest}"
    if _is_head(wrong) and equal:
        return "head", f"the head has the weights of {of_old}, the rest those of {version}: {names}"
    if _moved(equal, before) or (equal and before is None):
        return "partial", f"{len(wrong)} of {total} tensors still have the weights of {of_old}: {names}"
    if before is not None and _is_unchanged(now, before) and now.filled == before.filled:
        return "skipped", f"the update to version {version} loaded nothing: the weights are those of {of_old}"
    behind = "" if newest is None else f", {version - newest} before {version}, which they should be"
    return "late", f"the update to version {version} loaded old weights: those of {of_old}{behind}"


def is_head(name: str) -> bool:
    """Whether the tensor projects to the vocabulary; a tied head may be a packed copy of the embedding."""
    return any(head in name for head in HEADS) or ("embed" in name and name.endswith(PACKED_MARK))


def _is_head(wrong: Iterable[Compared]) -> bool:
    return all(is_head(one.tensor.name) for one in wrong)


def _moved(equal: Iterable[Compared], before: Loaded | None) -> bool:
    """Whether some of the right tensors are right because the update changed them."""
    if before is None:
        return False
    return any(
        one.tensor.name in before.weights and before.weights[one.tensor.name].whole.hashes != one.tensor.whole.hashes
        for one in equal
    )


def _is_unchanged(now: Loaded, before: Loaded) -> bool:
    return not changed(now, before)


def changed(now: Loaded, before: Loaded) -> list[str]:
    """Names of the tensors that are not what they were before."""
    return [name for name, tensor in now.weights.items() if _is_changed(tensor, before)]


def _is_changed(tensor: EngineTensor, before: Loaded) -> bool:
    old = before.weights.get(tensor.name)
    return old is None or old.whole.hashes != tensor.whole.hashes


def _is_garbage(tensor: EngineTensor, before: Loaded | None) -> bool:
    """Whether a tensor's magnitude is none that it would have after an update."""
    old = before.weights.get(tensor.name) if before is not None else None
    return old is not None and not old.is_empty and _is_other_magnitude(tensor.whole, old.whole)


def _is_other_magnitude(here: Sums, old: Sums) -> bool:
    return bool(old.square) and not 1 / LOST_RATIO < here.square / old.square < LOST_RATIO


def against_itself(now: Loaded, before: Loaded | None, repeated: bool) -> RefitVerdict | None:
    """The verdict without the trainer's weights; None where nothing can be said yet.

    Args:
        now: what the engine has.
        before: what it had.
        repeated: the update before changed nothing either.
    """
    size = len(now.weights)
    lost = [name for name, tensor in now.weights.items() if tensor.whole.bad]
    if before is not None:
        known = {name: before.weights[name] for name in now.weights if name in before.weights}
        lost += [name for name, old in known.items() if now.weights[name].is_empty and not old.is_empty]
        lost += [name for name, old in known.items() if _is_other_magnitude(now.weights[name].whole, old.whole)]
    lost = list(dict.fromkeys(lost))
    if lost:
        return _itself("lost", f"{len(lost)} of {size} tensors hold no weights any more: {some(lost)}", size, lost)
    if before is None:
        return None
    moved = changed(now, before)
    if now.reason == "wake" and moved:
        text = f"{len(moved)} of {size} tensors changed without an update since the engine slept: {some(moved)}"
        return _itself("lost", text, size, moved)
    if now.updates == before.updates:
        return None
    if not moved:
        word = "skipped" if repeated else "unchanged"
        return _itself(word, f"the update changed none of {size} tensors", size, list(now.weights))
    if (k := _common_factor(now, before, moved)) is not None:
        return _itself("scaled", f"the update multiplied {len(moved)} of {size} tensors by {k:.4g}", size, moved)
    kept = [name for name in now.weights if name not in set(moved)]
    if kept:
        text = f"the update left {len(kept)} of {size} tensors as they were (frozen, or not loaded): {some(kept)}"
        return _itself("unchanged", text, size, kept)
    return _itself("changed", f"the update changed all of {size} tensors", size, [])


def _itself(verdict: str, text: str, compared: int, tensors: list[str]) -> RefitVerdict:
    return RefitVerdict(verdict, text, "itself", compared, tuple(tensors))


def _common_factor(now: Loaded, before: Loaded, moved: list[str]) -> float | None:
    """The factor that every changed tensor was multiplied by; None if there is none."""
    pairs = [(now.weights[name], before.weights[name]) for name in moved if name in before.weights]
    factors = [factor(here.whole, old.whole, here.dtype) for here, old in pairs]
    known = [k for k in factors if k is not None]
    alike = bool(known) and max(known) - min(known) <= 0.01 * abs(max(known))
    return known[0] if alike and len(known) == len(factors) == len(moved) else None


def against_engines(weights: Mapping[str, Loaded], befores: Mapping[str, Loaded | None]) -> dict[str, RefitVerdict]:
    """The verdicts on engines of one version, by engine; those that stand out, if it can be told, are faulty."""
    groups: list[list[str]] = []
    for engine, loaded in weights.items():
        same = (group for group in groups if _differing(weights[group[0]], loaded) == [])
        group = next(same, None)
        groups.append([engine]) if group is None else group.append(engine)
    size = len(next(iter(weights.values())).weights)
    if len(groups) == 1:
        text = f"{size} tensors are the same on {some(list(weights))}"
        return {engine: RefitVerdict("alike", text, "engines", size) for engine in weights}
    still = [e for e, b in befores.items() if b is not None and b.updates != weights[e].updates]
    still = [engine for engine in still if (old := befores[engine]) and _is_unchanged(weights[engine], old)]
    most = max(groups, key=len)
    alone = sum(len(group) == len(most) for group in groups) > 1
    if still and len(still) < len(weights):
        text = "the update loaded nothing here, and other weights on the other engines"
        return {engine: RefitVerdict("skipped", text, "engines", size) for engine in still}
    odd = [engine for group in groups if alone or group is not most for engine in group]
    return {engine: _odd(engine, odd, weights, most, size) for engine in odd}


def _odd(engine: str, odd: list[str], weights: Mapping[str, Loaded], most: list[str], size: int) -> RefitVerdict:
    other = next(one for one in (*most, *odd) if one != engine)
    names = _differing(weights[engine], weights[other])
    text = f"{len(names)} of {size} tensors are not those of {other} at the same version: {some(names)}"
    word = "head" if all(map(is_head, names)) else "differs"
    return RefitVerdict(word, text, "engines", size, tuple(names))


def _differing(one: Loaded, other: Loaded) -> list[str]:
    common = [name for name in one.weights if name in other.weights]
    return [n for n in common if one.weights[n].whole.hashes[0] != other.weights[n].whole.hashes[0]]
