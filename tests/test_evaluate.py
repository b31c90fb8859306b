"""`mergekit-yoyo evaluate`: real runs of the harness on local tasks, in transformers and MLX."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from finish_hub import serve
from scores_fixtures import EXPERTS, ITEMS, TASKS, environment, expert_in_float32, run, write_tasks
from stopping import stopped_after

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.evaluation import EvaluationSettings, evaluate
from mergekit_yoyo.evaluation.model_folder import open_model
from mergekit_yoyo.evaluation.presets import PRESETS, expand_presets
from mergekit_yoyo.evaluation.store import ResultStore
from mergekit_yoyo.model.folder import describe_quantization
from mergekit_yoyo.progress import Silent
from mergekit_yoyo.scores import SEVEN_TASKS, build_table, compare, read_results

pytestmark = pytest.mark.slow

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
MODELS = ("german", "german-mlx", "german-q4", "code")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks, and the German expert in float32: transformers, MLX, and MLX at 4 bit."""
    from mlx_lm import convert

    folder = tmp_path_factory.mktemp("evaluate")
    write_tasks(folder / "tasks")
    expert_in_float32("german", folder / "german", CHAT)
    convert(str(folder / "german"), str(folder / "german-mlx"), dtype="float32")
    convert(
        str(folder / "german"), str(folder / "german-q4"), quantize=True, q_bits=4, q_group_size=32
    )
    return folder


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="session")
def evaluated(place: Path) -> Path:
    """All four models evaluated by the command; the folder has `scores/NAME/`."""
    models = [f"./{name}" for name in MODELS[:3]] + [str(EXPERTS / "code")]
    options = ("--include-path", "tasks", "--tasks", ",".join(TASKS))
    done = run("mergekit_yoyo", "evaluate", *models, *options, cwd=place, home=place / "hf")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split()
    assert listed == [str(file.relative_to(place)) for file in map(result_of, folders(place))]
    for line in ("german-q4 (MLX, 4-bit g32)", "code (transformers, bfloat16)", "2/2 next_code: "):
        assert line in done.stderr
    # the bars of lm-eval and mlx-lm that cannot be turned off say in a log where they begin and end
    assert set(re.findall(r"(\d+)%\|", done.stderr)) <= {"0", "100"}
    return place


@pytest.fixture(autouse=True)
def _in_place(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)


def folders(place: Path) -> list[Path]:
    return [place / "scores" / name for name in MODELS]


def result_of(folder: Path) -> Path:
    (file,) = folder.glob("results_*.json")
    return file


def load(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(result_of(folder).read_text())
    return data


def samples_of(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def settings(place: Path, **changes: Any) -> EvaluationSettings:
    return EvaluationSettings(tasks=TASKS, include_path=place / "tasks", **changes)


def test_results_are_what_lm_eval_itself_writes(evaluated):
    done = run(
        "lm_eval",
        *("run", "--model", "hf", "--model_args", "pretrained=./german", "--device", "cpu"),
        *("--tasks", ",".join(TASKS), "--include_path", "tasks", "--batch_size", "8"),
        *("--output_path", "plain", "--log_samples", "--seed", "1234"),
        cwd=evaluated,
        home=evaluated / "hf",
    )
    assert done.returncode == 0, done.stderr
    (plain_folder,) = (evaluated / "plain").iterdir()
    plain, ours = load(plain_folder), load(evaluated / "scores" / "german")
    for key in ("results", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes"):
        assert ours[key] == plain[key], key
    assert plain.keys() - ours.keys() <= {"start_time", "end_time"}
    for task in TASKS:
        own, theirs = (samples_of(f, task) for f in (evaluated / "scores" / "german", plain_folder))
        assert own == theirs
    both = [evaluated / "scores" / "german", plain_folder]
    ours, theirs = read_results(both, {str(plain_folder): "p"})
    assert ours.tasks[TASKS[0]].metrics == theirs.tasks[TASKS[0]].metrics
    assert (theirs.name, theirs.chat_template, theirs.harness) == ("p", False, "0.4.13")


def test_the_setup_is_recorded(evaluated):
    for folder in folders(evaluated):
        data = load(folder)
        config = data["config"]
        assert {config[f"{kind}_seed"] for kind in ("random", "numpy", "torch", "fewshot")} == {
            1234
        }
        assert data["lm_eval_version"] == "0.4.13"
        assert data["versions"] == dict.fromkeys(TASKS, 1.0)
        assert data["chat_template"] is None
        assert config["apply_chat_template"] is False
        assert len(data["task_hashes"]) == len(TASKS)
        assert all(len(samples_of(folder, task)) == ITEMS for task in TASKS)
    labels = [load(folder)["config"]["quantization"]["label"] for folder in folders(evaluated)]
    assert labels == ["float32", "float32", "4-bit g32", "bfloat16"]
    q4 = load(evaluated / "scores" / "german-q4")
    assert q4["config"]["quantization"]["settings"]["bits"] == 4
    assert q4["mlx_lm_version"]
    assert "mlx_lm_version" not in load(evaluated / "scores" / "german")


def test_both_backends_see_and_score_the_same(evaluated):
    for task in TASKS:
        ours = samples_of(evaluated / "scores" / "german", task)
        mlx = samples_of(evaluated / "scores" / "german-mlx", task)
        for a, b in zip(ours, mlx, strict=True):
            assert a["prompt_hash"] == b["prompt_hash"]
            for (x, _), (y, _) in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
                assert float(x) == pytest.approx(float(y), abs=2e-4)
        pair = read_results([evaluated / "scores" / name for name in ("german", "german-mlx")])
        for compared in compare(*pair).tasks:
            assert compared.difference.value == 0
            assert compared.gained == compared.lost == frozenset()


def test_the_table_of_real_runs_marks_the_german_expert_on_german(evaluated):
    names = ["german", "german-q4", "code"]
    results = read_results([evaluated / "scores" / name for name in names])
    table = build_table([results[0], results[2]])
    german, code = table.rows
    assert german.cells["next_german"].best
    assert not code.cells["next_german"].best
    # Against its own 4-bit form there is no lead beyond the paired error.
    assert not any(row.cells["next_german"].best for row in build_table(results[:2]).rows)
    assert [row.result.quantization for row in table.rows] == ["float32", "bfloat16"]


def test_mlx_lm_evaluate_files_are_read(evaluated):
    done = run(
        *("mlx_lm", "evaluate", "--model", "../german-q4", "--tasks", "next_german.yaml"),
        *("--output-dir", "../bare", "--no-apply-chat-template"),
        cwd=evaluated / "tasks",
        home=evaluated / "hf",
    )
    assert done.returncode == 0, done.stderr
    (bare,) = read_results([evaluated / "bare"])
    (ours,) = read_results([evaluated / "scores" / "german-q4"])
    assert bare.name == "german-q4"
    assert bare.chat_template is None
    assert bare.tasks["next_german"].version is None
    assert bare.tasks["next_german"].metrics == ours.tasks["next_german"].metrics
    (file,) = (evaluated / "bare").iterdir()
    result = CliRunner().invoke(
        main, ["scores", str(file), "scores/german", "--name", f"{file}=bare q4"]
    )
    assert result.exit_code == 0, result.output
    assert "bare q4" in result.output
    assert "chat template, shots, task versions not recorded for bare q4" in result.output


def test_a_killed_run_goes_on_where_it_stopped(evaluated):
    out = evaluated / "killed"
    command = ["evaluate", "./german-mlx", "--out", "killed"]
    command += ["--include-path", "tasks", "--tasks", ",".join(TASKS)]
    place = "mergekit_yoyo.evaluation.store:ResultStore.add"
    home = evaluated / "hf"
    with stopped_after(place, command, cwd=evaluated, env=environment(home)) as process:
        process.kill()
    first = load(out / "german-mlx")
    assert list(first["results"]) == ["next_german"]
    (samples,) = out.glob("*/samples_next_german_*")
    written = samples.stat().st_mtime_ns

    done = run("mergekit_yoyo", *command, cwd=evaluated, home=home)
    assert done.returncode == 0, done.stderr
    assert "already done: next_german" in done.stderr
    assert samples.stat().st_mtime_ns == written
    resumed, whole = load(out / "german-mlx"), load(evaluated / "scores" / "german-mlx")
    for key in ("results", "configs", "versions", "n-shot", "n-samples", "task_hashes"):
        assert resumed[key] == whole[key], key


def test_earlier_results_of_another_setup_are_not_mixed_in(evaluated):
    before = result_of(evaluated / "scores" / "german-mlx").read_bytes()
    with pytest.raises(YoyoError, match=r"limit is None there and 2 now.*--restart"):
        evaluate(["./german-mlx"], evaluated / "scores", settings(evaluated, limit=2))
    assert result_of(evaluated / "scores" / "german-mlx").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" * 5000, "nested more than 64 deep. --restart removes it."),
        ("[1]", "expected a JSON object; got list. --restart removes it."),
        (b"\xff\xfe", "expected a text in UTF-8"),
        ('{"config": [1]}', "config: expected a mapping; got [1]. --restart removes it."),
        ('{"results": {}, "completed_tasks": 3}', "completed_tasks: expected a mapping; got 3"),
        (None, "expected a file; got a pipe. --restart removes it."),
    ],
)
def test_hostile_earlier_results_are_a_sentence(tmp_path, content, expected):
    file = tmp_path / "results_2026-11-24T10-00-00.json"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(YoyoError, match=re.escape(expected)):
        ResultStore(tmp_path, {}, restart=False)


def test_a_task_whose_definition_changed_runs_again_and_restart_starts_over(evaluated):
    copied, other = evaluated / "copied" / "german-mlx", evaluated / "other-tasks"
    shutil.copytree(evaluated / "scores" / "german-mlx", copied)
    shutil.copytree(evaluated / "tasks", other)
    task = other / "next_code.yaml"
    task.write_text(task.read_text().replace("{{context}}", "# {{context}}"))
    changed = EvaluationSettings(tasks=TASKS, include_path=other)
    heard = Heard()
    (file,) = evaluate(["./german-mlx"], copied.parent, changed, progress=heard)
    assert "  already done: next_german" in heard.said
    prompt = samples_of(copied, "next_code")[0]["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("# ")

    only = EvaluationSettings(tasks=["next_code"], include_path=other, limit=3)
    evaluate(["./german-mlx"], copied.parent, only, restart=True)
    assert not file.exists()
    assert list(load(copied)["results"]) == ["next_code"]
    assert len(samples_of(copied, "next_code")) == 3
    assert not list(copied.glob("samples_next_german*"))


def test_the_chat_template_is_applied_by_both_backends_or_by_none(evaluated):
    models = ["./german", "./german-mlx"]
    only = EvaluationSettings(
        tasks=["next"],  # the tag of both tasks
        include_path=evaluated / "tasks",
        limit=3,
        apply_chat_template=True,
    )
    heard = Heard()
    files = evaluate(models, evaluated / "chat", only, progress=heard)
    assert any(line.startswith("  1/1 next: next_code, next_german (") for line in heard.said)
    with_template = [file.parent for file in files]
    assert all(set(load(folder)["results"]) == set(TASKS) for folder in with_template)
    prompts = [
        [sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples_of(folder, "next_german")]
        for folder in with_template
    ]
    assert prompts[0] == prompts[1]
    assert all(p.startswith("<user>") and p.endswith("<answer>") for p in prompts[0])
    assert [load(folder)["chat_template"] for folder in with_template] == [CHAT, CHAT]
    # The folder has a template; off by default, mlx-lm's wrapper must not apply it by itself.
    for name in ("german", "german-mlx"):
        plain = samples_of(evaluated / "scores" / name, "next_german")
        assert not plain[0]["arguments"]["gen_args_0"]["arg_0"].startswith("<user>")
    mixed = read_results([with_template[0], evaluated / "scores" / "german-mlx"])
    assert (
        "chat template applied for german; not applied for german-mlx"
        in build_table(mixed).warnings
    )
    scores = [
        float(samples_of(folder, "next_german")[0]["filtered_resps"][0][0])
        for folder in with_template
    ]
    assert scores[0] == pytest.approx(scores[1], abs=2e-4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["./nowhere"], "./nowhere: no such folder"),
        (["./tasks"], "not a model folder: it has no config.json"),
        (
            ["./german", "--tasks", "next_germann"],
            "no task next_germann in lm-eval. Did you mean n",
        ),
        (  # before the results that are there, which are of another setup
            ["./german", "--tasks", "next_germann", "--limit", "2", "-o", "earlier"],
            "no task next_germann in lm-eval. Did you mean n",
        ),
        (["./german", "--tasks", ","], "no tasks given"),
        (["./german", "--include-path", "./nowhere"], "--include-path nowhere: no such folder"),
        (
            ["./german", "--device", "cuda:7"],
            "--device cuda:7: torch has no such device here; it has cpu",
        ),
        ([str(EXPERTS / "code"), "--apply-chat-template"], "code: --apply-chat-template, but it"),
        (["./german", "./tasks/../german"], "two models are named german"),
        (["./german", "--tasks", "broken"], "task broken: its data could not be loaded"),
        (["./german", "./mute"], "./mute: no tokenizer (tokenizer.json, "),
        (["./garbled"], "./garbled: transformers cannot load this model: "),
        (["./german", "--out", "tasks/next_code.jsonl/x"], "x/german: cannot be written, because"),
        (["a/b/c"], "a/b/c: no such folder, and not a name on the Hub."),
    ],
)
def test_bad_input_gives_a_sentence_and_writes_nothing(place, arguments, expected):
    (place / "tasks" / "broken.yaml").write_text(
        (place / "tasks" / "next_code.yaml")
        .read_text()
        .replace("task: next_code", "task: broken")
        .replace("next_code.jsonl", "missing.jsonl")
    )
    for name in ("mute", "garbled"):
        shutil.copytree(place / "german", place / name, dirs_exist_ok=True)
    (place / "earlier" / "german").mkdir(parents=True, exist_ok=True)
    (place / "earlier" / "german" / "results_2026-11-24T10-00-00.json").write_text("{}")
    (place / "mute" / "tokenizer.json").unlink()
    (place / "garbled" / "tokenizer.json").write_text("{}")
    options = ["--tasks", "next_german", "--include-path", "tasks", "--out", "unwritten"]
    result = CliRunner().invoke(main, ["evaluate", *options, *arguments])
    (place / "tasks" / "broken.yaml").unlink()
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (place / "unwritten").exists()


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}, "4-bit g64"),
        (
            {
                "quantization": {
                    "group_size": 32,
                    "bits": 6,
                    "lm_head": {"group_size": 32, "bits": 8},
                    "model.norm": False,
                }
            },
            "6/8-bit g32",
        ),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq 4-bit"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "bitsandbytes 8-bit",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ],
)
def test_quantization_labels(config, label):
    assert describe_quantization(config)["label"] == label


def test_the_fingerprint_tells_two_exports_apart_and_names_are_as_given(place, monkeypatch):
    prints = {open_model(f"./{name}").fingerprint for name in MODELS[:3]}
    assert len(prints) == 3
    (place / "link").symlink_to(place / "german")
    names = [open_model(given).name for given in ("./german/", "./link", "german/../german-q4")]
    assert names == ["german", "link", "german-q4"]
    monkeypatch.chdir(place / "german")
    assert open_model(".").name == "german"
    monkeypatch.chdir(place)
    assert open_model("./german").fingerprint == open_model(str(place / "german")).fingerprint


def test_of_a_hub_model_only_what_is_loaded_is_fetched(place, tmp_path):
    repo = tmp_path / "repo"
    shutil.copytree(EXPERTS / "german", repo)
    for name in ("model.gguf", "model.onnx", "consolidated.safetensors", "pytorch_model.bin"):
        (repo / name).write_bytes(b"x")
    probe = (
        "from mergekit_yoyo.evaluation.model_folder import open_model\n"
        "from mergekit_yoyo.errors import YoyoError\n"
        "folder = open_model('tiny/moe')\n"
        "print(*sorted(path.name for path in folder.path.iterdir()))\n"
        "print(folder.name)\n"
        "try: open_model('gpt2')\n"
        "except YoyoError as error: print(error)"
    )
    with serve(repo) as (address, requests):
        done = subprocess.run(
            [sys.executable, "-c", probe],
            env=environment(tmp_path / "hf") | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    files, name, refused = done.stdout.splitlines()
    expected = "config.json generation_config.json model.safetensors tokenizer.json"
    assert (files, name) == (f"{expected} tokenizer_config.json", "moe")
    # A name without a slash is one of the Hub too.
    assert any("/api/models/gpt2" in request for request in requests)
    assert refused.startswith("gpt2: no such folder here, and the Hub did not give it (")


def test_every_task_of_a_preset_is_one_of_lm_eval_and_no_preset_hides_one():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert set(expand_presets(PRESETS)) <= known
    assert not PRESETS.keys() & known
    domains = [tasks for name, tasks in PRESETS.items() if name.startswith("mergebench-")]
    assert len(domains) == 5
    assert sorted(PRESETS["mergebench"]) == sorted(task for own in domains for task in own)
    assert expand_presets(["piqa", "seven", "mergebench-code"]) == [
        "piqa",
        *(task for task in SEVEN_TASKS if task != "piqa"),
        "humaneval_plus",
        "mbpp_plus",
    ]


def test_a_task_that_runs_code_needs_leave(place):
    tasks = place / "code-tasks"
    shutil.copytree(place / "tasks", tasks)
    (tasks / "broken.yaml").unlink(missing_ok=True)
    for name in ("next_code", "next_german"):  # one definition, under a name of its own
        file = tasks / f"{name}.yaml"
        file.write_text(file.read_text().replace(f"task: {name}", f"task: runs_{name}"))
    file = tasks / "next_code.yaml"
    file.write_text(file.read_text() + "unsafe_code: true\n")
    given = ["evaluate", "./german-mlx", "--tasks", "runs_next_code", "--out", str(place / "ran")]
    given += ["--include-path", str(tasks), "--limit", "2"]
    refused = CliRunner().invoke(main, given)
    assert refused.exit_code == 2
    assert "task runs_next_code runs the code that the model writes" in refused.output
    assert not (place / "ran").exists()
    allowed = CliRunner().invoke(main, [*given, "--run-code"])
    assert allowed.exit_code == 0, allowed.output
