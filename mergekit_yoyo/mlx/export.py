"""The export: checkpoint in, mlx folder out, verified before it bears its name.

Steps: open and check the source; bridge its config; lay the recipe out; compare the unquantized
graph with transformers; quantize and write; load what was written and measure its drift; write the
card. All in a hidden sibling of the target, which is renamed at the end.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit_yoyo.card import read_card
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.automatic import Auto, found_recipe, in_play
from mergekit_yoyo.mlx.better import Rounding, check_rounding, round_better
from mergekit_yoyo.mlx.calibration import Calibration, read_back, text_windows
from mergekit_yoyo.mlx.card import begun_card, write_card
from mergekit_yoyo.mlx.opening import Opened, named, open_checkpoint
from mergekit_yoyo.mlx.plan import ExportPlan
from mergekit_yoyo.mlx.recipes import Recipe, recipe_yaml
from mergekit_yoyo.mlx.saving import save
from mergekit_yoyo.mlx.target import check_target
from mergekit_yoyo.mlx.verify import Reference, UnseenError, Verification, whether_to_verify
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import staged_folder

RECIPE_FILE = "recipe.yaml"  # in the export, where the widths were measured


@dataclass(frozen=True)
class Export:
    """What `export_model` made.

    Attributes:
        folder: the mlx model.
        plan: what each module got.
        verification: what was compared; None if nothing was.
        notes: what a person should know: skipped checks, doubts, changed group sizes.
        library: that loads it: mlx-lm, or mlx-vlm where it takes pictures.
    """

    folder: Path
    plan: ExportPlan
    verification: Verification | None
    notes: tuple[str, ...]
    library: str = "mlx-lm"


def plan_export(
    source: str | Path,
    recipe: Recipe | str,
    *,
    context: int | None = None,
    revision: str | None = None,
    pictures: bool | None = None,
) -> ExportPlan:
    """The plan of an export, from the config and the headers of the weight files alone.

    Raises:
        YoyoError: as `export_model`.
    """
    return plan_exports(source, [recipe], context=context, revision=revision, pictures=pictures)[0]


def plan_exports(
    source: str | Path,
    recipes: list[Recipe | str],
    *,
    context: int | None = None,
    revision: str | None = None,
    pictures: bool | None = None,
) -> list[ExportPlan]:
    """As `plan_export`, for several recipes of one model."""
    opened = open_checkpoint(source, context=context, revision=revision, pictures=pictures)
    return [opened.plan(recipe) for recipe in recipes]


def export_model(
    source: str | Path,
    target: str | Path,
    recipe: Recipe | Auto | str,
    *,
    texts: Mapping[str, Path] | None = None,
    rounding: Rounding = "nearest",
    verify: bool | None = None,
    max_kl: float | None = None,
    context: int | None = None,
    pictures: bool | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Export:
    """Convert a checkpoint to an mlx model, quantized by `recipe`.

    Args:
        source: a model folder (as mergekit or transformers wrote it, finished or not) or a Hub
            name.
        target: the folder to make.
        recipe: a recipe or its name, or what one is to be found for by measurement.
        texts: files to measure on, by name; without any, the model writes its own. For a recipe
            that is to be found, and for `feedback`.
        rounding: `nearest`, as mlx does; `search` for scales; `feedback` of errors (GPTQ).
        verify: compare with transformers; None: if it fits in memory.
        max_kl: refuse a drift above this mean divergence, in nats per token.
        context: tokens that the export is meant for; the model's own length by default.
        pictures: keep the part of a model that takes pictures, for mlx-vlm; None: where mlx-vlm is
            installed, reads it, and computes what transformers does (where that is compared). Else
            a note says why it was left out.
        base_model: the card's `base_model`, by default the source's Hub name.
        revision: of a Hub source.
        overwrite: replace `target` if it is an earlier export.
        progress: told of each step.

    Raises:
        YoyoError: the source is no usable model, mlx-lm lacks its architecture or computes
            something else, the recipe is unknown, the target exists, or the disk is full. `target`
            is then as it was.
    """
    if max_kl is not None and not max_kl >= 0:
        raise YoyoError(f"--max-kl: expected a divergence of 0 or more; got {max_kl}.")
    wanted = _Wanted(
        target=Path(target),
        recipe=recipe if isinstance(recipe, Auto) else named(recipe),
        texts=texts or {},
        rounding=rounding,
        verify=verify,
        max_kl=max_kl,
        base_model=base_model,
        overwrite=overwrite,
    )

    def export(pictures: bool | None, unseen: str = "") -> Export:
        opened = open_checkpoint(
            source, context=context, revision=revision, pictures=pictures, unseen=unseen
        )
        return _export(opened, wanted, progress)

    try:
        return export(pictures)
    except UnseenError as error:
        if pictures:
            raise YoyoError(
                f"--pictures: {error} --no-pictures exports the language model alone."
            ) from None
        unseen = str(error)
    try:
        return export(False, unseen)
    except YoyoError as error:
        raise YoyoError(f"{error} And with its pictures: {unseen}") from None


@dataclass(frozen=True)
class _Wanted:
    """What `export_model` was asked for, in its words."""

    target: Path
    recipe: Recipe | Auto
    texts: Mapping[str, Path]
    rounding: Rounding
    verify: bool | None
    max_kl: float | None
    base_model: str | None
    overwrite: bool


def _export(opened: Opened, wanted: _Wanted, progress: Progress) -> Export:
    """`export_model`, of an opened checkpoint."""
    target, recipe, texts = wanted.target, wanted.recipe, wanted.texts
    check_target(target, opened.folder, overwrite=wanted.overwrite)
    opened.check_tokenizer()
    card = begun_card(
        opened.source,
        name=target.name,
        base_model=wanted.base_model,
        pictures=opened.bridge.pictures,
        previous=read_card(target / "README.md"),
    )
    if isinstance(recipe, Recipe):
        check_rounding(recipe, wanted.rounding)
    else:
        recipe.check_weights(texts)
        in_play(opened, recipe)  # refused before any work
    windows = text_windows(opened, texts)
    plan = opened.plan("q8" if isinstance(recipe, Auto) else recipe)
    verify, unverified = whether_to_verify(wanted.verify, opened, plan.parameters)
    if wanted.max_kl is not None and not verify:
        raise YoyoError(f"--max-kl {wanted.max_kl}: nothing would be measured: {unverified}.")
    with staged_folder(
        target, overwrite=wanted.overwrite, needed_bytes=plan.folder_bytes + opened.unpacked_bytes
    ) as staging:
        if opened.layout:
            progress.begin("Unpacking experts")
        unpacked = opened.unpacked(staging / "original-layout")
        notes = [*unpacked.notes(), *card.notes, *([] if verify else [unverified])]
        reference = None
        if verify:
            progress.begin("Comparing with transformers")
            reference = Reference.of(unpacked)
        calibration = None
        if isinstance(recipe, Auto) or wanted.rounding == "feedback":
            calibration = Calibration.of(unpacked, windows, progress)
            notes += calibration.notes
        if isinstance(recipe, Auto):
            assert calibration
            recipe = found_recipe(unpacked, recipe, calibration, progress)
            (staging / RECIPE_FILE).write_text(recipe_yaml(recipe), encoding="utf-8")
        plan = unpacked.plan(recipe)
        plan.cast(unpacked.model)
        if wanted.rounding != "nearest":
            notes += round_better(unpacked.model, plan, wanted.rounding, calibration, progress)
        plan.quantize(unpacked.model)
        if calibration:
            notes.append(calibration.divergence_said(read_back(unpacked.model)))
        save(unpacked.model, opened.bridge, plan, staging, progress)
        if unpacked is not opened:
            shutil.rmtree(unpacked.folder)
        for path in opened.source.carried_files(pictures=opened.bridge.pictures):
            shutil.copyfile(path, staging / path.name)
        verification = None
        if reference:
            progress.begin("Measuring drift")
            verification = reference.verification(staging, notes)
            _check_drift(verification, wanted.max_kl)
        notes += plan.notes
        write_card(staging, card, opened.source, plan, verification, notes)
    return Export(target, plan, verification, tuple(notes), opened.bridge.library)


def _check_drift(verification: Verification, max_kl: float | None) -> None:
    kl = verification.drift.kl
    if max_kl is not None and kl > max_kl:
        raise YoyoError(
            f"--max-kl {max_kl}: the quantized model's divergence is {kl:.4f} nats per token. "
            "Choose a wider recipe; nothing was written."
        )
