"""Joins the rows of runs of ``bench.gpu_suite`` and ``bench.gpu_updates``: ``python -m bench.gpu_table OUT``.

OUT has the tars of ``bench/gpu_demo.sh``, or folders with ``rows.json``. Writes ``table.json`` and ``table.md`` to the
current folder and prints the latter.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("size", "runner", "part", "switch", "outcome", "times", "ms", "in flight", "lost", "says")
SAYS = 240
"""Maximum characters of the last column; the JSON has the full text."""


def documents(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and ``rows.json`` of each run."""
    for tar_path in sorted(out.rglob("*.tar")):
        with tarfile.open(tar_path) as tar:
            for member in tar.getmembers():
                if member.name.endswith("/rows.json") and (file := tar.extractfile(member)):
                    yield member.name.split("/")[0], json.load(file)
    for path in sorted(out.rglob("rows.json")):
        yield path.parent.name, json.loads(path.read_text())


def line(row: dict[str, Any]) -> str:
    """One row as Markdown."""
    low, high = row.get("in_flight", ("", ""))
    took = f"{row['ms']} (to {row['ms_max']})" if "ms_max" in row else row.get("ms", "")
    cells = row | {"ms": took, "in flight": f"{low} to {high}" if low != high else low, "says": row["says"][:SAYS]}
    return "| " + " | ".join(str(cells.get(name, "")).replace("|", "/").replace("\n", " ") for name in COLUMNS) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    runs = [{"run": name} | document for name, document in documents(parser.parse_args().out)]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [line(row) for run in runs for row in run["rows"]]
    Path("table.json").write_text(json.dumps(runs, indent=1) + "\n")
    Path("table.md").write_text("\n".join([*(f"- {run['run']}: {run['head']}" for run in runs), "", *lines]) + "\n")
    print(Path("table.md").read_text())


if __name__ == "__main__":
    main()
