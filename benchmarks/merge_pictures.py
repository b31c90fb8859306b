"""The pictures of the quickstart merge in the README, without and with a broken fourth model.

    python benchmarks/merge_pictures.py

merges the quickstart's experts with `mergekit-yaml`, alone and with a copy of the base whose
weights were overlaid with noise, each with `report:` among its parameters, and draws the heat
maps of both records.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import click
import yaml
from broken import KINDS, break_model

from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.report import render_picture, summarize

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = ROOT / "examples" / "experts"
PICTURES = ROOT / "examples" / "pictures"


def merge(folder: Path, name: str, extra: list[Path]) -> Path:
    """Merges the quickstart's models and `extra` ones; returns the record of the merge.

    Raises:
        subprocess.CalledProcessError: mergekit failed; it has said why.
    """
    config = yaml.safe_load((ROOT / "examples" / "quickstart.yml").read_text())
    record = folder / name / "merge-report.jsonl"
    config["models"] += [{"model": str(path)} for path in extra]
    config["parameters"] = {"report": str(record)}
    recipe = folder / f"{name}.yml"
    recipe.write_text(yaml.safe_dump(config))
    subprocess.run(
        ["mergekit-yaml", str(recipe), str(folder / name), "--quiet"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return record


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kind", type=click.Choice(tuple(KINDS)), default="noise", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=PICTURES,
    help="Folder for the pictures.  [default: examples/pictures]",
)
def main(kind: str, out: Path) -> None:
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broken = folder / "broken"
        break_model(kind, EXPERTS / "base", broken)
        for title, extra in (("quickstart", []), ("quickstart-broken", [broken])):
            summary = summarize(read_record(merge(folder, title, extra)))
            picture = out / f"{title}.png"
            picture.write_bytes(render_picture(summary))
            click.echo(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")
            for model in summary.models:
                click.echo(
                    f"  {model.short}: mean weight {model.weight:.2f}, rejected in "
                    f"{model.rejected} of {model.problems} tensors"
                )


if __name__ == "__main__":
    main()
