"""The table of causes for people: ``python -m rltop.backend.diagnosis.causes.causes_page > docs/causes.md``."""

from __future__ import annotations

from collections.abc import Iterable

from rltop.backend.api.verdict import LAYERS
from rltop.backend.diagnosis.catalogue.all_checks import TESTS
from rltop.backend.diagnosis.causes import CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE, PROBES
from rltop.backend.diagnosis.infer import LEAST, MAYBE, SYMPTOMS, TWO, UNLISTED, UNSTATED

HEAD = f"""\
# Causes

Made from the tables in [`backend/diagnosis/`](../backend/diagnosis):
`python -m rltop.backend.diagnosis.causes.causes_page > docs/causes.md`. `rltop diagnose` says which of them a run has.

A sign is a test and one of its outcomes, with what exactly behind an equal sign; a bar stands between signs of which
one will do. The first outcome of a test is the healthy one, and any test may say `unknown`.

How a cause is found ([`infer.py`](../backend/diagnosis/infer.py)): it is out where something that it *needs* was looked
for and is not there, or where something stands *against* it. An alarming finding that it needs is certain to it; one
that it *may* show counts {MAYBE:g}; any other is chance, and counts the finding's own p, {LEAST:g} at least. Two causes
at once count {TWO:g}; one of a feature that nobody says the run has (*where*), {UNSTATED:g}; a cause that is not in the
table, {UNLISTED:g} for each finding. A cause's confidence is its share of all these. These numbers are choices of order
of magnitude and were not fitted to runs: any alarm has a p below 1e-6, which outweighs them all.

Any cause may show {", ".join(f"`{test} {outcome}`" for test, outcome in SYMPTOMS)}.
"""


def document() -> str:
    """The page."""
    parts = [HEAD]
    for layer in LAYERS:
        parts.append(f"## {layer[0].upper()}{layer[1:]}\n")
        parts += [_entry(known) for known in CAUSES if known.layer == layer]
    parts.append("## Tests\n")
    parts.append(_table(("test", "asks", "outcomes"), ((t.name, t.title, ", ".join(t.outcomes)) for t in TESTS)))
    parts.append("## Probes\n")
    rows = (
        (f"`{probe.name}`", probe.code, probe.does, f"`{probe.runs}`" if probe.runs else "a person") for probe in PROBES
    )
    parts.append(_table(("probe", "code", "what is done", "run by"), rows))
    return "\n".join(parts)


def _entry(known: CauseEntry) -> str:
    signs = [("needs", known.needs), ("may show", known.may), ("against", known.against)]
    lines = [f"### {known.code} {known.title}", "", f"`{known.id}`. {known.what}", ""]
    lines += [f"- **{word}**: {_signs(listed)}" for word, listed in signs if listed]
    if known.one_engine:
        lines.append("- **on**: part of the engines only")
    if known.all_engines:
        lines.append("- **on**: all engines, never on some alone")
    if known.where:
        lines.append(f"- **where**: {_signs(known.where)}")
    others = ", ".join(f"`{other}`" for other in confusable(known))
    probe = f"`{BY_CODE[known.probe].name}` ({known.probe})"
    tells = f"{probe} tells it from {others}" if others else f"{probe} shows it"
    lines.append(f"- **probe**: {tells}")
    lines.append(f"- **do**: {known.remedy}")
    if known.command:
        lines.append(f"- **live**: `{known.command.format(engines='', head='on|off')}`")
    return "\n".join([*lines, f"- **source**: {known.source}", ""])


def _signs(signs: Iterable[str]) -> str:
    return ", ".join(" or ".join(f"`{part.strip()}`" for part in sign.split(" | ")) for sign in signs)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [heads, tuple("---" for _ in heads), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - written to docs/causes.md
