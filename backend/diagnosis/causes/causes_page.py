"""The table of causes as a page: ``python -m rltop.backend.diagnosis.causes.causes_page > docs/causes.md``."""

from __future__ import annotations

from collections.abc import Iterable

from rltop.backend.api.verdict import LAYERS, SURE
from rltop.backend.diagnosis.catalogue.all_checks import CHECKS
from rltop.backend.diagnosis.causes import CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE, PROBES
from rltop.backend.diagnosis.infer import (
    COMMON_SYMPTOMS,
    MAY_LIKELIHOOD,
    MIN_P,
    PAIR_PRIOR,
    UNLISTED_LIKELIHOOD,
    UNSTATED,
)

HEAD = f"""\
# Causes

Generated from the tables in [`backend/diagnosis/causes/`](../backend/diagnosis/causes):
`python -m rltop.backend.diagnosis.causes.causes_page > docs/causes.md`. `rltop diagnose` names those that fit a run.

A symptom is a check and one of its outcomes, with a detail after an equals sign. The first outcome of a check is the
healthy one; any check may also be `unknown`.

How causes are inferred ([`infer.py`](../backend/diagnosis/infer.py)): a cause is ruled out if a symptom that it *needs*
was checked and is absent, or if a symptom that *excludes* it is present. The likelihood of an alarming finding is 1
under a cause that needs it, {MAY_LIKELIHOOD:g} under one that *may show* it, and else the finding's own p, at least
{MIN_P:g}. Two causes at once have a prior of {PAIR_PRIOR:g}; a cause whose feature (*only if*) is not stated,
{UNSTATED:g}. A cause that is not in the table has a likelihood of {UNLISTED_LIKELIHOOD:g} for each finding. The
confidence in a cause is its share of the total; it is at most even while a symptom that the cause needs, or is *named
only with*, has not been seen. A verdict names a cause from {SURE:g} on.
These numbers are orders of magnitude and were not fitted to runs: an
alarm has a p below 1e-6, which outweighs them all.

Any cause may show {", ".join(f"`{check} {outcome}`" for check, outcome in COMMON_SYMPTOMS)}.
"""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for layer in LAYERS:
        parts.append(f"## {layer[0].upper()}{layer[1:]}\n")
        parts += [_entry(cause) for cause in CAUSES if cause.layer == layer]
    parts.append("## Checks\n")
    parts.append(_table(("check", "subject", "outcomes"), ((c.name, c.title, ", ".join(c.outcomes)) for c in CHECKS)))
    parts.append("## Probes\n")
    rows = (
        (f"`{probe.name}`", probe.code, probe.does, f"`{probe.runs}`" if probe.runs else "manual") for probe in PROBES
    )
    parts.append(_table(("probe", "code", "method", "command"), rows))
    return "\n".join(parts)


def _entry(entry: CauseEntry) -> str:
    symptoms = [
        ("needs", entry.needs),
        ("named only with", entry.proof),
        ("may show", entry.may),
        ("excluded by", entry.against),
    ]
    lines = [f"### {entry.code} {entry.title}", "", f"`{entry.id}`. {entry.what}", ""]
    lines += [f"- **{label}**: {_symptoms(listed)}" for label, listed in symptoms if listed]
    if entry.one_engine:
        lines.append("- **engines**: some, never all")
    if entry.all_engines:
        lines.append("- **engines**: all")
    if entry.where:
        lines.append(f"- **only if**: {_symptoms(entry.where)}")
    if entry.shaped_by:
        lines.append(f"- **not if**: engines state that these have no effect: {', '.join(entry.shaped_by)}")
    others = ", ".join(f"`{other}`" for other in confusable(entry))
    probe = f"`{BY_CODE[entry.probe].name}` ({entry.probe})"
    lines.append(f"- **probe**: {probe}{f', to distinguish it from {others}' if others else ''}")
    lines.append(f"- **fix**: {entry.remedy}")
    lines += [f"- **if `{form.symptom}`**: {form.what} **Fix**: {form.remedy}" for form in entry.variants]
    if entry.command:
        lines.append(f"- **live command**: `{entry.command.format(engines='', head='on|off')}`")
    return "\n".join([*lines, f"- **source**: {entry.source}", ""])


def _symptoms(symptoms: Iterable[str]) -> str:
    return ", ".join(" or ".join(f"`{part.strip()}`" for part in symptom.split(" | ")) for symptom in symptoms)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [heads, tuple("---" for _ in heads), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/causes.md
