"""`consensus: recall` in mergekit-yaml: every tensor is taken for what it is in the network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finish_fixtures import write_checkpoint
from mergekit.merge_methods import merge_tensors
from method_fixtures import fine_tune, mergekit, recipe, sliced, tensors_of
from recall_reference import recall
from safetensors.torch import save_file
from tensors import relative_error

from mergekit_yoyo import fuse
from mergekit_yoyo.record.schema import TensorLine

ABC = ("a", "b", "c", "d")
FLOAT32 = 3e-7  # relative L2 error of a merge in float32
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def family_of(folder: Path, family: str) -> Path:
    """Four float32 fine-tunes of a tiny model."""
    write_checkpoint(folder / "base", family)
    for seed, name in enumerate(ABC):
        fine_tune(folder / "base", folder / name, seed, size=0.01, dtype=torch.float32)
    return folder


def merged(folder: Path, out: Path, extra: str = "", **parameters: object) -> dict:
    parameters = {"consensus": "recall", "recall_strength": 1.0, **parameters}
    text = recipe([f"./{m}" for m in ABC], extra, **parameters)
    run = mergekit("yaml", text, out, cwd=folder)
    assert run.returncode == 0, run.stderr
    return tensors_of(out)


def stored(folder: Path, name: str) -> list[np.ndarray]:
    return [tensors_of(folder / m)[name].numpy() for m in ABC]


def assert_recalled(tensor: torch.Tensor, inputs: list[np.ndarray], kind: str, **options) -> None:
    expected = recall(inputs, kind=kind, strength=1.0, **options)
    assert relative_error(tensor, expected.merge) <= FLOAT32
    other = recall(inputs, kind="embedding" if kind == "linear" else "linear", strength=1.0)
    if kind != "vector":  # the test can tell the kinds apart
        assert relative_error(tensor, other.merge) > 20 * FLOAT32


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen3", True)])
def test_dense_models(family, tied, tmp_path):
    folder = family_of(tmp_path, family)
    tensors = merged(folder, tmp_path / "merged")
    assert (HEAD in tensors) is not tied
    for name, tensor in tensors.items():
        kind = "embedding" if name == EMBEDDING else "vector" if tensor.ndim == 1 else "linear"
        assert_recalled(tensor, stored(folder, name), kind)


def test_a_base_model_as_anchor_and_layers_by_filter(tmp_path):
    folder = family_of(tmp_path, "llama")
    names = ("./base", *(f"./{m}" for m in ABC[:3]))
    text = sliced(
        [(names, 1, 2), (names, 0, 1), (names, 1, 2)],  # three layers, of two
        extra="base_model: ./base\ndtype: float32\nparameters: "
        + json.dumps(
            {
                "consensus": [{"filter": "mlp", "value": "tukey"}, {"value": "recall"}],
                "center": "anchor",
                "recall_strength": 1.0,
            }
        )
        + "\n",
    )
    run = mergekit("yaml", text, tmp_path / "merged", cwd=folder)
    assert run.returncode == 0, run.stderr
    tensors = tensors_of(tmp_path / "merged")
    inputs = [tensors_of(folder / m) for m in ("base", *ABC[:3])]
    for layer, source in ((0, 1), (1, 0), (2, 1)):
        name = "model.layers.{}.self_attn.o_proj.weight"
        of_source = [t[name.format(source)].float().numpy() for t in inputs]
        assert_recalled(tensors[name.format(layer)], of_source, "linear", anchor=0)
        name = "model.layers.{}.mlp.up_proj.weight"
        of_source = [t[name.format(source)].float() for t in inputs]
        expected = fuse(of_source, center="anchor", anchor=0).tensor
        assert relative_error(tensors[name.format(layer)], expected) <= FLOAT32


def test_packed_experts(tmp_path):
    folder = family_of(tmp_path, "qwen3_moe")
    for options in ({}, {"experts": "packed"}):
        tensors = merged(folder, tmp_path / f"merged-{len(options)}", **options)
        for name, tensor in tensors.items():
            if "mlp.experts" not in name:
                continue
            layer, kind = name.rsplit(".", 1)
            pieces = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for expert in range(4):
                inputs = [stored(folder, f"{layer}.{expert}.{piece}.weight") for piece in pieces]
                if options:  # apart all the same, but gate and up together
                    inputs = [[np.concatenate(x) for x in zip(*inputs, strict=True)]]
                parts = tensor[expert].chunk(len(inputs))
                for part, of_part in zip(parts, inputs, strict=True):
                    assert_recalled(part, of_part, "linear")


def test_experts_stored_transposed(tmp_path):
    folder = family_of(tmp_path, "gpt_oss")
    tensors = merged(folder, tmp_path / "merged")
    for kind in ("gate_up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{kind}"
        inputs = stored(folder, name)
        for expert in range(4):
            assert_recalled(tensors[name][expert], [x[expert] for x in inputs], "transposed")
        assert_recalled(tensors[f"{name}_bias"], stored(folder, f"{name}_bias"), "vector")


def test_conv1d_is_transposed_and_positions_are_a_table(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for seed, name in enumerate(ABC):
        fine_tune(tmp_path / "base", tmp_path / name, seed, size=0.01, dtype=torch.float32)
    kinds = {
        "wte.weight": "embedding",
        "wpe.weight": "embedding",
        "h.0.attn.c_attn.weight": "transposed",
        "h.0.mlp.c_proj.weight": "transposed",
        "h.0.mlp.c_proj.bias": "vector",
    }
    tensors = merged(tmp_path, tmp_path / "merged")
    for name, kind in kinds.items():
        name = f"transformer.{name}"
        assert_recalled(tensors[name], stored(tmp_path, name), kind)


def test_the_record_knows_recall(tmp_path):
    folder = family_of(tmp_path, "llama")
    report = tmp_path / "r.jsonl"
    tensors = merged(folder, tmp_path / "merged", report=str(report))
    lines = [TensorLine.model_validate_json(x) for x in report.read_text().splitlines()[1:]]
    assert {line.name for line in lines} == tensors.keys()
    for line in lines:
        kind = "embedding" if line.name == EMBEDDING else "linear"
        kind = "vector" if len(line.shape) == 1 else kind
        expected = recall(stored(folder, line.name), kind=kind, strength=1.0)
        assert line.consensus == "recall"
        assert line.strength == [1.0]
        assert line.rank is line.energy is line.energy_scale is None
        np.testing.assert_allclose(line.recalled[0], expected.recalled, rtol=2e-5)
        np.testing.assert_allclose(line.weights[0], expected.trust, rtol=1e-5)
        (bound,) = line.condition_number
        if kind == "linear":
            assert expected.condition <= bound <= 100 * expected.condition
        else:
            assert bound is None
        assert line.warnings == []


def test_two_models_are_averaged_and_the_record_says_why(tmp_path):
    tensors = [torch.randn(6, 5) for _ in range(2)]
    report = tmp_path / "r.jsonl"
    parameters = {"consensus": "recall", "report": str(report)}
    merge = merge_tensors(tensors, "yoyo_fusion", parameters=parameters, name="w")
    assert relative_error(merge, (tensors[0] + tensors[1]) / 2) <= 1e-7
    (warning,) = TensorLine.model_validate_json(report.read_text().splitlines()[1]).warnings
    assert (warning.kind, warning.problems) == ("alone", 1)


def test_raw_tensors_have_no_architecture(tmp_path):
    """mergekit-pytorch: matrices are linear layers, as in a direct call."""
    torch.manual_seed(0)
    base = torch.randn(12, 10)
    inputs = [base + 0.01 * torch.randn(12, 10) for _ in ABC]
    for name, x in zip(ABC, inputs, strict=True):
        save_file({"table.weight": x}, tmp_path / f"{name}.safetensors")
    text = recipe([f"./{m}.safetensors" for m in ABC], consensus="recall", recall_strength=1.0)
    run = mergekit("pytorch", text, tmp_path / "merged", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    merge = tensors_of(tmp_path / "merged")["table.weight"]
    assert_recalled(merge, [x.numpy() for x in inputs], "linear")


def test_a_model_class_that_cannot_be_built_is_an_error(tmp_path):
    folder = family_of(tmp_path, "llama")
    for name in ABC:
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**config, "hidden_act": "new"}))
    run = mergekit(
        "yaml", recipe([f"./{m}" for m in ABC], consensus="recall"), tmp_path / "out", cwd=folder
    )
    assert run.returncode == 1
    assert "consensus: recall must know" in run.stderr
    assert "Executing graph" not in run.stderr  # refused while planning
