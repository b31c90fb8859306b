"""What `inspect` says of a merge's memory, and what it takes, beside the merge itself.

    python benchmarks/inspect_cost.py [--layers 8] [--hidden 1024] [--folder DIR]

Merges three random fine-tunes of a Llama and of a Qwen3-MoE with mergekit-yaml, in bfloat16 and in
float32. "Private memory" is what that process allocated (RssAnon, Linux); the pages of its mapped
inputs are the kernel's.
"""

import argparse
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
import transformers

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


def main() -> None:
    """Run the benchmark once and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where to write, 5 x the size of a model")
    options = parser.parse_args()

    scripts = Path(sysconfig.get_path("scripts"))
    print("| family | dtype | memory predicted | of the merge | time of inspect | of the merge |")
    print("|---|---|---:|---:|---:|---:|")
    for family in ("Llama", "Qwen3-MoE"):
        root = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            write_models(root, config_of(family, options.layers, options.hidden))
            for dtype in ("bfloat16", "float32"):
                listed = "".join(f"- model: {root}/m{k}\n" for k in range(MODELS))
                file = root / "merge.yml"
                file.write_text(f"merge_method: yoyo_fusion\ndtype: {dtype}\nmodels:\n{listed}")
                plan = inspect(file, quick=True).plan
                assert plan is not None
                looking = [str(scripts / "mergekit-yoyo"), "inspect", str(file)]
                merging = [str(scripts / "mergekit-yaml"), str(file), str(root / "out"), "--quiet"]
                _, look_time = private_peak(looking, root)
                peak, merge_time = private_peak(merging, root)
                shutil.rmtree(root / "out")
                print(
                    f"| {family} | {dtype} | {format_bytes(peak_bytes(plan))} | "
                    f"{format_bytes(peak)} | {look_time:.1f} s | {merge_time:.1f} s |"
                )
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
