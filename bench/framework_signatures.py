"""Writes tests/data/framework_signatures.json: the parameters of the functions that adapters observe, per framework.

    python -m bench.framework_signatures NAME FOLDER VERSION

FOLDER is a checkout or a folder with the package in it; nothing is imported. Tests compare the hooks with the table.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

from rltop.backend.doctor import integration_check
from rltop.integrations.support.catalogue import BY_NAME

TABLE = Path(__file__).resolve().parent.parent / "tests" / "data" / "framework_signatures.json"


def main(name: str, folder: str, version: str) -> None:
    framework = BY_NAME[name.lower()]
    checked = integration_check.check(framework, Path(folder))
    found = {integration_check.name_of(one.hook): list(one.parameters) for one in checked.hooks}
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table[framework.name] = {"version": version, "read": dt.date.today().isoformat(), "functions": found}
    TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
