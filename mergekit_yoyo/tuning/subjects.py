"""The models of a merge and the texts that it is measured on: who wrote what, and who reads it."""

import gc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.config import text_section
from mergekit_yoyo.model.folder import fingerprint
from mergekit_yoyo.model.json_files import read_config
from mergekit_yoyo.model.merge_yaml import ModelName, references
from mergekit_yoyo.model.place import fetch, locate
from mergekit_yoyo.model.tokenizer import same_tokenizer
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.text import (
    Text,
    Window,
    Writing,
    halves,
    read_texts,
    token_windows,
    written_text,
)
from mergekit_yoyo.tuning.divergence import Reference, refer
from mergekit_yoyo.tuning.recipe import Recipe

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Model:
    """An input of the merge. name: as short as it is alone."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Subject:
    """A text, in windows, and what its model says there. choosing, reporting: its two halves."""

    name: str
    windows: tuple[Window, ...]
    choosing: tuple[Window, ...]
    reporting: tuple[Window, ...]
    reference: Reference | None = None

    def half(self, *, reports: bool) -> tuple[tuple[Window, ...], Reference | None]:
        """One half, with the reference for it."""
        windows = self.reporting if reports else self.choosing
        if self.reference is None:
            return windows, None
        return windows, self.reference.of_windows(self.windows, windows)


@dataclass(frozen=True)
class Texts:
    """Where texts come from. files: the user's, by name; none: the models write. folder: what they
    write is kept here. length: tokens a window of the user's text; most: windows a text."""

    files: Mapping[str, Path]
    folder: Path
    writing: Writing
    length: int
    most: int


@dataclass(frozen=True)
class Subjects:
    """All texts. by_divergence: whether the divergence from the models is what counts, else the
    loss. notes: for the user."""

    of: tuple[Subject, ...]
    by_divergence: bool
    notes: tuple[str, ...]


def models_of(recipe: Recipe) -> list[Model]:
    """The inputs whose knowledge a merge is to keep: all but a base that others are compared with.

    Raises:
        YoyoError: there are fewer than two, one is not found or has a LoRA adapter.
    """
    config = recipe.merge_yaml.config
    found = references(config)
    base = config.base_model
    others = [model for model in found if model != base]
    is_input = recipe.takes_base and not recipe.anchored and recipe.base in recipe.models
    if base is not None and len(others) > 1 and not is_input:
        found = others
    if len(found) < 2:
        raise YoyoError(
            f"{recipe.file}: one model only: there is nothing to weigh against another. Tune a "
            "merge of two models or more."
        )
    with_adapter = [model for model in found if model.lora is not None]
    if with_adapter:
        raise YoyoError(
            f"{with_adapter[0]}: tune reads whole models, and this is one with a LoRA adapter. "
            "Merge the adapter into a folder of its own first (mergekit-yaml with one model)."
        )
    paths = [model.model.path for model in found]
    short = [Path(path).name for path in paths]
    names = short if len(set(short)) == len(short) else paths
    return [
        Model(name, _whole(ModelName(model.model.path, model.model.revision)))
        for name, model in zip(names, found, strict=True)
    ]


def _whole(name: ModelName) -> Path:
    return fetch(name, WEIGHTS) if name.on_hub else locate(name)


def prepare(
    recipe: Recipe,
    models: Sequence[Model],
    texts: Texts,
    *,
    merged: Callable[[], Path],
    kept: Path,
    device: str,
    seed: int,
    progress: Progress,
) -> Subjects:
    """Texts of all models, or the user's, in halves, and what the models say about their own.

    Of the models one is in memory at a time.

    Args:
        merged: gives a merge of the models, for its tokenizer, where it has one of its own.
        kept: folder for what the models say, which an interrupted run need not ask again.

    Raises:
        YoyoError: a text or a model is of no use.
    """
    from transformers import AutoTokenizer

    notes = []
    first = models[0].folder
    differing = [m.name for m in models[1:] if not same_tokenizer(first, m.folder)]
    builds = recipe.merge_yaml.builds_tokenizer
    alike = not differing and not builds
    if not alike:
        reason = (
            f"{', '.join(differing)} and {models[0].name} have different tokenizers"
            if differing
            else "the merge gets a tokenizer of its own"
        )
        notes.append(
            f"{reason}: a divergence needs one vocabulary, so the plain loss of the merge on each "
            "text is measured instead"
        )
    if texts.files:
        read = read_texts(dict(texts.files))
        tokenizer = AutoTokenizer.from_pretrained(first if alike else merged())
        windows = {t.name: token_windows(t, tokenizer, texts.length, texts.most) for t in read}
    else:
        windows = {}
        for model in models:
            file = texts.folder / f"{model.name.strip('./').replace('/', '-')}.jsonl"
            written = written_text(
                model.folder, file, texts.writing, device=device, progress=progress
            )
            windows[model.name] = list(written.windows)
            progress.say(
                f"{model.name}: {len(written.windows)} samples "
                f"{'in its chat template' if written.chat else 'from its beginning of text'}, "
                f"{'kept in' if written.kept else 'now in'} {file}"
            )
        if not alike:
            windows = _read_anew(windows, models, merged(), texts)
    by_model = {model.name: model for model in models}
    vocabulary = min(_words(model.folder) for model in models)
    subjects = []
    for name, some in windows.items():
        choosing, reporting = halves(some, seed)
        subject = Subject(name, tuple(some), tuple(choosing), tuple(reporting))
        if alike and name in by_model:
            reference = _reference(
                by_model[name], subject.windows, vocabulary, kept, device, progress
            )
            subject = Subject(name, subject.windows, subject.choosing, subject.reporting, reference)
        subjects.append(subject)
    return Subjects(tuple(subjects), alike and not texts.files, tuple(notes))


def _read_anew(
    windows: Mapping[str, Iterable[Window]], models: Sequence[Model], merge: Path, texts: Texts
) -> dict[str, list[Window]]:
    """What was written in the tokens of each model, in the tokens of the merge."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merge)
    found = {}
    for model in models:
        own = AutoTokenizer.from_pretrained(model.folder)
        documents = tuple(
            own.decode(window.tokens, skip_special_tokens=True) for window in windows[model.name]
        )
        found[model.name] = token_windows(Text(model.name, documents), tokenizer, texts.length)
    return found


def _words(folder: Path) -> int:
    """Rows of a model's output, by its config."""
    return int(text_section(read_config(folder / "config.json"))["vocab_size"])


def _reference(
    model: Model,
    windows: tuple[Window, ...],
    vocabulary: int,
    kept: Path,
    device: str,
    progress: Progress,
) -> Reference:
    """What a model says on its windows, from an earlier run if that asked it already."""
    weights = sorted([*model.folder.glob("*.safetensors"), *model.folder.glob("*.bin")])
    asked = repr((model.name, fingerprint(weights), windows, vocabulary))
    file = kept / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.safetensors"
    if not file.is_file():
        progress.begin(f"{model.name} reads", None, "windows")
        loaded = load_model(model.folder, device)
        found = refer(loaded, windows, vocabulary)
        del loaded
        gc.collect()
        kept.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        save_file({"words": found.words, "logs": found.logs, "rest": found.rest}, unfinished)
        unfinished.replace(file)
    tensors = load_file(file)
    return Reference(tensors["words"], tensors["logs"], tensors["rest"], vocabulary)


def load_model(folder: Path, device: str) -> Any:
    """A causal model for reading: in float32 on a CPU, in its own dtype elsewhere.

    Raises:
        YoyoError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if device == "cpu" else "auto"
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise YoyoError(f"{folder}: transformers cannot load this causal model: {reason}") from None
