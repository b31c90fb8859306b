"""Text files that the user names: `NAME=PATH`, each of one document or, as JSON lines, of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.outside import load_json, read_text

LEAST_CHARACTERS = 200  # fewer say nothing about a model


@dataclass(frozen=True)
class Text:
    """A text by its name. documents: what was written apart, and is never read across."""

    name: str
    documents: tuple[str, ...]


def parse_texts(options: Sequence[str], option: str = "--text") -> dict[str, Path]:
    """`NAME=PATH` of each option, in order.

    Raises:
        YoyoError: one has another form, or two have one name.
    """
    found: dict[str, Path] = {}
    for given in options:
        name, equals, path = given.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise YoyoError(
                f"{option}: expected NAME=PATH, such as code=examples.py; got {given!r}."
            )
        if name.strip() in found:
            raise YoyoError(f"{option}: two texts have the name {name.strip()}. Rename one.")
        found[name.strip()] = Path(path.strip()).expanduser()
    return found


def read_texts(files: dict[str, Path]) -> list[Text]:
    """Read texts in UTF-8. A `.jsonl` file holds a document a line, under the key `text`.

    Raises:
        YoyoError: a file cannot be read, is too large or no UTF-8, or says too little.
    """
    texts = []
    for name, file in files.items():
        content = read_text(file)
        documents = _lines(file, content) if file.suffix == ".jsonl" else (content,)
        length = sum(len(document.strip()) for document in documents)
        if length < LEAST_CHARACTERS:
            raise YoyoError(
                f"{file}: {length} characters are too few to measure a model on; give at least "
                f"{LEAST_CHARACTERS}, better some 100,000."
            )
        texts.append(Text(name, documents))
    return texts


def _lines(file: Path, content: str) -> tuple[str, ...]:
    documents = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        value = load_json(line, f"{file}, line {number}")
        text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise YoyoError(f'{file}, line {number}: expected an object with "text"; got none.')
        documents.append(text)
    return tuple(documents)
