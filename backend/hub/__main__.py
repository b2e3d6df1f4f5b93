"""``python -m rltop.backend.hub RUNDIR`` runs the hub of one run."""

import logging
import os
import sys

from rltop.backend.hub.startup import run_command

if __name__ == "__main__":
    code = run_command(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # nothing is left to do, and interpreter shutdown (numba) would hold the run's lock for a second
