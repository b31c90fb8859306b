"""Tiny models of pictures and text beside transformers: as plain mlx-vlm reads them, and exported.

    python benchmarks/mlx_pictures.py           # --write puts the table into docs/mlx.md

For every family of `tests/pictures_fixtures.py`, as transformers saves it, with a processor:
whether `mlx_vlm.load` reads the folder and what it computes of a picture; what our export makes of
it; and whether mlx-lm reads the export too, for text. Differences are those of float32 logits, in
standard deviations of transformers'.
"""

import logging
import sys
import tempfile
import textwrap
import warnings
from importlib.metadata import version
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
from pages import show, write_option

from mergekit_yoyo.errors import YoyoError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
TOLERANCE = 1e-3
TEXT = [[1, 9, 33, 12, 50, 8, 41, 20, 31, 17]]
WIDTH = 100


def plain(source: Path) -> str:
    """What mlx-vlm computes of the folder as it is."""
    from mlx_lm.utils import load_config

    from mergekit_yoyo.mlx.bridge import declared_config
    from mergekit_yoyo.mlx.sample import load_processor, reference_logits, sample_inputs
    from mergekit_yoyo.mlx.seeing import load_written

    try:
        inputs = sample_inputs(load_processor(source), load_config(source))
        model = load_written(source)
        model.set_dtype(mx.float32)
        actual = model.see(inputs)
    except Exception as error:  # models of every kind fail in ways of their own
        return f"stops: {_short(error)}"
    try:
        expected = reference_logits(source, declared_config(source), inputs)
    except YoyoError:
        return "transformers stops"
    difference = np.abs(actual - expected).max() / expected.std()
    return f"{'right' if difference <= TOLERANCE else 'wrong'}: {difference:.0e}"


def exported(source: Path, target: Path) -> tuple[str, str, str]:
    """What is exported; the differences of text and picture, or why there is none; mlx-lm."""
    from mlx_lm.utils import load_model

    from mergekit_yoyo.mlx import export_model
    from mergekit_yoyo.mlx.seeing import load_written

    try:
        made = export_model(source, target, "fp32")
    except YoyoError as error:
        reason = str(error).partition("And with its pictures: ")[2] or str(error)
        return "refused", _short(reason), ""
    if made.library != "mlx-vlm":
        reason = next(note for note in made.notes if note.startswith("made without pictures: "))
        return "language model", _short(reason.partition(": ")[2]), ""
    checked = made.verification
    assert checked is not None
    said = f"text {checked.graph_difference:.0e}, picture {checked.picture_difference:.0e}"
    try:
        alone, _ = load_model(target)
    except Exception as error:
        return "whole", said, "no" if "not supported" in str(error) else _short(error)
    expected = np.array(load_written(target)(mx.array(TEXT)))
    difference = np.abs(np.array(alone(mx.array(TEXT))) - expected).max() / expected.std()
    return "whole", said, "yes" if difference <= TOLERANCE else f"wrong: {difference:.0e}"


def _short(reason: object) -> str:
    text = " ".join(str(reason).split()).replace("|", "/")
    text = text.partition(": ")[2] if text[:1] == "/" else text
    text = text.removeprefix(
        "the unquantized mlx model does not compute what transformers computes: "
    )
    return textwrap.shorten(text, WIDTH, placeholder=" ...")


@click.command(help="Exports tiny models of pictures and text, and compares them.")
@write_option
def main(write: bool) -> None:
    warnings.filterwarnings("ignore")
    import transformers
    from pictures_fixtures import SEEING, write_seeing

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    versions = f"mlx-vlm {version('mlx-vlm')}, transformers {version('transformers')}"
    lines = [
        f"| {versions}: family | plain mlx-vlm, with a picture | export | difference, or reason | "
        "mlx-lm reads it, for text |",
        "|---|---|---|---|---|",
    ]
    for name in SEEING:
        click.echo(f"{name} ...", err=True)
        with tempfile.TemporaryDirectory() as folder:
            source = write_seeing(Path(folder) / "source", name, float32=True)
            cells = [name, plain(source), *exported(source, Path(folder) / "mlx")]
        lines.append(f"| {' | '.join(cells)} |")
    show(lines, "mlx.md", "mlx-pictures", write=write)


if __name__ == "__main__":
    main()
