#!/usr/bin/env bash
# Lint and all tests. Arguments go to pytest: bash scripts/test.sh tests/modeling -k miner
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/install.sh
ruff check .
ruff format --check .
python -m pytest "$@"
