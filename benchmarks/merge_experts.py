"""Matching keys of a mixture of experts stored one by one: the plan, and the whole merge.

    python benchmarks/merge_experts.py            # minutes; mergekit-yaml is stopped at a limit
    python benchmarks/merge_experts.py --write

Three Qwen3-MoE checkpoints of 48 layers of 128 experts with a hidden size of 16, whose tensors are
so small that nothing but names costs time, in one file or in 16.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from pages import show, write_option
from transformers import Qwen3MoeConfig

from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.writing import write_checkpoint

CONFIG = Qwen3MoeConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=16,
    moe_intermediate_size=16,
    num_hidden_layers=48,
    num_experts=128,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    architectures=["Qwen3MoeForCausalLM"],
    dtype="bfloat16",
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint as the Hub has them: experts one by one."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(CONFIG).state_dict()
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in state.items():
        random = torch.randn(tensor.shape, generator=generator).bfloat16()
        if name.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(random):
                for piece, part in zip(("gate", "up"), both.chunk(2), strict=True):
                    place = name.replace("gate_up_proj", f"{expert}.{piece}_proj.weight")
                    found[place] = part.contiguous()
        elif name.endswith("experts.down_proj"):
            for expert, part in enumerate(random):
                place = name.replace("down_proj", f"{expert}.down_proj.weight")
                found[place] = part.contiguous()
        else:
            found[name] = random
    return found


def write_model(folder: Path, seed: int, files: int) -> None:
    """A checkpoint in one file, or in about so many."""
    folder.mkdir()
    CONFIG.save_pretrained(folder)
    state = tensors(seed)
    infos = {name: TensorInfo(tuple(x.shape), x.dtype) for name, x in state.items()}
    size = sum(info.nbytes for info in infos.values()) // files + 1
    write_checkpoint(folder, infos, state.items(), f"{size // 1000 + 1}KB")


def seconds(command: list[str], limit: float) -> float | None:
    """Wall time of a process; None if it took longer than `limit`."""
    start = time.perf_counter()
    try:
        subprocess.run(
            [sys.executable, "-m", *command],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None
    return time.perf_counter() - start


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--limit", default=120.0, show_default=True, help="Seconds for mergekit-yaml alone.")
@write_option
def main(limit: float, write: bool) -> None:
    rows = []
    for files in (1, 16):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            click.echo(f"writing three models in {files} files ...", err=True)
            for k in range(3):
                write_model(folder / f"m{k}", k, files)
            listed = "".join(f"- model: {folder}/m{k}\n" for k in range(3))
            yamls = {}
            for method in ("linear", "yoyo_fusion"):
                text = f"merge_method: {method}\nmodels:\n{listed}"
                if method == "linear":
                    text += "parameters: {weight: 1.0}\n"
                yamls[method] = folder / f"{method}.yml"
                yamls[method].write_text(text)
            options = ["--quiet", "--no-copy-tokenizer"]
            plain = ["mergekit.scripts.run_yaml", str(yamls["linear"]), f"{folder}/a", *options]
            theirs = seconds(plain, limit)
            said = f"more than {limit:.0f} s" if theirs is None else f"{theirs:.0f} s"
            ours = ["mergekit_yoyo", "merge", str(yamls["yoyo_fusion"]), f"{folder}/b", *options]
            look = ["mergekit_yoyo", "inspect", "--quick", str(yamls["yoyo_fusion"])]
            times = [seconds([*ours, "--no-finish"], 600.0), seconds(look, 600.0)]
            cells = ["-" if spent is None else f"{spent:.0f} s" for spent in times]
            rows.append(f"| {files} | {said} | {' | '.join(cells)} |")
            click.echo(rows[-1], err=True)
    head = "| files an input | mergekit-yaml, linear | mergekit-yoyo merge | inspect --quick |"
    show([head, "|---:|---:|---:|---:|", *rows], "merge.md", "merge-experts", write=write)


if __name__ == "__main__":
    main()
