"""A fault at each file operation of each command that writes: killed, interrupted, a full disk, an
error of the disk. One line a case; whatever happens, nothing half-made looks finished.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finish_fixtures import run_mergekit, write_checkpoint
from method_fixtures import fine_tune, recipe
from scores_fixtures import write_result

from mergekit_yoyo.mlx import export_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="its forks of a process that has loaded mlx need Linux"
    ),
]

RERUN = 4  # one of so many kills is followed by a second run
CHILD = Path(__file__).with_name("faults_child.py")
Tree = dict[str, bytes]


class Command(NamedTuple):
    """arguments: of the command. folder: that it makes or replaces as a whole; None where it
    writes single files. grows: it writes several times, each time something whole."""

    arguments: tuple[str, ...]
    folder: str | None = None
    grows: bool = False


COMMANDS = {
    "finish": Command(("finish", "merged"), "merged"),
    "finish --output": Command(("finish", "merged", "--output", "new"), "new"),
    "mlx": Command(("mlx", "merged", "old", "--quant", "q4", "--overwrite"), "old"),
    "report": Command(("report", "record.jsonl", "--html", "page.html", "--png", "a.png")),
    "inspect": Command(("inspect", "merged.yml")),
    "scores": Command(
        ("scores", "results.json", "--name", "r=merged", "--out", "a.csv", "--card", "merged")
    ),
    "evaluate": Command(("store",), grows=True),
}
CASES = [
    ("finish", "killed"),
    ("finish", "interrupted"),
    ("finish", "disk full"),
    ("finish", "I/O error"),
    ("finish", "read error"),
    ("finish --output", "disk full"),
    ("mlx", "killed"),
    ("mlx", "interrupted"),
    ("mlx", "disk full"),
    ("mlx", "I/O error"),
    ("mlx", "read error"),
    ("report", "killed"),
    ("report", "interrupted"),
    ("report", "disk full"),
    ("report", "I/O error"),
    ("report", "read error"),
    ("inspect", "read error"),
    ("scores", "killed"),
    ("scores", "interrupted"),
    ("scores", "disk full"),
    ("scores", "I/O error"),
    ("scores", "read error"),
    ("evaluate", "killed"),
    ("evaluate", "interrupted"),
    ("evaluate", "disk full"),
    ("evaluate", "I/O error"),
]
# what must be said; a full disk and a broken one may also be told by the library that met them
SAID = {
    "interrupted": "Aborted!|written and in place",
    "disk full": "disk filled up|No space left on device",
    "I/O error": "Input/output error",
    "read error": "Input/output error",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, their real merge, its record, an older MLX export, and a result."""
    root = tmp_path_factory.mktemp("faults")
    base = write_checkpoint(root / "a", "qwen3_moe")
    fine_tune(base, root / "b", 1)
    text = recipe(["./a", "./b"], "base_model: ./a\n", report="record.jsonl")
    assert run_mergekit({root / "merged": text}, root) == {root / "merged": ""}
    export_model(root / "merged", root / "old", "q8")
    write_result(root / "r", {"piqa": [0.0, 1.0] * 20}, metrics=("acc", "acc_norm"))
    next((root / "r").glob("results*.json")).rename(root / "results.json")
    return root


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., dict[str, Any]]]:
    """Run a command in a folder, where its operation of a number fails."""
    with subprocess.Popen(
        [sys.executable, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout

        def ask(
            name: str, folder: Path, fault: str | None = None, number: int = 0
        ) -> dict[str, Any]:
            job = [COMMANDS[name].arguments, str(folder), fault, number]
            print(json.dumps(job), file=child.stdin, flush=True)
            return dict(json.loads(child.stdout.readline()))

        yield ask
        child.stdin.close()


def tree(folder: Path) -> Tree:
    """Every file below a folder, whenever it was made."""
    return {
        re.sub(r"_\d{4}-[\d.T-]+(?=\.json)", "", str(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_left(name: str) -> bool:
    """Whether a file is what only a process that died may leave, for the next to clear."""
    return ".unfinished" in name or ".replaced-" in name


def part(files: Tree, folder: str) -> Tree:
    return {name: content for name, content in files.items() if name.startswith(f"{folder}/")}


@pytest.mark.parametrize(("name", "fault"), CASES)
def test_a_fault_at_any_file_operation_leaves_nothing_half_made(
    good: Path, run: Callable[..., dict[str, Any]], tmp_path: Path, name: str, fault: str
) -> None:
    command, place = COMMANDS[name], tmp_path / "place"
    shutil.copytree(good, place)
    before = tree(place)
    assert run(name, place)["status"] == 0
    right = tree(place)
    for number in count():
        shutil.rmtree(place)
        shutil.copytree(good, place)
        seen, found = run(name, place, fault, number), tree(place)
        where = f"{fault} at operation {number}, {seen['struck']}: {seen['said']}"
        if seen["struck"] is None:
            assert number > 0
            assert found == right
            break
        assert seen["raised"] == "", f"{where}: {seen['raised']}"
        whole = {file: content for file, content in found.items() if not is_left(file)}
        done = whole == right
        assert whole == found or fault == "killed" or done, where
        told = fault == "killed" or re.search(SAID[fault], seen["said"])
        assert told or (seen["status"] == 0 and done), where
        assert not done or "Aborted!" not in seen["said"], where
        if not (seen["status"] == 0 and told):  # it may do without a file that cannot be read
            judge(whole, before, right, command, where)
        if found not in (before, right) and (fault != "killed" or number % RERUN == 0):
            again = run(name, place)
            assert again["status"] == 0, f"{where}, then {again}"
            assert lines_of(tree(place)) == lines_of(right), where


def lines_of(files: Tree) -> dict[str, list[bytes]]:
    """A card that gets a key later has it further down."""
    return {name: sorted(content.splitlines()) for name, content in files.items()}


def judge(found: Tree, before: Tree, right: Tree, command: Command, where: str) -> None:
    """What was there is there, or what the command makes, and nothing of both or of neither."""
    for name in {*found, *before}:
        if command.grows and name in found and name not in before:
            for line in found[name].splitlines() if ".jsonl" in name else [found[name]]:
                json.loads(line)
        else:
            assert found.get(name) in (before.get(name), right.get(name)), f"{where}: {name}"
    if command.folder:
        mine = part(found, command.folder)
        assert mine in (part(before, command.folder), part(right, command.folder)), where
