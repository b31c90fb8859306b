"""The tasks in `examples/tasks`, and the commands that docs show for them, run offline as shown."""

import importlib.util
import json
import re
import shlex

import pytest
import yaml
from scores_fixtures import ROOT, run

from mergekit_yoyo.scores import compare, read_results

FOLDER = ROOT / "examples" / "tasks"
TASKS = {"german_word": "german.txt", "python_word": "python.txt"}


def items(task: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_the_right_ending_is_the_text_s_and_the_only_one(task):
    text = (FOLDER / TASKS[task]).read_text()
    assert len(items(task)) == 400
    for item in items(task):
        context, choices = item["context"], item["choices"]
        assert len(set(choices)) == 4
        assert context + choices[item["label"]] in text
        assert re.search(r"\w{3}$", context)
        wrong = choices[: item["label"]] + choices[item["label"] + 1 :]
        assert not any(context + choice in text for choice in wrong)
        assert all(choice in text for choice in wrong)
    labels = [item["label"] for item in items(task)]
    assert all(70 < labels.count(label) < 130 for label in range(4))
    assert yaml.safe_load((FOLDER / f"{task}.yaml").read_text())["task"] == task


def test_the_script_makes_what_is_shipped():
    spec = importlib.util.spec_from_file_location("make_tasks", ROOT / "examples/make_tasks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for task in TASKS:
        assert script.lines_of(task) == (FOLDER / f"{task}.jsonl").read_text(), task


@pytest.mark.slow
def test_the_documented_commands_run_offline(tmp_path):
    page = (ROOT / "docs" / "scores.md").read_text()
    (block,) = re.findall(r"<!-- offline -->\n```sh\n(.*?)```\n<!-- /offline -->", page, flags=re.S)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in block.splitlines():
        words = shlex.split(line)
        assert words.pop(0) == "mergekit-yoyo"
        if words[-1] == "scores/*":
            words[-1:] = sorted(str(path) for path in tmp_path.glob("scores/*"))
        done = run("mergekit_yoyo", *words, cwd=tmp_path, home=tmp_path / "hf")
        assert done.returncode == 0, done.stderr
    for said in ("german_", "python_", "perplexity", "top-1", "tokens/s", "german-q4"):
        assert said in done.stdout
    rows = {result.name: result for result in read_results([tmp_path / "scores"])}
    assert set(rows) == {"code", "german", "german-q4"}
    assert [column.quantity for column in rows["german-q4"].measures][:3] == [
        "perplexity",
        "kl",
        "top1",
    ]
    for name in ("code", "german"):
        for task in TASKS:
            score = rows[name].tasks[task].metrics["acc"]
            assert score.value - 5 * score.stderr > 0.25  # chance
    (german,) = compare(rows["german"], rows["code"], ["german_word"]).tasks
    assert german.difference.value > 0
    assert german.difference.differs
