"""Fine-tunes a real base model on each kind of text: the experts of the bench.

    python benchmarks/quality/train.py                      # what is missing of SmolLM2-135M's
    python benchmarks/quality/train.py --base gemma3-270m
    python benchmarks/quality/train.py --domain code --try-rate 1e-4 --try-rate 5e-5

40 steps of 512 tokens an expert, AdamW on float32 weights, each in a process of its own: SmolLM2's
two side by side on a thread each, Gemma's, which take 9 GB, one after the other. Products are in
bfloat16, in float32 where the CPU has no AVX-512: ten steps take two minutes there, and had not
ended after seventeen in bfloat16. An expert that is there is not trained again.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

from mergekit_yoyo.merging.allocation import reuse_freed_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kept import Kept

THREADS = 2
SEED, STEPS, BATCH, LENGTH, WARMUP = 20261126, 40, 2, 256, 4


def expert_folder(base: str, domain: str, cache: Path) -> Path:
    """The expert of a domain, trained if it is missing."""
    (folder,) = expert_folders(base, [domain], cache)
    return folder


def expert_folders(base: str, domains: Sequence[str], cache: Path) -> list[Path]:
    """The experts of some domains; those that are missing are trained, some side by side."""
    root = cache / base if BASES[base].packages else EXPERTS
    missing = [d for d in domains if not (root / d / "model.safetensors").is_file()]
    if missing:
        base_folder(base, cache)
        for domain in missing:
            texts_of(domain, cache)  # fetched once, here
        started = time.monotonic()
        with ThreadPoolExecutor(BASES[base].side_by_side) as pool:
            list(pool.map(partial(_train_apart, base, cache), missing))
        spent = time.monotonic() - started
        training_seconds(base, cache).get(", ".join(missing), lambda: spent)
    return [root / domain for domain in domains]


def training_seconds(base: str, cache: Path) -> Kept:
    """The seconds that experts of a base took to train, by those that were trained at once."""
    return Kept(cache / f"training-{base}.seconds.json")


def _train_apart(base: str, cache: Path, domain: str) -> None:
    """Trains an expert in a process of its own."""
    threads = str(max(1, THREADS // BASES[base].side_by_side))
    command = [sys.executable, __file__, "--base", base, "--cache", str(cache), "--domain", domain]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": threads})


def _train_here(base: str, cache: Path, domain: str) -> None:
    """Trains an expert, which has its name when it is whole."""
    reuse_freed_memory()  # which halves the time of Gemma's
    model, tokenizer = trained(base, domain, cache, BASES[base].rate)
    made = cache / base / f"{domain}.part"
    tokenizer.save_pretrained(made)
    model.save_pretrained(made)
    made.rename(cache / base / domain)


def experts_of(base: str, domains: Sequence[str], cache: Path) -> list[Weights]:
    """The weights of the experts of some domains, as they were saved."""
    folders = expert_folders(base, domains, cache)
    return [load_file(folder / "model.safetensors") for folder in folders]


def trained(base: str, domain: str, cache: Path, rate: float) -> tuple[Any, Any]:
    """The base fine-tuned on random windows of a domain's text (AdamW, cosine), and its
    tokenizer."""
    origin = base_folder(base, cache)
    tokenizer = AutoTokenizer.from_pretrained(origin)
    model = AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
    begin, ids = tokens_of(tokenizer, texts_of(domain, cache)[0])
    random = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    fast = "AVX512" in torch.backends.cpu.get_cpu_capability()
    started = time.monotonic()
    model.train()
    for step in range(STEPS):
        warm = min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=random)
        batch = torch.stack([torch.cat((begin, ids[s : s + LENGTH])) for s in starts])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            seconds = time.monotonic() - started
            click.echo(
                f"{base}, {domain}: step {step + 1}/{STEPS}, loss {loss:.4f}, {seconds:.0f} s",
                err=True,
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
    if len(domains) == 1 and not (cache / base / domains[0]).exists():
        _train_here(base, cache, *domains)
    for domain, folder in zip(domains, expert_folders(base, domains, cache), strict=True):
        click.echo(f"{domain}: {folder}")


if __name__ == "__main__":
    main()
