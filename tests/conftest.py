"""What every test stands on: no network, one real Chromium, and the device that merges run on."""

import os
import shutil
from collections.abc import Iterator

import pytest

# before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --device cuda tests/test_exactness.py ...` merges on a GPU what the tests make."""
    parser.addoption("--device", help="where `fuse` computes; tests see its results on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    if device := config.getoption("--device"):
        from on_device import fuse_on

        fuse_on(device)  # before a test imports it


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A headless Chromium (`selenium.webdriver.Chrome`) in the light, 1,400 pixels wide.

    Without one on this machine its tests are skipped; where `CI` is set they fail instead.
    """
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("needs a real Chromium: `apt-get install chromium chromium-driver`")
    from chromium import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome
