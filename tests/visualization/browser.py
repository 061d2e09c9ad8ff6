"""Chromium without a window, driven by Selenium, for tests that look at a page."""

from __future__ import annotations

import os
import shutil

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")


def start_chromium(profile):
    """A Chromium with an empty profile folder; skips the test where there is none.

    On a CI machine, which scripts/test.sh gives one, its absence is a failure.
    """
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    driver = shutil.which("chromedriver")
    without = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if binary is None or driver is None:
        without("no chromium and chromedriver on PATH (bash scripts/install_browser.sh)")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        without("selenium is not installed (pip install -r requirements.txt)")

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--no-sandbox",  # Chromium refuses to run as root otherwise
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--window-size=1200,800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))
