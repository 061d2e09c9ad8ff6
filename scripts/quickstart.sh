#!/usr/bin/env bash
# The whole method on the embedded data set, in minutes on two CPU cores. Interrupted and run again,
# it goes on where it was. Arguments go to tools/quickstart.py (see --help).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/install.sh
exec python tools/quickstart.py "$@"
