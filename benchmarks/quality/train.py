"""Fine-tunes a real base model on each kind of text: the experts of the bench.

    python benchmarks/quality/train.py                      # what is missing of SmolLM2-135M's
    python benchmarks/quality/train.py --base gemma3-270m

40 steps of 512 tokens an expert, AdamW on float32 weights with bfloat16 products; a few
minutes an expert on two free cores. An expert that is there is not trained again.
"""

import math
import time
from pathlib import Path

import click
import torch
from models import BASES, CACHE, DOMAINS, EXPERTS, base_folder, texts_of
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

SEED, STEPS, BATCH, LENGTH, RATE, WARMUP = 20261126, 40, 2, 256, 2e-4, 4


def expert_folder(base: str, domain: str, cache: Path) -> Path:
    """The expert of a domain, trained if it is missing."""
    folder = cache / base / domain if BASES[base].packages else EXPERTS / domain
    if (folder / "model.safetensors").is_file():
        return folder
    origin = base_folder(base, cache)
    tokenizer = AutoTokenizer.from_pretrained(origin)
    model = AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
    ids = torch.tensor(tokenizer(texts_of(domain, cache)[0], verbose=False).input_ids)
    _train(model, ids, f"{base}, {domain}")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _train(model: torch.nn.Module, ids: torch.Tensor, label: str) -> None:
    """In place, on random windows (AdamW, cosine)."""
    random = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    model.train()
    for step in range(STEPS):
        warm = min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=random)
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            seconds = time.monotonic() - started
            click.echo(f"{label}: step {step + 1}/{STEPS}, loss {loss:.4f}, {seconds:.0f} s")


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS), default=DOMAINS)
def main(base: str, cache: Path, domains: tuple[str, ...]) -> None:
    transformers_logging.disable_progress_bar()
    for domain in domains:
        click.echo(f"{domain}: {expert_folder(base, domain, cache)}")


if __name__ == "__main__":
    main()
