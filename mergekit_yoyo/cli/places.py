"""Paths on the command line: what a command expects there, and what stands there instead.

The commands hand their results to one another, and a merge has a YAML, a record, a folder and
exports: the wrong one of them is told by its name, with the command that it is for.
"""

import re
from pathlib import Path
from typing import Literal

import click

from mergekit_yoyo.errors import YoyoError, close_to

Kind = Literal[
    "a merge YAML",
    "a mergekit-multi file",
    "the record of a merge",
    "results of lm-eval",
    "a file of weights",
    "an MLX model",
    "a model folder",
    "a LoRA adapter",
    "a folder of results",
]
_PEEK = 2**20  # bytes that tell what a text file is
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".npz")
_METHOD = re.compile(r"^merge_method\s*:", re.MULTILINE)
_DOCUMENT = re.compile(r"^---", re.MULTILINE)
# The commands that a thing is for.
_FOR: dict[Kind, str] = {
    "a merge YAML": "`mergekit-yoyo merge {path} ./merged` makes the merge.",
    "a mergekit-multi file": "`mergekit-yoyo inspect {path}` looks at its stages, and "
    "`mergekit-multi {path} --intermediate-dir ./stages --out-path ./merged` merges them.",
    "the record of a merge": "`mergekit-yoyo report {path}` shows it.",
    "results of lm-eval": "`mergekit-yoyo scores {path}` shows them.",
    "a folder of results": "`mergekit-yoyo scores {path}` shows them.",
    "a file of weights": "Give the folder that it lies in: {path.parent}.",
    "a LoRA adapter": "It goes into a merge as MODEL+{path}.",
}


class Place(click.Path):
    """The type of a path of which a command expects one of several kinds.

    Whatever is none of the kinds above is left to the command. It is checked when the command is
    run, not when its line is parsed. A Hub name is a path where nothing is.

    expected: the kinds, the first of them for messages. advice: what to do with another kind, in
    place of the command that it is for.
    """

    def __init__(
        self,
        *expected: Kind,
        advice: dict[Kind, str] | None = None,
        path_type: type[str] | type[Path] = Path,
    ) -> None:
        super().__init__(path_type=path_type)
        self.expected, self.advice = expected, advice or {}

    def check(self, path: Path) -> None:
        """Refuse what is of another kind.

        Raises:
            YoyoError: something of another kind is there, or no YAML where one is expected.
        """
        if self.expected[0] == "a merge YAML" and not path.exists():
            raise YoyoError(f"{path}: cannot be read: there is no such file.{_near(path)}")
        found = kind_at(path)
        if found is not None and found not in self.expected:
            advice = self.advice.get(found) or _advice(found, path, self.expected)
            raise YoyoError(f"{path}: expected {self.expected[0]}; this is {found}. {advice}")


def kind_at(path: Path) -> Kind | None:
    """What is there, as far as names and first lines tell; None: nothing, or nothing of ours."""
    if path.is_dir():
        return _kind_of_folder(path)
    return _kind_of_file(path) if path.is_file() else None


def _kind_of_folder(folder: Path) -> Kind | None:
    if (folder / "config.json").is_file():
        return "an MLX model" if _is_mlx(folder) else "a model folder"
    if (folder / "adapter_config.json").is_file():
        return "a LoRA adapter"
    if any(folder.glob("results_*.json")) or any(folder.glob("*/results_*.json")):
        return "a folder of results"
    return None


def _is_mlx(folder: Path) -> bool:
    """Whether mlx wrote the weights; files that cannot be read are the command's to refuse."""
    from mergekit_yoyo.model.folder import is_mlx

    try:
        weights = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
        return bool(weights) and is_mlx(weights[0])
    except YoyoError:
        return False


def _kind_of_file(file: Path) -> Kind | None:
    if file.suffix in _WEIGHTS:
        return "a file of weights"
    try:
        with file.open("rb") as opened:
            text = opened.read(_PEEK).decode("utf-8", "ignore")
    except OSError:
        return None
    first = text.partition("\n")[0]
    if first.startswith('{"line":'):
        return "the record of a merge"
    if text.startswith("{") and re.search(r'^\s*"results"\s*:', text, re.MULTILINE):
        return "results of lm-eval"
    if found := _METHOD.findall(text):
        several = len(found) > 1 and _DOCUMENT.search(text)
        return "a mergekit-multi file" if several else "a merge YAML"
    return None


def _advice(found: Kind, path: Path, expected: tuple[Kind, ...]) -> str:
    if found in ("a model folder", "an MLX model") and "a merge YAML" in expected:
        if (path / "mergekit_config.yml").is_file():
            return f"The YAML of this merge is {path / 'mergekit_config.yml'}."
        return "Models stand in the YAML, under `models:`."
    if found == "a merge YAML" and "the record of a merge" in expected:
        return _record_named_in(path)
    return _FOR.get(found, "{path}: give one of that kind.").format(path=path)


def _record_named_in(file: Path) -> str:
    """Where the record of the merge in a YAML lies, if the YAML asks for one."""
    named = re.search(r"\breport\s*:\s*([^\s,}#]+)", file.read_text(errors="ignore"))
    if named:
        record = named.group(1).strip("'\"")
        return f"Its record is {record}, once it is merged."
    return "`parameters: {report: FILE}` in it makes a merge leave its record in FILE."


def _near(path: Path) -> str:
    """Names like that of a file which is not there, in its folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" Nor is there a folder {path.parent}."
    found = [str(path.parent / name) for name in close_to(path.name, names)]
    return f" Did you mean {', '.join(found)}?" if found else ""
