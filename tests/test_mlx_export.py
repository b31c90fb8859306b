"""The export as a user runs it: the real command on a real merge of the shipped experts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from mlx_families import REFUSED, RIGHT, tiny_model
from mlx_lm.utils import load_model, make_shards

from mergekit_yoyo.card import check_card, read_metadata, read_section, update_metadata
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx import export, export_model, plan_export
from mergekit_yoyo.mlx.bridge import bridge_folder
from mergekit_yoyo.mlx.export import _whether_to_verify

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
    assert model.model.layers[1].self_attn.q_proj.bits == 6
    assert model.model.embed_tokens.bits == 8
    assert model.model.layers[1].mlp.up_proj.group_size == 32


def test_the_command_reports_what_it_compared(exported):
    _, done = exported
    assert "against transformers, unquantized: " in done.stdout
    assert "top-1 agreement" in done.stdout
    assert "comparing with transformers" in done.stderr
    assert "ready for mlx_lm.load" in done.stdout


def test_the_folder_is_as_large_as_planned(exported, merged):
    target, _ = exported
    plan = plan_export(merged, "qx86-hi")
    size = sum(path.stat().st_size for path in target.iterdir())
    assert plan.folder_bytes == pytest.approx(size, rel=0.01)
    listed = yoyo_mlx(merged, "--list")
    row = next(line for line in listed.stdout.splitlines() if " qx86-hi " in line)
    assert f"{plan.bits_per_weight:.2f}" in row
    assert len([line for line in listed.stdout.splitlines() if line.startswith("│")]) == 78


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
    for part in ("| attention | 6 | 32 | 16 |", "merge_method:", "mlx_lm.server", "LM Studio"):
        assert part in section


def test_an_overwritten_export_keeps_what_the_user_wrote(merged, tmp_path):
    target = tmp_path / "mlx"
    export_model(merged, target, "q8", verify=False)
    card = target / "README.md"
    card.write_text(card.read_text().replace("# mlx\n", "# My model\n\nBest at haiku.\n"))
    assert "choose another name" in str(_refusal(merged, target, "q4")).lower()
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
    monkeypatch.setattr(export, "make_shards", partial(make_shards, max_file_size_gb=0))
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
    command = [BIN / "mergekit-yoyo", "mlx", merged, tmp_path / "mlx", "--quant", "q4"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".mlx*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.glob(".mlx*")), "it never began to write"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
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
    bridge, notes = bridge_folder(merged), []
    assert not _whether_to_verify(None, 10**15, bridge, object(), notes)
    assert notes[0].startswith("not compared with transformers: transformers needs 5000.0 TB")
    tiny_model(REFUSED["glm"][0], tmp_path / "glm", original_layout=True)
    with pytest.raises(YoyoError, match=r"rotary factor of 0\.5.*--no-verify exports it"):
        _whether_to_verify(None, 10**15, bridge_folder(tmp_path / "glm"), object(), [])


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
    refused(_copy(merged, tmp_path / "lama", model_type="lama"), "nearest: llama")
    refused(
        _copy(merged, tmp_path / "quantized", quantization_config={"bits": 4}),
        "the weights are quantized already",
    )
    bare = _copy(merged, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    refused(bare, "no tokenizer")
    cut = _copy(merged, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((merged / "model.safetensors").read_bytes()[:5000])
    refused(cut, "not a readable safetensors file")
    part = _copy(merged, tmp_path / "part")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(part, "1 of 1 weight files are missing")
    (part / "model.safetensors").rename(part / "pytorch_model.bin")
    refused(part, "expected weights in model*.safetensors; got pytorch_model.bin")
    assert "this is the source" in str(_refusal(merged, merged, "q4"))
    assert "owner/name" in str(
        _refusal(merged, target, "q4", verify=False, base_model="/not/a/name")
    )
    assert not target.exists()


def test_the_command_explains_mistakes_without_a_traceback(merged, tmp_path):
    unknown = yoyo_mlx(merged, tmp_path / "mlx", "--quant", "qx87")
    assert unknown.returncode == 2
    assert "Nearest: qx86" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    code = "import sys; sys.modules['mlx'] = None; from mergekit_yoyo.cli import main; main()"
    missing = run(sys.executable, "-c", code, "mlx", merged, tmp_path / "mlx", "--quant", "q4")
    assert missing.returncode == 2
    assert "pip install 'mergekit-yoyo[mlx]'" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert list(tmp_path.iterdir()) == []


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
