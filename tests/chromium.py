"""A real, headless Chromium, its logs, and the screens it can have."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report_size import BROWSER
from selenium import webdriver


@contextmanager
def chromium(profile: Path, width: int = 1400, *, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """A real, headless Chromium without a network; what it logs and asks for is kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in (*BROWSER, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
    chrome = webdriver.Chrome(options=options, service=service)
    try:
        resize(chrome, width, dark=dark)
        yield chrome
    finally:
        chrome.quit()


def resize(chrome: webdriver.Chrome, width: int, *, dark: bool = False) -> None:
    """A screen of that width, which may be narrower than a window can be."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
