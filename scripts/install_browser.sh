#!/usr/bin/env bash
# Puts in Chromium and its driver, which the tests of the gallery look at the page with, by apt.
# Debian, as root. scripts/test.sh calls it on CI machines only (CI=true); elsewhere
# those tests are skipped where there is no Chromium, and whoever wants them calls this.
set -euo pipefail
if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; fi
command -v apt-get > /dev/null || {
    echo "install_browser: no apt-get here; install chromium and chromedriver, both on PATH" >&2
    exit 1
}
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null
