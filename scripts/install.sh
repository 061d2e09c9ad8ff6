#!/usr/bin/env bash
# Sets up .venv with the pinned requirements and the package itself (Cython extensions included).
# Run again, it only does what has changed since. Sourced or called by every other script.
#   PYTHON=python3.12 bash scripts/install.sh     another interpreter
#   CIM_VENV=none bash scripts/quickstart.sh      use the active environment as it is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${CIM_VENV:-.venv}" = none ]; then return 0 2>/dev/null || exit 0; fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install: $("$python" --version) found, Python 3.11 or newer needed; set PYTHON=python3.12" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv

# What was installed is known by a stamp over the files that decide it.
stamp=$(cat requirements.txt setup.py lib/proposals/*.pyx | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/cim-installed 2>/dev/null)" != "$stamp" ]; then
    echo "install: putting the pinned requirements into .venv (about 6 GB with PyTorch; minutes, once)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    echo "install: building the Cython extensions"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e .
    echo "$stamp" > .venv/cim-installed
fi
export PATH="$PWD/.venv/bin:$PATH"
