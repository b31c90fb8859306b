"""`mergekit-yoyo merge`: the whole road of a merge in one command."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_yoyo.cli.command import (
    check_device,
    is_quiet,
    note,
    our_command,
    output_folder,
    shown_progress,
    size_in_bytes,
)
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.early import start_server
from mergekit_yoyo.merging.importing import import_mergekit
from mergekit_yoyo.progress import Progress

if TYPE_CHECKING:
    from mergekit.options import MergeOptions

# What is done with a file of several stages, each of which would be a merge of its own.
SEVERAL_STAGES: dict[Kind, str] = {
    "a mergekit-multi file": "Its stages are merged by mergekit-multi: `mergekit-multi YAML "
    "--intermediate-dir ./stages --out-path ./merged`; then `mergekit-yoyo finish ./merged`."
}

# mergekit-yaml's options that make sense here: name, kind ("flag" or a type), default, help.
MERGEKIT_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("allow-crimes", "flag", False, "Allow mixing architectures."),
    ("unsafe-truncate-embeddings", "flag", False, "Cut vocabularies to the smallest. UNSAFE."),
    ("transformers-cache", str, None, "Where downloaded models are kept."),
    ("lora-merge-cache", str, None, "Where models with a merged LoRA adapter are kept."),
    ("lora-merge-dtype", str, None, "Dtype in which LoRA adapters are applied."),
    ("cuda", "flag", False, "Arithmetic on GPUs, a worker each."),
    ("multi-gpu", "flag", False, "The same as --cuda."),
    ("gpu-rich", "flag", False, "The same as --cuda --low-cpu-memory --read-to-gpu."),
    ("device", str, None, "Arithmetic on this device: cpu, cuda, cuda:1, mps, auto."),
    ("low-cpu-memory", "flag", False, "Keep intermediate values on the GPU."),
    ("read-to-gpu", "flag", False, "Read the inputs straight to the GPU."),
    ("out-shard-size", str, "5B", "Largest file of the merge, in bytes (5B is 5 GB)."),
    ("copy-tokenizer", "flag", True, "Copy the tokenizer of the donor."),
    ("write-model-card", "flag", True, "Write README.md and mergekit_config.yml."),
    ("trust-remote-code", "flag", False, "Run code that comes with a model. DANGEROUS."),
    ("lazy-unpickle", "flag", False, "Read .bin checkpoints tensor by tensor."),
    ("num-threads", int, None, "Threads of all workers together.  [default: cores]"),
    ("random-seed", int, None, "Seed of random methods, drawn from anew for each tensor."),
)
_SHORT = {"num-threads": ("-j",)}


def _with_mergekits_options(command: Any) -> Any:
    for name, kind, default, text in reversed(MERGEKIT_OPTIONS):
        flag = kind == "flag"
        spelled = f"--{name}/--no-{name}" if flag else f"--{name}"
        metavar = None if flag else {int: "N"}.get(kind, name.rpartition("-")[2].upper())
        option = click.option(
            spelled,
            *_SHORT.get(name, ()),
            default=default,
            type=None if flag else kind,
            metavar=metavar,
            help=text,
            show_default=default is not None and default is not False,
        )
        command = option(command)
    return command


@our_command("merge")
@click.argument("file", metavar="YAML", type=Place("a merge YAML", advice=SEVERAL_STAGES))
@click.argument("target", metavar="FOLDER", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), help="The same as FOLDER."
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes.  [default: auto]")
@click.option("--memory", metavar="SIZE", help="For all workers, e.g. 16GB.  [default: free]")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Compute on a Ray cluster: start or find a local one, or join ADDRESS.",
)
@click.option("--fresh", is_flag=True, help="Forget what an earlier run did; replace a merge.")
@click.option("--force", is_flag=True, help="Merge though the look before finds errors.")
@click.option("--no-finish", is_flag=True, help="Leave the merge as mergekit writes it.")
@_with_mergekits_options
def command(
    file: Path,
    target: Path | None,
    output: Path | None,
    workers: int | None,
    memory: str | None,
    ray: str | None,
    fresh: bool,
    force: bool,
    no_finish: bool,
    **mergekits: Any,
) -> None:
    """Merge what YAML says into FOLDER: look, merge on all cores, finish.

    Any merge method of mergekit. The same command goes on where an earlier run stopped; the
    result is tensor for tensor that of mergekit-yaml.

    \b
    Examples:
      mergekit-yoyo merge merge.yml ./merged
      mergekit-yoyo merge merge.yml ./merged --workers 8 --memory 64GB
      mergekit-yoyo merge merge.yml ./merged --ray auto
    """
    if ray and Path(ray).is_file():
        raise YoyoError(f"--ray takes an address; got {ray}. Put --ray last, or write --ray local.")
    if ray and memory:
        raise YoyoError("--memory bounds the workers of this machine; a Ray node has its own.")
    if not (no_finish or mergekits["write_model_card"]):
        raise YoyoError("--no-write-model-card: finishing needs and writes it. Add --no-finish.")
    if not (no_finish or mergekits["copy_tokenizer"]):
        raise YoyoError("--no-copy-tokenizer: finishing copies the donor's. Add --no-finish.")
    if (threads := mergekits["num_threads"]) is not None and (ray or threads < 1):
        said = "a part on Ray has its own." if ray else f"expected 1 or more; got {threads}."
        raise YoyoError(f"--num-threads: {said}")
    target = output_folder(target, output, "mergekit-yoyo merge YAML FOLDER")
    if cache := mergekits["transformers_cache"]:
        _keep_downloads_in(cache)
    if not ray and workers != 1:
        start_server()
    import_mergekit()
    from mergekit.options import MergeOptions

    from mergekit_yoyo.finish import finish, plan_finish, upload_command
    from mergekit_yoyo.merging import Cluster, Local, merge
    from mergekit_yoyo.model.merge_yaml import read_merge_yaml

    options = MergeOptions(quiet=True, **_as_mergekit_has_them(mergekits))
    merge_yaml = read_merge_yaml(file)
    device = options.device or "cpu"
    if not ray:
        check_device(device)
    notes: list[str] = []
    crew: Cluster | Local
    if ray:
        crew = Cluster(ray, device, count=workers)
    else:
        bound = size_in_bytes("--memory", memory)
        crew = Local(device, count=workers, memory=bound, threads=threads)

    def complete(folder: Path) -> None:
        progress.begin("finishing")
        try:
            plan = plan_finish(folder)
            finish(plan, max_shard_size=options.out_shard_size, progress=progress)
        except YoyoError as error:
            raise YoyoError(
                f"{error}\nIt is merged and kept: this command with --no-finish puts it in place "
                "as mergekit wrote it."
            ) from error
        notes.extend(plan.notes)

    with shown_progress() as progress:
        _look(file, target, progress, options, force=force, finishes=not no_finish)
        merged = merge(
            merge_yaml,
            target,
            options,
            crew,
            fresh=fresh,
            complete=None if no_finish else complete,
            progress=progress,
        )
    for text in merged.problems:  # also with --quiet
        click.echo(f"warning: {text}", err=True)
    for text in dict.fromkeys(notes):
        note(f"note: {text}")
    publish = "" if is_quiet() else f" To publish it:\n\n  {upload_command(target)}"
    click.echo(f"{target}: {merged}.{publish}")


def _keep_downloads_in(folder: str) -> None:
    """Let all that downloads models use a folder: mergekit itself does for weights only."""
    from huggingface_hub import constants

    os.environ["HF_HUB_CACHE"] = constants.HF_HUB_CACHE = str(Path(folder).absolute())


def _look(
    file: Path,
    target: Path,
    progress: Progress,
    options: "MergeOptions",
    *,
    force: bool,
    finishes: bool,
) -> None:
    """What `inspect --quick` finds: errors stop the merge, unless it is forced, or options of
    mergekit ask for just that."""
    from mergekit_yoyo.inspection import inspect
    from mergekit_yoyo.merging.place import workplace_of
    from mergekit_yoyo.planning import planning

    progress.begin("looking at the inputs")
    with planning("mends"):  # as the merge will be planned
        seen = inspect(file, quick=True, output=target, options=options)
    wanted = []
    if options.allow_crimes:
        wanted += ["model_type differs", "architectures differs"]
    if options.unsafe_truncate_embeddings:
        wanted.append("shapes differ")
    begun = workplace_of(target).journal.exists()  # what is left to write is asked for later
    if begun:
        wanted.append("disk:")
    overruled = [text for text in seen.of_level("error") if text.startswith(tuple(wanted))]
    errors = [text for text in seen.of_level("error") if text not in overruled]
    warnings = seen.of_level("warning")
    if finishes and not begun:  # which needs that room after the merge
        errors += [text for text in warnings if text.startswith("disk:")]
    for text in errors:  # also with --quiet
        click.echo(f"error: {text}", err=True)
    for text in [*overruled, *warnings]:
        if text not in errors:
            progress.say(f"warning: {text}")
    if errors and not force:
        raise YoyoError(
            f"{file}: the merge would fail, or not be what the file says (above). Mend that, or "
            "merge all the same with --force."
        )


def _as_mergekit_has_them(options: dict[str, Any]) -> dict[str, Any]:
    from mergekit.common import parse_kmb

    if options["multi_gpu"]:
        options = {**options, "cuda": True}
    size = options["out_shard_size"]
    try:
        if (parsed := parse_kmb(size)) < 1:
            raise ValueError
        return {**options, "out_shard_size": parsed}
    except (RuntimeError, ValueError):
        raise YoyoError(
            f"--out-shard-size: expected a number with K, M or B behind it, such as 5B; got {size}."
        ) from None
