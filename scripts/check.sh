#!/usr/bin/env bash
# Static checks: formatting, lint, types of code and tests, and the import contracts.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${RLTOP_BIN:-.venv/bin}

# The four folders are the packages rltop.tui, .backend, .integrations and .collectors. mypy and import-linter can't follow
# the import hook of an editable install, so they read the packages through links.
mkdir -p build/tree/rltop
for package in tui backend integrations collectors; do ln -sfn "../../../$package" "build/tree/rltop/$package"; done

"$bin/ruff" format --check .
"$bin/ruff" check .
MYPYPATH=build/tree "$bin/mypy" --explicit-package-bases --namespace-packages \
    -p rltop.collectors -p rltop.integrations -p rltop.backend -p rltop.tui -p tests -p bench -p examples -p scripts
PYTHONPATH=build/tree "$bin/lint-imports"
