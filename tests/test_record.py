"""The record of a merge: what real merges leave, against the float64 reference."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from finish_fixtures import write_checkpoint
from mergekit.merge_methods import merge_tensors
from mergekit.merge_methods.base import TensorGroup
from method_fixtures import fine_tune, mergekit, recipe, sliced, tensors_of
from reference import yoyo_fusion
from tensors import fine_tunes

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method import METHOD
from mergekit_yoyo.record.layers import place_of
from mergekit_yoyo.record.schema import Header, TensorLine, pairs
from mergekit_yoyo.staging import write_files

ROUNDED = 6e-6  # half a unit of six significant digits
ABC = ("a", "b", "c", "d")
NAN = "model.layers.1.input_layernorm.weight"


def read(path: Path) -> tuple[Header, dict[str, TensorLine]]:
    first, *rest = path.read_text().splitlines()
    lines = [TensorLine.model_validate_json(line) for line in rest]
    assert len({line.name for line in lines}) == len(lines)
    return Header.model_validate_json(first), {line.name: line for line in lines}


def assert_tells_of(line: TensorLine, problem: int, inputs: list[torch.Tensor], **options) -> None:
    """One problem of a line says what the oracle finds."""
    reference = yoyo_fusion([x.double().numpy() for x in inputs], **options)
    lengths = np.linalg.norm(reference.residuals, axis=1)
    cosines = [
        reference.residuals[i] @ reference.residuals[j] / (lengths[i] * lengths[j])
        for i, j in pairs(len(inputs))
    ]
    norms = [float(x.double().norm()) for x in inputs]
    np.testing.assert_allclose(line.norms[problem], norms, rtol=ROUNDED)
    np.testing.assert_allclose(line.residual_norms[problem], lengths, rtol=ROUNDED)
    np.testing.assert_allclose(line.cosines[problem], cosines, rtol=ROUNDED, atol=1e-6)
    np.testing.assert_allclose(line.weights[problem], reference.weights, rtol=ROUNDED, atol=1e-6)
    assert line.rank is not None
    assert line.rank[problem] == reference.rank
    assert line.energy is not None
    assert line.energy[problem] == pytest.approx(reference.energy, rel=ROUNDED)
    assert line.energy_scale is not None
    assert line.energy_scale[problem] == pytest.approx(reference.energy_scale, rel=ROUNDED)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Four fine-tunes of a Qwen3-MoE (packed experts); the norms of `d` are those of `a`."""
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "base", "qwen3_moe")
    for seed, name in enumerate(ABC):
        fine_tune(folder / "base", folder / name, seed)
    return folder


def test_a_merge_leaves_a_line_for_each_tensor_that_says_what_the_oracle_finds(models, tmp_path):
    text = recipe(
        [f"./{m}" for m in ABC],
        report=str(tmp_path / "new" / "report.jsonl"),
        rescale=[{"filter": "norm", "value": "median"}, {"value": "mean"}],
    )
    run = mergekit("yaml", text, tmp_path / "merged", cwd=models)
    assert run.returncode == 0, run.stderr
    header, lines = read(tmp_path / "new" / "report.jsonl")
    assert header.inputs == ["./a", "./b", "./c", "./d"]
    assert header.base is None
    assert header.versions.keys() == {"mergekit-yoyo", "mergekit", "torch", "transformers"}
    merged = tensors_of(tmp_path / "merged")
    assert lines.keys() == merged.keys()
    assert header.tensors == len(merged) - 1  # mergekit calls an untied head optional

    inputs = [tensors_of(models / m) for m in ABC]
    packed = 0
    for name, line in lines.items():
        assert line.shape == list(merged[name].shape)
        assert line.dtype == str(merged[name].dtype).removeprefix("torch.")
        assert line.inputs is None
        rescale = {**header.parameters, **line.parameters}["rescale"]
        assert rescale == ("median" if "norm" in name else "mean")
        assert set(line.parameters) <= {"rescale"}
        if name in inputs[0]:
            assert_tells_of(line, 0, [tensors[name] for tensors in inputs])
            continue
        packed += 1
        layer = name.removesuffix("gate_up_proj").removesuffix("down_proj")
        kinds = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
        assert len(line.weights) == 4 * len(kinds)
        for problem in range(len(line.weights)):
            expert, piece = divmod(problem, len(kinds))
            stored = f"{layer}{expert}.{kinds[piece]}.weight"
            assert_tells_of(line, problem, [tensors[stored] for tensors in inputs])
    assert packed == 6


def test_slices_anchors_and_passed_through_tensors(models, tmp_path):
    text = sliced(
        [(("./a", "./b", "./c"), 0, 1), (("./b",), 1, 2), (("./a", "./b", "./d"), 2, 3)],
        extra=f"base_model: ./b\nparameters: {{center: anchor, report: {tmp_path / 'r.jsonl'}}}\n",
    )
    run = mergekit("yaml", text, tmp_path / "merged", cwd=models)
    assert run.returncode == 0, run.stderr
    header, lines = read(tmp_path / "r.jsonl")
    assert set(header.inputs) == {"./a", "./b", "./c", "./d"}
    assert header.base == "./b"
    a, b, c, d = (tensors_of(models / m) for m in ABC)
    for layer, others in ((0, (a, b, c)), (2, (a, b, d))):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        inputs = [tensors[name] for tensors in others]
        reference = yoyo_fusion([x.double().numpy() for x in inputs], center="anchor", anchor=1)
        np.testing.assert_allclose(lines[name].weights[0], reference.weights, rtol=ROUNDED)
        assert lines[name].center_weights == [[0, 1, 0]]
        (ab, ac, bc) = lines[name].cosines[0]
        assert ab is None
        assert bc is None
        assert ac == pytest.approx(float(np.corrcoef(reference.residuals[[0, 2]])[0, 1]), abs=0.02)
    assert lines["model.layers.2.input_layernorm.weight"].inputs == ["./a", "./b", "./d"]
    alone = lines["model.layers.1.mlp.gate.weight"]
    assert alone.inputs == ["./b"]
    assert alone.weights == []
    assert alone.parameters == {}


def group(*tensors: torch.Tensor, name: str = "w", base: int | None = None) -> TensorGroup:
    return TensorGroup.from_tensors(tensors, name=name, base_index=base)


def described(*tensors: torch.Tensor, base: int | None = None, **options: object) -> TensorLine:
    defaults = {parameter.name: parameter.default for parameter in METHOD.spec.shared_parameters}
    return METHOD.describe_group(group(*tensors, base=base), **{**defaults, **options})


def test_findings():
    good = fine_tunes(4, 0.01, (24, 24))
    assert described(*good).warnings == []
    (rejected,) = described(*good[:3], -good[3]).warnings
    assert (rejected.kind, rejected.model, rejected.problems) == ("rejected", "input 3", 1)
    (identical,) = described(good[0], good[0], good[0]).warnings
    assert (identical.kind, identical.model, identical.problems) == ("identical", None, 1)
    experts = torch.stack(good)
    others = [torch.stack(fine_tunes(4, 0.01, (24, 24), seed=s)) for s in (0, 0, 0)]
    others[1][2] *= -1
    (rejected,) = described(experts, experts, *others, experts=("separate")).warnings[:1]
    assert (rejected.kind, rejected.model, rejected.problems) == ("rejected", "input 3", 1)
    copies = (good[0], good[0], good[0], good[1])  # not identical: one differs, and is rejected
    found = [(x.kind, x.model) for x in described(*copies, consensus="recall").warnings]
    assert found == [("rejected", "input 3"), ("alone", None)]
    (identical,) = described(*copies[:3], consensus="recall").warnings
    assert identical.kind == "identical"
    around = {"consensus": "recall", "center": "anchor", "base": 0}
    (identical,) = described(*copies[:3], **around).warnings
    assert identical.kind == "identical"
    found = [(x.kind, x.model) for x in described(*copies, -good[0], **around).warnings]
    assert ("identical", None) not in found
    assert described(good[0], consensus="recall").consensus == "recall"
    line = described(*good, center="coordinate_median")
    assert line.center_weights is None


def test_describing_writes_nothing_and_says_the_same(tmp_path):
    tensors, path = fine_tunes(3, 0.05, (8, 40), dtype=torch.bfloat16), tmp_path / "r.jsonl"
    line = described(*tensors, report=str(path))
    assert not path.exists()
    kept = [x.clone() for x in tensors]
    merge_tensors(tensors, "yoyo_fusion", parameters={"report": str(path)}, name="w")
    header, lines = read(path)
    assert lines["w"].rounding is not None  # nothing is rounded where nothing is written
    left_out = {"parameters", "inputs", "rounding"}
    assert lines["w"].model_dump(exclude=left_out) == line.model_dump(exclude=left_out)
    assert header.inputs == line.inputs == ["input 0", "input 1", "input 2"]
    assert header.parameters == line.parameters
    assert all(torch.equal(x, y) for x, y in zip(tensors, kept, strict=True))


def test_threads_write_whole_lines(tmp_path):
    path = tmp_path / "r.jsonl"

    def merge(worker: int) -> None:
        for i in range(20):
            tensors = fine_tunes(3, 0.05, (4, 8, 6), seed=i)
            merge_tensors(
                tensors,
                "yoyo_fusion",
                parameters={"report": str(path), "experts": "separate"},
                name=f"t{worker}.{i}",
            )

    workers = [threading.Thread(target=merge, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    _, lines = read(path)
    assert len(lines) == 80


def test_a_second_merge_to_the_same_path_is_an_error_and_a_new_process_replaces(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("of an earlier process\n")
    tensors = fine_tunes(2, 0.05, (4, 4))
    merge_tensors(tensors, "yoyo_fusion", parameters={"report": str(path)}, name="w")
    header, _ = read(path)
    before = path.read_bytes()
    with pytest.raises(YoyoError, match=r"r.jsonl already holds w.*a path of its own"):
        merge_tensors(tensors, "yoyo_fusion", parameters={"report": str(path)}, name="w")
    (tmp_path / "link.jsonl").symlink_to(path)
    for other in (tmp_path / "link.jsonl", tmp_path / "new" / ".." / "r.jsonl"):
        with pytest.raises(YoyoError, match=r"r.jsonl already holds w"):
            merge_tensors(tensors, "yoyo_fusion", parameters={"report": str(other)}, name="w")
    assert path.read_bytes() == before
    merge_tensors(tensors, "yoyo_fusion", parameters={"report": f"{path}2"}, name="w")
    assert header.parameters == read(tmp_path / "r.jsonl2")[0].parameters


def test_a_second_run_in_one_process_is_refused_while_planning(models, tmp_path):
    """The first merge's output and record stay; the second writes nothing."""
    (tmp_path / "m.yml").write_text(
        recipe([f"{models}/{m}" for m in ABC[:2]], report=str(tmp_path / "r.jsonl"))
    )
    script = (
        "import sys, yaml\n"
        "from mergekit.config import MergeConfiguration\n"
        "from mergekit.merge import run_merge\n"
        "from mergekit.options import MergeOptions\n"
        "config = MergeConfiguration.model_validate(yaml.safe_load(open('m.yml')))\n"
        "for out in ('one', 'two'):\n"
        "    run_merge(config, out, MergeOptions())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "already holds" in run.stderr.splitlines()[-1]
    assert (tmp_path / "one" / "model.safetensors").exists()
    assert not list((tmp_path / "two").rglob("*.safetensors"))
    header, lines = read(tmp_path / "r.jsonl")
    assert len(lines) == header.tensors + 1


@pytest.mark.parametrize(
    ("report", "says"),
    [("{}/folder", "is a folder"), ("{}/file/r.jsonl", "nothing can be written to")],
)
def test_a_path_that_cannot_be_written_stops_the_plan(models, tmp_path, report, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    text = recipe(["./a", "./b"], report=report.format(tmp_path))
    run = mergekit("yaml", text, tmp_path / "merged", cwd=models)
    assert run.returncode == 1
    assert says in run.stderr.splitlines()[-1]
    assert not list((tmp_path / "merged").rglob("*.safetensors"))


def test_a_report_that_is_no_path_is_refused(models, tmp_path):
    run = mergekit("yaml", recipe(["./a"], report=3), tmp_path / "merged", cwd=models)
    assert run.returncode == 1
    assert "report: expected a path in quotes; got 3" in run.stderr


def test_a_crash_leaves_the_tensors_merged_so_far(models, tmp_path):
    """A tensor of the second layer holds a NaN: the merge stops there."""

    def spoil(tensors):
        tensors[NAN][0] = float("nan")
        return tensors

    fine_tune(models / "base", tmp_path / "bad", 9, change=spoil)
    text = recipe(
        [f"{models}/a", f"{models}/b", str(tmp_path / "bad")], report=f"{tmp_path}/r.jsonl"
    )
    run = mergekit("yaml", text, tmp_path / "merged", cwd=tmp_path)
    assert run.returncode == 1
    header, lines = read(tmp_path / "r.jsonl")
    assert header.tensors is not None
    assert 0 < len(lines) < header.tensors
    assert NAN not in lines


def test_numbers_are_json_numbers_or_null(tmp_path):
    path = tmp_path / "r.jsonl"
    zero = torch.zeros(4, 4)
    merge_tensors([zero, zero], "yoyo_fusion", parameters={"report": str(path)}, name="w")
    text = path.read_text()
    assert "NaN" not in text
    assert json.loads(text.splitlines()[1])["cosines"] == [[None]]


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "self_attn.q_proj"),
        ("model.layers.12.mlp.experts.7.up_proj.weight", 12, "mlp.experts.up_proj"),
        ("model.language_model.layers.0.mlp.experts.gate_up_proj", 0, "mlp.experts.gate_up_proj"),
        ("transformer.h.1.attn.c_attn.bias", 1, "attn.c_attn.bias"),
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
    ],
)
def test_places(name, layer, kind):
    assert place_of(name) == (layer, kind)


def test_a_report_never_overwrites_what_is_no_record(tmp_path: Path) -> None:
    """An input's config, or a pipe: the merge is refused before anything is written."""
    from mergekit_yoyo.record import recorder

    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (config, pipe):
        with pytest.raises(YoyoError, match="is there already and is no record"):
            recorder.plan(str(place), "a", ["x", "y"], None, optional=False)
    assert config.read_text() == '{"model_type": "llama"}'
    with pytest.raises(YoyoError, match="expected a file; got a pipe"):
        write_files({tmp_path / "table.md": b"1", pipe: b"2"})
    assert pipe.is_fifo()
    assert not (tmp_path / "table.md").exists()
    earlier = tmp_path / "record.jsonl"
    earlier.write_text('{"line":"header","schema_version":1}\n')
    recorder.plan(str(earlier), "a", ["x", "y"], None, optional=False)
    recorder.forget(str(earlier))
