"""The one statistics of a record: against literal float64 sums, and alike in all that shows it."""

import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from finish_fixtures import run_mergekit, write_checkpoint
from method_fixtures import fine_tune, recipe, tensors_of
from report_fixtures import tensor_line

from mergekit_yoyo.finish import plan_finish
from mergekit_yoyo.record.quantities import (
    DISTANCE,
    RECALLED,
    SIZE,
    WEIGHT,
    number,
    totals,
)
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.record.schema import TensorLine
from mergekit_yoyo.record.statistics import (
    cosines,
    gaps,
    models_of,
    residual_cosines,
    statistics_of,
)

MODELS = ["a", "b", "c", "d"]


# --- against the vectors --------------------------------------------------------------------------

# tensor -> its models and elements per problem, of two problems where it is packed
TENSORS = {
    "model.layers.0.q.weight": ("abcd", 40, 1),
    "model.layers.1.mlp.experts.down_proj": ("abd", 9, 2),
    "model.layers.1.norm.weight": ("ca", 7, 1),
}


@pytest.fixture(scope="module")
def inputs() -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """The inputs of each problem by model; `d` is four times as large."""
    random = np.random.default_rng(3)
    return {
        (name, problem): {
            model: random.normal(size=size) * (4.0 if model == "d" else 1.0) for model in models
        }
        for name, (models, size, problems) in TENSORS.items()
        for problem in range(problems)
    }


def units(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {model: x / math.sqrt((x**2).mean()) for model, x in vectors.items()}


def residuals(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    center = np.median(list(units(vectors).values()), axis=0)
    return {model: u - center for model, u in units(vectors).items()}


@pytest.fixture(scope="module")
def lines(inputs: dict[tuple[str, int], dict[str, np.ndarray]]) -> list[TensorLine]:
    """The record of those inputs, whose weights and recall tell models and problems apart."""
    made = []
    for name, (models, size, problems) in TENSORS.items():
        rows: dict[str, list[list[float]]] = {
            field: [] for field in ("norms", "residual_norms", "cosines", "weights", "recalled")
        }
        for problem in range(problems):
            vectors = inputs[name, problem]
            apart = list(residuals(vectors).values())
            lengths = [float(np.linalg.norm(r)) for r in apart]
            rows["norms"].append([float(np.linalg.norm(x)) for x in vectors.values()])
            rows["residual_norms"].append(lengths)
            rows["cosines"].append(
                [
                    float(apart[i] @ apart[j]) / (lengths[i] * lengths[j])
                    for i in range(len(models))
                    for j in range(i + 1, len(models))
                ]
            )
            rows["weights"].append([0.2 * "abcd".index(m) + 0.1 * problem for m in models])
            rows["recalled"].append([0.1 * "abcd".index(m) + 0.3 * problem for m in models])
        shape = [problems, size] if problems > 1 else [size]
        made.append(
            tensor_line(
                name,
                shape,
                list(models),
                np.random.default_rng(0),
                problems=problems,
                inputs=list(models),
                **rows,
            )
        )
    return made


def test_means_distances_and_sizes_are_those_of_the_vectors(inputs, lines):
    found = totals(statistics_of(lines, MODELS), 4)
    for i, model in enumerate(MODELS):
        elements = weight = recalled = square = log_size = 0.0
        for (_, problem), vectors in inputs.items():
            if model not in vectors:
                continue
            size = len(vectors[model])
            elements += size
            weight += size * (0.2 * i + 0.1 * problem)
            recalled += size * (0.1 * i + 0.3 * problem)
            square += float((residuals(vectors)[model] ** 2).sum())
            others = [math.log(np.linalg.norm(x)) for m, x in vectors.items() if m != model]
            log_size += size * (math.log(np.linalg.norm(vectors[model])) - median(others))
        assert found[WEIGHT][i] == pytest.approx(weight / elements, rel=1e-12)
        assert found[RECALLED][i] == pytest.approx(recalled / elements, rel=1e-12)
        assert found[DISTANCE][i] == pytest.approx(math.sqrt(square / elements), rel=1e-9)
        assert found[SIZE][i] == pytest.approx(math.exp(log_size / elements), rel=1e-9)


def test_gaps_and_cosines_are_those_of_the_vectors_put_end_to_end(inputs, lines):
    tensors = statistics_of(lines, MODELS)
    found = (gaps(tensors, 4), cosines(tensors, 4), residual_cosines(tensors, 4))
    for (i, one), (j, other) in product(enumerate(MODELS), repeat=2):
        both = [vectors for vectors in inputs.values() if one in vectors and other in vectors]
        u, v = (np.concatenate([units(x)[m] for x in both]) for m in (one, other))
        r, s = (np.concatenate([residuals(x)[m] for x in both]) for m in (one, other))
        lengths = np.linalg.norm(r) * np.linalg.norm(s)
        expected = (
            math.sqrt(((u - v) ** 2).mean()),
            u @ v / (np.linalg.norm(u) * np.linalg.norm(v)),
            r @ s / lengths,
        )
        for matrix, value in zip(found, expected, strict=True):
            assert matrix[i, j] == pytest.approx(value, rel=1e-9, abs=1e-9), (one, other)


def test_models_that_never_meet_and_zeros_have_no_numbers():
    random = np.random.default_rng(0)
    zero = {"norms": [[0.0, 1.0]], "residual_norms": [[0.0, 8.0]], "cosines": [[None]]}
    lines = [
        tensor_line("x", [64], ["a", "b"], random, inputs=["a", "b"]),
        tensor_line("y", [64], ["c", "d"], random, inputs=["c", "d"], **zero),
    ]
    tensors = statistics_of(lines, MODELS)
    apart = [(0, 2), (0, 3), (1, 2), (1, 3)]
    for matrix in (gaps(tensors, 4), cosines(tensors, 4), residual_cosines(tensors, 4)):
        assert all(np.isnan(matrix[i, j]) and np.isnan(matrix[j, i]) for i, j in apart)
    assert np.isnan(residual_cosines(tensors, 4)[2, 3])  # c is the center
    assert gaps(tensors, 4)[2, 3] == pytest.approx(1.0)
    assert np.isnan(SIZE.over(tensors, 4)).tolist() == [False, False, True, True]
    assert RECALLED not in totals(tensors, 4)


# --- one merge, every way to look at it -----------------------------------------------------------

SCALES = {"a": 1, "b": 2, "c": 4, "d": 8}
MERGES = {
    "tukey": recipe([f"./{m}" for m in SCALES], "dtype: float32\n"),
    "recall": recipe(
        [f"./{m}" for m in SCALES],
        "base_model: ./a\ndtype: float32\n",
        consensus="recall",
        center="anchor",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four fine-tunes whose norms are 1:2:4:8, and two merges of them with their records."""
    folder = tmp_path_factory.mktemp("statistics")
    write_checkpoint(folder / "base", "qwen3_moe")
    for seed, (name, scale) in enumerate(SCALES.items()):
        fine_tune(
            folder / "base",
            folder / name,
            seed,
            change=lambda tensors, scale=scale: {n: scale * t for n, t in tensors.items()},
        )
    jobs = {}
    for name, text in MERGES.items():
        record = folder / f"{name}.jsonl"
        jobs[folder / name] = text.replace("parameters: {", f'parameters: {{"report": "{record}", ')
    failed = run_mergekit(jobs, folder)
    assert not any(failed.values()), failed
    return folder


def shown(*arguments: object) -> str:
    """What a command prints, in a process of its own: others may have met models of these names."""
    command = [sys.executable, "-m", "mergekit_yoyo", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def inspected(out: str, row: str) -> list[str]:
    """The cells of a row of `inspect`'s table."""
    (line,) = [x for x in out.splitlines() if re.match(rf"{row}  +\S", x)]
    return re.split(r" {2,}", line.strip())[1:]


def reported(out: str) -> dict[str, list[str]]:
    """The cells of the first table of `report`, by its headings."""
    lines = out.splitlines()
    start = next(k for k, x in enumerate(lines) if re.match(r" model +weight ", x))
    heads = re.split(r" {2,}", lines[start].strip())
    rows = [re.split(r" {2,}", x.strip()) for x in lines[start + 2 : start + 2 + len(SCALES)]]
    assert [row[0] for row in rows] == list(SCALES)
    return {head: [row[k] for row in rows] for k, head in enumerate(heads)}


@pytest.mark.parametrize("name", MERGES)
def test_inspect_report_and_the_card_say_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(place)
    before = shown("inspect", f"{name}.yml")
    after = shown("report", f"{name}.jsonl")
    table = reported(after)
    table["weight"] = [cell.split()[0] for cell in table["weight"]]  # without the bars
    record = read_record(place / f"{name}.jsonl")
    expected = totals(statistics_of(record.tensors, models_of(record)), 4)
    for quantity, values in expected.items():
        assert table[quantity.title] == [quantity.text(x) for x in values.tolist()]
        if quantity != DISTANCE:
            assert inspected(before, quantity.title) == table[quantity.title]
    for percent, distance in zip(inspected(before, "all"), expected[DISTANCE], strict=True):
        assert float(percent) == pytest.approx(100 * distance, abs=0.006)
    assert (RECALLED in expected) == ("recalled" in table) == (name == "recall")
    if name == "recall":
        (said,) = re.findall(r"^Recall: .*", before, re.M)
        assert said in after
        assert table["weight"][0] == "-"
    assert table["size"] == [number(x) for x in reference_sizes(place)]

    warned = {
        model: f"{size:.3g} times as large as the others'"
        for model, size in zip(SCALES, reference_sizes(place), strict=True)
        if not 0.5 <= size <= 2
    }
    assert {"a", "d"} <= warned.keys()
    joined = " ".join(after.split())
    for model, text in warned.items():
        assert f"warning: The weights of ./{model} are {text}" in before
        assert f"Warning: The weights of {model} are {text}" in joined
    assert before.count("times as large") == joined.count("times as large") == len(warned)

    card = plan_finish(place / name).files["README.md"].decode()
    for model, value in zip(SCALES, expected[WEIGHT].tolist(), strict=True):
        (row,) = re.findall(rf"^\| `{model}` .*", card, re.M)
        assert row.split("|")[3].strip() == ("" if math.isnan(value) else f"{value:.2f}")


def reference_sizes(place: Path) -> list[float]:
    """Each model's size from its own tensors: experts, and gate and up of each, one by one."""
    tensors = {model: tensors_of(place / model) for model in SCALES}
    sizes = []
    for model in SCALES:
        total = elements = 0.0
        for name, tensor in tensors[model].items():
            norms = {
                m: math.log(float(torch.linalg.norm(tensors[m][name].double()))) for m in SCALES
            }
            middle = median(value for m, value in norms.items() if m != model)
            total += tensor.numel() * (norms[model] - middle)
            elements += tensor.numel()
        sizes.append(math.exp(total / elements))
    return sizes
