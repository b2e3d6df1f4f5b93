"""What digests of weights say: over the fleet, against what an engine had before, against the trainer. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rltop.backend.api.probe_result import ProbeEvidence, ProbeFinding
from rltop.backend.fleet.facts import some
from rltop.backend.probes.reports import Report
from rltop.collectors.contract import wire

WEIGHTS = frozenset({"parameter", "packed"})
"""Kinds of tensors that a weight update is about; buffers and the rest may stay as they are, or differ by machine."""

PACKED_MARK = " (packed)"
"""Ends the name of a packed copy whose parameter is there too."""

TELLING_ELEMENTS = 4096
"""A weight of fewer elements may stay as it is in an update: at a small learning rate nothing in it crosses a step of
bfloat16. In a larger one something does."""

VERSIONS = 32
"""So many of the trainer's last versions have their digests kept."""

_FULL = 1 << 64

Wholes = dict[tuple[str, int], str]
"""Digest of each weight by its name and rank."""


@dataclass(frozen=True, slots=True)
class LastDigest:
    """The last digest of one engine: in which life, after how many updates, at which version."""

    life: str
    updates: int
    version: int | None
    wholes: Wholes


class KnownDigests:
    """What earlier probes and the trainer said of weights."""

    def __init__(self) -> None:
        self._seen: dict[str, LastDigest] = {}
        self._trainer: OrderedDict[int, dict[str, str]] = OrderedDict()

    def trained(self, body: wire.StepClosed) -> None:
        """The trainer's digests of the weights after a step; ranks may each pass some of the tensors."""
        if body.weight_digests and body.policy_version is not None:
            known = self._trainer.setdefault(body.policy_version, {})
            known.update(body.weight_digests)
            while len(self._trainer) > VERSIONS:
                self._trainer.popitem(last=False)

    def judge(self, reports: Mapping[str, Report], lives: Mapping[str, str]) -> ProbeFinding:
        """What the reports of one probe say; they are what the next is compared with.

        Args:
            reports: by engine.
            lives: epoch of each engine's process: what an earlier one had counts no more.
        """
        present = {engine: _weights(report) for engine, report in sorted(reports.items())}
        before = {e: self._seen[e] for e in present if e in self._seen and self._seen[e].life == lives.get(e)}
        for engine, report in reports.items():
            body = report.body
            self._seen[engine] = LastDigest(
                lives.get(engine, ""), body.weight_updates, body.policy_version, present[engine]
            )
        versions = {engine: report.body.policy_version for engine, report in sorted(reports.items())}
        changes = {engine: _change(present[engine], reports[engine].body, before.get(engine)) for engine in present}
        trainer = {e: _with_trainer(reports[e].body, self._trainer.get(v) if v is not None else None)
                   for e, v in versions.items()}  # fmt: skip
        notes = [*_versions(versions), *(f"{engine}: {change.says}" for engine, change in changes.items())]
        notes += [f"{engine}: {match.says}" for engine, match in trainer.items() if match.says]
        notes += [note for engine, report in sorted(reports.items()) for note in _of_report(engine, report)]
        evidence = [*_counts(present, changes, trainer), *_costs(reports)]
        verdict, text, odd = _verdict(present, versions, changes, trainer)
        version = next(iter(versions.values())) if len(set(versions.values())) == 1 else None
        return ProbeFinding(verdict, text, odd, evidence, version, notes)


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What became of an engine's weights since its last digest. ``updates`` since then; None: no such digest.

    ``changed`` of all weights, ``kept`` of those that are large enough to tell.
    """

    updates: int | None
    changed: int
    kept: list[str]
    says: str

    @property
    def not_applied(self) -> bool:
        """Updates were counted, and nothing is other than it was."""
        return bool(self.updates) and not self.changed

    @property
    def partial(self) -> bool:
        """An update changed some weights, and left others."""
        return bool(self.updates) and self.changed > 0 and bool(self.kept)


@dataclass(frozen=True, slots=True)
class DigestMatch:
    """An engine's weights beside the trainer's of the same version."""

    compared: int
    differ: list[str]
    says: str


def _weights(report: Report) -> Wholes:
    return {(one.name, one.rank): one.whole for one in report.body.digests if one.kind in WEIGHTS}


def _change(now: Wholes, body: wire.ProbeReport, seen: LastDigest | None) -> WeightChange:
    if seen is None:
        return WeightChange(None, 0, [], "no earlier digest to compare with; run it again after the next update")
    updates = body.weight_updates - seen.updates
    same = sorted({name for (name, rank), whole in now.items() if seen.wholes.get((name, rank)) == whole})
    large = {one.name for one in body.digests if one.elements >= TELLING_ELEMENTS}
    total = len({name for name, _ in now})
    changed, kept = total - len(same), [name for name in same if name in large]
    since = f"{updates} update{'s' * (updates != 1)} since the last digest"
    if not updates:
        text = "as they were" if not changed else f"yet {changed} weights changed: by a way that is not seen"
        return WeightChange(0, changed, kept, f"{since}, and the weights are {text}")
    says = f"{since} changed {changed} of {total} weights"
    return WeightChange(updates, changed, kept, says + (f"; as before: {some(kept)}" if kept and changed else ""))


def _with_trainer(body: wire.ProbeReport, trainer: Mapping[str, str] | None) -> DigestMatch:
    """Rows of tensors that the engine has in one add up to those of the trainer's parts; ranks add up likewise."""
    if not trainer:
        return DigestMatch(0, [], "")
    ranks: dict[str, list[wire.Digest]] = {}
    for one in body.digests:
        if one.kind in WEIGHTS:
            ranks.setdefault(one.name, []).append(one)
    differ, compared = [], 0
    for name, digests in sorted(ranks.items()):
        if not digests[0].rows:
            continue
        parts = [trainer.get(part) for part in _parts(name.removesuffix(PACKED_MARK), body.fused)]
        if any(part is None or part.partition(":")[0] != digests[0].dtype for part in parts):
            continue  # under another name there, or of another dtype
        compared += 1
        here = _sums(digests)
        if _sum(str(part).split(":")[1] for part in parts) in here.rows:
            continue
        columns = str(parts[0]).split(":")[2:]
        known = len(parts) == 1 and columns and digests[0].columns
        if known and _sum(columns) == here.columns:
            continue
        if len(digests) > 1 and not known:
            compared -= 1  # cut by columns, or a fused tensor of which ranks share a part
        else:
            differ.append(name)
    if not compared:
        return DigestMatch(0, [], "none of the trainer's digests has a name and dtype of this engine's")
    says = f"{compared - len(differ)} of {compared} weights are the trainer's of this version"
    return DigestMatch(compared, differ, says + (f"; not: {some(differ)}" if differ else ""))


@dataclass(frozen=True, slots=True)
class Sums:
    """What the checksums of a tensor's ranks add up to; ``rows`` also has that of one rank where all are alike."""

    rows: frozenset[int]
    columns: int


def _sums(digests: list[wire.Digest]) -> Sums:
    """Of the ranks: replicas, cut by rows, or cut by columns."""
    rows = {one.rows for one in digests}
    replicated = {_sum(rows)} if len(rows) == 1 else set()
    return Sums(
        frozenset({_sum(one.rows for one in digests), *replicated}), _sum(one.columns or "0" for one in digests)
    )


def _sum(hexes: Iterable[str]) -> int:
    return sum(int(one, 16) for one in hexes) % _FULL


def _parts(name: str, fused: Mapping[str, list[str]]) -> list[str]:
    """The names under which a checkpoint has this tensor: ``q_proj``, ``k_proj``, ``v_proj`` of ``qkv_proj``."""
    words = name.split(".")
    for at, word in enumerate(words):
        if word in fused:
            return [".".join([*words[:at], part, *words[at + 1 :]]) for part in fused[word]]
    return [name]


def _verdict(
    present: Mapping[str, Wholes],
    versions: Mapping[str, int | None],
    changes: Mapping[str, WeightChange],
    trainer: Mapping[str, DigestMatch],
) -> tuple[str, str, list[str]]:
    groups = _groups(present, versions)
    for version, alike in groups.items():
        if len(alike) > 1:
            return "differ", *_differing(version, alike, present, changes, trainer)
    right = {engine for engine, match in trainer.items() if match.compared and not match.differ}
    changes = {engine: change for engine, change in changes.items() if engine not in right}
    stale = [engine for engine, change in changes.items() if change.not_applied]
    if stale:
        return "not_applied", f"Not one weight of {some(stale)} is other than before the last update.", stale
    partial = [engine for engine, change in changes.items() if change.partial]
    if partial:
        left = changes[partial[0]].kept
        return (
            "partial",
            f"The last update of {some(partial)} left {len(left)} weights as they were: {some(left)}.",
            partial,
        )
    wrong = [engine for engine, match in trainer.items() if match.differ]
    if wrong:
        left = trainer[wrong[0]].differ
        return "not_the_trainer", f"{len(left)} weights of {some(wrong)} are not the trainer's: {some(left)}.", wrong
    count = len(next(iter(present.values()), {}))
    if len(present) == 1:
        return "agree", f"{count} weights of {next(iter(present))}; nothing speaks against them.", []
    alone = " (no two of them have the same version)" if len(groups) == len(present) else ""
    return "agree", f"{count} weights are the same on {some(list(present))}{alone}.", []


def _groups(present: Mapping[str, Wholes], versions: Mapping[str, int | None]) -> dict[int | None, list[list[str]]]:
    """Of each version, the engines that have the same weights."""
    found: dict[int | None, list[list[str]]] = {}
    for engine, wholes in present.items():
        groups = found.setdefault(versions[engine], [])
        group = next((one for one in groups if present[one[0]] == wholes), None)
        if group is None:
            groups.append([engine])
        else:
            group.append(engine)
    return found


def _differing(
    version: int | None,
    groups: list[list[str]],
    present: Mapping[str, Wholes],
    changes: Mapping[str, WeightChange],
    trainer: Mapping[str, DigestMatch],
) -> tuple[str, list[str]]:
    """What to say of engines of one version with other weights, and which are the odd ones."""
    engines = [engine for group in groups for engine in group]
    first, second = present[groups[0][0]], present[groups[1][0]]
    names = sorted(
        {name for name, rank in first.keys() | second.keys() if first.get((name, rank)) != second.get((name, rank))}
    )
    total = len({name for name, _ in first.keys() | second.keys()})
    what = f"{len(names)} of {total} weights differ between {' and '.join(some(group) for group in groups)}"
    text = f"{what}, all of version {'unknown' if version is None else version}: {some(names)}."
    odd, why = _odd(groups, engines, changes, trainer)
    return f"{text} {why}", odd


def _odd(
    groups: list[list[str]], engines: list[str], changes: Mapping[str, WeightChange], trainer: Mapping[str, DigestMatch]
) -> tuple[list[str], str]:
    wrong = [engine for engine in engines if trainer[engine].differ]
    if wrong and any(trainer[engine].compared and not trainer[engine].differ for engine in engines):
        return wrong, f"Those of {some(wrong)} are not the trainer's."
    stale = [engine for engine in engines if changes[engine].not_applied]
    if stale and any(changes[engine].changed for engine in engines):
        return stale, f"{some(stale)} counted an update that changed nothing there."
    most = max(map(len, groups))
    if sum(len(group) == most for group in groups) == 1:
        odd = [engine for group in groups if len(group) < most for engine in group]
        return odd, f"{some(odd)} stand{'s' * (len(odd) == 1)} apart from the other {most}."
    return [], (
        "Which of them is right can't be told from this alone: run it again after the next update, pass the trainer's "
        "digests, or ask cross-replica."
    )


def _versions(versions: Mapping[str, int | None]) -> list[str]:
    if len(set(versions.values())) < 2:
        return []
    each = ", ".join(f"{engine} {version}" for engine, version in versions.items())
    return [f"Engines had different versions ({each}); only those of the same are compared."]


def _of_report(engine: str, report: Report) -> list[str]:
    unread = sorted({one.name for one in report.body.digests if one.kind == "unread"})
    notes = [f"{engine}: {note}" for note in report.body.notes]
    return notes + ([f"{engine}: could not be read: {some(unread)}"] if unread else [])


def _counts(
    present: Mapping[str, Wholes], changes: Mapping[str, WeightChange], trainer: Mapping[str, DigestMatch]
) -> Iterable[ProbeEvidence]:
    for engine, wholes in present.items():
        change, match = changes[engine], trainer[engine]
        count = len({name for name, _ in wholes})
        yield ProbeEvidence("weights read", float(count), engine=engine)
        if change.updates:
            yield ProbeEvidence(
                "weights changed by updates", float(change.changed), n=count, of="weights", engine=engine
            )
        if match.compared:
            yield ProbeEvidence("weights unlike the trainer's", float(len(match.differ)), n=match.compared, of="weights",
                           engine=engine)  # fmt: skip


def _costs(reports: Mapping[str, Report]) -> Iterable[ProbeEvidence]:
    for engine, report in sorted(reports.items()):
        yield ProbeEvidence("the engine stood still for", 1e3 * report.body.stall_s, "ms", engine=engine)
        yield ProbeEvidence("the longest at once", 1e3 * report.body.longest_s, "ms", engine=engine)
