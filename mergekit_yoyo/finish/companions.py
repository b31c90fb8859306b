"""The files around the weights: tokenizer, chat template, generation settings, custom code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.json_files import read_tokenizer
from mergekit_yoyo.model.merge_yaml import MergeYaml, ModelName
from mergekit_yoyo.model.tokenizer import (
    TEMPLATE_FILES,
    TOKENIZER_FILES,
    chat_template,
    has_tokenizer,
    same_tokenizer,
)
from mergekit_yoyo.outside import read_json

GENERATION_FILE = "generation_config.json"
_ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "decoder_start_token_id",
)


def missing_files(
    merge: Path, donor: Path, merge_yaml: MergeYaml, donor_name: ModelName
) -> dict[str, bytes]:
    """The donor's files that mergekit did not write, by name.

    The tokenizer's own files come along only if it is the donor's; a tokenizer that the merge
    built is left alone. A chat template is one where the merge has none.

    Raises:
        YoyoError: the YAML builds a tokenizer and the run died before it was saved.
    """
    if (
        not has_tokenizer(merge)
        and merge_yaml.builds_tokenizer
        and not _builds_donors(merge_yaml, donor_name)
    ):
        raise YoyoError(
            f"{merge}: its YAML builds a tokenizer and the merge holds none: the run died before "
            "it was saved, and the rows of the embedding cannot be known without. Merge again."
        )
    wanted = [GENERATION_FILE]
    if not any((merge / file).is_file() for file in TEMPLATE_FILES) and not chat_template(merge):
        wanted += TEMPLATE_FILES
        if (donor / "additional_chat_templates").is_dir():
            wanted += [
                str(file.relative_to(donor))
                for file in sorted((donor / "additional_chat_templates").glob("*.jinja"))
            ]
    if same_tokenizer(donor, merge):
        wanted += TOKENIZER_FILES
    wanted += _custom_code(donor)
    return {
        file: (donor / file).read_bytes()
        for file in wanted
        if (donor / file).is_file() and not (merge / file).is_file()
    }


def renumber_special_tokens(values: dict[str, Any], merge: Path, donor: Path) -> list[str]:
    """Change the token ids in `values` (of config.json or generation_config.json) to the merge's.

    A merge that built its own tokenizer may number the donor's special tokens anew.

    Returns:
        Notes on the ids that changed.

    Raises:
        YoyoError: the merge's tokenizer lacks a special token of the donor.
    """
    if not ((merge / "tokenizer.json").is_file() and (donor / "tokenizer.json").is_file()):
        return []
    if (merge / "tokenizer.json").read_bytes() == (donor / "tokenizer.json").read_bytes():
        return []
    ours = read_tokenizer(merge / "tokenizer.json")
    theirs = read_tokenizer(donor / "tokenizer.json")

    def renumbered(key: str, number: int) -> int:
        token = theirs.id_to_token(number)
        if token is None:  # a padding row of the embedding, or -1: no token of the donor
            return number
        new: int | None = ours.token_to_id(token)
        if new is None:
            raise YoyoError(
                f"{key}: {token!r} ({number} in the donor's tokenizer) is not in the merge's "
                "tokenizer. Add it under `tokenizer: tokens:` in the YAML and merge again."
            )
        return new

    notes = []
    for key in _ID_KEYS:
        old = values.get(key)
        if isinstance(old, int):
            values[key] = renumbered(key, old)
        elif isinstance(old, list):
            values[key] = [renumbered(key, number) for number in old]
        if values.get(key) != old:
            notes.append(f"{key}: {old} in the donor is {values[key]} in the merge's tokenizer")
    return notes


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """A JSON file as transformers writes it, in the order of the keys."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _builds_donors(merge_yaml: MergeYaml, donor: ModelName) -> bool:
    """Whether the tokenizer that the YAML builds is just the donor's."""
    if merge_yaml.config.tokenizer:
        return False
    source = merge_yaml.config.tokenizer_source
    return source == "base" or getattr(getattr(source, "model", None), "path", None) == donor.path


def _custom_code(donor: Path) -> list[str]:
    """Python files that the donor's config or tokenizer refers to (`auto_map`)."""
    files = set()
    for file in ("config.json", "tokenizer_config.json"):
        if (donor / file).is_file():
            named = read_json(donor / file).get("auto_map") or {}
            if not isinstance(named, dict):
                raise YoyoError(f"{donor / file}: auto_map: expected classes by name; got {named}.")
            for target in named.values():
                for name in target if isinstance(target, list) else [target]:
                    if name is not None and not isinstance(name, str):
                        raise YoyoError(f"{donor / file}: auto_map: {name!r} names no class.")
                    # `owner/repo--module.Class` lives in another repository
                    if name and "--" not in name:
                        files.add(name.split(".")[0] + ".py")
    return sorted(files)
