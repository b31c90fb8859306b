"""What an export knows before it reads a weight: source, bridge, mlx model, plan."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.mlx.bridge import Bridge, bridge_config, declared_config
from mergekit_yoyo.mlx.pictures import bridge_pictures, has_pictures
from mergekit_yoyo.mlx.plan import ExportPlan, plan_model
from mergekit_yoyo.mlx.recipes import Recipe, parse_recipe
from mergekit_yoyo.mlx.source import Source, open_source
from mergekit_yoyo.mlx.weights import (
    left_out,
    load_lazily,
    packed_layout,
    skeleton,
    stored_dtype,
    unpack,
)

if TYPE_CHECKING:
    from mergekit_yoyo.model.layout import LayoutPlan


FLOAT32_BYTES = 4
RUNNING = 1.25  # a model takes more than its weights while it is loaded and run


@dataclass(frozen=True)
class Opened:
    """A checkpoint that mlx-lm has a model for.

    Attributes:
        source: the checkpoint.
        bridge: what mlx-lm is to be told about it.
        declared: its config as transformers understands it, if it does.
        context: tokens that the export is meant for; None: the model's own length.
        folder: of the weights that mlx-lm reads: the source's, or where experts were unpacked.
        layout: how packed experts must be unpacked first; None: mlx-lm reads `folder` as it is.
        unseen: why the pictures' part is left out, if there is one that was wanted.
    """

    source: Source
    bridge: Bridge
    declared: Any
    context: int | None
    folder: Path
    layout: "LayoutPlan | None" = None
    unseen: str = ""

    @cached_property
    def model(self) -> nn.Module:
        """mlx-lm's model, its arrays yet to be read; shapes alone while `layout` asks for work."""
        if self.layout is not None:
            return skeleton(self.bridge, stored_dtype(self.folder))
        return load_lazily(self.folder, self.bridge, self.declared)

    @cached_property
    def tokenizer(self) -> TokenizerWrapper:
        """The checkpoint's, or a refusal."""
        folder = self.source.folder
        try:
            return load_tokenizer(folder)
        except Exception as error:  # tokenizers of every kind fail in ways of their own
            reason = first_line(error)
            raise YoyoError(f"{folder}: its tokenizer cannot be loaded: {reason}") from None

    @cached_property
    def picture(self) -> dict[str, NDArray[Any]] | None:
        """A prompt with a picture, as a model takes it, if this one sees pictures."""
        if not self.bridge.pictures:
            return None
        from mergekit_yoyo.mlx.sample import load_processor, sample_inputs

        return sample_inputs(load_processor(self.source.folder), self.bridge.config)

    def check_tokenizer(self) -> None:
        """Refuse a checkpoint whose tokenizer cannot be loaded."""
        _ = self.tokenizer

    def plan(self, recipe: Recipe | str) -> ExportPlan:
        """A recipe laid out on the model."""
        carried = carried_bytes(self.source, pictures=self.bridge.pictures)
        return plan_model(self.model, named(recipe), carried_bytes=carried, eyes=self.bridge.is_eye)

    def unpacked(self, folder: Path) -> "Opened":
        """This checkpoint with its experts unpacked into a new `folder`, if they must be."""
        if self.layout is None:
            return self
        folder.mkdir()
        unpack(self.folder, self.layout, folder)
        return replace(self, folder=folder, layout=None)

    @property
    def unpacked_bytes(self) -> int:
        """What `unpacked` writes."""
        return sum(info.nbytes for info in self.layout.targets.values()) if self.layout else 0

    def notes(self) -> list[str]:
        """What a person should know of the export, whatever the recipe."""
        found = [
            f"left out: {part} ({count:,} parameters), which {self.bridge.library}'s model does "
            "not read"
            for part, count in left_out(self.bridge, self.declared, self.folder).items()
        ]
        text = self.declared and self.declared.get_text_config()
        length = getattr(text, "max_position_embeddings", None) or 2**62
        if self.context is not None and self.context < length:
            found.append(f"made for conversations of up to {self.context:,} tokens (--max-context)")
        if self.unseen:
            found.insert(0, f"made without pictures: {self.unseen}")
        return [*self.bridge.doubts, *found]


def open_checkpoint(
    source: str | Path,
    *,
    context: int | None = None,
    revision: str | None = None,
    pictures: bool | None = None,
    unseen: str = "",
) -> Opened:
    """Open a checkpoint: `export_model` has the arguments and the errors.

    unseen: why its pictures' part is left out, if that is known.
    """
    checkpoint = open_source(source, revision=revision)
    if context is not None and context < 1:
        raise YoyoError(f"--max-context: expected at least 1 token; got {context}.")
    declared, raw = declared_config(checkpoint.folder), load_config(checkpoint.folder)
    if pictures and not has_pictures(raw):
        raise YoyoError(f"--pictures: {checkpoint.folder}: its config.json has no vision_config.")
    if pictures is not False and has_pictures(raw):
        try:
            bridge = bridge_pictures(checkpoint.folder, raw, declared, context=context)
            found = _opened(checkpoint, bridge, declared, context)
            _ = found.picture
            return found
        except YoyoError as error:
            unseen = str(error)
            if pictures:
                raise YoyoError(f"--pictures: {unseen}") from None
    try:
        bridge = bridge_config(raw, declared, context=context)
        return replace(_opened(checkpoint, bridge, declared, context), unseen=unseen)
    except YoyoError as error:
        if unseen and pictures is None:
            raise YoyoError(f"{error} And with its pictures: {unseen}") from None
        raise


def _opened(checkpoint: Source, bridge: Bridge, declared: Any, context: int | None) -> Opened:
    """A checkpoint whose tensors fit the model, as they are or unpacked."""
    found = Opened(checkpoint, bridge, declared, context, checkpoint.folder)
    try:
        _ = found.model
    except YoyoError:
        layout = packed_layout(found.folder, declared)
        if layout is None:
            raise
        return replace(found, layout=layout)
    return found


def float32_bytes(parameters: int) -> int:
    """The memory that a model in float32 needs while it is loaded and run."""
    return int(parameters * FLOAT32_BYTES * RUNNING)


def named(recipe: Recipe | str) -> Recipe:
    """A recipe, or the one of this name."""
    return parse_recipe(recipe) if isinstance(recipe, str) else recipe


def carried_bytes(source: Source, *, pictures: bool = False) -> int:
    """Tokenizer and other files as they are; config.json and card about as long as theirs."""
    card = source.folder / "README.md"
    files = [
        *source.carried_files(pictures=pictures),
        source.folder / "config.json",
        *([card] * card.exists()),
    ]
    return sum(path.stat().st_size for path in files)
