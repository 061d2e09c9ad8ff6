#!/usr/bin/env bash
# The whole method on the embedded data set, in minutes on two CPU cores. Run again after an
# interruption, it resumes where it stopped. Arguments go to tools/quickstart.py (see --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/install.sh
exec python tools/quickstart.py "$@"
