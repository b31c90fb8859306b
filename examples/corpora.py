"""The five kinds of text that the example experts are trained on, from Debian packages.

Every package is fetched with `apt-get download` and unpacked into a cache folder, nothing is
installed. A domain is a list of documents (one per file). A document is held out, whole, by the
hash of its path; passages that occur twice in a domain are kept once, so that nothing of the
held-out text is in the training text. Sources and licenses: `experts/SOURCES.md`.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

HELD_OUT_ONE_IN = 12
HELD_OUT_BYTES = 24_576
EXCERPT_BYTES = 1_536  # per held-out document, so that one long document cannot be the whole set
REPEATED_FROM = 40  # characters; shorter passages ("return None", "Siehe auch") may repeat
BLOCKS = {"p", "li", "td", "th", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "pre", "title"}
SKIPPED = {"script", "style", "nav", "header", "aside", "button", "svg"}


@dataclass(frozen=True)
class Source:
    """Where a domain's documents lie: files below `folder` of a Debian package."""

    package: str
    folder: str
    suffix: str
    language: str | None = None  # of HTML pages; None for plain text


SOURCES = {
    "code": Source("libpython3.11-stdlib", "usr/lib/python3.11", ".py"),
    "german": Source("libreoffice-help-de", "usr/share/libreoffice/help/de/text", ".html", "de"),
    "manual": Source("apache2-doc", "usr/share/doc/apache2-doc/manual/en", ".html", "en"),
    "headers": Source("libssl-dev", "usr/include", ".h"),
    "french": Source("apache2-doc", "usr/share/doc/apache2-doc/manual/fr", ".html", "fr"),
}


class _Passages(HTMLParser):
    """Collects the text of a page's block elements, one passage each, in `passages`."""

    def __init__(self) -> None:
        super().__init__()
        self.language = ""
        self.passages: list[str] = []
        self._text = ""
        self._skipping = 0
        self._verbatim = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            self.language = dict(attrs).get("lang") or ""
        if tag in SKIPPED:
            self._skipping += 1
        if tag in BLOCKS:
            self._end_passage()
            self._verbatim = tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skipping = max(0, self._skipping - 1)
        if tag in BLOCKS:
            self._end_passage()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text += data

    def _end_passage(self) -> None:
        text = self._text.strip("\n") if self._verbatim else " ".join(self._text.split())
        if text:
            self.passages.append(text)
        self._text, self._verbatim = "", False


@dataclass(frozen=True)
class Corpus:
    """One domain's text, as UTF-8 bytes."""

    train: bytes
    held_out: bytes


def read_corpus(domain: str, cache: Path) -> Corpus:
    """Fetches a domain's package if the cache lacks it, and splits its text.

    Args:
        domain: a key of `SOURCES`.
        cache: folder for the downloaded packages, created if missing.

    Returns:
        The training text and `HELD_OUT_BYTES` of held-out text, both the same on every machine
        that has the same package versions.
    """
    source = SOURCES[domain]
    root = _unpack(source.package, cache) / source.folder
    seen: set[str] = set()
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob(f"*{source.suffix}")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or re.search(r"(^|/)(test|tests|idlelib|encodings)/", name):
            continue
        passages = []
        for passage in _passages(path, source.language):
            key = " ".join(passage.split())
            if len(key) < REPEATED_FROM or key not in seen:
                seen.add(key)
                passages.append(passage)
        document = "\n\n".join(passages) + "\n\n"
        is_held_out = hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0
        (held_out if is_held_out else train).append(document)
    excerpts = "".join(_excerpt(document) for document in held_out if len(document) > 400)
    return Corpus("".join(train).encode(), _whole_characters(excerpts.encode(), HELD_OUT_BYTES))


def _unpack(package: str, cache: Path) -> Path:
    folder = cache / package
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=cache, check=True)
        archive = next(cache.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    return folder


def _passages(path: Path, language: str | None) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="ignore")
    if language is None:
        yield from (passage for passage in re.split(r"\n\s*\n", text) if passage.strip())
        return
    page = _Passages()
    page.feed(text)
    if page.language == language:  # untranslated pages of a manual are in English
        yield from page.passages


def _excerpt(document: str) -> str:
    """Whole lines from the middle of a document: beginnings are notices, much alike."""
    start = document.find("\n", max(0, (len(document) - EXCERPT_BYTES) // 2)) + 1
    return document[start : start + EXCERPT_BYTES].rsplit("\n", 1)[0] + "\n"


def _whole_characters(text: bytes, limit: int) -> bytes:
    return text[:limit].decode("utf-8", errors="ignore").encode()
