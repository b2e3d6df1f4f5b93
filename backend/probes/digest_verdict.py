"""Verdict on weight digests: across the fleet, against earlier digests, and against the trainer. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rltop.backend.api.probe_result import ProbeEvidence, ProbeFinding
from rltop.backend.fleet.facts import some
from rltop.backend.probes.reports import EngineReport
from rltop.collectors.contract import wire

WEIGHTS = frozenset({"parameter", "packed"})
"""Kinds of tensors that a weight update changes; buffers and others may stay unchanged or differ by machine."""

PACKED_MARK = " (packed)"
"""Suffix of a packed copy's name if the engine has its parameter too."""

MIN_ELEMENTS = 4096
"""A smaller weight may be unchanged by an update: at a small learning rate no element may cross a bfloat16 step."""

VERSIONS = 32
"""Number of trainer versions whose digests are kept, the newest."""

_FULL = 1 << 64

WeightDigests = dict[tuple[str, int], str]
"""Digest of each weight by its name and rank."""


@dataclass(frozen=True, slots=True)
class LastDigest:
    """The last digests of an engine process (``epoch``), after a number of weight updates."""

    epoch: str
    updates: int
    weights: WeightDigests


class KnownDigests:
    """Digests of earlier probes and of the trainer, which new ones are compared with."""

    def __init__(self) -> None:
        self._last: dict[str, LastDigest] = {}
        self._trainer: OrderedDict[int, dict[str, str]] = OrderedDict()

    def add_trainer_digests(self, body: wire.StepClosed) -> None:
        """Add the trainer's digests after a step; each rank may pass some of the tensors."""
        if body.weight_digests and body.policy_version is not None:
            known = self._trainer.setdefault(body.policy_version, {})
            known.update(body.weight_digests)
            while len(self._trainer) > VERSIONS:
                self._trainer.popitem(last=False)

    def judge(self, reports: Mapping[str, EngineReport], epochs: Mapping[str, str]) -> ProbeFinding:
        """The finding of one probe. Its reports are what the next probe is compared with.

        Args:
            reports: by engine.
            epochs: of each engine's process; digests of an earlier process are ignored.
        """
        present = {engine: _weights(report) for engine, report in sorted(reports.items())}
        before = {e: self._last[e] for e in present if e in self._last and self._last[e].epoch == epochs.get(e)}
        for engine, report in reports.items():
            body = report.body
            self._last[engine] = LastDigest(epochs.get(engine, ""), body.weight_updates, present[engine])
        versions = {engine: report.body.policy_version for engine, report in sorted(reports.items())}
        changes = {engine: _change(present[engine], reports[engine].body, before.get(engine)) for engine in present}
        trainer = {e: _with_trainer(reports[e].body, self._trainer.get(v) if v is not None else None)
                   for e, v in versions.items()}  # fmt: skip
        notes = [*_versions(versions), *(f"{engine}: {change.text}" for engine, change in changes.items())]
        notes += [f"{engine}: {match.text}" for engine, match in trainer.items() if match.text]
        notes += [note for engine, report in sorted(reports.items()) for note in _of_report(engine, report)]
        evidence = [*_counts(present, changes, trainer), *_costs(reports)]
        verdict, text, odd = _verdict(present, versions, changes, trainer)
        version = next(iter(versions.values())) if len(set(versions.values())) == 1 else None
        return ProbeFinding(verdict, text, odd, evidence, version, notes)


@dataclass(frozen=True, slots=True)
class WeightChange:
    """An engine's weights compared with its last digest.

    Attributes:
        updates: weight updates since then; None: no earlier digest.
        changed: number of changed weights.
        unchanged: names of unchanged weights with at least ``MIN_ELEMENTS`` elements.
        text: the same for people.
    """

    updates: int | None
    changed: int
    unchanged: list[str]
    text: str

    @property
    def not_applied(self) -> bool:
        """Updates were counted, but no weight changed."""
        return bool(self.updates) and not self.changed

    @property
    def partial(self) -> bool:
        """An update changed only some of the weights."""
        return bool(self.updates) and self.changed > 0 and bool(self.unchanged)


@dataclass(frozen=True, slots=True)
class DigestMatch:
    """An engine's weights compared with the trainer's of the same version."""

    compared: int
    differ: list[str]
    text: str


def _weights(report: EngineReport) -> WeightDigests:
    return {(one.name, one.rank): one.whole for one in report.body.digests if one.kind in WEIGHTS}


def _change(now: WeightDigests, body: wire.ProbeReport, last: LastDigest | None) -> WeightChange:
    if last is None:
        return WeightChange(None, 0, [], "no earlier digest to compare with; run it again after the next update")
    updates = body.weight_updates - last.updates
    same = sorted({name for (name, rank), whole in now.items() if last.weights.get((name, rank)) == whole})
    large = {one.name for one in body.digests if one.elements >= MIN_ELEMENTS}
    total = len({name for name, _ in now})
    changed, unchanged = total - len(same), [name for name in same if name in large]
    since = f"{updates} update{'s' * (updates != 1)} since the last digest"
    if not updates:
        text = f"{changed} weights changed without a weight update" if changed else "the weights are unchanged"
        return WeightChange(0, changed, unchanged, f"{since}; {text}")
    text = f"{since} changed {changed} of {total} weights"
    text += f"; unchanged: {some(unchanged)}" if unchanged and changed else ""
    return WeightChange(updates, changed, unchanged, text)


def _with_trainer(body: wire.ProbeReport, trainer: Mapping[str, str] | None) -> DigestMatch:
    """Row checksums are additive: over the trainer's parts of a fused tensor, and over ranks."""
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
        parts = [trainer.get(part) for part in checkpoint_parts(name.removesuffix(PACKED_MARK), body.fused)]
        if any(part is None or part.partition(":")[0] != digests[0].dtype for part in parts):
            continue  # another name or another dtype in the trainer
        compared += 1
        here = _rank_sums(digests)
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
        return DigestMatch(0, [], "none of the trainer's digests matches a weight of this engine by name and dtype")
    text = f"{compared - len(differ)} of {compared} weights match the trainer's of this version"
    return DigestMatch(compared, differ, text + (f"; different: {some(differ)}" if differ else ""))


@dataclass(frozen=True, slots=True)
class RankSums:
    """Sums of the checksums of a tensor's ranks; ``rows`` also has the checksum of one rank if all are equal."""

    rows: frozenset[int]
    columns: int


def _rank_sums(digests: list[wire.Digest]) -> RankSums:
    """The sums over the ranks, which are replicas, or cut the tensor by rows or by columns."""
    rows = {one.rows for one in digests}
    replicated = {_sum(rows)} if len(rows) == 1 else set()
    return RankSums(
        frozenset({_sum(one.rows for one in digests), *replicated}), _sum(one.columns or "0" for one in digests)
    )


def _sum(hexes: Iterable[str]) -> int:
    return sum(int(one, 16) for one in hexes) % _FULL


def checkpoint_parts(name: str, fused: Mapping[str, list[str]]) -> list[str]:
    """The checkpoint's names of a tensor: ``q_proj``, ``k_proj``, ``v_proj`` for ``qkv_proj``."""
    words = name.split(".")
    for at, word in enumerate(words):
        if word in fused:
            return [".".join([*words[:at], part, *words[at + 1 :]]) for part in fused[word]]
    return [name]


def _verdict(
    present: Mapping[str, WeightDigests],
    versions: Mapping[str, int | None],
    changes: Mapping[str, WeightChange],
    trainer: Mapping[str, DigestMatch],
) -> tuple[str, str, list[str]]:
    groups = _equal_groups(present, versions)
    for version, equal in groups.items():
        if len(equal) > 1:
            return "differ", *_differing(version, equal, present, changes, trainer)
    right = {engine for engine, match in trainer.items() if match.compared and not match.differ}
    changes = {engine: change for engine, change in changes.items() if engine not in right}
    stale = [engine for engine, change in changes.items() if change.not_applied]
    if stale:
        return "not_applied", f"The last update changed no weight of {some(stale)}.", stale
    partial = [engine for engine, change in changes.items() if change.partial]
    if partial:
        left = changes[partial[0]].unchanged
        return (
            "partial",
            f"The last update left {len(left)} weights of {some(partial)} unchanged: {some(left)}.",
            partial,
        )
    wrong = [engine for engine, match in trainer.items() if match.differ]
    if wrong:
        left = trainer[wrong[0]].differ
        return (
            "not_the_trainer",
            f"{len(left)} weights of {some(wrong)} differ from the trainer's: {some(left)}.",
            wrong,
        )
    count = len(next(iter(present.values()), {}))
    if len(present) == 1:
        return "agree", f"No fault found in {count} weights of {next(iter(present))}.", []
    alone = " (no two have the same version)" if len(groups) == len(present) else ""
    return "agree", f"{count} weights are the same on {some(list(present))}{alone}.", []


def _equal_groups(
    present: Mapping[str, WeightDigests], versions: Mapping[str, int | None]
) -> dict[int | None, list[list[str]]]:
    """Per version, the groups of engines with equal weights."""
    by_version: dict[int | None, list[list[str]]] = {}
    for engine, weights in present.items():
        groups = by_version.setdefault(versions[engine], [])
        group = next((one for one in groups if present[one[0]] == weights), None)
        if group is None:
            groups.append([engine])
        else:
            group.append(engine)
    return by_version


def _differing(
    version: int | None,
    groups: list[list[str]],
    present: Mapping[str, WeightDigests],
    changes: Mapping[str, WeightChange],
    trainer: Mapping[str, DigestMatch],
) -> tuple[str, list[str]]:
    """The text for engines of one version with different weights, and which of them stand out."""
    engines = [engine for group in groups for engine in group]
    first, second = present[groups[0][0]], present[groups[1][0]]
    names = sorted(
        {name for name, rank in first.keys() | second.keys() if first.get((name, rank)) != second.get((name, rank))}
    )
    total = len({name for name, _ in first.keys() | second.keys()})
    between = " and ".join(some(group) for group in groups)
    number = "unknown" if version is None else version
    text = f"{len(names)} of {total} weights differ between {between}, all of version {number}: {some(names)}."
    odd, why = _odd(groups, engines, changes, trainer)
    return f"{text} {why}", odd


def _odd(
    groups: list[list[str]], engines: list[str], changes: Mapping[str, WeightChange], trainer: Mapping[str, DigestMatch]
) -> tuple[list[str], str]:
    wrong = [engine for engine in engines if trainer[engine].differ]
    if wrong and any(trainer[engine].compared and not trainer[engine].differ for engine in engines):
        return wrong, f"Those of {some(wrong)} differ from the trainer's."
    stale = [engine for engine in engines if changes[engine].not_applied]
    if stale and any(changes[engine].changed for engine in engines):
        return stale, f"{some(stale)} counted an update that changed no weight."
    most = max(map(len, groups))
    if sum(len(group) == most for group in groups) == 1:
        odd = [engine for group in groups if len(group) < most for engine in group]
        return odd, f"{some(odd)} differ{'s' * (len(odd) == 1)} from the other {most}."
    return [], (
        "This alone does not show which of them is wrong: run it again after the next update, pass the trainer's "
        "digests, or run cross-replica."
    )


def _versions(versions: Mapping[str, int | None]) -> list[str]:
    if len(set(versions.values())) < 2:
        return []
    each = ", ".join(f"{engine} {version}" for engine, version in versions.items())
    return [f"Engines had different versions ({each}); only engines of the same version are compared."]


def _of_report(engine: str, report: EngineReport) -> list[str]:
    unread = sorted({one.name for one in report.body.digests if one.kind == "unread"})
    notes = [f"{engine}: {note}" for note in report.body.notes]
    return notes + ([f"{engine}: not readable: {some(unread)}"] if unread else [])


def _counts(
    present: Mapping[str, WeightDigests], changes: Mapping[str, WeightChange], trainer: Mapping[str, DigestMatch]
) -> Iterable[ProbeEvidence]:
    for engine, weights in present.items():
        change, match = changes[engine], trainer[engine]
        count = len({name for name, _ in weights})
        yield ProbeEvidence("weights read", float(count), engine=engine)
        if change.updates:
            yield ProbeEvidence(
                "weights changed by updates", float(change.changed), n=count, of="weights", engine=engine
            )
        if match.compared:
            name = "weights that differ from the trainer's"
            yield ProbeEvidence(name, float(len(match.differ)), n=match.compared, of="weights", engine=engine)


def _costs(reports: Mapping[str, EngineReport]) -> Iterable[ProbeEvidence]:
    for engine, report in sorted(reports.items()):
        yield ProbeEvidence("engine stalled for", 1e3 * report.body.stall_s, "ms", engine=engine)
        yield ProbeEvidence("longest stall", 1e3 * report.body.longest_s, "ms", engine=engine)
