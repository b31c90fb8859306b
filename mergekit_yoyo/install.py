"""How this package is installed: the one place that knows, for cards and for messages.

pip notes where a package came from (PEP 610): an address of version control, a folder, or nothing
for a release of the index. So the line that a card shows is the one that worked here.
"""

import json
from importlib.metadata import distribution, version
from shlex import quote

_NAME = "mergekit-yoyo"


def install_line(extra: str = "") -> str:
    """The shell line that installs this version, with an extra: from the index or repository that
    it came from, or from a checkout, if nothing but a folder is known."""
    origin = distribution(_NAME).read_text("direct_url.json")
    return line_for(origin, version(_NAME), f"[{extra}]" if extra else "")


def line_for(origin: str | None, release: str, extra: str) -> str:
    """The line for what pip noted: the text of its `direct_url.json`, None if there is none."""
    if origin is None:
        return f"pip install {quote(f'{_NAME}{extra}=={release}')}"
    noted = json.loads(origin)
    address, control = noted["url"], noted.get("vcs_info")
    if control and not address.startswith("file:"):
        source = f"{control['vcs']}+{address}@{control['commit_id']}"
        return f"pip install {quote(f'{_NAME}{extra} @ {source}')}"
    return f"pip install {quote(f'.{extra}')}  # in a checkout of {_NAME} {release}"
