"""Record the run that comes with the package: `rltop replay --sample`.

    .venv/bin/python scripts/sample.py

The real demo on this machine (some minutes), at temperature 0.7, with flags switched as it goes; the fault is injected
by a switch as well: raw logprobs, which at this temperature are not those that were sampled from. Token ids stay in, so
that every view has something to show. To be done again when steps gain metrics. What happens when is written down in
docs/history.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rltop.backend.client.replay import SAMPLE
from rltop.backend.exporters.recording import record

SETTINGS = (
    "8:prefix_caching=off",
    "16:prefix_caching=on",
    "20:async_scheduling=off",
    "26:async_scheduling=on",
    "32:logprobs_mode=raw",
    "46:logprobs_mode=processed",
)


def main() -> int:
    """Run the demo and record it; its exit code."""
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as home:
        command = [sys.executable, "-m", "rltop.tui.cli.main", "demo", "--headless", "--run", "sort", "--steps", "60"]
        command += ["--temperature", "0.7", *(part for text in SETTINGS for part in ("--set", text))]
        code = subprocess.run(command, env={**os.environ, "RLTOP_HOME": home}, check=False).returncode
        if code == 0:
            SAMPLE.parent.mkdir(exist_ok=True)
            print(record(Path(home) / "sort", SAMPLE, with_text=True, overwrite=True), "bytes", SAMPLE)
        return code


if __name__ == "__main__":
    sys.exit(main())
