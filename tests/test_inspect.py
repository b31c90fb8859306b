"""`mergekit-yoyo inspect`: each planted fault is found and named, and the merge agrees."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from click.testing import CliRunner
from finish_fixtures import files_of, run_mergekit, write_checkpoint, write_tokenizer
from finish_hub import serve
from method_fixtures import Tensors, fine_tune, recipe, sliced

from mergekit_yoyo.cli import main
from mergekit_yoyo.inspection import Inspection, inspect
from mergekit_yoyo.record.schema import Header, TensorLine

ROOT = Path(__file__).resolve().parent.parent
ABC = ["./a", "./b", "./c"]
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
SMALL = 0.01  # of the fine-tunes' noise; the weights have a standard deviation of 0.2


class Case(NamedTuple):
    """A YAML, and what `inspect` must say of it. fails: whether mergekit-yaml dies of it."""

    text: str
    level: str
    says: tuple[str, ...]
    fails: bool = False


def linear(models: list[str], extra: str = "", **parameters: object) -> str:
    listed = "".join(f"- {{model: {m}, parameters: {{weight: 1}}}}\n" for m in models)
    return f"merge_method: linear\nmodels:\n{listed}parameters: {json.dumps(parameters)}\n{extra}"


def on_models(method: str, settings: str, extra: str = "") -> str:
    listed = "".join(f"- {{model: {m}, parameters: {{{settings}}}}}\n" for m in ABC)
    return f"merge_method: {method}\nmodels:\n{listed}{extra}"


def fault(model: str, level: str, *says: str, fails: bool = False, extra: str = "") -> Case:
    """Three good models and a fourth, which must be named."""
    return Case(recipe([*ABC, f"./{model}"], extra), level, (f"./{model}", *says), fails)


TRAP = sliced([(["./a"], 0, 1), (ABC, 1, 3)])
CASES = {
    # recall
    "two models to recall from": Case(
        recipe(ABC[:2], consensus="recall"), "warning", ("less than three inputs", "center: anchor")
    ),
    # the file
    "misspelt option": Case(
        recipe(ABC, centre="anchor"),
        "error",
        ("parameters: yoyo_fusion knows no", "centre", "Did you mean center"),
    ),
    "option of a model": Case(
        on_models("yoyo_fusion", "wieght: 1"), "error", ("models[1].parameters (./b)", "wieght")
    ),
    "option of another method": Case(
        on_models("linear", "weight: 1, densty: 0.5"),
        "error",
        ("models[2].parameters (./c): linear knows no parameter densty",),
    ),
    "option in the wrong place": Case(
        on_models("yoyo_fusion", "tukey_c: 3"),
        "error",
        ("models[0].parameters (./a): tukey_c", "ignores it on a single model"),
    ),
    "option of a slice": Case(
        TRAP.replace("[./a]", "[./a]").replace("merge_method: yoyo_fusion", "merge_method: linear")
        + "  parameters: {weigth: 1}\nparameters: {weight: 1}\n",
        "error",
        ("slices[1].parameters: linear knows no parameter weigth", "Did you mean weight"),
    ),
    "key": Case(
        recipe(ABC, "dtpye: bfloat16\n"), "error", ("top level", "dtpye", "Did you mean dtype")
    ),
    "key of a filter": Case(
        recipe(ABC, tukey_c=[{"filer": "mlp", "value": 3}, {"value": 4}]),
        "error",
        ("parameters.tukey_c[0]", "filer", "Did you mean filter"),
    ),
    "key of the tokenizer": Case(
        recipe(ABC, "base_model: ./a\ntokenizer: {source: base, pad_to_multiple: 8}\n"),
        "error",
        ("tokenizer: ", "pad_to_multiple", "pad_to_multiple_of"),
    ),
    "option at the top level": Case(
        recipe(ABC, "consensus: recall\n"),
        "error",
        ("top level: ", "consensus", "belongs under `parameters:` of the merge", "{consensus:"),
    ),
    "option of the merge beside a model": Case(
        "merge_method: yoyo_fusion\nmodels:\n- {model: ./a, consensus: recall}\n- model: ./b\n",
        "error",
        ("models[0]: ", "consensus", "belongs under `parameters:` of the merge"),
    ),
    "weight beside its model": Case(
        "merge_method: linear\nmodels:\n- {model: ./a, weight: 1}\n- model: ./b\n"
        "parameters: {weight: 1}\n",
        "error",
        ("models[0]: ", "key weight", "belongs under `parameters:` of this model"),
    ),
    "weight at the top level": Case(
        linear(ABC, "weight: 1\n"),
        "error",
        ("top level: ", "key weight", "belongs under `parameters:` of each model"),
    ),
    "option of other methods": Case(
        recipe(ABC, density=0.5),
        "error",
        ("yoyo_fusion knows no parameter density", "It is a parameter of", "ties"),
    ),
    "key of the merge among its options": Case(
        recipe(ABC, dtype="bfloat16"),
        "error",
        ("knows no parameter dtype", "`dtype:` stands at the top level"),
    ),
    "layers of a whole model": Case(
        "merge_method: linear\nmodels:\n- {model: ./a, layer_range: [0, 2]}\n- model: ./b\n"
        "parameters: {weight: 1}\n",
        "error",
        ("models[0]: ", "layer_range", "stands at a source of a slice"),
    ),
    "filter": Case(
        recipe(ABC, tukey_c=[{"filter": "mpl", "value": 3}, {"value": 4}]),
        "warning",
        ("tukey_c: the filter mpl matches no tensor",),
    ),
    "gradient of words": Case(
        recipe(ABC, rescale=["median", "mean"]), "warning", ("rescale", "last layer", "Use filters")
    ),
    "value": Case(
        recipe(ABC, rescale="meen"), "error", ("rescale: expected one of", "'meen'"), True
    ),
    "value of another method": Case(
        on_models("linear", "weight: heavy"),
        "error",
        ("models[0].parameters (./a): weight: ", "got 'heavy'"),
        True,
    ),
    "method": Case(
        recipe(ABC).replace("yoyo_fusion", "yoyo_fuson"),
        "error",
        ("yoyo_fuson", "yoyo_fusion"),
        True,
    ),
    "dtype": Case(
        recipe(ABC, "dtype: bf16\n"), "error", ("dtype: ", "bf16", "Did you mean bfloat16"), True
    ),
    "option without effect": Case(
        recipe(ABC, ridge=0.2, max_scale=5), "warning", ("ridge has no effect", "consensus: tukey")
    ),
    "option without effect in some tensors": Case(
        recipe(ABC, consensus=[{"filter": "mlp", "value": "recall"}, {"value": "tukey"}], ridge=1),
        "warning",
        ("ridge has no effect with consensus: tukey", "tensors)"),
    ),
    # the way to the models
    "no such folder": fault("d", "error", "there is no such folder", fails=True),
    "adapter": Case(
        recipe([*ABC, "./base+./adapter"]),
        "warning",
        ("./base+./adapter: looked at without its LoRA adapter",),
        True,
    ),
    "home": Case(recipe(["~/a", *ABC]), "error", ("~/a", "does not expand"), True),
    "missing shard": fault("torn", "error", "incomplete", fails=True),
    # do they fit
    "architecture": fault(
        "qwen", "error", "model_type differs", "llama (./a, ./b, ./c)", fails=True
    ),
    "depth": fault("deep", "error", "numbers of layers differ", "4 (./deep)", fails=True),
    "quantized": fault("float8", "error", "quantized", UP, fails=True),
    "missing tensor": fault("holes", "error", f"lacks {UP}", fails=True),
    "shape": fault("wide", "error", f"{UP} is [48, 32] in ./a", "[50, 32] in ./wide", fails=True),
    "size of the vocabulary": fault(
        "large",
        "error",
        "model.embed_tokens.weight is [64, 32]",
        "[68, 32]",
        "source: union",
        fails=True,
    ),
    "wrong vocabulary": fault(
        "words", "error", "its vocabulary is not that of ./a", "'w9'", "'w8'"
    ),
    "vocabulary, mapped": fault(
        "words", "warning", "mapped by name", extra="tokenizer: {source: union}\n"
    ),
    "added tokens": fault("added", "warning", "1 added tokens differ", "'<think>'"),
    "untied head": fault("untied", "warning", "an output head of its own", "finish"),
    "rope": fault(
        "rope", "warning", "rope_parameters.rope_theta differs", "500000 (./a, ./b, ./c)"
    ),
    "special token id": fault("stops", "warning", "eos_token_id differs", "1 (./stops)"),
    "chat template": fault("talk", "warning", "chat templates differ"),
    "dtype of weights": fault("float32", "warning", "float32 (./float32)", "bfloat16 (./a"),
    "more tensors": fault(
        "biased", "warning", "not in all inputs: model.layers.*.self_attn.q_proj.bias"
    ),
    "random donor": Case(
        recipe([*ABC, "./rope"]), "warning", ("donor: without base_model", "random order")
    ),
    # the plan
    "head and norm": Case(
        TRAP, "error", ("model.norm.weight", "the first one 1", "only ./a"), True
    ),
    "head and norm, another method": Case(
        TRAP.replace("yoyo_fusion", "linear\nparameters: {weight: 1}"),
        "error",
        ("model.norm.weight", "the first one 1", "only ./a"),
    ),
    "stretched": Case(
        sliced([(["./qwen"], 0, 2), (["./qwen"], 1, 3)]),
        "error",
        ("config.json of the merge", "layer_types", "dies after the weights", "finish --config"),
        True,
    ),
    "anchor": Case(
        recipe(ABC, center="anchor"), "error", ("center: anchor needs base_model",), True
    ),
    "contract of another method": Case(
        linear(ABC).replace("linear", "slerp"), "error", ("mergekit refuses the merge",), True
    ),
    # the weights
    "NaN": fault("nan", "error", f"{UP}: ./nan holds NaN", fails=True),
    "NaN, another method": Case(
        linear(["./a", "./nan"]), "error", (f"{UP}: ./nan holds NaN or infinite values",)
    ),
    "swapped tensor": fault("swapped", "warning", "unlike the other inputs in", UP, "cosine"),
    "swapped norm": fault("norms", "warning", "unlike the other inputs in", NORM),
    "another base": fault("stranger", "warning", "of another base than ./a, ./b, ./c", "cosine"),
    "another scale": fault("scaled", "warning", " times as large as the others", "rescale: median"),
    "rejected": fault("stranger", "warning", "rejects it in ", "hardly follows it"),
    "copy": Case(recipe([*ABC, "./copy"]), "warning", ("./a and ./copy are the same weights",)),
}


def exchanged(one: str, other: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, one: tensors[other], other: tensors[one]}


def edited(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name].clone())}


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 4] = torch.nan
    return tensor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    tied = {"num_hidden_layers": 3, "tie_word_embeddings": True}
    base = write_checkpoint(root / "base", "llama", values=tied)

    def tune(name: str, seed: int, *args: object, source: Path = base, **options: object) -> Path:
        return fine_tune(source, root / name, seed, SMALL, *args, **options)  # type: ignore[arg-type]

    for k, name in enumerate("abc"):
        tune(name, k)
    shutil.copytree(root / "a", root / "copy")
    (root / "adapter").mkdir()
    torn = shutil.copytree(root / "a", root / "torn")
    (torn / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {UP: "model-00001-of-00002.safetensors"}}
    (torn / "model.safetensors.index.json").write_text(json.dumps(index))
    write_checkpoint(root / "qwen", "qwen3", values={"num_hidden_layers": 3})
    write_checkpoint(root / "stranger", "llama", seed=9, values=tied)
    write_checkpoint(root / "deep", "llama", values={**tied, "num_hidden_layers": 4})
    tune("float8", 5, change=edited(UP, lambda t: t.to(torch.float8_e4m3fn)))
    tune("holes", 5, change=lambda tensors: {n: t for n, t in tensors.items() if n != UP})
    tune("wide", 5, change=edited(UP, lambda t: torch.cat([t, t[:2]])))
    rows = edited("model.embed_tokens.weight", lambda t: torch.cat([t, t[:4]]))
    tune("large", 5, change=rows, config={"vocab_size": 68})
    rename_tokens(tune("words", 5), {"w8": 9, "w9": 8})
    add_token(tune("added", 5), "<think>")
    head = {"lm_head.weight": 0.2 * torch.randn(64, 32, dtype=torch.bfloat16)}
    tune("untied", 5, change=lambda tensors: {**tensors, **head})
    tune("rope", 5, config={"rope_theta": 10000.0})
    tune("stops", 5, config={"eos_token_id": 1})
    (tune("talk", 5) / "chat_template.jinja").write_text("{{ messages }}")
    tune("float32", 5, torch.float32)
    bias = {f"model.layers.{k}.self_attn.q_proj.bias": torch.zeros(32) for k in range(3)}
    tune("biased", 5, change=lambda tensors: {**tensors, **bias})
    tune("nan", 5, change=edited(UP, with_nan))
    tune("swapped", 5, change=exchanged(UP, UP.replace("1", "2")))
    tune("norms", 5, change=edited(NORM, lambda t: t.roll(7)))
    tune("scaled", 5, change=lambda tensors: {n: 100 * t for n, t in tensors.items()})
    return root


def rename_tokens(folder: Path, ids: dict[str, int]) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] |= ids
    file.write_text(json.dumps(tokenizer))


def add_token(folder: Path, token: str) -> None:
    """Give the last row of the embedding a name, as fine-tunes do with spare rows."""
    from tokenizers import Tokenizer

    write_tokenizer(folder, words=63)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def merged(place: Path) -> dict[str, str]:
    """What mergekit-yaml raised for each case, in one process: empty if it made the merge."""
    (place / "out").mkdir()
    jobs = {place / "out" / name: case.text for name, case in CASES.items()}
    return {out.name: failed for out, failed in run_mergekit(jobs, place).items()}


@pytest.fixture
def look(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Inspection]:
    monkeypatch.chdir(place)

    def run(text: str, **options: Any) -> Inspection:
        (tmp_path / "merge.yml").write_text(text)
        return inspect(tmp_path / "merge.yml", **options)

    return run


@pytest.mark.parametrize("name", CASES)
def test_fault_is_found_and_named(look: Callable[..., Inspection], name: str) -> None:
    case = CASES[name]
    seen = look(case.text)
    said = seen.of_level(case.level)
    assert any(all(part in text for part in case.says) for text in said), seen.remarks
    if case.level == "warning":
        assert not seen.of_level("error")


@pytest.mark.parametrize("name", CASES)
def test_status_is_what_mergekit_does(merged: dict[str, str], name: str) -> None:
    assert bool(merged[name]) == CASES[name].fails, merged[name]


def test_the_good_models_are_fine(look: Callable[..., Inspection]) -> None:
    for text in (recipe(ABC), linear(ABC), recipe(ABC, "base_model: ./base\n", center="anchor")):
        seen = look(text)
        assert not seen.of_level("error")
        assert not seen.of_level("warning")
        assert seen.reading is not None


PREDICTED = {
    "packed experts": recipe(["./moe", "./moe1", "./moe2"], "dtype: bfloat16\n"),
    "experts packed": recipe(["./moe", "./moe1", "./moe2"], experts="packed"),
    "anchor": recipe(ABC, "base_model: ./base\n", center="anchor", tukey_c=[3, 6]),
    "coordinate median": recipe([*ABC, "./float32"], center="coordinate_median"),
    "vocabulary": recipe([*ABC, "./large"], "base_model: ./a\ntokenizer: {source: union}\n"),
    "recall": recipe(["./moe", "./moe1", "./moe2"], consensus="recall", ridge=[0.1, 0.3]),
    "slices": sliced([(ABC, 0, 1), (["./b"], 0, 2), (["./a", "./b", "./norms"], 1, 3)]),
    "untied": recipe([*ABC, "./untied"], rescale="median"),
    "optional": recipe(["./glm", "./unbiased", "./glm2"], "dtype: float32\n"),
}


@pytest.fixture(scope="module")
def families(place: Path) -> None:
    moe = write_checkpoint(place / "moe", "qwen3_moe")
    fine_tune(moe, place / "moe1", 1, SMALL)
    fine_tune(moe, place / "moe2", 2, SMALL)
    glm = write_checkpoint(place / "glm", "glm4_moe", values={"attention_bias": True})
    fine_tune(glm, place / "glm2", 1, SMALL)

    def without_bias(tensors: Tensors) -> Tensors:
        return {name: t for name, t in tensors.items() if "k_proj.bias" not in name}

    fine_tune(glm, place / "unbiased", 2, SMALL, change=without_bias)


@pytest.fixture(scope="module")
def records(place: Path, families: None) -> Path:
    """What real merges record, in one process of mergekit-yaml."""
    folder = place / "records"
    folder.mkdir()
    jobs = {folder / name: recording(text, folder / name) for name, text in PREDICTED.items()}
    failed = run_mergekit(jobs, place)
    assert not any(failed.values()), failed
    return folder


def recording(text: str, name: Path) -> str:
    """The YAML, with its record beside the merge."""
    values = yaml.safe_load(text)
    values["parameters"] = {**(values.get("parameters") or {}), "report": f"{name}.jsonl"}
    return yaml.safe_dump(values, sort_keys=False)


def recorded(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of a record by tensor, with what the header says of all of them."""
    first, *rest = file.read_text().splitlines()
    header = Header.model_validate_json(first)
    lines = {}
    for text in rest:
        line = TensorLine.model_validate_json(text)
        parameters = {**header.parameters, **line.parameters}
        full = line.model_copy(
            update={"inputs": line.inputs or header.inputs, "parameters": parameters}
        )
        lines[line.name] = full.model_dump()
    return lines


def agree(one: Any, other: Any) -> bool:
    """Whether two parts of lines are the same to the last of their six digits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-5, abs=1e-9)
    return bool(one == other)


@pytest.mark.parametrize("name", PREDICTED)
def test_prediction_is_the_record(
    look: Callable[..., Inspection], records: Path, name: str
) -> None:
    seen = look(PREDICTED[name])
    assert not seen.of_level("error")
    assert seen.reading is not None
    predicted = {x.name: x.line.model_dump() for x in seen.reading.looks if x.line is not None}
    merge = recorded(records / f"{name}.jsonl")
    assert predicted.keys() == merge.keys()
    for tensor, line in merge.items():
        # what rounding does nobody knows before the merge is written
        assert agree({**line, "rounding": None}, predicted[tensor]), tensor
    assert any(line["weights"] for line in merge.values())


def run(*files: str | Path, cwd: Path, **environment: str) -> list[tuple[int, str]]:
    """Run the command on each file in a process of its own for all: status and output."""
    script = (
        "import sys\nfrom mergekit_yoyo.cli import main\n"
        "for arguments in sys.argv[1:]:\n"
        "    try: main(['inspect', *arguments.split()])\n"
        "    except SystemExit as end: print('STATUS', end.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^STATUS (\d)\n", done.stdout, flags=re.M)
    return [(int(status), text) for text, status in zip(parts[::2], parts[1::2], strict=False)]


def test_quickstart_is_fine_and_nothing_is_written(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    text = (ROOT / "examples" / "quickstart.yml").read_text()
    recipe_file = tmp_path / "examples" / "recorded.yml"
    recipe_file.write_text(text.replace("./merged-report.jsonl", "./merged/report.jsonl"))
    before = files_of(tmp_path)
    whole, quick = run("examples/recorded.yml", "--quick examples/quickstart.yml", cwd=tmp_path)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "merged").exists()
    assert whole[0] == quick[0] == 0
    assert whole[1].splitlines()[-1] == "examples/recorded.yml: fine: nothing is wrong"
    assert "warning" not in whole[1]
    assert "mlp.down_proj" in whole[1]
    assert quick[1].splitlines()[-1].endswith("nothing is wrong; the weights were not read")
    assert "mlp.down_proj" not in quick[1]


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(place)

    def run_it(text: str) -> tuple[int, str, str]:
        (tmp_path / "merge.yml").write_text(text)
        done = CliRunner().invoke(main, ["inspect", str(tmp_path / "merge.yml")])
        return done.exit_code, done.stdout, done.stderr

    return run_it


def test_recall_is_shown(
    command: Callable[..., tuple[int, str, str]], look: Callable[..., Inspection]
) -> None:
    """What its record would say, on average over elements; an anchor is not weighed."""
    extra = "base_model: ./base\n"
    text = recipe(ABC, extra, consensus="recall", center="anchor", recall_strength=1.5)
    reading = look(text).reading
    assert reading is not None
    lines = [look.line for look in reading.looks if look.line is not None]
    sizes = [math.prod(line.shape) for line in lines]
    recalled, weights = (
        [
            sum(getattr(line, field)[0][k] * size for line, size in zip(lines, sizes, strict=True))
            / sum(sizes)
            for k in range(3)
        ]
        for field in ("recalled", "weights")
    )
    status, out, _ = command(text)
    assert status == 0
    shown = {" ".join(row.split()) for row in out.splitlines()}
    assert " ".join(["weight", *(f"{x:.3f}" for x in weights), "-"]) in shown
    assert " ".join(["recalled", *(f"{x:.3f}" for x in recalled), "-"]) in shown
    worst = max(line.condition_number[0] or 0 for line in lines)
    assert f"Recall: strength 1.50, condition numbers below {worst:,.0f}." in shown


def test_status_and_last_line(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = command(recipe(ABC, "dtype: bfloat16\n", centre="anchor"))
    assert status == 1
    assert "\nerror: parameters: yoyo_fusion knows no parameter centre" in out
    assert "1 error: the merge would fail, or not be what the file says" in out.splitlines()[-1]
    status, out, _ = command(recipe([*ABC, "./rope"], "base_model: ./a\n"))
    assert status == 0
    assert "\nwarning: rope_parameters.rope_theta differs" in out
    assert out.splitlines()[-1].endswith("look at the warnings first")


@pytest.mark.parametrize("text", ["models: [", "merge_method: linear\n"])
def test_an_unreadable_file_is_a_usage_error(
    command: Callable[..., tuple[int, str, str]], text: str
) -> None:
    status, out, err = command(text)
    assert status == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert "merge.yml: mergekit would not accept this merge YAML" in err


def test_names_of_the_hub_offline(place: Path, tmp_path: Path) -> None:
    texts = {"like": recipe(["a", "./b", "./c"]), "unknown": recipe(["nobody/nothing", *ABC])}
    files = [tmp_path / f"{name}.yml" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    like, unknown = run(*files, cwd=place, HF_HOME=str(tmp_path / "hub"))
    assert like[0] == unknown[0] == 1
    assert "error: a: mergekit takes this path for a Hub name" in like[1]
    assert "Write ./a." in like[1]
    assert "nobody/nothing: neither a folder" in unknown[1]
    failed = run_mergekit({tmp_path / name: text for name, text in texts.items()}, place)
    assert "OfflineModeIsEnabled" in failed[tmp_path / "like"]
    assert failed[tmp_path / "unknown"]


def test_quick_downloads_small_files_only(place: Path, tmp_path: Path) -> None:
    (tmp_path / "merge.yml").write_text(recipe(["tiny/moe", *ABC]))
    with serve(place / "wide") as (address, requests):
        ((status, out),) = run(
            f"--quick {tmp_path / 'merge.yml'}",
            cwd=place,
            HF_HUB_OFFLINE="0",
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "hub"),
        )
    assert f"{UP} is [50, 32] in tiny/moe, [48, 32] in ./a" in out
    assert status == 1
    cached = {file.name for file in (tmp_path / "hub").rglob("*") if file.is_file()}
    assert "config.json" in cached
    assert "model.safetensors" not in cached
    assert requests


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system without room")
def test_a_full_disk(look: Callable[..., Inspection]) -> None:
    seen = look(recipe(ABC), quick=True, output=Path("/proc/merged"))
    (text,) = seen.of_level("error")
    assert text.startswith("disk: the merge ")
    assert "0 B free in /proc. Free some space." in text


def test_a_disk_for_the_merge_and_not_for_finishing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit packs experts, finishing stores them as the inputs do: the merge is there twice."""
    from finish_fixtures import write_checkpoint

    from mergekit_yoyo.inspection import inspect, resources

    room = 700_000
    monkeypatch.setattr(
        resources.shutil, "disk_usage", lambda _: resources.shutil._ntuple_diskusage(9, 9, room)
    )
    told = {}
    for family in ("qwen3", "qwen3_moe"):
        models = [write_checkpoint(tmp_path / f"{family}-{k}", family, seed=k) for k in range(2)]
        size = sum(path.stat().st_size for path in models[0].glob("*.safetensors"))
        room = size * 3 // 2
        file = tmp_path / "merge.yml"
        file.write_text(recipe([str(model) for model in models]))
        seen = inspect(file, quick=True, output=tmp_path / "merged")
        told[family] = [text for text in seen.of_level("warning") if text.startswith("disk:")]
    assert told["qwen3"] == []
    assert "once more" in told["qwen3_moe"][0]


@pytest.mark.parametrize(("first", "end"), [(0, 7), (5, 60)])
def test_layers_that_a_model_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, end: int
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    listed = ", ".join(
        f"{{model: ./examples/experts/{x}, layer_range: [{first}, {end}]}}"
        for x in ("code", "german")
    )
    file = tmp_path / "merge.yml"
    file.write_text(f"merge_method: yoyo_fusion\nslices:\n- sources: [{listed}]\ndtype: bfloat16\n")
    result = CliRunner().invoke(main, ["inspect", "--quick", str(file)])
    assert result.exit_code == 1, result.output
    assert (
        f"layer_range [{first}, {end}] of ./examples/experts/code, which has 6 layers"
        in " ".join(result.output.split())
    )
