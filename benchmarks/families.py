"""Today's families down the whole road: what reaches the merge, and what mergekit alone would lose.

    python benchmarks/families.py                    # the table; a few minutes
    python benchmarks/families.py qwen3_5 --no-mlx   # some of them
    python benchmarks/families.py --write            # and into docs/families.md

Of each family three tiny random models in the layout of the Hub (tests/families.py) are merged by
yoyo_fusion, looked at, finished, loaded with transformers and exported with mlx-lm, all with the
commands that users have. Numbers are held against the float64 reference of the tests.
"""

import logging
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterable
from pathlib import Path

import click
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PAGE = ROOT / "docs" / "families.md"
HEAD = (
    "| family | model | tensors | mergekit alone loses | lost | strange | numbers | "
    "inspect, finish | transformers | mlx-lm |\n|---|---|---:|---|---:|---:|---|---|---|---|"
)


def lost_alone(folder: Path) -> str:
    """What mergekit's own plan would leave out, or why it makes none."""
    import yaml
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    from mergekit_yoyo.planning import gathered_weights, lost_in, planning, reader_of

    config = MergeConfiguration.model_validate(yaml.safe_load((folder / "merge.yml").read_text()))
    options = MergeOptions()
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options)
    settings = _model_out_config(config, architecture)
    planner = MergePlanner(config, architecture, options, settings)
    with planning("watches"):
        planner.plan_to_disk("unwritten")
    lacking = [
        weight.name
        for _, task in planner._tensors
        for model, weight in (gathered_weights(task) or {}).items()
        if not weight.optional and not reader_of(model).read_from(weight)
    ]
    if lacking:
        return f"refused: demands {lacking[0]}"
    found = lost_in(planner)
    names = {lost.name for lost in found.lost}
    share = sum(found.parameters.get(name, 0) for name in names) / found.total if names else 0
    return f"{len(names)} tensors, {100 * share:.0f} %" if names else ""


def export(folder: Path) -> str:
    """Whether mlx-lm computes what transformers does; why not, as a user would read it."""
    from mergekit_yoyo.cli import main

    arguments = ["mlx", str(folder / "finished"), str(folder / "mlx"), "--quant", "bf16"]
    done = CliRunner().invoke(main, arguments)
    if done.exit_code == 0:
        return "yes"
    said = " ".join((done.output or repr(done.exception)).split()).split("Error: ")[-1]
    said = said.replace(f"{folder / 'finished'}: ", "").replace("|", "/")
    return textwrap.shorten(said, 120, placeholder=" ...")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--mlx/--no-mlx", default=True, help="Export with mlx-lm too.")
@click.option("--write", is_flag=True, help="Write the table into docs/families.md.")
def main(names: tuple[str, ...], mlx: bool, write: bool) -> None:
    """Print the table of families."""
    warnings.filterwarnings("ignore")
    import transformers
    from families import FAMILIES
    from family_road import travel

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or tuple(FAMILIES):
            folder = Path(scratch) / name
            folder.mkdir()
            click.echo(f"{name} ...", err=True)
            road = travel(name, folder)
            alone = lost_alone(folder)
            exported = "not in mlx-lm"
            if FAMILIES[name].mlx:
                exported = export(folder) if mlx and not road.finish else "not tried"
            cells = [
                name,
                FAMILIES[name].architecture,
                str(road.inputs),
                alone or "nothing",
                str(len(road.lost)),
                str(len(road.strange)),
                _word(road.wrong),
                _word(filter(None, [road.merge, road.inspect, road.finish])),
                _word(filter(None, [road.transformers])),
                exported,
            ]
            rows.append(f"| {' | '.join(cells)} |")
            click.echo(rows[-1])
    if write:
        from mergekit_yoyo.card.sections import write_section

        table = "\n".join([HEAD, *rows])
        PAGE.write_text(write_section(PAGE.read_text(), "families", table))


def _word(faults: Iterable[str]) -> str:
    found = [" ".join(fault.split()).replace("|", "/") for fault in faults]
    return f"{len(found)} wrong: {found[0][:120]}" if found else "right"


if __name__ == "__main__":
    main()
