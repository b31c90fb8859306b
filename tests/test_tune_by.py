"""Strengths by module and by layer: the gradient, and what mergekit makes of filters and such."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.merge_yaml import read_merge_yaml
from mergekit_yoyo.text import Window, Writing
from mergekit_yoyo.tuning import Search, Texts, tune
from mergekit_yoyo.tuning.bands import Bands, bands_of, tensors_of
from mergekit_yoyo.tuning.bench import Parts
from mergekit_yoyo.tuning.descent import Slope, descend
from mergekit_yoyo.tuning.divergence import refer, samples
from mergekit_yoyo.tuning.knobs import knob_of
from mergekit_yoyo.tuning.mixture import Mixture
from mergekit_yoyo.tuning.recipe import Recipe
from mergekit_yoyo.tuning.search import Exhausted
from mergekit_yoyo.tuning.subjects import load_model

EXPERTS = Path(__file__).parents[1] / "examples" / "experts"
NAMES = ("code", "german", "manual")
YAML = {
    "merge_method": "task_arithmetic",
    "base_model": str(EXPERTS / "base"),
    "models": [{"model": str(EXPERTS / name)} for name in NAMES],
    "parameters": {"weight": 1.0, "lambda": 1.0},
    "dtype": "bfloat16",
}
BY_MODULE = Bands(((".self_attn.",), (".mlp.",), ("embed_tokens", "lm_head")), 1)
BY_LAYER = Bands((("embed_tokens",),), 4)


def merge(file: Path, folder: Path) -> None:
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(folder), MergeOptions(quiet=True))


def merged_at(folder: Path, value: object, *, real: bool = False) -> dict[str, torch.Tensor]:
    """What mergekit makes of it; real: in a process of its own, mergekit-yaml."""
    file = folder / "at.yml"
    data = {**YAML, "parameters": {"weight": 1.0, "lambda": value}}
    file.write_text(yaml.safe_dump(data))
    if real:
        command = ["mergekit-yaml", str(file), str(folder / "at"), "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
    else:
        merge(file, folder / "at")
    tensors = load_file(folder / "at" / "model.safetensors")
    shutil.rmtree(folder / "at")
    return tensors


def test_bands_follow_the_names_of_a_model():
    matrix, vector = TensorInfo((4, 4), torch.float32), TensorInfo((4,), torch.float32)
    llama = {
        "model.embed_tokens.weight": matrix,
        "model.layers.0.self_attn.q_proj.weight": matrix,
        "model.layers.0.mlp.up_proj.weight": matrix,
        "model.layers.0.input_layernorm.weight": vector,
        "lm_head.weight": matrix,
    }
    ends = ("embed_tokens", "lm_head")
    assert bands_of("module", llama) == Bands(((".self_attn.",), (".mlp.",), ends), 1)
    assert bands_of("layer", llama) == Bands((ends,), 4)
    gpt2 = {"h.0.attn.c_attn.weight": matrix, "wte.weight": matrix, "wpe.weight": matrix}
    assert bands_of("module", gpt2) == Bands(((".attn.",), ("wte", "wpe")), 1)
    with pytest.raises(YoyoError, match="do not tell layers and modules"):
        bands_of("layer", {"weight": matrix})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bands", "numbers"),
    [(BY_MODULE, (0.5, 0.25, 0.75, 1.0)), (BY_LAYER, (0.75, 0.25, 0.5, 1.0, 0.375))],
)
def test_mergekit_merges_each_tensor_as_if_its_strength_were_for_all(tmp_path, bands, numbers):
    """Bit for bit, with the strength that the search reckons with."""
    found = merged_at(tmp_path, bands.setting(numbers), real=bands is BY_LAYER)
    tensors = tensors_of(YAML, "lambda")
    strengths = bands.shares(tensors) @ numbers
    assert {t.name for t in tensors} == set(found)
    for strength in np.unique(strengths):
        alike = merged_at(tmp_path, float(strength))
        for tensor, own in zip(tensors, strengths, strict=True):
            if own == strength:
                assert torch.equal(found[tensor.name], alike[tensor.name]), tensor.name
    # by literal reading: the last layer, and one in the middle, of six
    by_name = dict(zip((t.name for t in tensors), strengths, strict=True))
    if bands is BY_MODULE:
        assert by_name["model.layers.5.self_attn.q_proj.weight"] == 0.5
        assert by_name["model.layers.2.mlp.up_proj.weight"] == 0.25
        assert by_name["model.embed_tokens.weight"] == 0.75
        assert by_name["model.layers.2.input_layernorm.weight"] == 1.0
    else:
        assert by_name["model.embed_tokens.weight"] == 0.75
        assert by_name["model.layers.0.mlp.up_proj.weight"] == 0.25
        assert by_name["model.layers.5.mlp.up_proj.weight"] == 0.375
        # layer 2 of 0..5 is at 2/5 of the way over 0.25, 0.5, 1.0, 0.375: a fifth behind 0.5
        assert by_name["model.layers.2.mlp.up_proj.weight"] == pytest.approx(0.5 + 0.2 * 0.5)


def _slope(folder: Path, bands: Bands, *, by_divergence: bool) -> Slope:
    file = folder / "merge.yml"
    file.write_text(yaml.safe_dump(YAML))
    recipe = Recipe(file, read_merge_yaml(file))
    parts = Parts(folder / "parts", merge, 2)
    low, high = parts.of(recipe, {"lambda": 0.0}), parts.of(recipe, {"lambda": 1.0})
    mixture = Mixture(low, device="cpu", dtype=torch.float32, rounded=torch.bfloat16)
    random = np.random.default_rng(2)
    texts = []
    for name in ("code", "german"):
        windows = [
            Window((0, *map(int, random.integers(60, 90, 23))), ((2, 9), (12, 24)))
            for _ in range(3)
        ]
        model = load_model(EXPERTS / name, "cpu")
        texts.append((name, windows, refer(model, windows, 258)))
    tensors = tensors_of(YAML, "lambda")
    return Slope(mixture, low, high, (0.0, 1.0), bands, tensors, texts, by_divergence)


@pytest.mark.parametrize("by_divergence", [True, False])
@pytest.mark.parametrize("bands", [BY_MODULE, BY_LAYER])
def test_gradients_are_those_of_small_steps(tmp_path, bands, by_divergence):
    slope = _slope(tmp_path, bands, by_divergence=by_divergence)
    numbers = np.linspace(0.4, 0.9, bands.count)
    value, gradient = slope.at(numbers)
    read = [
        np.mean([s.kl if by_divergence else s.loss for s in found])
        for found in (samples(slope.mixture.model, w, r) for _, w, r in slope.texts)
    ]
    assert value == pytest.approx(float(np.mean(read)), rel=1e-5)
    for column in range(bands.count):
        step = np.zeros(bands.count)
        step[column] = 0.02
        higher, lower = slope.at(numbers + step)[0], slope.at(numbers - step)[0]
        assert gradient[column] == pytest.approx((higher - lower) / 0.04, rel=0.03, abs=2e-4)
    assert np.abs(gradient).max() > 0.01


def test_the_descent_finds_a_bowl_and_keeps_the_best_when_it_is_stopped():
    goal = np.array([0.3, 1.7, 0.9])

    def bowl(numbers):
        away = np.asarray(numbers) - goal
        return float(away @ away), 2 * away

    assert descend(bowl, 1.0, 3, knob_of("lambda")) == pytest.approx(goal, abs=0.01)
    asked = []

    def stopped(numbers):
        if len(asked) == 2:
            raise Exhausted
        asked.append(np.array(numbers))
        return bowl(numbers)

    found = descend(stopped, 1.0, 3, knob_of("lambda"))
    best = min(asked, key=lambda n: bowl(n)[0])
    assert found == pytest.approx(list(best), rel=1e-2)


@pytest.mark.slow
def test_a_tuned_yaml_by_module_is_merged_to_the_bit_as_it_was_measured(tmp_path):
    kept = {}

    def keeping(file: Path, folder: Path) -> None:
        merge(file, folder)
        kept[file.read_text()] = load_file(folder / "model.safetensors")

    file = tmp_path / "merge.yml"
    file.write_text(yaml.safe_dump(YAML))
    reading = Texts({}, tmp_path / "texts", Writing(samples=24, tokens=64), 64, 24)
    how = Search(move=["lambda"], beside=False, by="module")
    done = tune(file, tmp_path / "tuned.yml", keeping, reading, how)
    value = yaml.safe_load((tmp_path / "tuned.yml").read_text())["parameters"]["lambda"]
    by = [text for text in kept if "filter" in text and "bfloat16" in text]
    assert len(by) == 1
    measured = kept[by[0]]
    if done.outcome.single is None:  # within noise: the one strength stays, and that is said
        assert isinstance(value, float)
        assert "strengths by module gain" in (tmp_path / "tuned.yml").read_text()
        value = yaml.safe_load(by[0])["parameters"]["lambda"]
    else:
        assert [entry.get("filter") for entry in value][-1] is None
        assert done.outcome.single.above(done.outcome.best).is_sure
    again = merged_at(tmp_path, value, real=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in measured.items())


def test_a_merge_without_a_strength_has_none_by_module(tmp_path):
    file = tmp_path / "merge.yml"
    data = {**YAML, "merge_method": "linear", "parameters": {"weight": 1.0}}
    file.write_text(yaml.safe_dump(data))
    reading = Texts({}, tmp_path / "texts", Writing(samples=4, tokens=16), 16, 4)
    with pytest.raises(YoyoError, match="linear has no strength here that a merge is linear in"):
        tune(file, tmp_path / "t.yml", merge, reading, Search(by="module", beside=False))
