"""`mergekit-yoyo finish` on real mergekit output: layout, config, files, safety, errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner, Result
from finish_fixtures import (
    CHAT_TEMPLATE,
    FAMILIES,
    files_of,
    passthrough,
    run_mergekit,
    tensor_bytes,
    write_checkpoint,
    write_tokenizer,
)
from finish_hub import serve
from safetensors.torch import load_file, save_file

from mergekit_yoyo.cli import main
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish import finish, plan_finish
from mergekit_yoyo.finish.card import Loaded, finished_card
from mergekit_yoyo.progress import Silent

LAYERS = {family: values[2].get("num_hidden_layers", 2) for family, values in FAMILIES.items()}
LLAMA = Loaded(
    {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, chat=True, processor=False
)
PACKED = ("qwen3_moe", "mixtral", "glm4_moe")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["finish", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with donors (`FAMILY`) and mergekit's merges of them (`FAMILY-merged`, ...)."""
    root = tmp_path_factory.mktemp("finish")
    jobs = {}
    for family in FAMILIES:
        donor = write_checkpoint(root / family, family)
        jobs[root / f"{family}-merged"] = passthrough(donor, LAYERS[family])
    jobs[root / "rounded"] = passthrough(root / "glm4_moe", 2, "dtype: bfloat16\n")
    stretched = (
        passthrough(root / "qwen3", 2) + passthrough(root / "qwen3", 2).split("slices:\n")[1]
    )
    jobs[root / "stretched"] = stretched
    jobs[root / "pattern"] = passthrough(root / "gemma3_text", 2) + (
        f"- sources:\n  - model: {root / 'gemma3_text'}\n    layer_range: [1, 2]\n"
    )
    other = write_checkpoint(root / "llama-other", "llama", seed=1)
    wide = write_checkpoint(root / "llama-wide", "llama", 2, {"vocab_size": 72})
    write_tokenizer(wide, 72)
    models = f"models:\n- model: {root / 'llama'}\n- model: {other}\n"
    jobs[root / "linear"] = f"merge_method: linear\nparameters: {{weight: 0.5}}\n{models}"
    jobs[root / "union"] = (
        f"merge_method: linear\nparameters: {{weight: 0.5}}\nbase_model: {root / 'llama'}\n"
        f"models:\n- model: {root / 'llama'}\n- model: {wide}\ntokenizer: {{source: union}}\n"
    )
    jobs[root / "second"] = passthrough(root / "qwen3_moe-merged", 3)
    shutil.copytree(root / "llama", root / "models" / "a")
    jobs[root / "offline"] = passthrough("models/a", 2)
    failed = run_mergekit(jobs, root)
    died = {out.name for out, error in failed.items() if error}
    assert died == {"stretched", "pattern", "offline"}
    return root


@pytest.fixture
def merge(place: Path, tmp_path: Path) -> Path:
    """A fresh copy of the Qwen3-MoE merge."""
    return shutil.copytree(place / "qwen3_moe-merged", tmp_path / "merged")


def load(folder: Path) -> tuple[torch.nn.Module, dict[str, object]]:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    return model.eval(), info


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finished_merge_is_its_donor_again(place: Path, family: str, tmp_path: Path) -> None:
    donor = place / family
    merged = shutil.copytree(place / f"{family}-merged", tmp_path / "merged")
    before = files_of(merged)
    assert run(merged, "--check").exit_code == 1
    assert files_of(merged) == before

    result = run(merged)
    assert result.exit_code == 0, result.output
    assert tensor_bytes(merged) == tensor_bytes(donor)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (merged / file).read_bytes() == (donor / file).read_bytes(), file
    if family in PACKED:
        assert set(tensor_bytes(place / f"{family}-merged")) != set(tensor_bytes(donor))
    else:
        assert "left untouched" in result.output
        assert files_of(merged)["model.safetensors"] == before["model.safetensors"]

    model, info = load(merged)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits(model), logits(load(donor)[0]), rtol=0, atol=0)

    after = files_of(merged)
    assert run(merged, "--check").exit_code == 0
    assert "nothing to do" in run(merged).output
    assert files_of(merged) == after


def test_the_installed_commands_do_it_in_the_folder_of_the_merge(place: Path) -> None:
    work = place / "work"
    shutil.copytree(place / "mixtral", work / "models" / "mine" / "mixtral")
    (work / "merge.yml").write_text(passthrough("./models/mine/mixtral", 2))
    scripts = Path(sys.executable).parent
    for command in (["mergekit-yaml", "merge.yml", "./out"], ["mergekit-yoyo", "finish", "./out"]):
        done = subprocess.run(
            [scripts / command[0], *command[1:]],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"},
        )
        assert done.returncode == 0, done.stderr
    assert "hf upload YOUR-NAME/out out ." in done.stdout
    assert tensor_bytes(work / "out") == tensor_bytes(place / "mixtral")
    elsewhere = run(work / "out")
    assert elsewhere.exit_code == 2
    assert "those of the folder the merge was run in" in elsewhere.stderr


def test_shards_have_an_index_in_hub_style(merge: Path, place: Path, tmp_path: Path) -> None:
    before = files_of(merge)
    result = run(merge, "-o", tmp_path / "out", "--max-shard-size", "30KB")
    assert result.exit_code == 0, result.output
    assert files_of(merge) == before
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    donor = tensor_bytes(place / "qwen3_moe")
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in donor.values())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 1
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    assert tensor_bytes(tmp_path / "out") == donor
    assert not load(tmp_path / "out")[1]["missing_keys"]
    assert run(tmp_path / "out", "--check").exit_code == 0


def test_written_files_are_those_of_safetensors(tmp_path: Path) -> None:
    from mergekit_yoyo.model.checkpoint import TensorInfo
    from mergekit_yoyo.model.writing import write_checkpoint

    torch.manual_seed(0)
    tensors = {
        f"b.{dtype}".replace("torch.", ""): torch.randn(3, 5).to(dtype)
        for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float8_e4m3fn)
    } | {"a": torch.arange(3), "scalar": torch.tensor(1.5), "empty": torch.empty(0, 4)}
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_checkpoint(tmp_path, infos, reversed(tensors.items()))
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_file_with_two_names_is_written_under_one(tmp_path: Path) -> None:
    from mergekit_yoyo.model.checkpoint import INDEX_FILE, TensorInfo
    from mergekit_yoyo.model.writing import write_checkpoint

    (tmp_path / "original").mkdir()
    (tmp_path / "new").mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX_FILE]
    for name in names:
        (tmp_path / "original" / name).write_bytes(b"original")
        os.link(tmp_path / "original" / name, tmp_path / "new" / name)
    tensors = {"a": torch.ones(200), "b": torch.zeros(200)}
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    assert sorted(write_checkpoint(tmp_path / "new", infos, tensors.items(), "1KB")) == names
    for name in names:
        assert (tmp_path / "original" / name).read_bytes() == b"original"
    assert torch.equal(load_file(tmp_path / "new" / names[0])["a"], tensors["a"])


def test_files_of_another_checkpoint_are_not_mixed_in(tmp_path: Path) -> None:
    from mergekit_yoyo.model.checkpoint import INDEX_FILE, Checkpoint

    def refused(message: str) -> None:
        with pytest.raises(YoyoError, match=message):
            Checkpoint(tmp_path)

    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a": torch.ones(1)}, tmp_path / one)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / two)
    refused(f"a is in {one} and in {two}")
    index = tmp_path / INDEX_FILE
    index.write_text(json.dumps({"weight_map": {"a": two, "b": two}}))
    refused(f"{one} is not named in {INDEX_FILE}")
    (tmp_path / one).unlink()
    save_file({"c": torch.ones(1)}, tmp_path / "adapter.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
    for damaged in ("{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'):
        index.write_text(damaged)
        refused("expected a `weight_map` of tensor names to files")
    index.write_text('{"weight_map": {"a"')
    refused(f"{INDEX_FILE}: cannot be read")


def test_damaged_files_of_an_input_are_no_traceback(place: Path, tmp_path: Path) -> None:
    donor = shutil.copytree(place / "llama", tmp_path / "donor")
    (donor / "README.md").write_bytes(b"\xff\xfe")
    (tmp_path / "merge.yml").write_text(passthrough(donor, 2))
    merged = shutil.copytree(place / "llama-merged", tmp_path / "merged")
    arguments = [merged, "--config", tmp_path / "merge.yml", "--check"]
    assert run(*arguments).exit_code == 1  # its license is unknown, and that is all
    (donor / "model.safetensors.index.json").write_text("{}")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "model.safetensors.index.json: expected a `weight_map`" in result.stderr


def test_lost_precision_is_named_and_the_dtype_stays(place: Path, tmp_path: Path) -> None:
    result = run(place / "rounded", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert (
        "model.layers.*.mlp.gate.e_score_correction_bias: float32 in the donor, bfloat16 in the "
        "merge" in result.stderr
    )
    donor = tensor_bytes(place / "glm4_moe")
    finished = tensor_bytes(tmp_path / "out")
    differing = {name for name in donor if donor[name] != finished[name]}
    assert differing == {"model.layers.1.mlp.gate.e_score_correction_bias"}
    assert finished.keys() == donor.keys()


def test_a_run_that_died_is_rescued_with_its_yaml(place: Path, tmp_path: Path) -> None:
    dead = shutil.copytree(place / "stretched", tmp_path / "dead")
    assert not (dead / "config.json").exists()
    refused = run(dead)
    assert refused.exit_code == 2
    assert "give --config MERGE.yml" in refused.stderr

    assert run(dead, "--config", place / "stretched.yml").exit_code == 0
    config = json.loads((dead / "config.json").read_text())
    donor = json.loads((place / "qwen3" / "config.json").read_text())
    assert config == {**donor, "num_hidden_layers": 4, "layer_types": donor["layer_types"] * 2}
    assert list(config) == list(donor)
    model, info = load(dead)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(
        model.model.layers[3].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    )
    assert (dead / "tokenizer.json").read_bytes() == (place / "qwen3/tokenizer.json").read_bytes()
    assert "pipeline_tag: text-generation" in (dead / "README.md").read_text()
    assert run(dead, "--check").exit_code == 0


def test_a_run_that_died_on_its_card_is_rescued(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = shutil.copytree(place / "offline", tmp_path / "dead")
    assert {path.name for path in dead.iterdir()} == {"config.json", "model.safetensors"}
    monkeypatch.chdir(place)
    assert run(dead, "--config", "offline.yml").exit_code == 0
    files = {path.name for path in (place / "llama").iterdir()} | {"mergekit_config.yml"}
    assert {path.name for path in dead.iterdir()} == files
    assert "base_model" not in (dead / "README.md").read_text().split("---")[1]
    assert run(dead, "--check").exit_code == 0


def test_slices_that_break_a_pattern_keep_each_layers_type(place: Path, tmp_path: Path) -> None:
    donor = shutil.copytree(place / "gemma3_text", tmp_path / "donor")
    config = json.loads((donor / "config.json").read_text())
    config.pop("layer_types", None)
    (donor / "config.json").write_text(json.dumps(config))
    result = run(
        place / "pattern", "--config", place / "pattern.yml", "--donor", donor, "-o", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    assert "layer_types added" in result.stderr
    finished = json.loads((tmp_path / "o" / "config.json").read_text())
    assert finished["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]
    assert finished["num_hidden_layers"] == 3
    assert not load(tmp_path / "o")[1]["missing_keys"]


def test_lists_of_layers_follow_the_slices(place: Path) -> None:
    from mergekit_yoyo.finish.config import finished_config
    from mergekit_yoyo.model.checkpoint import Checkpoint, TensorInfo

    with Checkpoint(place / "qwen3_moe") as checkpoint:
        tensors = checkpoint.tensors
    donor = json.loads((place / "qwen3_moe" / "config.json").read_text())
    donor |= {"mlp_only_layers": [1], "per_layer": ["a", "b", "c"], "eos_token_id": [0, 1, 2]}
    config = finished_config(donor, tensors, [0, 1, 2, 1, 2]).values
    assert config["mlp_only_layers"] == [1, 3]
    assert config["per_layer"] == ["a", "b", "c", "b", "c"]
    assert config["eos_token_id"] == [0, 1, 2]
    assert config["num_hidden_layers"] == 5
    assert config["torch_dtype"] == "bfloat16"
    halves = {name: TensorInfo(info.shape, torch.float16) for name, info in tensors.items()}
    assert finished_config(donor, halves, None).values["torch_dtype"] == "float16"
    glm = json.loads((place / "glm4_moe" / "config.json").read_text())
    assert finished_config(glm, tensors, [0, 0, 1]).values["first_k_dense_replace"] == 2
    with pytest.raises(YoyoError, match="a dense layer after a mixture-of-experts layer"):
        finished_config(glm, tensors, [0, 1, 0, 1])
    with pytest.raises(YoyoError, match="a slice ends at layer 4; the donor has 3 layers"):
        finished_config(donor, tensors, [0, 3])


def test_a_built_tokenizer_is_kept_and_its_numbers_followed(place: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(place / "union", tmp_path / "merged")
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {**vocabulary, "</s>": 5, "w5": 2}
    for token in tokenizer["added_tokens"]:
        token["id"] = 5 if token["content"] == "</s>" else token["id"]
    (merged / "tokenizer.json").write_text(json.dumps(tokenizer))
    before = files_of(merged)
    result = run(merged)
    assert result.exit_code == 0, result.output
    config = json.loads((merged / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (72, 5)
    generation = json.loads((merged / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [5, 1]
    assert generation["temperature"] == 0.7
    assert files_of(merged)["tokenizer.json"] == before["tokenizer.json"]
    assert not load(merged)[1]["missing_keys"]
    assert run(merged, "--check").exit_code == 0


def test_the_head_is_tied_or_not_as_the_weights_say(place: Path, tmp_path: Path) -> None:
    untied = shutil.copytree(place / "qwen3-merged", tmp_path / "untied")
    tensors = load_file(untied / "model.safetensors")
    head = torch.randn(64, 32).to(torch.bfloat16)
    save_file({**tensors, "lm_head.weight": head}, untied / "model.safetensors", {"format": "pt"})
    result = run(untied)
    assert "the merge has its own lm_head.weight, so it is untied" in result.stderr
    assert json.loads((untied / "config.json").read_text())["tie_word_embeddings"] is False
    model, info = load(untied)
    assert not info["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, head.float())
    assert run(untied, "--check").exit_code == 0

    tied = shutil.copytree(place / "llama-merged", tmp_path / "tied")
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    assert "missing: lm_head.weight" in run(tied).stderr
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "the merge has no lm_head.weight, so it is tied" in run(tied).stderr
    model, info = load(tied)
    assert not info["missing_keys"]
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert run(tied, "--check").exit_code == 0


def test_files_that_mergekit_forgot_are_brought_along(place: Path, merge: Path) -> None:
    donor = place / "qwen3_moe"
    (donor / "vocab.json").write_text("{}")
    for file in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        (merge / file).unlink()
    assert run(merge).exit_code == 0
    (donor / "vocab.json").unlink()
    assert (merge / "vocab.json").read_text() == "{}"
    assert (merge / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert (merge / "generation_config.json").is_file()
    assert (merge / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_stand_side_by_side(place: Path, family: str) -> None:
    from mergekit_yoyo.finish.config import both_styles
    from mergekit_yoyo.model.config import config_from

    older = json.loads((place / family / "config.json").read_text())
    newer = json.loads((place / f"{family}-merged" / "config.json").read_text())
    for values in (older, newer):
        both = both_styles(values)
        assert both.items() >= values.items()
        for key in ("rope_theta", "rope_parameters", "torch_dtype", "dtype"):
            assert both[key], key
        if "num_experts" in values or "num_local_experts" in values:
            assert both["num_experts"] == both["num_local_experts"] == 4
        assert config_from(both).to_dict() == config_from(values).to_dict()
        assert both_styles(both) == both
    assert both_styles(newer)["rope_theta"] == older["rope_theta"]
    if older.get("rope_scaling"):
        assert both_styles(newer)["rope_scaling"] == older["rope_scaling"]
    for key in ("partial_rotary_factor", "rope_local_base_freq"):
        assert both_styles(newer).get(key) == older.get(key)


def test_a_donor_in_the_new_spelling_is_pointed_out(place: Path, tmp_path: Path) -> None:
    donor = shutil.copytree(place / "llama", tmp_path / "donor")
    shutil.copy(place / "llama-merged" / "config.json", donor)
    merge = shutil.copytree(place / "llama-merged", tmp_path / "merge")
    assert "--config-style both adds the one of before" in run(merge, "--donor", donor).stderr
    result = run(merge, "--donor", donor, "--config-style", "both")
    assert result.exit_code == 0
    assert "--config-style" not in result.stderr
    assert "changed config.json: lacks rope_scaling, rope_theta, torch_dtype" in result.stdout
    config = json.loads((merge / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0


def test_the_donor_is_the_input_whose_files_the_merge_has(place: Path, tmp_path: Path) -> None:
    merged = place / "linear"
    assert plan_finish(merged).donor.name.path == str(place / "llama")

    copy = shutil.copytree(merged, tmp_path / "merged")
    config = json.loads((copy / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 77.0
    (copy / "config.json").write_text(json.dumps(config))
    result = run(copy)
    assert result.exit_code == 2
    assert "are those of none of its inputs" in result.stderr
    assert f"{place / 'llama-other'} (config)" in result.stderr
    assert run(copy, "--donor", place / "llama").exit_code == 0


def test_a_donor_that_is_a_merge_is_followed(place: Path, tmp_path: Path) -> None:
    plan = plan_finish(place / "second")
    assert plan.donor.folder == place / "qwen3_moe"
    finish(plan, output=tmp_path / "out")
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(place / "qwen3_moe")


def test_a_donor_is_looked_like_as_it_is_stored(place: Path, tmp_path: Path) -> None:
    packed = shutil.copytree(place / "qwen3_moe-merged", tmp_path / "packed")
    (packed / "mergekit_config.yml").unlink()
    merged = place / "qwen3_moe-merged"
    plan = plan_finish(merged, donor=str(packed))
    assert not plan.layout.changed
    finish(plan, output=tmp_path / "out")
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(merged)
    pickled = shutil.copytree(place / "qwen3_moe", tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert plan_finish(merged, donor=str(pickled)).layout.changed
    with pytest.raises(YoyoError, match="Tensors that differ"):
        plan_finish(tmp_path / "out", donor=str(place / "llama"))


def test_ctrl_c_leaves_the_merge_as_it_was(merge: Path) -> None:
    before = files_of(merge)

    class Interrupt(Silent):
        written = 0

        def advance(self, count: int = 1) -> None:
            self.written += count
            if self.written > 20_000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(plan_finish(merge), progress=(progress := Interrupt()))
    assert progress.written > 20_000
    assert files_of(merge) == before
    assert [path.name for path in merge.parent.iterdir()] == [merge.name]


def test_what_the_user_put_there_stays(place: Path, merge: Path) -> None:
    (merge / "notes").mkdir()
    (merge / "notes" / "mine.txt").write_text("mine")
    card = merge / "README.md"
    card.write_text(
        card.read_text().replace("## Merge Details", "My own words.\n\n## Merge Details")
    )
    assert run(merge).exit_code == 0
    assert (merge / "notes" / "mine.txt").read_text() == "mine"
    text = card.read_text()
    assert "My own words.\n\n## Merge Details" in text
    card.write_text(text.replace("license: apache-2.0", "license: mit\nmine: [1]") + "\nThe end.\n")
    kept = card.read_text()
    assert run(merge).exit_code == 0
    assert card.read_text() == kept


def test_the_card_says_where_the_merge_comes_from(place: Path, merge: Path) -> None:
    from huggingface_hub import ModelCard

    assert run(merge).exit_code == 0
    text = (merge / "README.md").read_text()
    assert "Merge Details" not in text  # mergekit's own body, which said the same
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "tags": ["mergekit", "merge"],
        "license": "apache-2.0",
        "language": ["en"],
        "pipeline_tag": "text-generation",
    }
    assert (merge / "mergekit_config.yml").read_text().strip() in text
    for words in ("| `qwen3_moe` (local) | apache-2.0 |", "mergekit==0.1.5", "mlx_lm.generate"):
        assert words in text


def test_the_card_names_each_input_and_the_method(place: Path) -> None:
    from mergekit_yoyo.model.merge_yaml import read_merge_yaml

    card, notes = finished_card("", "mine", read_merge_yaml(place / "linear.yml"), {}, LLAMA)
    assert "| `llama` (local) | apache-2.0 |" in card
    assert "| `llama-other` (local) | apache-2.0 |" in card
    assert "\n# mine\n" in card
    assert notes == []
    method = "by [Linear](https://arxiv.org/abs/2203.05482), made with"
    assert method in card


def test_the_card_says_what_each_input_weighed(tmp_path: Path) -> None:
    from mergekit_yoyo.record.reading import read_record

    experts = Path(__file__).resolve().parent.parent / "examples" / "experts"
    names = ("code", "german", "manual")
    text = "merge_method: yoyo_fusion\nparameters: {report: ./out/record.jsonl}\nmodels:\n"
    text += "".join(f"- model: {experts / name}\n" for name in names)
    assert run_mergekit({tmp_path / "out": text}, tmp_path) == {tmp_path / "out": ""}
    elements, total = 0, dict.fromkeys(names, 0.0)
    for tensor in read_record(tmp_path / "out" / "record.jsonl").tensors:
        size = torch.Size(tensor.shape).numel()
        elements += size
        for name, weight in zip(names, tensor.weights[0], strict=True):
            assert weight is not None
            total[name] += size * weight
    for out in (None, tmp_path / "copy"):
        folder = finish(plan_finish(tmp_path / "out"), output=out)
        card = (folder / "README.md").read_text()
        for name in names:
            assert f"| `{name}` (local) | not stated | {total[name] / elements:.2f} |" in card
        assert (folder / "record.jsonl").is_file()

    (tmp_path / "out" / "record.jsonl").write_text("")
    plan = plan_finish(tmp_path / "out")
    assert "mean weight" not in plan.files["README.md"].decode()
    assert any("what each input weighed" in note for note in plan.notes)


def test_base_model_lists_hub_names_and_keeps_the_users(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.card import read_metadata
    from mergekit_yoyo.model.merge_yaml import read_merge_yaml

    monkeypatch.chdir(place)  # where models/a is a folder
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (place / "two.yml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\n"
        "models:\n- model: models/a\n- model: tiny/absent\n"
    )
    # mergekit lists models/a as if it were a name on the Hub
    present = "---\nbase_model:\n- models/a\n- tiny/absent\n- my/own\ntags: mine\n---\n# T\n"
    card, notes = finished_card(present, "mine", read_merge_yaml(Path("two.yml")), {}, LLAMA)
    metadata = read_metadata(card)
    assert metadata["base_model"] == ["tiny/absent", "my/own"]
    assert metadata["base_model_relation"] == "merge"
    assert metadata["tags"] == ["mine", "mergekit", "merge"]
    assert "license" not in metadata
    assert notes == [
        "tiny/absent: taken for a name on the Hub, though no card of it is at hand",
        "license not set: none is known for tiny/absent",
    ]


def test_a_card_the_hub_would_refuse_stops_before_anything_is_written(merge: Path) -> None:
    card = merge / "README.md"
    card.write_text(card.read_text().replace("tags:", "license: Apache 2\ntags:"))
    before = files_of(merge)
    result = run(merge)
    assert result.exit_code == 2
    assert "license" in result.stderr
    assert "apache-2.0" in result.stderr
    assert files_of(merge) == before


def test_a_license_newer_than_our_list_is_a_note(merge: Path) -> None:
    card = merge / "README.md"
    card.write_text(card.read_text().replace("tags:", "license: llama5\ntags:"))
    result = run(merge)
    assert result.exit_code == 0, result.stderr
    assert "note: license: the Hub had no llama5 when this list was made" in result.stderr
    assert "license: llama5\n" in card.read_text()


def test_inputs_of_the_hub_are_found_in_its_cache(
    place: Path, merge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "hub" / "models--tiny--moe"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(place / "qwen3_moe", repo / "snapshots" / ("0" * 40))
    (merge / "mergekit_config.yml").write_text(passthrough("tiny/moe", 3))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = run(merge)
    assert result.exit_code == 0, result.output
    text = (merge / "README.md").read_text()
    assert text.startswith("---\nbase_model:\n- tiny/moe\nlibrary_name: transformers\n")
    assert "\nbase_model_relation: merge\n" in text
    assert "[tiny/moe](https://huggingface.co/tiny/moe) | apache-2.0" in text
    assert tensor_bytes(merge) == tensor_bytes(place / "qwen3_moe")


def test_only_small_files_of_the_hub_are_downloaded_and_online_asks_it(
    place: Path, merge: Path, tmp_path: Path
) -> None:
    donor = shutil.copytree(place / "qwen3_moe", tmp_path / "donor")
    (merge / "mergekit_config.yml").write_text(passthrough("tiny/moe", 3))
    card = (merge / "README.md").read_text()
    (merge / "README.md").write_text(card.replace("- merge\n", "- merge\n- forbidden\n"))
    before = files_of(merge)

    def finished(home: str) -> subprocess.CompletedProcess[str]:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        environment["HF_HOME"] = str(tmp_path / home)
        command = [sys.executable, "-m", "mergekit_yoyo", "finish", merge, "--online"]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )

    with serve(donor) as (address, requests):
        refused = finished("one")  # without an index: tensor names are in the header of the file
        assert refused.returncode == 2
        assert "Error: model card: the Hub refuses it: tags: not like this" in refused.stderr
        assert files_of(merge) == before
        (merge / "README.md").write_text(card)
        index = {
            "metadata": {},
            "weight_map": dict.fromkeys(tensor_bytes(donor), "model.safetensors"),
        }
        (donor / "model.safetensors.index.json").write_text(json.dumps(index))
        requests.clear()
        done = finished("two")
    assert done.returncode == 0, done.stderr
    assert tensor_bytes(merge) == tensor_bytes(donor)
    assert (merge / "config.json").read_bytes() == (donor / "config.json").read_bytes()
    assert (
        "[tiny/moe](https://huggingface.co/tiny/moe) | apache-2.0"
        in (merge / "README.md").read_text()
    )
    fetched = {request.rsplit("/", 1)[-1] for request in requests if "/resolve/" in request}
    assert fetched >= {"config.json", "model.safetensors.index.json", "README.md"}
    assert "model.safetensors" not in fetched


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_oss"])
def test_plain_mlx_lm_computes_the_same(place: Path, family: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs the extra mlx")
    from mlx_lm.utils import load_model

    finish(plan_finish(place / f"{family}-merged"), output=tmp_path / "out")
    model, _ = load_model(tmp_path / "out")
    model.set_dtype(mx.float32)
    theirs = torch.tensor(model(mx.arange(3, 40)[None]).tolist())
    ours = logits(load(tmp_path / "out")[0])
    # mlx-lm rounds the scale of Gemma's embedding to bfloat16
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-3 if "gemma" in family else 2e-5)


def test_errors_are_sentences(place: Path, merge: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yml").write_text("models: 3\n")
    before = files_of(merge)
    for arguments, words in [
        ([tmp_path / "nowhere"], ["there is no such folder"]),
        ([tmp_path / "empty"], ["not a merge folder", "--config MERGE.yml"]),
        (
            [merge, "--config", tmp_path / "bad.yml"],
            ["mergekit would not accept this merge YAML: models"],
        ),
        ([merge, "--donor", place / "llama"], ["Tensors that differ", "which the donor has not"]),
        ([merge, "--donor", "./gone/a/b"], ["no such folder, and not a name", "--donor PATH"]),
        ([merge, "-o", place], ["exists and is not empty"]),
        ([merge, "-o", merge], ["this is the merge itself"]),
        ([merge, "-o", merge / "deep" / "out"], ["this is inside the merge"]),
        ([merge, "--max-shard-size", "5XB"], ["--max-shard-size", "5GB"]),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        for word in words:
            assert word in result.stderr
    assert files_of(merge) == before


def test_missing_and_left_over_tensors_are_named(merge: Path) -> None:
    file = merge / "model.safetensors"
    tensors = load_file(file)
    down = "model.layers.1.mlp.experts.down_proj"
    gate, norm = torch.ones(4, 32, dtype=torch.bfloat16), torch.ones(7, dtype=torch.bfloat16)
    for changed, word in [
        ({down: None}, "missing: model.layers.1.mlp.experts.0.down_proj.weight"),
        ({down: tensors[down][:2]}, "missing: model.layers.1.mlp.experts.2.down_proj.weight"),
        ({"model.layers.3.mlp.gate.weight": gate}, "left over: model.layers.3.mlp.gate.weight"),
        ({"stray": norm}, "stray, which the donor has not"),
        ({"model.norm.weight": norm}, "model.norm.weight [7] (donor: [32])"),
    ]:
        kept = {k: v for k, v in (tensors | changed).items() if v is not None}
        save_file(kept, file, metadata={"format": "pt"})
        result = run(merge)
        assert result.exit_code == 2
        assert word in result.stderr, result.stderr
    file.write_bytes(b"\x08\x00")
    assert "cannot be read" in run(merge).stderr
    file.unlink()
    assert "expected a model with .safetensors files" in run(merge).stderr


def test_a_merge_that_a_killed_run_left_aside_is_found_again(merge: Path) -> None:
    merge.rename(merge.with_name(f".{merge.name}.replaced-abcdef"))
    assert run(merge).exit_code == 0
    assert plan_finish(merge).differences == []
    assert not list(merge.parent.glob(f".{merge.name}.*"))


def test_why_an_inputs_card_is_not_read_is_said(merge: Path, place: Path) -> None:
    card = place / "qwen3_moe" / "README.md"
    text = card.read_bytes()
    card.write_bytes(b"---\nlicense: [\n---\n")
    try:
        notes = plan_finish(merge).notes
    finally:
        card.write_bytes(text)
    told = [note for note in notes if "its card is taken for none: model card" in note]
    assert len(told) == 1
