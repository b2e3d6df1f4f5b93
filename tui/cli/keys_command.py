"""``rltop keys``: the keys of a run, and new ones."""

from __future__ import annotations

import time
from typing import Any

import click

from rltop.collectors.contract.keys import RunKey, RunKeyError, run_keys
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, existing_run

GIVES = {"control": "to command: set, pause, ack, hub --stop", "hub": "to act as the hub: engines obey no other"}
"""What the key of a role gives its holder."""


@click.command(short_help="Show or renew the keys of a run.")
@click.argument("run", required=False)
@click.option("--rotate", is_flag=True, help="Make new keys. The run goes on; holders of the old ones can't command.")
@as_json_option
def keys(run: str | None, rotate: bool, as_json: bool) -> None:
    """Show the keys of RUN: files in its directory that only you can read.

    Viewers need none. Commands that change engines, answer alarms or stop the hub prove to the hub that they can read
    the control key; the hub proves itself to the engines by the hub key. Fingerprints tell keys apart, and don't reveal
    them.
    """
    found = run_keys(existing_run(run))
    if rotate:
        for key in found.values():
            key.rotate()
    rows = [_row(role, key) for role, key in found.items()]
    if as_json:
        print_json({"keys": rows})
        return
    for row in rows:
        state = row["problem"] or f"fingerprint {row['fingerprint']}, made {time.ctime(row['made'])}"
        echo(f"{row['role']:<8} {state}; {GIVES[row['role']]}; {row['file']}")


def _row(role: str, key: RunKey) -> dict[str, Any]:
    row: dict[str, Any] = {"role": role, "file": str(key.path), "fingerprint": None, "made": None, "problem": None}
    try:
        return row | {"fingerprint": key.fingerprint(), "made": key.path.stat().st_mtime}
    except RunKeyError as error:
        return row | {"problem": str(error)}


COMMANDS = (keys,)
