"""What the card of a merge says: each option held to what mergekit itself gives each tensor."""

import json
import re
from pathlib import Path

import pytest
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from transformers import LlamaConfig

import mergekit_yoyo  # noqa: F401  registers the method
from mergekit_yoyo.finish.card import Loaded, finished_card
from mergekit_yoyo.finish.parts import Part, parts_of
from mergekit_yoyo.install import install_line, line_for
from mergekit_yoyo.model.merge_yaml import read_merge_yaml

EXPERTS = Path(__file__).resolve().parent.parent / "examples" / "experts"
LAYERS = json.loads((EXPERTS / "german" / "config.json").read_text())["num_hidden_layers"]
LLAMA = Loaded(
    {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, chat=True, processor=False
)
DEFAULTS = {"consensus": "tukey", "rescale": "mean", "tukey_c": 4.685}

MODELS = f"models: [{{model: {EXPERTS}/german}}, {{model: {EXPERTS}/code}}]\n"
SLICES = "slices:\n" + "".join(
    "- sources: ["
    + ", ".join(
        f"{{model: {EXPERTS}/{name}, layer_range: [{a}, {b}]}}" for name in ("german", "code")
    )
    + f"]\n  parameters: {parameters}\n"
    for a, b, parameters in [
        (0, 1, "{consensus: recall}"),
        (1, 3, "{consensus: [{filter: mlp, value: recall}], tukey_c: 3}"),
        (3, LAYERS, "{rescale: median}"),
    ]
)


def planned(text: str) -> dict[str, dict[str, object]]:
    """The parameters that mergekit's own planner gives each tensor."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    german = LlamaConfig.from_pretrained(EXPERTS / "german")
    options = MergeOptions()
    planner = MergePlanner(config, get_architecture_info(config, options), options, german)
    saved = [task for task in planner.plan_to_disk("unused") if isinstance(task, SaveTensor)]
    return {task.tensor_name: dict(task.tensor_task.parameters) for task in saved}


def told(parts: list[Part], tensor: str) -> tuple[object, ...]:
    """The values of `tensor`, by the words of the card alone: the first part that it fits."""
    found = re.search(r"layers\.(\d+)\.", tensor)
    layer = int(found[1]) if found else -1 if "embed" in tensor else LAYERS
    for part in parts:
        names = re.search(r"tensors with `(.*)` in their names", part.where)
        place = re.search(r"layers? (\d+)(?: to (\d+))?( and before)?( and after)?", part.where)
        if names and names[1] not in tensor:
            continue
        if place:
            first, last = int(place[1]), int(place[2] or place[1])
            if not (-1 if place[3] else first) <= layer <= (LAYERS if place[4] else last):
                continue
        elif "layer" in part.where:
            raise AssertionError(part.where)
        return part.values
    raise AssertionError(f"{tensor}: no part of {parts}")


@pytest.mark.parametrize(
    "text",
    [
        MODELS,
        MODELS + "parameters: {consensus: recall, tukey_c: 3}\n",
        MODELS + "parameters: {consensus: [{filter: mlp, value: recall}, {value: tukey}]}\n",
        MODELS
        + "parameters: {consensus: [{filter: mlp.down, value: tukey}, {filter: mlp, value: recall}]"
        ", rescale: {filter: embed, value: median}, tukey_c: [{filter: '*', value: 7}]}\n",
        SLICES,
        SLICES + "parameters: {consensus: [{filter: q_proj, value: recall}], tukey_c: 9}\n",
    ],
)
def test_the_card_says_of_each_tensor_what_mergekit_gives_it(text: str) -> None:
    text = "merge_method: yoyo_fusion\n" + text
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    for option, default in DEFAULTS.items():
        parts = parts_of(config, option, default)
        for tensor, parameters in planned(text).items():
            assert told(parts, tensor) == (parameters[option],), f"{option} of {tensor}"


def test_a_gradient_is_told_as_mergekit_takes_it() -> None:
    text = (
        f"merge_method: yoyo_fusion\n{MODELS}"
        "parameters: {tukey_c: [3, 5], consensus: [tukey, recall]}\n"
    )
    given = planned(text)
    layer = "model.layers.{}.mlp.down_proj.weight"
    assert [given[layer.format(k)]["tukey_c"] for k in (0, LAYERS - 1)] == [3, 5]
    assert given["model.embed_tokens.weight"]["tukey_c"] == 3
    assert given["model.norm.weight"]["tukey_c"] == 3
    assert [given[layer.format(k)]["consensus"] for k in range(LAYERS)] == [
        *["tukey"] * (LAYERS - 1),
        "recall",
    ]
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    (numbers,), (words,) = (parts_of(config, option, None) for option in ("tukey_c", "consensus"))
    assert numbers.shown == "3 → 5"
    assert words.shown == "tukey, recall in the last layer"


def card_of(folder: Path, text: str) -> str:
    file = folder / "merge.yml"
    file.write_text(f"merge_method: yoyo_fusion\n{text}")
    card, _ = finished_card("", "mine", read_merge_yaml(file), {}, LLAMA)
    return card.split("```")[0]  # what stands before the YAML itself


def test_the_prose_tells_each_consensus_and_center_that_was_used(tmp_path: Path) -> None:
    tukey, recall = "weighed by Tukey's biweight", "Its consensus is recall"
    card = card_of(tmp_path, MODELS)
    assert tukey in card
    assert recall not in card
    assert "(their geometric median)" in card
    assert "no data, training or base model is needed" in card
    assert "| option |" not in card

    both = "parameters: {consensus: [{filter: mlp, value: recall}, {value: tukey}]}\n"
    card = card_of(tmp_path, MODELS + both)
    assert tukey in card
    assert recall in card
    assert "Its tensors differ in their consensus" in card
    assert "| `consensus` | recall | tensors with `mlp` in their names |\n" in card
    assert "|  | tukey | all others |\n" in card

    card = card_of(tmp_path, SLICES)
    assert "|  | tukey | all others, layers 1 to 2 |\n" in card
    assert "| `rescale` | mean | layer 0 and before |\n" in card

    anchored = f"base_model: {EXPERTS}/german\nparameters: {{center: anchor, consensus: recall}}\n"
    card = card_of(tmp_path, MODELS + anchored)
    assert tukey not in card
    assert "around a center (the base model)" in card
    assert "no data or training is needed" in card
    assert "| `center` | anchor | all |\n" in card


def test_the_install_line_is_the_one_that_worked() -> None:
    git = {"url": "https://x.org/o/r", "vcs_info": {"vcs": "git", "commit_id": "a1b2"}}
    assert line_for(json.dumps(git), "0.1.0", "[mlx]") == (
        "pip install 'mergekit-yoyo[mlx] @ git+https://x.org/o/r@a1b2'"
    )
    assert line_for(None, "0.1.0", "") == "pip install mergekit-yoyo==0.1.0"
    checkout = "pip install '.[eval]'  # in a checkout of mergekit-yoyo 0.1.0"
    for private in ({"url": "file:///home/me/yoyo", "dir_info": {}}, git | {"url": "file:///x"}):
        assert line_for(json.dumps(private), "0.1.0", "[eval]") == checkout
    assert install_line("eval").startswith("pip install '")
    assert "/home" not in install_line()
