"""What `evaluate --text` measures and `scores` shows of it, against float64 references."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_rel
from scores_fixtures import EXPERTS, ROOT, write_result

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.evaluation import EvaluationSettings, Measuring, evaluate
from mergekit_yoyo.evaluation.prediction import window_sums
from mergekit_yoyo.evaluation.store import ResultStore
from mergekit_yoyo.evaluation.weights import measure_weights
from mergekit_yoyo.measured import Measured
from mergekit_yoyo.scores import build_table, compare, read_results, render_csv, render_markdown
from mergekit_yoyo.scores.quantities import MeasureColumn

LENGTH, WINDOWS = 96, 5
TEXTS = {name: ROOT / "examples" / "held_out" / f"{name}.txt" for name in ("code", "german")}


# --- one window -----------------------------------------------------------------------------------


def literal(logits, targets, reference):
    """Loss, divergence and agreement, word by word in Python's float64."""
    loss = divergence = agreeing = 0.0
    for row, target, other in zip(logits.tolist(), targets, reference.tolist(), strict=True):
        total = math.log(math.fsum(math.exp(x) for x in row))
        total_other = math.log(math.fsum(math.exp(x) for x in other))
        loss -= row[target] - total
        divergence += math.fsum(
            math.exp(p - total_other) * ((p - total_other) - (q - total))
            for p, q in zip(other, row, strict=True)
        )
        agreeing += row.index(max(row)) == other.index(max(other))
    return loss, divergence, agreeing


@pytest.mark.parametrize("positions", [1, 64, 65, 150])
def test_a_window_is_summed_as_by_hand(positions):
    random = np.random.default_rng(positions)
    logits, reference = (random.normal(0, 5, (positions, 37)).astype(np.float32) for _ in range(2))
    targets = random.integers(0, 37, positions)
    sums = window_sums(logits, targets, reference)
    loss, divergence, agreeing = literal(logits, targets, reference)
    assert sums.tokens == positions
    assert sums.loss == pytest.approx(loss, rel=1e-12)
    assert sums.divergence == pytest.approx(divergence, rel=1e-12)
    assert sums.agreeing == agreeing
    alone = window_sums(logits, targets)
    assert (alone.loss, alone.divergence, alone.agreeing) == (sums.loss, None, None)
    same = window_sums(logits, targets, logits)
    assert (same.divergence, same.agreeing) == (0.0, positions)


def test_logits_that_cannot_be_compared_are_refused():
    logits = np.zeros((3, 5), np.float32)
    with pytest.raises(YoyoError, match=r"logits of 6 words, this model of 5"):
        window_sums(logits, np.zeros(3, np.int64), np.zeros((3, 6), np.float32))
    logits[1, 2] = np.nan
    with pytest.raises(YoyoError, match="not finite"):
        window_sums(logits, np.zeros(3, np.int64))


# --- real models ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The code expert as it is and at 4 bit, both measured against the first."""
    from mergekit_yoyo.mlx import export_model

    folder = tmp_path_factory.mktemp("measures")
    export = export_model(EXPERTS / "code", folder / "code-q4", "q4", verify=False)
    measuring = Measuring(TEXTS, str(EXPERTS / "code"), LENGTH, WINDOWS)
    settings = EvaluationSettings(tasks=(), measuring=measuring, device="cpu")
    models = [str(EXPERTS / "code"), str(folder / "code-q4")]
    evaluate(models, folder / "scores", settings)
    return folder, export, settings, models


def windows_of(name: str) -> list[list[int]]:
    """The tokens of a text's windows, by the rule as documented: bytes, evenly spread."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EXPERTS / "code")
    ids = tokenizer(TEXTS[name].read_text(), add_special_tokens=False, verbose=False).input_ids
    pieces = [ids[begin : begin + LENGTH] for begin in range(0, len(ids), LENGTH)]
    pieces = [piece for piece in pieces if len(piece) >= 8]
    spread = [pieces[k * len(pieces) // WINDOWS] for k in range(WINDOWS)]
    return [[tokenizer.bos_token_id, *piece] for piece in spread]


def transformers_logits(folder: Path, tokens: list[int]):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0, :-1].numpy()


def mlx_logits(folder: Path, tokens: list[int]):
    import mlx.core as mx
    from mlx_lm import load

    model = load(str(folder))[0]
    return np.array(model(mx.array([tokens]))[0, :-1].astype(mx.float32))


@pytest.mark.slow
def test_perplexity_divergence_and_agreement_are_those_of_the_models_logits(place):
    folder, *_ = place
    plain, quantized = read_results([folder / "scores" / name for name in ("code", "code-q4")])
    for text in TEXTS:
        expected = {"plain": [], "q4": []}
        for tokens in windows_of(text):
            reference = transformers_logits(EXPERTS / "code", tokens)
            own = mlx_logits(folder / "code-q4", tokens)
            expected["plain"].append(literal(reference, tokens[1:], reference))
            expected["q4"].append(literal(own, tokens[1:], reference))
        count = LENGTH
        for result, name in ((plain, "plain"), (quantized, "q4")):
            losses = np.array([loss / count for loss, _, _ in expected[name]])
            measure = result.measures[MeasureColumn("perplexity", text)]
            assert measure.value == pytest.approx(np.exp(losses.mean()), rel=1e-5)
            error = np.std(losses, ddof=1) / math.sqrt(WINDOWS) * np.exp(losses.mean())
            assert measure.stderr == pytest.approx(error, rel=1e-4)
        kl = np.array([divergence / count for _, divergence, _ in expected["q4"]])
        measure = quantized.measures[MeasureColumn("kl", text, "code")]
        assert measure.value == pytest.approx(kl.mean(), rel=1e-4)
        assert measure.stderr == pytest.approx(np.std(kl, ddof=1) / math.sqrt(WINDOWS), rel=1e-3)
        agreeing = sum(agreed for _, _, agreed in expected["q4"])
        measure = quantized.measures[MeasureColumn("top1", text, "code")]
        assert measure.value == pytest.approx(agreeing / (count * WINDOWS), abs=1e-12)
        # The reference is compared with nothing.
        assert MeasureColumn("kl", text, "code") not in plain.measures


@pytest.mark.slow
def test_size_has_the_one_number_of_the_plan_and_of_the_files(place):
    folder, export, *_ = place
    plain, quantized = read_results([folder / "scores" / name for name in ("code", "code-q4")])
    size, bits = (quantized.measures[MeasureColumn(name)].value for name in ("size", "bits"))
    assert size * 1e9 == pytest.approx(export.plan.bytes, abs=0.5)
    assert bits == pytest.approx(export.plan.bits_per_weight, rel=1e-12)
    assert bits == pytest.approx(8 * size * 1e9 / 238_528, rel=1e-12)
    assert plain.measures[MeasureColumn("bits")].value == 16
    card = (folder / "code-q4" / "README.md").read_text()
    assert f"**{bits:.2f} per weight**" in card
    header = 8 + int.from_bytes(
        (folder / "code-q4" / "model.safetensors").read_bytes()[:8], "little"
    )
    assert (folder / "code-q4" / "model.safetensors").stat().st_size == size * 1e9 + header


@pytest.mark.parametrize("recipe", ["bf16", "q3", "qx86-hi", "mxfp4"])
def test_mixed_widths_count_as_in_the_plan(tmp_path, recipe):
    from mergekit_yoyo.mlx import export_model

    plan = export_model(EXPERTS / "code", tmp_path / "out", recipe, verify=False).plan
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = measure_weights([tmp_path / "out" / "model.safetensors"], config, mlx=True)
    assert (weights.bytes, weights.parameters) == (plan.bytes, 238_528)
    assert weights.bits_per_weight == pytest.approx(plan.bits_per_weight, rel=1e-12)


def test_packed_weights_of_other_formats_have_a_size_and_no_width(tmp_path):
    save_file({"a.qweight": torch.zeros(8, 4, dtype=torch.int32)}, tmp_path / "m.safetensors")
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    weights = measure_weights([tmp_path / "m.safetensors"], config, mlx=False)
    assert (weights.bytes, weights.parameters, weights.bits_per_weight) == (128, None, None)
    for content in (b"", b"\xff" * 20, (9).to_bytes(8, "little") + b'{"a": {}}'):
        (tmp_path / "m.safetensors").write_bytes(content)
        with pytest.raises(YoyoError, match=r"m\.safetensors: "):
            measure_weights([tmp_path / "m.safetensors"], {}, mlx=False)


def test_tasks_can_be_added_in_any_setup_but_not_of_another_model(tmp_path):
    setup = {"model": "hf", "model_fingerprint": "f", "limit": None}
    store = ResultStore(tmp_path, setup, restart=False)
    store.add_measured(Measured.model_validate(measured({"code": reading(A)})), {"config": setup})
    assert ResultStore(tmp_path, {**setup, "limit": 2}, restart=False).is_measured("s")
    with pytest.raises(YoyoError, match="model_fingerprint is 'f' there and 'g' now"):
        ResultStore(tmp_path, {**setup, "model_fingerprint": "g"}, restart=False)


@pytest.mark.slow
def test_speed_and_memory_name_their_device(place):
    folder, *_ = place
    data = [
        json.loads(next((folder / "scores" / name).glob("results*")).read_text())["measured"]
        for name in ("code", "code-q4")
    ]
    plain, quantized = (entry["run"] for entry in data)
    assert (plain["library"], plain["dtype"]) == ("transformers", "float32")
    assert (quantized["library"], quantized["dtype"]) == ("mlx-lm", "bfloat16")
    assert quantized["memory"] == "mlx arrays"
    assert quantized["peak_bytes"] > data[1]["weights"]["bytes"]
    assert plain["peak_bytes"] > 2 * data[0]["weights"]["bytes"]  # widened
    for run in (plain, quantized):
        assert (run["prompt_tokens"], run["generated_tokens"]) == (512 - 128 - 1, 128)
        assert min(run["prompt_speed"], run["generation_speed"]) > 0
        assert run["device"]
    table = build_table(read_results([folder / "scores"]))
    text = render_markdown(table)
    assert f"generation<br>tokens/s, {plain['device']}" in text
    assert f"memory<br>GB, {plain['device']} (process)" in text
    assert "prompt, generation: library transformers for code; mlx-lm for code-q4" in text


@pytest.mark.slow
def test_what_is_measured_is_kept_until_text_or_model_change(place, tmp_path):
    folder, _, settings, models = place
    (file,) = (folder / "scores" / "code-q4").glob("results*")
    before = file.read_bytes()
    # How tasks would be run is no matter of what is measured.
    settings = replace(settings, limit=5, num_fewshot=3)
    (same,) = evaluate(models[1:], folder / "scores", settings)
    assert (same, file.read_bytes()) == (file, before)
    other = tmp_path / "other.txt"
    other.write_text(TEXTS["code"].read_text()[:3000])
    changed = Measuring({"code": other}, None, LENGTH, WINDOWS)
    evaluate(models[1:], folder / "scores", EvaluationSettings(tasks=(), measuring=changed))
    measured = json.loads(file.read_text())["measured"]
    assert list(measured["readings"]) == ["code"]
    assert measured["against"] is None
    both = build_table(read_results([folder / "scores"]))
    assert any(
        "perplexity code: other text or other tokens for code-q4" in w for w in both.warnings
    )
    assert not any(row.measures[MeasureColumn("perplexity", "code")].best for row in both.rows)
    file.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ("none", ["--against", "./model"], "on which text? Name one, such as --text"),
        ("none", ["--text", "code"], "--text: expected NAME=PATH"),
        ("none", ["--text", "code=nowhere.txt"], "nowhere.txt: cannot be read"),
        ("none", ["--text", "code=short.txt"], "short.txt: 9 characters are too few"),
        (
            "none",
            ["--text", "code=text.txt", "--windows", "2", "--window-tokens", "512"],
            "./model: this model reads 512 tokens at most: give --window-tokens 511 or less",
        ),
        ("none", ["--text", "code=text.txt", "--against", "nowhere"], "nowhere: no such folder"),
        ("weights", ["--text", "code=text.txt"], "./model: the model's logits are not finite"),
        (
            "tokenizer",
            ["--text", "code=text.txt", "--against", str(EXPERTS / "german")],
            "text code: the tokenizers of the model and of --against differ",
        ),
        ("config", ["--text", "code=text.txt"], "./model: it cannot be run: "),
    ],
)
def test_bad_input_gives_a_sentence_and_no_result(tmp_path, monkeypatch, change, options, expected):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXPERTS / "code", "model")
    Path("short.txt").write_text("too short\n")
    Path("text.txt").write_text(TEXTS["code"].read_text()[:2000])
    if change == "weights":
        weights = load_file("model/model.safetensors")
        save_file(
            {name: tensor * math.nan for name, tensor in weights.items()},
            "model/model.safetensors",
            {"format": "pt"},
        )
    if change == "tokenizer":
        file = Path("model/tokenizer.json")
        data = json.loads(file.read_text())
        vocabulary = data["model"]["vocab"]
        first, second = (word for word in vocabulary if word in ("e", "a"))
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        file.write_text(json.dumps(data))
    if change == "config":
        file = Path("model/config.json")
        file.write_text(file.read_text().replace('"hidden_size": 64', '"hidden_size": 60'))
    given = ["evaluate", "./model", "--tasks", "none", "--windows", "3", "--window-tokens", "64"]
    result = CliRunner().invoke(main, [*given, *options])
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(Path().rglob("results*"))


def test_the_peak_of_a_process_is_its_own_and_not_its_parent_s():
    """A child that is started by vfork has its parent's peak as `ru_maxrss`."""
    ballast = np.ones(600_000_000, np.uint8)
    code = (
        "from mergekit_yoyo.evaluation.running import peak_resident_bytes as peak\n"
        "before = peak()\n"
        "held = bytearray(b'x' * 200_000_000)\n"
        "print(before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < ballast.nbytes  # which the parent holds beside itself
    assert 190_000_000 < after - before < 450_000_000


# --- tables ---------------------------------------------------------------------------------------


def reading(losses, divergences=None, tokens="x", dtype="bfloat16"):
    windows = [{"tokens": 100, "loss": loss * 100.0} for loss in losses]
    if divergences is not None:
        for window, divergence in zip(windows, divergences, strict=True):
            window |= {"divergence": divergence * 100.0, "agreeing": 90}
    return {"tokens_hash": tokens, "dtype": dtype, "windows": windows}


def measured(readings, *, device="Apple M2 Ultra", reference="merged", **run):
    return {
        "weights": {"bytes": 15_710_000_000, "parameters": 15_750_000_000, "bits_per_weight": 7.98},
        "run": {
            "device": device,
            "library": "mlx-lm",
            "dtype": "bfloat16",
            "prompt_tokens": 512,
            "generated_tokens": 128,
            "prompt_speed": 1234.5,
            "generation_speed": 67.89,
            "peak_bytes": 15_710_000_000,
            "memory": "mlx arrays",
            **run,
        },
        "readings": readings,
        "against": {"name": reference, "fingerprint": "f"},
        "setup": "s",
    }


def scores(*arguments):
    return CliRunner().invoke(main, ["scores", *map(str, arguments)])


A, B = [2.0, 2.4, 1.7, 2.9, 2.2, 2.1], [2.02, 2.43, 1.71, 2.92, 2.23, 2.11]


def write_pair(folder: Path, **changes) -> list[Path]:
    kl = [0.01, 0.02, 0.03, 0.01, 0.02, 0.03]
    first = measured({"code": reading(A, kl)})
    second = measured({"code": reading(B, [x + 0.01 for x in kl])}, **changes)
    return [
        write_result(folder / name, {"piqa": [1.0, 0.0, 1.0, 0.0]}, measured=own)
        for name, own in (("a", first), ("b", second))
    ]


def test_a_perplexity_leads_by_its_windows_where_the_errors_overlap(tmp_path):
    table = build_table(read_results(write_pair(tmp_path)))
    column = MeasureColumn("perplexity", "code")
    a, b = (row.measures[column] for row in table.rows)
    assert a.value == pytest.approx(math.exp(np.mean(A)))
    assert a.stderr == pytest.approx(np.std(A, ddof=1) / math.sqrt(6) * math.exp(np.mean(A)))
    assert b.value - a.value < a.stderr / 5
    assert a.best
    assert not b.best
    assert a.lead.p_value == pytest.approx(ttest_rel(A, B).pvalue, rel=1e-9)
    kl = MeasureColumn("kl", "code", "merged")
    assert table.rows[0].measures[kl].best
    difference = {m.column: m.difference for m in compare(*read_results([tmp_path])).measures}
    gap = np.array(A) - np.array(B)
    slope = math.exp((np.mean(A) + np.mean(B)) / 2)
    assert difference[column].value == pytest.approx(a.value - b.value)
    assert difference[column].stderr == pytest.approx(np.std(gap, ddof=1) / math.sqrt(6) * slope)
    said = scores(tmp_path, "--compare", "a", "b").output
    assert "a and b differ beyond 95 % on perplexity code, KL code" in said


def test_windows_of_other_lengths_weigh_by_their_tokens(tmp_path):
    sizes, means = [100, 100, 40], [2.0, 3.0, 1.0]
    own = reading([0, 0, 0])
    own["windows"] = [{"tokens": n, "loss": n * x} for n, x in zip(sizes, means, strict=True)]
    write_result(tmp_path / "a", {"piqa": [1.0, 0.0]}, measured=measured({"code": own}))
    (result,) = read_results([tmp_path])
    mean = np.average(means, weights=sizes)
    measure = result.measures[MeasureColumn("perplexity", "code")]
    assert measure.value == pytest.approx(math.exp(mean))
    # of a ratio estimator: n / (n - 1) times the sum of squares of (sum - mean * tokens) / all
    parts = [(n * x - mean * n) / sum(sizes) for n, x in zip(sizes, means, strict=True)]
    error = math.sqrt(3 / 2 * sum(part**2 for part in parts))
    assert measure.stderr == pytest.approx(error * math.exp(mean))


def test_devices_never_share_a_column(tmp_path):
    files = write_pair(tmp_path, device="Apple M4 Max")
    published = tmp_path / "p.md"
    published.write_text(
        "| model | perplexity | generation<br>tokens/s | memory | size |\n|-|-|-|-|-|\n"
        "| old | 4.455 ± 0.031 | 60.5 | 15.7 | 14.61 GB |\n"
    )
    table = build_table(read_results([*files, published]))
    columns = [c for c in table.measures if c.quantity == "generation"]
    assert columns == [
        MeasureColumn("generation", "Apple M2 Ultra"),
        MeasureColumn("generation", "Apple M4 Max"),
        MeasureColumn("generation", None),
    ]
    for row, column in zip(table.rows, columns, strict=True):
        assert [c for c in columns if c in row.measures] == [column]
    text = render_markdown(table)
    assert "generation<br>tokens/s, device not stated" in text
    assert table.rows[2].measures[MeasureColumn("size")].value == 14.61
    assert table.rows[2].measures[MeasureColumn("perplexity")].stderr == 0.031


def test_measures_are_read_back_from_our_own_markdown(tmp_path):
    table = build_table(read_results(write_pair(tmp_path)))
    text = render_markdown(table)
    assert (
        "| perplexity<br>code | KL<br>code, to merged | top-1 agreement<br>code, with merged |"
        in (text)
    )
    assert "| 15.71 | 7.98 |" in text
    (tmp_path / "t.md").write_text(text)
    again = build_table(read_results([tmp_path / "t.md"]))
    assert again.measures == table.measures
    for row, other in zip(table.rows, again.rows, strict=True):
        for column in table.measures:
            shown = column.kind.show
            assert shown(row.measures[column].value) == shown(other.measures[column].value)
    assert "a,,perplexity,code," in render_csv(table)


def test_columns_are_chosen_tasks_and_measures_alike(tmp_path):
    write_pair(tmp_path)
    said = scores(tmp_path, "--columns", "size,kl:code,piqa").output
    assert "perplexity" not in said
    assert said.index("piqa") < said.index("size") < said.index("KL")
    only = build_table(read_results([tmp_path]), ["kl"])
    assert (len(only.columns), [c.quantity for c in only.measures]) == (0, ["kl"])
    assert build_table(read_results([tmp_path]), ["piqa"]).measures == []
    for name, hint in (("kl:prose", "kl:code"), ("bits:x", "bits")):
        refused = scores(tmp_path, "--columns", name)
        assert refused.exit_code == 2
        assert f"no result has {name}. Did you mean {hint}?" in refused.output
    picture = scores(tmp_path, "--columns", "kl", "--out", tmp_path / "x.png")
    assert "a picture of scores needs a task" in picture.output
    assert not (tmp_path / "x.png").exists()


def test_the_card_has_what_was_measured(tmp_path):
    write_pair(tmp_path / "s")
    model = tmp_path / "a"
    model.mkdir()
    assert scores(tmp_path / "s", "--card", model).exit_code == 0
    card = (model / "README.md").read_text()
    assert "tokens/s, Apple M2 Ultra" in card
    assert "**8.415 ± 1.419**" not in card
    assert f"**{math.exp(np.mean(A)):.3f} ± " in card


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("run", "prompt_speed"), math.nan, "measured: run.prompt_speed"),
        (("run", "device"), "", "measured: run.device"),
        (("weights", "bytes"), -1, "measured: weights.bytes"),
        (("weights", "bytes"), 2**64, "measured: weights.bytes"),
        (("readings", "code", "windows"), [], "measured: readings.code.windows"),
        (("readings", "code", "windows", 0, "loss"), -3.0, "measured: readings.code.windows"),
        (("readings", "code", "windows", 0, "tokens"), 0, "measured: readings.code.windows"),
        (("readings",), [1], "measured: readings"),
    ],
)
def test_hostile_measures_are_a_sentence(tmp_path, path, value, expected):
    own = measured({"code": reading(A)})
    part = own
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = write_result(tmp_path / "a", {"piqa": [1.0, 0.0]}, measured=own)
    result = scores(file)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
