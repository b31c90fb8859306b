"""Models of a YAML with their LoRA adapters, merged whole or not at all.

mergekit takes whatever folder of that name is in its cache, also one that a killed run left half
written, and without a cache it refuses.
"""

from pathlib import Path

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.merging.worker import disk_filled_up
from mergekit_yoyo.model.checkpoint import Checkpoint
from mergekit_yoyo.model.folder import is_whole
from mergekit_yoyo.model.merge_yaml import references
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.staging import is_full_disk, staged_folder


def with_adapters(
    config: MergeConfiguration, options: MergeOptions, cache: Path, progress: Progress
) -> MergeOptions:
    """The options with which mergekit finds all models with an adapter merged.

    cache: where they are kept unless the options say where.

    Raises:
        YoyoError: an adapter does not go into its model, or the disk is full.
    """
    adapted = [model for model in references(config) if model.lora is not None]
    if not adapted:
        return options
    cache = Path(options.lora_merge_cache or cache)
    cache.mkdir(parents=True, exist_ok=True)
    for model in adapted:
        folder = cache / _name_of(model)
        if not _is_whole(folder):
            progress.begin(f"merging the adapter of {model}", None)
            _merge(model, folder, options)
    return options.model_copy(update={"lora_merge_cache": str(cache)})


def _name_of(model: ModelReference) -> str:
    """What mergekit calls its folder."""
    return f"{model.model._unique_id()}_{model.lora._unique_id()}"


def _is_whole(folder: Path) -> bool:
    try:
        with Checkpoint(folder):
            return is_whole(folder) and (folder / "config.json").is_file()
    except YoyoError:
        return False


def _merge(model: ModelReference, folder: Path, options: MergeOptions) -> None:
    weights = Path(model.model.path).glob("*.safetensors")
    size = sum(file.stat().st_size for file in weights)
    with staged_folder(folder, overwrite=True, needed_bytes=size) as staging:
        try:
            model.merged(
                cache_dir=str(staging),
                trust_remote_code=options.trust_remote_code,
                lora_merge_dtype=options.lora_merge_dtype,
            )
        except Exception as error:  # peft and transformers refuse in many ways
            if is_full_disk(error):
                raise disk_filled_up(folder.parent) from None
            reason = first_line(error)
            raise YoyoError(f"{model}: the adapter cannot be merged: {reason}") from error
        made = staging / folder.name
        for file in made.iterdir():
            file.rename(staging / file.name)
        made.rmdir()
