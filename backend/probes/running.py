"""The probes under way: what was asked of whom, what came back, and the judgement once all of it is there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeFinding, ProbeResult
from rltop.backend.commands.audit import AuditLine
from rltop.backend.fleet.facts import same_text
from rltop.backend.probes.digest_verdict import KnownDigests
from rltop.backend.probes.from_hub_state import config_diff, token_echo
from rltop.backend.probes.inputs import ScoringInput
from rltop.backend.probes.reports import Report
from rltop.backend.probes.scores import crossed, rescored, salted
from rltop.collectors.contract import wire
from rltop.collectors.contract.probes import BY_NAME, HUB

REPORT_S = 3.0
"""A report leaves an engine before its last word on the command, by another socket: for so long it is waited for."""


@dataclass(slots=True)
class RunningProbe:
    """One probe's command: the engines it was asked of, and their reports so far."""

    command: str
    probe: str
    engines: list[str]
    chosen: dict[str, list[ScoringInput]]
    reports: dict[str, Report] = field(default_factory=dict)
    closed: float | None = None


class RunningProbes:
    """All probes of this hub.

    Attributes:
        weights: what is known of digests.
    """

    def __init__(self) -> None:
        self.weights = KnownDigests()
        self._lives: dict[str, str] = {}
        self._asked: dict[str, RunningProbe] = {}
        self._results: list[ProbeResult] = []

    def restore(self, lines: Iterable[AuditLine]) -> None:
        """What the log of earlier hubs has of probes that ended."""
        results = [line.result for line in lines if line.result is not None]
        self._results += results[-api.MAX_PROBES :]

    def begun(self, command: str, probe: str, engines: list[str], chosen: dict[str, list[ScoringInput]]) -> None:
        """A probe was asked for; ``chosen`` is what its engines score."""
        self._asked[command] = RunningProbe(command, probe, engines, chosen)

    def report(self, body: wire.ProbeReport, arrays: wire.Arrays, life: str) -> None:
        """What the engine's process with this epoch measured. Raises ``WireError`` where sizes do not fit."""
        report = Report.of(body, arrays)
        self._lives[body.engine] = life
        asked = self._asked.get(body.command)
        if asked is not None and body.engine in asked.engines:
            asked.reports[body.engine] = report

    def finish(self, changes: Mapping[str, list[api.Change]], picture: api.Snapshot, now: float) -> list[ProbeResult]:
        """The probes that are over by now, judged.

        Args:
            changes: by command, of the probes in ``open``.
            picture: of the run.
            now: seconds.
        """
        results, self._results = self._results, []
        for asked in list(self._asked.values()):
            mine = changes.get(asked.command, [])
            if not all(change.state in api.TERMINAL for change in mine):
                continue
            asked.closed = asked.closed or now
            applied = {change.engine for change in mine if change.state == "applied"}
            waits = BY_NAME[asked.probe].by != HUB and not applied <= asked.reports.keys()
            if waits and now - asked.closed < REPORT_S:
                continue
            del self._asked[asked.command]
            results.append(self._judged(asked, mine, picture, now))
        return results

    @property
    def open(self) -> list[str]:
        """Commands of probes that are not judged yet."""
        return list(self._asked)

    def _judged(self, asked: RunningProbe, changes: list[api.Change], picture: api.Snapshot, now: float) -> ProbeResult:
        probe = BY_NAME[asked.probe]
        failed = [change for change in changes if change.state != "applied"]
        notes = [f"{change.engine}: {change.reason}" for change in failed]
        found = self._finding(asked, failed, picture)
        fields = msgspec.structs.asdict(found) | {"notes": [*found.notes, *notes]}
        return ProbeResult(
            asked.command,
            probe.name,
            probe.code,
            asked.engines,
            time=now,
            step=max(picture.steps, default=None),
            **fields,
        )

    def _finding(self, asked: RunningProbe, failed: list[api.Change], picture: api.Snapshot) -> ProbeFinding:
        if asked.probe == "config-diff":
            return config_diff(picture, asked.engines)
        if asked.probe == "token-echo":
            return token_echo(picture)
        if len(asked.reports) < BY_NAME[asked.probe].engines:
            return _nothing(failed)
        if asked.probe == "weight-digest":
            return self.weights.judge(asked.reports, self._lives)
        dtypes = {e: picture.engines[e].fingerprint.get("dtype", "") for e in asked.reports if e in picture.engines}
        if asked.probe == "cache-salt":
            return salted(asked.reports, dtypes)
        if asked.probe == "prefill-rescore":
            return rescored(asked.reports, asked.chosen, dtypes)
        neutral = same_text(picture.trainer.facts.get("temperature", "1"), "1")
        return crossed(asked.reports, asked.chosen, dtypes, neutral)


def _nothing(failed: list[api.Change]) -> ProbeFinding:
    """Too few engines did it."""
    overtaken = [change for change in failed if change.state == "superseded"]
    if overtaken:
        return ProbeFinding("overtaken", "it was overtaken before enough engines had answered")
    return ProbeFinding("refused" if failed else "unclear", "too few engines answered")
