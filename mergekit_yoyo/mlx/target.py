"""The folder that an export is to become: what may be replaced there, and what not."""

from contextlib import suppress
from pathlib import Path

from mergekit_yoyo.card import read_card, read_section
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.card import SECTION
from mergekit_yoyo.model.folder import is_mlx


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a target whose replacement would destroy anything but an earlier export.

    Args:
        target: the folder to make.
        source: the folder of the checkpoint, which must not be lost with it.
        overwrite: whether an earlier export may be replaced.

    Raises:
        YoyoError: `target` is or contains the source, holds files of something else, or is an
            earlier export and `overwrite` is false.
    """
    place, source = target.resolve(), source.resolve()
    if place == source:
        raise YoyoError(f"{target}: this is the source. Choose another folder for the mlx model.")
    if place in source.parents:
        raise YoyoError(
            f"{target}: the source lies in it. Choose another folder for the mlx model."
        )
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if names and not _is_export(place):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise YoyoError(
            f"{target}: holds other files ({shown}); delete it yourself or choose another name."
        )
    if names and not overwrite:
        raise YoyoError(
            f"{target}: an earlier export is here. Replace it with --overwrite or choose another "
            "name."
        )


def _is_export(folder: Path) -> bool:
    """Whether a folder is an mlx export: by our section of its card, or by mlx's weights."""
    with suppress(YoyoError):  # markers that cannot be read are not ours to replace
        if read_section(read_card(folder / "README.md"), SECTION) is not None:
            return True
    for file in folder.glob("model*.safetensors"):
        with suppress(YoyoError):
            return is_mlx(file)
    return False
