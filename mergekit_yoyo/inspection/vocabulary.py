"""Whether the inputs speak the same tokens: vocabularies, how they split text, chat templates."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mergekit_yoyo.inspection.inputs import Input
from mergekit_yoyo.inspection.remark import Remark, by_value, error, some, warning
from mergekit_yoyo.model.json_files import read_tokenizer
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.model.tokenizer import chat_template, same_tokenizer, tokenizer_setting

_SPLITTING = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_UNION = "Add `tokenizer: {source: union}` to the YAML."


class _Tokens(NamedTuple):
    """A tokenizer.json: tokens by id, the ids that were added to the vocabulary, and the rest."""

    tokens: dict[int, str]
    added: set[int]
    splitting: dict[str, Any]


def check_tokenizers(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """Inputs whose token ids stand for other tokens than those of the base, or the first.

    Where words differ, the merge would mix rows of the embedding that mean different things: an
    error, unless the YAML builds a tokenizer. Added tokens that differ are a warning: fine-tunes
    give names to spare rows.
    """
    remarks = []
    reference = next((i for i in inputs if i.reference == merge_yaml.config.base_model), inputs[0])
    ours = _read(reference.folder)
    for item in inputs:
        if item is reference or _same_bytes(reference.folder, item.folder):
            continue
        theirs = _read(item.folder)
        if ours is None or theirs is None:
            if not same_tokenizer(reference.folder, item.folder):
                remarks.append(warning(f"{item}: its tokenizer is not that of {reference}"))
            continue
        remarks += _compare(reference, ours, item, theirs, merge_yaml.builds_tokenizer)
    return remarks


def check_templates(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """Chat templates and names of special tokens that differ."""
    remarks = []
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        tokens = [(tokenizer_setting(item.folder, key), str(item)) for item in inputs]
        if len(dict(tokens)) > 1:
            remarks.append(warning(f"{key} differs (special token): {by_value(tokens)}"))
    templates = [((chat_template(item.folder) or "").strip(), str(item)) for item in inputs]
    kinds = list(dict.fromkeys(text for text, _ in templates if text))
    if len(dict(templates)) > 1 and not merge_yaml.config.chat_template:
        named = [(f"template {kinds.index(t) + 1}" if t else "none", m) for t, m in templates]
        remarks.append(
            warning(f"chat templates differ: {by_value(named)}; the merge gets its donor's")
        )
    return remarks


def _compare(
    reference: Input, ours: _Tokens, item: Input, theirs: _Tokens, built: bool
) -> list[Remark]:
    ids = sorted(ours.tokens.keys() | theirs.tokens.keys())
    differing = [i for i in ids if ours.tokens.get(i) != theirs.tokens.get(i)]
    added = ours.added | theirs.added
    words = [i for i in differing if i not in added]
    if not differing:
        if ours.splitting == theirs.splitting:
            return []
        return [
            warning(f"{item}: the tokens of {reference}, but its tokenizer splits text otherwise")
        ]
    examples = some(
        [
            f"{i} is {ours.tokens.get(i, 'none')!r} in {reference} and "
            f"{theirs.tokens.get(i, 'none')!r} in {item}"
            for i in (words or differing)[:1]
        ]
    )
    if built:
        return [warning(f"{item}: {len(differing)} token ids differ ({examples}); mapped by name")]
    if not words:
        return [warning(f"{item}: {len(differing)} added tokens differ ({examples})")]
    return [
        error(
            f"{item}: its vocabulary is not that of {reference}: {len(words)} ids stand for other "
            f"words ({examples}), and the merge would mix their rows. {_UNION}"
        )
    ]


def _read(folder: Path) -> _Tokens | None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = read_tokenizer(file)
    written = json.loads(tokenizer.to_str())
    splitting = {key: written.get(key) for key in _SPLITTING}
    splitting["merges"] = written["model"].get("merges")
    return _Tokens(
        {i: token for token, i in tokenizer.get_vocab().items()},
        set(tokenizer.get_added_tokens_decoder()),
        splitting,
    )


def _same_bytes(one: Path, other: Path) -> bool:
    files = (one / "tokenizer.json", other / "tokenizer.json")
    return all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()
