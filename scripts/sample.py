"""Record the sample run of the package, shown by `rltop replay --sample`.

    .venv/bin/python scripts/sample.py

Runs the real demo on this machine (some minutes) at temperature 0.7 and switches flags during the run. The fault is one
of the switches: raw logprobs, which at this temperature are not the logprobs of the sampled distribution. Token ids are
included, so that every view has data. Record it again when steps get new metrics. docs/history.md describes the run.
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
    """Run the demo and record it. Returns the demo's exit code."""
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
