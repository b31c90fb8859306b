"""Right numbers or a refusal: the families that transformers and mlx-lm share, exported."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_families import REFUSED, RIGHT, WITH_PICTURES, tiny_model
from mlx_lm.utils import load_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import export_model

TOLERANCE = 1e-3  # of the logits' standard deviation: the promise of the export
TOKENS = torch.randint(0, 128, (1, 40), generator=torch.Generator().manual_seed(3))


def _reference(model, start=0):
    places = {"position_ids": torch.arange(40)[None] + start} if start else {}
    with torch.no_grad():
        return model(TOKENS, use_cache=False, **places).logits[0].numpy()


def _weight_bytes(folder):
    return sum(array.nbytes for array in mx.load(str(folder / "model.safetensors")).values())


def _difference(folder, expected):
    model, _ = load_model(folder)  # plainly, as mlx_lm.load does
    actual = np.array(model(mx.array(TOKENS.numpy()))[0].astype(mx.float32))
    return np.abs(actual - expected).max() / expected.std()


@pytest.mark.parametrize("name", RIGHT)
def test_export_computes_what_transformers_computes(name, tmp_path):
    """From transformers' model layout, as mergekit writes it (experts packed)."""
    model = tiny_model(RIGHT[name], tmp_path / "source", original_layout=False)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "fp32")
    start = 128 if name == "phi3-longrope" else 0
    assert _difference(made.folder, _reference(model, start)) <= TOLERANCE
    assert made.plan.bytes == _weight_bytes(made.folder)
    assert all(path.is_file() for path in made.folder.iterdir())
    assert made.verification is not None
    assert made.verification.graph_difference <= TOLERANCE


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "glm4_moe", "gpt_oss"])
def test_export_of_the_original_layout_is_the_same(name, tmp_path):
    model = tiny_model(RIGHT[name], tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "fp32")
    assert _difference(made.folder, _reference(model)) <= TOLERANCE


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_the_language_part_of_a_model_of_pictures_is_exported(name, tmp_path):
    model = tiny_model(WITH_PICTURES[name], tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "fp32")
    assert _difference(made.folder, _reference(model)) <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_mlx_lm_cannot_express_is_refused_with_a_reason(name, tmp_path):
    spec, reason = REFUSED[name]
    tiny_model(spec, tmp_path / "source", original_layout=True)
    with pytest.raises(YoyoError, match=reason):
        export_model(tmp_path / "source", tmp_path / "mlx", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
