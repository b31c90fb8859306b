"""Several merges in one process: each reads its own inputs, whatever the ones before were called.

mergekit keeps what it opened under the name in the YAML, which may be relative.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from finish_fixtures import tensor_bytes, write_checkpoint
from method_fixtures import fine_tune, recipe

pytestmark = pytest.mark.slow

ABC = ["./a", "./b", "./c"]
# mergekit-yaml's own command for each (command to run before, folder to run in, YAML, output): all
# in one process, or each in a copy of it that has merged nothing
MERGES = """
import json, os, subprocess, sys
from mergekit.scripts.run_yaml import main
apart, jobs = json.load(sys.stdin)
for before, place, file, out in jobs:
    child = os.fork() if apart else 0
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    if before:
        subprocess.run(before, check=True)
    os.chdir(place)
    main([file, out], standalone_mode=False)
    if apart:
        os._exit(0)
"""
YAMLS = {
    "recall": recipe(ABC, "dtype: float32\n", consensus="recall"),
    "tukey": recipe(ABC, "dtype: float32\n"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with models of the same names: of three families, and other weights of the first."""
    root = tmp_path_factory.mktemp("places")
    for name, family, first in (
        ("packed", "gpt_oss", 0),
        ("apart", "qwen3_moe", 0),
        ("dense", "llama", 0),
        ("others", "gpt_oss", 7),
    ):
        base = write_checkpoint(root / name / "base", family, seed=first)
        for k, model in enumerate("abc", first):
            fine_tune(base, root / name / model, k + 1)
    return root


def run_merges(
    jobs: Sequence[tuple[Sequence[str], Path, Path, Path]], *, apart: bool = False
) -> None:
    listed = [(before, *map(str, paths)) for before, *paths in jobs]
    done = subprocess.run(
        [sys.executable, "-c", MERGES],
        input=json.dumps([apart, listed]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def differing(one: Path, other: Path) -> list[str]:
    """The tensors that two checkpoints do not have in common, to the byte."""
    a, b = tensor_bytes(one), tensor_bytes(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def test_each_merge_reads_the_models_of_its_own_folder(places: Path, tmp_path: Path) -> None:
    jobs: list[tuple[Sequence[str], Path, Path, str]] = []
    for consensus, text in YAMLS.items():
        file = tmp_path / f"{consensus}.yml"
        file.write_text(text)
        names = ("packed", "apart", "dense", "others")
        jobs += [((), places / name, file, f"{name}-{consensus}") for name in names]
    run_merges([(*job, tmp_path / out) for *job, out in jobs])
    run_merges([(*job, tmp_path / f"alone-{out}") for *job, out in jobs], apart=True)
    for *_, out in jobs:
        assert not differing(tmp_path / out, tmp_path / f"alone-{out}"), out
    assert differing(tmp_path / "packed-recall", tmp_path / "others-recall")


def test_a_model_that_was_replaced_is_read_anew(places: Path, tmp_path: Path) -> None:
    """An absolute name, and other files behind it than at the merge before."""
    models = [tmp_path / name for name in "abc"]
    for model in models:
        shutil.copytree(places / "packed" / model.name, model)
    (tmp_path / "merge.yml").write_text(
        recipe([str(model) for model in models], "dtype: float32\n", consensus="recall")
    )
    replace = f"rm -r {models[0]} && cp -r {places / 'others' / 'a'} {models[0]}"
    first, again, alone = (tmp_path / name for name in ("first", "again", "alone"))
    file = tmp_path / "merge.yml"
    run_merges([((), tmp_path, file, first), (("sh", "-c", replace), tmp_path, file, again)])
    run_merges([((), tmp_path, file, alone)])
    assert not differing(again, alone)
    assert differing(again, first)
