"""`mergekit-yoyo report`: records read back, the summary and the comparison against independent
computations, the picture, errors."""

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread
from method_fixtures import mergekit
from report_fixtures import header, small_lines, tensor_line, write_record

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.record.quantities import DISTANCE, RECALLED, WEIGHT
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.record.schema import Finding
from mergekit_yoyo.report import colors, compare_records, render_picture, summarize
from mergekit_yoyo.report.colors import (
    DISTANCE_CHANGES,
    WEIGHT_CHANGES,
    WEIGHTS,
    Palette,
    readable_on,
    shade,
)
from mergekit_yoyo.report.maps import summary_maps
from mergekit_yoyo.report.scales import stretched
from mergekit_yoyo.report.summary import ranges
from mergekit_yoyo.report.verdict import verdict

MODELS = ["./experts/code", "./experts/german", "./experts/manual", "./broken"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Three models and a broken fourth, 14 tensors, in 3 layers, with 4 experts."""
    lines = small_lines(MODELS, broken="./broken")
    return write_record(tmp_path / "record.jsonl", header(MODELS, tensors=len(lines)), lines)


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def raw(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


# --- reading --------------------------------------------------------------------------------------


def test_a_record_is_read_back(record):
    read = read_record(record)
    assert [tensor.name for tensor in read.tensors] == [line["name"] for line in raw(record)]
    assert read.tensors[0].inputs == MODELS
    assert (read.truncated, read.missing) == (False, 0)


def test_a_last_line_cut_off_is_left_out_and_told(record):
    text = record.read_bytes()
    record.write_bytes(text[:-40])
    read = read_record(record)
    assert read.truncated
    assert (len(read.tensors), read.missing) == (13, 1)
    out = report(record).output
    assert "Warning: The merge did not finish: 13 of 14 tensors are recorded." in out
    assert "cut off by a crash" in out
    # whole lines, but fewer than planned
    record.write_bytes(b"".join(text.splitlines(keepends=True)[:5]))
    read = read_record(record)
    assert (read.truncated, read.missing) == (False, 10)
    # the line itself was complete, only its newline is missing
    record.write_bytes(text[:-1])
    assert (read_record(record).truncated, read_record(record).missing) == (False, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [*lines[:2], lines[2][:30] + "\n", *lines[3:]],
            "line 3: not a line of a record",
        ),
        (lambda lines: [*lines, lines[-1]], r"line 16: model.layers.2.mlp.*down_proj is there twi"),
        (
            lambda lines: [*lines, '{"line": "tensor", "nam": 1}\n'],
            "line 16: not a line.*name: Field req",
        ),
        (
            lambda lines: [*lines, '{"line": "tensor", "nam": 1}'],
            "line 16: .*nam: no such field. Did you mean name",
        ),
        (
            lambda lines: [*lines[:2], lines[2].replace('"norms":[[', '"norms":[[1.0,')],
            "line 3: model.norm.weight: expected 1 x 4 norms",
        ),
        (
            lambda lines: [*lines[:2], lines[2].replace('"iterations":[', '"iterations":[3,')],
            "line 3: model.norm.weight: expected 1 iterations",
        ),
        (lambda lines: lines[1:], "not the record of a merge: its first line is no header"),
        (lambda _: ["hello\n"], "not the record of a merge"),
        (lambda _: [], "not the record of a merge"),
        (
            lambda lines: [lines[0].replace('"schema_version":1', '"schema_version":2')],
            r"schema version 2, written by mergekit-yoyo 0.1.0; this one reads version 1. Use",
        ),
    ],
)
def test_what_is_no_record_is_told_with_its_line(record, change, message):
    record.write_text("".join(change(record.read_text().splitlines(keepends=True))))
    with pytest.raises(YoyoError, match=message) as error:
        read_record(record)
    assert str(record) in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    result = report(tmp_path / "none.jsonl")
    assert result.exit_code == 2
    assert "cannot be read (No such file or directory)" in result.output
    assert "parameters: {report:" in result.output


# --- the summary ----------------------------------------------------------------------------------


def test_totals_are_those_of_the_lines(record):
    summary = summarize(read_record(record))
    elements = dict.fromkeys(MODELS, 0.0)
    weight, square, rejected, problems = (dict(elements) for _ in range(4))
    for line in raw(record):
        count = len(line["weights"])
        size = np.prod(line["shape"]) / count
        for problem in range(count):
            for k, model in enumerate(MODELS):
                elements[model] += size
                weight[model] += size * line["weights"][problem][k]
                # (||R|| / sqrt(D))^2, D times
                square[model] += line["residual_norms"][problem][k] ** 2
                rejected[model] += line["weights"][problem][k] < 1e-3
                problems[model] += 1
    for model in summary.models:
        name = model.name
        assert model.weight == pytest.approx(weight[name] / elements[name], rel=1e-12)
        distance = model.totals[DISTANCE]
        assert distance == pytest.approx((square[name] / elements[name]) ** 0.5, rel=1e-12)
        assert (model.rejected, model.problems) == (rejected[name], problems[name])
    assert summary.models[3].rejected > 20
    assert [model.short for model in summary.models] == ["code", "german", "manual", "broken"]


def test_distances_between_models_are_those_of_their_vectors(tmp_path):
    """From real vectors: the record's norms and cosines give back |u_i - u_j| over all tensors."""
    random = np.random.default_rng(5)
    lines, squares, elements = [], np.zeros((3, 3)), 0
    for name, size in (("model.layers.0.a.weight", 40), ("model.layers.1.a.weight", 7)):
        inputs = random.normal(size=(3, size))
        units = inputs / np.sqrt((inputs**2).mean(1, keepdims=True))
        residuals = units - np.median(units, axis=0)
        lengths = np.linalg.norm(residuals, axis=1)
        cosines = [residuals[i] @ residuals[j] / lengths[i] / lengths[j] for i, j in PAIRS]
        squares += ((units[:, None] - units[None]) ** 2).sum(2)
        elements += size
        made = {"residual_norms": [lengths.tolist()], "cosines": [cosines]}
        lines.append(tensor_line(name, [size], MODELS[:3], random, **made))
    path = write_record(tmp_path / "r.jsonl", header(MODELS[:3]), lines)
    gaps = summarize(read_record(path)).gaps
    np.testing.assert_allclose(gaps, np.sqrt(squares / elements), rtol=1e-9, atol=1e-12)


PAIRS = [(0, 1), (0, 2), (1, 2)]


def test_layers_followed_and_ignored(tmp_path):
    random = np.random.default_rng(0)
    levels = {0: 0.9, 1: 0.8, 2: 0.3, 3: 0.0005, 4: 0.05, 5: 0.9}
    lines = []
    for layer, level in levels.items():
        for kind, size, weight in (("q_proj", 90, level), ("norm", 10, 1.0)):
            name = f"model.layers.{layer}.{kind}.weight"
            weights = {"weights": [[1.0, weight]]}
            lines.append(tensor_line(name, [size], ["a", "b"], random, **weights))
    summary = summarize(read_record(write_record(tmp_path / "r", header(["a", "b"]), lines)))
    b = summary.models[1]
    assert b.layer_weights[2] == pytest.approx(0.9 * 0.3 + 0.1 * 1.0)
    assert b.followed == [0, 1, 5]
    assert b.ignored == []
    for line in lines:
        weights = line.weights[0] if "q_proj" in line.name else [1.0, 0.0]
        line.weights[0][1] = weights[1]
    summary = summarize(read_record(write_record(tmp_path / "r", header(["a", "b"]), lines)))
    assert summary.models[1].ignored == [3, 4]
    assert ranges([0, 1, 5]) == "0\N{EN DASH}1, 5"


def test_contested_is_what_the_trusted_inputs_differ_in(tmp_path):
    """A broken input that nobody listens to makes no tensor contested."""
    random = np.random.default_rng(0)
    models = ["a", "b", "c"]

    def line(name: str, distances: list[float], weights: list[float]):
        lengths = [distance * 8.0 for distance in distances]  # of 64 elements
        fields = {"residual_norms": [lengths], "weights": [weights]}
        return tensor_line(name, [64], models, random, **fields)

    lines = [
        line("calm", [0.1, 0.1, 0.1], [1, 1, 1]),
        line("broken", [0.1, 0.1, 9.0], [1, 1, 0]),
        line("contested", [0.4, 0.4, 0.5], [0.9, 0.9, 0.6]),
    ]
    summary = summarize(read_record(write_record(tmp_path / "r", header(models), lines)))
    assert summary.contested[0].line.name == "contested"
    found = {tensor.line.name: tensor.disagreement for tensor in summary.contested}
    assert found["calm"] == pytest.approx(0.1)
    assert found["broken"] == pytest.approx(0.1)
    expected = ((0.9 * 0.16 + 0.9 * 0.16 + 0.6 * 0.25) / 2.4) ** 0.5
    assert found["contested"] == pytest.approx(expected)


def test_warnings_are_added_up(tmp_path):
    lines = small_lines(MODELS, broken="./broken")
    odd = Finding(kind="not_converged")
    lines[0] = lines[0].model_copy(update={"warnings": [odd, *lines[0].warnings]})
    # the fourth model is a hundred times as large
    lines = [
        line.model_copy(update={"norms": [[*row[:3], row[3] * 100] for row in line.norms]})
        for line in lines
    ]
    path = write_record(tmp_path / "r.jsonl", header(MODELS), lines)
    whole = part = 0
    for line in raw(path):
        hits = [row[3] < 1e-3 for row in line["weights"]]
        whole += all(hits)
        part += any(hits) and not all(hits)
    assert part > 2
    warnings = summarize(read_record(path)).warnings
    assert warnings[0] == f"broken was rejected in {whole} of 14 tensors."
    assert warnings[1] == f"broken was rejected in some experts of {part} of 14 tensors."
    assert re.match(
        r"The weights of broken are (9|10)\d(\.\d)? times as large.*median", warnings[2]
    )
    assert warnings[3] == "The center did not converge in 1 of 14 tensors."
    assert len(warnings) == 4


def test_tensors_of_one_input_and_of_other_models(tmp_path):
    """A stack of slices: some tensors pass through, others are made of other models."""
    random = np.random.default_rng(0)
    alone = {"norms": [], "cosines": [], "residual_norms": [], "weights": []}
    alone |= {"center_weights": None, "rank": None, "energy": None, "energy_scale": None}
    alone |= {"iterations": [], "inputs": ["a"]}
    lines = [
        tensor_line("model.layers.0.q.weight", [8], ["a", "b"], random, inputs=["a", "b"]),
        tensor_line("model.layers.1.q.weight", [8], ["c", "b"], random, inputs=["c", "b"]),
        tensor_line("model.layers.2.q.weight", [8], ["a", "b"], random, **alone),
    ]
    path = write_record(tmp_path / "r.jsonl", header(["a", "b"]), lines)
    summary = summarize(read_record(path))
    assert [model.name for model in summary.models] == ["a", "b", "c"]
    assert [model.problems for model in summary.models] == [1, 2, 1]
    assert summary.passed == 1
    values = summary.weights.values[:, 0]
    assert np.isnan(values).tolist() == [
        [False, True, True],
        [False, False, True],
        [True, False, True],
    ]
    assert "1 passed through" in report(path).output
    write_record(path, header(["a", "b"]), lines[2:])  # nothing was merged at all
    assert re.search(r"^ a +- +not weighed *$", report(path).output, re.M)


def test_an_anchor_of_recall_is_not_weighed_and_recall_is_averaged(tmp_path):
    models = ["./a", "./b", "./base"]
    lines = [
        line.model_copy(
            update={
                "consensus": "recall",
                "weights": [[*row[:2], None] for row in line.weights],
                "recalled": [[0.5 + 0.1 * i, 1.2, None] for i in range(len(line.weights))],
                "strength": [1.0 + 0.25 * (line.name == "model.norm.weight")] * len(line.weights),
                "condition_number": [None if line.name == "model.norm.weight" else 1234.0]
                * len(line.weights),
                "warnings": [],
            }
        )
        for line in small_lines(models)
    ]
    head = header(models, base="./base", parameters={"center": "anchor", "consensus": "recall"})
    path = write_record(tmp_path / "r.jsonl", head, lines)
    a, b, base = summarize(read_record(path)).models
    added, elements = 0.0, 0.0
    for line in raw(path):
        size = np.prod(line["shape"]) / len(line["weights"])
        added += size * sum(row[0] for row in line["recalled"])
        elements += np.prod(line["shape"])
    assert a.totals[RECALLED] == pytest.approx(added / elements)
    assert b.totals[RECALLED] == pytest.approx(1.2)
    said = "Recall: strength 1.00 to 1.25, condition numbers below 1,234."
    assert said in report(path).output
    page = tmp_path / "page.html"
    assert report(path, "--html", page).exit_code == 0
    assert said in page.read_text()
    assert (base.problems, np.isnan(base.weight), base.layer_weights) == (0, True, {})
    assert re.search(r" base +- +not weighed ", report(path).output)


def test_terminal_fits_80_columns_and_says_it(record):
    result = report(record)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    summary = summarize(read_record(record))
    for model in summary.models:
        pattern = rf" {model.short} +{model.weight:.3f} .*{model.rejected} of {model.problems}"
        assert re.search(pattern, result.output)
    layer, kind = summary.contested[0].place
    assert f" {kind if layer is None else f'{layer} {kind}'} " in result.output


def test_long_names_get_numbers_that_the_first_table_explains(tmp_path):
    models = [f"org/model-{i}-with-a-name-that-fills-a-line-by-itself" for i in range(6)]
    path = write_record(tmp_path / "r.jsonl", header(models), small_lines(models))
    halved = [
        line.model_copy(update={"weights": [[w / 2 for w in row] for row in line.weights]})
        for line in small_lines(models)
    ]
    other = write_record(tmp_path / "halved.jsonl", header(models), halved)
    for arguments in ((path,), (path, other)):
        output = report(*arguments).output
        assert max(map(len, output.splitlines())) <= 80
        assert all(re.search(rf" \[{i}\].*\s+model-{i - 1}", output) for i in range(1, 7))
        assert re.search(r" \[1\] +\[2\] +\[3\] +\[4\]", output)
    layer, kind = summarize(read_record(path)).contested[0].place
    assert f" {kind if layer is None else f'{layer} {kind}'} " in report(path).output


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ([0.9, 0.8, 0.95], "The merge follows all 3 models (mean weight 0.80 to 0.95) and rejects "
         "nothing."),
        ([0.9, 0.8, 0.0], "The merge follows code and german (mean weight 0.80 to 0.90) and leaves "
         "out manual (rejected in all 2 places)."),
        ([0.9, 0.3, 0.05], "The merge follows code (mean weight 0.90), hardly follows german "
         "(0.300) and leaves out manual (mean weight 0.050)."),
        ([0.9, None, 0.8], "The merge follows both models (mean weight 0.80 to 0.90) and rejects "
         "nothing."),
    ],
)  # fmt: skip
def test_the_verdict_says_whom_the_merge_follows(tmp_path, levels, sentence):
    random = np.random.default_rng(0)
    models = MODELS[:3]
    found = [
        Finding(kind="rejected", model=m) for m, x in zip(models, levels, strict=True) if x == 0
    ]
    lines = [
        tensor_line(name, [8], models, random, weights=[levels], warnings=found)
        for name in ("model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight")
    ]
    path = write_record(tmp_path / "r.jsonl", header(models), lines)
    assert verdict(summarize(read_record(path))) == sentence
    assert sentence.split(" (")[0] in report(path).output


def test_rows_are_in_the_models_order_on_every_map(tmp_path):
    """As the model computes them, whatever the order of the record."""
    layer = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.k_proj.bias",
             "self_attn.v_proj", "self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj",
             "post_attention_layernorm", "mlp.gate", "mlp.experts.gate_up_proj",
             "mlp.experts.down_proj", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj",
             "mlp.shared_expert.down_proj", "unheard_of"]  # fmt: skip
    outside = ["embed_tokens", "norm", "lm_head"]
    names = [f"model.layers.{n}.{kind}.weight" for n in range(2) for kind in layer]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    random = np.random.default_rng(0)
    lines = [tensor_line(name, [8], ["a", "b"], random) for name in sorted(names)]
    summary = summarize(read_record(write_record(tmp_path / "r", header(["a", "b"]), lines)))
    for each in summary_maps(summary):
        assert (each.grid.kinds, each.grid.outside, each.grid.before) == (layer, outside, 1)
    kinds = [tensor.place.kind for tensor in summary.tensors]
    assert kinds == [outside[0], *layer, *layer, *outside[1:]]


# --- two records ----------------------------------------------------------------------------------


def test_comparison_is_that_of_the_lines(tmp_path):
    moved = "model.layers.1.mlp.experts.down_proj"

    def lowered(line, problem, amount):
        weights = [list(row) for row in line.weights]
        if line.name == moved:
            weights[problem][0] -= amount
        return line.model_copy(update={"weights": weights})

    first = [lowered(line, 3, 0.2) for line in small_lines(MODELS, broken="./broken")]
    a = write_record(tmp_path / "a.jsonl", header(MODELS), first)
    # the same inputs in another order, one weight moved, one option changed, one tensor more
    lines, order = [], [2, 0, 1, 3]
    for line in small_lines(MODELS, broken="./broken"):
        weights = lowered(line, 1, 0.4).weights
        cosines = [[0.0] * 6] * len(weights)  # play no part here
        changed = {"weights": weights, "norms": line.norms, "residual_norms": line.residual_norms}
        changed["center_weights"] = line.center_weights
        changed = {key: [[row[i] for i in order] for row in rows] for key, rows in changed.items()}
        lines.append(line.model_copy(update={**changed, "cosines": cosines}))
    lines.append(
        tensor_line("lm_head.weight", [8], [MODELS[i] for i in order], np.random.default_rng(1))
    )
    head = header(
        [MODELS[i] for i in order],
        parameters={"center": "coordinate_median", "rescale": "mean", "tukey_c": 4.685},
    )
    b = write_record(tmp_path / "b.jsonl", head, lines)

    comparison = compare_records(read_record(a), read_record(b))
    assert [(o.name, o.a, o.b, o.tensors) for o in comparison.options] == [
        ("center", "geometric_median", "coordinate_median", 14)
    ]
    (only,) = comparison.largest
    assert only.name == moved
    np.testing.assert_allclose(only.change, [-0.05, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(only.size, [0.15, 0, 0, 0], atol=1e-9)
    elements = {line["name"]: np.prod(line["shape"]) for line in raw(a)}
    code = comparison.models[0]
    assert code.b - code.a == pytest.approx(-0.05 * elements[moved] / sum(elements.values()))
    assert code.change == pytest.approx(0.15 * elements[moved] / sum(elements.values()))
    assert list(comparison.moves) == [WEIGHT]
    move = comparison.moves[WEIGHT]
    assert move.kinds["mlp.experts.down_proj"][0] == pytest.approx(-0.05 / 3)
    layer = sum(size for name, size in elements.items() if ".layers.1." in name)
    assert move.layers[1][0] == pytest.approx(-0.05 * elements[moved] / layer)
    assert move.layers[0][0] == pytest.approx(0)
    assert comparison.warnings == ["only in B: lm_head.weight."]

    result = report(a, b)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert re.search(r"center +geometric_median +coordinate_median +14", result.output)
    assert re.search(r"down_proj +-0\.050 +\+0\.000", result.output)
    assert "Warning: only in B: lm_head.weight." in result.output


def test_two_recalls_differ_in_what_they_give_back_while_no_weight_does(tmp_path):
    models, order = ["./a", "./b", "./c"], [2, 0, 1]

    def recalls(name: str, order: list[int], factor: float) -> Path:
        lines = [
            line.model_copy(
                update={
                    "inputs": [models[i] for i in order],
                    "consensus": "recall",
                    "recalled": [
                        [factor * (0.1 * i + 0.2 * line.name.startswith("model.e")) for i in order]
                    ]
                    * len(line.weights),
                    **{
                        field: [[row[i] for i in order] for row in getattr(line, field)]
                        for field in ("weights", "norms", "residual_norms", "center_weights")
                    },
                    "cosines": [[0.0] * 3] * len(line.weights),
                    "warnings": [],
                }
            )
            for line in small_lines(models)
        ]
        head = header([models[i] for i in order], parameters={"recall_strength": factor})
        return write_record(tmp_path / name, head, lines)

    a, b = recalls("a.jsonl", [0, 1, 2], 1.0), recalls("b.jsonl", order, 3.0)
    sizes = {line["name"]: np.prod(line["shape"]) for line in raw(a)}
    share = sizes["model.embed_tokens.weight"] / sum(sizes.values())
    found = compare_records(read_record(a), read_record(b)).models
    for i, model in enumerate(found):
        assert model.recalled_a == pytest.approx(0.1 * i + 0.2 * share)
        assert model.recalled_b == pytest.approx(3 * model.recalled_a)
    shown = report(a, b).output
    assert max(map(len, shown.splitlines())) <= 80
    for model in found:
        numbers = rf"{model.recalled_a:.3f} +{model.recalled_b:.3f}"
        assert re.search(rf" {model.short} .* 0\.000 +0 +0 +{numbers} ", shown)
    assert shown.rstrip().endswith("no weight differs beyond the record's six digits")
    assert "mean change of the weight" not in shown
    assert "mean change of the share recalled by module kind" in shown


def test_only_merges_of_the_same_inputs_are_compared(record, tmp_path):
    names = [*MODELS[:3], "./other"]
    other = write_record(tmp_path / "other.jsonl", header(names), small_lines(names))
    result = report(record, other)
    assert result.exit_code == 2
    assert "not merges of the same inputs" in result.output
    assert "./other" in result.output

    lines = small_lines(MODELS, broken="./broken")
    norms = [[*lines[1].norms[0][:2], lines[1].norms[0][2] * 1.001, lines[1].norms[0][3]]]
    lines[1] = lines[1].model_copy(update={"norms": norms})
    write_record(other, header(MODELS), lines)
    result = report(record, other)
    assert result.exit_code == 2
    assert "model.norm.weight: ./experts/manual has norm" in result.output
    assert "not merges of the same inputs" in result.output

    write_record(other, header(MODELS), small_lines(MODELS, seed=0)[:0])
    assert "have no tensor in common" in report(record, other).output


def moved_apart(tmp_path: Path) -> tuple[Path, Path]:
    """Two records of the same inputs: B has another center in layer 1, and a weight less."""
    yaml = "merge_method: yoyo_fusion\nparameters:\n  report: {}\n  tukey_c: {}"
    lines = small_lines(MODELS[:3])
    head = header(MODELS[:3], yaml=yaml.format("a.jsonl", 4.685))
    a = write_record(tmp_path / "a.jsonl", head, lines)
    moved = []
    for line in lines:
        far = 1.5 if ".layers.1." in line.name else 1.0
        rows = [[row[0], row[1] * far, row[2]] for row in line.residual_norms]
        less = 0.3 if line.name == "model.norm.weight" else 0.0
        weights = [[row[0], row[1], row[2] - less] for row in line.weights]
        moved.append(line.model_copy(update={"residual_norms": rows, "weights": weights}))
    parameters = {"center": "geometric_median", "rescale": "mean", "tukey_c": 3.0}
    head = header(MODELS[:3], yaml=yaml.format("b.jsonl", 3.0), parameters=parameters)
    return a, write_record(tmp_path / "b.jsonl", head, moved)


def test_distances_that_changed_are_compared_by_kind_and_layer(tmp_path):
    a, b = moved_apart(tmp_path)
    comparison = compare_records(read_record(a), read_record(b))
    assert list(comparison.moves) == [WEIGHT, DISTANCE]
    square, elements = {}, {}
    for side, path in enumerate((a, b)):
        for line in raw(path):
            layer = "1" if ".layers.1." in line["name"] else "else"
            for key in (layer, "q_proj" if "q_proj" in line["name"] else "other kinds"):
                total = sum(row[1] ** 2 for row in line["residual_norms"])
                square[key, side] = square.get((key, side), 0.0) + total
                elements[key, side] = elements.get((key, side), 0) + np.prod(line["shape"])
    distance = {key: (square[key] / elements[key]) ** 0.5 for key in square}
    move = comparison.moves[DISTANCE]
    change = distance["1", 1] - distance["1", 0]
    assert change > 0.01
    assert move.layers[1][1] == pytest.approx(change)
    assert move.layers[0].tolist() == [0, 0, 0]
    change = distance["q_proj", 1] - distance["q_proj", 0]
    assert move.kinds["self_attn.q_proj"][1] == pytest.approx(change)
    shown = report(a, b).output
    assert max(map(len, shown.splitlines())) <= 80
    points = f"{100 * change:+.2f}"
    assert re.search(rf"self_attn.q_proj +\+0.00 +{re.escape(points)} +\+0.00", shown)
    assert "-   tukey_c: 4.685\n+   tukey_c: 3.0\n" in shown
    assert "report:" not in shown


def test_yamls_are_compared_line_by_line_up_to_a_length(tmp_path):
    """Records may come from anywhere; no two YAMLs keep the report busy for long."""
    lines = small_lines(MODELS[:3], layers=1)
    records = {}
    for name, step, count in (("a", 1, 5), ("b", 2, 5), ("long", 1, 60_000)):
        yaml = "".join(f"{step * i}\n" for i in range(count))
        head = header(MODELS[:3], yaml=yaml)
        records[name] = read_record(write_record(tmp_path / name, head, lines))
    compared = compare_records(records["a"], records["b"]).yaml
    assert compared == ["  0", "- 1", "  2", "- 3", "  4", "+ 6", "+ 8"]
    assert compare_records(records["a"], records["a"]).yaml == [f"  {i}" for i in range(5)]
    (said,) = compare_records(records["a"], records["long"]).yaml
    assert said == "  5 lines in A and 60,000 in B: too many to compare"


def test_two_records_are_drawn_too(tmp_path):
    a, b = moved_apart(tmp_path)
    page, picture = tmp_path / "changes.html", tmp_path / "changes.png"
    result = report(a, b, "--html", page, "--png", picture)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert '<span class="a">-   tukey_c: 4.685</span>' in text
    assert "A and B differ in tukey_c (4.685 in A, 3.0 in B): the weights moved, manual" in text
    pixels = imread(io.BytesIO(picture.read_bytes()))[:, :, :3]
    seen = np.unique((pixels * 255).round().reshape(-1, 3), axis=0)
    full = (WEIGHT_CHANGES.light[0], DISTANCE_CHANGES.light[-1])  # the largest changes of each
    for color in full:
        channels = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(seen - channels).max(1).min() <= 12
    result = report(a, b, "--stretch", "--html", page)
    assert result.exit_code == 2
    assert "Leave out --stretch" in result.output


def test_where_nothing_moved_the_page_says_so_and_there_is_no_picture(record, tmp_path):
    page, picture = tmp_path / "changes.html", tmp_path / "changes.png"
    result = report(record, record, "--png", picture, "--html", page)
    assert result.exit_code == 2
    assert "nothing to draw: no weight and no distance differs" in result.output
    assert "no weight moved beyond the record" in page.read_text()
    assert not picture.exists()


# --- the picture, and files -----------------------------------------------------------------------


@pytest.mark.parametrize("stretch", [False, True])
def test_the_picture_holds_the_colors_of_the_weights(record, stretch):
    summary = summarize(read_record(record))
    pixels = imread(io.BytesIO(render_picture(summary, stretch=stretch)))
    pixels = pixels[:, : int(0.93 * pixels.shape[1]), :3]  # the scale beside the maps has them all
    seen = {tuple(row) for row in np.unique((pixels * 255).round().reshape(-1, 3), axis=0)}
    values = [*summary.weights.values.ravel(), *summary.weights.outside_values.ravel()]
    assert len(values) == 4 * (3 * 4 + 2)
    missing = []
    low, high = 0.0, 1.0
    if stretch:  # to the next of a step of a tenth of what the weights span, or less
        trusted = [value for value in values if value >= 1e-3]
        low, high = stretched(np.array(trusted)).ticks[::2]
        span = max(trusted) - min(trusted)
        assert min(trusted) - span / 10 <= low <= min(trusted)
        assert max(trusted) <= high <= max(trusted) + span / 10
    for value in values:
        color = shade((value - low) / (high - low), WEIGHTS.light)
        channels = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
        if min(np.abs(np.array(other) - channels).max() for other in seen) > 1:
            missing.append(value)
    assert missing == []
    assert pixels.shape[1] > 600


def test_a_name_with_dollars_is_no_formula(tmp_path):
    models = ["a$^$", "$b_{1$"]
    path = write_record(tmp_path / "r.jsonl", header(models), small_lines(models, layers=1))
    assert report(path, "--png", tmp_path / "out.png").exit_code == 0
    assert imread(tmp_path / "out.png").ndim == 3


def test_without_matplotlib_the_page_is_written_and_the_extra_is_named(
    record, tmp_path, monkeypatch
):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    result = report(record, "--png", picture, "--html", page)
    assert result.exit_code == 2
    assert f"{picture}: not written: a PNG needs matplotlib: pip install" in result.output
    assert "report" in install_line("report")
    assert install_line("report") in result.output
    assert page.read_text().startswith("<!doctype html>")
    assert f"wrote {page}" in result.output
    assert not picture.exists()


@pytest.mark.parametrize("palette", [p for p in vars(colors).values() if isinstance(p, Palette)])
def test_every_color_can_be_written_on(palette):
    """Contrast of at least 3 (WCAG) at a hundred places of each palette."""
    for stops in palette:
        for place in np.linspace(0, 1, 101):
            back = shade(place, stops)
            lights = []
            for color in (back, readable_on(back)):
                c = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
                linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
                lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
            assert max(lights) / min(lights) >= 3


# --- the record of a folder -----------------------------------------------------------------------


def test_the_record_of_a_folder_is_found_and_named(record, tmp_path, monkeypatch):
    merge = tmp_path / "models" / "merged"
    merge.mkdir(parents=True)
    assert "mergekit_config.yml is missing" in report(merge).output
    yaml = merge / "mergekit_config.yml"
    models = "".join(f"  - model: {model}\n" for model in MODELS)
    start = f"merge_method: yoyo_fusion\nmodels:\n{models}"
    yaml.write_text(start)
    assert "this merge left no record" in report(merge).output
    yaml.write_text(start + "parameters: {report: runs/record.jsonl}\n")
    result = report(merge)
    assert result.exit_code == 2
    assert "its record runs/record.jsonl is not there" in result.output
    for place in (merge, merge.parent / "runs", tmp_path / "runs"):  # the last is seen from here
        place.mkdir(exist_ok=True)
        (place / "record.jsonl").write_text(record.read_text())
        monkeypatch.chdir(tmp_path)
        result = report(merge)
        assert result.exit_code == 0, result.output
        shown = Path(result.output.split("its record is ")[1].split("\n")[0])
        assert shown.resolve() == place / "record.jsonl"
    yaml.write_text(start.replace("german", "french") + "parameters: {report: record.jsonl}\n")
    result = report(merge)
    assert result.exit_code == 2
    assert "of another merge" in result.output
    assert "./experts/german is no input" in result.output


def test_files_are_written_whole_or_not_at_all(record, tmp_path):
    out = tmp_path / "out.html"
    result = report(record, "--html", out, "--png", tmp_path / "missing" / "out.png")
    assert result.exit_code == 2
    assert "no folder" in result.output
    assert not out.exists()
    assert "that is the record" in report(record, "--html", record).output
    assert "both are" in report(record, "--html", out, "--png", out).output
    assert report(record, "--html", out, "--png", tmp_path / "out.png").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out.png", "record.jsonl"]


# --- of a real merge ------------------------------------------------------------------------------


def test_the_pictures_script_says_what_the_readme_shows(tmp_path):
    """A real merge with a broken fourth model; the README's pictures are there and small."""
    spec = importlib.util.spec_from_file_location("broken", ROOT / "benchmarks" / "broken.py")
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    broken.break_model("noise", ROOT / "examples" / "experts" / "base", tmp_path / "broken")
    record = tmp_path / "merge-report.jsonl"
    experts = [f"./examples/experts/{name}" for name in ("code", "german", "manual")]
    recipe = {
        "merge_method": "yoyo_fusion",
        "models": [{"model": path} for path in [*experts, str(tmp_path / "broken")]],
        "parameters": {"report": str(record)},
        "dtype": "bfloat16",
    }
    done = mergekit("yaml", json.dumps(recipe), tmp_path / "merged", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    summary = summarize(read_record(record))
    assert [model.short for model in summary.models] == ["code", "german", "manual", "broken"]
    assert summary.models[3].weight < 0.01
    assert all(model.weight > 0.8 for model in summary.models[:3])
    assert summary.models[3].ignored == list(range(6))
    for name in ("quickstart.png", "quickstart-broken.png"):
        picture = ROOT / "examples" / "pictures" / name
        assert 10_000 < picture.stat().st_size < 100_000
