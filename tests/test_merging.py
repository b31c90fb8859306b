"""`mergekit-yoyo merge`: mergekit's bytes, whatever happens on the way."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from finish_fixtures import (
    files_of,
    run_mergekit,
    tensor_bytes,
    write_checkpoint,
    write_tokenizer,
)

LISTED = "merge_method: {method}\nmodels:\n{models}"


def merge_yaml(method: str, models: Sequence[Path | str], extra: str = "", each: str = "") -> str:
    listed = "".join(f"- model: {model}\n{each}" for model in models)
    return LISTED.format(method=method, models=listed) + extra


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three models of a dense family, and three mixtures of experts."""
    folder = tmp_path_factory.mktemp("inputs")
    return {
        family: [write_checkpoint(folder / f"{family}-{k}", family, seed=k) for k in range(3)]
        for family in ("qwen3", "qwen3_moe")
    }


@pytest.fixture(scope="module")
def wider(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with more words than the others."""
    folder = tmp_path_factory.mktemp("wider") / "model"
    write_checkpoint(folder, "qwen3", seed=7, values={"vocab_size": 70})
    write_tokenizer(folder, words=70)
    return folder


@pytest.fixture(scope="module")
def adapter(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for the first dense model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(inputs["qwen3"][0]),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return folder


def run_ours(jobs: Mapping[Path, str], cwd: Path, options: Sequence[str] = ()) -> dict[Path, str]:
    """As `run_mergekit`, with our command."""
    script = (
        "import json, sys\n"
        "from mergekit_yoyo.cli import main\n"
        "failed = {}\n"
        "for arguments in json.load(sys.stdin):\n"
        "    try:\n"
        "        main(arguments, standalone_mode=False)\n"
        "    except (Exception, SystemExit) as error:\n"
        "        failed[arguments[2]] = repr(error)\n"
        "print('RESULT' + json.dumps(failed))\n"
    )
    arguments = []
    for out, text in jobs.items():
        file = out.with_suffix(".yml")
        file.write_text(text)
        arguments.append(("merge", str(file), str(out), *options))
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "RESULT" in done.stdout, done.stderr
    failed = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    return {
        out: failed.get(str(out), "") + (done.stderr if str(out) in failed else "") for out in jobs
    }


def test_every_method_gives_the_bytes_of_mergekit_yaml(
    inputs: dict[str, list[Path]], wider: Path, adapter: Path, tmp_path: Path
) -> None:
    dense, moe = inputs["qwen3"], inputs["qwen3_moe"]
    base = f"base_model: {dense[0]}\n"
    equal = "  parameters: {weight: 0.5}\n"
    float32 = f"base_model: {dense[1]}\ndtype: float32\n"
    lora = f"{dense[0]}+{adapter}"
    yamls = {
        "linear": merge_yaml("linear", dense, "dtype: bfloat16\n", "  parameters: {weight: 0.4}\n"),
        "ties": merge_yaml("ties", dense[1:], base, "  parameters: {weight: 0.5, density: 0.6}\n"),
        "slerp": merge_yaml("slerp", dense[:2], base + "parameters: {t: [0.1, 0.9]}\n"),
        "passthrough": (
            "merge_method: passthrough\nslices:\n"
            f"- sources:\n  - model: {dense[0]}\n    layer_range: [0, 1]\n"
            f"- sources:\n  - model: {dense[1]}\n    layer_range: [1, 2]\n"
        ),
        "tukey": merge_yaml("yoyo_fusion", dense),
        "recall": merge_yaml("yoyo_fusion", dense, "parameters: {consensus: recall}\n"),
        "union": merge_yaml("linear", [dense[0], wider], "tokenizer: {source: union}\n", equal),
        "lora": merge_yaml("linear", [dense[1], lora], float32, equal),
        "experts": merge_yaml("yoyo_fusion", moe),
        "experts-linear": merge_yaml("linear", moe, "out_dtype: float32\n", equal),
    }
    cache = ["--lora-merge-cache", str(tmp_path / "lora")]
    theirs = {tmp_path / "theirs" / name: text for name, text in yamls.items()}
    ours = {tmp_path / "ours" / name: text for name, text in yamls.items()}
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
    assert not any(run_mergekit(theirs, tmp_path, cache).values())
    options = ["--no-finish", "--force", "--workers", "2", "--out-shard-size", "20k", *cache]
    failed = run_ours(ours, tmp_path, options)
    assert not any(failed.values()), failed
    for name in yamls:
        one, other = tmp_path / "theirs" / name, tmp_path / "ours" / name
        assert len(list(other.glob("*.safetensors"))) > 1, name
        if name != "union":  # whose new rows mergekit-yaml numbers anew each time
            assert tensor_bytes(one) == tensor_bytes(other), name
        index = json.loads((other / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == tensor_bytes(one).keys()
        left, right = files_of(one), files_of(other)
        for file in left.keys() - {"README.md", "mergekit_config.yml"}:
            if not file.startswith("model") and (name, file) != ("union", "tokenizer.json"):
                assert left[file][1] == right[file][1], (name, file)
        assert left["mergekit_config.yml"][1] == right["mergekit_config.yml"][1]
        assert not [p for p in other.parent.iterdir() if p.name.startswith(".")]
    assert rows_by_token(tmp_path / "theirs/union") == rows_by_token(tmp_path / "ours/union")


def rows_by_token(folder: Path) -> dict[str, dict[str, bytes]]:
    """The rows of the tensors over the vocabulary by token, and all other tensors whole."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    found = {}
    for name, (_, shape, data) in tensor_bytes(folder).items():
        if shape[0] == len(ids):
            size = len(data) // shape[0]
            found[name] = {token: data[k * size : (k + 1) * size] for token, k in ids.items()}
        else:
            found[name] = {"": data}
    return found


SITE = """
import os
if point := int(os.environ.get("KILL_AT", "0")):
    def announced(function):
        def call(*args, **kwargs):
            log = os.open(os.environ["KILL_LOG"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
            os.write(log, b".")
            reached = os.lseek(log, 0, os.SEEK_END)
            os.close(log)
            if reached == point:
                os.killpg(int(os.environ["KILL_GROUP"]) if "KILL_GROUP" in os.environ else 0, 9)
            return function(*args, **kwargs)
        return call
    for name in ("fsync", "rename", "replace", "mkdir", "link", "unlink", "rmdir"):
        setattr(os, name, announced(getattr(os, name)))
"""


@pytest.mark.slow
def test_killed_at_twenty_points_the_next_run_ends_with_the_same_bytes(
    inputs: dict[str, list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    (tmp_path / "merge.yml").write_text(merge_yaml("yoyo_fusion", inputs["qwen3_moe"]))
    log = tmp_path / "log"

    def run(out: str, kill_at: int) -> tuple[int, int]:
        """The status, and how many operations on files there were."""
        log.write_bytes(b"")
        path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mergekit_yoyo", "merge", "merge.yml", out, "--quiet"),
                *("--workers", "2", "--out-shard-size", "20k"),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": path,
                "KILL_AT": str(kill_at),
                "KILL_LOG": str(log),
            },
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(done.stderr.decode())
        return done.returncode, log.stat().st_size

    status, operations = run("whole", 10**9)
    assert status == 0
    assert operations > 30
    killed, chosen = 0, random.Random(0)
    while killed < 20:  # a run that is not reached by its point ends, and the next begins anew
        status, _ = run("merged", chosen.randint(1, operations))
        killed += status != 0
        if status == 0:
            assert tensor_bytes(tmp_path / "merged") == tensor_bytes(tmp_path / "whole")
            (tmp_path / "merged").rename(tmp_path / f"done-{killed}")
    if not (tmp_path / "merged").exists():
        assert run("merged", 10**9)[0] == 0
    assert tensor_bytes(tmp_path / "merged") == tensor_bytes(tmp_path / "whole")
    whole, merged = files_of(tmp_path / "whole"), files_of(tmp_path / "merged")
    assert whole.keys() == merged.keys()
    for name in whole.keys() - {"README.md"}:
        assert whole[name][1] == merged[name][1], name
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".merged")]
