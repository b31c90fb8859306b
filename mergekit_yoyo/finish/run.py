"""Finishing a merge: everything is planned first, then written beside it, then swapped in."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.card import Loaded, finished_card
from mergekit_yoyo.finish.companions import (
    GENERATION_FILE,
    json_bytes,
    missing_files,
    renumber_special_tokens,
)
from mergekit_yoyo.finish.config import both_styles, finished_config
from mergekit_yoyo.finish.differences import (
    Difference,
    card_difference,
    config_difference,
    layout_difference,
)
from mergekit_yoyo.finish.donor_check import (
    check_against_donor,
    check_complete,
    check_model_type,
    lost_precision,
)
from mergekit_yoyo.finish.weighed import weights_of
from mergekit_yoyo.model.checkpoint import INDEX_FILE, Checkpoint
from mergekit_yoyo.model.config import config_from
from mergekit_yoyo.model.donor import Donor, find_donor
from mergekit_yoyo.model.json_files import check_layers, read_config
from mergekit_yoyo.model.layout import LayoutPlan, plan_layout
from mergekit_yoyo.model.merge_yaml import MERGE_FILE, MergeYaml, read_merge_yaml
from mergekit_yoyo.model.names import any_layer
from mergekit_yoyo.model.tokenizer import TEMPLATE_FILES, chat_template
from mergekit_yoyo.model.use import PROCESSOR_FILES
from mergekit_yoyo.model.writing import DEFAULT_SHARD_SIZE, shard, write_checkpoint
from mergekit_yoyo.outside import check_folder, read_json
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import mend_leftovers, staged_folder

ConfigStyle = Literal["donor", "both"]


@dataclass(frozen=True)
class FinishPlan:
    """What a merge needs to look like its inputs; made by `plan_finish`, nothing written yet.

    `files` are the small files to write, `layout` says how the weights convert, `differences`
    what of it all is not so yet, and `notes` what a person should know.
    """

    merge: Path
    donor: Donor
    layout: LayoutPlan
    files: dict[str, bytes]
    differences: list[Difference]
    notes: list[str]


def plan_finish(
    merge: Path,
    *,
    config: Path | None = None,
    donor: str | None = None,
    config_style: ConfigStyle = "donor",
    name: str | None = None,
    without_mtp: bool = False,
) -> FinishPlan:
    """Work out what a mergekit merge needs to look like its inputs; writes nothing.

    Args:
        merge: the folder that mergekit wrote.
        config: the merge YAML, if mergekit did not leave it in the folder (its run died).
        donor: folder or Hub name of the model to look like; see `find_donor` for the default.
        config_style: config.json in the donor's spelling, or `both` spellings side by side.
        name: what the card calls the model; by default the name of the folder.
        without_mtp: accept a merge that lacks its donor's blocks for multi-token prediction.

    Raises:
        YoyoError: not a merge folder, no donor, or tensors that are not the donor's.
    """
    merge_yaml = merge_yaml_of(merge, config)
    with Checkpoint(merge) as checkpoint:
        tensors = checkpoint.tensors
    source = find_donor(merge_yaml, merge, donor)
    notes = []

    donor_config = read_config(source.folder / "config.json")
    merged_file = merge / "config.json"
    merged_config = read_config(merged_file) if merged_file.is_file() else None
    donor_tensors = source.tensors()
    check_layers(donor_config, len(donor_tensors), source.folder / "config.json")
    if merged_config is not None:
        check_model_type(merged_config, tensors, donor_config, donor_tensors, str(source.name))
    finished = finished_config(donor_config, tensors, source.layers, merged_config)
    notes += finished.notes

    original = plan_layout(config_from(finished.values), tensors, donor_tensors)
    is_donors = {any_layer(name) for name in tensors} <= {any_layer(name) for name in donor_tensors}
    layout = original.as_is(tensors) if is_donors else original
    check_against_donor(layout, donor_tensors, str(source.name))
    check_complete(original, donor_tensors, tensors, source.layers, without_mtp)
    notes += [
        f"{name}: {what}: precision was lost in the merge; without `dtype:` in the YAML it is kept"
        for name, what in lost_precision(layout, donor_tensors).items()
    ]

    if merge_yaml.config.chat_template and merged_config is None:
        notes.append(
            "chat_template of the YAML: the run died before it was set; the donor's is used"
        )
    files = missing_files(merge, source.folder, merge_yaml, source.name)
    notes += renumber_special_tokens(finished.values, merge, source.folder)
    values = both_styles(finished.values) if config_style == "both" else finished.values
    if "rope_parameters" in values and "rope_theta" not in values:
        notes.append(
            "config.json: the donor's own has the spelling of transformers 5, which older loaders "
            "misread: --config-style both adds the one of before"
        )
    same = values == donor_config
    files["config.json"] = (
        (source.folder / "config.json").read_bytes() if same else json_bytes(values)
    )
    files |= _generation_settings(merge, source.folder, files.get(GENERATION_FILE))
    if not (merge / MERGE_FILE).is_file():
        files[MERGE_FILE] = merge_yaml.text.encode()
    weighed, weight_notes = weights_of(merge, merge_yaml)
    card, card_notes = finished_card(
        cards.read_card(merge / "README.md"),
        name or merge.resolve().name,
        merge_yaml,
        weighed,
        _loaded(merge, source.folder, files, values),
    )
    notes += cards.check_card(card)
    files["README.md"] = card.encode()
    notes += card_notes + weight_notes
    differences = layout_difference(layout) + _file_differences(merge, files)
    return FinishPlan(merge, source, layout, files, differences, notes)


def finish(
    plan: FinishPlan,
    *,
    output: Path | None = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    online: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Carry out a plan: the merge, or a copy of it, comes to look like its inputs.

    The work is done in a folder beside the target and swapped in at the end; whatever happens
    before leaves the merge as it was. Where nothing differs, nothing is touched.

    Args:
        plan: from `plan_finish`.
        output: where to write instead, leaving the merge alone.
        max_shard_size: of the weight files, if they are rewritten; `5GB` or `500MB`.
        online: let the Hub validate the card before anything is written.
        progress: told of the bytes that are written.

    Returns:
        The finished folder.

    Raises:
        YoyoError: the disk is full, `output` exists, the card is refused, or a tensor is damaged.
    """
    shard(plan.layout.targets, max_shard_size)  # a size that makes no sense is refused first
    if online:
        cards.validate_online(plan.files["README.md"].decode())
    if output is None and not plan.differences:
        mend_leftovers(plan.merge.resolve())  # of a run that was killed when all but this was done
        return plan.merge
    if output is not None and output.resolve() == plan.merge.resolve():
        raise YoyoError(f"--output {output}: this is the merge itself. Leave --output out.")
    if output is not None and plan.merge.resolve() in output.resolve().parents:
        raise YoyoError(f"--output {output}: this is inside the merge. Choose a folder beside it.")

    with Checkpoint(plan.merge) as checkpoint:
        converts = bool(plan.layout.changed)
        stale = {*checkpoint.files, INDEX_FILE} if converts else set[str]()
        moved = sum(info.nbytes for info in plan.layout.targets.values())
        needed = moved if converts or output is not None else 0
        needed += sum(len(content) for content in plan.files.values())
        target = output or plan.merge
        with staged_folder(target, overwrite=output is None, needed_bytes=needed) as staging:
            if converts or output is not None:
                progress.begin("Writing weights", moved, "bytes")
            # Unchanged files are the same data under a second name, unless they are to be a copy.
            mirror(plan.merge, staging, skip=stale, link=output is None, progress=progress)
            for name, content in plan.files.items():
                file = staging / name
                file.parent.mkdir(exist_ok=True)
                file.unlink(missing_ok=True)  # it may be a second name of the merge's own
                file.write_bytes(content)
            if converts:
                tensors = _told(plan.layout.convert(checkpoint.read), progress)
                write_checkpoint(staging, plan.layout.targets, tensors, max_shard_size)
    return target


def merge_yaml_of(merge: Path, config: Path | None = None) -> MergeYaml:
    """The YAML of a merge: `config`, or the one that mergekit left in its folder.

    Raises:
        YoyoError: there is neither.
    """
    if not merge.exists():
        mend_leftovers(merge.resolve())  # a run that was killed may have left it aside
    if not merge.is_dir():
        raise YoyoError(f"{merge}: expected the folder of a merge; there is no such folder.")
    check_folder(merge)
    if config is not None:
        return read_merge_yaml(config)
    if not (merge / MERGE_FILE).is_file():
        raise YoyoError(
            f"{merge}: not a merge folder: expected {MERGE_FILE}, which mergekit writes at the "
            "end. If its run died before, or wrote no card, give --config MERGE.yml."
        )
    return read_merge_yaml(merge / MERGE_FILE)


def _file_differences(merge: Path, files: Mapping[str, bytes]) -> list[Difference]:
    differences = []
    for name, content in sorted(files.items()):
        present = _bytes_of(merge / name)
        if present is None:
            differences.append(Difference(name, "missing"))
        elif present != content and name == "config.json":
            differences.append(config_difference(json.loads(present), json.loads(content)))
        elif present != content and name == "README.md":
            differences.append(card_difference(present.decode(), content.decode()))
        elif present != content:
            differences.append(Difference(name, "out of date"))
    return differences


def _generation_settings(merge: Path, donor: Path, brought: bytes | None) -> dict[str, bytes]:
    """generation_config.json with the merge's token ids, if it needs rewriting."""
    file = (donor if brought is not None else merge) / GENERATION_FILE
    if not file.is_file():
        return {}
    values = read_json(file)
    # The merge's own copy was taken from the donor too: its ids are the donor's until rewritten.
    if brought is None and file.read_bytes() != _bytes_of(donor / GENERATION_FILE):
        return {}
    changed = renumber_special_tokens(values, merge, donor)
    return {GENERATION_FILE: json_bytes(values)} if changed else {}


def _loaded(
    merge: Path, donor: Path, brought: Mapping[str, bytes], config: Mapping[str, Any]
) -> Loaded:
    def has(names: Iterable[str]) -> bool:
        return any(name in brought or (merge / name).is_file() for name in names)

    tokenizer = donor if "tokenizer_config.json" in brought else merge
    return Loaded(
        config,
        chat=has(TEMPLATE_FILES) or chat_template(tokenizer) is not None,
        processor=has(PROCESSOR_FILES),
    )


def _bytes_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def mirror(
    source: Path,
    target: Path,
    *,
    skip: set[str],
    link: bool,
    progress: Progress,
) -> None:
    """Make `target` hold what `source` holds, but for the files `skip` at its top.

    link: the same data under a second name where the disk has that, and links stay links; else a
    copy that stands on its own.
    """
    for old in sorted(source.iterdir()):
        new = target / old.name
        if old.name in skip:
            continue
        if link and old.is_symlink():
            new.symlink_to(old.readlink())
        elif old.is_dir():
            new.mkdir()
            mirror(old, new, skip=set(), link=link, progress=progress)
            shutil.copystat(old, new)
        elif not (link and _linked(old, new)):
            shutil.copy2(old, new)
            if old.suffix == ".safetensors":
                progress.advance(new.stat().st_size)


def _linked(old: Path, new: Path) -> bool:
    """Whether `new` could be made a second name of the file `old`: some disks have no such."""
    with suppress(OSError):
        os.link(old, new)
        return True
    return False


def _told(
    tensors: Iterator[tuple[str, torch.Tensor]], progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        progress.advance(tensor.nbytes)
