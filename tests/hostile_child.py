"""A process that runs commands on hostile input, each in a fork of its own within bounds.

It reads a list of [name, arguments, folder to stand in] as JSON from standard input and writes a
line of JSON for each: its name, the status, what was said, and the traceback of what no sentence
was made of. A command that takes more than CPU_SECONDS or MEMORY is killed, and told as such.
"""

import json
import os
import resource
import sys
import traceback
from importlib import import_module
from pathlib import Path

from click.testing import CliRunner

from mergekit_yoyo.cli import main

CPU_SECONDS = 10
MEMORY = 2**30  # beyond what the imports take

# What the commands import when they run, which shall count for none of the cases.
LATE = {
    "inspect": (
        "mergekit_yoyo.inspection.run",
        "mergekit.plan",
        "mergekit.merge_methods.registry",
        "transformers.models.qwen3_moe.modeling_qwen3_moe",
    ),
    "mlx": (
        "mergekit_yoyo.mlx.export",
        "mlx_lm.models.qwen3_moe",
        "transformers.models.qwen3_moe.modeling_qwen3_moe",
    ),
    "finish": (
        "mergekit_yoyo.finish.run",
        "mergekit.config",
        "transformers.models.qwen3_moe.modeling_qwen3_moe",
    ),
    "evaluate": ("mergekit_yoyo.evaluation", "mlx_lm"),
    "report": ("mergekit_yoyo.report.page", "matplotlib.pyplot"),
    "scores": ("mergekit_yoyo.scores",),
}


def limit() -> None:
    """Seconds are those of the processor, so that a machine under load bounds alike."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))  # a fork begins at zero


def run(arguments: list[str], folder: str) -> dict[str, object]:
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, arguments)
    except BaseException:  # a panic of Rust is none of Exception
        return {"status": None, "said": "", "raised": traceback.format_exc()}
    raised = ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raised = "".join(traceback.format_exception(result.exception))
    return {"status": result.exit_code, "said": result.output, "raised": raised}


def run_apart(arguments: list[str], folder: str) -> dict[str, object]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        limit()
        with os.fdopen(theirs, "w") as told:
            json.dump(run(arguments, folder), told)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or not text:
        return {"status": None, "said": "", "raised": f"killed by signal {os.WTERMSIG(status)}"}
    return dict(json.loads(text))


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    for command in {arguments[0] for _, arguments, _ in jobs}:
        import_module(f"mergekit_yoyo.cli.{command}")
        for module in LATE[command]:
            import_module(module)
    # a copy, so that nothing that a command prints gets in between
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for name, arguments, folder in jobs:
        print(json.dumps([name, run_apart(arguments, folder)]), file=out)
