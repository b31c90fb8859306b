"""Held-out losses of the example experts and of merges of them.

    python benchmarks/held_out.py ./examples/experts/* ./merged

prints the mean negative log-likelihood per byte (nats, float32) on the text in
`examples/held_out/`, which no expert was trained on. Other benchmarks import `held_out_losses`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = ROOT / "examples" / "experts"
HELD_OUT = ROOT / "examples" / "held_out"
DOMAINS = ("code", "german", "manual", "headers", "french")
QUICKSTART = DOMAINS[:3]
BLOCK = 256  # bytes; each block is read on its own, after the beginning-of-text token
BATCH = 32


def held_out_losses(model_folder: str | Path, domains: Sequence[str] = DOMAINS) -> dict[str, float]:
    """Mean negative log-likelihood per byte of a model, in nats, for each domain.

    Args:
        model_folder: an expert or a merge of experts; needs its tokenizer, as merges do.
        domains: which of `DOMAINS` to read.

    Returns:
        Domain -> mean loss, computed in float32 whatever the dtype of the weights. A model whose
        logits are not finite has the loss nan.
    """
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    losses = {}
    with torch.inference_mode(), _one_thread():
        for domain in domains:
            text = (HELD_OUT / f"{domain}.txt").read_text(encoding="utf-8")
            ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
            blocks = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)
            inputs = torch.cat(
                (torch.full((len(blocks), 1), tokenizer.bos_token_id), blocks[:, :-1]), dim=1
            )
            total = sum(
                cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten(), reduction="sum")
                for x, y in zip(inputs.split(BATCH), blocks.split(BATCH), strict=True)
            )
            losses[domain] = float(total) / blocks.numel()
    return losses


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and on a busy machine lose a factor of ten."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def mean_loss(model_folder: str | Path, domains: Sequence[str] = QUICKSTART) -> float:
    """The plain mean of `held_out_losses` over the domains."""
    return sum(held_out_losses(model_folder, domains).values()) / len(domains)


@click.command(help="Prints held-out losses (nats per byte) of the models in the given folders.")
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
def main(models: tuple[str, ...]) -> None:
    table = Table("model", *DOMAINS, "mean")
    for column in table.columns[1:]:
        column.justify = "right"
    transformers_logging.disable_progress_bar()
    for folder in models:
        click.echo(f"{folder} ...", err=True)
        losses = held_out_losses(folder)
        mean = sum(losses.values()) / len(losses)
        table.add_row(Path(folder).name, *(f"{x:.4f}" for x in (*losses.values(), mean)))
    Console().print(table)


if __name__ == "__main__":
    main()
