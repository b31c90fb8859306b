"""Nothing is lost: each family, in the layout of the Hub, arrives whole and exact."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from families import FAMILIES, names_of, write_family
from family_road import (
    MODELS,
    Road,
    compare_loads,
    config_of,
    judge,
    merge_yaml,
    travel,
    write_inputs,
)
from finish_fixtures import files_of, tensor_bytes, write_tokenizer
from method_fixtures import Tensors, assert_is_merge, fine_tune, mergekit, tensors_of
from safetensors.torch import load_file, save_file

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish import complete, finish, merge_yaml_of, plan_finish
from mergekit_yoyo.inspection import inspect
from mergekit_yoyo.planning import hook, planning

pytestmark = pytest.mark.slow

MTP = {"qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe-experts", "glm4_moe", "deepseek_v3"}


@pytest.fixture(autouse=True)
def _silent() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_arrives_whole(name: str, tmp_path: Path) -> None:
    road = travel(name, tmp_path)
    assert (road.merge, road.inspect, road.finish, road.transformers) == ("", "", "", "")
    assert not road.lost
    assert not road.strange
    assert not road.wrong
    if name in MTP:
        assert any(re.search(r"\bmtp\.|eh_proj", key) for key in names_of(tmp_path / "finished"))
        assert _promised(tmp_path / "merged") == _promised(tmp_path / "finished") == [1]


@pytest.mark.parametrize("name", ["qwen3_5_moe-experts", "deepseek_v3", "llava"])
def test_mergekits_own_command_loses_nothing(name: str, tmp_path: Path) -> None:
    inputs = write_inputs(name, tmp_path)
    done = mergekit("yaml", merge_yaml(inputs), tmp_path / "merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    finish(plan_finish(tmp_path / "merged"))
    assert names_of(tmp_path / "merged") == names_of(inputs[0])


def test_without_the_repair_a_lossy_merge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs("deepseek_v3", tmp_path)
    monkeypatch.setenv(hook.SWITCH, "0")
    done = mergekit("yaml", merge_yaml(inputs), tmp_path / "merged", cwd=tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "Error: mergekit would leave out of the merge, without a word, 56 tensors" in said
    assert "model.layers.*.mlp.experts.*.up_proj.weight (12 tensors, 6,144 parameters)" in said
    assert f"Unset {hook.SWITCH}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "merged" / "config.json").exists()
    assert not list(tmp_path.glob("merged/*.safetensors"))


def test_without_the_repair_what_is_whole_still_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs("qwen3_moe", tmp_path)
    monkeypatch.setenv(hook.SWITCH, "0")
    _merge(merge_yaml(inputs), tmp_path / "off")
    monkeypatch.delenv(hook.SWITCH)
    _merge(merge_yaml(inputs), tmp_path / "on")
    off, on = tensors_of(tmp_path / "off"), tensors_of(tmp_path / "on")
    assert off.keys() == on.keys()
    assert all(torch.equal(off[name], on[name]) for name in on)


def test_the_mergekit_at_hand_is_the_one_that_is_wrapped() -> None:
    assert hook.differing() == ()
    assert hook.fingerprint("mergekit.plan:MergePlanner.vanished") == "missing"


def test_another_mergekit_is_not_repaired_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = write_inputs("qwen3_next", tmp_path)
    changed = {**hook.FINGERPRINTS, "mergekit.plan:MergePlanner.plan_layer": "another"}
    monkeypatch.setattr(hook, "FINGERPRINTS", changed)
    for function in (hook.differing, hook.is_unknown):
        function.cache_clear()
    try:
        with pytest.raises(Exception, match=r"29 tensors .*install mergekit==0\.1\.5"):
            _merge(merge_yaml(inputs), tmp_path / "merged")
        assert "differs from 0.1.5 in mergekit.plan:MergePlanner.plan_layer" in caplog.text
    finally:
        monkeypatch.undo()
        for function in (hook.differing, hook.is_unknown):
            function.cache_clear()


def test_inspect_names_what_another_method_would_lose(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_5", tmp_path)
    file = tmp_path / "merge.yml"
    file.write_text(_linear(inputs))
    seen = inspect(file, quick=True)
    assert seen.failed
    (said,) = [text for text in seen.of_level("error") if "leave out" in text]
    assert "15 tensors (10,928 parameters, " in said
    assert "mtp.fc.weight (2,048 parameters)" in said
    assert "`mergekit-yoyo finish MERGE --complete`" in said
    assert "save_pretrained" not in said  # which would lose them too


def test_other_methods_are_left_as_they_are(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_5", tmp_path)
    _merge(_linear(inputs), tmp_path / "merged")
    assert names_of(inputs[0]) - names_of(tmp_path / "merged") == {
        name for name in names_of(inputs[0]) if name.startswith("mtp.")
    }


def test_finish_completes_a_merge_by_its_own_method(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_next", tmp_path)
    _merge(_linear(inputs), tmp_path / "merged")
    added = complete(tmp_path / "merged", merge_yaml_of(tmp_path / "merged"))
    assert len(added) == 29
    assert all(name.startswith("mtp.") for name in added)
    models, merged = [tensors_of(path) for path in inputs], tensors_of(tmp_path / "merged")
    for name in added:
        mean = sum(tensors[name].float() for tensors in models) / 3
        torch.testing.assert_close(merged[name].float(), mean, rtol=2**-7, atol=1e-3)
    finish(plan_finish(tmp_path / "merged"))
    assert names_of(tmp_path / "merged") == names_of(inputs[0])


def test_the_merge_command_brings_along_what_another_method_would_lose(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_next", tmp_path)
    (tmp_path / "merge.yml").write_text(_linear(inputs))
    arguments = ["merge", str(tmp_path / "merge.yml"), str(tmp_path / "merged")]
    done = subprocess.run(
        [sys.executable, "-m", "mergekit_yoyo", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names_of(tmp_path / "merged") == names_of(inputs[0])


def test_the_repair_serves_other_methods(tmp_path: Path) -> None:
    inputs = write_inputs("deepseek_v3", tmp_path)
    with planning("mends"):
        _merge(_linear(inputs), tmp_path / "merged")
    models, merged = [tensors_of(path) for path in inputs], tensors_of(tmp_path / "merged")
    name = "model.layers.3.mlp.experts.1.up_proj.weight"
    mean = sum(tensors[name].float() for tensors in models) / 3
    torch.testing.assert_close(merged[name].float(), mean, rtol=2**-7, atol=1e-3)
    packed = "model.layers.2.mlp.experts.down_proj"
    experts = [f"model.layers.2.mlp.experts.{k}.down_proj.weight" for k in range(4)]
    stacked = [torch.stack([tensors[e].float() for e in experts]) for tensors in models]
    torch.testing.assert_close(merged[packed].float(), sum(stacked) / 3, rtol=2**-7, atol=1e-3)


def test_filters_reach_what_mergekit_does_not_know(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_next", tmp_path)
    rescale = [{"filter": "mtp.fc", "value": "median"}, {"value": "mean"}]
    fine_tune_loud(inputs[2], "mtp.")
    _merge(merge_yaml(inputs, rescale=rescale), tmp_path / "merged")
    models, merged = [tensors_of(path) for path in inputs], tensors_of(tmp_path / "merged")
    for name, how in [("mtp.fc.weight", "median"), ("mtp.norm.weight", "mean")]:
        assert_is_merge(merged[name], [tensors[name] for tensors in models], name, rescale=how)


def fine_tune_loud(folder: Path, start: str) -> None:
    """Make a model's tensors of a kind five times as large."""
    tensors = load_file(folder / "model.safetensors")
    loud = {name: t * 5 if name.startswith(start) else t for name, t in tensors.items()}
    save_file(loud, folder / "model.safetensors", {"format": "pt"})


def _without(start: str) -> object:
    def drop(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}

    return drop


@pytest.fixture
def uneven(tmp_path: Path) -> list[Path]:
    """Qwen3-Next models of which the last has no multi-token prediction."""
    inputs = write_inputs("qwen3_next", tmp_path)
    return [*inputs[:2], fine_tune(inputs[0], tmp_path / "d", 4, change=_without("mtp."))]


def test_what_one_input_lacks_is_merged_from_the_others(uneven: list[Path], tmp_path: Path) -> None:
    _merge(merge_yaml(uneven), tmp_path / "merged")
    models, merged = [tensors_of(path) for path in uneven[:2]], tensors_of(tmp_path / "merged")
    name = "mtp.layers.0.mlp.experts.2.up_proj.weight"
    assert_is_merge(merged[name], [tensors[name] for tensors in models])
    (tmp_path / "merge.yml").write_text(merge_yaml(uneven))
    said = inspect(tmp_path / "merge.yml", quick=True).of_level("warning")
    assert any("merged from them alone" in text and str(uneven[1]) in text for text in said)


def test_what_one_input_has_alone_is_copied(uneven: list[Path], tmp_path: Path) -> None:
    inputs = [uneven[0], uneven[2]]
    _merge(merge_yaml(inputs), tmp_path / "merged")
    name = "mtp.fc.weight"
    assert torch.equal(tensors_of(tmp_path / "merged")[name], tensors_of(inputs[0])[name])


def test_what_the_base_lacks_is_left_out_and_the_config_says_so(
    uneven: list[Path], tmp_path: Path
) -> None:
    inputs = [uneven[2], *uneven[:2]]
    for folder in inputs:
        _promise(folder)
    _merge(merge_yaml(inputs), tmp_path / "merged")
    assert not [name for name in names_of(tmp_path / "merged") if name.startswith("mtp.")]
    assert _promised(tmp_path / "merged") == [0]
    (tmp_path / "merge.yml").write_text(merge_yaml(inputs))
    seen = inspect(tmp_path / "merge.yml", quick=True)
    assert not seen.failed
    promises = [text for text in seen.of_level("warning") if "promises blocks" in text]
    assert [str(inputs[0]) in text for text in promises] == [True]
    assert any("left out, since base_model has none" in text for text in seen.of_level("warning"))


def test_buffers_of_older_checkpoints_keep_their_dtype(tmp_path: Path) -> None:
    """What a loader works out anew is copied to the bit, whatever dtype the YAML asks for."""
    inputs = write_inputs("llama", tmp_path)
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
        "model.layers.1.self_attn.rotary_emb.inv_freq": torch.rand(4),
        "model.embeddings.position_ids": torch.arange(1000),
    }
    models = [
        fine_tune(path, tmp_path / f"x{k}", k, change=lambda tensors: {**tensors, **buffers})
        for k, path in enumerate(inputs)
    ]
    _merge(merge_yaml(models) + "dtype: bfloat16\n", tmp_path / "merged")
    merged = tensors_of(tmp_path / "merged")
    assert all(torch.equal(merged[name], buffer) for name, buffer in buffers.items())
    assert all(merged[name].dtype == buffer.dtype for name, buffer in buffers.items())
    assert merged["model.norm.weight"].dtype == torch.bfloat16


def test_further_tables_of_the_vocabulary_go_with_the_tokenizer(tmp_path: Path) -> None:
    """DeepSeek-V3's block for prediction has tables of its own; `b` knows a word more."""
    first = write_family(tmp_path / "a", "deepseek_v3")
    tables = (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
    )

    def longer(tensors: Tensors) -> Tensors:
        row = torch.full((1, 32), 0.5, dtype=torch.bfloat16)
        return tensors | {name: torch.cat([tensors[name], row]) for name in tables}

    other = fine_tune(first, tmp_path / "b", 1, change=longer, config={"vocab_size": 65})
    write_tokenizer(other, 65)
    _merge(merge_yaml([first, other]) + "tokenizer: {source: union}\n", tmp_path / "merged")
    merged, models = tensors_of(tmp_path / "merged"), [tensors_of(first), tensors_of(other)]
    known = []
    for name in tables:
        assert merged[name].shape == (65, 32)
        rows = [tensors[name][:64].clone() for tensors in models]
        known.append(
            torch.nn.functional.cosine_similarity(
                merged[name][:64].double(), sum(rows).double(), dim=1
            )
        )
    assert torch.stack(known).min() > 0.99  # each row is of the word it was of


def test_models_in_both_layouts_merge(tmp_path: Path) -> None:
    """One model stores its experts packed, another each by itself."""
    first = write_family(tmp_path / "a", "qwen3_5_moe")
    write_family(tmp_path / "b", "qwen3_5_moe-experts", seed=1)
    _merge(merge_yaml([first, tmp_path / "b"]), tmp_path / "merged")
    merged, packed, apart = (tensors_of(tmp_path / name) for name in ("merged", "a", "b"))
    start = "model.language_model.layers.2.mlp.experts"
    for k in range(4):
        ups = [packed[f"{start}.gate_up_proj"][k, 16:], apart[f"{start}.{k}.up_proj.weight"]]
        assert_is_merge(merged[f"{start}.gate_up_proj"][k, 16:].contiguous(), ups)


def test_shapes_that_differ_are_refused(tmp_path: Path) -> None:
    inputs = write_inputs("qwen3_next", tmp_path)

    def wider(tensors: Tensors) -> Tensors:
        return {**tensors, "mtp.fc.weight": torch.zeros(32, 96, dtype=torch.bfloat16)}

    odd = fine_tune(inputs[0], tmp_path / "odd", 5, change=wider)
    with pytest.raises(Exception, match=r"mtp\.fc\.weight: .* \[32, 96\] in .*odd"):
        _merge(merge_yaml([inputs[0], odd]), tmp_path / "merged")


def test_slices_take_what_mergekit_does_not_know_along(tmp_path: Path) -> None:
    """Layers 0, 1, 1, 2 of DeepSeek-V3; the layer for prediction comes behind the last."""
    inputs = write_inputs("deepseek_v3", tmp_path)

    def extra(tensors: Tensors) -> Tensors:
        return {
            **tensors,
            **{f"model.layers.{k}.extra.weight": torch.randn(4, 4) for k in range(3)},
        }

    models = [fine_tune(p, tmp_path / f"x{k}", k, change=extra) for k, p in enumerate(inputs)]
    text = f"merge_method: yoyo_fusion\nbase_model: {models[0]}\nslices:\n"
    for first, last in ((0, 2), (1, 3)):
        text += "- sources:\n"
        text += "".join(f"  - {{model: {m}, layer_range: [{first}, {last}]}}\n" for m in models)
    _merge(text, tmp_path / "merged")
    merged, inputs_ = tensors_of(tmp_path / "merged"), [tensors_of(path) for path in models]
    for new, old in enumerate((0, 1, 1, 2)):
        before = [tensors[f"model.layers.{old}.extra.weight"] for tensors in inputs_]
        assert_is_merge(merged[f"model.layers.{new}.extra.weight"], before)
    for part in ("eh_proj.weight", "mlp.experts.3.up_proj.weight"):
        before = [tensors[f"model.layers.3.{part}"] for tensors in inputs_]
        assert_is_merge(merged[f"model.layers.4.{part}"], before)
    assert "model.layers.3.eh_proj.weight" not in merged


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """A merge of DeepSeek-V3 as mergekit alone makes it: without experts and prediction."""
    inputs = write_inputs("deepseek_v3", tmp_path)
    with planning("watches"):
        _merge(merge_yaml(inputs), tmp_path / "merged")
    assert len(names_of(tmp_path / "merged")) == 43  # of 99
    return tmp_path / "merged"


def test_an_incomplete_merge_is_never_finished(incomplete: Path) -> None:
    with pytest.raises(YoyoError, match=r"missing: .*experts.* --complete merges .*--without-mtp"):
        plan_finish(incomplete)


def test_finish_completes_what_an_older_run_left_out(incomplete: Path) -> None:
    before = files_of(incomplete)
    done = CliRunner().invoke(main, ["finish", str(incomplete), "-o", str(incomplete) + "2"])
    assert done.exit_code == 2
    assert files_of(incomplete) == before
    done = CliRunner().invoke(
        main, ["finish", str(incomplete), "--complete", "-o", str(incomplete) + "2"]
    )
    assert done.exit_code == 0, done.output
    assert files_of(incomplete) == before
    inputs = [incomplete.parent / m for m in MODELS]
    road = Road("deepseek_v3")
    judge(road, inputs, Path(str(incomplete) + "2"))
    assert (road.lost, road.strange, road.wrong) == ([], [], [])
    assert _promised(Path(str(incomplete) + "2")) == [1]

    done = CliRunner().invoke(main, ["finish", str(incomplete), "--complete"])
    assert done.exit_code == 0, done.output
    once = tensor_bytes(incomplete)
    assert once == tensor_bytes(Path(str(incomplete) + "2"))
    done = CliRunner().invoke(main, ["finish", str(incomplete), "--complete"])
    assert done.exit_code == 0, done.output
    assert "nothing to do" in done.output
    assert tensor_bytes(incomplete) == once


def test_a_completion_that_fails_leaves_the_merge_as_it_was(incomplete: Path) -> None:
    (incomplete.parent / "b" / "model.safetensors").unlink()
    before = files_of(incomplete)
    done = CliRunner().invoke(main, ["finish", str(incomplete), "--complete"])
    assert done.exit_code == 2
    assert "what is missing" in done.output
    assert str(incomplete.parent / "b") in done.output
    assert "Traceback" not in done.output
    assert files_of(incomplete) == before
    assert not list(incomplete.parent.glob(".merged*"))


def test_finish_without_prediction_says_so_in_the_config(tmp_path: Path) -> None:
    inputs = write_inputs("glm4_moe", tmp_path)
    with planning("watches"):
        _merge(merge_yaml(inputs), tmp_path / "merged")
    with pytest.raises(YoyoError, match=r"model\.layers\.3\..*--without-mtp"):
        plan_finish(tmp_path / "merged")
    plan = plan_finish(tmp_path / "merged", without_mtp=True)
    assert any("num_nextn_predict_layers is 0" in note for note in plan.notes)
    finish(plan)
    assert _promised(tmp_path / "merged") == [0]
    plan = plan_finish(tmp_path / "merged", without_mtp=True)
    assert not plan.differences


def test_layers_that_slices_leave_out_are_not_lost(tmp_path: Path) -> None:
    inputs = write_inputs("ernie4_5_moe", tmp_path)
    text = f"merge_method: yoyo_fusion\nbase_model: {inputs[0]}\nslices:\n- sources:\n"
    text += "".join(f"  - {{model: {m}, layer_range: [0, 2]}}\n" for m in inputs)
    _merge(text, tmp_path / "merged")
    found = names_of(tmp_path / "merged")
    assert "model.layers.1.mlp.experts.gate_up_proj" in found
    assert not [name for name in found if "layers.2." in name]


def test_inspect_writes_slices_as_modules_and_the_stack_is_right(tmp_path: Path) -> None:
    """Qwen3.5, layers 0 to 3 and 2 to 3: linear, linear, linear, full, linear, full."""
    inputs = write_inputs("qwen3_5", tmp_path)
    text = f"merge_method: yoyo_fusion\nbase_model: {inputs[0]}\nslices:\n"
    for first, last in ((0, 4), (2, 4)):
        text += "- sources:\n"
        text += "".join(f"  - {{model: {m}, layer_range: [{first}, {last}]}}\n" for m in inputs)
    file = tmp_path / "slices.yml"
    file.write_text(text)
    (said,) = inspect(file, quick=True).of_level("error")
    assert "must use modules:" in said
    modules = said.split("write\n\n", 1)[1]
    example = Path(__file__).parents[1] / "examples" / "stack-qwen3_5.yml"
    assert (
        yaml.safe_load(modules)["modules"].keys()
        == yaml.safe_load(example.read_text())["modules"].keys()
    )
    again = f"merge_method: yoyo_fusion\nbase_model: {inputs[0]}\n{modules}"
    file.write_text(again)
    assert not inspect(file, quick=True).failed
    _merge(again, tmp_path / "merged")
    finish(plan_finish(tmp_path / "merged"))

    config = config_of(tmp_path / "merged")["text_config"]
    kinds = ["linear_attention"] * 3 + ["full_attention", "linear_attention", "full_attention"]
    assert (config["num_hidden_layers"], config["layer_types"]) == (6, kinds)
    merged, models = tensors_of(tmp_path / "merged"), [tensors_of(path) for path in inputs]
    prefix = "model.language_model.layers."
    parts = [name for name in models[0] if name.startswith(prefix)]
    for new, old in enumerate((0, 1, 2, 3, 2, 3)):
        for name in parts:
            if name.startswith(f"{prefix}{old}."):
                stacked = name.replace(f"{prefix}{old}.", f"{prefix}{new}.")
                assert_is_merge(merged[stacked], [tensors[name] for tensors in models], stacked)
    outside = {name for name in models[0] if name not in parts}
    assert outside <= set(merged)
    assert len(merged) == len(outside) + sum(
        name.startswith(f"{prefix}{old}.") for old in (0, 1, 2, 3, 2, 3) for name in parts
    )
    assert compare_loads("qwen3_5", inputs[0], tmp_path / "merged", tmp_path / "merged") == ""


def _merge(text: str, out: Path) -> None:
    """Run mergekit-yaml's own command in this process."""
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    out.with_suffix(".yml").write_text(text)
    mergekit_yaml([str(out.with_suffix(".yml")), str(out)], standalone_mode=False)


def _linear(inputs: Sequence[Path]) -> str:
    listed = "".join(f"- model: {path}\n  parameters: {{weight: 1}}\n" for path in inputs)
    return f"merge_method: linear\nbase_model: {inputs[0]}\nmodels:\n{listed}"


def _promise(folder: Path) -> None:
    import json

    values = config_of(folder) | {"num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(values))


def _promised(folder: Path) -> list[int]:
    """The blocks for prediction that a config promises, wherever and however it says so."""
    values = config_of(folder)
    found = []
    for section in (values, values.get("text_config", {})):
        found += [section[key] for key in section if "nextn_predict" in key or "mtp_num" in key]
    return found or [1]
