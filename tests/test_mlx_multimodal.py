"""Models with parts that mlx-lm does not read (for pictures, for multi-token prediction) to MLX: as
mergekit leaves them and as their checkpoints are.
"""

from pathlib import Path

import pytest
from families import write_family
from finish_fixtures import run_mergekit
from method_fixtures import fine_tune, recipe

from mergekit_yoyo.mlx import export_model

pytestmark = pytest.mark.slow

# what mlx-lm's language model does not read
LEFT_OUT = {
    "qwen3_vl_moe": {"model.visual"},
    "qwen3_5": {"model.visual", "mtp"},
    "qwen3_5_moe-experts": {"model.visual", "mtp"},
    "llama4": {"vision_model", "multi_modal_projector"},
    "deepseek_v3": {"model.layers.3"},
    "glm4_moe": {"model.layers.3"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("multimodal")
    jobs = {}
    for name in LEFT_OUT:
        first = write_family(root / f"{name}-a", name)
        fine_tune(first, root / f"{name}-b", seed=1)
        models = [f"./{name}-a", f"./{name}-b"]
        jobs[root / f"{name}-raw"] = recipe(models, f"base_model: {models[0]}\n")
    failed = run_mergekit(jobs, root, [])
    assert not any(failed.values()), failed
    return root


@pytest.mark.parametrize("state", ["a", "raw"])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_language_model_is_exported_and_the_rest_is_said(
    place: Path, name: str, state: str
) -> None:
    """The weights are bfloat16: mlx-lm adds 1 to some norms, which must not hide in a threshold."""
    made = export_model(place / f"{name}-{state}", place / f"mlx-{name}-{state}", "fp32")
    assert made.verification is not None
    assert made.verification.graph_difference <= 1e-3
    said = {note.split()[2] for note in made.notes if note.startswith("left out: ")}
    assert said == LEFT_OUT[name]
    card = (made.folder / "README.md").read_text()
    assert all(f"left out: {part}" in card for part in said)
