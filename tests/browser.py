"""A real browser, without a window: Debian's Chromium, steered by Selenium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PHONE = 390  # pixels
DESK = 1280
HEIGHT = 900


@contextmanager
def browser(width: int = DESK) -> Iterator[webdriver.Chrome]:
    """A browser whose pages are `width` pixels wide; skips the test where there is none, and fails it in CI."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "needs Debian's chromium and chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # Chromium refuses its sandbox to root, and containers have a small /dev/shm.
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        # A window is never narrower than 500 pixels; the page in it can be.
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        window.set_page_load_timeout(60)
        yield window
    finally:
        window.quit()


def complaints(window: webdriver.Chrome) -> list[str]:
    """What the page wrote to the console since the last call, warnings and errors alike."""
    return [f"{entry['level']}: {entry['message']}" for entry in window.get_log("browser")]  # type: ignore[no-untyped-call]


def overhang(window: webdriver.Chrome) -> int:
    """By how many pixels the page is wider than its window: 0 for one that need not be scrolled sideways."""
    return window.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
