"""What mergekit-yaml and mergekit-pytorch refuse with `yoyo_fusion`, when, and in which words."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from finish_fixtures import run_mergekit, write_checkpoint
from method_fixtures import Tensors, fine_tune, mergekit, recipe, sliced
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

ABC = ["./a", "./b", "./c"]
BASED = ["./base", *ABC]
ANCHORED = "base_model: ./base\nparameters: {center: anchor}\n"
WEIGHT = "model.layers.1.mlp.up_proj.weight"


class Case(NamedTuple):
    """A YAML and all that its refusal must say."""

    text: str
    says: tuple[str, ...]


def changed(name: str, new_name: str, change: Callable[[torch.Tensor], torch.Tensor]):
    def apply(tensors: Tensors) -> Tensors:
        return {**tensors, new_name: change(tensors.pop(name))}

    return apply


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 4] = torch.nan
    return tensor


def quantized(model: str, what: str) -> Case:
    says = (f"./{model}: its weights are quantized", what, "dequantize the model first")
    return Case(recipe(["./a", f"./{model}", "./c"], "dtype: bfloat16\n"), says)


CENTERS = "center: expected one of geometric_median, coordinate_median, anchor; got "
PLANNED = {
    "choice": Case(
        recipe(ABC, center="geometric_medain"),
        (CENTERS + "'geometric_medain'", "Did you mean geometric_median?"),
    ),
    "filtered choice": Case(
        recipe(ABC, center=[{"filter": "mlp", "value": "mean"}, {"value": "geometric_median"}]),
        (CENTERS + "'mean'",),
    ),
    "choice of a number": Case(
        recipe(ABC, rescale=3), ("rescale: expected one of mean, median; got 3",)
    ),
    "experts": Case(
        recipe(ABC, experts="apart"), ("experts: expected one of auto, packed, separate",)
    ),
    "number": Case(recipe(ABC, tukey_c=-1), ("tukey_c: expected a number above 0; got -1",)),
    "number in a gradient": Case(
        recipe(ABC, max_scale=[10, 0.5]), ("max_scale: expected a number of at least 1; got 0.5",)
    ),
    "number of words": Case(recipe(ABC, eps="tiny"), ("eps: expected a number", "'tiny'")),
    "anchor without a base": Case(
        recipe(ABC, center="anchor"),
        ("model.embed_tokens.weight: center: anchor needs base_model",),
    ),
    "anchor for some tensors": Case(
        recipe(ABC, center=[{"filter": "q_proj", "value": "anchor"}]),
        ("model.layers.0.self_attn.q_proj.weight: center: anchor needs base_model",),
    ),
    "signs without a base": Case(
        recipe(ABC, sign_alignment="base"),
        ("model.embed_tokens.weight: sign_alignment: base needs base_model",),
    ),
    "no weight": Case(
        "merge_method: yoyo_fusion\nparameters: {weight: [{filter: mlp, value: 0}, {value: 1}]}\n"
        "models: [{model: ./a}, {model: ./b}]\n",
        ("model.layers.0.mlp.", "all its models have weight 0"),
    ),
    "negative weight": Case(
        "merge_method: yoyo_fusion\nmodels:\n- {model: ./a, parameters: {weight: -1}}\n"
        "- model: ./b\n",
        ("weight: expected a number of at least 0; got -1",),
    ),
    "no flag": Case(recipe(ABC, matrix_boost=3), ("matrix_boost: expected true or false; got 3",)),
    "anchor not in a slice": Case(
        sliced([(BASED, 0, 1), (ABC, 1, 2), (BASED, 2, 3)], ANCHORED),
        ("model.layers.1.", "center: anchor needs ./base among the sources", "./a, ./b, ./c"),
    ),
    "anchor without the tensor": Case(
        recipe(["./biased", "./biased2"], "base_model: ./unbiased\n", center="anchor"),
        (
            "k_proj.bias: the anchor ./unbiased lacks this optional tensor",
            "filter: model.layers.0.self_attn.k_proj.bias",
        ),
    ),
    "norm of one": Case(
        sliced([(["./a"], 0, 1), (ABC, 1, 3)]),
        (
            "model.norm.weight: the last slice has 3 sources and the first one 1",
            "from only ./a.",
            "mergekit-multi",
        ),
    ),
    "norm of two under another vocabulary": Case(
        sliced([(ABC[:2], 0, 1), (ABC, 1, 3)], "base_model: ./a\ntokenizer: {source: union}\n"),
        ("the last slice has 3 sources and the first one 2", "from only ./a, ./b."),
    ),
    "float8": quantized("float8", f"{WEIGHT} is F8_E4M3"),
    "GPTQ": quantized("gptq", "model.layers.1.mlp.up_proj.qweight is I32"),
    "bitsandbytes": quantized("bnb", f"{WEIGHT}.absmax is F32"),
    "AWQ": quantized("awq", "quantization_config: awq"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("errors")
    base = write_checkpoint(root / "base", "llama", values={"num_hidden_layers": 3})
    for k, name in enumerate("abc"):
        fine_tune(base, root / name, k)
    fine_tune(base, root / "nan", 5, change=changed(WEIGHT, WEIGHT, with_nan))
    spoiled = {
        "float8": (WEIGHT, lambda t: t.to(torch.float8_e4m3fn)),
        "gptq": (WEIGHT.replace(".weight", ".qweight"), lambda t: t.to(torch.int32)),
        "bnb": (f"{WEIGHT}.absmax", lambda t: t.float()),
    }
    for name, (new_name, change) in spoiled.items():
        fine_tune(base, root / name, 6, change=changed(WEIGHT, new_name, change))
    fine_tune(base, root / "awq", 6, config={"quantization_config": {"quant_method": "awq"}})
    biased = write_checkpoint(root / "biased", "glm4_moe", values={"attention_bias": True})
    fine_tune(biased, root / "biased2", 1)
    fine_tune(
        biased,
        root / "unbiased",
        2,
        change=lambda tensors: {n: t for n, t in tensors.items() if "k_proj.bias" not in n},
    )
    return root


@pytest.fixture(scope="module")
def refusals(place: Path) -> dict[str, str]:
    """What mergekit-yaml raised for each case of `PLANNED`, in one process."""
    jobs = {place / f"out {name}": case.text for name, case in PLANNED.items()}
    failed = run_mergekit(jobs, place)
    return {out.name.removeprefix("out "): error for out, error in failed.items()}


@pytest.mark.parametrize("name", PLANNED)
def test_refused_while_planning(place: Path, refusals: dict[str, str], name: str) -> None:
    for phrase in PLANNED[name].says:
        assert phrase in refusals[name].replace("\\'", "'")
    assert "pydantic" not in refusals[name]
    assert not (place / f"out {name}").exists()  # it is made when the first tensor is read


def test_nan_stops_the_merge_and_names_tensor_and_model(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = mergekit("yaml", recipe([*ABC, "./nan"], "dtype: float32\n"), out, cwd=place)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"{WEIGHT}: ./nan holds NaN or infinite values" in last
    assert not list(out.glob("*.safetensors"))


def test_a_bad_plan_is_told_without_a_traceback(place: Path, tmp_path: Path) -> None:
    done = mergekit("yaml", PLANNED["norm of one"].text, tmp_path / "merged", cwd=place)
    assert done.returncode == 1
    assert "\nError: model.norm.weight: the last slice has 3 sources" in done.stderr
    assert "Traceback" not in done.stderr


def test_mergekit_pytorch_refuses_quantized_files(place: Path, tmp_path: Path) -> None:
    files = [place / "a" / "model.safetensors", tmp_path / "scaled.safetensors"]
    weight = torch.ones(4, 4).to(torch.float8_e5m2)
    save_file({"linear.weight": weight, "linear.weight_scale": torch.ones(1)}, files[1])
    out = tmp_path / "merged"
    text = recipe([str(file) for file in files], "dtype: bfloat16\n")
    done = mergekit("pytorch", text, out, cwd=place)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"{files[1]}: its weights are quantized (linear.weight is F8_E5M2)" in last
    assert not out.exists()
