#!/usr/bin/env bash
# Sets up .venv with the pinned requirements and the package itself (Cython extensions included).
# Run again, it only does what has changed since. Sourced or called by every other script.
#   PYTHON=python3.12 bash scripts/install.sh     another interpreter
#   CIM_TORCH=cpu bash scripts/install.sh         PyTorch's CPU build: 1.5 instead of 6 GB, no GPU
#   CIM_VENV=none bash scripts/quickstart.sh      use the active environment as it is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Progress bars in a log file: a line every half minute in place of ten a second.
[ -t 2 ] || export TQDM_MININTERVAL=${TQDM_MININTERVAL:-30}

if [ "${CIM_VENV:-.venv}" = none ]; then return 0 2>/dev/null || exit 0; fi

# What was installed is known by a stamp over the files and the variable that decide it.
stamp=$(cat requirements.txt setup.py lib/proposals/*.pyx - <<< "${CIM_TORCH:-}" | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/cim-installed 2>/dev/null)" != "$stamp" ]; then
    fail() { echo "install: $1" >&2; exit 1; }
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "no $python found; install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) found, Python 3.11 or newer needed; set PYTHON=python3.12"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python lacks the venv module; apt-get install python$version-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "$python lacks its C headers; apt-get install python$version-dev"
    compiler=${CXX:-c++}
    command -v "${compiler%% *}" >/dev/null || fail "no C++ compiler ($compiler); apt-get install g++"
    [ -w . ] || fail "$PWD is not writable; copy the project to a folder of your own"

    case ${CIM_TORCH:-} in
        "") gigabytes=7; index=() ;;
        cpu) gigabytes=3; index=(--extra-index-url https://download.pytorch.org/whl/cpu) ;;
        *) fail "CIM_TORCH is '$CIM_TORCH'; leave it out, or set it to cpu" ;;
    esac
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # What is installed already needs no more room.
    if [ ! -d .venv/lib/python"$version"/site-packages/torch ]; then
        free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
        [ "$free" -ge "$gigabytes" ] || fail "$PWD has $free GB free, $gigabytes GB needed"
        temporary=${TMPDIR:-/tmp}
        free=$(df -Pk "$temporary" | awk 'NR == 2 {print int($4 / 1048576)}')
        [ "$free" -ge 2 ] || fail "$temporary has $free GB free, 2 GB needed; set TMPDIR to another folder"
    fi
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    echo "install: putting the pinned requirements into .venv (about $gigabytes GB with PyTorch; minutes, once)"
    "${pip[@]}" -r requirements.txt "${index[@]}"
    echo "install: building the Cython extensions"
    "${pip[@]}" --no-build-isolation -e .
    echo "$stamp" > .venv/cim-installed
fi
export PATH="$PWD/.venv/bin:$PATH"
