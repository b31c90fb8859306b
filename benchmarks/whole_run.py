"""A whole `mergekit-yaml` run with yoyo_fusion against the same run with linear.

    python benchmarks/whole_run.py           # two minutes; --write: and into docs/numbers.md
    python benchmarks/whole_run.py --small   # 135 M parameters, and consensus: recall as well;
                                             # --write: and into docs/recall.md

Writes three synthetic Llama checkpoints of 516 M parameters (bfloat16) to a temporary folder,
merges them with each method in turn, several times, and prints the best wall time, the processor
time (which other work on the machine moves less) and the peak memory of each, and their ratios to
linear's. Needs about 5 GB of disk.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
import torch
import yaml
from pages import show, write_option
from safetensors.torch import save_file
from transformers import LlamaConfig

LARGE = LlamaConfig(
    vocab_size=32000,
    hidden_size=1536,
    intermediate_size=4096,
    num_hidden_layers=18,
    num_attention_heads=16,
    num_key_value_heads=8,
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)

SMALL = LlamaConfig(  # the shapes of SmolLM2-135M
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    architectures=["LlamaForCausalLM"],
)
METHODS: dict[str, dict[str, object]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 1.0}},
    "yoyo_fusion": {"merge_method": "yoyo_fusion"},
    "recall": {"merge_method": "yoyo_fusion", "parameters": {"consensus": "recall"}},
    "recall in float64": {
        "merge_method": "yoyo_fusion",
        "parameters": {"consensus": "recall", "recall_precision": "float64"},
    },
}


def write_models(folder: Path, count: int, config: LlamaConfig) -> tuple[list[Path], int]:
    """Checkpoints that share a base and differ by a tenth of it; and their parameters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shapes = {
            k: v.shape for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    shapes.pop("lm_head.weight")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where numbers are drawn
    base = {name: torch.randn(shape, device=device) * 0.02 for name, shape in shapes.items()}
    models = []
    for index in range(count):
        path = folder / f"model-{index}"
        path.mkdir()
        config.save_pretrained(path)
        save_file(
            {name: (x + 0.002 * torch.randn_like(x)).bfloat16().cpu() for name, x in base.items()},
            path / "model.safetensors",
            {"format": "pt"},
        )
        models.append(path)
    return models, sum(x.numel() for x in base.values())


def run(models: list[Path], method: str, folder: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak MiB of one `mergekit-yaml` process."""
    file = method.replace(" ", "-")
    recipe, out = folder / f"{file}.yml", folder / f"merged-{file}"
    recipe.write_text(
        yaml.safe_dump(
            {
                **METHODS[method],
                "models": [{"model": str(path)} for path in models],
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
    return elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--rounds", default=3, show_default=True)
@click.option("--small", is_flag=True, help="135 M parameters, and consensus: recall as well.")
@write_option
def main(rounds: int, small: bool, write: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        click.echo("writing three models ...", err=True)
        models, parameters = write_models(folder, 3, SMALL if small else LARGE)
        methods = [method for method in METHODS if small or "recall" not in method]
        results: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
        for k in range(rounds):
            for method, measured in results.items():
                measured.append(run(models, method, folder))
                click.echo(f"{method}, round {k + 1}: {measured[-1][0]:.1f} s", err=True)
    best = {
        method: (min(times), min(processor), statistics.median(peaks))
        for method, measured in results.items()
        for times, processor, peaks in [zip(*measured, strict=True)]
    }
    title = f"{parameters / 1e6:.0f} M parameters, {torch.get_num_threads()} threads"
    lines = [
        f"| {title} | seconds | of linear's | processor seconds | of linear's | peak memory | "
        "of linear's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for method, measures in best.items():
        elapsed, processor, peak = measures
        times, work, memory = (a / b for a, b in zip(measures, best["linear"], strict=True))
        lines.append(
            f"| {method} | {elapsed:.1f} | {times:.2f} | {processor:.1f} | {work:.2f} | "
            f"{peak:,.0f} MiB | {memory:.2f} |"
        )
    page, name = ("recall.md", "recall-run") if small else ("numbers.md", "whole-run")
    show(lines, page, name, write=write)


if __name__ == "__main__":
    main()
