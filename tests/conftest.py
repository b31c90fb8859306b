"""What every test stands on: no network, and one real Chromium for those that look at a page."""

import os
import shutil
from collections.abc import Iterator

import pytest

# before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_OFFLINE"] = "1"


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
