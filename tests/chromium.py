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
    """A screen of that width, which may be narrower than a window can be, in the light or dark.

    Returns when the page shows it: the commands are answered before the page knows of them.
    """
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    chrome.execute_async_script(_SHOWN, width, dark)


def settle(chrome: webdriver.Chrome) -> None:
    """Wait for two frames: what the page does upon an event, it has done and drawn."""
    chrome.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


# A frame in which the page has the width, media query and styles both have the scheme, and nothing
# is in motion; then two more, so that the page's own listeners have run and their work is drawn.
_SHOWN = """
const [width, dark, done] = arguments;
const probe = document.createElement("i");
probe.style.cssText = "color-scheme: light dark; color: light-dark(rgb(1, 1, 1), rgb(2, 2, 2))";
document.documentElement.append(probe);
const shown = () => innerWidth === width
  && matchMedia("(prefers-color-scheme: dark)").matches === dark
  && getComputedStyle(probe).color === (dark ? "rgb(2, 2, 2)" : "rgb(1, 1, 1)")
  && document.getAnimations().every((animation) => animation.playState !== "running");
const frame = () => {
  if (!shown()) return requestAnimationFrame(frame);
  probe.remove();
  requestAnimationFrame(() => requestAnimationFrame(done));
};
requestAnimationFrame(frame);
"""
