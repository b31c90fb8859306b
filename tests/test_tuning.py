"""The parts of `tune`: weighted sums, divergences, statistics, the search, the YAML it writes."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.merge_yaml import read_merge_yaml
from mergekit_yoyo.text import Window
from mergekit_yoyo.tuning import divergence as divergences
from mergekit_yoyo.tuning.bench import Parts
from mergekit_yoyo.tuning.divergence import refer, samples
from mergekit_yoyo.tuning.knobs import knob_of
from mergekit_yoyo.tuning.measured import Measured, mean_of
from mergekit_yoyo.tuning.mixture import Mixture, blend_of, reading
from mergekit_yoyo.tuning.recipe import Recipe
from mergekit_yoyo.tuning.search import Exhausted, search
from mergekit_yoyo.tuning.writing import MARK, tuned_text

EXPERTS = Path(__file__).parents[1] / "examples" / "experts"
CODE, GERMAN, MANUAL, BASE = (str(EXPERTS / n) for n in ("code", "german", "manual", "base"))
THREE = [{"model": CODE}, {"model": GERMAN}, {"model": MANUAL}]


def recipe_of(folder: Path, **data: object) -> Recipe:
    file = folder / "merge.yml"
    file.write_text(yaml.safe_dump({"models": THREE, **data}, sort_keys=False))
    return Recipe(file, read_merge_yaml(file))


def merge(file: Path, folder: Path) -> None:
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(folder), MergeOptions(quiet=True, random_seed=3))


RECALL = {"merge_method": "yoyo_fusion", "parameters": {"consensus": "recall"}}
ANCHORED = {
    "merge_method": "yoyo_fusion",
    "base_model": BASE,
    "parameters": {"consensus": "recall", "center": "anchor"},
}
TASKS = {"merge_method": "task_arithmetic", "base_model": BASE}
WEIGHTS = {"weight[0]": 0.9, "weight[1]": 0.4, "weight[2]": 1.3}


@pytest.mark.parametrize(
    ("data", "setting", "merges"),
    [
        (RECALL, {"consensus": "recall", "recall_strength": 2.7, "ridge": 1.0}, 2),
        (ANCHORED, {"recall_strength": 0.6, "recall_prior": 0.35, "ridge": 3.0}, 4),
        ({**TASKS, "parameters": {"weight": 1.0}}, {"lambda": 0.45}, 2),
        ({**TASKS, "parameters": {"weight": 1.0}}, {"lambda": 0.45, "density": 0.5, **WEIGHTS}, 4),
        ({**TASKS, "parameters": {"weight": 1.0, "lambda": 0.7}}, WEIGHTS, 4),
        (
            {**TASKS, "merge_method": "ties", "parameters": {"weight": 1.0, "density": 0.4}},
            {"lambda": 1.7},
            2,
        ),
        (
            {"merge_method": "linear", "parameters": {"weight": 1.0}},
            {"weight[1]": 0.4, "weight[2]": 2.0},
            3,
        ),
        (
            {"merge_method": "linear", "parameters": {"weight": 1.0, "normalize": False}},
            {"weight[0]": 0.1, "weight[1]": 0.4, "weight[2]": 0.2},
            3,
        ),
        (RECALL, {"consensus": "tukey", "recall_strength": 2.7, "ridge": 1.0}, 1),
        (RECALL, {"consensus": "recall", "recall_strength": "auto", "ridge": 1.0}, 1),
    ],
)
def test_a_weighted_sum_is_the_merge(tmp_path, data, setting, merges):
    """Against mergekit's own merge with that setting, tensor by tensor."""
    recipe = recipe_of(tmp_path, **data)
    parts = Parts(tmp_path / "parts", merge, 4)
    blend = blend_of(recipe, setting)
    assert len(blend) == merges
    assert sum(factor for factor, _ in blend) == pytest.approx(
        sum(v for v in setting.values())
        if data.get("parameters", {}).get("normalize") is False
        else 1.0
    )
    folders = [(factor, parts.of(recipe, part)) for factor, part in blend]
    assert parts.merged == merges
    (tmp_path / "whole.yml").write_text(
        yaml.safe_dump({**recipe.with_setting(setting), "dtype": "float32"})
    )
    merge(tmp_path / "whole.yml", tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    moved = 0.0
    with reading(folders) as read:
        for name, tensor in whole.items():
            summed = read("cpu")(name)
            torch.testing.assert_close(summed, tensor, rtol=2e-5, atol=2e-6)
            moved += float((tensor - load_file(Path(CODE) / "model.safetensors")[name]).norm())
    assert moved > 1.0


def test_the_models_weights_are_those_that_would_be_published(tmp_path):
    recipe = recipe_of(tmp_path, **RECALL, dtype="bfloat16")
    setting = {"recall_strength": 2.7}
    parts = Parts(tmp_path / "parts", merge, 4)
    folders = [(factor, parts.of(recipe, part)) for factor, part in blend_of(recipe, setting)]
    mixture = Mixture(folders[0][1], device="cpu", dtype=torch.float32, rounded=torch.bfloat16)
    mixture.load(folders)
    (tmp_path / "whole.yml").write_text(yaml.safe_dump(recipe.with_setting(setting)))
    merge(tmp_path / "whole.yml", tmp_path / "whole")
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    same = total = 0
    for name, tensor in published.state_dict().items():
        mine = mixture.model.state_dict()[name]
        torch.testing.assert_close(mine, tensor, rtol=2**-7, atol=1e-5)  # one step of rounding
        same += int((mine == tensor).sum())
        total += tensor.numel()
    assert same > 0.995 * total


def literal_kl(model: str, merged: str, window: Window, kept: int | None) -> float:
    """In float64, over every word, or over the likeliest with the rest as one."""
    found = []
    logs = []
    for folder in (model, merged):
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        with torch.no_grad():
            logs.append(loaded(torch.tensor([window.tokens])).logits[0].double().softmax(-1))
    for position in window.positions:
        p, q = (log[position - 1] for log in logs)
        order = p.argsort(descending=True)[:kept]
        value = sum(float(p[w]) * math.log(float(p[w]) / float(q[w])) for w in order)
        if kept is not None:
            p_rest, q_rest = 1 - float(p[order].sum()), 1 - float(q[order].sum())
            value += p_rest * math.log(p_rest / q_rest)
        found.append(value)
    return sum(found) / len(found)


@pytest.mark.parametrize("kept", [None, 9])
def test_divergences_are_those_of_the_formula(monkeypatch, kept):
    if kept:
        monkeypatch.setattr(divergences, "KEPT", kept)
    random = np.random.default_rng(1)
    windows = [
        Window((0, *map(int, random.integers(2, 258, length - 1))), counted)
        for length, counted in ((30, ((1, 30),)), (12, ((4, 9),)), (21, ((2, 5), (11, 21))))
    ]
    model = AutoModelForCausalLM.from_pretrained(CODE, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(GERMAN, dtype=torch.float32)
    reference = refer(model, windows, 258)
    found = samples(merged, windows, reference)
    for window, sample in zip(windows, found, strict=True):
        full = literal_kl(CODE, GERMAN, window, None)
        assert sample.kl == pytest.approx(literal_kl(CODE, GERMAN, window, kept), rel=2e-5)
        assert sample.kl <= full * (1 + 2e-5)
        assert sample.kl > 0.3 * full > 0.003
    themselves = samples(model, windows, reference)
    assert [s.kl for s in themselves] == pytest.approx([0.0] * 3, abs=1e-6)
    # half of the windows, in another order, with the rows that belong to them
    some = [windows[2], windows[0]]
    again = samples(merged, some, reference.of_windows(windows, some))
    assert [s.kl for s in again] == pytest.approx([found[2].kl, found[0].kl], rel=1e-4)


def test_losses_are_those_of_the_counted_tokens():
    window = Window((0, 70, 83, 66, 200, 71), ((2, 4), (5, 6)))
    model = AutoModelForCausalLM.from_pretrained(CODE, dtype=torch.float64)
    with torch.no_grad():
        p = model(torch.tensor([window.tokens])).logits[0].double().softmax(-1)
    literal = -sum(math.log(float(p[i - 1][window.tokens[i]])) for i in (2, 3, 5)) / 3
    loaded = AutoModelForCausalLM.from_pretrained(CODE, dtype=torch.float32)
    (found,) = samples(loaded, [window], None)
    assert found.loss == pytest.approx(literal, rel=1e-5)
    assert found.kl is None


def test_means_and_errors_by_the_book():
    values = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([3.0, 5.0])}
    variance_a = sum((v - 7 / 3) ** 2 for v in (1, 2, 4)) / 2
    variance_b = sum((v - 4) ** 2 for v in (3, 5)) / 1
    figure = mean_of(values)
    assert figure.value == pytest.approx((7 / 3 + 4) / 2)
    assert figure.error == pytest.approx(math.sqrt(variance_a / 3 + variance_b / 2) / 2)
    one = Measured({}, values, values)
    assert one.worst == ("b", 4.0)
    other = Measured({}, {n: v + 0.5 for n, v in values.items()}, values)
    assert other.above(one).value == pytest.approx(0.5)
    assert other.above(one).error == pytest.approx(0.0, abs=1e-12)  # what they share cancels
    assert not mean_of({"a": np.array([1.0, np.nan])}).is_sure
    assert math.isinf(mean_of({"a": np.array([1.0, np.inf])}).value)


# -- the search, on bowls whose lowest point is known --------------------------------------------

NOISE = {name: np.random.default_rng(k).normal(0, 0.3, 40) for k, name in enumerate("ab")}


class Bowl:
    """Samples that share their noise and lie on a known function of the setting."""

    def __init__(self, height, jitter: float = 1e-3, most: int = 100) -> None:
        self._height, self._jitter, self._most = height, jitter, most
        self.asked: list[dict] = []

    def __call__(self, setting: dict) -> Measured:
        if setting not in self.asked:
            if len(self.asked) >= self._most:
                raise Exhausted
            self.asked.append(setting)
        own = np.random.default_rng(zlib.crc32(json.dumps(setting, sort_keys=True).encode()))
        values = {
            name: 5.0 + self._height(setting) + noise + own.normal(0, self._jitter, 40)
            for name, noise in NOISE.items()
        }
        return Measured(setting, values, values)


def run(bowl: Bowl, given: dict) -> dict:
    knobs = {key: knob_of(key) for key in given}
    return search(bowl(given), knobs, bowl, {"consensus": "recall", "center": "anchor"})


@pytest.mark.parametrize("lowest", [0.4, 1.37, 2.6, 5.5])
def test_one_option_is_found_with_its_error(lowest):
    bowl = Bowl(lambda s: 0.02 * (s["recall_strength"] - lowest) ** 2, jitter=1e-4)
    found = run(bowl, {"recall_strength": 1.5})
    assert found.best.setting["recall_strength"] == pytest.approx(lowest, abs=0.15)
    (line,) = found.lines
    assert line.best.value == pytest.approx(lowest, abs=0.15)
    assert 0 < line.best.error < 0.2
    assert len(bowl.asked) <= 11
    assert all(v == float(f"{v:.3g}") for v, _ in line.points)


def test_an_option_by_factors_is_found():
    bowl = Bowl(lambda s: 0.02 * math.log(s["ridge"] / 0.2) ** 2, jitter=1e-4)
    assert run(bowl, {"ridge": 3.0}).best.setting["ridge"] == pytest.approx(0.2, rel=0.15)


def test_the_end_of_a_range_is_found_and_kept_to():
    bowl = Bowl(lambda s: -0.1 * s["lambda"], jitter=1e-5)
    found = run(bowl, {"lambda": 1.0})
    assert found.best.setting["lambda"] == knob_of("lambda").highest
    assert found.lines[0].best is None


def test_an_option_without_effect_stays():
    bowl = Bowl(lambda s: 0.0, jitter=0.0)
    found = run(bowl, {"lambda": 0.7})
    assert found.best.setting == {"lambda": 0.7}
    assert found.lines[0].best is None


def test_what_gains_less_than_its_error_is_not_taken():
    bowl = Bowl(lambda s: 1e-5 * (s["lambda"] - 1.2) ** 2, jitter=0.01)
    moved = [run(bowl, {"lambda": 1.0}).best.setting["lambda"] != 1.0]
    gained = bowl({"lambda": 1.0}).above(run(bowl, {"lambda": 1.0}).best)
    assert gained.value >= gained.error or not any(moved)


def test_two_options_that_depend_on_each_other_are_found():
    def height(s: dict) -> float:
        a, b = s["recall_strength"] - 2.0, math.log(s["ridge"] / 8.0)
        return 0.02 * (a * a + b * b + 0.6 * a * b)

    found = run(Bowl(height, jitter=1e-5), {"recall_strength": 1.0, "ridge": 1.0})
    assert found.best.figure.value < 5.0 + height({"recall_strength": 2.2, "ridge": 11.0}) + mean(
        NOISE
    )


def mean(noise: dict) -> float:
    return float(np.mean([v.mean() for v in noise.values()]))


def test_words_are_tried_with_the_options_that_act_beside_them():
    def height(s: dict) -> float:
        if s["consensus"] == "tukey":
            return 0.05
        strength = 1.0 if s["recall_strength"] == "auto" else s["recall_strength"]
        return 0.02 * (strength - 3.0) ** 2

    bowl = Bowl(height, jitter=1e-5)
    found = search(
        bowl({"consensus": "tukey", "recall_strength": "auto"}),
        {key: knob_of(key) for key in ("consensus", "recall_strength")},
        bowl,
        {"consensus": "tukey"},
    )
    assert found.best.setting["consensus"] == "recall"
    assert found.best.setting["recall_strength"] == pytest.approx(3.0, abs=0.1)
    assert sum(s["consensus"] == "tukey" for s in bowl.asked) == 1


def test_weights_of_models_are_moved_at_once():
    goal = {"weight[0]": 0.5, "weight[1]": 1.4, "weight[2]": 0.9}
    bowl = Bowl(lambda s: sum(0.02 * (s[k] - v) ** 2 for k, v in goal.items()), jitter=1e-6)
    found = run(bowl, dict.fromkeys(goal, 1.0))
    assert found.best.setting == pytest.approx(goal, abs=0.1)
    assert len(bowl.asked) <= 37


def test_a_budget_that_ends_on_the_way_keeps_the_lowest_so_far():
    bowl = Bowl(lambda s: 0.02 * (s["recall_strength"] - 6.0) ** 2, jitter=1e-4, most=3)
    found = run(bowl, {"recall_strength": 1.5})
    assert found.exhausted
    assert len(bowl.asked) == 3
    assert found.best.setting == min(bowl.asked, key=lambda s: abs(s["recall_strength"] - 6.0))


def test_a_merge_that_is_not_finite_is_never_the_best():
    bowl = Bowl(lambda s: math.nan if s["lambda"] > 1.1 else 0.1 * s["lambda"] ** 2)
    found = run(bowl, {"lambda": 1.0})
    assert found.best.setting["lambda"] < 0.3
    assert math.isfinite(found.best.figure.value)


# -- the YAML that is written --------------------------------------------------------------------

COMMENTED = """\
# what I merge
merge_method: task_arithmetic  # not ties
base_model: {base}
models:
  # the first
  - model: {code}
    parameters:
      weight: 0.3  # a guess
  - model: {german}  # no weight yet
parameters: {{normalize: false, lambda: 1}}
dtype: bfloat16
"""


def test_a_tuned_yaml_keeps_its_comments(tmp_path):
    file = tmp_path / "merge.yml"
    file.write_text(COMMENTED.format(base=BASE, code=CODE, german=GERMAN))
    recipe = Recipe(file, read_merge_yaml(file))
    setting = {"lambda": 0.64, "density": 0.5, "weight[0]": 0.85, "weight[1]": 1.2}
    text, kept = tuned_text(recipe, setting, ["gained much"])
    assert kept
    assert text.startswith(f"{MARK}\n# gained much\n\n# what I merge\n")
    for comment in ("# not ties", "# the first", "# a guess", "# no weight yet"):
        assert comment in text
    wanted = yaml.safe_load(file.read_text())
    wanted["parameters"] |= {"lambda": 0.64, "density": 0.5}
    wanted["models"][0]["parameters"]["weight"] = 0.85
    wanted["models"][1]["parameters"] = {"weight": 1.2}
    assert yaml.safe_load(text) == wanted
    # tuned once more, it has one comment of ours
    file.write_text(text)
    again, _ = tuned_text(Recipe(file, read_merge_yaml(file)), {"lambda": 0.5}, ["no more"])
    assert again.count(MARK) == 1
    assert "gained much" not in again
    assert yaml.safe_load(again)["parameters"]["lambda"] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear\nmodels: &m\n- {model: CODE}\n"
        "- {model: GERMAN, parameters: {weight: 1}}\n",
        "{merge_method: linear, models: [{model: CODE}, {model: GERMAN}]}",
        "merge_method: linear\nmodels:\n- model: CODE\n- model: GERMAN\n  parameters: {}\n",
        "merge_method: linear\r\nmodels:\r\n- model: CODE\r\n- model: GERMAN\r\n",
        "a: &p {weight: 2}\nmerge_method: linear\nmodels:\n- model: CODE\n  parameters: *p\n"
        "- model: GERMAN\n  parameters: *p\n",
    ],
)
def test_any_yaml_can_be_tuned(tmp_path, text):
    file = tmp_path / "merge.yml"
    file.write_bytes(text.replace("CODE", CODE).replace("GERMAN", GERMAN).encode())
    recipe = Recipe(file, read_merge_yaml(file))
    written, _ = tuned_text(recipe, {"weight[1]": 0.25}, ["x"])
    wanted = yaml.safe_load(file.read_text())
    wanted["models"][1]["parameters"] = {"weight": 0.25}
    assert yaml.safe_load(written) == wanted


def test_options_that_are_not_one_number_stay(tmp_path):
    recipe = recipe_of(
        tmp_path,
        merge_method="yoyo_fusion",
        parameters={"consensus": "recall", "recall_strength": [1.0, 2.0], "ridge": 1.0},
    )
    keys, notes = recipe.knobs()
    assert set(keys) == {"consensus", "ridge", "weight[0]", "weight[1]", "weight[2]"}
    assert notes == ["recall_strength stays as it is: the YAML has filters or a gradient for it"]
    with pytest.raises(YoyoError, match=r"nothing to tune here \(recall_strength stays as it is"):
        recipe.knobs(["recall_strength"])


def test_what_a_slice_sets_stays(tmp_path):
    file = tmp_path / "merge.yml"
    sources = [{"model": m, "layer_range": [0, 6]} for m in (CODE, GERMAN)]
    slices = [{"sources": sources, "parameters": {"t": 0.4}}]
    file.write_text(yaml.safe_dump({"merge_method": "slerp", "base_model": CODE, "slices": slices}))
    with pytest.raises(YoyoError, match="t stays as it is: a slice of the YAML sets it"):
        Recipe(file, read_merge_yaml(file)).knobs()
