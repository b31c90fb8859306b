"""What `tune` costs: each step measured on a model of 135 M parameters, and worked out for larger.

    python benchmarks/tune_cost.py --write   # some minutes on two cores

The models have random weights: only the time counts. For 8 B and 30 B on one GPU nothing is
measured: bytes and operations follow from those of the measured steps, and the rates are stated.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import torch
import yaml
from held_out import EXPERTS
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pages import show, write_option
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

import mergekit_yoyo.method  # noqa: F401
from mergekit_yoyo.text import Writing, written_text
from mergekit_yoyo.text.writing import BATCH
from mergekit_yoyo.tuning.divergence import refer, samples
from mergekit_yoyo.tuning.mixture import Mixture
from mergekit_yoyo.tuning.subjects import load_model

SAMPLES, TOKENS, MODELS = 64, 128, 3  # the defaults, and three models
FEW = 4  # samples whose reading is timed; writing takes as long for one as for a batch
WORDS = 49_152
Result = TypeVar("Result")

# One GPU as of 2025, read from data sheets and halved or less; nothing of it was measured here.
OPERATIONS = 4e14  # a second, bfloat16 matrix products
FROM_MEMORY = 2e10  # bytes a second, from the host's memory to the GPU
FROM_DISK = 3e9
DECODING = 1e12  # bytes of weights read a second while it writes


def model(folder: Path, seed: int) -> None:
    """A Llama of 135 M parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EXPERTS / "base").save_pretrained(folder)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def worked_out(parameters: float) -> list[str]:
    """Sizes and seconds for a model on one GPU, as text a row."""
    read = SAMPLES * TOKENS * MODELS / 2  # tokens of the half that chooses
    reading = 2 * parameters * read / OPERATIONS
    parts = 2 * 4 * parameters
    # a step of decoding reads all weights, for a batch at once
    writing = SAMPLES / BATCH * TOKENS * 2 * parameters / DECODING
    return [
        f"{4 * parameters / 1e9:.0f} GB",
        f"{2 * parameters / 1e9:.0f} GB",
        f"{writing:.0f} s",
        f"{reading:.1f} s",
        f"{parts / FROM_MEMORY:.0f} s",
        f"{parts / FROM_DISK:.0f} s",
    ]


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        for k in range(MODELS):
            model(folder / str(k), k)
        file = folder / "merge.yml"
        models = [{"model": str(folder / str(k))} for k in range(MODELS)]
        data = {"models": models, "dtype": "float32", "merge_method": "yoyo_fusion"}
        file.write_text(yaml.safe_dump({**data, "parameters": {"consensus": "recall"}}))
        writing, written = timed(
            lambda: written_text(folder / "0", folder / "t.jsonl", Writing(BATCH, TOKENS))
        )
        some = written.windows[:FEW]
        loaded = load_model(folder / "0", "cpu")
        referring, reference = timed(lambda: refer(loaded, some, WORDS))
        merging, _ = timed(
            lambda: run_merge(
                MergeConfiguration.model_validate(yaml.safe_load(file.read_text())),
                str(folder / "part"),
                MergeOptions(quiet=True),
            )
        )
        mixture = Mixture(
            folder / "part", device="cpu", dtype=torch.float32, rounded=torch.bfloat16
        )
        part = folder / "part"
        summing, _ = timed(lambda: mixture.load([(0.5, part), (0.5, part)]))
        reading, _ = timed(lambda: samples(mixture.model, some, reference))
    scale = SAMPLES / FEW
    lines = [
        f"| step, of 135 M parameters on {torch.get_num_threads()} cores of a shared machine, "
        f"{SAMPLES} samples of {TOKENS} tokens | seconds |",
        "|---|---:|",
        f"| a model writes its text (one batch timed, times {SAMPLES / BATCH:g}) | "
        f"{writing * SAMPLES / BATCH:.0f} |",
        f"| it reads that once ({FEW} samples timed, times {scale:g}) | {referring * scale:.0f} |",
        f"| a part is merged, recall in float32 | {merging:.0f} |",
        f"| a candidate: the sum of two parts | {summing:.1f} |",
        f"| and reading the half that chooses, of {MODELS} models (likewise) | "
        f"{reading * scale * MODELS / 2:.0f} |",
        "",
        "| one GPU, **worked out, not measured** | a part | the merge on the GPU | a model writes "
        "| a candidate reads | its two parts come from memory | or from the disk |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {' | '.join(worked_out(n))} |"
            for name, n in (("8 B", 8e9), ("30 B", 3e10))
        ),
        "",
        f"Rates assumed: {OPERATIONS:.0e} operations a second, {FROM_MEMORY / 1e9:.0f} GB/s from "
        f"memory, {FROM_DISK / 1e9:.0f} GB/s from the disk, {DECODING / 1e12:.0f} TB/s of weights "
        "while it writes.",
    ]
    show(lines, "tune.md", "tune-cost", write=write)


if __name__ == "__main__":
    main()
