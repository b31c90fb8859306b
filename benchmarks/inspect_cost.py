"""What `inspect` says of a merge's memory, and what it takes, beside the merge itself.

    python benchmarks/inspect_cost.py           # two minutes
    python benchmarks/inspect_cost.py --write   # and into docs/inspect.md

Merges three random fine-tunes of a Llama and of a Qwen3-MoE with mergekit-yaml, in bfloat16 and in
float32. "Private memory" is what that process allocated (RssAnon, Linux); the pages of its mapped
inputs are the kernel's.
"""

import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import click
import torch
import transformers
from pages import show, write_option

from mergekit_yoyo.inspection import inspect
from mergekit_yoyo.inspection.resources import peak_bytes
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.writing import write_checkpoint
from mergekit_yoyo.staging import format_bytes

MODELS = 3


def config_of(family: str, layers: int, hidden: int) -> transformers.PretrainedConfig:
    """A config of either family."""
    shared = {
        "vocab_size": 32 * hidden,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "tie_word_embeddings": True,
    }
    if family == "Llama":
        config = transformers.LlamaConfig(intermediate_size=4 * hidden, **shared)
        config.architectures = ["LlamaForCausalLM"]
    else:
        experts = {"num_experts": 16, "num_experts_per_tok": 2}
        config = transformers.Qwen3MoeConfig(moe_intermediate_size=hidden // 2, **experts, **shared)
        config.architectures = ["Qwen3MoeForCausalLM"]
    config.dtype = "bfloat16"
    return config


def write_models(root: Path, config: transformers.PretrainedConfig) -> None:
    """A random base and fine-tunes of it, in transformers' layout."""
    with torch.device("meta"):
        state = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    state.pop("lm_head.weight")
    infos = {name: TensorInfo(tuple(t.shape), torch.bfloat16) for name, t in state.items()}
    for k in range(MODELS):
        folder = root / f"m{k}"
        folder.mkdir(parents=True)
        config.save_pretrained(folder)
        tensors = ((name, random_tensor(name, info, k)) for name, info in infos.items())
        write_checkpoint(folder, infos, tensors)


def random_tensor(name: str, info: TensorInfo, k: int) -> torch.Tensor:
    """The base's tensor, the same for all k, and 1 % of noise."""
    base = torch.Generator().manual_seed(len(name))
    own = torch.Generator().manual_seed(k)
    tensor = torch.randn(info.shape, generator=base)
    return (tensor + 0.01 * torch.randn(info.shape, generator=own)).to(info.dtype)


def private_peak(command: list[str], folder: Path) -> tuple[int, float]:
    """Largest RssAnon of a process, looked at every 5 ms, and its time."""
    quiet = subprocess.DEVNULL
    start, peak = time.perf_counter(), 0
    run = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    while run.poll() is None:
        for line in Path(f"/proc/{run.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.005)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak, time.perf_counter() - start


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--layers", default=8, show_default=True)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write 5 models' sizes.")
@write_option
def main(layers: int, hidden: int, folder: Path | None, write: bool) -> None:
    lines = [
        "| family | dtype | memory predicted | of the merge | ratio | inspect | to the merge |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for family in ("Llama", "Qwen3-MoE"):
        root = Path(tempfile.mkdtemp(dir=folder))
        try:
            click.echo(f"{family}: writing {MODELS} models ...", err=True)
            write_models(root, config_of(family, layers, hidden))
            lines += [
                f"| {family} | {dtype} | {measured(root, dtype)} |"
                for dtype in ("bfloat16", "float32")
            ]
        finally:
            shutil.rmtree(root)
    show(lines, "inspect.md", "inspect-cost", write=write)


def measured(root: Path, dtype: str) -> str:
    """The cells of one merge."""
    listed = "".join(f"- model: {root}/m{k}\n" for k in range(MODELS))
    file = root / "merge.yml"
    file.write_text(f"merge_method: yoyo_fusion\ndtype: {dtype}\nmodels:\n{listed}")
    plan = inspect(file, quick=True).plan
    assert plan is not None
    predicted = peak_bytes(plan)
    scripts = Path(sysconfig.get_path("scripts"))
    looking = [str(scripts / "mergekit-yoyo"), "inspect", str(file)]
    merging = [str(scripts / "mergekit-yaml"), str(file), str(root / "out"), "--quiet"]
    click.echo(f"{dtype}: inspect ...", err=True)
    _, look_time = private_peak(looking, root)
    click.echo(f"{dtype}: the merge ...", err=True)
    peak, merge_time = private_peak(merging, root)
    shutil.rmtree(root / "out")
    return (
        f"{format_bytes(predicted)} | {format_bytes(peak)} | {predicted / peak:.2f} | "
        f"{look_time:.1f} s | {look_time / merge_time:.2f}"
    )


if __name__ == "__main__":
    main()
