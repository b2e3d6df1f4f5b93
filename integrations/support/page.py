"""``python -m rltop.integrations.support.page > docs/integrations.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rltop.integrations.support.catalogue import FRAMEWORKS, PROOFS, Framework

INTRODUCTION = """\
# Training frameworks

Generated from [`integrations/support/catalogue.py`](../integrations/support/catalogue.py). `rltop integrate NAME`
prints the lines for a framework, and checks the installed version, or the checkout in `--source FOLDER`, by its source:
which functions of the adapter fit, and what is lost where one does not.

An adapter observes functions of the framework inside an error boundary: it changes nothing that the framework computes,
and a fault of its own never reaches it. A function that does not fit costs one warning and what depends on it.
`install()` may be called before the framework is imported, and costs nothing in a process that never imports it.
Engines are attached as everywhere ([`attach.md`](attach.md)): by `RLTOP_RUN` in their environment.

Where a framework has no hook, or for a trainer of your own, call `TrainerCollector` directly
([`examples/attach.py`](../examples/attach.py)). `rltop metrics KEY` translates the names of figures.
"""


def page() -> str:
    """The table of frameworks, and for each the lines to add, what is observed and what is lost."""
    rows = [(framework.name, framework.proof, framework.proven) for framework in FRAMEWORKS]
    return "\n".join(
        [
            INTRODUCTION,
            *_table(("framework", "proof", "version, date, what was run"), rows),
            "",
            *(f"- **{proof}**: {text}." for proof, text in PROOFS.items()),
            "",
            *(line for framework in FRAMEWORKS for line in _section(framework)),
        ]
    )


def _section(framework: Framework) -> list[str]:
    observed = [
        (f"`{hook.function}`", f"`{_owner(hook.owner, framework)}`", hook.provides, hook.verified)
        for hook in framework.hooks
    ]
    table = _table(("observed", "in", "for", "read in version"), observed) if observed else []
    return [
        f"## {framework.name}",
        "",
        f"Add {framework.place}:",
        "",
        "```",
        *framework.lines,
        "```",
        "",
        *table,
        *([""] if table else []),
        f"Not seen: {framework.lost}.",
        "",
    ]


def _owner(owner: str, framework: Framework) -> str:
    return framework.roots.get(owner[1:], owner).replace(":", ".") if owner[0] == "." else owner.replace(":", ".")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heads, tuple("---" for _ in heads), *rows)]


if __name__ == "__main__":
    sys.stdout.write(page())
