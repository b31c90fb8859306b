"""A whole `mergekit-yaml` run with yoyo_fusion against the same run with linear.

    python benchmarks/whole_run.py

Writes three synthetic Llama checkpoints of 516 M parameters (bfloat16) to a temporary folder,
merges them with each method in turn, several times, and prints the best wall time and the peak
memory of each, with their ratios. Needs about 5 GB of disk.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
import torch
import yaml
from safetensors.torch import save_file
from transformers import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=1536,
    intermediate_size=4096,
    num_hidden_layers=18,
    num_attention_heads=16,
    num_key_value_heads=8,
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)


def write_models(folder: Path, count: int) -> tuple[list[Path], int]:
    """Checkpoints that share a base and differ by a tenth of it; and their parameters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in AutoModelForCausalLM.from_config(CONFIG).state_dict().items()
        }
    shapes.pop("lm_head.weight")
    torch.manual_seed(0)
    base = {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    models = []
    for index in range(count):
        path = folder / f"model-{index}"
        path.mkdir()
        CONFIG.save_pretrained(path)
        save_file(
            {name: (x + 0.002 * torch.randn_like(x)).bfloat16() for name, x in base.items()},
            path / "model.safetensors",
            {"format": "pt"},
        )
        models.append(path)
    return models, sum(x.numel() for x in base.values())


def run(models: list[Path], method: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one `mergekit-yaml` process."""
    recipe, out = folder / f"{method}.yml", folder / f"merged-{method}"
    parameters = {"weight": 1.0} if method == "linear" else {}
    recipe.write_text(
        yaml.safe_dump(
            {
                "merge_method": method,
                "models": [{"model": str(path)} for path in models],
                "parameters": parameters,
                "dtype": "bfloat16",
            }
        )
    )
    command = ["mergekit-yaml", str(recipe), str(out), "--quiet", "--no-copy-tokenizer"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return elapsed, usage.ru_maxrss / 1024


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--rounds", default=3, show_default=True)
def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models, parameters = write_models(folder, 3)
        results: dict[str, list[tuple[float, float]]] = {"linear": [], "yoyo_fusion": []}
        for _ in range(rounds):
            for method, measured in results.items():
                measured.append(run(models, method, folder))
    click.echo(f"{parameters / 1e6:.0f} M parameters, 3 models, {torch.get_num_threads()} threads")
    best = {
        m: (min(t for t, _ in r), statistics.median(p for _, p in r)) for m, r in results.items()
    }
    click.echo("| method | seconds | peak memory |\n|---|---:|---:|")
    for method, (elapsed, peak) in best.items():
        click.echo(f"| {method} | {elapsed:.1f} | {peak:,.0f} MiB |")
    ratios = [a / b for a, b in zip(best["yoyo_fusion"], best["linear"], strict=True)]
    click.echo(json.dumps({"time ratio": round(ratios[0], 2), "memory ratio": round(ratios[1], 2)}))


if __name__ == "__main__":
    main()
