"""The tokenizer of a model folder: its files, whether two are the same, its chat template."""

from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.json_files import read_tokenizer
from mergekit_yoyo.outside import read_json, read_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
# Any one of these makes a tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "tekken.json", "vocab*", "*.model", "*.tiktoken")


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tokenizer, or one of them holds none."""
    for file in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        first, second = one / file, other / file
        if first.is_file() and second.is_file():
            return first.read_bytes() == second.read_bytes() or (
                file == "tokenizer.json" and _vocabulary(first) == _vocabulary(second)
            )
    return True


def _vocabulary(file: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = read_tokenizer(file).get_vocab()
    return vocabulary


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary of any kind."""
    return any(True for pattern in VOCABULARY_FILES for _ in folder.glob(pattern))


def chat_template(folder: Path) -> str | None:
    """The chat template that transformers would use: the default one where there are several.

    Raises:
        YoyoError: what stands in its place is no text, nor texts by name.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = _setting(folder, "chat_template")
    if isinstance(template, list):  # several by name
        try:
            named = {str(entry["name"]): entry["template"] for entry in template}
        except (KeyError, TypeError):
            raise _no_template(folder) from None
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise _no_template(folder)
    return template


def _no_template(folder: Path) -> YoyoError:
    return YoyoError(
        f"{folder / 'tokenizer_config.json'}: chat_template: expected a text, or a list of "
        "{name, template}."
    )


def tokenizer_setting(folder: Path, key: str) -> Any:
    """What tokenizer_config.json says of `key`; of a special token, its text.

    Raises:
        YoyoError: it is neither a text nor a number.
    """
    value = _setting(folder, key)
    if isinstance(value, dict | list):
        raise YoyoError(
            f"{folder / 'tokenizer_config.json'}: {key}: expected a text; got {str(value)[:40]}."
        )
    return value


def _setting(folder: Path, key: str) -> Any:
    file = folder / "tokenizer_config.json"
    value = read_json(file).get(key) if file.is_file() else None
    return value.get("content") if isinstance(value, dict) else value
