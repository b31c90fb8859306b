"""Fine-tunes of tiny checkpoints, and the comparison of merged tensors with the oracle."""

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reference import yoyo_fusion
from safetensors.torch import load_file, save_file

# largest relative L2 error of a float32 merge; bfloat16 must be the rounded float64 result
FLOAT32_ERROR = 1.5e-7
# float64 goes to bfloat16 through float32, which may round one element in many thousands twice
ROUNDED_TWICE = 1e-3

Tensors = dict[str, torch.Tensor]


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a checkpoint, however many files hold them."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def fine_tune(
    source: Path,
    folder: Path,
    seed: int,
    size: float = 0.05,
    dtype: torch.dtype | None = None,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Copy a checkpoint with noise of `size` added to every tensor, and return `folder`.

    dtype: of the copy, if not that of the source. change: what else happens to the tensors. config:
    values that replace those of config.json.
    """
    shutil.copytree(source, folder)
    torch.manual_seed(seed)
    tensors = {}
    for name, tensor in tensors_of(source).items():
        moved = tensor + size * torch.randn(tensor.shape)
        tensors[name] = moved.to(dtype or tensor.dtype).contiguous()
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values |= {} if dtype is None else {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps({**values, **(config or {})}))
    return folder


def shard(source: Path, folder: Path) -> Path:
    """Copy a checkpoint with its tensors dealt out to three files and an index."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    tensors = tensors_of(source)
    index = {}
    for k in range(3):
        file = f"model-{k + 1:05}-of-00003.safetensors"
        dealt = {name: tensors[name] for name in sorted(tensors)[k::3]}
        save_file(dealt, folder / file, {"format": "pt"})
        index |= dict.fromkeys(dealt, file)
    written = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(written))
    return folder


def recipe(models: Sequence[str], extra: str = "", **parameters: object) -> str:
    """The YAML of a `yoyo_fusion` merge of whole models."""
    listed = "".join(f"- model: {model}\n" for model in models)
    return (
        f"merge_method: yoyo_fusion\nmodels:\n{listed}parameters: {json.dumps(parameters)}\n{extra}"
    )


def sliced(slices: Sequence[tuple[Sequence[str], int, int]], extra: str = "") -> str:
    """The YAML of a `yoyo_fusion` merge of slices: (models, first layer, end)."""
    text = f"merge_method: yoyo_fusion\n{extra}slices:\n"
    for models, first, end in slices:
        text += "- sources:\n"
        text += "".join(f"  - {{model: {m}, layer_range: [{first}, {end}]}}\n" for m in models)
    return text


def mergekit(
    command: str, text: str, out: Path, *options: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run `mergekit-COMMAND` on a YAML, as a user would, in a process of its own."""
    written = out.with_suffix(".yml")
    written.write_text(text)
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / f"mergekit-{command}", written, out, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def assert_is_merge(
    tensor: torch.Tensor, inputs: Sequence[torch.Tensor], what: str = "", **options: Any
) -> None:
    """The tensor is the oracle's merge of the inputs, as exact as its dtype allows."""
    reference = yoyo_fusion([x.double().numpy() for x in inputs], **options)
    expected = torch.from_numpy(reference.merge)
    assert tensor.shape == expected.shape, what
    if tensor.dtype == torch.float32:
        error = (tensor.double() - expected).norm() / expected.norm()
        assert error <= FLOAT32_ERROR, f"{what}: {error:.1e}"
        return
    assert tensor.dtype == torch.bfloat16, what
    off = (tensor != expected.to(torch.bfloat16)).sum().item()
    assert off <= max(1, ROUNDED_TWICE * tensor.numel()), f"{what}: {off} of {tensor.numel()}"
    torch.testing.assert_close(tensor.double(), expected, rtol=2**-8, atol=1e-30)
