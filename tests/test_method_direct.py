"""`yoyo_fusion` through mergekit's in-memory calls and through mergekit-pytorch."""

from pathlib import Path

import pytest
import torch
from mergekit.merge_methods import get, merge_state_dicts, merge_tensors
from method_fixtures import assert_is_merge, mergekit, recipe
from safetensors.torch import load_file, save_file

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method import METHOD


def some_tensors(count: int, *shape: int) -> list[torch.Tensor]:
    torch.manual_seed(count)
    shared = torch.randn(shape)
    return [shared + 0.1 * (k + 1) * torch.randn(shape) for k in range(count)]


def test_the_registered_method_is_ours() -> None:
    assert get("yoyo_fusion") is METHOD
    assert {parameter.name for parameter in METHOD.spec.parameters} == {
        *("center", "rescale", "mad_median", "tukey_c", "max_scale", "eps", "experts", "report"),
        *(
            "consensus",
            "ridge",
            "recall_prior",
            "recall_strength",
            "recall_precision",
            "weight",
            "rounding",
        ),
        *("weight_function", "welsch_c", "deviations", "rank_by", "scale_by", "matrix_boost"),
        "sign_alignment",
    }
    assert all(parameter.description for parameter in METHOD.spec.parameters)


def test_merge_tensors_is_the_oracle() -> None:
    tensors = some_tensors(4, 12, 20)
    assert_is_merge(merge_tensors(tensors, "yoyo_fusion"), tensors)
    options = {"center": "coordinate_median", "rescale": "median", "max_scale": 1.0}
    merged = merge_tensors(tensors, "yoyo_fusion", parameters={**options, "tukey_c": "3"})
    assert_is_merge(merged, tensors, **options, tukey_c=3.0)
    anchored = merge_tensors(tensors, "yoyo_fusion", parameters={"center": "anchor"}, base_index=2)
    assert_is_merge(anchored, tensors, center="anchor", anchor=2)
    halved = merge_tensors(tensors, "yoyo_fusion", out_dtype=torch.bfloat16)
    assert halved.dtype == torch.bfloat16
    assert_is_merge(halved, tensors)


def test_one_input_is_returned_with_every_center() -> None:
    (tensor,) = some_tensors(1, 5, 7)
    for center in ("geometric_median", "coordinate_median", "anchor"):
        merged = merge_tensors([tensor], "yoyo_fusion", parameters={"center": center})
        assert torch.equal(merged, tensor)


def test_experts_separate_takes_gate_and_up_apart_by_name() -> None:
    tensors = some_tensors(3, 4, 8, 6)
    separate = {"experts": "separate"}
    down = merge_tensors(tensors, "yoyo_fusion", parameters=separate, name="x.down_proj")
    both = merge_tensors(tensors, "yoyo_fusion", parameters=separate, name="x.gate_up_proj")
    for expert in range(4):
        of_expert = [tensor[expert] for tensor in tensors]
        assert_is_merge(down[expert], of_expert)
        assert_is_merge(both[expert][:4], [tensor[:4] for tensor in of_expert])
        assert_is_merge(both[expert][4:], [tensor[4:] for tensor in of_expert])
    assert_is_merge(merge_tensors(tensors, "yoyo_fusion", name="x.gate_up_proj"), tensors)


def test_merge_state_dicts_merges_weights_and_copies_buffers() -> None:
    weights, biases = some_tensors(3, 6, 9), some_tensors(3, 6)
    step = torch.tensor([3, 4])
    models = {
        name: {"weight": weight, "bias": bias, "step": step}
        for name, weight, bias in zip(("x", "y", "z"), weights, biases, strict=True)
    }
    merged = merge_state_dicts(models, "yoyo_fusion", base="y", parameters={"center": "anchor"})
    assert list(merged) == ["weight", "bias", "step"]
    assert_is_merge(merged["weight"], weights, center="anchor", anchor=1)
    assert_is_merge(merged["bias"], biases, center="anchor", anchor=1)
    assert torch.equal(merged["step"], step)


def test_mistakes_are_told_in_sentences() -> None:
    tensors = some_tensors(3, 4, 4)
    with pytest.raises(YoyoError, match=r"center: expected one of .* got 'mean'"):
        merge_tensors(tensors, "yoyo_fusion", parameters={"center": "mean"})
    with pytest.raises(YoyoError, match="tukey_c: expected a number above 0; got nan"):
        merge_tensors(tensors, "yoyo_fusion", parameters={"tukey_c": float("nan")})
    with pytest.raises(YoyoError, match=r"^w: center: anchor needs the base model among"):
        merge_tensors(tensors, "yoyo_fusion", parameters={"center": "anchor"}, name="w")
    with pytest.raises(YoyoError, match=r"experts: separate expects .* got shape \[4, 4\]"):
        merge_tensors(tensors, "yoyo_fusion", parameters={"experts": "separate"})
    with pytest.raises(TypeError, match="anchor"):  # mergekit's own: the base says it
        merge_tensors(tensors, "yoyo_fusion", parameters={"anchor": 1})
    tensors[1][2, 2] = torch.inf
    with pytest.raises(YoyoError, match=r"^tensor: input 1 holds NaN or infinite values"):
        merge_tensors(tensors, "yoyo_fusion")
    named = zip(("first", "second", "third"), tensors, strict=True)
    models = {name: {"w": tensor} for name, tensor in named}
    with pytest.raises(YoyoError, match=r"^w: second holds NaN or infinite values"):
        merge_state_dicts(models, "yoyo_fusion")


def test_mergekit_pytorch_merges_any_files(tmp_path: Path) -> None:
    weights = some_tensors(3, 6, 9)
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for file, weight in zip(files, weights, strict=True):
        save_file({"linear.weight": weight, "steps": torch.tensor([7])}, file)
    text = recipe([str(file) for file in files], f"base_model: {files[1]}\n", center="anchor")
    done = mergekit("pytorch", text, tmp_path / "merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert_is_merge(merged["linear.weight"], weights, center="anchor", anchor=1)
    assert merged["steps"].tolist() == [7]
