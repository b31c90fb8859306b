"""What a merge needs to look like its inputs, worked out before anything is written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.card import Loaded, finished_card
from mergekit_yoyo.finish.companions import (
    GENERATION_FILE,
    json_bytes,
    missing_files,
    renumber_special_tokens,
)
from mergekit_yoyo.finish.config import FinishedConfig, both_styles, finished_config
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
from mergekit_yoyo.model.checkpoint import Checkpoint, TensorInfo
from mergekit_yoyo.model.config import config_from
from mergekit_yoyo.model.donor import Donor, find_donor
from mergekit_yoyo.model.json_files import check_layers, read_config
from mergekit_yoyo.model.layout import LayoutPlan, plan_layout
from mergekit_yoyo.model.merge_yaml import MERGE_FILE, MergeYaml, read_merge_yaml
from mergekit_yoyo.model.names import any_layer
from mergekit_yoyo.model.tokenizer import TEMPLATE_FILES, chat_template
from mergekit_yoyo.model.use import PROCESSOR_FILES
from mergekit_yoyo.outside import check_folder, read_json
from mergekit_yoyo.staging import mend_leftovers

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


@dataclass(frozen=True)
class _Parts:
    """What is being compared: the merge and its donor, with the tensors of both."""

    merge: Path
    merge_yaml: MergeYaml
    tensors: Mapping[str, TensorInfo]
    merged_config: dict[str, Any] | None
    donor: Donor
    donor_config: dict[str, Any]
    donor_tensors: Mapping[str, TensorInfo | None]


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
    parts = _read(merge, merge_yaml_of(merge, config), donor)
    finished = finished_config(
        parts.donor_config, parts.tensors, parts.donor.layers, parts.merged_config
    )
    layout, layout_notes = _layout(parts, finished, without_mtp)
    files, file_notes = _files(parts, finished, config_style)
    card, card_notes = _card(parts, files, name or merge.resolve().name)
    files["README.md"] = card.encode()
    differences = layout_difference(layout) + _file_differences(merge, files)
    notes = [*finished.notes, *layout_notes, *file_notes, *card_notes]
    return FinishPlan(merge, parts.donor, layout, files, differences, notes)


def _read(merge: Path, merge_yaml: MergeYaml, donor: str | None) -> _Parts:
    """Merge and donor, if they can be of one kind."""
    with Checkpoint(merge) as checkpoint:
        tensors = checkpoint.tensors
    source = find_donor(merge_yaml, merge, donor)
    donor_config = read_config(source.folder / "config.json")
    merged_file = merge / "config.json"
    merged_config = read_config(merged_file) if merged_file.is_file() else None
    donor_tensors = source.tensors()
    check_layers(donor_config, len(donor_tensors), source.folder / "config.json")
    if merged_config is not None:
        check_model_type(merged_config, tensors, donor_config, donor_tensors, str(source.name))
    return _Parts(merge, merge_yaml, tensors, merged_config, source, donor_config, donor_tensors)


def _layout(
    parts: _Parts, finished: FinishedConfig, without_mtp: bool
) -> tuple[LayoutPlan, list[str]]:
    """How the weights convert, none of the donor's missing, and notes on precision that is lost."""
    tensors, donor_tensors = parts.tensors, parts.donor_tensors
    original = plan_layout(config_from(finished.values), tensors, donor_tensors)
    is_donors = {any_layer(name) for name in tensors} <= {any_layer(name) for name in donor_tensors}
    layout = original.as_is(tensors) if is_donors else original
    check_against_donor(layout, donor_tensors, str(parts.donor.name))
    check_complete(original, donor_tensors, tensors, parts.donor.layers, without_mtp)
    return layout, [
        f"{name}: {what}: precision was lost in the merge; without `dtype:` in the YAML it is kept"
        for name, what in lost_precision(layout, donor_tensors).items()
    ]


def _files(
    parts: _Parts, finished: FinishedConfig, config_style: ConfigStyle
) -> tuple[dict[str, bytes], list[str]]:
    """The small files to write but for the card, and notes on them."""
    merge, donor, notes = parts.merge, parts.donor.folder, list[str]()
    if parts.merge_yaml.config.chat_template and parts.merged_config is None:
        notes.append(
            "chat_template of the YAML: the run died before it was set; the donor's is used"
        )
    files = missing_files(merge, donor, parts.merge_yaml, parts.donor.name)
    notes += renumber_special_tokens(finished.values, merge, donor)
    values = both_styles(finished.values) if config_style == "both" else finished.values
    if "rope_parameters" in values and "rope_theta" not in values:
        notes.append(
            "config.json: the donor's own has the spelling of transformers 5, which older loaders "
            "misread: --config-style both adds the one of before"
        )
    same = values == parts.donor_config
    files["config.json"] = (donor / "config.json").read_bytes() if same else json_bytes(values)
    files |= _generation_settings(merge, donor, files.get(GENERATION_FILE))
    if not (merge / MERGE_FILE).is_file():
        files[MERGE_FILE] = parts.merge_yaml.text.encode()
    return files, notes


def _card(parts: _Parts, files: Mapping[str, bytes], name: str) -> tuple[str, list[str]]:
    """The card, which the Hub would take, and notes on it."""
    weighed, weight_notes = weights_of(parts.merge, parts.merge_yaml)
    present = cards.read_card(parts.merge / "README.md")
    loaded = _loaded(parts.merge, parts.donor.folder, files)
    card, notes = finished_card(present, name, parts.merge_yaml, weighed, loaded)
    return card, [*cards.check_card(card), *notes, *weight_notes]


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


def _loaded(merge: Path, donor: Path, brought: Mapping[str, bytes]) -> Loaded:
    def has(names: Iterable[str]) -> bool:
        return any(name in brought or (merge / name).is_file() for name in names)

    tokenizer = donor if "tokenizer_config.json" in brought else merge
    return Loaded(
        json.loads(brought["config.json"]),
        chat=has(TEMPLATE_FILES) or chat_template(tokenizer) is not None,
        processor=has(PROCESSOR_FILES),
    )


def _bytes_of(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
