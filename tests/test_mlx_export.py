"""The export as a user runs it: the real command on a real merge of the shipped experts."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mlx.core as mx
import mlx_lm
import mlx_lm.utils as mlx_utils
import numpy as np
import pytest
import torch
from mlx_families import REFUSED, RIGHT, tiny_model
from mlx_lm.utils import load_model, make_shards
from safetensors.torch import load_file, save_file
from stopping import stopped_after

from mergekit_yoyo.card import check_card, read_metadata, read_section, update_metadata
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import export, export_model, parse_recipe, plan_export
from mergekit_yoyo.mlx.bridge import bridge_folder
from mergekit_yoyo.mlx.card import _deckard
from mergekit_yoyo.mlx.drift import measure_drift
from mergekit_yoyo.mlx.opening import open_checkpoint
from mergekit_yoyo.mlx.verify import whether_to_verify

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def run(*arguments, cwd=ROOT, **environment):
    command = [str(argument) for argument in arguments]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
    )


def yoyo_mlx(*arguments, **environment):
    return run(BIN / "mergekit-yoyo", "mlx", *arguments, **environment)


@pytest.fixture(scope="session")
def merged(tmp_path_factory):
    """The quickstart's merge by a real `mergekit-yaml`, with license and languages on its card."""
    folder = tmp_path_factory.mktemp("merge") / "merged"
    done = run(BIN / "mergekit-yaml", "examples/quickstart.yml", folder)
    assert done.returncode == 0, done.stderr
    card = folder / "README.md"
    languages = {"license": "apache-2.0", "language": ["en", "de"]}
    card.write_text(update_metadata(card.read_text(), languages | {"base_model": None}))
    return folder


@pytest.fixture(scope="session")
def exported(merged, tmp_path_factory):
    target = tmp_path_factory.mktemp("mlx") / "merged-qx86-hi-mlx"
    done = yoyo_mlx(merged, target, "--quant", "qx86-hi", "--base-model", "me/merged")
    assert done.returncode == 0, done.stderr
    return target, done


def test_the_export_loads_and_generates(exported):
    target, _ = exported
    model, tokenizer = mlx_lm.load(str(target))
    text = mlx_lm.generate(model, tokenizer, prompt="def main(", max_tokens=24)
    assert len(text) >= 12
    assert text == mlx_lm.generate(model, tokenizer, prompt="def main(", max_tokens=24)
    assert model.model.layers[0].self_attn.q_proj.bits == 8
    assert model.model.layers[1].self_attn.q_proj.bits == 8
    assert model.model.layers[1].mlp.up_proj.bits == 6
    assert model.model.embed_tokens.bits == 8
    assert model.model.layers[1].mlp.up_proj.group_size == 32


def test_the_command_reports_what_it_compared(exported):
    _, done = exported
    assert "against transformers, unquantized: " in done.stdout
    assert "top-1 agreement" in done.stdout
    assert "Comparing with transformers" in done.stderr
    assert "ready for mlx_lm.load" in done.stdout


def test_the_folder_is_as_large_as_planned(exported, merged):
    target, _ = exported
    plan = plan_export(merged, "qx86-hi")
    size = sum(path.stat().st_size for path in target.iterdir())
    assert plan.folder_bytes == pytest.approx(size, rel=0.01)
    listed = yoyo_mlx(merged, "--list")
    row = next(line for line in listed.stdout.splitlines() if " qx86-hi " in line)
    assert f"{plan.bits_per_weight:.2f}" in row
    assert len([line for line in listed.stdout.splitlines() if line.startswith("│")]) == 138


def test_a_plan_is_printed_and_nothing_written(merged):
    before = sorted(merged.parent.iterdir())
    done = yoyo_mlx(merged, "--quant", "qx64", "--bits", "down_proj=0", "--plan")
    assert done.returncode == 0
    assert "embedding = head" in done.stdout
    assert "to convert" in done.stdout
    assert sorted(merged.parent.iterdir()) == before


def test_the_card_is_accepted_and_complete(exported):
    target, _ = exported
    card = (target / "README.md").read_text()
    check_card(card)
    assert read_metadata(card) == {
        "license": "apache-2.0",
        "language": ["en", "de"],
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mergekit", "merge", "mlx"],
        "base_model": "me/merged",
        "base_model_relation": "quantized",
    }
    section = read_section(card, "mlx")
    for part in ("| attention | 8 | 32 | 24 |", "merge_method:", "mlx_lm.server", "LM Studio"):
        assert part in section


def test_an_overwritten_export_keeps_what_the_user_wrote(merged, tmp_path):
    target = tmp_path / "mlx"
    export_model(merged, target, "q8", verify=False)
    card = target / "README.md"
    card.write_text(card.read_text().replace("# mlx\n", "# My model\n\nBest at haiku.\n"))
    assert "Replace it with --overwrite or choose another name" in str(
        _refusal(merged, target, "q4")
    )
    export_model(merged, target, "q4", verify=False, overwrite=True)
    assert "Best at haiku." in card.read_text()
    assert "recipe `q4`" in card.read_text()
    assert json.loads((target / "config.json").read_text())["quantization"]["bits"] == 4


def test_drift_shrinks_with_width(merged, tmp_path):
    drifts = [
        export_model(merged, tmp_path / name, name).verification.drift
        for name in ("q2", "q4", "qx86", "q8-hi", "fp32")
    ]
    kls = [drift.kl for drift in drifts]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] > 0.05
    assert kls[-1] < 1e-9
    assert drifts[-1].top1_agreement == 1.0


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4", "fp16"])
def test_other_modes_load_as_written(name, merged, tmp_path):
    made = export_model(merged, tmp_path / name, name)
    assert made.verification.drift.top1_agreement > 0.6
    model, _ = load_model(made.folder)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == mx.float16 if name == "fp16" else layer.mode == name


def test_a_model_of_many_shards_is_written_and_indexed(merged, tmp_path, monkeypatch):
    """mlx-lm's shards of 5 GB, at a limit that gives each tensor one of its own."""
    monkeypatch.setattr(mlx_utils, "make_shards", partial(make_shards, max_file_size_gb=0))
    made = export_model(merged, tmp_path / "mlx", "q8")
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in made.folder.glob("model-*.safetensors")}
    assert len(files) > 50
    assert set(index["weight_map"].values()) == files
    assert made.verification.drift.kl < 0.01


def test_an_older_config_is_read_alike(merged, tmp_path):
    """As `finish` or transformers 4 writes it: rope_theta, torch_dtype, no rope_parameters."""
    old = _copy(merged, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    (old / "config.json").write_text(json.dumps(config))
    assert config["rope_theta"] == 50000.0
    assert bridge_folder(old).args == bridge_folder(merged).args


def test_max_kl_refuses_and_leaves_nothing(merged, tmp_path):
    with pytest.raises(YoyoError, match=r"--max-kl 0\.001: .* divergence is"):
        export_model(merged, tmp_path / "mlx", "q2", max_kl=0.001)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_no_half_model(merged, tmp_path):
    command = ["mlx", merged, tmp_path / "mlx", "--quant", "q4"]
    with stopped_after("mlx.core:save_safetensors", command, env=ENVIRONMENT) as process:
        (half,) = tmp_path.iterdir()
        assert half.name.startswith(".mlx")
        assert [path.name for path in half.iterdir()] == ["model.safetensors"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode != 0
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_window_in_every_layer_is_exported_for_a_context_within_it(tmp_path):
    spec, _ = REFUSED["mistral-window"]
    model = tiny_model(spec, tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "fp32", context=8)
    assert _difference(made.folder, model, torch.arange(8)[None]) < 1e-3


def test_longrope_is_exported_for_short_contexts_too(tmp_path):
    model = tiny_model(RIGHT["phi3-longrope"], tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "fp32", context=128)
    assert _difference(made.folder, model, torch.arange(40)[None]) < 1e-3
    long = export_model(tmp_path / "source", tmp_path / "long", "fp32")
    assert _difference(long.folder, model, torch.arange(40)[None]) > 1e-2
    assert _difference(long.folder, model, torch.arange(200)[None] % 128) < 1e-3


def test_what_a_model_keeps_in_float32_is_not_cast(tmp_path):
    """GLM's correction of its router, by the model class's `cast_predicate`."""
    tiny_model(RIGHT["glm4_moe"], tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "bf16")
    written = mx.load(str(made.folder / "model.safetensors"))
    kept = {name for name, array in written.items() if array.dtype == mx.float32}
    assert kept == {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)}
    assert made.plan.bytes == sum(array.nbytes for array in written.values())


def test_without_verification_doubts_stand_in_the_card(tmp_path):
    spec, _ = REFUSED["gpt_oss-untruncated"]
    tiny_model(spec, tmp_path / "source", original_layout=True)
    made = export_model(tmp_path / "source", tmp_path / "mlx", "q8", verify=False)
    assert made.verification is None
    assert "yarn without truncation" in (made.folder / "README.md").read_text()


def test_a_model_too_large_to_compare_is_exported_unless_there_are_doubts(merged, tmp_path):
    verify, reason = whether_to_verify(None, open_checkpoint(merged), 10**15)
    assert not verify
    assert reason.startswith("not compared with transformers: transformers needs 5000.0 TB")
    tiny_model(REFUSED["glm"][0], tmp_path / "glm", original_layout=True)
    with pytest.raises(YoyoError, match=r"rotary factor of 0\.5.*--no-verify exports it"):
        whether_to_verify(None, open_checkpoint(tmp_path / "glm"), 10**15)


def _difference(folder, model, tokens):
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits[0].numpy()
    written, _ = load_model(folder)
    actual = np.array(written(mx.array(tokens.numpy()))[0])
    return np.abs(actual - expected).max() / expected.std()


def _refusal(*arguments, **options):
    with pytest.raises(YoyoError) as caught:
        export_model(*arguments, **options)
    return caught.value


def _copy(merged, folder, **config):
    shutil.copytree(merged, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_bad_sources_are_refused_with_a_sentence(merged, tmp_path):
    target = tmp_path / "mlx"

    def refused(source, pattern):
        assert pattern in str(_refusal(source, target, "q4"))
        assert not target.exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json. Is this a model folder?")
    refused(tmp_path / "nowhere", "no such folder, and not a name on the Hub")
    lama = _copy(merged, tmp_path / "lama", model_type="lama")
    refused(lama, "no model for 'lama'. Did you mean llama")
    refused(
        _copy(merged, tmp_path / "quantized", quantization_config={"bits": 4}),
        "the weights are quantized already",
    )
    bare = _copy(merged, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    refused(bare, "no tokenizer")
    cut = _copy(merged, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((merged / "model.safetensors").read_bytes()[:5000])
    refused(cut, "this safetensors file cannot be read")
    part = _copy(merged, tmp_path / "part")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(part, "names 1 files; 1 of them are not there")
    for damaged in ("{}", '{"weight_map": {"a"'):
        (part / "model.safetensors.index.json").write_text(damaged)
        refused(part, "model.safetensors.index.json: ")
    (part / "model.safetensors.index.json").unlink()
    shutil.copy(part / "model.safetensors", part / "model-00001-of-00001.safetensors")
    refused(part, "is in model-00001-of-00001.safetensors and in model.safetensors")
    (part / "model-00001-of-00001.safetensors").unlink()
    (part / "model.safetensors").rename(part / "pytorch_model.bin")
    refused(part, "expected weights in model*.safetensors; got pytorch_model.bin")
    assert "this is the source" in str(_refusal(merged, merged, "q4"))
    assert "owner/name" in str(
        _refusal(merged, target, "q4", verify=False, base_model="/not/a/name")
    )
    assert not target.exists()


def test_overwrite_replaces_nothing_but_an_export(merged, tmp_path):
    source = shutil.copytree(merged, tmp_path / "models" / "source")
    for target in (tmp_path / "models", tmp_path):
        message = str(_refusal(source, target, "q4", verify=False, overwrite=True))
        assert "the source lies in it" in message
    target = tmp_path / "notes"
    target.mkdir()
    export_model(source, target, "q4", verify=False)  # empty
    (target / "README.md").unlink()
    export_model(source, target, "q4", verify=False, overwrite=True)  # known by its weights
    (target / "model.safetensors").unlink()
    export_model(source, target, "q4", verify=False, overwrite=True)  # known by its card
    (target / "README.md").write_text("# Mine\n")
    (target / "model.safetensors").unlink()
    message = str(_refusal(source, target, "q4", verify=False, overwrite=True))
    assert "holds other files (README.md, config.json, " in message
    assert "delete it yourself or choose another name" in message
    assert (target / "README.md").read_text() == "# Mine\n"
    assert (source / "model.safetensors").exists()


def test_what_cannot_be_told_or_measured_is_refused_before_any_work(merged, tmp_path, monkeypatch):
    def begun(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(export, "staged_folder", begun)
    target = tmp_path / "mlx"
    refusals = [
        ("--max-kl 0.1: nothing would be measured", {"verify": False, "max_kl": 0.1}),
        ("--max-kl: expected a divergence", {"max_kl": float("nan")}),
        ("expected a name on the Hub", {"base_model": "/not/a/name"}),
    ]
    for message, options in refusals:
        assert message in str(_refusal(merged, target, "q4", **options))
    source = shutil.copytree(merged, tmp_path / "source")
    for card, message in [
        (b"---\nlicense: Apache 2\n---\n", "such as `apache-2.0`"),
        (b"\xff\xfe", "README.md: expected a text in UTF-8"),
    ]:
        (source / "README.md").write_bytes(card)
        assert message in str(_refusal(source, target, "q4"))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_full_disk_is_told_in_a_sentence(merged, tmp_path):
    """A limit on the size of a file makes mlx fail as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        error = _refusal(merged, tmp_path / "mlx", "q8", verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "mlx could not write the weights" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_never_pass(merged, tmp_path):
    fine, broken = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    fine[0, 0] = 2.0
    with pytest.raises(YoyoError, match="the quantized model's logits are not finite"):
        measure_drift([fine], [broken])
    with pytest.raises(YoyoError, match="the unquantized model's logits are not finite"):
        measure_drift([broken], [fine])
    source = shutil.copytree(merged, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    error = _refusal(source, tmp_path / "mlx", "fp32", verify=True)
    assert "logits in transformers are not finite" in str(error)


def test_a_model_that_cannot_be_run_is_no_traceback(merged, tmp_path):
    """A tokenizer of another model: its ids are beyond the embedding."""
    source = _copy(merged, tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {k: v + 10**6 for k, v in tokenizer["model"]["vocab"].items()}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = str(_refusal(source, tmp_path / "mlx", "q8", verify=True))
    assert "transformers cannot run the model" in message


def test_a_shorter_context_stands_in_config_card_and_output(merged, tmp_path):
    source = shutil.copytree(merged, tmp_path / "source")
    (source / "mergekit_config.yml").unlink()
    made = export_model(source, tmp_path / "mlx", "q8", context=64, verify=False)
    note = "made for conversations of up to 64 tokens (--max-context)"
    assert note in made.notes
    card = (made.folder / "README.md").read_text()
    assert note in card
    assert "MLX conversion of a local checkpoint, recipe" in card
    config = json.loads((made.folder / "config.json").read_text())
    assert config["max_position_embeddings"] == 64
    assert bridge_folder(source).config["max_position_embeddings"] > 64
    assert bridge_folder(source, context=10**6).config == bridge_folder(source).config
    long = export_model(source, tmp_path / "long", "q8", context=10**6, verify=False)
    assert not [note for note in long.notes if "--max-context" in note]


def test_the_card_says_what_the_recipe_really_is(merged):
    changes = {"period": 3, "offset": 1, "projections": ("[vo]_proj",), "modules": {"down": 3}}
    sentence = _deckard(parse_recipe("qx86").changed(**changes))
    assert "once in 3 layers of a kind from number 1, the attention" in sentence
    assert "attention projections (`[vo]_proj`)" in sentence
    assert "; modules `down` at 3 bits; groups of 64" in sentence
    assert "these projections and layers were chosen for this export" in sentence
    whole = _deckard(parse_recipe("qx86"))
    assert "embeddings, head, routers and the attention projections (all) at 8 bits" in whole
    assert "layers are mergekit-yoyo's own definition" in whole
    sentence = _deckard(parse_recipe("qx86p4x-hi"))
    assert "once in 4 layers of a kind from number 0, the attention projections (all)" in sentence
    assert "the first 1 layer(s) wholly so; groups of 32" in sentence
    assert "layers are mergekit-yoyo's own definition" in sentence
    assert "attention" not in _deckard(parse_recipe("qx86").changed(period=0))


def test_list_refuses_what_it_would_ignore_and_names_stay_as_they_are(merged, tmp_path):
    both = yoyo_mlx(merged, "--list", "--period", "2")
    assert both.returncode == 2
    assert "without --period" in both.stderr
    assert "without TARGET" in yoyo_mlx(merged, tmp_path / "mlx", "--list").stderr
    recipe = tmp_path / ("[bold]" + "long" * 20 + ".yml")
    recipe.write_text("base: qx64\n")
    done = yoyo_mlx(merged, "--recipe", recipe, "--plan", COLUMNS="80")
    assert f"{recipe.stem}: " in done.stdout, done.stdout + done.stderr


def test_the_command_explains_mistakes_without_a_traceback(merged, tmp_path):
    unknown = yoyo_mlx(merged, tmp_path / "mlx", "--quant", "qx87")
    assert unknown.returncode == 2
    assert "Did you mean qx86" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    code = "import sys; sys.modules['mlx'] = None; from mergekit_yoyo.cli import main; main()"
    missing = run(sys.executable, "-c", code, "mlx", merged, tmp_path / "mlx", "--quant", "q4")
    assert missing.returncode == 2
    assert "pip install '.[mlx]'" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlx").mkdir()  # an mlx whose library cannot be loaded
    (tmp_path / "mlx" / f"core{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    broken = yoyo_mlx(merged, tmp_path / "out", "--quant", "q4", PYTHONPATH=path)
    assert broken.returncode == 2
    assert "mlx cannot be imported" in broken.stderr


def test_a_source_on_the_hub_is_fetched_by_huggingface_hub(merged, tmp_path):
    """From a cache as `hf download` leaves it; an uncached name says what the Hub said."""
    repo = tmp_path / "cache" / "hub" / "models--me--merged"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(merged, repo / "snapshots" / ("0" * 40))
    home = {"HF_HOME": str(tmp_path / "cache")}
    done = yoyo_mlx("me/merged", tmp_path / "mlx", "--quant", "q6", "--no-verify", **home)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "mlx" / "README.md").read_text()
    assert read_metadata(card)["base_model"] == "me/merged"
    done = yoyo_mlx("me/other", tmp_path / "other", "--quant", "q6", **home)
    assert done.returncode == 2
    assert "me/other: no such folder here, and the Hub did not give it" in done.stderr
