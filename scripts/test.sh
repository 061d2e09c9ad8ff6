#!/usr/bin/env bash
# Lint and all tests. Arguments go to pytest: bash scripts/test.sh tests/modeling -k miner
# Tests that need a browser are skipped without Chromium; under CI=true it is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/install.sh
if [ "${CI:-}" = true ]; then bash scripts/install_browser.sh; fi
ruff check .
ruff format --check .
shellcheck scripts/*.sh .ci/run
python -m pytest "$@"
