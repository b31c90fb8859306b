"""`--quant auto`: widths by measurement, against literal float64 and brute force."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import Auto, export_model, load_recipe, plan_export
from mergekit_yoyo.mlx import divergence as divergence_module
from mergekit_yoyo.mlx.allocation import Choice, allocate
from mergekit_yoyo.mlx.automatic import _cheapest, in_play
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import open_checkpoint
from mergekit_yoyo.mlx.plan import Placement
from mergekit_yoyo.mlx.sensitivity import Candidate, sensitivities
from mergekit_yoyo.progress import SILENT
from mergekit_yoyo.text import Window

ROOT = Path(__file__).resolve().parent.parent
EXPERT = ROOT / "examples" / "experts" / "code"
CODE = ROOT / "examples" / "held_out" / "code.txt"
GERMAN = ROOT / "examples" / "held_out" / "german.txt"
COMMAND = [sys.executable, "-m", "mergekit_yoyo", "mlx", str(EXPERT)]

# --- the knapsack ---------------------------------------------------------------------------------

CHOICES = st.lists(
    st.lists(
        st.builds(Choice, cost=st.floats(0, 1, width=32), bytes=st.integers(1, 50)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(modules=CHOICES, room=st.floats(0, 1))
def test_no_other_choice_that_fits_costs_less(modules, room):
    least = sum(min(c.bytes for c in choices) for choices in modules)
    most = sum(max(c.bytes for c in choices) for choices in modules)
    budget = int(least + room * (most - least))
    found = allocate(modules, budget)
    chosen = [choices[k] for choices, k in zip(modules, found, strict=True)]
    assert sum(c.bytes for c in chosen) <= budget
    best = min(
        sum(c.cost for c in way)
        for way in itertools.product(*modules)
        if sum(c.bytes for c in way) <= budget
    )
    assert sum(c.cost for c in chosen) <= best * (1 + 1e-4) + 1e-9


def test_what_fits_to_the_byte_is_taken():
    assert allocate([[Choice(1.0, 1), Choice(0.0, 2)], [Choice(0.0, 1)]], 3) == [1, 0]
    large = [[Choice(1.0, 10**10), Choice(0.0, 2 * 10**10)]]
    assert allocate(large, 2 * 10**10) == [1]
    assert allocate(large, 2 * 10**10 - 1) == [0]


def test_what_cannot_fit_is_refused():
    with pytest.raises(YoyoError, match="no widths fit 9 bytes: the smallest take 10"):
        allocate([[Choice(1.0, 4), Choice(0.0, 9)], [Choice(0.0, 6)]], 9)


# --- divergence and sensitivities -----------------------------------------------------------------


@pytest.fixture(scope="module")
def opened():
    return open_checkpoint(EXPERT)


def whole(opened) -> nn.Module:
    model, _ = load_model(opened.folder, model_config=opened.bridge.config)
    model.set_dtype(mx.float32)
    return model


def windows(file: Path, count: int = 3) -> list[Window]:
    """Windows of different lengths, whose first tokens are given."""
    ids = list(file.read_bytes()[:1000])
    cut = [ids[k * 90 : k * 90 + 60 + 7 * k] for k in range(count)]
    return [Window(tuple(tokens), ((3 + k, len(tokens)),)) for k, tokens in enumerate(cut)]


def literal(before: nn.Module, after: nn.Module, window: Window, kept: int | None = None) -> float:
    """Mean KL of a window in float64, over all words, or over the likeliest and the rest as one."""
    tokens = mx.array([list(window.tokens)])
    p, q = (np.array(m(tokens)[0], dtype=np.float64) for m in (before, after))
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) for x in (p, q))
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (p, q))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    total = []
    for place in window.positions:
        order = np.argsort(-p[place - 1])
        a, b = p[place - 1][order], q[place - 1][order]
        if kept is not None:
            a = np.append(a[:kept], a[kept:].sum())
            b = np.append(b[:kept], b[kept:].sum())
        total.append((a * np.log(a / b)).sum())
    return float(np.mean(total))


def rounded(opened, bits: int, *paths: str) -> nn.Module:
    """A model in which mlx's own `nn.quantize` did it, in the checkpoint's dtype."""
    model = whole(opened)
    modules = dict(model.named_modules())
    for path in paths:
        module = modules[path]
        weight = module.weight.astype(mx.bfloat16)
        quantized = type(module).to_quantized(module, group_size=64, bits=bits)
        parts = mx.quantize(weight, group_size=64, bits=bits)
        assert quantized.weight.shape == parts[0].shape
        module.weight = mx.dequantize(*parts, group_size=64, bits=bits).astype(mx.float32)
    return model


@pytest.mark.parametrize("kept", [None, 16])
def test_divergence_is_the_literal_one(opened, kept, monkeypatch):
    if kept:
        monkeypatch.setattr(divergence_module, "KEPT", kept)
    monkeypatch.setattr(divergence_module, "BATCH", 2)
    texts = {"code": windows(CODE), "german": windows(GERMAN, 2)}
    before, after = whole(opened), rounded(opened, 3, "model.layers.1.mlp.up_proj")
    found = Reference(before, texts).divergence(after)
    for name, given_windows in texts.items():
        expected = [literal(before, after, window, kept) for window in given_windows]
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-7)
    same = Reference(before, texts).divergence(before)
    assert all(np.abs(kl).max() < 1e-6 for kl in same.values())


def test_sensitivities_are_measured_one_module_at_a_time(opened):
    texts = {"code": windows(CODE)}
    play = in_play(opened, Auto(bits_per_weight=5.5, group_size=64))
    assert play.widths == [3, 4, 5, 6, 8]
    paths = ["model.embed_tokens", "model.layers.2.self_attn.v_proj"]
    model, untouched = whole(opened), whole(opened)
    found = sensitivities(
        model,
        Reference(model, texts),
        {path: play.placements[path] for path in paths},
        mx.bfloat16,
        SILENT,
    )
    for path in paths:
        costs = {c.placement.bits: c.costs["code"] for c in found[path]}
        assert costs[None] == 0
        for bits in (3, 4):
            after = rounded(opened, bits, path)
            expected = np.mean([literal(untouched, after, window) for window in texts["code"]])
            assert costs[bits] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        error = {
            bits: np.square(weight_of(rounded(opened, bits, path), path) - weight_of(model, path))
            for bits in (4, 5, 6, 8)
        }
        for bits in (5, 6, 8):
            share = error[bits].sum() / error[4].sum()
            assert costs[bits] == pytest.approx(costs[4] * share, rel=1e-4)
    for (_, a), (_, b) in zip(
        tree_flatten(model.parameters()), tree_flatten(untouched.parameters()), strict=True
    ):
        assert mx.array_equal(a, b)  # whole again


def weight_of(model: nn.Module, path: str) -> np.ndarray:
    return np.array(dict(model.named_modules())[path].weight, dtype=np.float64)


# --- the whole road -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The beginnings of two held-out texts: four windows of each."""
    folder = tmp_path_factory.mktemp("texts")
    for file in (CODE, GERMAN):
        (folder / file.name).write_bytes(file.read_bytes()[:1020])
    return {file.stem: folder / file.name for file in (CODE, GERMAN)}


@pytest.fixture(scope="module")
def auto(texts, tmp_path_factory):
    """The command on an expert with two texts, of which one counts twice."""
    folder = tmp_path_factory.mktemp("auto") / "code-auto"
    given_texts = [x for name, file in texts.items() for x in ("--text", f"{name}={file}")]
    done = subprocess.run(
        [
            *COMMAND,
            str(folder),
            "--quant",
            "auto",
            "--bpw",
            "6.5",
            *given_texts,
            "--weight",
            "code=2",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_budget_is_kept_and_told(auto):
    folder, done = auto
    plan = plan_export(EXPERT, load_recipe(folder / "recipe.yaml"))
    assert 6.3 < plan.bits_per_weight <= 6.5
    weights = sum(a.nbytes for _, a in mx.load(str(folder / "model.safetensors")).items())
    assert weights == plan.bytes
    assert "measurements of" in done.stderr
    assert "KL from the unquantized model on text kept apart, nats per token: code " in done.stderr
    card = (folder / "README.md").read_text()
    assert "How the widths were found: bits by the KL of each module, on" in card
    assert "of code, german (code 2 times). `recipe.yaml` has them all" in card


def test_its_recipe_makes_the_same_model_again(auto, tmp_path):
    folder, _ = auto
    again = export_model(EXPERT, tmp_path / "again", load_recipe(folder / "recipe.yaml"))
    for name in ("model.safetensors", "config.json"):
        assert (again.folder / name).read_bytes() == (folder / name).read_bytes()


def test_it_is_nearer_than_one_width_for_all_at_the_same_size(auto, tmp_path, opened):
    """q6 has 6.53 bits; on text that chose nothing."""
    folder, _ = auto
    export_model(EXPERT, tmp_path / "q6", "q6", verify=False)
    assert (tmp_path / "q6/model.safetensors").stat().st_size > (
        folder / "model.safetensors"
    ).stat().st_size - 3000
    text = (ROOT / "examples" / "held_out" / "manual.txt").read_bytes()
    apart = [Window(tuple(text[k : k + 200]), ((1, 200),)) for k in range(0, 4000, 200)]
    reference = Reference(whole(opened), {"": apart})
    kl = {}
    for name in (folder, tmp_path / "q6"):
        model, _ = load_model(name)
        kl[name] = reference.divergence(model)[""].mean()
    assert kl[folder] < kl[tmp_path / "q6"]


def test_texts_count_as_they_are_weighed():
    """Two modules, room for one more bit in one of them: code needs it in a, prose in b."""
    costs = {
        "a": {4: {"code": 0.5, "prose": 0.1}, 8: {"code": 0.0, "prose": 0.0}},
        "b": {4: {"code": 0.1, "prose": 0.3}, 8: {"code": 0.0, "prose": 0.0}},
    }
    candidates = {
        path: [
            Candidate(Placement(path, "mlp", 64, 8 * bits, bits, 64), c) for bits, c in of.items()
        ]
        for path, of in costs.items()
    }

    def widened(**weights: float) -> str:
        auto = Auto(bits_per_weight=6, weights=weights)
        chosen = _cheapest(candidates, 8 * 12, auto)
        (wide,) = [placement.path for placement in chosen if placement.bits == 8]
        return wide

    assert widened() == "a"  # 0.6 against 0.4
    assert widened(prose=2.5) == "b"
    assert widened(code=0.0) == "b"
    assert widened(prose=0.0) == "a"


# --- bad input ------------------------------------------------------------------------------------


def short(folder: Path, characters: int) -> str:
    (folder / "short.txt").write_text("a few words " * (characters // 12))
    return f"code={folder / 'short.txt'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quant", "auto"], "expected one of --bpw BITS and --size SIZE"),
        (["--quant", "auto", "--bpw", "6", "--size", "1GB"], "expected one of --bpw"),
        (["--quant", "auto", "--bpw", "nan"], "--bpw: expected a number of bits above 0; got nan"),
        (["--quant", "auto", "--bpw", "2.4"], "the smallest possible is 2.55 bits per weight"),
        (["--quant", "auto", "--size", "90KB"], "--size 90.0 KB is too small for this model"),
        (["--quant", "auto", "--size", "big"], "--size: expected a size such as 16GB; got big"),
        (["--quant", "auto", "--bpw", "6", "--plan"], "finds the widths by measurement, without"),
        (["--quant", "auto", "--bpw", "6", "--bits", "up=4"], "without --bits: leave it out"),
        (["--quant", "q4", "--bpw", "6"], "Without --quant auto nothing heeds --bpw"),
        (
            ["--quant", "auto", "--bpw", "6", "--weight", "code=2"],
            "--weight code: there is no text",
        ),
        (["--quant", "auto", "--bpw", "6", "--weight", "code"], "expected NAME=NUMBER"),
        (["--quant", "auto", "--bpw", "6", "--text", "code"], "--text: expected NAME=PATH"),
        (["--quant", "auto", "--bpw", "6", "--text", short], "characters are too few"),
        (["--quant", "auto", "--bpw", "6", "--text", 700], "3 windows of 256 tokens are too few"),
        (
            ["--quant", "auto", "--bpw", "6", "--text", f"c={CODE}", "--weight", "c=0"],
            "all texts have the weight 0",
        ),
        (
            ["--quant", "q4", "--bits", "w_proj=8"],
            "no module of this model is called like 'w_proj'",
        ),
        (["--quant", "qx86", "--projection", "w_proj"], "no projection of attention is called"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message, tmp_path):
    from click.testing import CliRunner

    from mergekit_yoyo.cli import main

    places = {short: short(tmp_path, 60), 700: None}
    shown = [places[a] if a is short else short(tmp_path, a) if a == 700 else a for a in arguments]
    done = CliRunner().invoke(main, ["mlx", str(EXPERT), str(tmp_path / "out"), *shown])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
