"""`mergekit-yoyo evaluate`: options for `mergekit_yoyo.evaluation.evaluate`."""

from pathlib import Path

import click

from mergekit_yoyo.cli.command import Renamed, our_command, shown_progress
from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.seven_tasks import SEVEN_TASKS


@our_command("evaluate")
@click.argument(
    "models",
    metavar="MODEL...",
    nargs=-1,
    required=True,
    type=Place("a model folder", "an MLX model", path_type=str),
)
@click.option(
    "--tasks",
    default=",".join(SEVEN_TASKS),
    show_default=True,
    metavar="TASK,...",
    help="Tasks or groups of lm-eval, or presets: seven, mergebench, mergebench-math, "
    "-multilingual, -instruction, -code, -safety; none for no task.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="NAME=FILE",
    help="Measure on this text: perplexity; and size, memory and speed. May be repeated.",
)
@click.option(
    "--against",
    metavar="MODEL",
    help="With --text: how far each model's predictions are from this one's, the unquantized: "
    "KL divergence, top-1 agreement.",
)
@click.option(
    "--windows",
    metavar="N",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="How many pieces of each text are read.",
)
@click.option(
    "--window-tokens",
    metavar="N",
    type=click.IntRange(min=8),
    default=512,
    show_default=True,
    help="How long each is.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="Only the first N items of each task.",
)
@click.option(
    "-o",
    "--output",
    "out",
    cls=Renamed,
    old=["--out"],
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("scores"),
    show_default=True,
    help="Folder for the results: one folder a model.",
)
@click.option(
    "--apply-chat-template",
    is_flag=True,
    help="Put each item into the model's chat template, with either backend.  [default: off]",
)
@click.option(
    "--num-fewshot",
    metavar="N",
    type=click.IntRange(min=0),
    help="Examples before each item.  [default: the task's own; none for the seven]",
)
@click.option(
    "--include-path",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder with your own lm-eval tasks (YAML).",
)
@click.option("--batch-size", metavar="N", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--device", metavar="DEVICE", help="Device for transformers models, such as cuda:1 or mps."
)
@click.option("--seed", metavar="N", type=int, default=1234, show_default=True)
@click.option("--run-code", is_flag=True, help="Let tasks run the code that a model writes.")
@click.option(
    "--restart", is_flag=True, help="Start over: replace earlier results of these models."
)
def command(
    models: tuple[str, ...],
    tasks: str,
    texts: tuple[str, ...],
    against: str | None,
    windows: int,
    window_tokens: int,
    limit: int | None,
    out: Path,
    apply_chat_template: bool,
    num_fewshot: int | None,
    include_path: Path | None,
    batch_size: int,
    device: str | None,
    seed: int,
    run_code: bool,
    restart: bool,
) -> None:
    """Run lm-evaluation-harness on each MODEL, a transformers or MLX folder or a Hub name; with
    --text also measure how it predicts, what it weighs and how fast it runs.

    Tasks that are done already are kept: after an interruption, run the same command again.

    \b
    Examples:
      mergekit-yoyo evaluate ./merged ./merged-mlx
      mergekit-yoyo evaluate ./merged --tasks boolq --limit 50 -o quick-look
      mergekit-yoyo evaluate ./q4 --tasks none --text code=a.py --against ./merged
    """
    from mergekit_yoyo.evaluation import EvaluationSettings, Measuring, evaluate
    from mergekit_yoyo.text import parse_texts

    names = [task.strip() for task in tasks.split(",") if task.strip()]
    settings = EvaluationSettings(
        tasks=[] if names == ["none"] else names,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=include_path,
        batch_size=batch_size,
        device=device,
        seed=seed,
        measuring=Measuring(parse_texts(texts), against, window_tokens, windows),
        run_code=run_code,
    )
    with shown_progress() as progress:
        files = evaluate(models, out, settings, restart=restart, progress=progress)
    for file in files:
        click.echo(file)
