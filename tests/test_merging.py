"""`mergekit-yoyo merge`: mergekit's bytes, whatever happens on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from finish_fixtures import (
    files_of,
    run_mergekit,
    tensor_bytes,
    write_checkpoint,
    write_tokenizer,
)
from merging_fixtures import begun, check_same, merge, merge_yaml
from safetensors import safe_open
from safetensors.torch import load_file

from mergekit_yoyo.cli import main
from mergekit_yoyo.record.reading import read_record


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


@pytest.fixture(scope="module")
def pickled(inputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The dense models in .bin files: one, several, and one as torch wrote it before 1.6."""
    found = []
    for k, model in enumerate(inputs["qwen3"]):
        folder = tmp_path_factory.mktemp("pickled") / f"p{k}"
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = load_file(model / "model.safetensors")
        if k != 1:
            whole = folder / "pytorch_model.bin"
            torch.save(tensors, whole, _use_new_zipfile_serialization=k == 0)
        else:
            files = {name: f"pytorch_model-{n % 2}.bin" for n, name in enumerate(tensors)}
            for file in set(files.values()):
                torch.save({n: x for n, x in tensors.items() if files[n] == file}, folder / file)
            index = {"metadata": {}, "weight_map": files}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        found.append(folder)
    return found


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
    inputs: dict[str, list[Path]],
    wider: Path,
    adapter: Path,
    pickled: list[Path],
    tmp_path: Path,
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
        "pickled": merge_yaml("yoyo_fusion", pickled),
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
    options = [
        "--no-finish",
        "--force",
        "--workers",
        "2",
        "--out-shard-size",
        "20k",
    ]  # and no cache
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


# Runs one command line after the other, each in a copy of a process that has imported all, which
# kills itself and its workers at the n-th operation on files: the points are the process's own.
KILLER = """
import json, os, signal, sys
import mergekit.merge, mergekit_yoyo.merging.worker, mergekit_yoyo.finish, mergekit_yoyo.inspection
from mergekit_yoyo.cli import main

def run(arguments, point):
    reached = 0
    def announced(function):
        def call(*args, **kwargs):
            nonlocal reached
            reached += 1
            if reached == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in ("fsync", "rename", "replace", "mkdir", "link", "unlink", "rmdir"):
        setattr(os, name, announced(getattr(os, name)))
    status = 0
    try:
        main(arguments, standalone_mode=False)
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        status = 70
    os.write(answers, f"{reached}\\n".encode())
    os._exit(status)

for line in sys.stdin:
    arguments, point = json.loads(line)
    read, answers = os.pipe()
    child = os.fork()
    if not child:
        run(arguments, point)
    os.close(answers)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as told:
        print(json.dumps([status, int(told.read() or 0)]), flush=True)
"""


@pytest.mark.slow
def test_killed_at_twenty_points_the_next_run_ends_with_the_same_bytes(
    inputs: dict[str, list[Path]], tmp_path: Path
) -> None:
    (tmp_path / "merge.yml").write_text(merge_yaml("yoyo_fusion", inputs["qwen3_moe"]))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLER],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout

    def run(out: str, point: int) -> tuple[int, int]:
        """The status, and how many operations on files there were."""
        arguments = ["merge", "merge.yml", out, "--quiet", "--workers", "1"]
        arguments += ["--out-shard-size", "20k"]
        process.stdin.write(json.dumps([arguments, point]) + "\n")
        process.stdin.flush()
        answer = ""
        while not answer.startswith("["):  # what libraries print goes before it
            answer = process.stdout.readline()
            assert process.poll() is None
        status, operations = json.loads(answer)
        assert status in (0, -signal.SIGKILL)
        return status, operations

    status, operations = run("whole", 0)
    assert status == 0
    assert operations > 30
    killed, ended, chosen = 0, 0, random.Random(0)
    while killed < 20 or not ended:  # a run that its point does not reach ends; the next is fresh
        point = chosen.randint(1, operations) if killed < 20 else 0
        status, _ = run("merged", point)
        killed += status != 0
        if status == 0:
            ended += 1
            check_same(tmp_path / "merged", tmp_path / "whole")
            (tmp_path / "merged").rename(tmp_path / f"ended-{ended}")
    process.stdin.close()
    process.wait()


def test_a_lost_worker_is_replaced(inputs: dict[str, list[Path]], tmp_path: Path) -> None:
    """One of the workers kills itself at its first part: the other parts and that one are done."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mergekit_yoyo.merging.preload':\n"
        "            import mergekit_yoyo.merging.worker as worker\n"
        "            sync = worker.sync\n"
        "            def die_once(folder):\n"
        "                try:\n"
        "                    os.open(os.environ['LOST'], os.O_CREAT | os.O_EXCL)\n"
        "                except FileExistsError:\n"
        "                    return sync(folder)\n"
        "                os.kill(os.getpid(), 9)\n"
        "            worker.sync = die_once\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    (tmp_path / "merge.yml").write_text(merge_yaml("yoyo_fusion", inputs["qwen3"]))
    command = [sys.executable, "-m", "mergekit_yoyo", "merge", "merge.yml"]
    options = ["--workers", "2", "--out-shard-size", "20k"]
    for out, site in (("whole", ""), ("merged", str(tmp_path / "site"))):
        paths = os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])
        environment = {"PYTHONPATH": paths, "LOST": str(tmp_path / "lost"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, out, *options],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "lost").exists()
    check_same(tmp_path / "merged", tmp_path / "whole")


@pytest.fixture
def dense(inputs: dict[str, list[Path]], tmp_path: Path) -> Path:
    """The YAML of a merge of the dense models, in a folder of its own."""
    file = tmp_path / "merge.yml"
    file.write_text(merge_yaml("yoyo_fusion", inputs["qwen3"]))
    return file


def record_lines(file: Path) -> tuple[dict, list[dict]]:
    head, *lines = map(json.loads, file.read_text().splitlines())
    del head["started"]
    return head, sorted(lines, key=lambda line: str(line["name"]))


def test_the_record_is_that_of_mergekit_whoever_computes_and_however_often_it_stops(
    inputs: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one process of mergekit-yaml's, of two workers, and of two runs."""
    options = ["--no-finish", "--force", "--out-shard-size", "20k"]
    record = tmp_path / "record.jsonl"
    text = merge_yaml("yoyo_fusion", inputs["qwen3_moe"], f"parameters: {{report: {record}}}\n")
    assert not any(run_mergekit({tmp_path / "theirs": text}, tmp_path).values())
    whole = record_lines(record)
    assert len(whole[1]) > 20
    assert whole[0]["yaml"].splitlines()[0] == "merge_method: yoyo_fusion"
    record.unlink()
    failed = run_ours({tmp_path / "ours": text}, tmp_path, [*options, "--workers", "2"])
    assert not any(failed.values()), failed
    assert record_lines(record) == whole

    file, target = tmp_path / "merge.yml", tmp_path / "twice"
    file.write_text(text)
    begun(file, target, monkeypatch, parts=2)
    read = read_record(record)  # of the first part: the second was journaled only
    assert read.tensors
    assert len(read.tensors) + read.missing == whole[0]["tensors"]
    record.write_text('{"line":"header","of":"an earlier merge"}\n')
    failed = run_ours({target: text}, tmp_path, ["--workers", "1", "--out-shard-size", "20k"])
    assert not any(failed.values()), failed
    assert record_lines(record) == whole


def test_what_changed_is_said_and_fresh_begins_anew(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, options = tmp_path / "merged", ("--workers", 1, "--out-shard-size", "20k")
    begun(dense, target, monkeypatch)
    text = dense.read_text()
    dense.write_text(text + "parameters: {tukey_c: 3.0}\n")
    status, said = merge(dense, target, *options)
    assert status == 2
    assert "changed: the YAML" in said
    assert "--fresh" in said
    dense.write_text(text)
    status, said = merge(dense, target, *options[:2], "--out-shard-size", "30k")
    assert status == 2
    assert "option out_shard_size: 20000 then, 30000 now" in said
    status, said = merge(dense, target, *options)
    assert status == 0
    assert "1 part was there already" in said
    reference = tmp_path / "reference"
    assert merge(dense, reference, *options)[0] == 0
    assert tensor_bytes(target) == tensor_bytes(reference)
    assert merge(dense, target, *options)[0] == 2
    assert merge(dense, target, *options, "--fresh")[0] == 0


def test_an_input_that_is_another_file_now_is_named(
    inputs: dict[str, list[Path]], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged"
    begun(dense, target, monkeypatch)
    weights = inputs["qwen3"][1] / "model.safetensors"
    before = weights.stat()
    try:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        status, said = merge(dense, target, "--workers", 1, "--out-shard-size", "20k")
        assert status == 2
        assert f"{inputs['qwen3'][1]}: model.safetensors" in said
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert merge(dense, target, "--workers", 1, "--out-shard-size", "20k")[0] == 0


def test_an_input_that_changes_meanwhile_is_noticed(
    inputs: dict[str, list[Path]], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.merging import worker

    weights = inputs["qwen3"][1] / "model.safetensors"
    before = weights.stat()
    compute = worker.compute

    def touch(*arguments: object) -> object:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "compute", touch)
    try:
        status, said = merge(dense, tmp_path / "merged", "--workers", 1)
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status == 2
    assert f"{weights}: this input changed while it was merged" in said
    assert not (tmp_path / "merged").exists()


def test_a_damaged_part_is_computed_again(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "merged"
    begun(dense, target, monkeypatch)
    (part,) = (tmp_path / ".merged.merging" / "model" / "merged").glob("*.safetensors")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    status, said = merge(dense, target, "--workers", 1, "--out-shard-size", "20k")
    assert status == 0
    assert f"{part.name} is not as it was written" in said
    reference = tmp_path / "reference"
    assert merge(dense, reference, "--workers", 1)[0] == 0
    assert tensor_bytes(target) == tensor_bytes(reference)


def test_a_second_run_on_one_target_says_which_process_holds_it(
    dense: Path, tmp_path: Path
) -> None:
    from mergekit_yoyo.merging.place import held, workplace_of

    with held(workplace_of(tmp_path / "merged"), fresh=False):
        status, said = merge(dense, tmp_path / "merged")
    assert status == 2
    assert f"process {os.getpid()}" in said


def test_targets_that_hold_something_else_and_full_disks(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo import staging

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    for extra in ((), ("--fresh",)):
        status, said = merge(dense, tmp_path / "photos", *extra)
        assert status == 2
        assert "not empty (and no merge: it has no mergekit_config.yml)" in said
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"x"
    monkeypatch.setattr(
        staging.shutil, "disk_usage", lambda _: staging.shutil._ntuple_diskusage(10**9, 10**9, 9)
    )
    status, said = merge(dense, tmp_path / "merged", "--force")
    assert status == 2
    assert "are needed here" in said
    assert merge(dense, tmp_path / "merged", "--memory", "lots")[0] == 2
    assert merge(dense, tmp_path / "merged", "--out-shard-size", "5X")[0] == 2


def test_the_look_before_stops_a_merge_and_force_overrules(dense: Path, tmp_path: Path) -> None:
    dense.write_text(dense.read_text() + "parameters: {tukey_sea: 3.0}\n")
    status, said = merge(dense, tmp_path / "merged")
    assert status == 2
    assert "knows no parameter tukey_sea" in said
    assert not (tmp_path / "merged").exists()
    assert merge(dense, tmp_path / "merged", "--force")[0] == 0


def test_the_options_are_mergekits() -> None:
    from mergekit.options import MergeOptions

    from mergekit_yoyo.cli.merge import MERGEKIT_OPTIONS

    left_out = {
        *("clone_tensors", "safe_serialization", "verbosity", "quiet"),
        *("async_write", "write_threads"),
    }
    ours = {name.replace("-", "_") for name, *_ in MERGEKIT_OPTIONS}
    assert ours | left_out == set(MergeOptions.model_fields)
    assert not ours & left_out


@pytest.fixture
def merged_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A merge whose process ended when it was merged and not yet finished; gives its YAML."""
    monkeypatch.chdir(tmp_path)
    experts = Path(__file__).parents[1] / "examples" / "experts"
    listed = "".join(f"- model: {experts / name}\n" for name in ("code", "german"))
    file = tmp_path / "merge.yml"
    file.write_text(f"merge_method: linear\nmodels:\n{listed}parameters: {{weight: 0.5}}\n")
    code = (
        "import os, sys\n"
        "from mergekit_yoyo.merging.journal import Journal\n"
        "own = Journal.append\n"
        "def append(journal, line):\n"
        "    own(journal, line)\n"
        "    if getattr(line, 'stage', '') == 'merged':\n"
        "        os._exit(9)\n"
        "Journal.append = append\n"
        "from mergekit_yoyo.cli import main\n"
        "main(['merge', 'merge.yml', 'out', '--workers', '1', '-q'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "out").exists()
    return file


def test_what_is_merged_is_held_against_its_yaml(merged_not_finished: Path) -> None:
    text = merged_not_finished.read_text()
    merged_not_finished.write_text(text.replace("0.5", "0.1"))
    done = merge_in_process(merged_not_finished.parent)
    assert done.returncode == 2
    assert "holds the beginning of another merge; changed: the YAML" in done.stderr
    assert not merged_not_finished.with_name("out").exists()
    merged_not_finished.write_text(text)
    assert merge_in_process(merged_not_finished.parent).returncode == 0


def test_what_is_merged_is_verified(merged_not_finished: Path) -> None:
    root = merged_not_finished.parent
    file = root / ".out.merging" / "model" / "out" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 0xFF]) + whole[-2:])
    done = merge_in_process(root)
    assert done.returncode == 0, done.stderr
    assert "not as it was written: merged again" in done.stderr
    with safe_open(root / "out" / "model.safetensors", framework="pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    file.parent.mkdir(parents=True)
    file.write_bytes(whole)
    with safe_open(file, framework="pt") as opened:
        for name, tensor in found.items():
            assert torch.equal(tensor, opened.get_tensor(name)), name


def merge_in_process(root: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mergekit_yoyo", "merge", "merge.yml", "out", "--workers", "1"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "gpu"], "--device gpu: torch cannot use it here"),
        (["--out-shard-size", "0"], "--out-shard-size: expected a number"),
        (["--ray", "auto", "--memory", "4GB"], "--memory bounds the workers of this machine"),
        (["--memory", "-5GB"], "--memory: expected a size such as 16GB; got -5GB"),
        (["--no-write-model-card"], "Add --no-finish"),
        (["--no-copy-tokenizer"], "Add --no-finish"),
        (["--ray", "auto", "-j", "4"], "--num-threads: a part on Ray has its own"),
        (["-j", "0"], "--num-threads: expected 1 or more; got 0"),
        (["-j", "1", "--workers", "3"], "--num-threads 1: 3 workers need a thread each"),
        (["--gpu-rich"], "--device cuda: torch cannot use it here"),
        (["--multi-gpu"], "--device cuda: torch cannot use it here"),
        (["--device", "mps"], "--device mps: torch cannot use it here"),
        (["--device", "meta"], "--device meta: torch cannot use it here"),
        (["--ray", "merge.yml"], "--ray takes an address; got merge.yml"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "merge.yml"
    file.write_text("merge_method: linear\nmodels: [{model: a}, {model: b}]\n")
    result = CliRunner().invoke(main, ["merge", str(file), str(tmp_path / "out"), *options])
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_a_link_or_the_folder_we_are_in_is_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.errors import YoyoError
    from mergekit_yoyo.merging.place import check_target, workplace_of

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(YoyoError, match="this is a link"):
        check_target(tmp_path / "link")
    for target in (".", "..", "../here"):
        with pytest.raises(YoyoError, match="we are in this folder"):
            check_target(workplace_of(Path(target)).target)
