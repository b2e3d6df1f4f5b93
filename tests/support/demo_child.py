"""A child process for the tests of the demo's children: starts a child of its own and ends as its job says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from rltop.backend.demo import jobs

if __name__ == "__main__":
    manners = jobs.decode(sys.argv[1], str)
    jobs.end_with_parent()
    if manners == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
                                  stdout=subprocess.PIPE)  # fmt: skip
    assert grandchild.stdout is not None
    grandchild.stdout.readline()
    sys.stdout.write("first line\nsecond")
    sys.stdout.write(f" {grandchild.pid}\n")
    sys.stdout.flush()
    if manners == "failing":
        sys.exit("something that is named")
    time.sleep(600)
