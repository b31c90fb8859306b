"""Fine-tunes a real base model on each kind of text: the experts of the bench.

    python benchmarks/quality/train.py                      # what is missing of SmolLM2-135M's
    python benchmarks/quality/train.py --base gemma3-270m
    python benchmarks/quality/train.py --domain code --try-rate 1e-4 --try-rate 5e-5

40 steps of 512 tokens an expert, AdamW on float32 weights with bfloat16 products; a few
minutes an expert on two free cores. An expert that is there is not trained again.
"""

import math
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from models import BASES, CACHE, DOMAINS, EXPERTS, base_folder, texts_of
from reading import BLOCKS, Reader, Weights, half, mean_of, tokens_of
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

SEED, STEPS, BATCH, LENGTH, WARMUP = 20261126, 40, 2, 256, 4


def expert_folder(base: str, domain: str, cache: Path) -> Path:
    """The expert of a domain, trained if it is missing."""
    folder = cache / base / domain if BASES[base].packages else EXPERTS / domain
    if (folder / "model.safetensors").is_file():
        return folder
    model, tokenizer = trained(base, domain, cache, BASES[base].rate)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def experts_of(base: str, domains: Sequence[str], cache: Path) -> list[Weights]:
    """The weights of the experts of some domains, as they were saved."""
    return [load_file(expert_folder(base, d, cache) / "model.safetensors") for d in domains]


def trained(base: str, domain: str, cache: Path, rate: float) -> tuple[Any, Any]:
    """The base fine-tuned on random windows of a domain's text (AdamW, cosine), and its
    tokenizer."""
    origin = base_folder(base, cache)
    tokenizer = AutoTokenizer.from_pretrained(origin)
    model = AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
    begin, ids = tokens_of(tokenizer, texts_of(domain, cache)[0])
    random = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    model.train()
    for step in range(STEPS):
        warm = min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=random)
        batch = torch.stack([torch.cat((begin, ids[s : s + LENGTH])) for s in starts])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            seconds = time.monotonic() - started
            click.echo(
                f"{base}, {domain}: step {step + 1}/{STEPS}, loss {loss:.4f}, {seconds:.0f} s"
            )
    return model, tokenizer


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@click.option("--try-rate", "rates", multiple=True, type=float, help="Only try rates of learning.")
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS), default=DOMAINS)
def main(base: str, cache: Path, rates: tuple[float, ...], domains: tuple[str, ...]) -> None:
    transformers_logging.disable_progress_bar()
    for rate, domain in product(rates, domains):
        model, _ = trained(base, domain, cache, rate)
        reader = Reader(base, (domain,), cache, BLOCKS)
        loss = mean_of(reader.losses(half(model.state_dict())))
        click.echo(f"{base}, {domain}, rate {rate:g}: held-out loss {loss:.4f}")
    if rates:
        return
    for domain in domains:
        click.echo(f"{domain}: {expert_folder(base, domain, cache)}")


if __name__ == "__main__":
    main()
