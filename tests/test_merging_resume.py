"""`mergekit-yoyo merge` where it stops, and what it goes on with."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from finish_fixtures import tensor_bytes, write_checkpoint
from mergekit.options import MergeOptions
from merging_fixtures import begun, check_same, merge, merge_yaml

from mergekit_yoyo import staging
from mergekit_yoyo.merging import Local
from mergekit_yoyo.merging import merge as merge_in_python
from mergekit_yoyo.model.merge_yaml import read_merge_yaml

OPTIONS = ("--workers", 1, "--out-shard-size", "20k")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of a dense family."""
    folder = tmp_path_factory.mktemp("models")
    deep = {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}
    return [write_checkpoint(folder / f"m{k}", "qwen3", seed=k, values=deep) for k in range(3)]


@pytest.fixture
def file(models: list[Path], tmp_path: Path) -> Path:
    """The YAML of their merge, in a folder of its own."""
    found = tmp_path / "merge.yml"
    found.write_text(merge_yaml("yoyo_fusion", models))
    return found


def run_in_workers(
    file: Path, target: Path, *, patch: str = "", options: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """The command with two workers, in a process group of its own. patch: Python, run in the
    workers when they know `worker`, the module that computes a part."""
    site = file.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mergekit_yoyo.merging.preload':\n"
        "            import os, time\n"
        "            import mergekit_yoyo.merging.worker as worker\n"
        f"            exec({patch!r}, {{'worker': worker, 'os': os, 'time': time}})\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "mergekit_yoyo", "merge", str(file), str(target)]
    return subprocess.Popen(
        [*command, "--workers", "2", "--out-shard-size", "20k", *options],
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_fresh_over_a_merge_goes_on_without_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier merge stays until the new one takes its place."""
    target = tmp_path / "merged"
    assert merge(file, target, *OPTIONS)[0] == 0
    old = tensor_bytes(target)
    file.write_text(file.read_text() + "parameters: {consensus: recall}\n")
    begun(file, target, monkeypatch, parts=2, fresh=True)
    assert tensor_bytes(target) == old
    status, said = merge(file, target, *OPTIONS)
    assert status == 0, said
    assert "2 parts were there already" in said
    assert merge(file, tmp_path / "reference", *OPTIONS)[0] == 0
    check_same(target, tmp_path / "reference")
    assert tensor_bytes(target) != old
    status, said = merge(file, target, *OPTIONS)
    assert status == 2
    assert "--fresh replaces it" in said


def test_where_no_part_was_done_a_change_begins_anew(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(file, tmp_path / "merged", monkeypatch, parts=0)
    file.write_text(file.read_text() + "parameters: {consensus: recall}\n")
    status, said = merge(file, tmp_path / "merged", "--workers", 1, "--out-shard-size", "40k")
    assert status == 0, said
    assert merge(file, tmp_path / "reference", "--workers", 1, "--out-shard-size", "40k")[0] == 0
    check_same(tmp_path / "merged", tmp_path / "reference")


def test_a_tokenizer_of_no_merged_model_is_noted(
    file: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = tmp_path / "donor"
    shutil.copytree(models[0], donor)
    words = donor / "special_tokens_map.json"
    words.write_text("{}")
    file.write_text(file.read_text() + f"tokenizer_source: {donor}\n")
    begun(file, tmp_path / "merged", monkeypatch)
    for changed in (donor / "tokenizer.json", words):
        before = changed.stat()
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        status, said = merge(file, tmp_path / "merged", *OPTIONS)
        assert status == 2
        assert f"{donor}: {changed.name}" in said
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert merge(file, tmp_path / "merged", *OPTIONS)[0] == 0


def test_a_run_that_was_killed_while_it_cleared_up_was_merged(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.merging import place as places

    target = tmp_path / "merged"
    place = places.workplace_of(target)
    for point, at in (("replace", place.journal), ("unlink", place.done)):
        own = getattr(Path, point)

        def stop(
            path: Path, *more: object, own: object = own, at: Path = at, **how: object
        ) -> None:
            if path == at and target.exists():
                raise KeyboardInterrupt
            own(path, *more, **how)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(Path, point, stop)
            assert merge(file, target, *OPTIONS)[0] == 1
        bytes_ = tensor_bytes(target)
        assert place.done.exists() == (point == "unlink")
        status, said = merge(file, target, *OPTIONS)
        assert status == 0, said
        assert "was merged already" in said
        assert tensor_bytes(target) == bytes_
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(target)


def test_what_changed_since_it_was_merged_is_said(file: Path, tmp_path: Path) -> None:
    """Of a run that was killed before it cleared up: there is nothing to go on with."""
    from mergekit_yoyo.merging.place import workplace_of

    target = tmp_path / "merged"
    killed("placing", [file, target], tmp_path)
    place = workplace_of(target)
    place.model.rename(target)
    file.write_text(file.read_text() + "parameters: {consensus: recall}\n")
    status, said = merge(file, target, *OPTIONS)
    assert status == 2
    assert "was merged already. Since then changed: the YAML" in said
    assert not place.folder.exists()
    assert "--fresh replaces it" in merge(file, target, *OPTIONS)[1]


def test_an_adapter_that_was_merged_by_half_is_merged_again(
    file: Path, models: list[Path], tmp_path: Path
) -> None:
    """mergekit would take any folder of that name."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models[0])
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    each = "  parameters: {weight: 0.5}\n"
    text = merge_yaml("linear", [models[1], f"{models[0]}+{tmp_path / 'lora'}"], "", each)
    file.write_text(text)
    cache = ("--lora-merge-cache", tmp_path / "cache")
    assert merge(file, tmp_path / "whole", *OPTIONS, *cache)[0] == 0
    (kept,) = (tmp_path / "cache").iterdir()
    weights = kept / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert merge(file, tmp_path / "merged", *OPTIONS, *cache)[0] == 0
    check_same(tmp_path / "merged", tmp_path / "whole")
    status, said = merge(file, tmp_path / "own", *OPTIONS)
    assert status == 0, said
    check_same(tmp_path / "own", tmp_path / "whole")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"")
    status, said = merge(file, tmp_path / "none", *OPTIONS)
    assert status == 2
    assert "the adapter cannot be merged" in said


def test_a_disk_that_fills_up_keeps_the_parts_that_are_done(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.merging import worker

    write, written = worker.ShardFile.write, []

    def full(shard: object, name: str, tensor: object) -> None:
        written.append(name)
        if len(written) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(shard, name, tensor)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(worker.ShardFile, "write", full)
        status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 2
    assert "the disk filled up while the merge was written. Free some space" in said
    written = list((tmp_path / ".merged.merging" / "model" / "merged").iterdir())
    assert written
    assert not [path for path in written if path.name.startswith(".")]
    status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 0
    assert re.search(r"\d+ parts? (was|were) there already", said)
    assert merge(file, tmp_path / "reference", *OPTIONS)[0] == 0
    check_same(tmp_path / "merged", tmp_path / "reference")


@pytest.mark.slow
def test_an_interrupt_ends_all_workers_without_their_tracebacks(file: Path, tmp_path: Path) -> None:
    slow = (
        "def compute(*arguments, own=worker.compute):\n"
        "    time.sleep(0.1)\n"
        "    return own(*arguments)\n"
        "worker.compute = compute\n"
    )
    run = run_in_workers(file, tmp_path / "merged", patch=slow)
    assert run.stderr
    said = []
    for line in run.stderr:
        said.append(line)
        if line.startswith("part 1 of"):
            os.killpg(run.pid, signal.SIGINT)
            break
    said += run.stderr
    text = "".join(said)
    assert run.wait() == 1, text
    assert "Aborted!" in text
    assert "Traceback" not in text
    assert "leaked" not in text
    status, shown = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 0
    assert "there already" in shown
    assert merge(file, tmp_path / "reference", *OPTIONS)[0] == 0
    check_same(tmp_path / "merged", tmp_path / "reference")


@pytest.mark.slow
def test_a_part_that_no_worker_survives_ends_the_run_and_the_others_are_kept(
    file: Path, tmp_path: Path
) -> None:
    deadly = (
        "def stream(job, *arguments, own=worker._stream):\n"
        "    if job.part.number == 2:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return own(job, *arguments)\n"
        "worker._stream = stream\n"
    )
    run = run_in_workers(file, tmp_path / "merged", patch=deadly)
    _, said = run.communicate()
    assert run.returncode == 2, said
    assert "the worker was killed 3 times" in said
    parts = [json.loads(line) for line in (tmp_path / ".merged.merging/journal.jsonl").open()]
    done = [line["file"] for line in parts if line["line"] == "part"]
    laid_out = next(line["parts"] for line in parts if line["line"] == "layout")
    assert set(laid_out) - set(done) == {list(laid_out)[1]}
    status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 0
    assert f"{len(done)} parts were there already" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_told_of_each_tensor_once(file: Path, tmp_path: Path, workers: int) -> None:
    told: list[int] = []

    class Progress:
        def begin(self, step: str, total: int | None = None, unit: str = "tensors") -> None:
            self.total = total

        def advance(self, count: int = 1) -> None:
            told.append(count)

        def say(self, text: str) -> None:
            self.said = text

    progress = Progress()
    merge_in_python(
        read_merge_yaml(file),
        tmp_path / "merged",
        MergeOptions(quiet=True, out_shard_size=40_000),
        Local(count=workers),
        progress=progress,
    )
    tensors = tensor_bytes(tmp_path / "merged")
    size = sum(len(data) for _, _, data in tensors.values())
    assert sum(told) == size == progress.total
    assert len([count for count in told if count]) >= len(tensors)


def test_what_finishing_rewrites_keeps_the_size_of_its_files(tmp_path: Path) -> None:
    """Experts that were packed are one by one again."""
    models = [write_checkpoint(tmp_path / f"m{k}", "qwen3_moe", seed=k) for k in range(2)]
    file = tmp_path / "merge.yml"
    record = tmp_path / "record.jsonl"
    file.write_text(
        merge_yaml("yoyo_fusion", models, f"dtype: bfloat16\nparameters: {{report: {record}}}\n")
    )
    status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 0, said
    sizes = [path.stat().st_size for path in (tmp_path / "merged").glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) < 24_000  # headers on top
    assert f"its record is {record}" in said


def test_a_merge_that_cannot_be_finished_is_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo import finish
    from mergekit_yoyo.errors import YoyoError

    def refuse(_: Path) -> None:
        raise YoyoError("no.")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "plan_finish", refuse)
        status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 2
    assert "with --no-finish puts it in place" in said
    assert not (tmp_path / "merged").exists()
    status, said = merge(file, tmp_path / "merged", *OPTIONS, "--no-finish")
    assert status == 0, said
    assert "in place, its" in said
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()


def test_memory_that_does_not_suffice_is_told(file: Path, tmp_path: Path) -> None:
    status, said = merge(file, tmp_path / "merged", "--memory", "10MB")
    assert status == 2
    assert "one worker needs about 45" in said
    assert "--memory gives 10.0 MB. Give more." in said


def test_num_threads_are_those_of_all_workers(file: Path, tmp_path: Path) -> None:
    options = ("--workers", 2, "--out-shard-size", "40k", "-j", 6)
    status, said = merge(file, tmp_path / "merged", *options)
    assert status == 0
    assert "2 workers on cpu, 3 threads" in said


def test_downloads_are_kept_where_the_option_says(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look finds a model that lies in that cache only (offline, it is as far as one gets)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE)
    monkeypatch.setenv("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    repository = tmp_path / "cache" / "models--someone--m"
    shutil.copytree(models[0], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    file = tmp_path / "merge.yml"
    file.write_text(merge_yaml("yoyo_fusion", ["someone/m", models[1]]))
    assert "that can be reached offline" in merge(file, tmp_path / "merged")[1]
    said = merge(file, tmp_path / "merged", "--transformers-cache", tmp_path / "cache")[1]
    assert "that can be reached" not in said
    assert "does not merge models by their Hub name" in said


def killed(point: str, arguments: list[object], cwd: Path) -> None:
    """The command in a process that is killed as soon as a stage stands in its journal."""
    code = (
        "import json, os, sys\n"
        "from mergekit_yoyo.merging.journal import Journal\n"
        "own = Journal.append\n"
        "def append(journal, line):\n"
        "    own(journal, line)\n"
        f"    if getattr(line, 'stage', '') == {point!r}:\n"
        "        os._exit(9)\n"
        "Journal.append = append\n"
        "from mergekit_yoyo.cli import main\n"
        "main(json.loads(sys.argv[1]))\n"
    )
    line = json.dumps(["merge", *map(str, arguments), *map(str, OPTIONS), "-q"])
    done = subprocess.run([sys.executable, "-c", code, line], cwd=cwd, check=False)
    assert done.returncode == 9


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a merge of mixtures of experts, which finishing stores as they were."""
    folder = tmp_path_factory.mktemp("packed")
    models = [write_checkpoint(folder / f"m{k}", "qwen3_moe", seed=k) for k in range(2)]
    file = folder / "merge.yml"
    file.write_text(merge_yaml("yoyo_fusion", models, "dtype: bfloat16\n"))
    assert merge(file, folder / "whole", *OPTIONS)[0] == 0
    return file


def test_killed_without_finishing_and_run_again_with_it(packed: Path, tmp_path: Path) -> None:
    killed("placing", [packed, tmp_path / "merged", "--no-finish"], tmp_path)
    assert merge(packed, tmp_path / "merged", *OPTIONS)[0] == 0
    check_same(tmp_path / "merged", packed.with_name("whole"))


def test_what_finishing_has_converted_is_not_merged_again(packed: Path, tmp_path: Path) -> None:
    killed("finished", [packed, tmp_path / "merged"], tmp_path)
    journal = tmp_path / ".merged.merging" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert '"finished"' in lines[-1]
    journal.write_text("".join(lines[:-1]))
    status, said = merge(packed, tmp_path / "merged", *OPTIONS, "--no-finish")
    assert status == 0
    assert "in place, its" in said
    assert "warning: an earlier run has finished it" in said
    check_same(tmp_path / "merged", packed.with_name("whole"))


def test_a_replaced_merge_is_there_until_the_new_one_is(file: Path, tmp_path: Path) -> None:
    """Killed when all was exchanged but not cleared up: no run of any kind brings the old back."""
    from mergekit_yoyo.merging import place as places
    from mergekit_yoyo.merging.journal import Journal

    target = tmp_path / "merged"
    assert merge(file, target, *OPTIONS)[0] == 0
    old = tensor_bytes(target)
    file.write_text(file.read_text() + "parameters: {consensus: recall}\n")
    assert merge(file, tmp_path / "reference", *OPTIONS)[0] == 0
    new = tensor_bytes(tmp_path / "reference")
    assert old != new
    killed("placing", [file, target, "--fresh"], tmp_path)
    assert tensor_bytes(target) == old
    place = places.workplace_of(target)
    assert Journal.read(place.journal).placed == place.model.stat().st_ino
    places.move_into_place(place.model, target)  # as the run would have, and be killed then
    assert tensor_bytes(target) == new
    status, said = merge(file, target, *OPTIONS)
    assert status == 0
    assert "was merged already" in said
    check_same(target, tmp_path / "reference")
    killed("placing", [file, target, "--fresh"], tmp_path)
    places.move_into_place(place.model, target)
    status, said = merge(file, target, *OPTIONS, "--fresh")
    assert status == 0, said
    check_same(target, tmp_path / "reference")


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "replaced", "model", "adapted"])
def test_a_target_may_have_any_name(file: Path, tmp_path: Path, name: str) -> None:
    for extra in ((), ("--fresh",)):
        status, said = merge(file, tmp_path / name, *OPTIONS, *extra)
        assert status == 0, said
    assert (tmp_path / name / "config.json").is_file()


def test_what_came_to_be_in_the_target_meanwhile_is_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_yoyo.merging import executor

    target = tmp_path / "thesis"
    unchanged = executor.check_unchanged

    def write(*arguments: object) -> None:
        target.mkdir()
        (target / "chapter.txt").write_text("x")
        unchanged(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(executor, "check_unchanged", write)
        status, said = merge(file, target, *OPTIONS)
    assert status == 2
    assert "exists and is not empty" in said
    assert (target / "chapter.txt").read_text() == "x"
    shutil.rmtree(target)
    status, said = merge(file, target, *OPTIONS)
    assert status == 0
    assert "in place, its" in said
    report = f"parameters: {{report: {target}/record.jsonl}}\n"
    file.write_text(file.read_text() + report)
    status, said = merge(file, target, *OPTIONS, "--fresh")
    assert status == 2
    assert "Let the record lie beside it" in said


def fail_to_copy(patch: pytest.MonkeyPatch, error: OSError) -> None:
    """mergekit copies nothing of the small files but their names."""
    from mergekit import merge as mergekits

    def copy(source: str, target: str) -> None:
        Path(target).write_bytes(b"")
        raise error

    patch.setattr(mergekits.shutil, "copy", copy)


def test_a_tokenizer_that_a_full_disk_cut_off_is_written_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergekit logs that, and says that the merge was still successful."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        fail_to_copy(patch, full)
        status, said = merge(file, tmp_path / "merged", *OPTIONS)
    assert status == 2
    assert "the disk filled up" in said
    assert "Traceback" not in said
    assert merge(file, tmp_path / "merged", *OPTIONS)[0] == 0
    assert merge(file, tmp_path / "reference", *OPTIONS)[0] == 0
    check_same(tmp_path / "merged", tmp_path / "reference")


@pytest.mark.slow
def test_a_part_that_fails_ends_all_workers(file: Path, tmp_path: Path) -> None:
    """At once, and the process with them."""
    failing = (
        "def stream(job, *arguments, own=worker._stream):\n"
        "    if job.part.number == 2:\n"
        "        raise worker.YoyoError('this part fails.')\n"
        "    time.sleep(60)\n"
        "worker._stream = stream\n"
    )
    run = run_in_workers(file, tmp_path / "merged", patch=failing)
    started = time.monotonic()
    _, said = run.communicate(timeout=300)
    assert run.returncode == 2, said
    assert "Error: this part fails." in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert time.monotonic() - started < 60  # not when the other part has slept


@pytest.mark.slow
def test_a_terminated_run_leaves_no_workers(file: Path, tmp_path: Path) -> None:
    slow = "worker._stream = lambda *_: time.sleep(600)\n"
    run = run_in_workers(file, tmp_path / "merged", patch=slow)
    assert run.stderr
    said = []
    for line in run.stderr:
        said.append(line)
        if line.startswith("merging "):
            run.terminate()
            break
    said += run.stderr  # ends when the last worker has let go of it
    assert run.wait() == 128 + signal.SIGTERM, "".join(said)
    assert "leaked" not in "".join(said)


def test_quiet_says_the_errors(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + "parameters: {tukey_sea: 3.0}\n")
    status, said = merge(file, tmp_path / "merged", "--quiet")
    assert status == 2
    assert "knows no parameter tukey_sea" in said


def test_a_failure_of_the_command_itself_ends_the_workers(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they compute, and it notes what is done."""
    from mergekit_yoyo.merging.journal import DonePart, Journal

    append = Journal.append

    def interrupt(journal: Journal, line: object) -> None:
        append(journal, line)  # type: ignore[arg-type]
        if isinstance(line, DonePart):
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupt)
    options = MergeOptions(quiet=True, out_shard_size=20_000)
    with pytest.raises(KeyboardInterrupt) as caught:  # kept, and with it what the frames hold
        merge_in_python(read_merge_yaml(file), tmp_path / "merged", options, Local(count=2))
    servers = [p for p in psutil.Process().children() if p.is_running()]
    assert not [worker for server in servers for worker in server.children()]
    assert caught.traceback


def test_what_is_put_into_the_target_at_the_last_moment_stays(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at it and the exchange."""
    from mergekit_yoyo.merging import place as places

    target = tmp_path / "merged"
    append = places.Journal.append
    for fresh in (False, True):

        def come_between(journal: places.Journal, line: object) -> None:
            append(journal, line)  # type: ignore[arg-type]
            if getattr(line, "stage", "") == "placing":
                if target.exists():
                    target.rename(tmp_path / "theirs")
                target.mkdir()
                (target / "notes.txt").write_text("years of work")

        with monkeypatch.context() as patch:
            patch.setattr(places.Journal, "append", come_between)
            status, said = merge(file, target, *OPTIONS, *["--fresh"] * fresh)
        assert status == 2
        assert "exists and is not empty" in said
        assert (target / "notes.txt").read_text() == "years of work"
        shutil.rmtree(target)
        status, said = merge(file, target, *OPTIONS)
        assert status == 0, said
        assert "in place, its" in said


def test_the_root_of_a_disk_is_refused_first(file: Path) -> None:
    status, said = merge(file, "/proc", *OPTIONS, "--force")
    assert status == 2
    assert "/proc: this is the root of a disk" in said


def test_a_tokenizer_that_mergekit_cannot_copy_is_said_quietly_too(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_to_copy(patch, PermissionError(errno.EACCES, "Permission denied"))
        status, said = merge(file, tmp_path / "merged", *OPTIONS, "--no-finish", "--quiet")
    assert status == 0
    assert "warning: Failed to copy tokenizer" in said
    assert "Permission denied" in said


def test_finished_weights_are_on_the_disk_before_the_parts_go(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync, seen = os.fsync, list[bool]()

    def note(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    exchange = staging._exchange

    def look(one: Path, other: Path) -> bool:
        seen.append(all(path.stat().st_ino in synced for path in one.glob("*.safetensors")))
        return exchange(one, other)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(staging, "_exchange", look)
    assert merge(packed, tmp_path / "merged", *OPTIONS)[0] == 0
    assert seen == [True]
