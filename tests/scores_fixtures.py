"""For the tests of `evaluate` and `scores`: lm-eval tasks, experts in several forms, results."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
EXPERTS = ROOT / "examples" / "experts"
PUBLISHED = ROOT / "examples" / "published-scores.md"
ITEMS = 160  # with fewer, no expert leads another by more than the error
TASKS = ("next_german", "next_code")


def run(*command: str | Path, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` offline, with its data-set cache in `home`."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "COLUMNS": "200"}


def write_tasks(folder: Path) -> None:
    """Which of four snippets goes on with the text (the others come from another text)?

    One task reads JSON, the other JSON Lines.
    """
    folder.mkdir()
    texts = {
        name: (ROOT / "examples" / "held_out" / f"{name}.txt").read_text()
        for name in ("german", "code")
    }
    for task, name, other_name, suffix in (
        ("next_german", "german", "code", "json"),
        ("next_code", "code", "german", "jsonl"),
    ):
        source, other = texts[name], texts[other_name]
        generator = random.Random(task)
        items = []
        # lm-eval counts a space at the end of a context to the answer, mlx-lm's wrapper does not.
        places = [i for i in range(60, len(source) - 20) if not source[i - 1].isspace()]
        for _ in range(ITEMS):
            start, label = generator.choice(places), generator.randrange(4)
            wrong = generator.sample(range(len(other) - 20), 3)
            choices = [other[place : place + 12] for place in wrong]
            choices.insert(label, source[start : start + 12])
            context = source[start - 60 : start]
            items.append({"context": context, "choices": choices, "label": label})
        data = folder / f"{task}.{suffix}"
        lines = "\n".join(map(json.dumps, items))
        data.write_text(json.dumps(items) if suffix == "json" else lines)
        (folder / f"{task}.yaml").write_text(
            f"""\
task: {task}
tag: next
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
        )


def expert_in_float32(name: str, folder: Path, chat_template: str | None = None) -> None:
    """The shipped expert with float32 weights and a config that mlx-lm reads too."""
    shutil.copytree(EXPERTS / name, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: tensor.float() for key, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float32", "rope_theta": config["rope_parameters"]["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config))
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template)


def write_result(
    folder: Path,
    items: Mapping[str, Sequence[float]],
    *,
    metrics: Sequence[str] = ("acc_norm",),
    samples: bool = True,
    chat_template: str | None = None,
    versions: Mapping[str, object] | None = None,
    lower_is_better: bool = False,
    date: str = "2026-11-24T10-00-00",
    **extra: object,
) -> Path:
    """A result in lm-eval's format, with the scores `items` of each task; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for task, scores in items.items():
        count = len(scores)
        mean = sum(scores) / count
        stderr = (sum((score - mean) ** 2 for score in scores) / (count - 1) / count) ** 0.5
        results[task] = {"alias": task}
        for metric in metrics:
            results[task] |= {f"{metric},none": mean, f"{metric}_stderr,none": stderr}
        if samples:
            lines = [
                json.dumps(
                    {
                        "doc_id": number,
                        "doc": {"question": f"{task} {number}"},
                        "target": "0",
                        "arguments": {"gen_args_0": {"arg_0": f"Q{number}", "arg_1": " yes"}},
                        "filtered_resps": [["-1.0", "False"]],
                        "filter": "none",
                        "doc_hash": f"{task}{number}",
                    }
                    | dict.fromkeys(metrics, score)
                )
                for number, score in enumerate(scores)
            ]
            (folder / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "results": results,
        "versions": versions or dict.fromkeys(items, 1.0),
        "n-shot": dict.fromkeys(items, 0),
        "n-samples": {task: {"effective": len(scores)} for task, scores in items.items()},
        "higher_is_better": {task: dict.fromkeys(metrics, not lower_is_better) for task in items},
        "config": {"model": "hf", "model_args": {"pretrained": str(folder)}},
        "model_name": str(folder),
        "chat_template": chat_template,
        "lm_eval_version": "0.4.13",
        "date": 1_795_000_000.0,
    }
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(data | extra))
    return file
