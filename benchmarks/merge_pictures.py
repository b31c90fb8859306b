"""The pictures of the quickstart merge in README and docs, with a broken model, and with recall.

    python benchmarks/merge_pictures.py               # what the records say
    python benchmarks/merge_pictures.py --out FOLDER  # and the pictures
    python benchmarks/merge_pictures.py --write       # into examples/pictures, which README shows

merges the quickstart's experts with `mergekit-yaml`: alone, with a copy of the base whose weights
were overlaid with noise, and with `consensus: recall`, each with `report:` among its parameters;
draws the heat maps of the first two records, and what changes from the first to the third.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import click
import yaml
from broken import KINDS, break_model

from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.report import (
    compare_records,
    render_comparison_picture,
    render_picture,
    summarize,
)

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = ROOT / "examples" / "experts"
PICTURES = ROOT / "examples" / "pictures"


def merge(folder: Path, name: str, extra: list[Path], **parameters: str) -> Path:
    """Merges the quickstart's models and `extra` ones; returns the record of the merge.

    Raises:
        subprocess.CalledProcessError: mergekit failed; it has said why.
    """
    config = yaml.safe_load((ROOT / "examples" / "quickstart.yml").read_text())
    record = folder / name / "merge-report.jsonl"
    config["models"] += [{"model": str(path)} for path in extra]
    config["parameters"] = {"report": str(record), **parameters}
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
    help="Folder for the pictures.",
)
@click.option("--write", is_flag=True, help="Replace the pictures in examples/pictures.")
def main(kind: str, out: Path | None, write: bool) -> None:
    folders = [folder for folder in (out, PICTURES if write else None) if folder]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = []
        broken = folder / "broken"
        break_model(kind, EXPERTS / "base", broken)
        for title, extra in (("quickstart", []), ("quickstart-broken", [broken])):
            click.echo(f"merging {title} ...", err=True)
            summary = summarize(read_record(merge(folder, title, extra)))
            # the weights of good models are close together; beside a broken one they are not
            _save(f"{title}.png", render_picture(summary, stretch=not extra), folders)
            records.append(summary.record)
            for model in summary.models:
                click.echo(
                    f"  {model.short}: mean weight {model.weight:.2f}, rejected in "
                    f"{model.rejected} of {model.problems} tensors"
                )
        click.echo("merging quickstart-recall ...", err=True)
        recalled = read_record(merge(folder, "quickstart-recall", [], consensus="recall"))
        changes = render_comparison_picture(compare_records(records[0], recalled))
        _save("quickstart-recall.png", changes, folders)


def _save(name: str, picture: bytes, folders: list[Path]) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture)
    click.echo(f"{name}: {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
