"""What the refit guard found after the last update of each engine, as findings. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import certain, unknown
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine


def refit(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``refit``: the weights of each engine after its last update."""
    engines = evidence.input.present
    known = {name: one.refit for name, one in engines.items() if one.refit is not None}
    if not known:
        yield unknown("refit", "no answer of the refit guard: it compares weights after an update")
    alike = len({one.verdict for one in known.values()}) == 1 and known.keys() == engines.keys()
    for name, check in known.items():
        since = check.since_step if check.is_faulty else None
        yield certain("refit", check.verdict, since, None if alike else name, 0, f"{name}: {check.text}", "")
        if alike:
            return
