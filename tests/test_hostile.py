"""Hostile and torn files, fed to every command: a sentence that names the file, or a right result.

One table a kind of input. A case damages one file of a good folder; each command that reads such a
folder runs on it in a process with 10 seconds and 1 GB. A pipe is fed by a process of its own as
soon as somebody opens it, so that no test hangs and the opening is seen.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finish_fixtures import run_mergekit, write_checkpoint
from method_fixtures import fine_tune, recipe, shard
from scores_fixtures import write_result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux",
        reason="bounds of memory and time are set by Linux's /proc and forks",
    ),
]

CHILD = Path(__file__).with_name("hostile_child.py")
DEEP = 100_000
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model-00001-of-00003.safetensors"
INDEX, CARD = "model.safetensors.index.json", "README.md"
GENERATION, SETTINGS = "generation_config.json", "tokenizer_config.json"
# RECORD is the record of a merge, RESULT a result of lm-eval.
RECORD, RESULT = "record.jsonl", "results_2026-11-24T10-00-00.json"


class Case(NamedTuple):
    """file: that is damaged. says: what must be said, the name of the file where it is None."""

    file: str
    damage: Callable[[Path], object]
    says: str | None = None


# --- ways to damage a file ------------------------------------------------------------------------


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content.encode(encoding))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def zeros(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    """10 GB, without a byte on the disk."""
    with file.open("wb") as opened:
        opened.truncate(10**10)


def keys(**values: object) -> Callable[[Path], object]:
    """Replace values of a JSON object."""
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def index_names(change: Callable[[str], str]) -> Callable[[Path], object]:
    """An index whose tensors lie in other files."""

    def write(file: Path) -> None:
        index = json.loads(file.read_text())
        index["weight_map"] = {name: change(f) for name, f in index["weight_map"].items()}
        file.write_text(json.dumps(index))

    return write


def bomb(levels: int = 9) -> str:
    """Ten aliases of ten aliases of ...: a billion values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines) + "\n"


NESTED = "[" * DEEP + "]" * DEEP
OBJECTS = '{"a":' * DEEP + "1" + "}" * DEEP

# --- a model folder -------------------------------------------------------------------------------

MODELS: dict[str, Case] = {
    # config.json
    "config: empty": Case(CONFIG, text("")),
    "config: cut off": Case(CONFIG, lambda file: file.write_bytes(file.read_bytes()[:100])),
    "config: a list": Case(CONFIG, text("[]")),
    "config: UTF-16": Case(CONFIG, text("{}", "utf-16")),
    "config: nested lists": Case(CONFIG, text(NESTED)),
    "config: nested objects": Case(CONFIG, text(OBJECTS)),
    "config: a folder": Case(CONFIG, folder),
    "config: a pipe": Case(CONFIG, pipe),
    "config: /dev/zero": Case(CONFIG, zeros),
    "config: 10 GB": Case(CONFIG, huge),
    "layers: text": Case(CONFIG, keys(num_hidden_layers="2")),
    "layers: a fraction": Case(CONFIG, keys(num_hidden_layers=2.5)),
    "layers: null": Case(CONFIG, keys(num_hidden_layers=None)),
    "layers: a list": Case(CONFIG, keys(num_hidden_layers=[2])),
    "layers: negative": Case(CONFIG, keys(num_hidden_layers=-1)),
    "layers: a million": Case(CONFIG, keys(num_hidden_layers=1_000_000)),
    "layers: beyond 64 bits": Case(CONFIG, keys(num_hidden_layers=10**30)),
    "model_type: a list": Case(CONFIG, keys(model_type=["qwen3_moe"])),
    "model_type: an object": Case(CONFIG, keys(model_type={})),
    "model_type: null": Case(CONFIG, keys(model_type=None)),
    "text_config: text": Case(CONFIG, keys(text_config="qwen3_moe")),
    "text_config: a list": Case(CONFIG, keys(text_config=[1])),
    "text_config: empty": Case(CONFIG, keys(text_config={})),
    "sliding_window: text": Case(CONFIG, keys(sliding_window="x", use_sliding_window=True)),
    "sliding_window: a list": Case(CONFIG, keys(sliding_window=[1], use_sliding_window=True)),
    "half a character": Case(CONFIG, text('{"model_type": "\\ud800"}')),
    "seven million lists": Case(CONFIG, text("[" + "[]," * 7_000_000 + "[]]")),
    "quantization_config: text": Case(CONFIG, keys(quantization_config="4bit")),
    "quantization_config: a list": Case(CONFIG, keys(quantization_config=[4])),
    "rope_parameters: text": Case(CONFIG, keys(rope_parameters="default")),
    "rope_scaling: a list": Case(CONFIG, keys(rope_scaling=[1])),
    "heads: none": Case(CONFIG, keys(num_attention_heads=0)),
    "heads: text": Case(CONFIG, keys(num_attention_heads="4")),
    "hidden_size: none": Case(CONFIG, keys(hidden_size=0)),
    "hidden_size: huge": Case(CONFIG, keys(hidden_size=2**60)),
    "hidden_size: null": Case(CONFIG, keys(hidden_size=None)),
    "vocab_size: text": Case(CONFIG, keys(vocab_size="64")),
    "experts: a million": Case(CONFIG, keys(num_experts=1_000_000)),
    "architectures: a function": Case(CONFIG, keys(architectures=["pipeline"])),
    "architectures: a class": Case(CONFIG, keys(architectures=["Trainer"])),
    "architectures: a module": Case(CONFIG, keys(architectures=["models"])),
    "architectures: text": Case(CONFIG, keys(architectures="Qwen3MoeForCausalLM")),
    "architectures: numbers": Case(CONFIG, keys(architectures=[1])),
    "architectures: no whole model": Case(CONFIG, keys(architectures=["PreTrainedModel"])),
    "architectures: part of a family": Case(
        CONFIG, keys(architectures=["Qwen3MoePreTrainedModel"])
    ),
    "ids: text": Case(CONFIG, keys(eos_token_id="2", bos_token_id="x")),
    "dtype: no dtype": Case(CONFIG, keys(torch_dtype="cuda")),
    "dtype: a list": Case(CONFIG, keys(torch_dtype=["bfloat16"])),
    # the tokenizer
    "tokenizer: empty": Case(TOKENIZER, text("")),
    "tokenizer: a list": Case(TOKENIZER, text("[]")),
    "tokenizer: {}": Case(TOKENIZER, text("{}")),
    "tokenizer: UTF-16": Case(TOKENIZER, text("{}", "utf-16")),
    "tokenizer: nested": Case(TOKENIZER, text(NESTED)),
    "tokenizer: a folder": Case(TOKENIZER, folder),
    "tokenizer: a pipe": Case(TOKENIZER, pipe),
    "tokenizer: /dev/zero": Case(TOKENIZER, zeros),
    "tokenizer: 10 GB": Case(TOKENIZER, huge),
    "tokenizer_config: nested": Case(SETTINGS, text(OBJECTS)),
    "tokenizer_config: a list": Case(SETTINGS, text("[]")),
    "tokenizer_config: a pipe": Case(SETTINGS, pipe),
    "token: a list": Case(SETTINGS, keys(bos_token=[1])),
    "token: a list inside": Case(SETTINGS, keys(eos_token={"content": [1]})),
    # what is carried along
    "generation_config: a list": Case(GENERATION, text("[]")),
    "generation_config: UTF-16": Case(GENERATION, text("{}", "utf-16")),
    "generation_config: nested": Case(GENERATION, text(OBJECTS)),
    "generation_config: a pipe": Case(GENERATION, pipe),
    "card: UTF-16": Case(CARD, text("# Card", "utf-16")),
    "card: aliases": Case(CARD, text(f"---\n{bomb()}---\n")),
    "card: nested": Case(CARD, text(f"---\na: {NESTED}\n---\n")),
    "card: a list": Case(CARD, text("---\n- a\n---\n")),
    "card: /dev/zero": Case(CARD, zeros),
    # the weights
    "index: nested": Case(INDEX, text(OBJECTS)),
    "index: a list": Case(INDEX, text('{"weight_map": []}')),
    "index: numbers": Case(INDEX, text('{"weight_map": {"a": 1}}')),
    "index: a pipe": Case(INDEX, pipe),
    "index: /dev/zero": Case(INDEX, zeros),
    "index: a folder": Case(INDEX, folder),
    "index: long names": Case(INDEX, index_names(lambda name: "x" * 5000)),
    "index: names with a zero": Case(INDEX, index_names(lambda name: "a\0b")),
    "index: names elsewhere": Case(INDEX, index_names(lambda name: f"../a/{name}")),
    "index: names of none": Case(INDEX, index_names(lambda name: f"no-{name}")),
    "index: swapped": Case(INDEX, index_names(lambda name: name.replace("-00001-", "-00002-"))),
    "weights: empty": Case(WEIGHTS, text("")),
    "weights: a huge header": Case(WEIGHTS, lambda file: file.write_bytes(b"\xff" * 64)),
    "weights: cut off": Case(WEIGHTS, lambda file: os.truncate(file, file.stat().st_size // 2)),
    "weights: a folder": Case(WEIGHTS, folder),
    "weights: a pipe": Case(WEIGHTS, pipe),
    "weights: /dev/zero": Case(WEIGHTS, zeros),
}


def template(value: object) -> Callable[[Path], object]:
    """A chat template in tokenizer_config.json, and none in a file of its own."""

    def write(file: Path) -> None:
        file.with_name("chat_template.jinja").unlink(missing_ok=True)
        keys(chat_template=value)(file)

    return write


# What only one command looks at, and others carry along as it is.
DONORS: dict[str, Case] = {
    "auto_map: text": Case(CONFIG, keys(auto_map="x")),
    "auto_map: a number": Case(CONFIG, keys(auto_map={"AutoModelForCausalLM": 5})),
    "code: text": Case(SETTINGS, keys(auto_map="x")),
}
TEMPLATES: dict[str, Case] = {
    "template: numbers": Case(SETTINGS, template([1])),
    "template: no names": Case(SETTINGS, template([{}])),
    "template: half of it": Case(SETTINGS, template([{"name": 1}])),
    "template: lists": Case(SETTINGS, template([{"name": "default", "template": [1]}])),
}
COMPUTED: dict[str, Case] = {
    "epsilon: a list": Case(CONFIG, keys(rms_norm_eps={"__float__": [5]})),
    "theta: text": Case(CONFIG, keys(rope_parameters={"rope_theta": "x", "rope_type": "default"})),
    "head_dim: huge": Case(CONFIG, keys(head_dim=2**40)),
    "intermediate_size: none": Case(CONFIG, keys(intermediate_size=0, moe_intermediate_size=0)),
    "text_config: null": Case(CONFIG, keys(text_config=None)),
}
FOLDERS = (MODELS, DONORS, TEMPLATES, COMPUTED)

# --- a merge's YAML -------------------------------------------------------------------------------

GOOD_YAML = "merge_method: yoyo_fusion\nmodels:\n- {model: ./a}\n- {model: ./b}\n- {model: ./c}\n"


def option(value: str) -> Callable[[Path], object]:
    return text(GOOD_YAML + f"parameters: {{{value}}}\n")


# What YAML turns into other numbers: the one that was understood is said.
ODD_NUMBERS = {"sexagesimal": ("1:30", "90"), "octal": ("010", "8"), "binary": ("0b11", "3")}


def layers(*ranges: list[int]) -> Callable[[Path], object]:
    """Slices that take these layers of a model."""
    listed = "".join(f"- sources: [{{model: ./a, layer_range: {x}}}]\n" for x in ranges)
    return text(f"merge_method: yoyo_fusion\nslices:\n{listed}")


YAMLS: dict[str, Case] = {
    name: Case("merge.yml", damage)
    for name, damage in {
        "empty": text(""),
        "a list": text("- a\n"),
        "a word": text("merge"),
        "UTF-16": text(GOOD_YAML, "utf-16"),
        "no end": text("models: [\n"),
        "nested": text(f"models: {NESTED}\n"),
        "aliases": text(bomb()),
        "aliases in parameters": text(GOOD_YAML + bomb() + "parameters: {tukey_c: *a8}\n"),
        "an alias within itself": text("models: &a [*a]\n"),
        "a tag of Python": text("!!python/object/apply:os.system ['touch harmed']\n"),
        "a broken tag": text("models: !!timestamp x\n"),
        "no such day": text("models: 2024-99-99\n"),
        "a folder": folder,
        "a pipe": pipe,
        "/dev/zero": zeros,
        "10 GB": huge,
        "a long name": text("merge_method: yoyo_fusion\nmodels:\n- model: ./" + "x" * 5000 + "\n"),
        "a name with a zero": text('merge_method: yoyo_fusion\nmodels:\n- model: "a\\0b"\n'),
        "no models": text("merge_method: yoyo_fusion\nmodels: []\n"),
        "half a character": text('merge_method: yoyo_fusion\nmodels:\n- model: "\\ud800"\n'),
        "80,000 values": text(GOOD_YAML + f"parameters: {{tukey_c: [{'1,' * 80_000}]}}\n"),
        "one end of a range": layers([0]),
        "layers backwards": layers([2, 1]),
        "no layers": layers([1, 1]),
        "a thousand stages": text("---\n".join(f"name: s{k}\n{GOOD_YAML}" for k in range(1000))),
        "layers before the first": layers([-1, 1]),
        "many slices": layers(*[[0, 2000]] * 200),
        "layers without end": text(
            "merge_method: yoyo_fusion\nslices:\n- sources:\n"
            "  - {model: ./a, layer_range: [0, 1000000000]}\n"
        ),
    }.items()
}
OPTIONS: dict[str, Case] = {
    name: Case("merge.yml", damage)
    for name, damage in {
        "an empty gradient": option("tukey_c: []"),
        "a filter without an end": option("tukey_c: [{filter: mlp, value: []}]"),
        "an infinite option": option("tukey_c: .inf"),
        "a multiple of none": text(
            GOOD_YAML + "tokenizer: {source: union, pad_to_multiple_of: 0}\n"
        ),
        "no number": option("tukey_c: .nan"),
        "1e308": option("tukey_c: 1.0e+308"),
        "binary without end": option("tukey_c: 0b" + "1" * 90_000),
        "sexagesimal without end": option("tukey_c: 1" + ":30" * 3000),
    }.items()
} | {
    name: Case("merge.yml", option(f"tukey_c: {word}"), f"{word} is read as the number {number}")
    for name, (word, number) in ODD_NUMBERS.items()
}

# --- a merge's record -----------------------------------------------------------------------------


def header(**values: object) -> Callable[[Path], object]:
    return lambda file: change_line(file, '"line":"header"', values)


def line(**values: object) -> Callable[[Path], object]:
    """Of a tensor with one problem."""
    return lambda file: change_line(file, '"model.norm.weight"', values)


def change_line(file: Path, part: str, values: dict[str, Any]) -> None:
    lines = file.read_text().splitlines()
    (number,) = (k for k, text in enumerate(lines) if part in text)
    lines[number] = json.dumps({**json.loads(lines[number]), **values})
    file.write_text("\n".join(lines) + "\n")


RECORDS: dict[str, Case] = {
    name: Case(RECORD, damage)
    for name, damage in {
        "empty": text(""),
        "a list": text("[]\n"),
        "UTF-16": text('{"line": "header"}\n', "utf-16"),
        "nested": text(OBJECTS),
        "nested line": lambda file: file.write_text(
            file.read_text().splitlines()[0] + f"\n{OBJECTS}\n{OBJECTS}\n"
        ),
        "a folder": folder,
        "a pipe": pipe,
        "/dev/zero": zeros,
        "schema: 1.0": header(schema_version=1.0),
        "schema: true": header(schema_version=True),
        "schema: text": header(schema_version="1"),
        "schema: 2": header(schema_version=2, versions=[1]),
        "versions: a list": header(versions=["0.1.0"]),
        "versions: a number, of schema 2": header(versions=3, schema_version=2),
        "parameters: NaN": header(parameters={"tukey_c": float("nan")}),
        "parameters: infinite": header(parameters={"tukey_c": float("inf")}),
        "parameters: beyond 64 bits": header(parameters={"tukey_c": 10**400}),
        "base: half a character": header(base="\ud800"),
        "tensors: true": header(tensors=True),
        "line: no inputs": line(inputs=[]),
        "line: inputs twice": line(inputs=["./a", "./a", "./a"]),
        "line: strangers": line(inputs=["./x", "./y", "./z"]),
        "line: an infinite option": line(parameters={"tukey_c": float("inf")}),
        "line: an option beyond 64 bits": line(parameters={"tukey_c": 10**400}),
        "weights: text": line(weights=[["nan"] * 3]),
        "started: never": header(started="yesterday"),
        "inputs: none": header(inputs=[]),
        "inputs: twice": header(inputs=["./a", "./a", "./a"]),
        "tensors: negative": header(tensors=-1),
        "tensors: beyond 64 bits": header(tensors=10**30),
        "shape: negative": line(shape=[-1, 8]),
        "shape: zero": line(shape=[0]),
        "shape: beyond 64 bits": line(shape=[10**30]),
        "shape: product beyond 64 bits": line(shape=[2**40, 2**40]),
        "weights: NaN": line(weights=[[float("nan")] * 3]),
        "weights: infinite": line(weights=[[float("inf")] * 3]),
        "weights: negative": line(weights=[[-1.0, 0.5, 0.5]]),
        "weights: above one": line(weights=[[7.0, 0.5, 0.5]]),
        "norms: negative": line(norms=[[-1.0, 1.0, 1.0]]),
        "norms: beyond float64": line(norms=[[10**400, 1.0, 1.0]]),
        "norms: infinite": line(norms=[[float("inf"), 1.0, 1.0]]),
        "norms: almost infinite": line(norms=[[1e308, 1e308, 1e308]]),
        "cosines: above one": line(cosines=[[3.0, 0.0, 0.0]]),
        "rank: negative": line(rank=[-1]),
        "iterations: negative": line(iterations=[-5]),
        "energy: negative": line(energy=[-1.0]),
        "problems: none": line(warnings=[{"kind": "rejected", "model": "./a", "problems": -1}]),
        "warning: of a stranger": line(warnings=[{"kind": "rejected", "model": "./x"}]),
    }.items()
}

# --- benchmark results ----------------------------------------------------------------------------


def result(**values: object) -> Callable[[Path], object]:
    """Replace keys of the result of `arc_easy`."""

    def write(file: Path) -> None:
        data = json.loads(file.read_text())
        data["results"]["arc_easy"] |= {k.replace("__", ","): v for k, v in values.items()}
        file.write_text(json.dumps(data))

    return write


RESULTS: dict[str, Case] = {
    name: Case(RESULT, damage)
    for name, damage in {
        "empty": text(""),
        "a list": text("[]"),
        "UTF-16": text("{}", "utf-16"),
        "nested": text(OBJECTS),
        "a folder": folder,
        "a pipe": pipe,
        "/dev/zero": zeros,
        "score: above one": result(acc_norm__none=1.5),
        "score: negative": result(acc_norm__none=-0.5),
        "score: NaN": result(acc_norm__none=float("nan")),
        "score: infinite": result(acc_norm__none=float("inf")),
        "score: true": result(acc_norm__none=True),
        "score: beyond float64": result(acc_norm__none=10**400),
        "error: negative": result(acc_norm_stderr__none=-0.1),
        "error: above one": result(acc_norm_stderr__none=3.0),
        "results: a list": keys(results=[1]),
        "results: empty": keys(results={}),
        "task: a list": keys(results={"arc_easy": [0.5]}),
        "versions: a list": keys(versions=[1]),
        "n-shot: text": keys(**{"n-shot": "none"}),
        "n-shot: a list": keys(**{"n-shot": {"arc_easy": [0]}}),
        "n-samples: text": keys(**{"n-samples": "all"}),
        "n-samples: a number": keys(**{"n-samples": {"arc_easy": 5}}),
        "items: text": keys(**{"n-samples": {"arc_easy": {"effective": "5"}}}),
        "items: negative": keys(**{"n-samples": {"arc_easy": {"effective": -5}}}),
        "items: a fraction": keys(**{"n-samples": {"arc_easy": {"effective": 4.5}}}),
        "items: beyond 64 bits": keys(**{"n-samples": {"arc_easy": {"effective": 10**30}}}),
        "higher_is_better: text": keys(higher_is_better="yes"),
        "higher_is_better: a list": keys(higher_is_better={"arc_easy": [True]}),
        "configs: a list": keys(configs=[1]),
        "config: text": keys(config="hf"),
        "quantization: text": keys(config={"quantization": "4bit"}),
        "quantization: a list inside": keys(config={"quantization": {"label": [1]}}),
        "task: a path": keys(results={"../../x": {"acc,none": 1.5}}),
        "task: half a character": keys(results={"\ud800": {"acc,none": 0.5}}),
        "model_name: a number": keys(model_name=5),
        "model_name: a list": keys(model_name=["a"]),
        "model_name: 5,000 characters": keys(model_name="x" * 5000),
        "model_args: a number": keys(config={"model_args": 5}),
        "chat_template: a number": keys(chat_template=5),
        "date: text": keys(date="today"),
        "date: NaN": keys(date=float("nan")),
        "date: beyond float64": keys(date=10**400),
        "groups: a list": keys(group_subtasks=[1]),
        "groups: a number": keys(group_subtasks={"arc_easy": 5}),
        "groups: of itself": keys(group_subtasks={"arc_easy": ["arc_easy"]}),
        "harness: a list": keys(lm_eval_version=[1]),
    }.items()
}

KINDS: dict[str, tuple[dict[str, Case], tuple[str, ...]]] = {
    "inspect": (MODELS, ("inspect", "merge.yml")),
    "plan": (MODELS, ("mlx", "bad", "--plan", "--quant", "q4")),
    "export": (MODELS, ("mlx", "bad", "out", "--quant", "q4")),
    "evaluate": (MODELS, ("evaluate", "./bad", "--device", "no_such_device", "--out", "out")),
    "donor": (MODELS, ("finish", "merged", "--donor", "bad")),
    "finish": (MODELS, ("finish", "bad", "--donor", "a")),
    "code": (DONORS, ("finish", "merged", "--donor", "bad")),
    "template": (TEMPLATES, ("inspect", "merge.yml")),
    "computed": (COMPUTED, ("mlx", "bad", "--plan", "--quant", "q4")),
    "yaml": (YAMLS, ("inspect", "merge.yml")),
    "options": (OPTIONS, ("inspect", "merge.yml")),
    "stage": (YAMLS, ("finish", "bad", "--config", "merge.yml")),
    "report": (RECORDS, ("report", RECORD)),
    "page": (RECORDS, ("report", RECORD, "--html", "out.html", "--png", "out.png")),
    "compare": (RECORDS, ("report", "good.jsonl", RECORD)),
    "scores": (RESULTS, ("scores", RESULT, "--out", "out.csv")),
    "lead": (RESULTS, ("scores", RESULT, "good.json", "--compare", "bad", "good")),
}


# What a sentence may call a file instead.
NAMED = {
    CONFIG: ("architectures differs",),
    CARD: ("model card",),
    INDEX: (".index.json",),
    TOKENIZER: ("its tokenizer cannot be loaded",),
    SETTINGS: ("its tokenizer cannot be loaded",),
}
# Their result is what they write; they may say more of what they had to mend.
WRITES = ("donor", "finish", "export", "stage")


class Outcome(NamedTuple):
    """status: of the command, None if it died. opened: whether it opened a pipe.

    written: every file that is new or was changed, with its content.
    """

    status: int | None
    said: str
    raised: str
    opened: bool
    written: dict[str, bytes]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `a`, `b` and `c` in three files each, their real merge, its record, and results."""
    root = tmp_path_factory.mktemp("hostile")
    base = write_checkpoint(root / "whole", "qwen3_moe")
    shard(base, root / "a")
    for k, name in enumerate("bc"):
        shard(fine_tune(base, root / f"whole-{name}", k), root / name)
    text = recipe(
        ["./a", "./b", "./c"], "base_model: ./a\n", report=RECORD, center="geometric_median"
    )
    failed = run_mergekit({root / "made": text}, root)
    assert not any(failed.values()), failed
    shard(root / "made", root / "merged")
    scores = [0.0, 1.0] * 20
    for name in ("bad", "good"):
        write_result(root / name, {"arc_easy": scores, "piqa": scores}, metrics=("acc", "acc_norm"))
    return root


def prepare(kind: str, case: Case | None, good: Path, place: Path) -> Path | None:
    """The folder in which a command runs on a case, or on what is good; the damaged file."""
    table = KINDS[kind][0]
    place.mkdir()
    damaged = None
    if any(table is models for models in FOLDERS):
        for name in ("a", "b", "c"):
            (place / name).symlink_to(good / name)
        source = "merged" if kind == "finish" else "a"
        shutil.copytree(good / source, place / "bad")
        shutil.copytree(good / "merged", place / "merged")
        (place / "merge.yml").write_text(recipe(["./bad", "./b", "./c"], "base_model: ./bad\n"))
        damaged = place / "bad" / (case.file if case else "")
    elif table is YAMLS or table is OPTIONS:
        for name in ("a", "b", "c"):
            (place / name).symlink_to(good / name)
        shutil.copytree(good / "merged", place / "bad")
        (place / "bad" / "mergekit_config.yml").unlink()
        (place / "merge.yml").write_text(GOOD_YAML + "base_model: ./a\n")
        damaged = place / "merge.yml"
    elif table is RECORDS:
        for name in ("good.jsonl", RECORD):
            shutil.copyfile(good / RECORD, place / name)
        damaged = place / RECORD
    else:
        for name, goal in (("bad", RESULT), ("good", "good.json")):
            shutil.copyfile(good / name / RESULT, place / goal)
        damaged = place / RESULT
    if case is None:
        return None
    case.damage(damaged)
    return damaged


def outcomes_of(kind: str, good: Path, root: Path) -> dict[str, Outcome]:
    table, arguments = KINDS[kind]
    places = {"good": root / "good"} | {name: root / str(k) for k, name in enumerate(table)}
    feeders = {}
    for name, place in places.items():
        file = prepare(kind, table.get(name), good, place)
        if file is not None and file.is_fifo():
            # blocks until somebody opens the other end
            feeders[name] = subprocess.Popen(["sh", "-c", ': > "$1"', "sh", file])
    before = {name: tree(place) for name, place in places.items()}
    jobs = [[name, arguments, str(place)] for name, place in places.items()]
    child = subprocess.run(
        [sys.executable, CHILD],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    done = dict(map(json.loads, child.stdout.splitlines()))
    found = {}
    for name, outcome in done.items():
        opened = name in feeders and feeders[name].poll() is not None
        if name in feeders:
            feeders[name].kill()
            feeders[name].wait()
        after = tree(places[name])
        written = {
            path: (places[name] / path).read_bytes()
            for path in after
            if after[path] != before[name].get(path)
        }
        outcome["said"] = outcome["said"].replace(str(places[name]), "PLACE")
        found[name] = Outcome(**outcome, opened=opened, written=written)
    return found


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = (facts.st_size, facts.st_mtime_ns)
    return found


@pytest.fixture(scope="session")
def outcome(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    known: dict[str, dict[str, Outcome]] = {}

    def of(kind: str, name: str) -> Outcome:
        if kind not in known:
            known[kind] = outcomes_of(kind, good, tmp_path_factory.mktemp(kind))
        return known[kind][name]

    return of


def cases() -> Iterator[Any]:
    for kind, (table, _) in KINDS.items():
        for name in table:
            yield pytest.param(kind, name, id=f"{kind}: {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_good_goes_well(outcome: Callable[[str, str], Outcome], kind: str) -> None:
    seen = outcome(kind, "good")
    assert seen.raised == ""
    assert seen.status == 0 or (kind == "evaluate" and "no_such_device" in seen.said), seen.said


@pytest.mark.parametrize(("kind", "name"), list(cases()))
def test_a_sentence_or_a_right_result(
    outcome: Callable[[str, str], Outcome], kind: str, name: str
) -> None:
    """A right result is what the same command says and writes where nothing is damaged."""
    case, seen, right = KINDS[kind][0][name], outcome(kind, name), outcome(kind, "good")
    assert seen.raised == ""
    assert "RuntimeWarning" not in seen.said
    assert not seen.opened, "it opened a pipe"
    if KINDS[kind][0] is MODELS and seen.status == right.status:
        same = kind in WRITES or without_sizes(seen.said) == without_sizes(right.said)
        if same and seen.written == right.written:
            return
    named = (case.says,) if case.says else (case.file, *NAMED.get(case.file, ()))
    assert any(name in seen.said for name in named), seen.said
    assert len(seen.said) < 4000
    if case.says is None:
        assert seen.status in (1, 2), seen.said
        assert seen.written == {}


def without_sizes(said: str) -> str:
    """Without what the machine has free at the moment."""
    return re.sub(r"[0-9.]+ [KMGT]?B", "", said)
