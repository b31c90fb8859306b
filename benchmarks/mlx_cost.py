"""What an export costs beside plain `mlx_lm.convert` with the same bits: time and peak memory.

    python benchmarks/mlx_cost.py            # --write puts the line into docs/mlx.md

makes a random bfloat16 Llama of 0.6 billion parameters whose config plain mlx-lm reads correctly,
and converts it with both commands in turn, each in a process of its own. Verification is switched
off: mlx-lm has none. Prints medians: time on the clock, time of the processors, peak memory.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
from pages import show, write_option

BITS = 6
PLAIN = ["-m", "mlx_lm", "convert", "-q", "--q-bits", f"{BITS}", "--q-group-size", "64"]
OURS = ["-m", "mergekit_yoyo", "mlx", "--quant", f"q{BITS}", "--no-verify"]


@click.command(help="Compares time and peak memory with plain mlx_lm.convert.")
@click.option("--runs", default=5, show_default=True)
@click.option("--layers", default=20, show_default=True, help="25 million parameters each.")
@write_option
def main(runs: int, layers: int, write: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        # In a process of its own: Linux counts the memory of a parent as its children's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            parameters = pool.submit(make_model, source, layers).result()
        commands = {
            "mlx_lm.convert": [*PLAIN, "--hf-path", str(source), "--mlx-path", str(target)],
            "mergekit-yoyo mlx": [*OURS, str(source), str(target)],
        }
        costs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        sizes = {}
        for _ in range(runs):
            for name, command in commands.items():
                costs[name].append(run(command))
                sizes[name] = (target / "model.safetensors").stat().st_size
                shutil.rmtree(target)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*cost, strict=True))
        for name, cost in costs.items()
    }
    lines = [
        f"{parameters / 1e6:.0f} million parameters, {BITS} bits, medians of {runs} runs in turn, "
        "without verification:",
        "",
        "| | time | processor time | peak memory | written |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (seconds, processor, gigabytes) in medians.items():
        cells = (f"{seconds:.1f} s", f"{processor:.1f} s", f"{gigabytes:.2f} GB")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {sizes[name] / 1e6:.1f} MB |")
    ratios = [f"{b / a:.2f}" for a, b in zip(*medians.values(), strict=True)]
    lines.append(f"| ratio | {' | '.join(ratios)} | |")
    show(lines, "mlx.md", "mlx-cost", write=write)


def make_model(folder: Path, layers: int) -> int:
    """Save a random Llama with a byte-level tokenizer; the number of its parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=6,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak gigabytes of a Python process."""
    start = time.perf_counter()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    processor = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - start, processor, usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
