"""Probes in progress: their engines and reports, and the verdict once all reports have arrived. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeFinding, ProbeResult
from rltop.backend.commands.audit import AuditLine
from rltop.backend.fleet.facts import same_text
from rltop.backend.probes.digest_verdict import KnownDigests
from rltop.backend.probes.from_hub_state import config_diff, token_echo
from rltop.backend.probes.inputs import ScoringInput
from rltop.backend.probes.reports import EngineReport
from rltop.backend.probes.scores import judge_cache_salt, judge_cross_replica, judge_rescore
from rltop.collectors.contract import wire
from rltop.collectors.contract.probes import BY_NAME, HUB

REPORT_S = 3.0
"""How long to wait for reports once the command is closed: they are sent before the state, on another socket."""


@dataclass(slots=True)
class RunningProbe:
    """One probe: its command and engines, and the reports so far."""

    command: str
    probe: str
    engines: list[str]
    chosen: dict[str, list[ScoringInput]]
    reports: dict[str, EngineReport] = field(default_factory=dict)
    closed: float | None = None


class RunningProbes:
    """All probes of this hub.

    Attributes:
        weights: digests of earlier probes and of the trainer.
    """

    def __init__(self) -> None:
        self.weights = KnownDigests()
        self._epochs: dict[str, str] = {}
        self._running: dict[str, RunningProbe] = {}
        self._results: list[ProbeResult] = []

    def restore(self, lines: Iterable[AuditLine]) -> None:
        """Load the results of earlier hubs from the audit log."""
        results = [line.result for line in lines if line.result is not None]
        self._results += results[-api.MAX_PROBES :]

    def start(self, command: str, probe: str, engines: list[str], chosen: dict[str, list[ScoringInput]]) -> None:
        """A probe was requested; ``chosen`` has the inputs that each engine scores."""
        self._running[command] = RunningProbe(command, probe, engines, chosen)

    def add_report(self, body: wire.ProbeReport, arrays: wire.Arrays, epoch: str) -> None:
        """Add the measurements of an engine's process. Raises ``WireError`` if the sizes do not match."""
        report = EngineReport.unpack(body, arrays)
        self._epochs[body.engine] = epoch
        running = self._running.get(body.command)
        if running is not None and body.engine in running.engines:
            running.reports[body.engine] = report

    def finish(self, changes: Mapping[str, list[api.Change]], picture: api.Snapshot, now: float) -> list[ProbeResult]:
        """The results of the probes that have ended.

        Args:
            changes: by command, of the probes in ``open``.
            picture: snapshot of the run.
            now: seconds.
        """
        results, self._results = self._results, []
        for running in list(self._running.values()):
            mine = changes.get(running.command, [])
            if not all(change.state in api.TERMINAL for change in mine):
                continue
            running.closed = running.closed or now
            applied = {change.engine for change in mine if change.state == "applied"}
            waits = BY_NAME[running.probe].executed_by != HUB and not applied <= running.reports.keys()
            if waits and now - running.closed < REPORT_S:
                continue
            del self._running[running.command]
            results.append(self._result(running, mine, picture, now))
        return results

    @property
    def open(self) -> list[str]:
        """Commands of the probes without a result."""
        return list(self._running)

    def _result(
        self, running: RunningProbe, changes: list[api.Change], picture: api.Snapshot, now: float
    ) -> ProbeResult:
        probe = BY_NAME[running.probe]
        failed = [change for change in changes if change.state != "applied"]
        notes = [f"{change.engine}: {change.reason}" for change in failed]
        found = self._finding(running, failed, picture)
        fields = msgspec.structs.asdict(found) | {"notes": [*found.notes, *notes]}
        return ProbeResult(
            running.command,
            probe.name,
            probe.code,
            running.engines,
            time=now,
            step=max(picture.steps, default=None),
            **fields,
        )

    def _finding(self, running: RunningProbe, failed: list[api.Change], picture: api.Snapshot) -> ProbeFinding:
        probe = BY_NAME[running.probe]
        if probe.executed_by != HUB and len(running.reports) < probe.min_engines:
            return _too_few_reports(failed)
        return JUDGES[probe.name](self, running, picture)

    def judge_weights(self, running: RunningProbe) -> ProbeFinding:
        """Compare the reported digests with each other and with those in ``weights``."""
        return self.weights.judge(running.reports, self._epochs)


def _too_few_reports(failed: list[api.Change]) -> ProbeFinding:
    """The finding where too few engines reported."""
    if any(change.state == "superseded" for change in failed):
        return ProbeFinding("overtaken", "interrupted by a weight update before enough engines had answered")
    return ProbeFinding("refused" if failed else "unclear", "too few engines answered")


def _dtypes(running: RunningProbe, picture: api.Snapshot) -> dict[str, str]:
    """The dtype of each engine that reported."""
    known = [engine for engine in running.reports if engine in picture.engines]
    return {engine: picture.engines[engine].fingerprint.get("dtype", "") for engine in known}


def _cross_replica(running: RunningProbe, picture: api.Snapshot) -> ProbeFinding:
    neutral = same_text(picture.trainer.facts.get("temperature", "1"), "1")
    return judge_cross_replica(running.reports, running.chosen, _dtypes(running, picture), neutral)


JUDGES: dict[str, Callable[[RunningProbes, RunningProbe, api.Snapshot], ProbeFinding]] = {
    "config-diff": lambda _probes, running, picture: config_diff(picture, running.engines),
    "token-echo": lambda _probes, _running, picture: token_echo(picture),
    "weight-digest": lambda probes, running, _picture: probes.judge_weights(running),
    "prefill-rescore": lambda _probes, running, picture: judge_rescore(
        running.reports, running.chosen, _dtypes(running, picture)
    ),
    "cache-salt": lambda _probes, running, picture: judge_cache_salt(running.reports, _dtypes(running, picture)),
    "cross-replica": lambda _probes, running, picture: _cross_replica(running, picture),
}
"""The finding of each probe that the hub or engines execute, by name of the probe."""
