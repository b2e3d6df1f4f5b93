"""``python -m rltop.backend.metrics > docs/metrics.md``."""

import sys

from rltop.backend.metrics.document import page

sys.stdout.write(page())
