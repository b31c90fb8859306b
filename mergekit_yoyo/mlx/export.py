"""The export: checkpoint in, mlx folder out, verified before it bears its name.

Steps: open and check the source; bridge its config; lay the recipe out; compare the unquantized
graph with transformers; quantize and write; load what was written and measure its drift; write the
card. All in a hidden sibling of the target, which is renamed at the end.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import psutil
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_config, load_tokenizer, make_shards, save_config
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mergekit_yoyo.card import read_card
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.bridge import Bridge, bridge_config, declared_config
from mergekit_yoyo.mlx.card import begun_card, write_card
from mergekit_yoyo.mlx.plan import Plan, plan_model
from mergekit_yoyo.mlx.recipes import Recipe, parse_recipe
from mergekit_yoyo.mlx.source import Source, open_source
from mergekit_yoyo.mlx.target import check_target
from mergekit_yoyo.mlx.verify import (
    Verification,
    check_graph,
    graph_difference,
    measure_drift,
    mlx_logits,
    prompts_for,
    written_logits,
)
from mergekit_yoyo.mlx.weights import (
    left_out,
    load_lazily,
    packed_layout,
    skeleton,
    stored_dtype,
    unpack,
)
from mergekit_yoyo.staging import format_bytes, staged_folder

FLOAT32_BYTES = 4
# transformers needs more than the weights while it loads and runs them.
REFERENCE_OVERHEAD = 1.25


@dataclass(frozen=True)
class Export:
    """What `export_model` made.

    Attributes:
        folder: the mlx model.
        plan: what each module got.
        verification: what was compared; None if nothing was.
        notes: what a person should know: skipped checks, doubts, changed group sizes.
    """

    folder: Path
    plan: Plan
    verification: Verification | None
    notes: tuple[str, ...]


def plan_export(
    source: str | Path,
    recipe: Recipe | str,
    *,
    context: int | None = None,
    revision: str | None = None,
) -> Plan:
    """The plan of an export, from the config and the headers of the weight files alone.

    Raises:
        YoyoError: as `export_model`.
    """
    return plan_exports(source, [recipe], context=context, revision=revision)[0]


def plan_exports(
    source: str | Path,
    recipes: list[Recipe | str],
    *,
    context: int | None = None,
    revision: str | None = None,
) -> list[Plan]:
    """As `plan_export`, for several recipes of one model."""
    opened = open_source(source, revision=revision)
    bridge, _ = _bridge(opened, context)
    model, carried = skeleton(bridge, stored_dtype(opened.folder)), _carried_bytes(opened)
    return [plan_model(model, _recipe(recipe), carried_bytes=carried) for recipe in recipes]


def export_model(
    source: str | Path,
    target: str | Path,
    recipe: Recipe | str,
    *,
    verify: bool | None = None,
    max_kl: float | None = None,
    context: int | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Export:
    """Convert a checkpoint to an mlx model, quantized by `recipe`.

    Args:
        source: a model folder (as mergekit or transformers wrote it, finished or not) or a Hub
            name.
        target: the folder to make.
        recipe: a recipe or its name.
        verify: compare with transformers; None: if it fits in memory.
        max_kl: refuse a drift above this mean divergence, in nats per token.
        context: tokens that the export is meant for; the model's own length by default.
        base_model: the card's `base_model`, by default the source's Hub name.
        revision: of a Hub source.
        overwrite: replace `target` if it is an earlier export.
        progress: show it on stderr.

    Raises:
        YoyoError: the source is no usable model, mlx-lm lacks its architecture or computes
            something else, the recipe is unknown, the target exists, or the disk is full. `target`
            is then as it was.
    """
    recipe = _recipe(recipe)
    if max_kl is not None and not max_kl >= 0:
        raise YoyoError(f"--max-kl: expected a divergence of 0 or more; got {max_kl}.")
    opened = open_source(source, revision=revision)
    bridge, declared = _bridge(opened, context)
    target = Path(target)
    check_target(target, opened.folder, overwrite=overwrite)
    name, base_model = target.name, base_model or opened.repo
    earlier = read_card(target / "README.md")
    card, card_notes = begun_card(opened, name=name, base_model=base_model, previous=earlier)
    tokenizer = _tokenizer(opened.folder)
    carried = _carried_bytes(opened)
    layout = None
    try:
        model = load_lazily(opened.folder, bridge, declared)
    except YoyoError:
        layout = packed_layout(opened.folder, declared)
        if layout is None:
            raise
        model = skeleton(bridge, stored_dtype(opened.folder))
    plan = plan_model(model, recipe, carried_bytes=carried)
    notes = [*bridge.doubts, *card_notes]
    length = declared and getattr(declared.get_text_config(), "max_position_embeddings", None)
    if context is not None and context < (length or 2**62):
        notes.append(f"made for conversations of up to {context:,} tokens (--max-context)")
    verify = _whether_to_verify(verify, plan.parameters, bridge, declared, notes)
    if max_kl is not None and not verify:
        raise YoyoError(f"--max-kl {max_kl}: nothing would be measured: {notes[-1]}.")
    needed = plan.folder_bytes
    if layout:
        needed += sum(info.nbytes for info in layout.targets.values())
    with (
        _Steps(progress) as steps,
        staged_folder(target, overwrite=overwrite, needed_bytes=needed) as staging,
    ):
        original = opened.folder
        if layout:
            steps.next("unpacking experts")
            original = staging / "original-layout"
            original.mkdir()
            unpack(opened.folder, layout, original)
            model = load_lazily(original, bridge, declared)
            plan = plan_model(model, recipe, carried_bytes=carried)
        for part, count in left_out(bridge, declared, original).items():
            notes.append(
                f"left out: {part} ({count:,} parameters), which mlx-lm's model does not read"
            )
        verification = difference = None
        if verify:
            steps.next("comparing with transformers")
            vocabulary = declared.get_text_config().vocab_size
            prompts = prompts_for(tokenizer, vocabulary, context)
            difference = graph_difference(original, bridge, declared, prompts, context=context)
            check_graph(difference, bridge)
            unquantized = mlx_logits(load_lazily(original, bridge, declared), prompts, float32=True)
        config = _final_config(bridge.config, plan)
        plan.carry_out(model)
        _write_weights(model, plan, staging, steps)
        del model
        if layout:
            shutil.rmtree(original)
        save_config(config, staging / "config.json")
        for path in opened.carried_files():
            shutil.copyfile(path, staging / path.name)
        if difference is not None:
            steps.next("measuring drift")
            drift = measure_drift(unquantized, written_logits(staging, prompts, notes))
            verification = Verification(difference, drift)
            if max_kl is not None and drift.kl > max_kl:
                raise YoyoError(
                    f"--max-kl {max_kl}: the quantized model's divergence is {drift.kl:.4f} "
                    "nats per token. Choose a wider recipe; nothing was written."
                )
        notes += plan.notes
        write_card(
            staging, card, opened, plan, verification, notes, name=name, base_model=base_model
        )
    return Export(target, plan, verification, tuple(notes))


def _carried_bytes(source: Source) -> int:
    """Tokenizer and other files as they are; config.json and card about as long as theirs."""
    card = source.folder / "README.md"
    files = [*source.carried_files(), source.folder / "config.json", *([card] * card.exists())]
    return sum(path.stat().st_size for path in files)


def _recipe(recipe: Recipe | str) -> Recipe:
    return parse_recipe(recipe) if isinstance(recipe, str) else recipe


def _bridge(source: Source, context: int | None) -> tuple[Bridge, Any]:
    if context is not None and context < 1:
        raise YoyoError(f"--max-context: expected at least 1 token; got {context}.")
    declared = declared_config(source.folder)
    return bridge_config(load_config(source.folder), declared, context=context), declared


def _tokenizer(folder: Path) -> TokenizerWrapper:
    try:
        return load_tokenizer(folder)
    except Exception as error:  # tokenizers of every kind fail in ways of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise YoyoError(f"{folder}: its tokenizer cannot be loaded: {reason}") from None


def _whether_to_verify(
    asked: bool | None, parameters: int, bridge: Bridge, declared: Any, notes: list[str]
) -> bool:
    """Whether to compare with transformers; if not although nobody said so, `notes` tells why."""
    if asked is False:
        notes.append("not compared with transformers (--no-verify)")
        return False
    needed = int(parameters * FLOAT32_BYTES * REFERENCE_OVERHEAD)
    available = psutil.virtual_memory().available
    if declared is None:
        reason = f"transformers does not know {bridge.config['model_type']}"
    elif asked is None and needed > available:
        reason = (
            f"transformers needs {format_bytes(needed)} of memory; "
            f"{format_bytes(available)} are free"
        )
    else:
        return True
    if asked:
        raise YoyoError(f"--verify: {reason}.")
    if bridge.doubts:
        raise YoyoError(
            f"{'; '.join(bridge.doubts)}. Whether it matters cannot be checked here: {reason}. "
            "--no-verify exports it nevertheless."
        )
    notes.append(f"not compared with transformers: {reason}")
    return False


def _final_config(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """config.json as mlx-lm reads it, in the dtype that was written."""
    config = dict(config)
    if plan.recipe.dtype:
        for key in {"dtype", "torch_dtype"} & config.keys():
            config[key] = plan.recipe.dtype
    quantization = plan.quantization()
    if quantization:
        config["quantization"] = quantization
    return config


def _write_weights(model: nn.Module, plan: Plan, folder: Path, steps: "_Steps") -> None:
    """Write the model shard by shard, as mlx-lm does; mlx computes each shard as it is written."""
    weights = dict(tree_flatten(model.parameters()))
    names = list(weights)
    shards = make_shards(weights)
    weights.clear()
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    # From here on a shard's arrays are referenced by the shard alone and freed with it.
    steps.next("quantizing and writing" if plan.recipe.quantizes else "writing", total=plan.bytes)
    weight_map: dict[str, str] = {}
    for i in range(len(shards)):
        shard, shards[i] = shards[i], {}
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        )
        try:
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        except RuntimeError as error:
            if not str(error).startswith("[write]"):
                raise
            raise YoyoError(
                f"{file}: mlx could not write it ({error}). Is the disk full? Nothing was written."
            ) from None
        weight_map |= dict.fromkeys(shard, file)
        steps.advance(sum(array.nbytes for array in shard.values()))
    index = {
        "metadata": {"total_size": plan.bytes, "total_parameters": plan.parameters},
        "weight_map": {name: weight_map[name] for name in sorted(names)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4) + "\n")


class _Steps:
    """The steps of the export as progress bars on stderr, or nothing."""

    def __init__(self, show: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not show)
        self._current: TaskID | None = None

    def __enter__(self) -> "_Steps":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._progress.stop()

    def next(self, description: str, total: int | None = None) -> None:
        """Begin the next step; `total` in the unit of `advance`, if known."""
        self._finish()
        self._current = self._progress.add_task(description, total=total)

    def advance(self, amount: int) -> None:
        """Tell that so much of the current step is done."""
        if self._current is not None:
            self._progress.advance(self._current, amount)

    def _finish(self) -> None:
        if self._current is not None:
            self._progress.update(self._current, total=1, completed=1)
