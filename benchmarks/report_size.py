"""The size of the page of a large merge, and how long a browser takes to open it.

    python benchmarks/report_size.py           # half a minute
    python benchmarks/report_size.py --write   # and into docs/report.md

makes up the record of three 30B models (48 layers of 128 experts), renders its page and opens
that in headless Chromium (Debian's packages `chromium` and `chromium-driver`).
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from pages import show, write_option
from selenium import webdriver

from mergekit_yoyo.record.layers import place_of
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.record.schema import Finding, Header, TensorLine
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report import render_page, summarize

MODELS = ["example/Instruct", "example/Thinking", "example/Coder"]
HIDDEN, WIDE, HEADS, VOCABULARY = 2048, 768, 4096, 151_936
BROWSER = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# from the start of the navigation to the frame after the last script
DRAWN = """
const done = arguments[0];
requestAnimationFrame(() => setTimeout(() => done(performance.now())));
"""


def tensors(layers: int, experts: int) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and number of problems of each tensor of a Qwen3-30B-A3B."""
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN], 1
    for layer in range(layers):
        start = f"model.layers.{layer}."
        yield start + "input_layernorm.weight", [HIDDEN], 1
        yield start + "mlp.experts.down_proj", [experts, HIDDEN, WIDE], experts
        yield start + "mlp.experts.gate_up_proj", [experts, 2 * WIDE, HIDDEN], 2 * experts
        yield start + "mlp.gate.weight", [experts, HIDDEN], 1
        yield start + "post_attention_layernorm.weight", [HIDDEN], 1
        yield start + "self_attn.k_norm.weight", [128], 1
        yield start + "self_attn.k_proj.weight", [512, HIDDEN], 1
        yield start + "self_attn.o_proj.weight", [HIDDEN, HEADS], 1
        yield start + "self_attn.q_norm.weight", [128], 1
        yield start + "self_attn.q_proj.weight", [HEADS, HIDDEN], 1
        yield start + "self_attn.v_proj.weight", [512, HIDDEN], 1
    yield "model.norm.weight", [HIDDEN], 1
    yield "lm_head.weight", [VOCABULARY, HIDDEN], 1


def line(
    name: str, shape: list[int], problems: int, depth: float, random: np.random.Generator
) -> TensorLine:
    """A tensor's line with plausible numbers. depth: of its layer, from 0 to 1."""
    count = len(MODELS)
    trust = [0.93, 0.9 - 0.55 * depth**2, 0.45 + 0.5 * depth]
    weights = np.clip(random.normal(trust, 0.04, size=(problems, count)), 0, 1)
    # a few experts that one model changed beyond recognition
    weights[random.random((problems, count)) < 0.01 * depth] = 0.0
    side = np.sqrt(np.prod(shape) / problems)
    distances = side * (0.02 + 0.1 * depth) * random.uniform(0.6, 1.4, size=(problems, count))
    rejected = (weights < REJECTED).sum(0).tolist()

    def rows(values: np.ndarray) -> list[list[float]]:
        return [[float(f"{x:.6g}") for x in row] for row in values]

    return TensorLine.model_validate(
        {
            "name": name,
            "shape": shape,
            "dtype": "bfloat16",
            "consensus": "tukey",
            "norms": rows(0.02 * side * random.uniform(0.98, 1.02, size=(problems, count))),
            "cosines": rows(random.uniform(-0.6, -0.4, size=(problems, count))),
            "residual_norms": rows(distances),
            "weights": rows(weights),
            "center_weights": rows(random.dirichlet([9] * count, size=problems)),
            "rank": [count - 1] * problems,
            "energy": [1.0] * problems,
            "energy_scale": [1.0] * problems,
            "iterations": random.integers(5, 20, size=problems).tolist(),
            "warnings": [
                Finding(kind="rejected", model=model, problems=found)
                for model, found in zip(MODELS, rejected, strict=True)
                if found
            ],
        }
    )


def make_record(path: Path, layers: int, experts: int) -> None:
    """Writes a made-up record, the same one every time."""
    random = np.random.default_rng(0)
    planned = list(tensors(layers, experts))
    head = Header(
        versions={"mergekit-yoyo": "0.1.0", "mergekit": "0.1.5"},
        started="2026-01-01T00:00:00+00:00",
        inputs=MODELS,
        base=MODELS[0],
        tensors=len(planned),
        parameters={"center": "geometric_median", "rescale": "mean", "tukey_c": 4.685},
    )
    with path.open("w") as file:
        file.write(head.model_dump_json() + "\n")
        for name, shape, problems in planned:
            layer = place_of(name).layer
            depth = 0.5 if layer is None else layer / layers
            tensor = line(name, shape, problems, depth, random)
            file.write(tensor.model_dump_json(exclude_none=True) + "\n")


def seconds_to_open(page: Path, profile: Path) -> float:
    """Seconds from opening a page to its first complete frame, in a fresh Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in (*BROWSER, "--window-size=1400,900", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get(page.resolve().as_uri())
        return float(browser.execute_async_script(DRAWN)) / 1000


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--layers", default=48, show_default=True)
@click.option("--experts", default=128, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the record and the page.")
@write_option
def main(layers: int, experts: int, keep: Path | None, write: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        folder.mkdir(exist_ok=True)
        record, page = folder / "merge-report.jsonl", folder / "report.html"
        click.echo("making up the record ...", err=True)
        make_record(record, layers, experts)
        click.echo("rendering its page ...", err=True)
        start = time.perf_counter()
        summary = summarize(read_record(record))
        page.write_text(render_page(summary))
        rendered = time.perf_counter() - start
        click.echo("opening it three times ...", err=True)
        opened = min(seconds_to_open(page, Path(name) / f"profile-{i}") for i in range(3))
        size = page.stat().st_size
    lines = [
        "| layers | experts | tensors | merged matrices | page | made in | opened in |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {layers} | {experts} | {len(summary.tensors):,} | {summary.problems:,} | "
        f"{size / 1e6:.2f} MB | {rendered:.1f} s | {opened:.1f} s |",
    ]
    show(lines, "report.md", "report-size", write=write)


if __name__ == "__main__":
    main()
