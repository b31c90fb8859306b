"""`mergekit-yoyo merge` against `mergekit-yaml` on the same YAML, and against plain file copies.

    python benchmarks/merge_speed.py            # about five minutes, 6 GB of disk
    python benchmarks/merge_speed.py --write
    python benchmarks/merge_speed.py --cuda --layers 64     # on a GPU too, and recall

Three synthetic Llama checkpoints of 516 M parameters (bfloat16) are merged by either command in
turn, several times; the best time of each counts. The floor is what any merge must do: read the
three inputs once and write as many bytes as the output has, synced, with plain file operations.
"""

import copy
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import yaml
from devices import machine
from pages import show, write_option
from whole_run import LARGE, METHODS, write_models

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
PROGRAMS = {
    "mergekit-yaml": [sys.executable, "-m", "mergekit.scripts.run_yaml"],
    "mergekit-yoyo merge": [sys.executable, "-m", "mergekit_yoyo", "merge", "--no-finish"],
}


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a process that must end well; what it made is removed."""
    out = folder / "out"
    start = time.perf_counter()
    subprocess.run(
        [*command, str(out), "--quiet", "--no-copy-tokenizer"],
        env=OFFLINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    elapsed = time.perf_counter() - start
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return elapsed


def stages(file: Path, folder: Path) -> dict[str, float]:
    """Seconds that our command spends on each stage, by what it says when it begins one."""
    begins = {
        "importing": "",
        "looking and planning": "looking",
        "reading, computing and writing": "merging",
        "ending": f"{folder / 'out'}: merged",
    }
    command = [*PROGRAMS["mergekit-yoyo merge"], str(file), str(folder / "out")]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--no-copy-tokenizer"],
        env=OFFLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    times = {"importing": start}
    for line in process.stdout or ():
        for stage, said in begins.items():
            if stage not in times and line.startswith(said):
                times[stage] = time.perf_counter()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    subprocess.run(["rm", "-rf", str(folder / "out")], check=True)
    ends = [*list(times.values())[1:], time.perf_counter()]
    return {stage: end - times[stage] for stage, end in zip(times, ends, strict=True)}


def floor(models: list[Path], folder: Path) -> float:
    """Seconds to read the inputs and to write one output's worth of bytes, synced."""
    files = [model / "model.safetensors" for model in models]
    block = bytearray(8 << 20)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as data:
            while data.readinto(block):
                pass
    with (folder / "copy").open("wb", buffering=0) as out:
        for _ in range(files[0].stat().st_size // len(block)):
            out.write(block)
        os.fsync(out.fileno())
    elapsed = time.perf_counter() - start
    (folder / "copy").unlink()
    return elapsed


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--rounds", default=3, show_default=True)
@click.option("--layers", default=LARGE.num_hidden_layers, show_default=True)
@click.option("--cuda", is_flag=True, help="With --cuda as well, and consensus: recall.")
@write_option
def main(rounds: int, layers: int, cuda: bool, write: bool) -> None:
    config = copy.deepcopy(LARGE)
    config.num_hidden_layers = layers
    runs = [(method, "") for method in ("linear", "yoyo_fusion")]
    if cuda:
        runs += [(method, "--cuda") for method in ("yoyo_fusion", "recall", "linear")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        click.echo("writing three models ...", err=True)
        models, parameters = write_models(folder, 3, config)
        rows, copies = [], min(floor(models, folder) for _ in range(rounds))
        for method, option in runs:
            file = folder / f"{method}.yml"
            listed = [{"model": str(path)} for path in models]
            values = {**METHODS[method], "models": listed, "dtype": "bfloat16"}
            file.write_text(yaml.safe_dump(values))
            best = dict.fromkeys(PROGRAMS, float("inf"))
            for k in range(rounds):
                for program, command in PROGRAMS.items():
                    call = [*command, *option.split(), str(file)]
                    best[program] = min(best[program], seconds(call, folder))
                    click.echo(
                        f"{method} {option}, round {k + 1}: {program} {best[program]:.1f} s",
                        err=True,
                    )
            theirs, ours = best.values()
            rows.append(
                f"| {f'{method} {option}'.strip()} | {theirs:.1f} s ({theirs / copies:.1f}) "
                f"| {ours:.1f} s ({ours / copies:.1f}) | {ours / theirs:.2f} |"
            )
        timed = [stages(folder / "yoyo_fusion.yml", folder) for _ in range(rounds)]
        parts = min(timed, key=lambda part: sum(part.values()))
    device = "cuda" if cuda else "cpu"
    head = f"| {machine(device)} | mergekit-yaml (floors) | mergekit-yoyo merge (floors) | ratio |"
    spent = ", ".join(f"{stage} {part / copies:.1f}" for stage, part in parts.items())
    last = (
        f"\n{parameters / 1e6:.0f} M parameters; the floor is {copies:.1f} s. Of ours with "
        f"yoyo_fusion, in floors: {spent}."
    )
    show(
        [head, "|---|---:|---:|---:|", *rows, last],
        "merge.md",
        f"merge-speed-{device}",
        write=write,
    )


if __name__ == "__main__":
    main()
