"""Regenerate the pages of docs/ that are rendered from tables in the code: ``make docs``. ``--check`` only compares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

PAGES = {
    "causes": "rltop.backend.diagnosis.causes.causes_page",
    "diagnosis": "rltop.backend.diagnosis.catalogue.checks_page",
    "facts": "rltop.backend.fleet.facts_page",
    "flags": "rltop.collectors.contract.flags",
    "integrations": "rltop.integrations.support.page",
    "metrics": "rltop.backend.metrics",
    "probes": "rltop.collectors.contract.probes",
    "store": "rltop.backend.store.schema",
}
"""Page of docs/ -> module that prints it."""


def render(page: str) -> str:
    """The page as the code has it now."""
    command = [sys.executable, "-m", PAGES[page]]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Write the pages that differ, or with ``--check`` fail if one does."""
    check = arguments == ["--check"]
    stale = []
    for page in PAGES:
        path, text = DOCS / f"{page}.md", render(page)
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.write_text(text)
    if stale:
        print(f"{'stale' if check else 'rewritten'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
