"""What `tune` costs: each step measured, on a model of 135 M parameters.

    python benchmarks/tune_cost.py --write           # some minutes on two cores
    python benchmarks/tune_cost.py --device cuda     # a model of 1.7 B parameters

The models have random weights: only the time counts.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import torch
import yaml
from devices import device_option, machine
from devices import seconds as seconds_of
from held_out import EXPERTS
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pages import show, write_option
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging
from whole_run import SMALL

import mergekit_yoyo.method  # noqa: F401
from mergekit_yoyo.text import Writing, written_text
from mergekit_yoyo.text.writing import BATCH
from mergekit_yoyo.tuning.divergence import refer, samples
from mergekit_yoyo.tuning.mixture import Mixture
from mergekit_yoyo.tuning.subjects import load_model

SAMPLES, TOKENS, MODELS = 64, 128, 3  # the defaults, and three models
FEW = 4  # samples whose reading is timed; writing takes as long for one as for a batch
WORDS = SMALL.vocab_size
SHAPES = {
    "cpu": SMALL,
    "cuda": LlamaConfig(  # the shapes of SmolLM2-1.7B
        vocab_size=WORDS,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=True,
    ),
}
Result = TypeVar("Result")


def model(folder: Path, seed: int, device: str) -> int:
    """Writes a Llama with random weights; its parameters."""
    torch.manual_seed(seed)
    config = copy.deepcopy(SHAPES[device])
    config.bos_token_id, config.eos_token_id = 0, 1  # of the experts' tokenizer
    with torch.device(device):
        made = LlamaForCausalLM(config).to(torch.bfloat16)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EXPERTS / "base").save_pretrained(folder)
    return int(made.num_parameters())


def timed(work: Callable[[], Result], device: str) -> tuple[float, Result]:
    """Seconds, and what came of it."""
    results: list[Result] = []
    taken = seconds_of(lambda: results.append(work()), device)
    return taken, results[0]


@click.command(help=__doc__.split("\n\n")[0])
@device_option
@write_option
def main(device: str, write: bool) -> None:
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        for k in range(MODELS):
            parameters = model(folder / str(k), k, device)
        file = folder / "merge.yml"
        models = [{"model": str(folder / str(k))} for k in range(MODELS)]
        data = {"models": models, "dtype": "float32", "merge_method": "yoyo_fusion"}
        file.write_text(yaml.safe_dump({**data, "parameters": {"consensus": "recall"}}))
        writing, written = timed(
            lambda: written_text(
                folder / "0", folder / "t.jsonl", Writing(BATCH, TOKENS), device=device
            ),
            device,
        )
        some = written.windows[:FEW]
        loaded = load_model(folder / "0", device)
        refer(loaded, some, WORDS)  # to warm up
        referring, reference = timed(lambda: refer(loaded, some, WORDS), device)
        merging, _ = timed(
            lambda: run_merge(
                MergeConfiguration.model_validate(yaml.safe_load(file.read_text())),
                str(folder / "part"),
                MergeOptions(quiet=True, device=device),
            ),
            device,
        )
        mixture = Mixture(
            folder / "part",
            device=device,
            dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            rounded=torch.bfloat16,
        )
        part = folder / "part"
        summing, _ = timed(lambda: mixture.load([(0.5, part), (0.5, part)]), device)
        reading, _ = timed(lambda: samples(mixture.model, some, reference), device)
    scale = SAMPLES / FEW
    lines = [
        f"| step, of {parameters / 1e6:,.0f} M parameters on {machine(device)}, "
        f"{SAMPLES} samples of {TOKENS} tokens | seconds |",
        "|---|---:|",
        f"| a model writes its text (one batch timed, times {SAMPLES / BATCH:g}) | "
        f"{writing * SAMPLES / BATCH:.3g} |",
        f"| it reads that once ({FEW} samples timed, times {scale:g}) | {referring * scale:.2g} |",
        f"| a part is merged, recall, written in float32 | {merging:.3g} |",
        f"| a candidate: the sum of two parts | {summing:.2g} |",
        f"| and reading the half that chooses, of {MODELS} models (likewise) | "
        f"{reading * scale * MODELS / 2:.2g} |",
    ]
    show(lines, "tune.md", f"tune-cost-{device}", write=write)


if __name__ == "__main__":
    main()
