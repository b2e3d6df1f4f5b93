"""Results of probes, as data and as text. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""


class ProbeEvidence(msgspec.Struct, frozen=True):
    """One number of the evidence.

    Attributes:
        name: of the number.
        value: in ``unit`` (empty: a share or a count); None if not known.
        low, high: its 95 % interval, with each of ``of`` as one observation; None without one.
        n, of: number and kind of the observations.
        engine: the engine or pair of engines; empty for all.
    """

    name: str
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 0
    of: str = ""
    engine: str = ""


class ProbeResult(msgspec.Struct, frozen=True):
    """The result of a probe.

    Attributes:
        command: id of its command. probe, code: as in ``rltop.collectors.contract.probes``.
        engines: probed engines.
        verdict: one of the verdicts that the probe defines.
        text: the verdict as a sentence, with the most important numbers.
        odd: deviating engines, if the verdict is about some.
        evidence: the numbers.
        time: wall clock of the hub, seconds. step: last closed step. policy_version: of the probed weights.
        notes: further remarks, one sentence each.
    """

    command: str
    probe: str
    code: str
    engines: list[str]
    verdict: str
    text: str
    odd: list[str] = []
    evidence: list[ProbeEvidence] = []
    time: float = 0.0
    step: int | None = None
    policy_version: int | None = None
    notes: list[str] = []


class ProbeFinding(msgspec.Struct, frozen=True):
    """The part of a result that evaluates the reports; the fields are those of ``ProbeResult``."""

    verdict: str
    text: str
    odd: list[str] = []
    evidence: list[ProbeEvidence] = []
    policy_version: int | None = None
    notes: list[str] = []


def share(name: str, hits: int, n: int, of: str, engine: str = "") -> ProbeEvidence:
    """A share with its Wilson interval (Wilson 1927, JASA 22:209)."""
    if not n:
        return ProbeEvidence(name, None, n=0, of=of, engine=engine)
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return ProbeEvidence(name, p, "", min(max(middle - half, 0.0), p), max(min(middle + half, 1.0), p), n, of, engine)


def mean(name: str, values: Sequence[float], unit: str, of: str, engine: str = "") -> ProbeEvidence:
    """The mean of independent observations with Student's interval; no interval for fewer than two."""
    n = len(values)
    if not n:
        return ProbeEvidence(name, None, unit, n=0, of=of, engine=engine)
    middle = math.fsum(values) / n
    if n < 2:
        return ProbeEvidence(name, middle, unit, n=n, of=of, engine=engine)
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1))
    half = student(n - 1) * spread / math.sqrt(n)
    return ProbeEvidence(name, middle, unit, middle - half, middle + half, n, of, engine)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5).

    Exact for 1 and 2 degrees of freedom, otherwise within 1 %.
    """
    if freedom < 3:
        return (math.inf, 12.706204736, 4.302652730)[freedom]
    z, v = Z, freedom
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return z + sum(terms)


def as_json(result: ProbeResult) -> dict[str, Any]:
    """The result as plain values; None for values that are not finite."""
    found: dict[str, Any] = msgspec.to_builtins(result)
    for entry in found["evidence"]:
        for name in ("value", "low", "high"):
            if entry[name] is not None and not math.isfinite(entry[name]):
                entry[name] = None
    return found


def as_text(result: ProbeResult) -> str:
    """The verdict, followed by the numbers."""
    head = f"{result.probe} ({result.code}) on {', '.join(result.engines) or 'no engine'}: {result.verdict}"
    version = "" if result.policy_version is None else f", policy version {result.policy_version}"
    step = "" if result.step is None else f", after step {result.step}"
    lines = [f"{head} [{result.command}{version}{step}]", f"  {result.text}"]
    lines += [f"  {note}" for note in result.notes]
    return "\n".join([*lines, *(f"    {_line(entry)}" for entry in result.evidence)])


def _line(entry: ProbeEvidence) -> str:
    where = f"{entry.engine}: " if entry.engine else ""
    value = "unknown" if entry.value is None else f"{entry.value:.4g}"
    words = [f"{where}{entry.name} {value}{f' {entry.unit}' if entry.unit else ''}"]
    if entry.low is not None and entry.high is not None:
        words.append(f"[{entry.low:.3g}, {entry.high:.3g}]")
    if entry.n:
        words.append(f"of {entry.n} {entry.of}".rstrip())
    return " ".join(words)
