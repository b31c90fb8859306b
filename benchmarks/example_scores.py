"""The example tasks and texts on an example expert and its quantizations, as `scores` shows them.

    python benchmarks/example_scores.py

evaluates two experts with `evaluate` on the two tasks in `examples/tasks`, exports one to MLX at
several widths, measures all of them on a held-out text, and renders the table. Speed and memory are
left out: models this small say nothing of them. With --folder it goes on where it was stopped.
"""

import os
import tempfile
from pathlib import Path

import click
from pages import show, write_option

from mergekit_yoyo.evaluation import EvaluationSettings, Measuring, evaluate
from mergekit_yoyo.mlx import export_model
from mergekit_yoyo.scores import build_table, read_results, render_markdown
from mergekit_yoyo.terminal import TerminalProgress

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = ROOT / "examples" / "experts"
RECIPES = ("q8", "qx86p4-hi", "q4")
TASKS = ("german_word", "python_word")
COLUMNS = [*TASKS, "perplexity", "kl", "top1", "size", "bits"]


@click.command(help="Prints the table of the example tasks.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep exports and results here.  [default: a temporary folder]",
)
@write_option
def main(folder: Path | None, write: bool) -> None:
    os.chdir(ROOT)  # where the tasks look for their data
    measuring = Measuring(
        {"german": ROOT / "examples" / "held_out" / "german.txt"},
        against=str(EXPERTS / "german"),
        window_tokens=256,
        windows=24,
    )
    experts = EvaluationSettings(
        tasks=TASKS, include_path=Path("examples/tasks"), device="cpu", measuring=measuring
    )
    exports = EvaluationSettings(tasks=(), device="cpu", measuring=measuring)
    with tempfile.TemporaryDirectory() as scratch, TerminalProgress() as progress:
        place = (folder or Path(scratch)).resolve()
        out = place / "scores"
        models = [place / f"german-{recipe}" for recipe in RECIPES]
        for model, recipe in zip(models, RECIPES, strict=True):
            if not model.exists():
                progress.say(f"exporting {model.name}")
                export_model(EXPERTS / "german", model, recipe)
        names = [str(EXPERTS / name) for name in ("code", "german")]
        files = evaluate(names, out, experts, progress=progress)
        # mlx reads some hundred tokens a second on a CPU: no tasks for these
        files += evaluate([str(model) for model in models], out, exports, progress=progress)
        table = build_table(read_results(files), COLUMNS)
    show(render_markdown(table).rstrip(), "scores.md", "example-scores", write=write)


if __name__ == "__main__":
    main()
