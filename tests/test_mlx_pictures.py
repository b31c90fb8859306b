"""Models of pictures and text exported whole, for mlx-vlm: what it reads, and why not where not."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pictures_fixtures import write_seeing

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import export_model, plan_export

vlm = pytest.importorskip("mlx_vlm", reason="mlx-vlm is not installed: pip install '.[vlm]'")

TOLERANCE = 1e-3  # of the logits' standard deviation: the promise of the export
SEEN = [
    *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("mistral3", "gemma4", "paligemma"),
]
# what mlx-vlm 0.7.10 computes otherwise, or transformers 5.24 not at all
UNSEEN = {
    "gemma3": r"logits after a picture differ by 1\.",
    "llava": "its processor makes no input of a picture: .*unexpected keyword argument 'padding'",
    "llama4": "transformers cannot run the model .*image_outputs",
}
TEXT = torch.tensor([[1, 9, 33, 12, 50, 8, 41, 20, 31, 17]])


def _picture() -> Any:
    from PIL import Image

    pixels = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 72))


def _transformers(folder: Path) -> Any:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def _logits_of_both(source: Path, made: Path) -> tuple[np.ndarray, np.ndarray]:
    """The logits of the last position of a prompt with a picture: transformers', mlx-vlm's."""
    from mlx_vlm import apply_chat_template, load
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import prepare_inputs

    model, processor = load(str(made))
    model.set_dtype(mx.float32)
    prompt = apply_chat_template(processor, model.config, "What is this?", num_images=1)
    inputs = prepare_inputs(processor, images=[_picture()], prompts=prompt)
    known = {k: torch.tensor(np.array(v)) for k, v in inputs.items() if v is not None}
    known.pop("labels", None)
    if made.name == "gemma4":  # mlx-vlm cuts the picture up in the model
        from transformers import AutoImageProcessor

        patches = AutoImageProcessor.from_pretrained(source)(_picture(), return_tensors="pt")
        known |= {key: patches[key] for key in ("pixel_values", "image_position_ids")}
    reference = _transformers(source)
    if made.name not in ("mistral3", "paligemma"):
        known["mm_token_type_ids"] = (known["input_ids"] == 60).int()
    with torch.no_grad():
        expected = reference(**known).logits[0, -1].numpy()
    ids, pixels, mask = (inputs.pop(k) for k in ("input_ids", "pixel_values", "attention_mask"))
    steps = generate_step(ids, model, pixels, mask, temperature=0.0, **inputs)
    _, logprobs = next(iter(steps))
    return expected - np.log(np.exp(expected).sum()), np.array(logprobs)


@pytest.mark.parametrize("name", SEEN)
def test_mlx_vlm_sees_what_transformers_sees(name: str, tmp_path: Path) -> None:
    """The export as mlx-vlm generates with it, beside transformers; and as mlx-lm reads it."""
    from mlx_lm.utils import load_model

    # float32: to norms of Qwen3.5 mlx-vlm adds 1, in bfloat16 with an error of its own
    source = write_seeing(tmp_path / "source", name, float32=True)
    made = export_model(source, tmp_path / name, "fp32")
    assert made.library == "mlx-vlm"
    assert made.verification is not None
    assert made.verification.graph_difference <= TOLERANCE
    assert made.verification.picture_difference is not None
    assert made.verification.picture_difference <= TOLERANCE
    assert not [n for n in made.notes if "pictures" in n]
    expected, actual = _logits_of_both(source, made.folder)
    assert np.abs(expected - actual).max() <= 3 * TOLERANCE * expected.std()

    if name == "paligemma":  # mlx-lm has no such model
        return
    with torch.no_grad():
        text = _transformers(source)(TEXT).logits[0].numpy()
    model, _ = load_model(made.folder)
    alone = np.array(model(mx.array(TEXT.numpy()))[0])
    assert np.abs(alone - text).max() <= TOLERANCE * text.std()


@pytest.mark.parametrize("name", UNSEEN)
def test_what_mlx_vlm_gets_wrong_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    source = write_seeing(tmp_path / "source", name)
    made = export_model(source, tmp_path / "mlx", "fp32")
    assert made.library == "mlx-lm"
    (note,) = (note for note in made.notes if note.startswith("made without pictures: "))
    assert re.search(UNSEEN[name], note), note
    assert any(note.startswith("left out: vision_") for note in made.notes)
    assert note in (made.folder / "README.md").read_text()
    assert "vision_config" not in json.loads((made.folder / "config.json").read_text())
    with pytest.raises(YoyoError, match=f"--pictures: .*{UNSEEN[name]}"):
        export_model(source, tmp_path / "again", "fp32", pictures=True)
    assert not (tmp_path / "again").exists()


def test_what_neither_library_computes_is_refused_with_both_reasons(tmp_path: Path) -> None:
    source = write_seeing(tmp_path / "source", "glm4v")
    with pytest.raises(
        YoyoError, match=r"no model for 'glm4v'.*pictures: .*after a picture differ"
    ):
        export_model(source, tmp_path / "mlx", "fp32")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing") / "source", "qwen3_vl")


def test_towers_stay_whole_unless_the_recipe_names_them(source: Path, tmp_path: Path) -> None:
    from mlx_vlm.utils import load_model

    made = export_model(source, tmp_path / "mlx", "qx86-hi")
    eyes = [p for p in made.plan.placements if p.path.startswith("vision_tower.")]
    assert eyes
    assert all(p.kind == "pictures" and p.bits is None for p in eyes)
    assert made.plan.bytes == sum(
        array.nbytes for array in mx.load(str(made.folder / "model.safetensors")).values()
    )
    assert made.verification is not None
    assert 0 < made.verification.drift.kl < 0.2
    plan = plan_export(source, "qx86-hi")
    assert [p.bits for p in plan.placements] == [p.bits for p in made.plan.placements]

    arguments = ["--quant", "q6-hi", "--pictures", "--bits", r"vision_tower.*attn\.qkv=8"]
    done = CliRunner().invoke(main, ["mlx", str(source), str(tmp_path / "eyes"), *arguments])
    assert done.exit_code == 0, done.output
    assert "ready for mlx_vlm.load" in done.output
    assert re.search(r"after a picture \d\.\de-0", done.output)
    model = load_model(tmp_path / "eyes")
    assert model.vision_tower.blocks[0].attn.qkv.bits == 8
    assert model.language_model.model.layers[0].mlp.up_proj.bits == 6
    assert not hasattr(model.vision_tower.blocks[0].attn.proj, "bits")


def test_the_card_says_how_and_its_example_runs(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made = export_model(source, tmp_path / "mlx", "bf16")
    card = (made.folder / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "mlx_vlm.generate --model mlx --image picture.jpg" in card
    assert "mlx_lm" not in card
    assert (made.folder / "preprocessor_config.json").is_file()
    (example,) = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(tmp_path)
    _picture().save("picture.jpg")
    exec(compile(example, "card", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_without_pictures_the_language_model_alone(source: Path, tmp_path: Path) -> None:
    made = export_model(source, tmp_path / "mlx", "bf16", pictures=False)
    assert made.library == "mlx-lm"
    assert not [n for n in made.notes if n.startswith("made without")]
    assert not (made.folder / "preprocessor_config.json").exists()
    assert "pipeline_tag: text-generation" in (made.folder / "README.md").read_text()


def test_words_for_pictures_and_sounds_are_in_no_prompt(tmp_path: Path) -> None:
    """Gemma 4's language model was refused: transformers takes such a token for a picture's."""
    source = write_seeing(tmp_path / "source", "gemma4")
    made = export_model(source, tmp_path / "mlx", "fp32", pictures=False)
    assert made.verification is not None
    assert made.verification.graph_difference <= TOLERANCE


def test_without_a_processor_nothing_is_seen(tmp_path: Path) -> None:
    source = write_seeing(tmp_path / "source", "qwen3_vl")
    (source / "preprocessor_config.json").unlink()
    made = export_model(source, tmp_path / "mlx", "bf16")
    assert any("has no preprocessor_config.json" in note for note in made.notes)
    with pytest.raises(YoyoError, match=r"--pictures: .*`mergekit-yoyo finish` copies it"):
        export_model(source, tmp_path / "again", "bf16", pictures=True)


def test_without_mlx_vlm_the_note_says_how_to_get_it(source: Path, tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['mlx_vlm'] = None\n"
        "from mergekit_yoyo.mlx import export_model\n"
        f"made = export_model({str(source)!r}, {str(tmp_path / 'mlx')!r}, 'bf16', verify=False)\n"
        "print(made.library, made.notes)"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mlx-lm (" in done.stdout
    assert re.search(r"mlx-vlm is not installed \(pip install .*\[vlm\]", done.stdout)


def test_pictures_of_a_model_without_them_are_refused(tmp_path: Path) -> None:
    from mlx_families import RIGHT, tiny_model

    tiny_model(RIGHT["qwen3"], tmp_path / "source", original_layout=True)
    with pytest.raises(YoyoError, match=r"--pictures: .*no vision_config"):
        export_model(tmp_path / "source", tmp_path / "mlx", "bf16", pictures=True)
