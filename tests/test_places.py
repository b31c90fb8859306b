"""A wrong thing in a right place: each command says what it was given, and what that is for."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from mergekit_yoyo.cli import COMMANDS, main

MERGE = "merge_method: linear\nmodels:\n- model: ./a\nparameters: {report: ./r.jsonl}\n"
SILENT = "merge_method: linear\nmodels:\n- model: ./a\n"
YAML = "this is a merge YAML. `mergekit-yoyo merge merge.yml ./merged` makes the merge."
RECORD = "this is the record of a merge. `mergekit-yoyo report r.jsonl` shows it."
RESULTS = "this is results of lm-eval. `mergekit-yoyo scores results.json` shows them."
WEIGHTS = "this is a file of weights. Give the folder that it lies in: model."
ADAPTER = "this is a LoRA adapter. It goes into a merge as MODEL+adapter."
LISTED = "this is a model folder. Models stand in the YAML, under `models:`."
ITS_YAML = "this is a model folder. The YAML of this merge is merged/mergekit_config.yml."
STAGES = "this is a mergekit-multi file. Its stages are merged by mergekit-multi"

CASES: list[tuple[Sequence[str], str]] = [
    # a YAML is expected
    *(
        ([*command, given], f"{given}: expected a merge YAML; {said}")
        for command in (["merge", "-o", "out"], ["inspect"], ["tune"])
        for given, said in (
            ("merged", ITS_YAML),
            ("model", LISTED),
            ("mlx", "this is an MLX model. Models stand in the YAML, under `models:`."),
            ("r.jsonl", RECORD),
            ("results.json", RESULTS),
            ("model/model.safetensors", WEIGHTS),
        )
    ),
    (["merge", "two.yml", "out"], f"two.yml: expected a merge YAML; {STAGES}"),
    (["tune", "two.yml"], "Tune one stage at a time"),
    *(
        ([*command, "merg.yml"], "merg.yml: cannot be read: there is no such file. Did you mean")
        for command in (["merge", "-o", "out"], ["inspect"], ["tune"])
    ),
    (["inspect", "nowhere/m.yml"], "there is no such file. Nor is there a folder nowhere."),
    (["finish", "merged", "--config", "r.jsonl"], f"expected a merge YAML; {RECORD}"),
    # a model is expected
    *(
        ([command, given, *more], f"{given}: expected a model folder; {said}")
        for command, more in (
            ("finish", []),
            ("mlx", ["out", "--quant", "q8"]),
            ("evaluate", []),
        )
        for given, said in (
            ("merge.yml", YAML),
            ("r.jsonl", RECORD),
            ("results.json", RESULTS),
            ("model/model.safetensors", WEIGHTS),
            ("adapter", ADAPTER),
            ("scores", "this is a folder of results. `mergekit-yoyo scores scores` shows them."),
        )
    ),
    (["finish", "merged", "--donor", "merge.yml"], f"expected a model folder; {YAML}"),
    (["finish", "mlx"], "this is an MLX model. Finish the merge that it was made of, then convert"),
    (["mlx", "mlx", "out", "--quant", "q8"], "this is an MLX model. Start from the model that it"),
    # a record is expected
    (["report", "merge.yml"], "this is a merge YAML. Its record is ./r.jsonl, once it is merged."),
    (["report", "silent.yml"], "`parameters: {report: FILE}` in it makes a merge leave its record"),
    (["report", "r.jsonl", "results.json"], f"expected the record of a merge; {RESULTS}"),
    (["report", "model/model.safetensors"], WEIGHTS),
    # results are expected
    (["scores", "merge.yml"], f"merge.yml: expected results of lm-eval; {YAML}"),
    (["scores", "results.json", "r.jsonl"], f"r.jsonl: expected results of lm-eval; {RECORD}"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    (root / "merge.yml").write_text(MERGE)
    (root / "silent.yml").write_text(SILENT)
    (root / "two.yml").write_text(f"name: one\n{MERGE}---\n{MERGE}")
    (root / "r.jsonl").write_text('{"line":"header","schema_version":1}\n')
    (root / "results.json").write_text(json.dumps({"results": {"boolq": {}}}, indent=2))
    for name, form in (("model", "pt"), ("merged", "pt"), ("mlx", "mlx")):
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
        save_file({"a": np.zeros(2)}, root / name / "model.safetensors", {"format": form})
    (root / "merged" / "mergekit_config.yml").write_text(MERGE)
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    (root / "scores" / "model").mkdir(parents=True)
    (root / "scores" / "model" / "results_2026.json").write_text("{}")
    return root


@pytest.mark.parametrize(
    ("arguments", "said"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES]
)
def test_what_is_there_is_said_and_what_it_is_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], said: str
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_parse_and_metavars_that_say_something(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    words = {"TEXT", "INTEGER", "FLOAT", "PATH", "DIRECTORY", "RANGE", "FILENAME", "BOOLEAN"}
    assert not words & set(result.output.split())
    examples = [line.split() for line in result.output.splitlines() if "  mergekit-yoyo" in line]
    assert examples
    for _, command, *arguments in examples:
        assert command == name
        found = main.get_command(main.make_context("main", [name]), name)
        assert found is not None
        found.make_context(name, arguments)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "doctor"])
def test_the_output_has_one_name(name: str) -> None:
    found = main.get_command(main.make_context("main", [name]), name)
    assert found is not None
    names = {name: option for option in found.params for name in option.opts}
    assert names["--output"] is names["-o"]
    text = CliRunner().invoke(main, [name, "--help"]).output
    assert "--out " not in text  # the earlier name, which goes on working:
    if name in ("tune", "evaluate", "scores"):
        assert names["--out"] is names["--output"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "merge.yml", "-o", "r.jsonl"], "'-o' / '--output': Directory 'r.jsonl' is a"),
        (["tune", "merge.yml", "-o", "model"], "'-o' / '--output': File 'model' is a directory"),
        (["evaluate", "model", "--out", "r.jsonl"], "'-o' / '--output': Directory 'r.jsonl' is a"),
        (["report", "r.jsonl", "-o", "model"], "'-o' / '--output': File 'model' is a directory"),
        (["report", "r.jsonl", "-o", "a.pdf"], "--output a.pdf: expected a .html or .png file."),
        (["report", "r.jsonl", "-o", "a.png", "--png", "b.png"], "a.png: give one .png file."),
    ],
)
def test_an_output_of_another_kind(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], said: str
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_the_output_is_given_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for command in (["merge", "merge.yml"], ["mlx", "model", "--quant", "q8"]):
        none = CliRunner().invoke(main, command)
        assert "Error: expected a folder to write: mergekit-yoyo" in none.output
        both = CliRunner().invoke(main, [*command[:2], "one", "-o", "two", *command[2:]])
        assert "Error: one and --output two: give one folder to write." in both.output
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_and_verbose_are_everywhere_and_not_both(name: str) -> None:
    result = CliRunner().invoke(main, [name, "-q", "-v"])
    assert result.exit_code == 2
    assert "--quiet and --verbose: give one of them." in result.output


def test_verbose_shows_where_an_error_comes_from(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(main, ["report", "-v", "merge.yml"])
    assert "Traceback" in result.output
    assert result.output.splitlines()[-1].startswith("Error: merge.yml: expected")
